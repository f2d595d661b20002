"""GUARD and the accounting of drops: whatever a pod forges is dropped, and counted once, under the right name."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from msgspec.structs import replace

from samewire.hcn.policies import ACL, AclAction, AclDirection, OutBoundNAT
from samewire.hcn.schema import NetworkType
from samewire.vfp.constants import SCOPE_ANY, SCOPE_UPLINK, Counter, Layer, PortFlag, Reason, RouteKind
from samewire.vfp.diff import Put, Remove
from samewire.vfp.simulate import checksum
from samewire.vfp.simulate.packet import SCTP
from samewire.vfp.tables import Id, Nexthop, Port, Vni
from tests.support.frames import fill, ip_packet, pseudo
from tests.support.netlab import Lab, poll
from tests.support.node_rig import Node, Pod
from tests.support.sctp import RawSctp, segment
from tests.support.services import Balancer, Target
from tests.support.traffic import Sniffer, bound, inject, ping, udp
from tests.support.universe import packed
from tests.support.worlds import OUT, ROUTER, Underlay, bridged, node_address, overlay, own, unguarded

pytestmark = [pytest.mark.root]

FAMILIES = (4, 6)
ETH = {4: b"\x08\0", 6: b"\x86\xdd"}
FORGED_MAC = bytes.fromhex("0e2affffff01")
FORGED = {4: "10.8.0.99", 6: "fd08::99"}
Kind = tuple[Layer, Reason]


class World:
    """A node with two pods of a NAT network and a Transparent one."""

    def __init__(self, lab: Lab) -> None:
        self.underlay = Underlay(lab)
        self.node = node = self.underlay.node(11)
        network = node.network(own(NetworkType.NAT, 8))
        self.pods = [node.pod(network, f"10.8.0.{i}", f"fd08::{i}") for i in (10, 11)]
        self.transparent = node.pod(
            node.network(bridged(NetworkType.TRANSPARENT)), "192.168.9.130", "fd09::130"
        )


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        yield World(lab)


def udp_frame(
    pod: Pod, family: int, *, source: str = "", mac: bytes = b"", to: str = "", ttl: int = 64, port: int = 9
) -> bytes:
    """A datagram as the pod sends it through its gateway, or with something forged."""
    own_address, target = packed(source or pod.address(family)), packed(to or OUT[family])
    datagram = (5000).to_bytes(2, "big") + port.to_bytes(2, "big") + (12).to_bytes(2, "big") + bytes(2)
    datagram += b"data"
    datagram = fill(datagram, 6, pseudo(family, own_address, target, 17, len(datagram)) + datagram)
    body = ip_packet(family, own_address, target, 17, datagram, ttl, 0, 1)
    return pod.link.host_mac + (mac or pod.mac) + ETH[family] + body


def arp_frame(
    pod: Pod, *, sender: str, mac: bytes, target: str, ethernet: bytes = b"", reply: bool = False
) -> bytes:
    """An ARP message."""
    operation = b"\0\x02" if reply else b"\0\x01"
    body = b"\0\x01\x08\0\x06\x04" + operation + mac + packed(sender)[:4] + bytes(6) + packed(target)[:4]
    return b"\xff" * 6 + (ethernet or pod.mac) + b"\x08\x06" + body


def neighbour_frame(
    pod: Pod, kind: int, *, source: str, target: str, option_mac: bytes, mac: bytes = b"", first: bytes = b""
) -> bytes:
    """A neighbour solicitation (135) or advertisement (136). ``first``: an option in front of the MAC's."""
    everybody = packed("ff02::1")
    message = bytes((kind, 0, 0, 0)) + bytes(4) + packed(target)
    message += first + bytes((1 if kind == 135 else 2, 1)) + option_mac
    message = fill(message, 2, pseudo(6, packed(source), everybody, 58, len(message)) + message)
    body = ip_packet(6, packed(source), everybody, 58, message, 255, 0, 0)
    return b"\x33\x33\0\0\0\x01" + (mac or pod.mac) + ETH[6] + body


