"""The daemon is killed and stays away: what lives goes on, new connections work, flows age out by themselves."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

from samewire.kernel.bpf import BpfMap
from samewire.kernel.netns import NetNamespace
from samewire.vfp.constants import Reason
from samewire.vfp.tables import DropKey, FlowKey
from tests.support import flows
from tests.support.node import (
    NODE_IP,
    ROUTER_IP,
    DaemonProcess,
    Json,
    NodeNet,
    in_namespace,
    overlay,
    path_of,
    poll,
)

pytestmark = [pytest.mark.root, pytest.mark.slow]

AWAY_S: Final = 60.0
POD_FLOWS, OUTSIDE_FLOWS, HOST_PORT_FLOWS = 480, 480, 40  # 1,000 together
POD_PORT, OUTSIDE_PORT, HOST_PORT = 8000, 9000, 8080
TARGET_IP: Final = "10.244.0.3"
TCP, UDP = 6, 17
AGED_S: Final = 120.0  # a bound: closed TCP goes after some 64 s, unanswered UDP after 32 s
_ACLS: Final = [
    {
        "name": "EndpointPolicy",
        "value": {"Type": "ACL", "Settings": {"Action": "Allow", "Direction": direction, "Priority": 100}},
    }
    for direction in ("In", "Out")
]


class Script:
    """One run of tests/support/flows.py inside a namespace; its output goes to a file."""

    def __init__(self, namespace: str, log: Path, *arguments: str) -> None:
        self.log = log
        command = ["nsenter", f"--net={path_of(namespace)}", sys.executable, flows.__file__, *arguments]
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT
            )

    def lines(self) -> list[str]:
        """What it has written, whole lines only."""
        return self.log.read_text().split("\n")[:-1]

    def rounds(self) -> list[Json]:
        """The rounds that were played."""
        assert self.process.poll() is None, f"it ended: {self.log.read_text()[-2000:]}"
        return [json.loads(line) for line in self.lines()]

    def __enter__(self) -> Self:
        poll(f"{self.log.name} has begun", lambda: bool(self.lines()) or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()


class Traffic:
    """All scripts, with the number of flows that each must keep."""

    def __init__(self, talkers: dict[Script, int]) -> None:
        self._talkers = talkers
        self._seen = dict.fromkeys(talkers, 0)

    def check(self) -> None:
        """Every round since the last look had all its answers, and every new connection worked."""
        for script, count in self._talkers.items():
            rounds = script.rounds()
            for one in rounds[self._seen[script] :]:
                assert one["answered"] == count, (script.log.name, one)
                assert one["broken"] == [], (script.log.name, one)
                assert one["new_failed"] == [], (script.log.name, one)
                assert len(one["new"]) == flows.NEW_A_ROUND
            self._seen[script] = len(rounds)

    def goes_on(self, what: str) -> None:
        """Three more whole rounds of each."""
        target = {script: len(script.rounds()) + 3 for script in self._talkers}
        poll(what, lambda: all(len(script.rounds()) >= least for script, least in target.items()), 60)
        self.check()

    def new_ports(self) -> set[int]:
        """Local ports of the last round's new connections, which are closed by now."""
        return {port for script in self._talkers for port in script.rounds()[-1]["new"]}


@pytest.fixture
def node(unstarted: DaemonProcess) -> DaemonProcess:
    """Not started yet."""
    return unstarted


@pytest.fixture
def pods(net: NodeNet, node: DaemonProcess) -> tuple[str, str]:
    """Two pods with OutBoundNAT and stateful ACLs, so that each connection has a flow; the second one has
    a host port.
    """
    node.start()
    node.request("POST", "/v2/networks", overlay())
    names = net.pod(), net.pod()
    mapping = {"hostPort": HOST_PORT, "containerPort": POD_PORT, "protocol": "tcp"}
    for number, name in enumerate(names):
        conf = node.conf()
        conf["policies"] += _ACLS
        if number:
            conf["runtimeConfig"] = {"portMappings": [mapping]}
            conf["capabilities"] = {"portMappings": True}
        node.add(f"pod{number}", name, conf)
    return names


