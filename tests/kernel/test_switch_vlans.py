"""VLAN policies with real packets: two VLANs with the same addresses on one uplink, and the untagged LAN beside."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from samewire.hcn.policies import (
    ACL,
    VLAN,
    AclAction,
    AclDirection,
    OutBoundNAT,
    Policy,
    PortMapping,
    SDNRoute,
    SourceMacAddress,
)
from samewire.hcn.schema import Network, NetworkType
from samewire.vfp.constants import SCOPE_ANY, SCOPE_OUTSIDE, SCOPE_UPLINK, Layer, Reason
from samewire.vfp.simulate import checksum
from tests.support.frames import fill, ip_packet, pseudo
from tests.support.netlab import Lab, Space, poll
from tests.support.node_rig import Node, Pod
from tests.support.services import Balancer, Target
from tests.support.traffic import TIMEOUT_S, Sniffer, inject, ping, tcp, tcp_pair, udp
from tests.support.universe import packed
from tests.support.vlans import Tagged, TagSniffer, join_vlan, with_tag
from tests.support.worlds import OUT, Underlay, bridged, network, node_address, own

pytestmark = [pytest.mark.root, pytest.mark.kernelcore]

FAMILIES = (4, 6)
ROUTER = {4: "10.7.0.1", 6: "fd07::1"}
FAR = {4: "203.0.113.77", 6: "2001:db8::77"}
ETHERTYPE = {4: b"\x08\0", 6: b"\x86\xdd"}


def vlan_network(vlan: int, *policies: Policy, kind: NetworkType = NetworkType.L2BRIDGE) -> Network:
    """The same subnets in any VLAN."""
    made = network(kind, f"vlan-{vlan}-{kind}", ("10.7.0.0/24", ROUTER[4]), ("fd07::/64", ROUTER[6]))
    return replace(made, policies=(VLAN(isolation_id=vlan), *policies))


class World:
    """Two nodes; a router in each of two VLANs, both with the same addresses, and one with them on the untagged LAN."""

    def __init__(self, lab: Lab, program: Path) -> None:
        self.lab = lab
        self.underlay = Underlay(lab)
        self.routers = {vlan: self._router(vlan, program) for vlan in (7, 8)}
        self.untagged = self._router(0, program)
        self.one, self.two = self.underlay.node(11), self.underlay.node(12)
        self.networks = {vlan: self.one.network(vlan_network(vlan)) for vlan in (7, 8)}
        self.pods = {vlan: self._pod(self.one, made, 10) for vlan, made in self.networks.items()}
        self.neighbour = self._pod(self.one, self.networks[7], 11)
        self.remote = self._pod(self.two, self.two.network(vlan_network(7)), 20)
        self.other = self.one.pod(self.one.network(bridged()), "192.168.9.110", "fd09::110")

    def _router(self, vlan: int, program: Path) -> Space:
        made = self.lab.host(self.underlay.wire, f"{ROUTER[4]}/24", f"{ROUTER[6]}/64")
        made.address("lo", f"{FAR[4]}/32", f"{FAR[6]}/128")
        if vlan:
            join_vlan(self.lab, made, "eth0", vlan, program)
        return made

    @staticmethod
    def _pod(node: Node, of: Network, number: int) -> Pod:
        return node.pod(of, f"10.7.0.{number}", f"fd07::{number}")


@pytest.fixture(scope="module")
def world(compiled: Callable[[str], Path]) -> Iterator[World]:
    with Lab() as lab:
        yield World(lab, compiled("vlan"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("vlan", [7, 8])
def test_a_vlan_is_reached_and_reaches(world: World, vlan: int, family: int) -> None:
    """On-link and behind the router, from both sides: each VLAN's own machine answers to the same address."""
    pod, router = world.pods[vlan], world.routers[vlan]
    own = pod.address(family)
    for to in (ROUTER[family], FAR[family]):
        for exchange in (tcp, udp):
            seen = exchange(pod.space, router, to, 8080)
            assert (seen.client[0], seen.server[0]) == (own, to)
        assert ping(pod.space, to).source == to
    for exchange in (tcp, udp):
        seen = exchange(router, pod.space, own, 8080)
        assert (seen.client[0], seen.server[0]) == (ROUTER[family], own)
    assert ping(router, own).source == own
    # By the MAC that the pod has found itself, and the router knows the pod by the node's.
    assert router.mac("eth0").hex(":") in pod.space.ip("neighbour", "show", ROUTER[family])
    assert world.one.facts.uplink_mac.hex(":") in router.ip("neighbour", "show", own)