def drops_once(node: Node, port: int, kind: Kind, cause: Callable[[], object]) -> None:
    """What ``cause`` does counts as one drop of this kind at this port, and as nothing else."""
    before, wanted = node.drops(), (port, *kind)
    cause()
    poll(f"drop {kind}", lambda: node.drops().get(wanted) != before.get(wanted))
    after = node.drops()
    changed = {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)}
    # A pod's own chatter (its multicast listener reports) may come in between.
    noise = (Layer.L2, Reason.MULTICAST)
    assert {key: n for key, n in changed.items() if key[1:] != noise or kind == noise} == {(port, *kind): 1}


def forge(node: Node, pod: Pod, kind: Kind, frame: bytes) -> None:
    """Send a frame out of the pod: it is dropped, counted once, and nothing reaches the wire."""
    with Sniffer(node.space, "eth0") as wire:
        drops_once(node, pod.port, kind, lambda: inject(pod.space, "eth0", frame))
        assert not [one for one in wire.frames() if one[14:] == frame[14:]]


@pytest.mark.parametrize("family", FAMILIES)
def test_source_address(world: World, family: int) -> None:
    pod, other = world.pods
    for forged in (FORGED[family], other.address(family), node_address(world.node, family), OUT[family]):
        frame = udp_frame(pod, family, source=forged)
        forge(world.node, pod, (Layer.GUARD, Reason.SPOOFED_IP), frame)


@pytest.mark.parametrize("family", FAMILIES)
def test_nobodys_source_address(world: World, family: int) -> None:
    """An endpoint without an address of that version has none to speak from, and is not translated to the node's."""
    pod, other = world.pods
    lone = world.node.pod(pod.network, "10.8.0.20" if family == 6 else "fd08::20")
    for to in (other.address(family), OUT[family]):
        frame = udp_frame(lone, family, source="0.0.0.0" if family == 4 else "::", to=to)
        forge(world.node, lone, (Layer.GUARD, Reason.SPOOFED_IP), frame)


@pytest.mark.parametrize("family", FAMILIES)
def test_source_mac(world: World, family: int) -> None:
    pod, other = world.pods
    for forged in (FORGED_MAC, other.mac, world.node.facts.uplink_mac):
        frame = udp_frame(pod, family, mac=forged)
        forge(world.node, pod, (Layer.GUARD, Reason.SPOOFED_MAC), frame)


@pytest.mark.parametrize("reply", [False, True])
def test_arp(world: World, reply: bool) -> None:
    """Another's address or MAC in ARP, questions and answers alike."""
    spoofed = (Layer.GUARD, Reason.SPOOFED_ARP)
    for pod in (world.pods[0], world.transparent):
        for sender, mac in ((FORGED[4], pod.mac), (pod.ip, FORGED_MAC), ("192.168.9.254", pod.mac)):
            frame = arp_frame(pod, sender=sender, mac=mac, target=OUT[4], reply=reply)
            forge(world.node, pod, spoofed, frame)
        frame = arp_frame(pod, sender=pod.ip, mac=pod.mac, target=OUT[4], ethernet=FORGED_MAC, reply=reply)
        forge(world.node, pod, (Layer.GUARD, Reason.SPOOFED_MAC), frame)


def test_neighbour_discovery(world: World) -> None:
    spoofed = (Layer.GUARD, Reason.SPOOFED_ARP)
    for pod in (world.pods[0], world.transparent):
        for kind, source, target, option in (
            (135, FORGED[6], OUT[6], pod.mac),
            (135, pod.ip6, OUT[6], FORGED_MAC),
            (136, pod.ip6, FORGED[6], pod.mac),
            (136, FORGED[6], pod.ip6, pod.mac),
            (136, pod.ip6, pod.ip6, FORGED_MAC),
        ):
            frame = neighbour_frame(pod, kind, source=source, target=target, option_mac=option)
            forge(world.node, pod, spoofed, frame)
        frame = neighbour_frame(pod, 136, source=pod.ip6, target=pod.ip6, option_mac=pod.mac, mac=FORGED_MAC)
        forge(world.node, pod, (Layer.GUARD, Reason.SPOOFED_MAC), frame)