@pytest.fixture
def traffic(net: NodeNet, pods: tuple[str, str], tmp_path: Path) -> Iterator[Traffic]:
    first, second = pods
    with ExitStack() as stack:

        def run(name: str, namespace: str, *arguments: object) -> Script:
            return stack.enter_context(Script(namespace, tmp_path / name, *map(str, arguments)))

        run("server in the pod", second, "serve", "0.0.0.0", POD_PORT)
        run("server outside", net.router, "serve", "0.0.0.0", OUTSIDE_PORT)
        yield Traffic(
            {
                run("pod to pod", first, "talk", TARGET_IP, POD_PORT, POD_FLOWS): POD_FLOWS,
                run("pod to outside", first, "talk", ROUTER_IP, OUTSIDE_PORT, OUTSIDE_FLOWS): OUTSIDE_FLOWS,
                run("to host port", net.router, "talk", NODE_IP, HOST_PORT, HOST_PORT_FLOWS): HOST_PORT_FLOWS,
            }
        )


def flow_keys(node: DaemonProcess) -> set[FlowKey]:
    """The keys in the pinned flow table: no daemon is asked."""
    with BpfMap.open_pinned(node.run_dir / "bpf" / "maps" / "sw_flows") as table:
        return {FlowKey.unpack(key) for key, _ in table.items()}


def dropped(node: DaemonProcess) -> dict[str, int]:
    """Packets that the switch has dropped, by reason; TCP would send them again, and nobody notice."""
    with BpfMap.open_pinned(node.run_dir / "bpf" / "maps" / "sw_drops") as table:
        found: Counter[str] = Counter()
        for key, value in table.items():
            counts = (int.from_bytes(one[:8], "little") for one in table.per_cpu_values(value))
            found[Reason(DropKey.unpack(key).reason).name] += sum(counts)
    del found[Reason.MULTICAST.name]  # the pods' own chatter, of which nothing is carried
    return dict(found)


def of_ports(keys: set[FlowKey], protocol: int, ports: set[int]) -> set[FlowKey]:
    """Those of a protocol at one of the ports."""
    return {key for key in keys if key.protocol == protocol and not ports.isdisjoint(key.port)}


def aged_out(node: DaemonProcess, keys: set[FlowKey]) -> Callable[[], bool]:
    """A condition: each of the keys has been seen missing (a port may be used again later)."""
    left = set(keys)

    def condition() -> bool:
        left.intersection_update(flow_keys(node))
        return not left

    return condition


def unanswered_datagrams(pod: str) -> set[int]:
    """UDP to a sink inside and one outside; the local ports used."""
    ports = set()
    for target in ((TARGET_IP, POD_PORT), (ROUTER_IP, OUTSIDE_PORT)):
        with NetNamespace(path_of(pod)) as netns:
            sender = netns.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with sender:
            sender.sendto(b"hello?", target)
            ports.add(int(sender.getsockname()[1]))
    return ports


def test_a_thousand_flows_live_on_without_the_daemon(
    net: NodeNet, node: DaemonProcess, pods: tuple[str, str], traffic: Traffic
) -> None:
    live_flows = flow_keys(node)  # of connections that stay
    traffic.goes_on("traffic before")
    drops = dropped(node)
    node.stop(signal.SIGKILL)
    gone_at = time.monotonic()
    datagrams, closed = unanswered_datagrams(pods[0]), traffic.new_ports()
    keys = flow_keys(node)
    datagram_flows, closed_flows = of_ports(keys, UDP, datagrams), of_ports(keys, TCP, closed)
    assert len(datagram_flows) >= len(datagrams)
    assert len(closed_flows) >= len(closed)
    no_datagrams, none_closed = aged_out(node, datagram_flows), aged_out(node, closed_flows - live_flows)
    while time.monotonic() < gone_at + AWAY_S:
        traffic.goes_on("traffic while the daemon is away")
        no_datagrams()
        none_closed()
    poll("unanswered UDP has aged out", no_datagrams, AGED_S)
    poll("closed TCP has aged out", none_closed, AGED_S)
    traffic.goes_on("traffic after everything else has aged out")
    assert dropped(node) == drops
    before = in_namespace(net.node, "ip", "link").stdout

    node.start()
    assert node.differences() == []
    traffic.goes_on("traffic after the daemon's return")
    assert dropped(node) == drops
    assert in_namespace(net.node, "ip", "link").stdout == before
    node.delete("pod0", pods[0], node.conf())
    poll("flows of a removed pod go", lambda: not of_ports(flow_keys(node), TCP, {OUTSIDE_PORT}), AGED_S)
