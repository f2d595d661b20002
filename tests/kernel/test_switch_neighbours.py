"""SourceMacAddress and NeighborDiscovery with real packets: which MACs the wire learns, and who is told what."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
from msgspec.structs import replace

from samewire.hcn.policies import NeighborDiscovery, OutBoundNAT, Policy, SourceMacAddress
from samewire.hcn.schema import Network, NetworkType
from samewire.vfp.address import parse_address
from tests.support.netlab import Lab, Space, poll
from tests.support.traffic import Sniffer, inject, ping, tcp, udp
from tests.support.worlds import OUT, Underlay, bridged, node_address, own

pytestmark = [pytest.mark.root, pytest.mark.kernelcore]

FAMILIES = (4, 6)
SOURCE = "0E-2A-99-00-00-01"
MAC = "02:77:00:00:00:01"
TARGETS = {4: ("192.168.9.224/28", "192.168.9.230"), 6: ("fd09::e0/124", "fd09::e5")}
BEHIND = {4: ("10.8.0.64/27", "10.8.0.77"), 6: ("fd08::40/124", "fd08::47")}
SENDERS = {4: "192.168.9.225", 6: "fd09::e1"}


class World:
    """A node, an outside host, and a network on the underlay with both policies."""

    def __init__(self, lab: Lab) -> None:
        self.underlay = Underlay(lab)
        self.node = self.underlay.node(13)
        policies: list[Policy] = [SourceMacAddress(source_mac_address=SOURCE)]
        self.network = self.node.network(with_policies(bridged(), *policies, *discovery(TARGETS)))


def discovery(targets: dict[int, tuple[str, str]]) -> list[NeighborDiscovery]:
    return [
        NeighborDiscovery(target_ip_prefix=prefix, sender_ip_address=SENDERS[family], sender_mac_address=MAC)
        for family, (prefix, _) in targets.items()
    ]


def with_policies(network: Network, *policies: Policy) -> Network:
    return replace(network, policies=(*network.policies, *policies))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        yield World(lab)


def neighbour(space: Space, address: str) -> str:
    """What a namespace knows of a neighbour."""
    return space.ip("neighbour", "show", address)


def ask(space: Space, address: str) -> None:
    """Have the kernel ask for a neighbour."""
    with space.socket(10 if ":" in address else 2, 2) as opened:
        opened.sendto(b"x", (address, 9))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_wire_sees_the_networks_own_mac(world: World, family: int) -> None:
    """Frames of pods leave with it, and it is what the outside is told; those of the node keep the node's."""
    node, out, wire = world.node, world.underlay.out, world.underlay.wire
    pod = node.pod(world.network, f"192.168.9.{100 + family}", f"fd09::{100 + family}")
    other = node.pod(world.network, f"192.168.9.{110 + family}", f"fd09::{110 + family}")
    own_mac = SOURCE.replace("-", ":").lower()
    for exchange in (tcp, udp):
        seen = exchange(pod.space, out, OUT[family], 8080)
        assert seen.client[0] == pod.address(family)
        seen = exchange(out, pod.space, pod.address(family), 8080)
        assert seen.client[0] == OUT[family]
        exchange(pod.space, other.space, other.address(family), 8080)
    assert ping(out, pod.address(family)).source == pod.address(family)
    assert own_mac in neighbour(out, pod.address(family))
    with Sniffer(out, "eth0", outgoing=False) as sniffer:
        tcp(pod.space, out, OUT[family], 8080)
        kind = b"\x08\0" if family == 4 else b"\x86\xdd"
        # The pods' packets, and the kernel's questions for the next hop, which are the node's own.
        packets = [
            frame
            for frame in sniffer.frames()
            if frame[12:14] == kind and frame[23 if family == 4 else 20] == 6
        ]
        assert packets
        assert {frame[6:12].hex(":") for frame in packets} == {own_mac}
    assert own_mac in wire.learned(node.wire_port)
    tcp(node.space, out, OUT[family], 8080)
    assert node.facts.uplink_mac.hex(":") in neighbour(out, node_address(node, family))


def test_translated_packets_are_the_nodes(world: World) -> None:
    """Under the node's address, with the node's MAC: the answers go there."""
    node, out = world.node, world.underlay.out
    pod = node.pod(world.network, "192.168.9.120", "fd09::120", policies=[OutBoundNAT()])
    with Sniffer(out, "eth0", outgoing=False) as sniffer:
        assert tcp(pod.space, out, OUT[4], 8080).client[0] == node_address(node, 4)
        packets = [frame for frame in sniffer.frames() if frame[12:14] == b"\x08\0" and frame[23] == 6]
    assert {frame[6:12] for frame in packets} == {node.facts.uplink_mac}


