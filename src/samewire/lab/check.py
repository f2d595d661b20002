"""``lab check``: run the matrix from inside every namespace and compare."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from samewire.errors import NotFound, SamewireError, Unavailable
from samewire.hcn.client import AsyncHnsClient
from samewire.lab.commands import bounded, clean_environment, netns_path
from samewire.lab.matrix import Matrix
from samewire.lab.names import HOST_PROCESS
from samewire.lab.podfiles import parse_resolv_conf
from samewire.lab.probes import ANSWER_TIMEOUT_S, Cell, Observed, Probe, judge, observe
from samewire.lab.processes import python_script
from samewire.lab.state import LabState, NodeState, PodState
from samewire.lab.underlay import learned_macs
from samewire.node.runlock import is_held

_AGENT_TIMEOUT_S = 300.0
_FAREWELL_S = 2.0
_PARALLEL_AGENTS = 6
_LINE_BYTES = 1 << 24
_RUNS = "it runs"
_GONE = "the sender's network namespace is gone"


class Fact(Struct, frozen=True):
    """Something read instead of probed: does a daemon run, a pod's resolv.conf, the MACs behind a switch port."""

    category: str
    row: str
    expected: str
    observed: str

    @property
    def ok(self) -> bool:
        """Is it as expected?"""
        return self.expected == self.observed


class Report(Struct, frozen=True):
    """The outcome of a check."""

    cluster: str
    cells: tuple[Cell, ...]
    facts: tuple[Fact, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Is every cell and every fact as expected?"""
        return all(cell.ok for cell in self.cells) and all(fact.ok for fact in self.facts)


Progress = Callable[[int, int], None]


async def check(state: LabState, progress: Progress | None = None) -> Report:
    """Check a lab. ``progress`` is told how many probes are done, of how many.

    Raises Unavailable when the probe runner itself fails; a path that does not work is a wrong cell, no
    error.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    probes = Matrix(state).probes()
    cells = await _run(state, probes, progress)
    facts = [*await daemon_facts(state.nodes), *_resolv_conf_facts(state), *await _mac_facts(state)]
    return Report(state.cluster.name, tuple(cells), tuple(facts), loop.time() - began)


class _Agent:
    """The probe runner in one namespace."""

    def __init__(self, name: str, netns: str, cgroup: str = "") -> None:
        self.name = name
        self._netns = netns
        self._cgroup = cgroup
        self._process: asyncio.subprocess.Process | None = None
        self.results: dict[int, dict[str, object]] = {}

    def has_namespace(self) -> bool:
        """Is the namespace there that it is to run in?"""
        return Path(netns_path(self._netns)).exists()

    async def start(self) -> None:
        """Start it and wait until it listens. A node's runs in the node's cgroup, as hostNetwork pods do."""
        command = ("nsenter", f"--net={netns_path(self._netns)}", *python_script("agent.py"))
        if self._cgroup:
            enter = 'echo $$ > "$1/cgroup.procs"; shift; exec "$@"'
            command = ("sh", "-eu", "-c", enter, "agent", self._cgroup, *command)
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=clean_environment(),
            limit=_LINE_BYTES,
        )
        if await self._read_line() != "ready":
            raise Unavailable(f"the probe runner in {self.name}", await self._complaint())

    async def probe(self, work: Sequence[tuple[int, Probe]], done: Callable[[], None]) -> None:
        """Run probes and keep their results by number."""
        await self._write([probe.wire(number) for number, probe in work])
        while True:
            line = await self._read_line()
            if not line:
                raise Unavailable(f"the probe runner in {self.name}", await self._complaint())
            result = json.loads(line)
            if "done" in result:
                return
            self.results[result["id"]] = result
            done()

    async def seen(self) -> dict[str, str]:
        """The ICMP echo requests that arrived in this namespace: token -> source."""
        await self._write("finish")
        return dict(json.loads(await self._read_line() or "{}"))

    async def stop(self) -> None:
        """End it; safe to call at any time. Idle, it ends with its input; killed only while it is at work."""
        if self._process is None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_FAREWELL_S):
                    await self._process.communicate()
        finally:  # also when it is cancelled; so does a timeout end after a cancellation before Python 3.11.3
            if self._process.returncode is None:
                self._process.kill()
                await self._process.communicate()

    async def _write(self, document: object) -> None:
        process = self._running()
        if process.stdin is not None:
            process.stdin.write(json.dumps(document).encode() + b"\n")
            await process.stdin.drain()

    async def _read_line(self) -> str:
        process = self._running()
        if process.stdout is None:
            return ""
        return (await process.stdout.readline()).decode().strip()

    async def _complaint(self) -> str:
        process = self._running()
        _, errors = await process.communicate()
        return errors.decode(errors="replace").strip()[-500:] or "it ended without a word"

    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError("the agent is not started")
        return self._process


