"""PortMapping with real packets: from outside, from pods, from the pod itself, from the node's own processes."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pytest

from samewire.hcn.policies import ACL, AclAction, AclDirection, NatFlags, OutBoundNAT, Policy, PortMapping
from samewire.hcn.schema import Network, NetworkType
from samewire.vfp.constants import Fate, FlowFlag, Layer, Reason
from tests.support.cgroups import own_cgroup, within
from tests.support.netlab import Lab, poll
from tests.support.node_rig import Node, Pod
from tests.support.traffic import TIMEOUT_S, bound, echo_over, family_of, tcp, tcp_pair, too_long, udp
from tests.support.worlds import FAR, FAR_MTU, OUT, Underlay, bridged, node_address, overlay, own

pytestmark = [pytest.mark.root]

FAMILIES = (4, 6)
EXTERNAL, INTERNAL, TENANT_PORT = 8080, 80, 8099
LOOPBACK = {4: "127.0.0.1", 6: "::1"}


def mappings(port: int, **fields: Any) -> list[PortMapping]:
    """TCP and UDP of both families."""
    return [
        PortMapping(protocol=protocol, external_port=port, internal_port=INTERNAL, flags=flags, **fields)
        for protocol in (6, 17)
        for flags in (0, NatFlags.IPV6)
    ]


class World:
    """A node with a host port on a pod of each type of network, and a client pod beside it."""

    def __init__(self, lab: Lab) -> None:
        self.underlay = Underlay(lab)
        self.node = node = self.underlay.node(11)
        self.group = lab.stack.enter_context(own_cgroup("swhostport"))
        node.attach_sockets(self.group)
        self.networks: dict[str, tuple[Pod, Pod, int]] = {}
        kinds: list[tuple[str, Network, str, str]] = [
            ("overlay", node.network(overlay(node, 1)), "10.1.0", "fd01:"),
            ("nat", node.network(own(NetworkType.NAT, 8)), "10.8.0", "fd08:"),
            ("internal", node.network(own(NetworkType.INTERNAL, 5)), "10.5.0", "fd05:"),
            ("l2bridge", node.network(bridged()), "192.168.9", "fd09:"),
            ("transparent", node.network(bridged(NetworkType.TRANSPARENT)), "192.168.9", "fd09:"),
            ("l2tunnel", node.network(bridged(NetworkType.L2TUNNEL)), "192.168.9", "fd09:"),
            ("private", node.network(own(NetworkType.PRIVATE, 7)), "10.7.0", "fd07:"),
        ]
        for i, (name, network, prefix4, prefix6) in enumerate(kinds):
            last = 100 + 10 * i
            policies: list[Policy] = [*mappings(EXTERNAL + i), OutBoundNAT()]
            server = node.pod(network, f"{prefix4}.{last}", f"{prefix6}:{last}", policies=policies)
            client = node.pod(network, f"{prefix4}.{last + 1}", f"{prefix6}:{last + 1}")
            self.networks[name] = server, client, EXTERNAL + i
        # A tenant's, which the node has no part in: the same addresses as in the overlay above.
        tenant = node.network(overlay(node, 1, vni=4097, host=False))
        self.tenant = node.pod(tenant, "10.1.0.100", "fd01::100", policies=mappings(TENANT_PORT))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        yield World(lab)


KINDS = ("overlay", "nat", "internal", "l2bridge", "transparent", "l2tunnel")
GATEWAYS = {
    "overlay": ("10.1.0.1", "fd01::1"),
    "nat": ("10.8.0.1", "fd08::1"),
    "internal": ("10.5.0.1", "fd05::1"),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [*KINDS, "private"])
def test_from_outside(world: World, kind: str, family: int) -> None:
    """The pod sees the client's own address, the client sees the node's."""
    server, _, port = world.networks[kind]
    to = node_address(world.node, family)
    for exchange in (tcp, udp):
        seen = exchange(world.underlay.out, server.space, to, port, at=(server.address(family), INTERNAL))
        assert seen.client[0] == OUT[family]
        assert seen.server == (to, port)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_from_another_pod(world: World, kind: str, family: int) -> None:
    server, client, port = world.networks[kind]
    to = node_address(world.node, family)
    for exchange in (tcp, udp):
        seen = exchange(client.space, server.space, to, port, at=(server.address(family), INTERNAL))
        assert seen.client[0] == client.address(family)
        assert seen.server == (to, port)


@pytest.mark.parametrize("family", FAMILIES)
def test_from_a_pod_of_another_network(world: World, family: int) -> None:
    """Its address means somebody else there, so the server sees the gateway of its own network."""
    server, _, port = world.networks["overlay"]
    _, client, _ = world.networks["nat"]
    to = node_address(world.node, family)
    for exchange in (tcp, udp):
        seen = exchange(client.space, server.space, to, port, at=(server.address(family), INTERNAL))
        assert seen.client[0] == ("10.1.0.1" if family == 4 else "fd01::1")
        assert seen.server == (to, port)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_from_the_pod_itself(world: World, kind: str, family: int) -> None:
    """Hairpin: it sees its gateway, or it would answer itself past the switch."""
    server, _, port = world.networks[kind]
    to = node_address(world.node, family)
    for exchange in (tcp, udp):
        seen = exchange(server.space, server.space, to, port, at=(server.address(family), INTERNAL))
        assert seen.client[0] != server.address(family)
        assert seen.server == (to, port)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_from_the_node(world: World, kind: str, family: int) -> None:
    """The node's processes, on its address and on loopback; they see what they asked for."""
    server, _, port = world.networks[kind]
    with within(world.group):
        for to in (node_address(world.node, family), LOOPBACK[family]):
            for exchange in (tcp, udp):
                seen = exchange(
                    world.node.space, server.space, to, port, at=(server.address(family), INTERNAL)
                )
                assert seen.server == (to, port)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", GATEWAYS)
