"""Every type of network with real packets: who reaches whom, who is seen where, which MACs the wire learns."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from samewire.hcn.policies import NatFlags, OutBoundNAT, PortMapping
from samewire.hcn.schema import NetworkType
from samewire.vfp.address import parse_address
from samewire.vfp.constants import Counter, Layer, Reason
from tests.support.frames import fill, ip_packet, pseudo
from tests.support.netlab import Lab, Space, poll
from tests.support.node_rig import Node, Pod
from tests.support.traffic import Sniffer, echo_over, inject, ping, tcp, tcp_pair, udp
from tests.support.worlds import FAR, OUT, ROUTER, Underlay, bridged, network, node_address, overlay, own

pytestmark = [pytest.mark.root, pytest.mark.kernelcore]

FAMILIES = (4, 6)
TUNNELS = {4: (1, 2, 4096), 6: (3, 4, 4097)}  # IP version of the provider address -> subnets, VNI


class World:
    """Two nodes on one wire, an outside host, networks of every type."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.underlay = Underlay(lab)
        self.one = self.underlay.node(11)
        self.two = self.underlay.node(12)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        yield World(lab)


def reaches(client: Space, server: Space, to: str, source: str, *, at: str = "") -> None:
    """TCP, UDP and echo both ways; the server sees ``source``, the client sees ``to``."""
    for exchange in (tcp, udp):
        seen = exchange(client, server, to, 8080, at=(at or to, 8080))
        assert seen.client[0] == source, exchange
        assert seen.server == (to, 8080), exchange
    assert ping(client, to).source == to


def cut_off(pod: Pod, to: str, node: Node, *kinds: tuple[Layer, Reason]) -> None:
    """A datagram from the pod is dropped, and counted as one of these kinds."""
    before = sum(node.dropped(pod.port, *kind) for kind in kinds)
    with pod.space.socket(*_datagram(to)) as opened:
        opened.sendto(b"x", (to, 9))
        poll(
            f"drop of {to}",
            lambda: sum(node.dropped(pod.port, *kind) for kind in kinds) == before + 1,
        )


def _datagram(to: str) -> tuple[int, int]:
    return (10 if ":" in to else 2), 2


@pytest.mark.parametrize("family", FAMILIES)
def test_same_node(world: World, family: int) -> None:
    network = world.one.network(own(NetworkType.INTERNAL, 5))
    a = world.one.pod(network, f"10.5.0.{10 + family}", f"fd05::{10 + family}")
    b = world.one.pod(network, f"10.5.0.{20 + family}", f"fd05::{20 + family}")
    reaches(a.space, b.space, b.address(family), a.address(family))
    assert not [key for key in world.one.flow_table() if key.family == family], "nothing needed a flow"


