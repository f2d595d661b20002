"""Backends that come and go under connections: what stays, what ends, and what is never mixed up."""

from __future__ import annotations

import select
import socket
from collections import Counter as Tally
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from samewire.kernel.bpf import SkbContext
from samewire.vfp.address import parse_address
from samewire.vfp.constants import SCOPE_ANY, SCOPE_HOST, Counter, Layer, Reason, ServiceFlag
from samewire.vfp.diff import Put
from samewire.vfp.simulate.packet import parse
from samewire.vfp.tables import Affinity, AffinityKey, Flow, Id, Port
from tests.support.cgroups import own_cgroup, within
from tests.support.frames import fill, ip_packet, pseudo
from tests.support.lockstep import together
from tests.support.netlab import Lab
from tests.support.node_rig import Pod
from tests.support.services import Balancer, Target
from tests.support.switch_rig import now_tick
from tests.support.traffic import bound
from tests.support.worlds import Underlay, overlay

pytestmark = [pytest.mark.root]

VIP = "10.96.0.10"
INTERNAL = 8080
BACKENDS = 3
TIMEOUT_S = 20.0


class World:
    """A node with a client and a few backends; each of them is a TCP and a UDP server."""

    def __init__(self, lab: Lab) -> None:
        self.node = node = Underlay(lab).node(11)
        self.group = lab.stack.enter_context(own_cgroup("swchurn"))
        node.attach_sockets(self.group)
        network = node.network(overlay(node, 1))
        self.client = node.pod(network, "10.1.0.10")
        self.pods = [node.pod(network, f"10.1.0.{20 + i}") for i in range(BACKENDS)]
        port = node.table("sw_ports")[Id(self.client.port)]
        assert isinstance(port, Port)
        self.scope = port.scope
        enter = lab.stack.enter_context
        self.tcp = {p.ip: enter(bound(p.space, socket.SOCK_STREAM, p.ip, INTERNAL)) for p in self.pods}
        self.udp = {p.ip: enter(bound(p.space, socket.SOCK_DGRAM, p.ip, INTERNAL)) for p in self.pods}

    def target(self, pod: Pod) -> Target:
        """A pod as a backend."""
        return Target(pod.ip, INTERNAL, self.scope)

    def service(self, *pods: Pod, protocol: int = 6, **fields: int) -> Balancer:
        """A service of some pods on the VIP, for everybody on the node."""
        made = Balancer(self.node, *map(self.target, pods or self.pods), protocol=protocol, **fields)
        made.vip(VIP, 80, SCOPE_ANY)
        return made

    def connect(self, source: int = 0) -> tuple[socket.socket, socket.socket, str]:
        """A connection to the VIP: the client's end, the backend's, and whose that is."""
        near = self.client.space.socket(socket.AF_INET, socket.SOCK_STREAM)
        near.settimeout(TIMEOUT_S)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if source:
            near.bind(("", source))
        near.connect((VIP, 80))
        far, _ = _first(self.tcp).accept()
        far.settimeout(TIMEOUT_S)
        return near, far, far.getsockname()[0]

    def ask(self, near: socket.socket, payload: bytes = b"x") -> str:
        """Send a datagram to the VIP; whoever gets it answers. Returns who that was."""
        near.sendto(payload, (VIP, 80))
        server = _first(self.udp)
        data, sender = server.recvfrom(100)
        assert data == payload
        server.sendto(b"answer", sender)
        assert near.recvfrom(100) == (b"answer", (VIP, 80))
        return str(server.getsockname()[0])


def _first(servers: dict[str, socket.socket]) -> socket.socket:
    ready, _, _ = select.select(list(servers.values()), [], [], TIMEOUT_S)
    assert ready, "nobody got it"
    found: socket.socket = ready[0]
    return found


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        yield World(lab)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


def _talk(near: socket.socket, far: socket.socket) -> None:
    near.sendall(b"question")
    assert far.recv(100) == b"question"
    far.sendall(b"answer")
    assert near.recv(100) == b"answer"


