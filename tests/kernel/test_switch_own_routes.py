"""Routes of an endpoint's own with real packets: who obeys them, and which of them and the network's holds."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace

from samewire.hcn.policies import ACL, AclAction, AclDirection, OutBoundNAT, Policy, PortMapping, SDNRoute
from samewire.hcn.schema import Network, NetworkType
from samewire.vfp.tables import Id, Port
from tests.support.netlab import Lab, poll
from tests.support.node_rig import Node, Pod
from tests.support.traffic import Sniffer, bound, family_of
from tests.support.worlds import OUT, Underlay, bridged, node_address, overlay

pytestmark = [pytest.mark.root, pytest.mark.kernelcore]

FAMILIES = (4, 6)
SECOND = {4: "192.168.9.253", 6: "fd09::fd"}
BEYOND = {4: "198.51.100.5", 6: "2001:db8:9::5"}
WIDE = {4: "198.51.0.0/16", 6: "2001:db8::/32"}
NARROW = {4: "198.51.100.0/24", 6: "2001:db8:9::/48"}
ALLOW = tuple(ACL(action=AclAction.ALLOW, direction=direction, priority=1) for direction in AclDirection)
_MARKS = itertools.count(1)


class World:
    """Two nodes, three routers (the gateway, ``second`` and ``out``), and names for where frames go."""

    def __init__(self, lab: Lab) -> None:
        self.underlay = Underlay(lab)
        self.second = lab.host(self.underlay.wire, f"{SECOND[4]}/24", f"{SECOND[6]}/64")
        self.second.address("eth0", f"{BEYOND[4]}/32", f"{BEYOND[6]}/128")
        self.one = self.underlay.node(11)
        self.two = self.underlay.node(12)
        spaces = {"router": self.underlay.router, "second": self.second, "out": self.underlay.out}
        self.macs = {space.mac("eth0"): name for name, space in (*spaces.items(), ("two", self.two.space))}

    def network(self, kind: str, *policies: Policy) -> Network:
        """An overlay or L2Bridge network of the first node."""
        made = overlay(self.one, 1, (self.two, 2, 4)) if kind == "overlay" else bridged()
        return self.one.network(replace(made, policies=(*made.policies, *policies)))

    def pods(self, network: Network, count: int = 2) -> list[Pod]:
        """Pods of it, which are translated where their addresses are not the underlay's."""
        first = len(self.one.pods) + 50
        if network.type is NetworkType.OVERLAY:
            ways = [(f"10.1.0.{first + i}", f"fd01::{first + i}") for i in range(count)]
            return [self.one.pod(network, *both, policies=[OutBoundNAT()]) for both in ways]
        ways = [(f"192.168.9.{first + i}", f"fd09::{first + i}") for i in range(count)]
        return [self.one.pod(network, *both) for both in ways]

    def way(self, send: Callable[[bytes], object]) -> str:
        """Where what is sent leaves the node: to a machine of the wire, or to the node's own stack."""
        mark = b"mark %d;" % next(_MARKS)
        found: list[str] = []
        node = self.one.space
        with Sniffer(node, "eth0") as wire, Sniffer(node, "samewire0", outgoing=False) as host:
            send(mark)

            def seen() -> bool:
                found.extend(self.macs[f[:6]] for f in wire.frames() if mark in f and f[:6] in self.macs)
                found.extend("host" for f in host.frames() if mark in f)
                return bool(found)

            poll("a frame", seen)
        return found[0]

    def answer(self, server: socket.socket, client: tuple[str, int]) -> str:
        """Where the answer of a server leaves the node."""
        return self.way(lambda mark: server.sendto(mark, client))

    def way_of(self, pod: Pod, to: str) -> str:
        """Where a datagram of a pod's to an address leaves the node."""
        with pod.space.socket(family_of(to), socket.SOCK_DGRAM) as opened:
            return self.way(lambda mark: opened.sendto(mark, (to, 9)))


def via(prefix: str, hop: str) -> SDNRoute:
    return SDNRoute(destination_prefix=prefix, next_hop=hop)


MANY = tuple(via(f"203.0.{number}.0/24", SECOND[4]) for number in range(65))


def add(node: Node, pod: Pod, *policies: Policy) -> None:
    node.policies(pod, *pod.endpoint.policies, *policies)


