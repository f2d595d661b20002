"""Services with real packets: who reaches which backend, from where, and what both sides see."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator

import pytest

from samewire.hcn.policies import OutBoundNAT
from samewire.vfp.address import parse_address
from samewire.vfp.constants import (
    SCOPE_ANY,
    SCOPE_HOST,
    SCOPE_OUTSIDE,
    SCOPE_UPLINK,
    SOURCE_RANGE_KEY_BITS,
    Counter,
    Layer,
    Reason,
    ServiceFlag,
)
from samewire.vfp.diff import Put, Remove
from samewire.vfp.tables import Flow, FlowKey, Id, Port, SourceRangeKey
from tests.support.cgroups import own_cgroup, within
from tests.support.frames import fill, ip_packet, pseudo
from tests.support.netlab import Lab, Space, poll
from tests.support.node_rig import Node, Pod
from tests.support.services import Balancer, Target
from tests.support.traffic import TIMEOUT_S, bound, family_of, inject, tcp, udp
from tests.support.universe import packed
from tests.support.worlds import FAR, OUT, ROUTER, Underlay, bridged, node_address, overlay

pytestmark = [pytest.mark.root]

FAMILIES = (4, 6)
VIP = {4: "10.96.0.10", 6: "fd96::10"}
OUTER_VIP = {4: "192.168.9.200", 6: "fd09::c8"}
SOURCE_VIP = {4: "10.1.0.2", 6: "fd01::2"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
INTERNAL = 8080
NODE_PORT = 30095


def scope_of(node: Node, pod: Pod) -> int:
    """The scope of a pod's network."""
    port = node.table("sw_ports")[Id(pod.port)]
    assert isinstance(port, Port)
    return port.scope


class World:
    """Two nodes in an overlay network and on an L2 bridge; services only on the first."""

    def __init__(self, lab: Lab) -> None:
        self.underlay = underlay = Underlay(lab)
        self.node = node = underlay.node(11)
        self.other = other = underlay.node(12)
        self.group = lab.stack.enter_context(own_cgroup("swservices"))
        node.attach_sockets(self.group)
        near = node.network(overlay(node, 1, (other, 2, 4)))
        far = other.network(overlay(other, 2, (node, 1, 4)))
        self.client = node.pod(near, "10.1.0.10", "fd01::10", policies=[OutBoundNAT()])
        self.local = node.pod(near, "10.1.0.11", "fd01::11")
        self.remote = other.pod(far, "10.2.0.12", "fd02::12")
        self.bridged = node.pod(node.network(bridged()), "192.168.9.110", "fd09::110")
        self.bridged_far = other.pod(other.network(bridged()), "192.168.9.120", "fd09::120")
        self.scope = scope_of(node, self.client)

    def target(self, pod: Pod, family: int) -> Target:
        """A pod as a backend."""
        scope = SCOPE_UPLINK if pod in (self.bridged, self.bridged_far) else self.scope
        return Target(pod.address(family), INTERNAL, scope)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        yield World(lab)


def exchanges(
    world: World, client: Space, server: Space, target: Target, to: str, *scopes: int, **fields: int | str
) -> Iterator[tuple[str, str]]:
    """TCP and UDP through a service of one backend; who the server saw, and the service's port for the client."""
    family = 6 if ":" in to else 4
    for protocol, exchange in ((6, tcp), (17, udp)):
        service = Balancer(world.node, target, protocol=protocol, **fields)
        service.vip(to, 80, *scopes)
        seen = exchange(client, server, to, 80, at=(target.address, target.port))
        assert seen.server == (to, 80), (family, protocol)
        yield seen.client[0], to
        service.close()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("server", ["local", "remote"])