@pytest.mark.parametrize("family", FAMILIES)
def test_pods_of_a_vlan_reach_one_another(world: World, family: int) -> None:
    """On one node and between nodes; the pod of the same address in the other VLAN is another one."""
    pod, near, far = world.pods[7], world.neighbour, world.remote
    for client, server in ((pod, near), (near, pod), (pod, far), (far, pod)):
        for exchange in (tcp, udp):
            seen = exchange(client.space, server.space, server.address(family), 8080)
            assert (seen.client[0], seen.server[0]) == (client.address(family), server.address(family))
        assert ping(client.space, server.address(family)).source == server.address(family)


@pytest.mark.parametrize("family", FAMILIES)
def test_long_packets_and_fragments(world: World, family: int) -> None:
    """A tag does not count: packets of the uplink's whole MTU pass, and longer ones in pieces."""
    pod, router = world.pods[7], world.routers[7]
    longest = 1500 - (28 if family == 4 else 48)
    for size in (longest, longest + 1, 4000):
        assert len(ping(pod.space, FAR[family], size=size).payload) == size
        assert len(ping(router, pod.address(family), size=size).payload) == size
        assert udp(pod.space, router, FAR[family], 7777, size=size).client[0] == pod.address(family)
    tcp(pod.space, router, FAR[family], 8080, size=300_000)
    tcp(router, pod.space, pod.address(family), 8080, size=300_000)


def sent_by(frames: list[Tagged], node: Node) -> list[Tagged]:
    return [one for one in frames if one.frame[6:12] == node.facts.uplink_mac]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tag_is_on_the_wire(world: World, family: int) -> None:
    """On every frame of the pods: packets, questions and answers; the node's own and the LAN's pods have none."""
    node, pod, router = world.one, world.pods[7], world.routers[7]
    for space, about in ((pod.space, ROUTER[family]), (router, pod.address(family))):
        space.ip("neighbour", "flush", "to", about)
    with TagSniffer(router, "eth0") as sniffer, TagSniffer(world.untagged, "eth0") as aside:
        tcp(pod.space, router, FAR[family], 8080)
        tcp(router, pod.space, pod.address(family), 8080)
        tcp(world.other.space, world.underlay.out, OUT[family], 8080)
        seen = sent_by(sniffer.tagged(), node)
        packets = [one for one in seen if one.frame[12:14] == ETHERTYPE[family] and one.vlan == 7]
        assert len(packets) > 8
        assert {one.vlan for one in seen} <= {7, None}
        about_pods = packed(pod.address(family))[: 4 if family == 4 else 16]
        for one in (*seen, *aside.tagged()):
            if about_pods in one.frame or pod.mac in one.frame[12:]:
                assert one.vlan in (7, 8), one


def up_to(sniffer: Sniffer, last: bytes) -> list[bytes]:
    """The frames that have come before the one with these bytes."""
    found: list[bytes] = []

    def is_last(frame: bytes) -> bool:
        found.append(frame)
        return last in frame

    sniffer.wait(is_last)
    return found[:-1]


