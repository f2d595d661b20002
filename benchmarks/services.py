"""Services on one node: the datapath to a cluster IP, and what it costs to keep thousands of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import native, netns
from benchmarks.api_server import PROBE_VIP
from benchmarks.case import Case, Comparison, Context, Outcome
from benchmarks.errors import BenchError
from benchmarks.machine import pinned_cpu
from benchmarks.native import Endpoints
from benchmarks.ours import NAME, SameNode
from benchmarks.samewire_node import Json, SamewireNode
from benchmarks.scenario import Scenario
from benchmarks.stats import median_of, percentile_of

API_PORT = 6443
FIRST_PORT, PORTS = 5001, 400
"""The ports that a datapath case uses, one after the other (benchmarks.datapath)."""
START_TIMEOUT_S = 120.0
PROBE_TIMEOUT_S = 0.02
GATEWAY = "10.244.0.1"  # the node's address in the pods' network
PROBE_PORT = FIRST_PORT + PORTS  # one more than those of the measurements
SERVICE_PORTS = range(FIRST_PORT, PROBE_PORT + 1)
SETTLE_S = 1.0  # for what a daemon does behind a change: nothing here is timed
PACE, BURST_S, QUICK_BURST_S = 50, 10, 2
STORM_SERVICES, STORM_RATE, STORM_S, QUICK_STORM_S, STORM_PATIENCE_S = 10_000, 1000, 60, 5, 60


class ApiServer:
    """An API server of its own process, in a node's namespace (`benchmarks.api_server`)."""

    def __init__(self, node: str, services: int, endpoints: int, backend: str, ports: range) -> None:
        probe = [backend, str(ports.start), str(len(ports))]
        arguments = [str(API_PORT), str(services), str(endpoints), *probe]
        command = [*netns.enter(node), sys.executable, "-m", "benchmarks.api_server", *arguments]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        if self._line() != "ready":
            raise BenchError("the API server did not come up")

    def ask(self, command: str) -> str:
        """Carry out a command; returns the answer."""
        if self._process.stdin is None:
            raise BenchError("the API server is gone")
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._line()

    def close(self) -> None:
        """End it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _line(self) -> str:
        return self._process.stdout.readline().strip() if self._process.stdout is not None else ""


class ClusterIP(SameNode):
    """Two pods on a node; the client calls a cluster IP among many. ``ports``: of that cluster IP."""

    label = "ours-service"

    def __init__(self, services: int, endpoints: int = 2, ports: range = SERVICE_PORTS) -> None:
        self.label = f"{self.label}{services}"  # names its namespaces: several sizes are up at once
        super().__init__()
        self.services = services
        self.name = clusterip_name(services)
        self.endpoints = endpoints
        self.ports = ports
        self.api: ApiServer | None = None
        self.start_s = 0.0
        self.ends: Endpoints | None = None

    def setup(self) -> Endpoints:
        ends = super().setup()
        daemon = self.daemon
        daemon.stop()
        self.api = ApiServer(daemon.node, self.services, self.endpoints, ends.address, self.ports)
        kubeconfig = daemon.tmp / "kubeconfig"
        kubeconfig.write_text(json.dumps(_kubeconfig()))
        daemon.configure(kubeconfig=str(kubeconfig), healthz_listen="")
        with _listening(ends):
            began = time.monotonic()
            daemon.start(wait=False)
            self.start_s = netns.call_in(ends.client, _connected) - began
        self.ends = Endpoints(ends.client, ends.server, PROBE_VIP, ends.address)
        return self.ends

    def teardown(self) -> None:
        try:
            if self.api is not None:
                self.api.close()
        finally:
            super().teardown()

    @property
    def daemon(self) -> SamewireNode:
        """The daemon of the node."""
        return self.nodes[0]


class StraightBeside(Scenario):
    """The pods of a `ClusterIP` that is up, called by the server's own address.

    Two set-ups of the same thing differ by some per cent for as long as they live, which is more than a service costs.
    """

    label = "ours-straight"

    def __init__(self, service: ClusterIP) -> None:
        self.name = straight_name(service.services)
        self._service = service

    def setup(self) -> Endpoints:
        ends = self._service.ends
        if ends is None:
            raise BenchError(f"{self._service.name} is not up")
        # Other ports: the service's connections have used these tuples behind their translation.
        return Endpoints(ends.client, ends.server, ends.server_address, port_shift=PORTS + 1)

    def teardown(self) -> None:
        """Nothing is its own."""


class UserMode(ClusterIP):
    """The same, balanced by the relay process; client, relay and server share a CPU."""

    label = "ours-relay"

    def __init__(self) -> None:
        super().__init__(1)
        self.name = f"{NAME}, user mode"

    def start_node(self, name: str, node: str) -> SamewireNode:
        daemon = super().start_node(name, node)
        daemon.configure(proxy_mode="userspace")
        return daemon

    def setup(self) -> Endpoints:
        ends = super().setup()
        os.sched_setaffinity(self._relay(), {pinned_cpu()})
        return ends

    def teardown(self) -> None:
        self.daemon.stop()  # first: it would start another relay
        try:
            with contextlib.suppress(BenchError):
                os.kill(self._relay(), signal.SIGKILL)
        finally:
            super().teardown()

    def _relay(self) -> int:
        """The relay's process id: it is no child of ours. Raises ``BenchError``."""
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if process.read_bytes().endswith(f"{self.daemon.tmp}/run/relay.sock\0".encode()):
                    return int(process.parent.name)
        raise BenchError("there is no relay")