def test_at_the_gateways_address(world: World, kind: str, family: int) -> None:
    """Which is the node's as well, in its pods' network: for its pods, the pod itself, and the node."""
    server, client, port = world.networks[kind]
    to, at = GATEWAYS[kind][family == 6], (server.address(family), INTERNAL)
    for exchange in (tcp, udp):
        for space in (client.space, server.space):
            assert exchange(space, server.space, to, port, at=at).server == (to, port)
        with within(world.group):
            assert exchange(world.node.space, server.space, to, port, at=at).server == (to, port)


@pytest.mark.parametrize("family", FAMILIES)
def test_of_a_private_network(world: World, family: int) -> None:
    """Its host ports are for clients outside: the node has no part in it, and its pods have no way to the node."""
    node, to = world.node, node_address(world.node, family)
    server, client, port = world.networks["private"]
    with bound(server.space, socket.SOCK_STREAM, server.address(family), INTERNAL), within(world.group):
        near = node.space.socket(family_of(to), socket.SOCK_STREAM)
        near.settimeout(TIMEOUT_S)
        with near, pytest.raises(ConnectionRefusedError):
            near.connect((to, port))
    for pod in (client, server):
        before = node.dropped(pod.port, Layer.ROUTE, Reason.NO_ROUTE)
        with pod.space.socket(family_of(to), socket.SOCK_DGRAM) as sender:
            sender.sendto(b"anybody there?", (to, port))
        poll("a counted drop", partial(_dropped_more, node, pod, before))


def _dropped_more(node: Node, pod: Pod, before: int) -> bool:
    return node.dropped(pod.port, Layer.ROUTE, Reason.NO_ROUTE) > before


@pytest.mark.parametrize("family", FAMILIES)
def test_of_a_network_that_the_node_has_no_part_in(world: World, family: int) -> None:
    """Clients outside get there; the node's processes are refused, and not led to who has that address for them."""
    server, to = world.tenant, node_address(world.node, family)
    for exchange in (tcp, udp):
        seen = exchange(
            world.underlay.out, server.space, to, TENANT_PORT, at=(server.address(family), INTERNAL)
        )
        assert seen.server == (to, TENANT_PORT)
    other, _, _ = world.networks["overlay"]
    assert other.address(family) == server.address(family)
    with bound(other.space, socket.SOCK_STREAM, other.address(family), INTERNAL), within(world.group):
        near = world.node.space.socket(family_of(to), socket.SOCK_STREAM)
        near.settimeout(TIMEOUT_S)
        with near, pytest.raises(ConnectionRefusedError):
            near.connect((to, TENANT_PORT))