def _pod(world: World, address: str) -> Pod:
    return next(pod for pod in world.pods if pod.ip == address)


def test_connections_spread_and_stay(world: World, stack: ExitStack) -> None:
    """Every backend gets some; nobody moves when one comes, drains or goes; what a gone one had is reset."""
    service = world.service(*world.pods[:2])
    stack.callback(service.close)
    held = []
    for _ in range(40):
        near, far, who = world.connect()
        stack.enter_context(near)
        stack.enter_context(far)
        held.append((near, far, who))
    assert set(Tally(who for _, _, who in held)) == {pod.ip for pod in world.pods[:2]}
    service.add(world.target(world.pods[2]))
    service.drain(world.target(world.pods[1]))
    for near, far, _ in held:
        _talk(near, far)
    later = [world.connect() for _ in range(20)]
    for near, far, who in later:
        stack.enter_context(near)
        stack.enter_context(far)
        assert who != world.pods[1].ip
    service.remove(world.target(world.pods[1]))
    ended = world.node.counter(Counter.LB_ENDED)
    for near, far, who in held + later:
        if who == world.pods[1].ip:
            near.sendall(b"is anybody there?")
            with pytest.raises(ConnectionResetError):
                near.recv(100)
        else:
            _talk(near, far)
    gone = sum(who == world.pods[1].ip for _, _, who in held)
    assert world.node.counter(Counter.LB_ENDED) == ended + gone


def test_the_removed_backend_is_told_too(world: World, stack: ExitStack) -> None:
    """It speaks first: its connection is reset, and the client hears nothing of it."""
    service = world.service(world.pods[0])
    stack.callback(service.close)
    near, far, _ = world.connect()
    stack.enter_context(near)
    stack.enter_context(far)
    service.remove(world.target(world.pods[0]))
    far.sendall(b"still here")
    with pytest.raises(ConnectionResetError):
        far.recv(100)
    near.settimeout(0.2)
    with pytest.raises(TimeoutError):
        near.recv(100)


def test_a_pod_that_reuses_the_address_hears_nothing(world: World, stack: ExitStack) -> None:
    """Same address, another backend: the old connection and the old flow's datagrams do not reach it."""
    service = world.service(world.pods[0])
    stack.callback(service.close)
    near, far, _ = world.connect()
    stack.enter_context(near)
    stack.enter_context(far)
    service.remove(world.target(world.pods[0]))
    service.add(world.target(world.pods[0]))
    near.sendall(b"old")
    with pytest.raises(ConnectionResetError):
        near.recv(100)
    far.settimeout(0.2)
    with pytest.raises(TimeoutError):
        far.recv(100)


def test_datagrams_go_on_with_the_next_packet(world: World, stack: ExitStack) -> None:
    """A sender with a fixed port stays with its backend while that is there, and is with another one at once."""
    service = world.service(protocol=17)
    stack.callback(service.close)
    near = stack.enter_context(bound(world.client.space, socket.SOCK_DGRAM, world.client.ip, 45000))
    first = world.ask(near)
    assert {world.ask(near) for _ in range(5)} == {first}
    service.drain(world.target(_pod(world, first)))
    assert world.ask(near) == first
    service.remove(world.target(_pod(world, first)))
    second = world.ask(near)
    assert second != first
    assert {world.ask(near) for _ in range(5)} == {second}


def test_a_late_answer_of_a_removed_backend_is_dropped(world: World, stack: ExitStack) -> None:
    service = world.service(world.pods[0], protocol=17)
    stack.callback(service.close)
    near = stack.enter_context(bound(world.client.space, socket.SOCK_DGRAM, world.client.ip))
    near.sendto(b"x", (VIP, 80))
    server = world.udp[world.pods[0].ip]
    _, sender = server.recvfrom(10)
    service.remove(world.target(world.pods[0]))
    server.sendto(b"late", sender)
    port = world.pods[0].port
    assert world.node.dropped(port, Layer.LB, Reason.BACKEND_GONE)


