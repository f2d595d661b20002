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
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

from samewire.kernel.bpf import BpfMap
from samewire.kernel.netns import NetNamespace
from samewire.vfp.address import parse_address
from samewire.vfp.constants import Reason
from samewire.vfp.tables import DropKey, FlowKey
from tests.support import flows
from tests.support.flows import NEW_A_ROUND, Target
from tests.support.node import (
    NODE_IP,
    NODE_IP6,
    ROUTER_IP,
    ROUTER_IP6,
    Json,
    in_namespace,
    path_of,
    poll,
)
from tests.support.two_nodes import CLIENT, CLIENT6, FAR, FAR6, NEAR_SUBNETS, WEB, WEB6, World, modify

pytestmark = [pytest.mark.root, pytest.mark.slow]

AWAY_S: Final = 60.0
PORT, HOST_PORT = 8000, 8080
SINK_PORT: Final = PORT + 1
TCP, UDP = 6, 17
PROTOCOLS: Final = {"tcp": TCP, "udp": UDP}
AGED_S: Final = 120.0  # a bound: closed TCP goes after some 64 s, unanswered UDP after 32 s
_POLICIES: Final = [
    {"Type": "OutBoundNAT", "Settings": {"Exceptions": ["fd00:244::/32"]}},  # IPv4 has one already
    *(
        {"Type": "ACL", "Settings": {"Action": "Allow", "Direction": direction, "Priority": 100}}
        for direction in ("In", "Out")
    ),
]
_HOST_PORTS: Final = [
    {
        "Type": "PortMapping",
        "Settings": {"Protocol": number, "InternalPort": PORT, "ExternalPort": HOST_PORT, "Flags": flags},
    }
    for number in PROTOCOLS.values()
    for flags in (0, 2)  # IPv4, IPv6
]


def to(port: int, count: int, *addresses: str) -> list[Target]:
    """So many connections of each protocol to each address."""
    return [Target(protocol, address, port, count) for protocol in PROTOCOLS for address in addresses]