@pytest.mark.parametrize("which", ["own", "any"])
def test_from_a_pod_to_a_pod(world: World, server: str, which: str, family: int) -> None:
    """Nothing but the VIP is translated: the backend sees the pod, here and behind the tunnel."""
    pod: Pod = getattr(world, server)
    scope = world.scope if which == "own" else SCOPE_ANY
    target = world.target(pod, family)
    for client, _ in exchanges(world, world.client.space, pod.space, target, VIP[family], scope):
        assert client == world.client.address(family)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("which", "gateways"), [("local", ("10.1.0.1", "fd01::1")), ("bridged", (ROUTER[4], ROUTER[6]))]
)
def test_a_pod_to_itself(world: World, which: str, gateways: tuple[str, str], family: int) -> None:
    """It sees its gateway."""
    pod: Pod = getattr(world, which)
    target = world.target(pod, family)
    for client, _ in exchanges(world, pod.space, pod.space, target, VIP[family], SCOPE_ANY):
        assert client == gateways[family == 6]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_backend_outside_the_cluster(world: World, family: int) -> None:
    """OutBoundNAT applies as it does without a service."""
    target = Target(OUT[family], INTERNAL, SCOPE_UPLINK)
    for client, _ in exchanges(world, world.client.space, world.underlay.out, target, VIP[family], SCOPE_ANY):
        assert client == node_address(world.node, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_backend_on_the_node_itself(world: World, family: int) -> None:
    """The API server of this node: un-SNATed."""
    target = Target(node_address(world.node, family), 6443, SCOPE_UPLINK)
    for client, _ in exchanges(world, world.client.space, world.node.space, target, VIP[family], SCOPE_ANY):
        assert client == world.client.address(family)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_backend_in_another_network_of_this_node(world: World, family: int) -> None:
    """The pod's address means nobody there: the backend sees its own gateway."""
    target = world.target(world.bridged, family)
    for client, _ in exchanges(
        world, world.client.space, world.bridged.space, target, VIP[family], SCOPE_ANY
    ):
        assert client not in (world.client.address(family), node_address(world.node, family))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("server", ["local", "remote", "bridged", "bridged_far"])
@pytest.mark.parametrize("outside", ["near", "far"])
def test_from_outside(world: World, server: str, outside: str, family: int) -> None:
    """A VIP on the wire: a local backend sees the client, a remote one the node's address in its network."""
    pod: Pod = getattr(world, server)
    client = world.underlay.out if outside == "near" else world.underlay.far
    address = OUT[family] if outside == "near" else FAR[family]
    node = node_address(world.node, family)
    client.ip("route", "replace", f"{OUTER_VIP[family]}", "via", node) if outside == "near" else None
    if outside == "far":
        world.underlay.router.ip("route", "replace", f"{OUTER_VIP[family]}", "via", node)
    target = world.target(pod, family)
    expected = {"remote": SOURCE_VIP[family], "bridged_far": node}.get(server, address)
    for seen, _ in exchanges(
        world, client, pod.space, target, OUTER_VIP[family], SCOPE_OUTSIDE, source=SOURCE_VIP[family]
    ):
        assert seen == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_frames_for_another_machine(world: World, family: int) -> None:
    """The wire floods them, the NIC takes all: the VIP is that machine's business, the node's own address is ours."""
    target, out = world.target(world.local, family), world.underlay.out
    service = Balancer(world.node, target, protocol=17)
    service.vip(OUTER_VIP[family], 80, SCOPE_OUTSIDE)
    service.vip("", NODE_PORT, SCOPE_OUTSIDE, family=family)
    ours, another = world.node.facts.uplink_mac, b"\x02\x11\x22\x33\x44\x55"
    source, node = packed(OUT[family]), packed(node_address(world.node, family))
    with bound(world.local.space, socket.SOCK_DGRAM, target.address, target.port) as far:
        for mac, to, port, payload in (
            (another, packed(OUTER_VIP[family]), 80, b"another's"),
            (another, node, NODE_PORT, b"the node's"),
            (ours, packed(OUTER_VIP[family]), 80, b"ours"),
        ):
            datagram = (4444).to_bytes(2, "big") + port.to_bytes(2, "big")
            datagram += (8 + len(payload)).to_bytes(2, "big") + bytes(2) + payload
            datagram = fill(datagram, 6, pseudo(family, source, to, 17, len(datagram)) + datagram)
            frame = mac + out.mac("eth0") + (b"\x08\0" if family == 4 else b"\x86\xdd")
            inject(out, "eth0", frame + ip_packet(family, source, to, 17, datagram, 64, 0, 1))
        assert [far.recv(100) for _ in range(2)] == [b"the node's", b"ours"]
    service.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_from_outside_to_a_process_of_the_node(world: World, family: int) -> None:
    """hostNetwork: it sees the client, and what it answers comes from the VIP."""
    node = node_address(world.node, family)
    world.underlay.out.ip("route", "replace", f"{OUTER_VIP[family]}", "via", node)
    target = Target(node, INTERNAL, SCOPE_UPLINK)
    for seen, _ in exchanges(
        world, world.underlay.out, world.node.space, target, OUTER_VIP[family], SCOPE_OUTSIDE
    ):
        assert seen == OUT[family]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("server", ["local", "remote"])
def test_node_port(world: World, server: str, family: int) -> None:
    """On the node's address: from outside, from a pod, from the node on its address and on loopback."""
    pod: Pod = getattr(world, server)
    at = (pod.address(family), INTERNAL)
    to = node_address(world.node, family)
    for protocol, exchange in ((6, tcp), (17, udp)):
        service = Balancer(
            world.node, world.target(pod, family), protocol=protocol, source=SOURCE_VIP[family]
        )
        service.vip("", 30080, SCOPE_OUTSIDE, SCOPE_ANY, family=family)
        assert exchange(world.underlay.out, pod.space, to, 30080, at=at).server == (to, 30080)
        seen = exchange(world.client.space, pod.space, to, 30080, at=at)
        assert (seen.client[0], seen.server) == (world.client.address(family), (to, 30080))
        with within(world.group):
            for address in (to, LOOPBACK[family]):
                seen = exchange(world.node.space, pod.space, address, 30080, at=at)
                assert seen.server == (address, 30080)
        service.close()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("service_at", "peer", "port"),
    [("", "outside", 5351), ("", "local", 5351), ("", "remote", 5351), ("own address", "outside", 5353)],
)
def test_datagrams_to_a_connected_socket_of_the_node(
    world: World, service_at: str, peer: str, port: int, family: int
) -> None:
    """Answers to a process that asks from a node port are its own; whoever else sends there is the service's."""
    backend = world.bridged
    target = world.target(backend, family)
    pod: Pod | None = getattr(world, peer, None)
    space = pod.space if pod else world.underlay.out
    address = pod.address(family) if pod else OUT[family]
    service = Balancer(world.node, target, protocol=17, source=SOURCE_VIP[family])
    with (
        bound(space, socket.SOCK_DGRAM, address, port) as far,
        bound(space, socket.SOCK_DGRAM, address, port + 1) as stranger,
        bound(backend.space, socket.SOCK_DGRAM, target.address, target.port) as served,
        bound(world.node.space, socket.SOCK_DGRAM, "0.0.0.0" if family == 4 else "::", 30080) as near,
    ):
        near.connect((address, port))
        own = near.getsockname()[0]
        service.vip(own if service_at else "", 30080, SCOPE_OUTSIDE, SCOPE_ANY, family=family)
        near.send(b"question")
        _, sender = far.recvfrom(100)
        assert sender[:2] == (own, 30080)
        for size in (10, 5000):
            far.sendto(bytes(size), sender)
            assert len(near.recv(9000)) == size
        stranger.sendto(b"to the service", sender)
        assert served.recv(100) == b"to the service"
        near.close()
        far.sendto(b"now this one, too", sender)
        assert served.recv(100) == b"now this one, too"
    service.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_datagrams_at_a_socket_that_is_not_connected(world: World, family: int) -> None:
    """Listening at a node port takes nothing from the service, nor does a connection with somebody else."""
    target = world.target(world.local, family)
    to = node_address(world.node, family)
    service = Balancer(world.node, target, protocol=17)
    service.vip("", 30080, SCOPE_OUTSIDE, family=family)
    with (
        bound(world.node.space, socket.SOCK_DGRAM, to, 30080) as listening,
        bound(world.node.space, socket.SOCK_DGRAM, to, 30080) as elsewhere,
    ):
        elsewhere.connect((OUT[family], 5355))
        at = (target.address, target.port)
        assert udp(world.underlay.out, world.local.space, to, 30080, at=at).server == (to, 30080)
        for one in (listening, elsewhere):
            one.setblocking(False)
            with pytest.raises(BlockingIOError):
                one.recv(100)
    service.close()