@pytest.mark.parametrize("family", FAMILIES)
def test_connected_and_mapped_datagram_sockets(world: World, family: int) -> None:
    """UDP that is connected, and IPv4 by an IPv6 socket: getpeername and recvfrom say what was asked for."""
    server, _, port = world.networks["nat"]
    kind = socket.AF_INET6
    to = LOOPBACK[6] if family == 6 else "::ffff:127.0.0.1"
    with ExitStack() as stack:
        listening = stack.enter_context(
            bound(server.space, socket.SOCK_DGRAM, server.address(family), INTERNAL)
        )
        with within(world.group):
            near = stack.enter_context(world.node.space.socket(kind, socket.SOCK_DGRAM))
            loose = stack.enter_context(world.node.space.socket(kind, socket.SOCK_DGRAM))
        near.settimeout(TIMEOUT_S)
        loose.settimeout(TIMEOUT_S)
        near.connect((to, port))
        near.send(b"hello")
        data, sender = listening.recvfrom(100)
        listening.sendto(b"back " + data, sender)
        assert near.recvfrom(100)[0] == b"back hello"
        assert near.getpeername()[:2] == (to, port)
        loose.sendto(b"loose", (to, port))
        data, sender = listening.recvfrom(100)
        listening.sendto(b"back", sender)
        answer, who = loose.recvfrom(100)
        assert (answer, who[:2]) == (b"back", (to, port))


@pytest.mark.parametrize("family", FAMILIES)
def test_mapped_tcp_socket(world: World, family: int) -> None:
    server, _, port = world.networks["nat"]
    to = LOOPBACK[6] if family == 6 else "::ffff:127.0.0.1"
    at = (server.address(family), INTERNAL)
    with within(world.group), tcp_pair(world.node.space, server.space, to, port, at=at) as (near, far):
        echo_over(near, far)
        assert near.getpeername()[:2] == (to, port)


def test_other_ports_of_the_node_are_its_own(world: World) -> None:
    """Only mapped ports are taken: a server of the node is reached by everybody, with all programs attached."""
    node = world.node
    to = node_address(node, 4)
    assert tcp(world.underlay.out, node.space, to, 7000).client[0] == OUT[4]
    with within(world.group):
        assert tcp(node.space, node.space, LOOPBACK[4], 7001).client[0] == LOOPBACK[4]


def test_a_vip_of_its_own(world: World) -> None:
    """A mapping with a VIP is for that address only."""
    node = world.node
    network = node.network(own(NetworkType.NAT, 8))
    pod = node.pod(network, "10.8.0.200", "fd08::200")
    node.policies(pod, *mappings(9090)[:1], OutBoundNAT())
    to = node_address(node, 4)
    mapping = PortMapping(protocol=6, external_port=9091, internal_port=INTERNAL, vip=to)
    node.policies(pod, mapping)
    assert tcp(world.underlay.out, pod.space, to, 9091, at=(pod.ip, INTERNAL)).server == (to, 9091)