def test_a_mac_behind_another_option(world: World) -> None:
    """A nonce (RFC 3971) is none's concern, and whoever hears the question takes the MAC behind it for the pod's."""
    pod = world.transparent
    frame = neighbour_frame(
        pod, 135, source=pod.ip6, target=OUT[6], option_mac=FORGED_MAC, first=b"\x0e\x01" + bytes(6)
    )
    forge(world.node, pod, (Layer.GUARD, Reason.SPOOFED_ARP), frame)


def test_nobody_is_made_to_give_up_an_address(world: World) -> None:
    """Who asks whether an address is free is about to take it (RFC 5227, RFC 4862); a pod has its own."""
    pod, kind = world.transparent, (Layer.GUARD, Reason.SPOOFED_ARP)
    forge(world.node, pod, kind, arp_frame(pod, sender="0.0.0.0", mac=pod.mac, target=OUT[4]))
    forge(world.node, pod, kind, neighbour_frame(pod, 135, source="::", target=OUT[6], option_mac=pod.mac))


def test_a_link_local_address_that_may_be_a_routers(world: World) -> None:
    """The tables do not know a pod's own: a question from any goes out, and is answered, under the pod's address."""
    pod, out = world.transparent, world.underlay.out
    question = neighbour_frame(pod, 135, source="fe80::1", target=OUT[6], option_mac=pod.mac)

    def concerns_out(kind: int, frame: bytes) -> bool:
        return frame[12:14] == ETH[6] and frame[54] == kind and frame[62:78] == packed(OUT[6])

    with (
        Sniffer(out, "eth0", outgoing=False) as wire,
        Sniffer(pod.space, "eth0", outgoing=False) as inside,
    ):
        inject(pod.space, "eth0", question)
        asked = wire.wait(partial(concerns_out, 135))
        assert asked[22:38] == packed(pod.ip6)
        assert asked[6:12] == asked[80:86] == pod.mac
        message = asked[54:]
        assert checksum.whole(pseudo(6, asked[22:38], asked[38:54], 58, len(message)) + message) == b"\0\0"
        inside.wait(partial(concerns_out, 136))
    assert "fe80::1 " not in out.ip("-6", "neighbour", "show")


@pytest.mark.parametrize("family", FAMILIES)
def test_errors_about_what_others_talk(world: World, family: int) -> None:
    """A pod may not tell another's peer that a path is too small."""
    pod, other = world.pods
    quoted = udp_frame(other, family)[14:]
    message = bytes((3, 4, 0, 0, 0, 0, 2, 0)) if family == 4 else bytes((2, 0, 0, 0, 0, 0, 5, 0))
    message += quoted
    own_address, to = packed(pod.address(family)), packed(other.address(family))
    protocol = 1 if family == 4 else 58
    covered = message if family == 4 else pseudo(6, own_address, to, 58, len(message)) + message
    message = fill(message, 2, covered)
    frame = pod.link.host_mac + pod.mac + ETH[family]
    frame += ip_packet(family, own_address, to, protocol, message, 64, 0, 1)
    forge(world.node, pod, (Layer.ICMP, Reason.ICMP_UNRELATED), frame)


@pytest.mark.parametrize("family", FAMILIES)
def test_errors_to_others_than_they_are_about(world: World, family: int) -> None:
    """By a flow of its own a pod would reach anybody, past its rules and under the node's address."""
    asked = b"\0\x09" + (5000).to_bytes(2, "big") + b"\0\x0c\0\0data"
    for pod in (world.pods[0], world.transparent):
        own_address = packed(pod.address(family))
        assert udp(pod.space, world.underlay.out, OUT[family], 9000).server[0] == OUT[family]
        with Sniffer(world.underlay.out, "eth0", outgoing=False) as wire:
            inject(pod.space, "eth0", udp_frame(pod, family))
            wire.wait(lambda frame: frame[12:14] == ETH[family] and frame[-4:] == b"data")
        quoted = ip_packet(family, packed(OUT[family]), own_address, 17, asked, 64, 0, 1)
        message = bytes((3, 3) if family == 4 else (1, 4)) + bytes(6) + quoted
        to, protocol = packed(ROUTER[family]), 1 if family == 4 else 58
        covered = message if family == 4 else pseudo(6, own_address, to, 58, len(message)) + message
        frame = pod.link.host_mac + pod.mac + ETH[family]
        frame += ip_packet(family, own_address, to, protocol, fill(message, 2, covered), 64, 0, 1)
        forge(world.node, pod, (Layer.ICMP, Reason.ICMP_UNRELATED), frame)