async def _run(state: LabState, probes: Sequence[Probe], progress: Progress | None) -> list[Cell]:
    agents = _agents(state, probes)
    finished = 0

    def done() -> None:
        nonlocal finished
        finished += 1
        if progress:
            progress(finished, len(probes))

    work: dict[str, list[tuple[int, Probe]]] = {name: [] for name in agents}
    for number, probe in enumerate(probes):
        if probe.source in agents:
            work[probe.source].append((number, probe))
    try:
        async with asyncio.timeout(_AGENT_TIMEOUT_S):
            await bounded(len(agents), [agent.start() for agent in agents.values()])
            jobs = [agents[name].probe(items, done) for name, items in work.items()]
            await bounded(_PARALLEL_AGENTS, jobs)
            reports = await bounded(len(agents), [agent.seen() for agent in agents.values()])
    except TimeoutError as error:
        raise Unavailable("the check", f"it did not end within {_AGENT_TIMEOUT_S:g} s") from error
    except OSError as error:
        raise Unavailable("the check", f"a probe runner went away: {error}") from error
    finally:
        await asyncio.gather(*(agent.stop() for agent in agents.values()))
    seen = dict(zip(agents, reports, strict=True))
    return [
        _cell(probe, agents[probe.source].results[n], seen.get(probe.target, {}))
        if probe.source in agents
        else Cell(probe, Observed(reachable=False), _GONE)
        for n, probe in enumerate(probes)
    ]


def _cell(probe: Probe, result: dict[str, object], seen: dict[str, str]) -> Cell:
    return judge(probe, observe(result, seen))


def _agents(state: LabState, probes: Sequence[Probe]) -> dict[str, _Agent]:
    """An agent in every namespace that is the source or the target of a probe, and is there."""
    wanted = {name for probe in probes for name in (probe.source, probe.target)}
    places: list[_Agent] = [
        _Agent(node.plan.name, node.netns, f"{node.cgroup}/{HOST_PROCESS}") for node in state.nodes
    ]
    places += [_Agent(host.plan.name, host.netns) for host in state.outside]
    places += [_Agent(pod.pod.key, pod.netns) for pod in state.pods]
    return {agent.name: agent for agent in places if agent.name in wanted and agent.has_namespace()}


async def daemon_facts(nodes: Sequence[NodeState]) -> list[Fact]:
    """Each node's daemon runs, answers, and knows of no trouble of its own."""
    with_daemon = [node for node in nodes if node.socket]
    found = await asyncio.gather(*(_of_daemon(Path(node.socket)) for node in with_daemon))
    return [Fact("daemons", node.plan.name, _RUNS, how) for node, how in zip(with_daemon, found, strict=True)]


async def _of_daemon(socket: Path) -> str:
    """How a daemon is. Not by its pid file, which another process may be meant by and another daemon not."""
    if not is_held(socket.parent):
        return "it has ended"
    try:
        health = await AsyncHnsClient(socket, ANSWER_TIMEOUT_S).get_json("/v2/health")
    except SamewireError as error:
        return f"it does not answer: {error}"
    return "; ".join(health["problems"]) or _RUNS


def _resolv_conf_facts(state: LabState) -> list[Fact]:
    """What every container finds in /etc/resolv.conf, against what its pod's dnsPolicy asks for."""
    facts = []
    for pod in state.pods:
        for container in pod.pod.template.containers:
            row = f"{pod.pod.key} {container.name}"
            facts.append(
                Fact("resolv.conf", row, str(_words(pod)), _container_resolv_conf(pod, container.name))
            )
    return facts


def _words(pod: PodState) -> list[tuple[str, ...]]:
    return [pod.dns.servers, pod.dns.searches, pod.dns.options]


def _container_resolv_conf(pod: PodState, container: str) -> str:
    try:
        path = Path(f"/proc/{pod.pid(container)}/root/etc/resolv.conf")
        found = parse_resolv_conf(path.read_text())
    except (OSError, NotFound) as error:
        return f"unreadable: {error}"
    return str([found.servers, found.searches, found.options])


async def _mac_facts(state: LabState) -> list[Fact]:
    """The underlay's switch must have learned one address a node, its NIC's: pods' never leave it."""
    learned = await learned_macs(state.cluster.name)
    return [
        Fact(
            "MACs seen upstream",
            node.plan.name,
            node.mac,
            " ".join(sorted(learned.get(node.plan.port, set()))),
        )
        for node in state.nodes
    ]