def datagram(mac: bytes, router_mac: bytes, family: int, destination: str) -> bytes:
    """To the pod's port 9, from the VLAN's router."""
    source, to = packed(ROUTER[family]), packed(destination)
    body = b"\x03\xe8\0\x09\0\x0c\0\0data"
    body = fill(body, 6, pseudo(family, source, to, 17, len(body)) + body)
    return mac + router_mac + ETHERTYPE[family] + ip_packet(family, source, to, 17, body, 64, 0, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_tags_and_none_do_not_reach_a_vlan(world: World, family: int) -> None:
    """Untagged, with a foreign tag, with a provider's tag; a tag nobody has is counted."""
    node, lan = world.one, world.untagged
    near, uplink = world.neighbour, node.facts.uplink_ifindex  # an address that VLAN 8 has not
    frame = datagram(node.facts.uplink_mac, b"\x02\x66\0\0\0\x01", family, near.address(family))
    key = (uplink, Layer.DECAP, Reason.OTHER_VLAN)
    with Sniffer(near.space, "eth0", outgoing=False) as inside:
        before = node.dropped(*key)
        provider = frame[:12] + b"\x88\xa8\0\x07" + frame[12:]
        for wrong in (
            frame,
            with_tag(frame, 8),
            with_tag(frame, 9),
            with_tag(with_tag(frame, 7), 8),
            provider,
        ):
            inject(lan, "eth0", wrong)
        poll("a count", lambda: node.dropped(*key) > before)
        assert node.dropped(*key) == before + 1
        inject(lan, "eth0", with_tag(frame.replace(b"data", b"last"), 7))
        assert not [one for one in up_to(inside, b"last") if b"data" in one]


def test_questions_are_answered_in_their_vlan_only(world: World) -> None:
    """ARP for an address that only VLAN 7 has: answered with that tag, and not to other tags or none."""
    node, lan = world.one, world.untagged
    mac = b"\x02\x66\0\0\0\x02"
    target = packed(world.neighbour.ip)[:4]
    question = b"\0\x01\x08\0\x06\x04\0\x01" + mac + packed("10.7.0.99")[:4] + bytes(6) + target
    frame = b"\xff" * 6 + mac + b"\x08\x06" + question
    with TagSniffer(lan, "eth0") as sniffer:
        for one in (frame, with_tag(frame, 8), with_tag(frame, 9), with_tag(frame, 7)):
            inject(lan, "eth0", one)
        found = sniffer.wait_tagged(lambda one: one.frame[:6] == mac)
        assert found.vlan == 7
        assert found.frame[22:28] == node.facts.uplink_mac
        assert not [one for one in sniffer.tagged() if one.frame[:6] == mac]


@pytest.mark.parametrize("family", FAMILIES)
def test_connections_with_the_same_addresses_are_kept_apart(world: World, family: int) -> None:
    """Rules need flows: those of two VLANs have the very same addresses and ports."""
    node, rules = (
        world.one,
        [
            ACL(action=AclAction.ALLOW, direction=AclDirection.OUT, protocols="6"),
            ACL(action=AclAction.BLOCK, direction=AclDirection.IN),
        ],
    )
    for pod in world.pods.values():
        node.policies(pod, *rules)
    try:
        with (
            tcp_pair(world.pods[7].space, world.routers[7], FAR[family], 8080, source=4000) as (near, far),
            tcp_pair(world.pods[8].space, world.routers[8], FAR[family], 8080, source=4000) as (other, there),
        ):
            for client, server, data in ((near, far, b"seven"), (other, there, b"eight")):
                client.sendall(data)
                assert server.recv(10) == data
                server.sendall(data * 2)
                assert client.recv(10) == data * 2
            flows = [key for key in node.flow_table() if 4000 in key.port and key.family == family]
            assert len({key.scope for key in flows}) == 2
        for vlan, pod in world.pods.items():
            with pytest.raises(TimeoutError):
                connect_soon(world.routers[vlan], pod.address(family))
    finally:
        for pod in world.pods.values():
            node.policies(pod)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_vlan_is_no_hop(world: World, family: int) -> None:
    """With flows as without: the time to live is what the sender has given."""
    pod, router = world.pods[7], world.routers[7]
    world.one.policies(pod, ACL(action=AclAction.ALLOW, direction=AclDirection.IN))
    try:
        with TagSniffer(router, "eth0") as sniffer:
            tcp(router, pod.space, pod.address(family), 8080)
            at = 22 if family == 4 else 21
            found = [one.frame for one in sniffer.tagged() if one.frame[12:14] == ETHERTYPE[family]]
            lives = {frame[at] for frame in found if frame[23 if family == 4 else 20] == 6}
            assert lives == {64}
    finally:
        world.one.policies(pod)


def connect_soon(space: Space, to: str) -> None:
    with space.socket(socket.AF_INET6 if ":" in to else socket.AF_INET, socket.SOCK_STREAM) as opened:
        opened.settimeout(0.3)
        opened.connect((to, 8080))


@pytest.mark.parametrize("family", FAMILIES)
def test_errors_come_back(world: World, family: int) -> None:
    """Of the router, about a port where nobody listens; and the pod's own, to the router."""
    pod, router = world.pods[7], world.routers[7]
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    for client, to in ((pod.space, FAR[family]), (router, pod.address(family))):
        with client.socket(kind, socket.SOCK_DGRAM) as opened:
            opened.settimeout(TIMEOUT_S)
            opened.connect((to, 9))
            opened.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                opened.recv(10)


def test_the_node_has_no_part_in_a_vlan(world: World) -> None:
    """Its address is looked for in the VLAN, where nobody has it; and there is no way from it to the pods."""
    node, pod = world.one, world.pods[7]
    with TagSniffer(world.routers[7], "eth0") as sniffer:
        with pytest.raises(TimeoutError):
            connect_soon(pod.space, node_address(node, 4))
        sniffer.wait_tagged(lambda one: one.vlan == 7 and one.frame[6:12] == node.facts.uplink_mac)
    assert not [key for key in node.table("sw_routes") if "10.7" in str(key)]
    with pytest.raises(OSError, match=r"unreachable|timed out"):
        connect_soon(node.space, pod.ip)


def test_a_vlan_is_no_way_to_host_ports(world: World) -> None:
    """Not even where its pods reach the node: what comes with the tag is not for the node's ports."""
    node, lan = world.one, world.untagged
    to_node = SDNRoute(destination_prefix=f"{node_address(node, 4)}/32", need_encap=True)
    node.network(vlan_network(7, to_node))
    nat = node.network(own(NetworkType.NAT, 6))
    mapped = node.pod(
        nat, "10.6.0.10", "fd06::10", policies=[PortMapping(protocol=17, internal_port=9, external_port=9)]
    )
    frame = datagram(node.facts.uplink_mac, b"\x02\x66\0\0\0\x03", 4, node_address(node, 4))
    try:
        with Sniffer(mapped.space, "eth0", outgoing=False) as inside:
            inject(lan, "eth0", with_tag(frame, 7))
            inject(lan, "eth0", frame.replace(b"data", b"last"))
            assert not [one for one in up_to(inside, b"last") if b"data" in one]
    finally:
        node.network(vlan_network(7))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [NetworkType.L2BRIDGE, NetworkType.TRANSPARENT])