@pytest.mark.parametrize("family", FAMILIES)
def test_errors_past_rules_that_have_come_since(world: World, family: int) -> None:
    """The flow that it quotes waits for its next packet to be judged again; an error is none."""
    node, (pod, other) = world.node, world.pods
    answer = ACL(action=AclAction.ALLOW, direction=AclDirection.OUT, priority=1)
    node.policies(pod, answer)
    with Sniffer(other.space, "eth0", outgoing=False) as inside:
        inject(pod.space, "eth0", udp_frame(pod, family, to=other.address(family), port=77))
        inside.wait(lambda frame: frame[12:14] == ETH[family] and frame[-4:] == b"data")
    own_address, to = packed(pod.address(family)), packed(other.address(family))
    asked = (77).to_bytes(2, "big") + (5000).to_bytes(2, "big") + b"\0\x0c\0\0data"
    message = bytes((3, 3) if family == 4 else (1, 4)) + bytes(6)
    message += ip_packet(family, to, own_address, 17, asked, 64, 0, 1)
    protocol = 1 if family == 4 else 58
    covered = message if family == 4 else pseudo(6, own_address, to, 58, len(message)) + message
    frame = pod.link.host_mac + pod.mac + ETH[family]
    frame += ip_packet(family, own_address, to, protocol, fill(message, 2, covered), 64, 0, 1)
    with Sniffer(other.space, "eth0", outgoing=False) as inside:
        inject(pod.space, "eth0", frame)
        inside.wait(lambda seen: seen[14:] == frame[14:])
    for changed, direction in ((other, AclDirection.IN), (pod, AclDirection.OUT)):
        node.policies(changed, ACL(action=AclAction.BLOCK, direction=direction, priority=1))
        forge(node, pod, (Layer.ICMP, Reason.ICMP_UNRELATED), frame)
    node.policies(other)
    node.policies(pod, OutBoundNAT())


def test_guard_off(world: World) -> None:
    """NO_GUARD lets a pod that routes for others speak for them."""
    pod = world.pods[0]
    with unguarded(world.node, pod), Sniffer(world.underlay.out, "eth0", outgoing=False) as sniffer:
        inject(pod.space, "eth0", udp_frame(pod, 4, source=FORGED[4], mac=FORGED_MAC))
        sniffer.wait(lambda frame: frame[12:14] == ETH[4] and frame[-4:] == b"data")


class Spoofed:
    """A node that has sent SCTP to itself, and a pod of another node that says what it likes."""

    def __init__(self, lab: Lab) -> None:
        underlay = Underlay(lab)
        self.node, self.other = underlay.node(11), underlay.node(12)
        self.node.network(overlay(self.node, 1, (self.other, 2, 4)))
        network = self.other.network(overlay(self.other, 2, (self.node, 1, 4)))
        self.pod = self.other.pod(network, "10.2.0.12", "fd02::12")
        self.node.attach_loopback()

    def drops(self, family: int, to: str, protocol: int, body: bytes, layer: Layer = Layer.GUARD) -> None:
        """A packet of this body, from the pod under the node's address, is dropped by this layer of the node's."""
        packet = ip_packet(
            family, packed(node_address(self.node, family)), packed(to), protocol, body, 64, 0, 1
        )
        frame = self.pod.link.host_mac + self.pod.mac + ETH[family] + packet
        where, kind = self.node.facts.tunnel_ifindex, (layer, Reason.SPOOFED_IP)
        with unguarded(self.other, self.pod):
            drops_once(self.node, where, kind, partial(inject, self.pod.space, "eth0", frame))