class EpollRelay(SameNode):
    """The same two pods, the client calling a plain epoll relay on the node (`native/epoll_relay.c`)."""

    name = "C epoll relay"
    label = "c-relay"

    def setup(self) -> Endpoints:
        ends = super().setup()
        arguments = [GATEWAY, str(FIRST_PORT), str(PORTS), ends.address]
        command = ["taskset", "-c", str(pinned_cpu()), str(native.BUILD / "epoll_relay"), *arguments]
        self._relay = subprocess.Popen(
            [*netns.enter(self.nodes[0].node), *command], stdout=subprocess.PIPE, text=True
        )
        if self._relay.stdout is None or self._relay.stdout.readline() != "ready\n":
            raise BenchError("the C relay did not come up")
        return Endpoints(ends.client, ends.server, GATEWAY, ends.address)

    def teardown(self) -> None:
        try:
            if self._relay is not None:
                self._relay.kill()
                self._relay.communicate()
        finally:
            super().teardown()

    _relay: subprocess.Popen[str] | None = None


def _kubeconfig() -> dict[str, object]:
    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{API_PORT}"}}
    context = {"name": "c", "context": {"cluster": "c", "user": ""}}
    return {"clusters": [cluster], "contexts": [context], "current-context": "c", "users": []}


@contextlib.contextmanager
def _listening(ends: Endpoints) -> Iterator[None]:
    """Somebody in the server pod who accepts the probes."""

    def listen() -> socket.socket:
        server = socket.create_server((ends.address, PROBE_PORT), backlog=1024)
        server.setblocking(False)
        return server

    with netns.call_in(ends.server, listen):
        yield