def _knows(space: Space, target: str) -> bool:
    return MAC in neighbour(space, target)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_is_answered_for(world: World, family: int) -> None:
    """To pods and to the wire, by ARP and by ND; what is an endpoint's or the node's is as ever."""
    node, out, (_, target) = world.node, world.underlay.out, TARGETS[family]
    pod = node.pod(world.network, f"192.168.9.{130 + family}", f"fd09::{130 + family}")
    holder = node.pod(world.network, f"192.168.9.{231 + family}", f"fd09::e{5 + family:x}")
    with Sniffer(out, "eth0", outgoing=False) as sniffer:
        for space in (pod.space, out):
            ask(space, target)
            poll("an answer", partial(_knows, space, target))
        answers = [frame for frame in sniffer.frames() if is_answer(frame, target)]
    assert answers
    assert {frame[6:12].hex(":") for frame in answers} == {MAC}
    if family == 6:
        assert {frame[22:38] for frame in answers} == {parse_address(SENDERS[6]).packed}
    assert ping(pod.space, holder.address(family)).source == holder.address(family)
    assert holder.mac.hex(":") in neighbour(pod.space, holder.address(family))
    assert ping(out, holder.address(family)).source == holder.address(family)
    assert MAC not in neighbour(out, holder.address(family))


def is_answer(frame: bytes, address: str) -> bool:
    """An ARP reply or neighbour advertisement about an address."""
    packed = parse_address(address).packed
    if frame[12:14] == b"\x08\x06":
        return frame[20:22] == b"\x00\x02" and frame[28:32] == packed[:4]
    return frame[12:14] == b"\x86\xdd" and frame[20] == 58 and frame[54] == 136 and frame[62:78] == packed


def test_who_announces_or_probes_an_address_is_not_contradicted(world: World) -> None:
    """RFC 5227: an answer would say that the address is taken."""
    out, target = world.underlay.out, TARGETS[4][1]
    mac = b"\x02\x66\0\0\0\x01"
    packed = parse_address(target).packed[:4]
    with Sniffer(out, "eth0", outgoing=False) as sniffer:
        for sender in (bytes(4), packed):
            inject(out, "eth0", arp_request(mac, sender, packed))
        inject(out, "eth0", arp_request(mac, parse_address(OUT[4]).packed[:4], packed))
        sniffer.wait(lambda frame: is_answer(frame, target))  # to the third: answers come in order
        assert not [frame for frame in sniffer.frames() if is_answer(frame, target)]


def arp_request(mac: bytes, sender: bytes, target: bytes) -> bytes:
    head = b"\xff" * 6 + mac + b"\x08\x06" + b"\x00\x01\x08\x00\x06\x04\x00\x01"
    return head + mac + sender + bytes(6) + target


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_of_its_own(world: World, family: int) -> None:
    """The network's pods are told; the wire is not. With the policy goes the answer."""
    node, (_, target) = world.node, BEHIND[family]
    network = own(NetworkType.INTERNAL, 8)
    node.network(with_policies(network, *discovery(BEHIND)))
    pod = node.pod(network, f"10.8.0.{10 + family}", f"fd08::{10 + family}")
    ask(pod.space, target)
    poll("an answer", lambda: MAC in neighbour(pod.space, target))
    node.network(network)
    pod.space.ip("neighbour", "flush", "to", target)
    ask(pod.space, target)
    poll("no answer", lambda: "FAILED" in neighbour(pod.space, target))


def test_link_local_addresses_are_their_owners(world: World) -> None:
    """However long the prefix: the wire is told the MAC of the node's own."""
    node, out = world.node, world.underlay.out
    everything = {6: ("::/0", "")}
    node.network(with_policies(bridged(), *discovery(everything)))
    shown = node.space.ip("-6", "-o", "address", "show", "dev", "eth0", "scope", "link")
    address = shown.split()[3].partition("/")[0]
    with out.socket(10, 2) as opened:
        opened.sendto(b"x", (address, 9, 0, out.ifindex("eth0")))
    poll("an answer", lambda: "lladdr" in neighbour(out, address))
    assert node.space.mac("eth0").hex(":") in neighbour(out, address)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("whole", [True, False])
def test_a_prefix_with_all_of_the_lan_is_for_pods_only(world: World, family: int, whole: bool) -> None:
    """Its machines speak for themselves: a second answer would take their packets."""
    lan = {4: "192.168.9.0/24", 6: "fd09::/64"} if whole else {4: "0.0.0.0/0", 6: "::/0"}
    absent = {4: "192.168.9.77", 6: "fd09::77"}[family]
    node, out = world.node, world.underlay.out
    policies = discovery({number: (prefix, "") for number, prefix in lan.items()})
    try:
        node.network(with_policies(bridged(), *policies, *discovery(TARGETS)))
        number = {4: 150, 6: 160}[family] + whole
        pod = node.pod(world.network, f"192.168.9.{number}", f"fd09::{number}")
        ask(pod.space, absent)
        poll("an answer", partial(_knows, pod.space, absent))
        for target in (absent, TARGETS[family][1]):  # of the second a longer prefix is another's
            out.ip("neighbour", "flush", "to", target)
            ask(out, target)
        poll("an answer to the second", partial(_knows, out, TARGETS[family][1]))
        assert MAC not in neighbour(out, absent)
    finally:
        node.network(world.network)