@pytest.mark.parametrize("family", FAMILIES)
def test_nobody_is_the_node_by_a_flow_of_the_nodes(family: int) -> None:
    """There is no walk then."""
    with Lab() as lab:
        world = Spoofed(lab)
        node = world.node
        own_address, gateway = node_address(node, family), {4: "10.1.0.1", 6: "fd01::1"}[family]
        service = Balancer(node, Target(own_address, 8080, SCOPE_UPLINK), protocol=SCTP)
        service.vip("", 30080, SCOPE_ANY, family=family)
        with RawSctp(node.space.name, family, own_address) as backend:
            backend.send(41000, gateway, 30080, b"question")
            assert backend.receive(8080).source == (own_address, 41000)
        world.drops(family, gateway, SCTP, segment(41000, 30080, b"question"), Layer.DECAP)


@pytest.mark.parametrize("family", FAMILIES)
def test_nobody_is_the_node_in_an_error(family: int) -> None:
    """What it quotes is a flow of the node's."""
    with Lab() as lab:
        world = Spoofed(lab)
        node, pod = world.node, world.pod
        vni = node.table("sw_vnis")[Id(4096)]
        assert isinstance(vni, Vni)
        source = {4: "10.1.0.2", 6: "fd01::2"}[family]
        service = Balancer(node, Target(pod.address(family), 8080, vni.scope), protocol=SCTP, source=source)
        service.vip("", 30080, SCOPE_ANY, family=family)
        with RawSctp(node.space.name, family) as client, RawSctp(pod.space.name, family) as backend:
            client.send(41000, node_address(node, family), 30080, b"question")
            seen = backend.receive(8080).source
        assert seen[0] == source
        quoted = segment(seen[1], 8080, b"question")
        quoted = ip_packet(family, packed(source), packed(pod.address(family)), SCTP, quoted, 64, 0, 1)
        message = bytes((3, 1) if family == 4 else (1, 3)) + bytes(6) + quoted
        protocol = 1 if family == 4 else 58
        ends = packed(node_address(node, family)), packed(source)
        covered = message if family == 4 else pseudo(6, *ends, protocol, len(message)) + message
        world.drops(family, source, protocol, fill(message, 2, covered))


@pytest.mark.parametrize("family", FAMILIES)
def test_nobody_behind_the_tunnel_is_the_node(family: int) -> None:
    """Neither to a pod or the node itself, nor by a flow of the node's, whatever the pod's rules are."""
    with Lab() as lab:
        underlay = Underlay(lab)
        node, other = underlay.node(11), underlay.node(12)
        network = node.network(overlay(node, 1, (other, 2, 4)))
        rules = [ACL(action=AclAction.ALLOW, direction=way, priority=1) for way in AclDirection]
        address = {4: "10.1.0.11", 6: "fd01::11"}[family]
        node.pod(network, "10.1.0.10", "fd01::10")
        pod = node.pod(network, "10.1.0.11", "fd01::11", policies=rules)
        forger = other.pod(other.network(overlay(other, 2, (node, 1, 4))), "10.2.0.12", "fd02::12")
        gateway, plain = {4: ("10.1.0.1", "10.1.0.10"), 6: ("fd01::1", "fd01::10")}[family]
        of_node = node_address(node, family)
        datagram = socket.SOCK_DGRAM
        with (
            bound(node.space, datagram, gateway, 5000) as client,
            bound(pod.space, datagram, address, 9) as server,
        ):
            client.sendto(b"question", (address, 9))
            assert server.recvfrom(2000)[1][0] == gateway
        where, kind = node.facts.tunnel_ifindex, (Layer.DECAP, Reason.SPOOFED_IP)
        forged = [(gateway, address), (gateway, plain), (of_node, plain), (of_node, gateway)]
        with unguarded(other, forger):
            for source, to in forged:
                frame = udp_frame(forger, family, source=source, to=to)
                drops_once(node, where, kind, partial(inject, forger.space, "eth0", frame))