def test_datagrams_to_a_connected_socket_of_both_families(world: World) -> None:
    """A socket for IPv6 that is connected to an IPv4 address."""
    service = Balancer(world.node, world.target(world.local, 4), protocol=17)
    service.vip("", 30080, SCOPE_OUTSIDE, family=4)
    with (
        bound(world.underlay.out, socket.SOCK_DGRAM, OUT[4], 5356) as far,
        bound(world.node.space, socket.SOCK_DGRAM, "::", 30080) as near,
    ):
        near.connect((f"::ffff:{OUT[4]}", 5356))
        near.send(b"question")
        far.sendto(b"answer", far.recvfrom(100)[1])
        assert near.recv(100) == b"answer"
    service.close()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("server", ["local", "remote"])
def test_from_a_process_of_the_node(world: World, server: str, family: int) -> None:
    """At the socket; getpeername and recvfrom say what was asked for."""
    pod: Pod = getattr(world, server)
    target = world.target(pod, family)
    with within(world.group):
        for client, _ in exchanges(world, world.node.space, pod.space, target, VIP[family], SCOPE_HOST):
            assert client == ("10.1.0.1" if family == 4 else "fd01::1")


@pytest.mark.parametrize("family", FAMILIES)
def test_one_socket_of_the_node_at_two_services(world: World, family: int) -> None:
    """With the same backend: an answer comes from the service that was asked last, by turns."""
    target = world.target(world.local, family)
    services = [Balancer(world.node, target, protocol=17) for _ in range(2)]
    asked = (VIP[family], 80), (OUTER_VIP[family], 80)
    for service, (address, port) in zip(services, asked, strict=True):
        service.vip(address, port, SCOPE_HOST)
    with (
        within(world.group),
        bound(world.local.space, socket.SOCK_DGRAM, target.address, target.port) as far,
        world.node.space.socket(family_of(VIP[family]), socket.SOCK_DGRAM) as near,
    ):
        near.settimeout(TIMEOUT_S)
        for to in (*asked, *asked):
            near.sendto(b"x", to)
            far.sendto(b"answer", far.recvfrom(10)[1])
            assert near.recvfrom(10)[1][:2] == to
        for to in (*asked, *asked):
            near.connect(to)
            assert near.getpeername()[:2] == to
    for service in services:
        service.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_processes_of_pods_are_not_the_nodes(world: World, family: int) -> None:
    """Pods' processes are in the node's control group too: their loopback stays their own."""
    service = Balancer(world.node, world.target(world.local, family))
    service.vip("", 30080, SCOPE_ANY, family=family)
    with within(world.group):
        seen = tcp(world.client.space, world.client.space, LOOPBACK[family], 30080)
        assert seen.client[0] == LOOPBACK[family]
    service.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_source_ranges_hold_for_the_node(world: World, family: int) -> None:
    """By its address on the underlay, as for a client outside."""
    target = world.target(world.local, family)
    service = Balancer(world.node, target, flags=ServiceFlag.SOURCE_RANGES)
    service.vip(OUTER_VIP[family], 80, SCOPE_ANY)
    own = parse_address(node_address(world.node, family))
    bits = 32 if family == 4 else 128
    with within(world.group):
        near = world.node.space.socket(family_of(target.address), socket.SOCK_STREAM)
        with near, pytest.raises(PermissionError):
            near.connect((OUTER_VIP[family], 80))
        key = SourceRangeKey(SOURCE_RANGE_KEY_BITS + bits, service.number, family, own.packed)
        world.node.apply([Put("sw_source_ranges", key, Id(1))])
        at = (target.address, target.port)
        assert tcp(world.node.space, world.local.space, OUTER_VIP[family], 80, at=at).server[1] == 80
    world.node.apply([Remove("sw_source_ranges", key)])
    service.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_datagrams_that_began_before_their_service(world: World, family: int) -> None:
    """A client that never stops and keeps its port: what it has sent went out by the NAT, and gets to the service."""
    target = world.target(world.local, family)
    with (
        bound(world.client.space, socket.SOCK_DGRAM, world.client.address(family), 45077) as near,
        bound(world.local.space, socket.SOCK_DGRAM, target.address, target.port) as far,
    ):
        near.sendto(b"early", (VIP[family], 80))
        assert any(
            isinstance(flow, Flow) and not flow.backend and 45077 in key.port
            for key, flow in world.node.table("sw_flows").items()
            if isinstance(key, FlowKey)
        )
        service = Balancer(world.node, target, protocol=17)
        service.vip(VIP[family], 80, SCOPE_ANY)
        far.settimeout(0.1)
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            near.sendto(b"x", (VIP[family], 80))
            try:
                _, sender = far.recvfrom(100)
                break
            except TimeoutError:
                assert time.monotonic() < deadline, "the client stays where it was"
        far.sendto(b"answer", sender)
        assert near.recvfrom(100)[1][:2] == (VIP[family], 80)
        service.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_connect_that_began_before_its_service(world: World, family: int) -> None:
    """Its next SYN gets there."""
    target = world.target(world.local, family)
    with (
        world.client.space.socket(family_of(target.address), socket.SOCK_STREAM) as near,
        bound(world.local.space, socket.SOCK_STREAM, target.address, target.port) as listening,
    ):
        near.setblocking(False)
        assert near.connect_ex((VIP[family], 80)) == errno.EINPROGRESS
        poll(
            "a flow to nobody",
            lambda: any(
                isinstance(flow, Flow)
                and isinstance(key, FlowKey)
                and not flow.backend
                and parse_address(VIP[family]).packed in key.address
                for key, flow in world.node.table("sw_flows").items()
            ),
        )
        service = Balancer(world.node, target)
        service.vip(VIP[family], 80, SCOPE_ANY)
        far, _ = listening.accept()
        far.close()
        service.close()