def _connected() -> float:
    """When the first connection to the probe's cluster IP came about. Raises ``BenchError``."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        with socket.socket() as client, contextlib.suppress(OSError):
            client.settimeout(PROBE_TIMEOUT_S)
            client.connect((PROBE_VIP, PROBE_PORT))
            return time.monotonic()
    raise BenchError(f"no service after {START_TIMEOUT_S:.0f} s")


class ServiceScale(Case):
    """Cold start, memory, single changes, and a storm of changes, by number of services."""

    name = "service-scale"

    def __init__(self, sizes: tuple[tuple[int, int], ...], comparisons: tuple[Comparison, ...]) -> None:
        self._sizes = sizes
        self.comparisons = comparisons

    def steps(self, context: Context) -> int:
        return len(self._sizes)

    def run(self, context: Context) -> Outcome:
        outcome = Outcome()
        for services, endpoints in self._sizes:
            context.progress.step(f"{self.name}: {services:,} services of {endpoints}")
            scenario = ClusterIP(services, endpoints, ports=range(PROBE_PORT, PROBE_PORT + 1))
            subject = size_name(services, endpoints)
            try:
                context.gate.wait()
                scenario.setup()
                self._measure(context, scenario, outcome, subject)
            except Exception as error:  # reported beside the other sizes' figures
                outcome.fail(subject, error)
            finally:
                scenario.teardown()
        return outcome

    def _measure(self, context: Context, scenario: ClusterIP, outcome: Outcome, subject: str) -> None:
        def note(metric: str, *values: float) -> None:
            outcome.measured[subject, metric] = median_of(values)

        daemon, api = scenario.daemon, scenario.api
        if api is None:
            raise BenchError("the API server is not there")
        note("service_start", scenario.start_s)
        time.sleep(SETTLE_S)
        note("service_memory", daemon.resident_mb())
        before_s = daemon.cpu_s()
        changed = int(api.ask(f"burst {PACE} {QUICK_BURST_S if context.quick else BURST_S}"))
        time.sleep(SETTLE_S)
        note("change_cpu", (daemon.cpu_s() - before_s) / changed * 1000)
        found = _services(daemon)
        latencies = [found[f"svc-{n}"]["latency_s"] * 1000 for n in range(min(changed, scenario.services))]
        outcome.measured[subject, "change_p50"] = median_of(latencies)
        outcome.measured[subject, "change_p99"] = percentile_of(latencies, 99)
        if scenario.services == STORM_SERVICES and scenario.endpoints == 2:
            self._storm(context, scenario, api, outcome, subject, changed)

    def _storm(
        self,
        context: Context,
        scenario: ClusterIP,
        api: ApiServer,
        outcome: Outcome,
        subject: str,
        changed: int,
    ) -> None:
        """A thousand changes a second: is anything late, is anything lost?"""
        seconds = QUICK_STORM_S if context.quick else STORM_S
        storm = int(api.ask(f"burst {STORM_RATE} {seconds}"))
        began = time.monotonic()
        wanted = {
            f"svc-{n}": scenario.endpoints - (_flips(n, changed, scenario) + _flips(n, storm, scenario)) % 2
            for n in range(scenario.services)
        }
        wrong = len(wanted)
        while wrong and time.monotonic() < began + STORM_PATIENCE_S:
            found = _services(scenario.daemon)
            backlog_s = time.monotonic() - began
            wrong = sum(_backends(found[name]) != count for name, count in wanted.items())
        outcome.measured[subject, "storm_lost"] = median_of([float(wrong)])
        outcome.measured[subject, "storm_backlog"] = median_of([backlog_s])


def _flips(number: int, total: int, scenario: ClusterIP) -> int:
    """How often a burst of ``total`` flips has come to a service."""
    return total // scenario.services + (number < total % scenario.services)


def _services(daemon: SamewireNode) -> dict[str, Json]:
    return {one["name"]: one for one in daemon.request("GET", "/v2/services")}


def _backends(service: Json) -> int:
    return sum(not one.get("draining") for one in service["addresses"][0].get("backends", ()))


def clusterip_name(services: int) -> str:
    """How the report calls the datapath beside that many services."""
    return f"{NAME}, {services:,} services"


def straight_name(services: int) -> str:
    """How it calls the same pods without the service."""
    return f"{clusterip_name(services)}, straight to the pod"


def size_name(services: int, endpoints: int) -> str:
    """How the report calls a size."""
    return f"{NAME}, {services:,} × {endpoints}"