@pytest.mark.parametrize("family", FAMILIES)
def test_nobody_behind_the_tunnel_answers_for_a_pod_here(family: int) -> None:
    """Where there is a flow, which needs no walk; that of a pod with rules, for one."""
    with Lab() as lab:
        underlay = Underlay(lab)
        node, other = underlay.node(11), underlay.node(12)
        network = node.network(overlay(node, 1, (other, 2, 4)))
        rules = [ACL(action=AclAction.ALLOW, direction=way, priority=1) for way in AclDirection]
        server = node.pod(network, "10.1.0.11", "fd01::11", policies=rules)
        client = node.pod(network, "10.1.0.12", "fd01::12", policies=rules)
        forger = other.pod(other.network(overlay(other, 2, (node, 1, 4))), "10.2.0.12", "fd02::12")
        address = server.address(family)
        with RawSctp(client.space.name, family) as here, RawSctp(server.space.name, family) as there:
            here.send(41000, address, 8080, b"question")
            assert there.receive(8080).source[0] == client.address(family)
        answer = segment(8080, 41000, b"answer")
        packet = ip_packet(family, packed(address), packed(client.address(family)), SCTP, answer, 64, 0, 1)
        frame = forger.link.host_mac + forger.mac + ETH[family] + packet
        where, kind = node.facts.tunnel_ifindex, (Layer.DECAP, Reason.SPOOFED_IP)
        with unguarded(other, forger):
            drops_once(node, where, kind, partial(inject, forger.space, "eth0", frame))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", ["wire", "tunnel"])