@pytest.mark.parametrize("protocol", [6, 17])
def test_sockets_for_both_families(world: World, protocol: int) -> None:
    """IPv4-mapped addresses of IPv6 sockets: asked for, connected, and told who has answered."""
    target = world.target(world.remote, 4)
    service = Balancer(world.node, target, protocol=protocol)
    service.vip(VIP[4], 80, SCOPE_ANY)
    service.vip("", 30080, SCOPE_ANY, family=4)
    kind = socket.SOCK_STREAM if protocol == 6 else socket.SOCK_DGRAM
    for address, port in ((VIP[4], 80), ("127.0.0.1", 30080), (node_address(world.node, 4), 30080)):
        with (
            within(world.group),
            bound(world.remote.space, kind, target.address, target.port) as far,
            world.node.space.socket(socket.AF_INET6, kind) as near,
        ):
            near.settimeout(TIMEOUT_S)
            to = (f"::ffff:{address}", port)
            if protocol == 17:
                near.sendto(b"x", to)
                far.sendto(b"answer", far.recvfrom(10)[1])
                assert near.recvfrom(10)[1][:2] == to
            near.connect(to)
            assert near.getpeername()[:2] == to
            near.send(b"x")
            far.accept()[0].close() if protocol == 6 else far.recv(10)
    service.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_through_the_tunnel(world: World, family: int) -> None:
    """Another node's pod asks this node: for a backend here, and for one over there (which sees the SourceVIP)."""
    client = world.remote
    for pod, expected in ((world.local, client.address(family)), (world.remote, SOURCE_VIP[family])):
        to = "10.1.0.77" if family == 4 else "fd01::77"  # the other node sends it here
        target = world.target(pod, family)
        for seen, _ in exchanges(
            world, client.space, pod.space, target, to, world.scope, source=SOURCE_VIP[family]
        ):
            assert seen == expected