# 1,000 together
OF_THE_CLIENT: Final = [
    *to(PORT, 70, WEB, WEB6),
    *to(PORT, 70, FAR, FAR6),
    *to(PORT, 70, ROUTER_IP, ROUTER_IP6),
]
OF_THE_REMOTE: Final = to(PORT, 30, WEB, WEB6)
FROM_OUTSIDE: Final = to(HOST_PORT, 10, NODE_IP, NODE_IP6)
NodeFlow = tuple[Path, FlowKey]
"""A flow of a node: by the node's directory."""


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
    """All scripts, with what each talks to."""

    def __init__(self, talkers: dict[Script, list[Target]]) -> None:
        self._talkers = talkers
        self._seen = dict.fromkeys(talkers, 0)

    def check(self) -> None:
        """Every round since the last look had all its answers, and every new connection worked."""
        for script, targets in self._talkers.items():
            rounds = script.rounds()
            for one in rounds[self._seen[script] :]:
                assert one["broken"] == [], (script.log.name, one)
                assert one["answered"] == sum(target.connections for target in targets), (
                    script.log.name,
                    one,
                )
                assert one["new_failed"] == [], (script.log.name, one)
                assert sum(map(len, one["new"].values())) == NEW_A_ROUND * len(targets)
            self._seen[script] = len(rounds)

    def goes_on(self, what: str) -> None:
        """Three more whole rounds of each."""
        target = {script: len(script.rounds()) + 3 for script in self._talkers}
        poll(what, lambda: all(len(script.rounds()) >= least for script, least in target.items()), 60)
        self.check()

    def closed_ports(self) -> set[int]:
        """Local ports of the last round's new TCP connections, which are closed by now."""
        return {port for script in self._talkers for port in script.rounds()[-1]["new"]["tcp"]}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Two nodes, whose pods have OutBoundNAT and stateful ACLs, so that each connection has a flow; one pod has host
    ports.
    """
    with ExitStack() as stack:
        made = World(stack, tmp_path)
        for process in (made.near, made.far):
            for endpoint in process.endpoints():
                more = _HOST_PORTS if endpoint["Name"] == "shop/web" else []
                modify(process, "endpoints", endpoint["ID"], [*_POLICIES, *more])
        yield made


@pytest.fixture
def traffic(world: World, tmp_path: Path) -> Iterator[Traffic]:
    with ExitStack() as stack:

        def run(name: str, namespace: str, *arguments: object) -> Script:
            return stack.enter_context(Script(namespace, tmp_path / name, *map(str, arguments)))

        outside = world.net.router
        for name, namespace in (("pod", world.web), ("far pod", world.remote), ("outside", outside)):
            run(f"server: {name}", namespace, "serve", PORT)
        yield Traffic(
            {
                run("client: pod", world.client, "talk", *OF_THE_CLIENT): OF_THE_CLIENT,
                run("client: far pod", world.remote, "talk", *OF_THE_REMOTE): OF_THE_REMOTE,
                run("client: outside", outside, "talk", *FROM_OUTSIDE): FROM_OUTSIDE,
            }
        )


def flow_keys(world: World) -> set[NodeFlow]:
    """The keys in the pinned flow tables: no daemon is asked."""
    found = set()
    for node in (world.near, world.far):
        with BpfMap.open_pinned(node.run_dir / "bpf" / "maps" / "sw_flows") as table:
            found |= {(node.directory, FlowKey.unpack(key)) for key, _ in table.items()}
    return found


def dropped(world: World) -> dict[str, int]:
    """Packets that the switches have dropped, by reason; TCP would send them again, and nobody notice."""
    found: Counter[str] = Counter()
    for node in (world.near, world.far):
        with BpfMap.open_pinned(node.run_dir / "bpf" / "maps" / "sw_drops") as table:
            for key, value in table.items():
                counts = (int.from_bytes(one[:8], "little") for one in table.per_cpu_values(value))
                found[Reason(DropKey.unpack(key).reason).name] += sum(counts)
    del found[Reason.MULTICAST.name]  # the pods' own chatter, of which nothing is carried
    return dict(found)


def of_ports(keys: set[NodeFlow], protocol: int, ports: set[int]) -> set[NodeFlow]:
    """Those of a protocol at one of the ports."""
    return {(node, key) for node, key in keys if key.protocol == protocol and not ports.isdisjoint(key.port)}


def aged_out(world: World, keys: set[NodeFlow]) -> Callable[[], bool]:
    """A condition: each of the keys has been seen missing (a port may be used again later)."""
    left = set(keys)

    def condition() -> bool:
        left.intersection_update(flow_keys(world))
        return not left

    return condition


def unanswered_datagrams(pod: str) -> set[int]:
    """UDP to sinks on the same node, beyond the tunnel and outside; the local ports used."""
    ports = set()
    for address in (WEB, WEB6, FAR, FAR6, ROUTER_IP, ROUTER_IP6):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with NetNamespace(path_of(pod)) as netns:
            sender = netns.run(partial(socket.socket, family, socket.SOCK_DGRAM))
        with sender:
            sender.sendto(b"hello?", (address, SINK_PORT))
            ports.add(int(sender.getsockname()[1]))
    return ports


def test_a_thousand_flows_live_on_without_the_daemon(world: World, traffic: Traffic) -> None:
    """Of both families, TCP and UDP: within a node, through the tunnel, to the outside and to host ports."""
    daemons = world.near, world.far
    live_flows = flow_keys(world)  # of connections that stay
    assert len(live_flows) >= 1000
    traffic.goes_on("traffic before")
    drops = dropped(world)
    for node in daemons:
        node.stop(signal.SIGKILL)
    gone_at = time.monotonic()
    datagrams, closed = unanswered_datagrams(world.client), traffic.closed_ports()
    keys = flow_keys(world)
    datagram_flows, closed_flows = of_ports(keys, UDP, datagrams), of_ports(keys, TCP, closed)
    assert len(datagram_flows) >= len(datagrams)
    assert len(closed_flows) >= len(closed)
    no_datagrams, none_closed = (
        aged_out(world, datagram_flows - live_flows),
        aged_out(world, closed_flows - live_flows),
    )
    while time.monotonic() < gone_at + AWAY_S:
        traffic.goes_on("traffic while the daemons are away")
        no_datagrams()
        none_closed()
    poll("unanswered UDP has aged out", no_datagrams, AGED_S)
    poll("closed TCP has aged out", none_closed, AGED_S)
    traffic.goes_on("traffic after everything else has aged out")
    assert dropped(world) == drops
    before = _links(world)

    for node in daemons:
        node.start()
        assert node.differences() == []
    traffic.goes_on("traffic after the daemons' return")
    assert dropped(world) == drops
    assert _links(world) == before
    near = world.near
    near.delete("c-client", world.client, near.conf("pods", *NEAR_SUBNETS))
    poll("flows of a removed pod go", lambda: not _of_the_client(world), AGED_S)


def _links(world: World) -> list[str]:
    return [in_namespace(name, "ip", "link").stdout for name in (world.net.node, world.far_net.node)]


def _of_the_client(world: World) -> set[NodeFlow]:
    """On its node; elsewhere they age, as with any client that falls silent."""
    own = {parse_address(text).packed for text in (CLIENT, CLIENT6)}
    outside = {(parse_address(text).packed, PORT) for text in (ROUTER_IP, ROUTER_IP6)}
    return {
        (node, key)
        for node, key in flow_keys(world)
        if node == world.near.directory
        and not (own.isdisjoint(key.address) and outside.isdisjoint(zip(key.address, key.port, strict=True)))
    }