@pytest.mark.parametrize("provider", FAMILIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_overlay(world: World, provider: int, family: int) -> None:
    """Pod to pod between nodes, node to remote pod and back, pod to its own node, pod to outside."""
    one, two = world.one, world.two
    here, there, vni = TUNNELS[provider]
    near = one.network(overlay(one, here, (two, there, provider), vni=vni))
    far = two.network(overlay(two, there, (one, here, provider), vni=vni))
    a = one.pod(near, f"10.{here}.0.{10 + family}", f"fd{here:02}::{10 + family}", policies=[OutBoundNAT()])
    b = two.pod(far, f"10.{there}.0.{10 + family}", f"fd{there:02}::{10 + family}", policies=[OutBoundNAT()])
    reaches(a.space, b.space, b.address(family), a.address(family))
    reaches(b.space, a.space, a.address(family), b.address(family))
    gateway = f"10.{here}.0.1" if family == 4 else f"fd{here:02}::1"
    reaches(one.space, a.space, a.address(family), gateway)
    reaches(one.space, b.space, b.address(family), gateway)
    reaches(a.space, one.space, gateway, a.address(family))
    reaches(a.space, one.space, node_address(one, family), a.address(family))
    reaches(a.space, world.underlay.out, OUT[family], node_address(one, family))


@pytest.mark.parametrize("family", FAMILIES)
def test_other_nodes_know_a_pod_by_its_own_address(world: World, family: int) -> None:
    """Without NAT it leaves by the uplink as it is, and they answer by the tunnel, their way to pods."""
    one, two = world.one, world.two
    near = one.network(overlay(one, 21, (two, 22, 4), vni=4100))
    two.network(overlay(two, 22, (one, 21, 4), vni=4100))
    pod = one.pod(near, f"10.21.0.{10 + family}", f"fd21::{10 + family}")
    reaches(pod.space, two.space, node_address(two, family), pod.address(family))
    with tcp_pair(pod.space, two.space, node_address(two, family), 8080) as pair:
        echo_over(*pair, size=1_000_000)


def test_tenants_may_use_the_same_addresses(world: World) -> None:
    """Two VNIs, the same pod addresses: each pair talks to its own."""
    one, two = world.one, world.two
    pairs = []
    for vni in (5001, 5002):
        near = one.network(overlay(one, 6, (two, 7, 4), vni=vni, host=False))
        far = two.network(overlay(two, 7, (one, 6, 4), vni=vni, host=False))
        pairs.append((one.pod(near, "10.6.0.10", "fd06::10"), two.pod(far, "10.7.0.10", "fd07::10")))
    for a, b in pairs:
        for family in FAMILIES:
            reaches(a.space, b.space, b.address(family), a.address(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_l2bridge(world: World, family: int) -> None:
    one, two = world.one, world.two
    a = one.pod(one.network(bridged()), f"192.168.9.{100 + family}", f"fd09::{100 + family}")
    b = one.pod(one.network(bridged()), f"192.168.9.{110 + family}", f"fd09::{110 + family}")
    c = two.pod(two.network(bridged()), f"192.168.9.{120 + family}", f"fd09::{120 + family}")
    out = world.underlay.out
    reaches(a.space, b.space, b.address(family), a.address(family))
    reaches(a.space, c.space, c.address(family), a.address(family))
    reaches(a.space, out, OUT[family], a.address(family))
    reaches(out, a.space, a.address(family), OUT[family])  # the outside's ARP or ND is answered
    reaches(one.space, a.space, a.address(family), node_address(one, family))
    reaches(a.space, one.space, node_address(one, family), a.address(family))
    reaches(a.space, two.space, node_address(two, family), a.address(family))
    wire = world.underlay.wire
    assert wire.learned(one.wire_port) == {one.facts.uplink_mac.hex(":")}
    assert wire.learned(two.wire_port) == {two.facts.uplink_mac.hex(":")}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [NetworkType.L2BRIDGE, NetworkType.TRANSPARENT])
@pytest.mark.parametrize("natted", [True, False], ids=["nat", "plain"])
def test_out_of_an_overlay_to_a_pod_of_the_underlay(
    world: World, natted: bool, kind: NetworkType, family: int
) -> None:
    """Here nobody on the wire answers for it; it knows the other by its gateway's address, as through a service."""
    one, policies = world.one, [OutBoundNAT()] if natted else []
    number = 150 + family + 10 * natted + 20 * (kind == NetworkType.TRANSPARENT)
    near = one.network(overlay(one, 19, (world.two, 20, 4), vni=4099))
    pod = one.pod(near, f"10.19.0.{number}", f"fd19::{number}", policies=policies)
    here = one.pod(one.network(bridged(kind)), f"192.168.9.{number}", f"fd09::{number}")
    reaches(pod.space, here.space, here.address(family), ROUTER[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_transparent(world: World, family: int) -> None:
    """Own MAC upstream; the pod finds its neighbours itself."""
    one = world.one
    network = one.network(bridged(NetworkType.TRANSPARENT))
    a = one.pod(network, f"192.168.9.{130 + family}", f"fd09::{130 + family}")
    b = one.pod(network, f"192.168.9.{140 + family}", f"fd09::{140 + family}")
    out, far = world.underlay.out, world.underlay.far
    with Sniffer(out, "eth0", outgoing=False) as sniffer:
        reaches(a.space, out, OUT[family], a.address(family))
        assert {frame[6:12] for frame in sniffer.frames() if frame[12:14] in (b"\x08\0", b"\x86\xdd")} == {
            a.mac
        }
    reaches(out, a.space, a.address(family), OUT[family])
    reaches(a.space, b.space, b.address(family), a.address(family))
    reaches(one.space, a.space, a.address(family), node_address(one, family))
    reaches(a.space, one.space, node_address(one, family), a.address(family))
    reaches(a.space, far, "203.0.113.5" if family == 4 else "2001:db8::5", a.address(family))
    assert a.mac.hex(":") in world.underlay.wire.learned(one.wire_port)


@pytest.mark.parametrize("kind", [NetworkType.L2BRIDGE, NetworkType.TRANSPARENT])
def test_a_gateway_with_a_link_local_address(world: World, kind: NetworkType) -> None:
    """All that routers announce. Pods leave by it; what is told, or led back, to them is in the node's name."""
    underlay = world.underlay
    if "fe80::fe" not in underlay.router.ip("-6", "address", "show", "dev", "eth0"):
        underlay.router.ip("address", "add", "fe80::fe/64", "dev", "eth0")
    node = world.two
    host_port = PortMapping(protocol=6, external_port=8700, internal_port=80, flags=NatFlags.IPV6)
    lan = network(kind, f"link-local-{kind}", ("fd09::/64", "fe80::fe"))
    number = 130 if kind == NetworkType.L2BRIDGE else 131
    pod = node.pod(node.network(lan), f"fd09::{number}", policies=[host_port])
    reaches(pod.space, underlay.far, FAR[6], pod.address(6))
    to = node_address(node, 6)
    seen = tcp(pod.space, pod.space, to, 8700, at=(pod.address(6), 80))
    assert (seen.client[0], seen.server) == (to, (to, 8700))


@pytest.mark.parametrize("family", FAMILIES)
def test_nat_network(world: World, family: int) -> None:
    """Translated by default, reachable from the node; no other node knows its subnet."""
    one = world.one
    network = one.network(own(NetworkType.NAT, 8))
    a = one.pod(network, f"10.8.0.{10 + family}", f"fd08::{10 + family}")
    gateway = "10.8.0.1" if family == 4 else "fd08::1"
    reaches(a.space, world.underlay.out, OUT[family], node_address(one, family))
    reaches(one.space, a.space, a.address(family), gateway)
    reaches(a.space, one.space, node_address(one, family), a.address(family))


@pytest.mark.parametrize("kind", [NetworkType.NAT, NetworkType.OVERLAY])
def test_nobody_behind_the_node_speaks_to_all_of_its_link(world: World, kind: NetworkType) -> None:
    """All machines of the LAN would get it, from the node's address where it is translated."""
    one = world.one
    made = own(kind, 14) if kind is NetworkType.NAT else overlay(one, 14, vni=4114)
    pod = one.pod(one.network(made), "10.14.0.10")
    cut_off(pod, "192.168.9.255", one, (Layer.ROUTE, Reason.NO_ROUTE))


@pytest.mark.parametrize("family", FAMILIES)
def test_internal_network(world: World, family: int) -> None:
    """The node and its pods, nobody else."""
    one = world.one
    network = one.network(own(NetworkType.INTERNAL, 13))
    a = one.pod(network, f"10.13.0.{10 + family}", f"fd13::{10 + family}")
    b = one.pod(network, f"10.13.0.{20 + family}", f"fd13::{20 + family}")
    gateway = "10.13.0.1" if family == 4 else "fd13::1"
    reaches(a.space, b.space, b.address(family), a.address(family))
    reaches(one.space, a.space, a.address(family), gateway)
    reaches(a.space, one.space, gateway, a.address(family))
    cut_off(a, OUT[family], one, (Layer.ROUTE, Reason.NO_ROUTE))


@pytest.mark.parametrize("family", FAMILIES)
def test_private_network(world: World, family: int) -> None:
    """Pods only: neither the node nor the outside."""
    one = world.one
    network = one.network(own(NetworkType.PRIVATE, 11))
    a = one.pod(network, f"10.11.0.{10 + family}", f"fd11::{10 + family}")
    b = one.pod(network, f"10.11.0.{20 + family}", f"fd11::{20 + family}")
    reaches(a.space, b.space, b.address(family), a.address(family))
    cut_off(a, node_address(one, family), one, (Layer.ROUTE, Reason.NO_ROUTE))
    cut_off(a, OUT[family], one, (Layer.ROUTE, Reason.NO_ROUTE))


@pytest.mark.parametrize("family", FAMILIES)
def test_neighbours_are_answered_by_the_switch(world: World, family: int) -> None:
    """A pod asks for another: one answer from the map, nothing reaches the other pod or the wire."""
    one = world.one
    network = one.network(bridged())
    a = one.pod(network, f"192.168.9.{150 + family}", f"fd09::{150 + family}")
    b = one.pod(network, f"192.168.9.{160 + family}", f"fd09::{160 + family}")
    asked = one.counter(Counter.ANSWERED_ARP)
    with Sniffer(b.space, "eth0", outgoing=False) as at_b, Sniffer(one.space, "eth0") as on_wire:
        ping(a.space, b.address(family))
        questions = [f for f in [*at_b.frames(), *on_wire.frames()] if _asks_for(f, b.address(family))]
    assert not questions
    assert one.counter(Counter.ANSWERED_ARP) > asked
    neighbours = a.space.ip("neighbour", "show", b.address(family))
    assert b.mac.hex(":") in neighbours


def _asks_for(frame: bytes, address: str) -> bool:
    """An ARP request or neighbour solicitation for an address."""
    packed = parse_address(address).packed
    if frame[12:14] == b"\x08\x06":
        return frame[20:22] == b"\x00\x01" and frame[38:42] == packed[:4]
    return frame[12:14] == b"\x86\xdd" and frame[20] == 58 and frame[54] == 135 and frame[62:78] == packed


@pytest.mark.parametrize("family", FAMILIES)
def test_gateway_failover_costs_no_connection(world: World, family: int) -> None:
    """The router's MAC changes under connections of an L2Bridge pod, a NATed pod and new ones."""
    one, underlay = world.one, world.underlay
    far = "203.0.113.5" if family == 4 else "2001:db8::5"
    plain = one.pod(one.network(bridged()), f"192.168.9.{170 + family}", f"fd09::{170 + family}")
    hidden = one.pod(one.network(own(NetworkType.NAT, 8)), f"10.8.0.{40 + family}", f"fd08::{40 + family}")
    with (
        tcp_pair(plain.space, underlay.far, far, 81) as first,
        tcp_pair(hidden.space, underlay.far, far, 82) as second,
    ):
        for connection in (first, second):
            echo_over(*connection)
        new = bytes((2, 0xFA, 0x11, 0, 0, family))
        underlay.router.ip("link", "set", "eth0", "address", new.hex(":"))
        # What a router that takes over does (VRRP): it announces itself.
        _announce(underlay.router, new, family)
        for connection in (first, second):
            echo_over(*connection)
        reaches(plain.space, underlay.far, far, plain.address(family))


def _announce(router: Space, mac: bytes, family: int) -> None:
    packed = parse_address(ROUTER[family]).packed
    if family == 4:
        arp = b"\0\x01\x08\0\x06\x04\0\x01" + mac + packed[:4] + b"\0" * 6 + packed[:4]
        frame = b"\xff" * 6 + mac + b"\x08\x06" + arp
    else:
        frame = b"\x33\x33\0\0\0\x01" + mac + b"\x86\xdd" + _advertisement(packed, mac)
    inject(router, "eth0", frame)


def _advertisement(packed: bytes, mac: bytes) -> bytes:
    message = bytes((136, 0, 0, 0, 0xA0, 0, 0, 0)) + packed + b"\x02\x01" + mac
    everybody = bytes.fromhex("ff020000000000000000000000000001")
    message = fill(message, 2, pseudo(6, packed, everybody, 58, len(message)) + message)
    return ip_packet(6, packed, everybody, 58, message, 255, 0, 0)