def test_macs_on_the_wire(world: World, kind: NetworkType, family: int) -> None:
    """A network's own MAC, and a Transparent pod's, as without a VLAN."""
    node, router = world.one, world.routers[8]
    policies = (
        [SourceMacAddress(source_mac_address="0E-2A-99-00-00-08")] if kind is NetworkType.L2BRIDGE else []
    )
    made = node.network(vlan_network(8, *policies, kind=kind))
    number = 40 + family + (10 if policies else 0)
    pod = node.pod(made, f"10.7.0.{number}", f"fd07::{number}")
    mac = bytes.fromhex("0e2a99000008") if policies else pod.mac
    with TagSniffer(router, "eth0") as sniffer:
        assert tcp(pod.space, router, FAR[family], 8080).client[0] == pod.address(family)
        assert tcp(router, pod.space, pod.address(family), 8080).client[0] == ROUTER[family]
        packets = [one for one in sniffer.tagged() if one.frame[12:14] == ETHERTYPE[family] and one.vlan == 8]
        assert {one.frame[6:12] for one in packets} == {mac}
    assert mac.hex(":") in router.ip("neighbour", "show", pod.address(family))
    # And what was there goes on beside it.
    tcp(world.pods[8].space, router, FAR[family], 8080)


@pytest.mark.parametrize("family", FAMILIES)
def test_translated_to_an_address_of_the_vlan(world: World, family: int) -> None:
    """OutBoundNAT with a VirtualIP that the VLAN finds at the node."""
    virtual = {4: "10.7.0.200", 6: "fd07::200"}[family]
    pod = world.one.pod(
        world.networks[7],
        f"10.7.0.{60 + family}",
        f"fd07::{60 + family}",
        policies=[OutBoundNAT(virtual_ip=virtual)],
    )
    for exchange in (tcp, udp):
        assert exchange(pod.space, world.routers[7], FAR[family], 8080).client[0] == virtual
    assert ping(pod.space, FAR[family]).source == FAR[family]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("far", [False, True])
def test_pods_in_a_vlan_use_services(world: World, family: int, far: bool) -> None:
    """By their gateway, as they see it; a backend beyond the node is reached by that, too."""
    world.routers[7].set("ipv4" if family == 4 else "ipv6", "conf", "all", "forwarding", value=1)
    backend, vip = world.remote if far else world.neighbour, {4: "10.96.0.10", 6: "fd96::10"}[family]
    target = Target(
        backend.address(family), 8080, SCOPE_UPLINK
    )  # for services of all networks it is out there
    service = Balancer(world.one, target)
    service.vip(vip, 80, SCOPE_ANY)
    try:
        seen = tcp(world.pods[7].space, backend.space, vip, 80, at=(backend.address(family), 8080))
        assert (seen.client[0], seen.server) == (world.pods[7].address(family), (vip, 80))
    finally:
        service.close()