def test_a_client_port_that_is_taken_is_moved(world: World) -> None:
    """The client talks to the pod directly and to its host port from one and the same port of its own."""
    node, out = world.node, world.underlay.out
    server, _, port = world.networks["l2bridge"]
    source = 33333
    to = node_address(node, 4)
    with (
        bound(server.space, socket.SOCK_DGRAM, server.ip, INTERNAL) as listening,
        bound(out, socket.SOCK_DGRAM, OUT[4], source) as client,
    ):
        peers = []
        for target in ((server.ip, INTERNAL), (to, port)):
            client.sendto(b"x", target)
            _, sender = listening.recvfrom(10)
            peers.append(sender)
            listening.sendto(b"y", sender)
            assert client.recvfrom(10) == (b"y", target)
    assert peers[0] == (OUT[4], source)
    assert peers[1][0] == OUT[4]
    flows = [f for k, f in node.flow_table().items() if source in k.port and f.flags & FlowFlag.PAIR]
    assert flows


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_errors_reach_the_pod(world: World, kind: str, family: int) -> None:
    """A smaller link on the way to the client, and a client that has gone: routers and clients tell the node."""
    server, _, port = world.networks[kind]
    to, far = node_address(world.node, family), world.underlay.far
    at = (server.address(family), INTERNAL)
    size = FAR_MTU - (28 if family == 4 else 48) + 1
    with bound(server.space, socket.SOCK_DGRAM, *at) as listening:
        never = (socket.IPPROTO_IPV6, 23) if family == 6 else (socket.IPPROTO_IP, 10)  # IPV6_MTU_DISCOVER
        listening.setsockopt(*never, 2)
        with bound(far, socket.SOCK_DGRAM, FAR[family]) as near:
            near.sendto(b"x", (to, port))
            sender = listening.recvfrom(10)[1]
        listening.connect(sender)
        listening.send(b"anybody there?")
        with pytest.raises(ConnectionRefusedError):
            listening.recv(10)
        listening.send(bytes(size))
        poll("path MTU", lambda: too_long(listening, size))
    tcp(far, server.space, to, port, at=at, size=200_000)


@contextmanager
def mapped(world: World, port: int) -> Iterator[Pod]:
    """A host port more for a while, TCP and UDP; whose it is."""
    server, _, other = world.networks["overlay"]
    world.node.policies(server, *mappings(other), *mappings(port), OutBoundNAT())
    yield server
    world.node.policies(server, *mappings(other), OutBoundNAT())


@pytest.mark.parametrize("family", FAMILIES)
def test_connections_of_the_node_go_on(world: World, family: int) -> None:
    """Those that it had at a port before it was a pod's: accepted there, its own from there; from pods, too."""
    node, out, port = world.node, world.underlay.out, 45000 + family
    to = node_address(node, family)
    _, client, _ = world.networks["overlay"]
    with ExitStack() as stack:
        opened = [stack.enter_context(tcp_pair(space, node.space, to, port)) for space in (out, client.space)]
        opened.append(stack.enter_context(tcp_pair(node.space, out, OUT[family], 7000, source=port)))
        asking = stack.enter_context(bound(node.space, socket.SOCK_DGRAM, to, port))
        asked = stack.enter_context(bound(out, socket.SOCK_DGRAM, OUT[family], 7000))
        asking.connect((OUT[family], 7000))
        server = stack.enter_context(mapped(world, port))
        for near, far in opened:
            echo_over(near, far)
        asked.sendto(b"answer", (to, port))
        assert asking.recv(10) == b"answer"
        for exchange in (tcp, udp):
            exchange(out, server.space, to, port, at=(server.address(family), INTERNAL))


@pytest.mark.parametrize("family", FAMILIES)
def test_datagrams_that_began_before_their_host_port(world: World, family: int) -> None:
    """A client that never stops and keeps its port, and has rules: what went to the node gets to the pod."""
    node, port = world.node, 45010 + family
    to = node_address(node, family)
    _, client, _ = world.networks["overlay"]
    allowed = [ACL(action=AclAction.ALLOW, direction=way) for way in AclDirection]
    node.policies(client, *allowed)
    with client.space.socket(family_of(to), socket.SOCK_DGRAM) as near:
        near.settimeout(TIMEOUT_S)
        near.sendto(b"early", (to, port))
        flows = [flow for key, flow in node.flow_table().items() if port in key.port]
        assert [action.fate for flow in flows for action in flow.action].count(Fate.HOST) == 1
        with mapped(world, port) as server:
            at = (server.address(family), INTERNAL)
            with bound(server.space, socket.SOCK_DGRAM, *at) as far:
                far.settimeout(0.1)
                deadline = time.monotonic() + TIMEOUT_S
                while True:
                    near.sendto(b"x", (to, port))
                    try:
                        _, sender = far.recvfrom(100)
                        break
                    except TimeoutError:
                        assert time.monotonic() < deadline, "the client stays where it was"
                for _ in range(3):  # and stays where it is now
                    far.sendto(b"answer", sender)
                    assert near.recvfrom(100)[1][:2] == (to, port)
    node.policies(client)