def test_nobody_elsewhere_is_an_endpoint_here_to_lo(way: str, family: int) -> None:
    """By a flow of the node's to the endpoint, or in an error about that: it would come from a VIP, or 127.0.0.1."""
    with Lab() as lab:
        underlay = Underlay(lab)
        node, other = underlay.node(11), underlay.node(12)
        own_address = node_address(node, family)
        if way == "wire":
            pod, scope = node.pod(node.network(bridged()), "192.168.9.130", "fd09::130"), SCOPE_UPLINK
            client, gate = own_address, node.facts.uplink_ifindex
            forger, head = underlay.out, node.facts.uplink_mac + underlay.out.mac("eth0")
            router = OUT[family]
        else:
            pod = node.pod(node.network(overlay(node, 1, (other, 2, 4))), "10.1.0.11", "fd01::11")
            vni = node.table("sw_vnis")[Id(4096)]
            assert isinstance(vni, Vni)
            scope, gate = vni.scope, node.facts.tunnel_ifindex
            client = {4: "10.1.0.1", 6: "fd01::1"}[family]
            far = other.pod(other.network(overlay(other, 2, (node, 1, 4))), "10.2.0.12", "fd02::12")
            lab.stack.enter_context(unguarded(other, far))
            forger, head = far.space, far.link.host_mac + far.mac
            router = far.address(family)
        node.attach_loopback()
        service = Balancer(node, Target(pod.address(family), 8080, scope), protocol=SCTP)
        service.vip("", 30080, SCOPE_ANY, family=family)
        with RawSctp(node.space.name, family) as here, RawSctp(pod.space.name, family) as backend:
            here.send(41000, client, 30080, b"question")
            assert backend.receive(8080).source == (client, 41000)
        server, asker = packed(pod.address(family)), packed(client)
        quoted = ip_packet(family, asker, server, SCTP, segment(41000, 8080, b"question"), 64, 0, 1)
        message = bytes((3, 1) if family == 4 else (1, 3)) + bytes(6) + quoted
        protocol = 1 if family == 4 else 58
        covered = (
            message if family == 4 else pseudo(6, packed(router), asker, protocol, len(message)) + message
        )
        error = fill(message, 2, covered)
        answer = ip_packet(family, server, asker, SCTP, segment(8080, 41000, b"answer"), 64, 0, 1)
        about = ip_packet(family, packed(router), asker, protocol, error, 64, 0, 1)
        answering = Layer.DECAP if way == "tunnel" else Layer.GUARD
        for layer, packet in (answering, answer), (Layer.GUARD, about):
            frame = head + ETH[family] + packet
            drops_once(node, gate, (layer, Reason.SPOOFED_IP), partial(inject, forger, "eth0", frame))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_other_reason(world: World, family: int) -> None:
    """One drop each, with its own name, at the port that is to blame."""
    node, (pod, other) = world.node, world.pods
    subnet = "10.8.0" if family == 4 else "fd08:"

    def send(frame: bytes) -> Callable[[], None]:
        return lambda: inject(pod.space, "eth0", frame)

    def to(address: str) -> bytes:
        return udp_frame(pod, family, to=address)

    causes: list[tuple[Kind, bytes]] = [
        ((Layer.PARSE, Reason.MALFORMED), to(OUT[family])[: 38 if family == 4 else 58]),
        ((Layer.PARSE, Reason.NOT_IP), pod.link.host_mac + pod.mac + b"\x88\x47" + bytes(50)),
        ((Layer.L2, Reason.MULTICAST), to("224.0.0.251" if family == 4 else "ff02::fb")),
        ((Layer.L2, Reason.MULTICAST), b"\xff" * 6 + to(OUT[family])[6:]),
        ((Layer.L2, Reason.MULTICAST), b"\xff" * 6 + to(other.address(family))[6:]),
        ((Layer.GUARD, Reason.MARTIAN), to("127.0.0.1" if family == 4 else "::")),
        ((Layer.GUARD, Reason.MARTIAN), to(pod.address(family))),
        ((Layer.ROUTE, Reason.NO_ENDPOINT), to(f"{subnet}.77" if family == 4 else f"{subnet}:77")),
        ((Layer.FRAGMENT, Reason.FRAGMENT_UNKNOWN), later_fragment(pod, family)),
        ((Layer.ROUTE, Reason.TTL), udp_frame(pod, family, ttl=1)),
    ]
    if family == 4:
        causes.append(((Layer.L2, Reason.MULTICAST), to("255.255.255.255")))
    else:
        causes.append(((Layer.GUARD, Reason.MARTIAN), to("::1")))
    for kind, frame in causes:
        drops_once(node, pod.port, kind, send(frame))

    node.policies(other, ACL(action=AclAction.BLOCK, direction=AclDirection.IN, protocols="17", priority=1))
    drops_once(node, other.port, (Layer.ACL_IN, Reason.BLOCKED), send(to(other.address(family))))
    node.policies(other)
    node.policies(pod, ACL(action=AclAction.BLOCK, direction=AclDirection.OUT, protocols="17", priority=1))
    drops_once(node, pod.port, (Layer.ACL_OUT, Reason.BLOCKED), send(to(other.address(family))))
    node.policies(pod, OutBoundNAT())


@pytest.mark.parametrize("family", FAMILIES)
def test_ports_and_next_hops_that_are_gone(world: World, family: int) -> None:
    node, (pod, other) = world.node, world.pods
    frame = udp_frame(pod, family, port=100 + family)
    key = Id(pod.port)
    port = node.table("sw_ports")[key]
    assert isinstance(port, Port)

    def send() -> None:
        inject(pod.space, "eth0", frame)

    node.apply([Put("sw_ports", key, replace(port, flags=port.flags | PortFlag.BLOCKED))])
    drops_once(node, pod.port, (Layer.GUARD, Reason.PORT_BLOCKED), send)
    back = udp_frame(other, family, to=pod.address(family))
    drops_once(node, pod.port, (Layer.L2, Reason.PORT_BLOCKED), lambda: inject(other.space, "eth0", back))
    node.apply([Remove("sw_ports", key)])
    drops_once(node, pod.port, (Layer.PARSE, Reason.UNKNOWN_PORT), send)
    # The sender is charged for a target whose port is gone.
    drops_once(node, other.port, (Layer.ROUTE, Reason.NO_ENDPOINT), lambda: inject(other.space, "eth0", back))
    node.apply([Put("sw_ports", key, port)])
    hops = {
        key: hop
        for key, hop in node.table("sw_nexthops").items()
        if isinstance(hop, Nexthop) and hop.kind == RouteKind.UPLINK and hop.family == family
    }
    for name in hops:
        node.apply([Remove("sw_nexthops", name)])
    drops_once(node, pod.port, (Layer.ROUTE, Reason.NO_NEXTHOP), send)
    for name, hop in hops.items():
        node.apply([Put("sw_nexthops", name, hop)])
    assert ping(pod.space, OUT[family]).source == OUT[family]