def test_the_same_port_again(world: World, stack: ExitStack) -> None:
    """A client that closes and connects from the same port is balanced anew, by the same hash: the same backend."""
    service = world.service()
    stack.callback(service.close)
    seen = set()
    for _ in range(3):
        near, far, who = world.connect(source=46000)
        # The client's side ends first and without lingering in TIME_WAIT.
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        near.close()
        far.close()
        seen.add(who)
    assert len(seen) == 1
    service.remove(world.target(_pod(world, seen.pop())))
    near, far, _ = world.connect(source=46000)
    _talk(near, far)
    near.close()
    far.close()


def test_half_closed_connections_keep_their_backend(world: World, stack: ExitStack) -> None:
    service = world.service()
    stack.callback(service.close)
    near, far, _ = world.connect()
    stack.enter_context(near)
    stack.enter_context(far)
    near.shutdown(socket.SHUT_WR)
    assert far.recv(10) == b""
    far.sendall(b"rest")
    assert near.recv(10) == b"rest"


def _backends_of(world: World, count: int) -> list[str]:
    found = []
    for _ in range(count):
        near, far, who = world.connect()
        near.close()
        far.close()
        found.append(who)
    return found


def test_affinity(world: World, stack: ExitStack) -> None:
    """All connections of a client go to one backend, until that drains, goes, or the time is over."""
    service = world.service(affinity_ticks=1000)
    stack.callback(service.close)
    (first,) = set(_backends_of(world, 12))
    service.drain(world.target(_pod(world, first)))
    (second,) = set(_backends_of(world, 12))
    assert second != first
    service.remove(world.target(_pod(world, second)))
    (third,) = set(_backends_of(world, 6))
    assert third not in (first, second)
    key, value = next(
        (k, v) for k, v in world.node.table("sw_affinity").items() if getattr(k, "set", 0) == service.number
    )
    assert isinstance(key, AffinityKey)
    assert isinstance(value, Affinity)
    assert world.node.table("sw_backends").keys() >= {Id(value.backend)}


def test_affinity_ends(world: World, stack: ExitStack) -> None:
    """With a timeout of no time, connections a tick apart spread again."""
    service = world.service(affinity_ticks=1)
    stack.callback(service.close)
    _backends_of(world, 1)
    key, value = next(
        (k, v) for k, v in world.node.table("sw_affinity").items() if getattr(k, "set", 0) == service.number
    )
    assert isinstance(value, Affinity)
    seen = set()
    for _ in range(30):
        old = Affinity(value.backend, value.seen_tick - 100)
        world.node.apply([Put("sw_affinity", key, old)])
        seen.update(_backends_of(world, 1))
    assert len(seen) > 1


def test_affinity_that_another_cpu_has_seen_a_tick_later(world: World, stack: ExitStack) -> None:
    """The client stays: it has not been away for 2^32 ticks."""
    service = world.service(affinity_ticks=1000)
    stack.callback(service.close)
    _backends_of(world, 1)
    (key,) = [k for k in world.node.table("sw_affinity") if getattr(k, "set", 0) == service.number]
    for _ in range(3):
        for target, backend in service.backends.items():
            world.node.apply([Put("sw_affinity", key, Affinity(backend, now_tick() + 20))])
            assert set(_backends_of(world, 1)) == {target.address}


def _chosen(world: World, frame: bytes) -> int:
    """The last byte of the backend's address that the client's program sends a frame to; 0: to none."""
    program, context = world.node.program("sw_ingress"), SkbContext(ifindex=world.client.port)
    result = world.node.space.run(lambda: program.test_run(frame, context))
    return parse(bytearray(result.data)).tuple.destination[3] if result.retval == 7 else 0