def test_a_vlan_is_no_way_to_services_of_outside(world: World) -> None:
    """Of the node's own LAN: what comes with a tag is not for them."""
    node, lan, vip = world.one, world.untagged, "192.168.9.200"
    service = Balancer(node, Target(world.other.ip, 9, SCOPE_UPLINK), protocol=17)
    service.vip(vip, 9, SCOPE_OUTSIDE)
    frame = datagram(node.facts.uplink_mac, b"\x02\x66\0\0\0\x04", 4, vip)
    try:
        with Sniffer(world.other.space, "eth0", outgoing=False) as inside:
            inject(lan, "eth0", with_tag(frame, 7))
            inject(lan, "eth0", frame.replace(b"data", b"last"))
            assert not [one for one in up_to(inside, b"last") if b"data" in one]
    finally:
        service.close()


def test_a_solicitation_from_a_link_local_address_finds_its_answer(world: World) -> None:
    """As the kernel sends it when it asks whether a neighbour is still there."""
    pod, router = world.pods[7], world.routers[7]
    link_local = bytes.fromhex("fe80000000000000002a00fffe000001")
    target = packed(ROUTER[6])
    message = b"\x87\0\0\0" + bytes(4) + target + b"\x01\x01" + pod.mac
    group = bytes.fromhex("ff0200000000000000000001ff") + target[13:]
    message = fill(message, 2, pseudo(6, link_local, group, 58, len(message)) + message)
    frame = b"\x33\x33\xff" + target[13:] + pod.mac + b"\x86\xdd"
    with TagSniffer(router, "eth0") as sniffer, Sniffer(pod.space, "eth0", outgoing=False) as inside:
        inject(pod.space, "eth0", frame + ip_packet(6, link_local, group, 58, message, 255, 0, 0))
        asked = sniffer.wait_tagged(lambda one: one.frame[54] == 135 and one.frame[62:78] == target).frame
        assert asked[22:38] == packed(pod.ip6)
        assert asked[80:86] == world.one.facts.uplink_mac
        covered = pseudo(6, asked[22:38], asked[38:54], 58, len(asked) - 54) + asked[54:]
        assert checksum.whole(covered) == b"\0\0"
        inside.wait(lambda one: one[12:14] == b"\x86\xdd" and one[54] == 136 and one[62:78] == target)


def test_the_lan_is_as_it_was(world: World) -> None:
    """Pods on the untagged LAN beside VLANs."""
    out, pod = world.underlay.out, world.other
    for family in FAMILIES:
        assert tcp(pod.space, out, OUT[family], 8080).client[0] == pod.address(family)
        assert tcp(out, pod.space, pod.address(family), 8080).client[0] == OUT[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_priority_alone_is_no_vlan(world: World, family: int) -> None:
    """IEEE 802.1Q, 9.6: a tag whose VLAN is 0 only has a priority; whose frame it is, it does not say."""
    node, lan = world.one, world.untagged
    pod = node.pod(world.other.network, f"192.168.9.{130 + family}", f"fd09::{130 + family}")
    frame = datagram(node.facts.uplink_mac, b"\x02\x66\0\0\0\x05", family, pod.address(family))
    with Sniffer(pod.space, "eth0", outgoing=False) as inside:
        inject(lan, "eth0", with_tag(frame, 0xA000))
        found = inside.wait(lambda one: b"data" in one)
        assert found[12:14] == ETHERTYPE[family]
        inject(lan, "eth0", with_tag(frame.replace(b"data", b"next"), 0xA007))
        inject(lan, "eth0", frame.replace(b"data", b"last"))
        assert not [one for one in up_to(inside, b"last") if b"next" in one]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_port_is_a_pods(world: World, family: int) -> None:
    """That of the tunnel, too: the node has none in a VLAN."""
    to = world.pods[7].address(family)
    for port in (4789, 8472):
        assert udp(world.routers[7], world.pods[7].space, to, port).client[0] == ROUTER[family]