def later_fragment(pod: Pod, family: int) -> bytes:
    """A fragment from the middle of a datagram that nobody has seen."""
    source, to = packed(pod.address(family)), packed(OUT[family])
    return (
        pod.link.host_mac
        + pod.mac
        + ETH[family]
        + ip_packet(family, source, to, 17, bytes(64), 64, 0x2005, 99)
    )


def test_what_comes_from_the_tunnel(world: World) -> None:
    """A VNI that nobody has, and a frame that claims to come from a pod here."""
    node = world.node
    inner = b"\x0e\x2a" + bytes(10) + ETH[4] + bytes(40)
    vxlan = b"\x08\0\0\0" + (9999).to_bytes(3, "big") + b"\0" + inner
    with world.underlay.out.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        drops_once(
            node,
            node.facts.tunnel_ifindex,
            (Layer.DECAP, Reason.UNKNOWN_VNI),
            lambda: opened.sendto(vxlan, (node_address(node, 4), 4789)),
        )


def vxlan(node: Node, inner: bytes, vni: int) -> bytes:
    """What a VXLAN packet for a node carries in UDP."""
    frame = node.facts.tunnel_mac + FORGED_MAC + ETH[4] + inner
    return b"\x08\0\0\0" + vni.to_bytes(3, "big") + b"\0" + frame


def test_a_pod_does_not_encapsulate_for_the_tunnel(world: World) -> None:
    """By its own VXLAN packets it would speak for any pod of any network; between pods they are data."""
    node, (pod, other) = world.node, world.pods
    inside = ip_packet(4, packed("10.2.0.66"), packed("10.1.0.10"), 17, bytes(8), 64, 0, 1)
    with pod.space.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        for to in (node_address(node, 4), OUT[4]):
            drops_once(
                node,
                pod.port,
                (Layer.GUARD, Reason.BLOCKED),
                partial(opened.sendto, vxlan(node, inside, 4096), (to, 4789)),
            )
        with bound(other.space, socket.SOCK_DGRAM, other.ip, 4789) as listening:
            opened.sendto(b"data", (other.ip, 4789))
            assert listening.recv(10) == b"data"


def test_a_pod_does_not_name_a_vlan(world: World) -> None:
    """A tag would go out on the underlay as it is."""
    pod = world.pods[0]
    for frame in (
        udp_frame(pod, 4),
        udp_frame(pod, 6),
        arp_frame(pod, sender=pod.ip, mac=pod.mac, target=OUT[4]),
    ):
        tagged = frame[:12] + b"\x81\0\0\x64" + frame[12:]
        forge(world.node, pod, (Layer.PARSE, Reason.NOT_IP), tagged)


def test_the_nodes_vlans_are_its_own(world: World) -> None:
    """A question on a VLAN of the uplink is not about the pods on the uplink itself."""
    node, out, pod = world.node, world.underlay.out, world.transparent
    arp = b"\0\x01\x08\0\x06\x04\0\x01" + out.mac("eth0") + packed(OUT[4])[:4] + bytes(6) + packed(pod.ip)[:4]
    ethernet = b"\xff" * 6 + out.mac("eth0")
    answered = node.counter(Counter.ANSWERED_ARP)
    inject(out, "eth0", ethernet + b"\x81\0\0\x07" + b"\x08\x06" + arp)
    inject(out, "eth0", ethernet + b"\x08\x06" + arp)
    poll("an answer", lambda: node.counter(Counter.ANSWERED_ARP) > answered)
    assert node.counter(Counter.ANSWERED_ARP) == answered + 1