def generation(node: Node, pod: Pod) -> int:
    port = node.table("sw_ports")[Id(pod.port)]
    assert isinstance(port, Port)
    return port.generation


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        yield World(lab)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["overlay", "l2bridge"])
def test_only_the_endpoint_with_the_route_obeys_it(world: World, kind: str, family: int) -> None:
    one, far = world.one, BEYOND[family]
    a, b = world.pods(world.network(kind))
    assert [world.way_of(pod, far) for pod in (a, b)] == ["router", "router"]
    others = generation(one, b)
    before = a.endpoint.policies
    add(one, a, via(NARROW[family], SECOND[family]))
    assert [world.way_of(pod, far) for pod in (a, b)] == ["second", "router"]
    assert world.way_of(a, OUT[family]) == "out", "what is on the link"
    one.policies(a, *before, SDNRoute(destination_prefix=NARROW[family], need_encap=True))
    assert [world.way_of(pod, far) for pod in (a, b)] == ["host", "router"]
    one.policies(a, *before)
    assert [world.way_of(pod, far) for pod in (a, b)] == ["router", "router"]
    assert generation(one, b) == others
    assert not one.table("sw_own_routes")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["overlay", "l2bridge"])
@pytest.mark.parametrize(
    ("own", "networks", "holds"),
    [(NARROW, WIDE, "second"), (WIDE, NARROW, "out"), (NARROW, NARROW, "second")],
    ids=["longer", "shorter", "equal"],
)
def test_the_longer_of_the_own_and_the_networks_route_holds(
    world: World, kind: str, family: int, own: dict[int, str], networks: dict[int, str], holds: str
) -> None:
    a, b = world.pods(world.network(kind, via(networks[family], OUT[family])))
    add(world.one, a, via(own[family], SECOND[family]))
    assert [world.way_of(pod, BEYOND[family]) for pod in (a, b)] == [holds, "out"]
    world.network(kind)
    assert [world.way_of(pod, BEYOND[family]) for pod in (a, b)] == ["second", "router"]
    world.one.policies(a)


@pytest.mark.parametrize("kind", ["overlay", "l2bridge"])
def test_endpoints_with_the_same_routes_share_them(world: World, kind: str) -> None:
    one = world.one
    a, b, c = world.pods(world.network(kind), 3)
    for pod in (a, b):
        add(one, pod, via(NARROW[4], SECOND[4]))
    assert len(one.table("sw_own_routes")) == 1
    assert [world.way_of(pod, BEYOND[4]) for pod in (a, b, c)] == ["second", "second", "router"]
    one.policies(a)
    assert [world.way_of(pod, BEYOND[4]) for pod in (b, c)] == ["second", "router"]
    one.policies(b)
    assert not one.table("sw_own_routes")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rules", [(), ALLOW], ids=["without-flow", "with-flow"])