def _ask(near: socket.socket, to: str, port: int) -> None:
    near.connect((to, port))
    near.send(b"anybody?")
    near.recv(10)


def _refused(client: Space, to: str, port: int, kind: int) -> None:
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    with client.socket(family, kind) as near:
        near.settimeout(TIMEOUT_S)
        with pytest.raises(ConnectionRefusedError):
            _ask(near, to, port)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_refused_at_once(world: World, kind: int, family: int) -> None:
    """Without endpoints: pods, outside clients and the node's own sockets are told."""
    protocol = 6 if kind == socket.SOCK_STREAM else 17
    service = Balancer(world.node, protocol=protocol, flags=int(ServiceFlag.REJECT))
    to = node_address(world.node, family)
    service.vip(VIP[family], 80, SCOPE_ANY)
    service.vip("", 30081, SCOPE_OUTSIDE, family=family)
    before = world.node.counter(Counter.LB_REFUSED)
    _refused(world.client.space, VIP[family], 80, kind)
    _refused(world.underlay.out, to, 30081, kind)
    assert world.node.counter(Counter.LB_REFUSED) == before + 2
    with within(world.group):
        _refused(world.node.space, VIP[family], 80, kind)
    service.close()


def test_dropped_in_silence(world: World) -> None:
    """Without REJECT the packet is only counted."""
    service = Balancer(world.node)
    service.vip(VIP[4], 80, SCOPE_ANY)
    with world.client.space.socket(socket.AF_INET, socket.SOCK_STREAM) as near:
        near.settimeout(0.3)
        with pytest.raises(TimeoutError):
            near.connect((VIP[4], 80))
    port = world.client.port
    assert world.node.dropped(port, Layer.LB, Reason.NO_BACKEND)
    service.close()


def test_large_answers_and_requests(world: World) -> None:
    """Segments, fragments and sizes through a service."""
    pod = world.remote
    for protocol, exchange in ((6, tcp), (17, udp)):
        service = Balancer(world.node, world.target(pod, 4), protocol=protocol)
        service.vip(VIP[4], 80, SCOPE_ANY)
        size = 300_000 if protocol == 6 else 4000
        seen = exchange(world.client.space, pod.space, VIP[4], 80, at=(pod.ip, INTERNAL), size=size)
        assert seen.server == (VIP[4], 80)
        service.close()


def test_fragments_to_a_process_of_the_node(world: World) -> None:
    """What a process answers to an outside client in pieces comes from the VIP, all of it."""
    node = node_address(world.node, 4)
    world.underlay.out.ip("route", "replace", OUTER_VIP[4], "via", node)
    service = Balancer(world.node, Target(node, INTERNAL, SCOPE_UPLINK), protocol=17)
    service.vip(OUTER_VIP[4], 80, SCOPE_OUTSIDE)
    seen = udp(world.underlay.out, world.node.space, OUTER_VIP[4], 80, at=(node, INTERNAL), size=5000)
    assert seen.server == (OUTER_VIP[4], 80)
    service.close()