@pytest.mark.parametrize("known", [False, True], ids=["new client", "known client"])
def test_affinity_of_connections_that_begin_at_once(world: World, stack: ExitStack, known: bool) -> None:
    """Two CPUs have a client's first connections, or the first ones since its backend has gone: both go to one."""
    client, gone, count = world.client, Affinity(2**32 - 1, 1), 200
    services = [
        Balancer(world.node, *map(world.target, world.pods), affinity_ticks=1000) for _ in range(count)
    ]
    for i, service in enumerate(services):
        stack.callback(service.close)
        service.vip(f"10.97.0.{i}", 80, SCOPE_ANY)
        if known:
            key = AffinityKey(parse_address(client.ip).packed, service.number, 4)
            world.node.apply([Put("sw_affinity", key, gone)])
    frames = [[_syn(client, f"10.97.0.{i}", 22000 + 3 * i + n) for i in range(count)] for n in range(3)]
    results = together(lambda who, i: _chosen(world, frames[who][i]), count)
    assert all(one == other != 0 for one, other in results)
    assert len({one for one, _ in results}) == BACKENDS
    later = [_chosen(world, frame) for frame in frames[2]]
    assert later == [one for one, _ in results]


def _syn(pod: Pod, to: str, source: int) -> bytes:
    ends = parse_address(pod.ip).packed, parse_address(to).packed
    segment = source.to_bytes(2, "big") + (80).to_bytes(2, "big") + bytes(8) + b"\x50\x02" + bytes(6)
    segment = fill(segment, 16, pseudo(4, *ends, 6, len(segment)) + segment)
    return pod.link.host_mac + pod.mac + b"\x08\0" + ip_packet(4, *ends, 6, segment, 64, 0, 1)


def test_by_client(world: World, stack: ExitStack) -> None:
    """SourceIP distribution: the choice depends on the client alone, without any memory."""
    service = world.service(flags=int(ServiceFlag.BY_CLIENT))
    stack.callback(service.close)
    assert len(set(_backends_of(world, 20))) == 1
    assert not any(getattr(key, "set", 0) == service.number for key in world.node.table("sw_affinity"))


def _host_socket(world: World, stack: ExitStack, kind: int) -> socket.socket:
    near = stack.enter_context(world.node.space.socket(socket.AF_INET, kind))
    near.settimeout(TIMEOUT_S)
    return near


def test_datagrams_of_the_node(world: World, stack: ExitStack) -> None:
    """One socket stays with one backend while that is there; sockets spread; a gone backend is replaced."""
    service = world.service(protocol=17)
    stack.callback(service.close)
    with within(world.group):
        sockets = [_host_socket(world, stack, socket.SOCK_DGRAM) for _ in range(12)]
        homes = [world.ask(near) for near in sockets]
        assert len(set(homes)) > 1
        assert [world.ask(near) for near in sockets] == homes
        service.remove(world.target(_pod(world, homes[0])))
        moved = [world.ask(near) for near in sockets]
    for before, after in zip(homes, moved, strict=True):
        assert (after == before) != (before == homes[0])


def test_affinity_of_the_node(world: World, stack: ExitStack) -> None:
    """The node is one client."""
    service = world.service(affinity_ticks=1000)
    stack.callback(service.close)
    service.vip("10.96.0.11", 80, SCOPE_HOST)
    seen = set()
    with within(world.group):
        for to in (VIP, "10.96.0.11") * 6:
            near = _host_socket(world, stack, socket.SOCK_STREAM)
            near.connect((to, 80))
            assert near.getpeername() == (to, 80)
            far, _ = _first(world.tcp).accept()
            seen.add(far.getsockname()[0])
            far.close()
    assert len(seen) == 1


def test_counts(world: World, stack: ExitStack) -> None:
    """Connections are counted by service; flows name their backend and service."""
    service = world.service()
    stack.callback(service.close)
    near, far, who = world.connect()
    stack.enter_context(near)
    stack.enter_context(far)
    flows = [flow for flow in world.node.flow_table().values() if flow.service == service.number]
    assert {flow.backend for flow in flows} == {service.backends[world.target(_pod(world, who))]}
    assert all(isinstance(flow, Flow) for flow in flows)
    counts = world.node.map("sw_service_counts")
    raw = counts.lookup(Id(service.number).pack())
    assert raw is not None
    assert sum(int.from_bytes(part[:8], "little") for part in counts.per_cpu_values(raw)) == 1