def test_what_answers_a_connection_from_outside_goes_by_the_own_route(
    world: World, family: int, rules: tuple[Policy, ...]
) -> None:
    one, far = world.one, BEYOND[family]
    a, b = world.pods(world.network("l2bridge"))
    for hop, expected in (
        (via(NARROW[family], OUT[family]), "out"),
        (SDNRoute(destination_prefix=NARROW[family], need_encap=True), "host"),
        (via(WIDE[family], SECOND[family]), "second"),
    ):
        one.policies(a, *rules, hop)
        one.policies(b, *rules)
        for pod, way in ((a, expected), (b, "router")):
            with (
                bound(world.second, socket.SOCK_DGRAM, far) as client,
                bound(pod.space, socket.SOCK_DGRAM, pod.address(family), 8080) as server,
            ):
                client.sendto(b"question", (pod.address(family), 8080))
                _, asker = server.recvfrom(100)
                assert world.answer(server, asker) == way
    one.policies(a)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_answers_for_a_port_of_the_node_goes_the_networks_way(world: World, family: int) -> None:
    """The node's own stack would not take a packet from its own address."""
    one, far = world.one, BEYOND[family]
    a, _ = world.pods(world.network("l2bridge"))
    mapping = PortMapping(
        protocol=17, internal_port=8080, external_port=9000 + family, flags=2 * (family == 6)
    )
    for route in (
        SDNRoute(destination_prefix=NARROW[family], need_encap=True),
        via(NARROW[family], OUT[family]),
    ):
        one.policies(a, mapping, route)
        with (
            bound(world.second, socket.SOCK_DGRAM, far) as client,
            bound(a.space, socket.SOCK_DGRAM, a.address(family), 8080) as server,
        ):
            client.sendto(b"question", (node_address(one, family), 9000 + family))
            _, asker = server.recvfrom(100)
            assert asker[0] == far
            assert world.answer(server, asker) == "router"
    one.policies(a)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_connection_follows_a_change_of_the_endpoints_routes(world: World, family: int) -> None:
    one, far = world.one, BEYOND[family]
    a, _ = world.pods(world.network("l2bridge"))
    with a.space.socket(family_of(far), socket.SOCK_DGRAM) as opened:
        for routes, way in (
            ((), "router"),
            ((via(NARROW[family], SECOND[family]),), "second"),
            ((via(NARROW[family], OUT[family]),), "out"),
            ((SDNRoute(destination_prefix=WIDE[family], need_encap=True),), "host"),
            ((), "router"),
        ):
            one.policies(a, *ALLOW, *routes)
            for _ in range(2):
                assert world.way(lambda mark: opened.sendto(mark, (far, 9))) == way


@pytest.mark.parametrize("family", FAMILIES)
def test_a_connection_follows_a_change_among_very_many_routes(world: World, family: int) -> None:
    """They change where they are, under the port's own name, until there are few again: each change of the endpoint's,
    and nobody else's, has its flows judged again.
    """
    one, far = world.one, BEYOND[family]
    a, b = world.pods(world.network("l2bridge"))
    one.policies(b, *ALLOW)
    others = generation(one, b)
    wide, narrow = via(WIDE[family], SECOND[family]), via(NARROW[family], OUT[family])
    host = SDNRoute(destination_prefix=WIDE[family], need_encap=True)
    with a.space.socket(family_of(far), socket.SOCK_DGRAM) as opened:
        for many, routes, way in (
            (MANY[1:], (wide,), "second"),
            (MANY, (wide,), "second"),
            (MANY, (wide, narrow), "out"),
            (MANY, (wide,), "second"),
            (MANY, (host,), "host"),
            (MANY, (), "router"),
            (MANY, (wide, narrow), "out"),
            (MANY[2:], (host,), "host"),
            ((), (), "router"),
        ):
            one.policies(a, *ALLOW, *many, *routes)
            for _ in range(2):
                assert world.way(lambda mark: opened.sendto(mark, (far, 9))) == way
            port = one.table("sw_ports")[Id(a.port)]
            assert isinstance(port, Port)
            assert (port.route_set == a.port) is (len(many) + len(routes) > 64)
            assert len(one.table("sw_own_routes")) == len(many) + len(routes)
    assert generation(one, b) == others


@pytest.mark.parametrize("family", FAMILIES)
def test_an_own_route_leads_into_the_tunnel(world: World, family: int) -> None:
    a, b = world.pods(world.network("overlay"))
    behind = {4: "10.2.0.1", 6: "fd02::1"}[family]
    add(world.one, a, via(NARROW[family], behind))
    assert [world.way_of(pod, BEYOND[family]) for pod in (a, b)] == ["two", "router"]
    world.one.policies(a)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pod_that_asks_for_an_address_with_an_own_route_is_answered(world: World, family: int) -> None:
    """On the link, and nobody's: only who has a route to it gets a MAC to send to."""
    a, b = world.pods(world.network("overlay"))
    address = {4: "10.1.0.240", 6: "fd01::240"}[family]
    full = 32 if family == 4 else 128
    for pod in (a, b):
        pod.space.ip("route", "replace", f"{address}/{full}", "dev", "eth0")
    add(world.one, a, via(f"{address}/{full}", SECOND[family]))
    assert world.way_of(a, address) == "second"
    with b.space.socket(family_of(address), socket.SOCK_DGRAM) as opened:
        opened.sendto(b"x", (address, 9))
        poll("no answer", lambda: "FAILED" in b.space.command("ip", "neighbour", "show", address))
    world.one.policies(a)
