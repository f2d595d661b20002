"""Fragments with real packets: through NAT, ACLs, host ports and the tunnel, in order, late-first and entangled."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from samewire.hcn.policies import ACL, AclAction, AclDirection, NatFlags, OutBoundNAT, Policy, PortMapping
from samewire.hcn.schema import NetworkType
from samewire.vfp.constants import Layer, Reason
from tests.support.frames import fill, ip_packet, pseudo
from tests.support.netlab import Lab, Space, poll
from tests.support.node_rig import Pod
from tests.support.traffic import Seen, Sniffer, bound, inject, ping, udp
from tests.support.universe import packed
from tests.support.verify import dissect
from tests.support.worlds import OUT, Underlay, bridged, node_address, overlay, own

pytestmark = [pytest.mark.root, pytest.mark.kernelcore]

FAMILIES = (4, 6)
SIZE = 4000
ALLOW = [
    ACL(action=AclAction.ALLOW, direction=direction, protocols="17", remote_ports=remote, local_ports=local)
    for direction, remote, local in ((AclDirection.IN, "", "7777"), (AclDirection.OUT, "7777", ""))
]


class World:
    """Two nodes; pods that are NATed, bridged, judged by ACLs, and behind the tunnel over both IP versions."""

    def __init__(self, lab: Lab) -> None:
        self.underlay = Underlay(lab)
        self.one, self.two = self.underlay.node(11), self.underlay.node(12)
        nat = self.one.network(own(NetworkType.NAT, 8))
        self.nat = [self.one.pod(nat, f"10.8.0.{i}", f"fd08::{i}") for i in (10, 11)]
        self.bridged = self.one.pod(self.one.network(bridged()), "192.168.9.110", "fd09::110")
        self.pairs: dict[tuple[int, bool], tuple[Pod, Pod]] = {}
        for provider, here, there, vni in ((4, 1, 2, 4096), (6, 3, 4, 4097)):
            near = self.one.network(overlay(self.one, here, (self.two, there, provider), vni=vni))
            far = self.two.network(overlay(self.two, there, (self.one, here, provider), vni=vni))
            judged: list[Policy] = [*ALLOW, OutBoundNAT()]
            for i, policies in ((10, []), (11, judged)):
                self.pairs[provider, bool(policies)] = (
                    self.one.pod(near, f"10.{here}.0.{i}", f"fd{here:02}::{i}", policies=policies),
                    self.two.pod(far, f"10.{there}.0.{i}", f"fd{there:02}::{i}", policies=policies),
                )


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        yield World(lab)


def big_exchange(client: Space, server: Space, to: str, port: int, at: tuple[str, int] | None = None) -> Seen:
    """A datagram of several fragments and one back."""
    return udp(client, server, to, port, at=at, size=SIZE)


@pytest.mark.parametrize("family", FAMILIES)
def test_through_nat(world: World, family: int) -> None:
    pod, out = world.nat[0], world.underlay.out
    assert big_exchange(pod.space, out, OUT[family], 7777).client[0] == node_address(world.one, family)
    assert len(ping(pod.space, OUT[family], size=SIZE).payload) == SIZE


@pytest.mark.parametrize("family", FAMILIES)
def test_on_the_underlay(world: World, family: int) -> None:
    pod, out = world.bridged, world.underlay.out
    assert big_exchange(pod.space, out, OUT[family], 7777).client[0] == pod.address(family)
    assert big_exchange(out, pod.space, pod.address(family), 7777).client[0] == OUT[family]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("provider", FAMILIES)
def test_through_the_tunnel(world: World, provider: int, guarded: bool, family: int) -> None:
    """Only the inner packets are fragments: each outer one is whole."""
    near, far = world.pairs[provider, guarded]
    with Sniffer(world.one.space, "eth0") as wire:
        big_exchange(near.space, far.space, far.address(family), 7777)
        big_exchange(far.space, near.space, near.address(family), 7777)
        outer = [dissect(f[14:]) for f in wire.frames() if f[12:14] in (b"\x08\0", b"\x86\xdd")]
    assert sum(1 for h in outer if h.protocol == 17) >= 12
    assert not [h for h in outer if h.fragment]
    assert all(h.dont_fragment for h in outer if h.protocol == 17)


@pytest.mark.parametrize("family", FAMILIES)
def test_through_a_host_port(world: World, family: int) -> None:
    pod, out, port = world.nat[1], world.underlay.out, 8500 + family
    flags = NatFlags.IPV6 if family == 6 else 0
    world.one.policies(pod, PortMapping(protocol=17, external_port=port, internal_port=80, flags=flags))
    to = node_address(world.one, family)
    seen = big_exchange(out, pod.space, to, port, (pod.address(family), 80))
    assert seen == Seen((OUT[family], seen.client[1]), (to, port))
    world.one.policies(pod)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_acl_blocks_all_fragments(world: World, family: int) -> None:
    """Later fragments have no port of their own, and do not slip through."""
    near, far = world.pairs[4, True]
    with near.space.socket(*datagram(family)) as opened, Sniffer(world.one.space, "eth0") as wire:
        before = world.one.dropped(near.port, Layer.ACL_OUT, Reason.BLOCKED)
        opened.sendto(bytes(SIZE), (far.address(family), 7778))
        poll("drops", lambda: world.one.dropped(near.port, Layer.ACL_OUT, Reason.BLOCKED) == before + 3)
        assert not [f for f in wire.frames() if len(f) > 500]


def test_ports_behind_the_end_of_the_first(world: World) -> None:
    """What a frame has behind its packet says nothing of it; the datagram's ports are in the second fragment, which has
    none of its own (RFC 7112).
    """
    near, far = world.pairs[4, True]
    ends = packed(near.ip6), packed(far.ip6)
    first = b"\x3c\0\0\x01\0\0\0\x07" + b"\x11\0\x01\x04\0\0\0\0"  # a fragment header, destination options
    head = b"\x60\0\0\0" + len(first).to_bytes(2, "big") + b"\x2c\x40" + ends[0] + ends[1]
    ports = (5555).to_bytes(2, "big") + (80).to_bytes(2, "big") + b"\0\x0c\0\0data"
    before = world.one.dropped(near.port, Layer.PARSE, Reason.MALFORMED)
    inject(near.space, "eth0", near.link.host_mac + near.mac + b"\x86\xdd" + head + first + ports)
    poll("a drop", lambda: world.one.dropped(near.port, Layer.PARSE, Reason.MALFORMED) == before + 1)


def datagram(family: int) -> tuple[int, int]:
    """Arguments of a UDP socket."""
    return (socket.AF_INET if family == 4 else socket.AF_INET6), socket.SOCK_DGRAM


def pieces(pod: Pod, family: int, to: str, port: int, payload: bytes, number: int) -> list[bytes]:
    """The frames of a pod's datagram in two fragments, with an identification of our choice."""
    ends = packed(pod.address(family)), packed(to)
    return cut(pod.link.host_mac + pod.mac, family, ends, port, payload, number)


def cut(
    macs: bytes, family: int, ends: tuple[bytes, bytes], port: int, payload: bytes, number: int
) -> list[bytes]:
    """The same between any two addresses and MACs."""
    source, target = ends
    whole = (5555).to_bytes(2, "big") + port.to_bytes(2, "big") + (8 + len(payload)).to_bytes(2, "big")
    whole += bytes(2) + payload
    whole = fill(whole, 6, pseudo(family, source, target, 17, len(whole)) + whole)
    at = 512
    frame = macs + (b"\x08\0" if family == 4 else b"\x86\xdd")
    return [
        frame + ip_packet(family, source, target, 17, whole[:at], 64, 0x2000, number),
        frame + ip_packet(family, source, target, 17, whole[at:], 64, at // 8, number),
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["nat", "bridged", "tunnel", "acl"])
def test_late_first(world: World, kind: str, family: int) -> None:
    """A fragment that overtakes its first is a counted drop; sent again it arrives with the rest."""
    near, far = world.pairs[4, kind == "acl"]
    pod = {"nat": world.nat[0], "bridged": world.bridged}.get(kind, near)
    server, to = (world.underlay.out, OUT[family]) if pod is not near else (far.space, far.address(family))
    payload, port = os.urandom(900), 7777 if kind == "acl" else 7800 + family
    first, later = pieces(pod, family, to, port, payload, 4321 + family)
    kind_of_drop = (pod.port, Layer.FRAGMENT, Reason.FRAGMENT_UNKNOWN)
    before = world.one.dropped(*kind_of_drop)
    with bound(server, socket.SOCK_DGRAM, to, port) as listening:
        inject(pod.space, "eth0", later)
        poll("drop", lambda: world.one.dropped(*kind_of_drop) == before + 1)
        inject(pod.space, "eth0", first)
        inject(pod.space, "eth0", later)
        assert listening.recvfrom(2000)[0] == payload
    assert world.one.dropped(*kind_of_drop) == before + 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["host port", "bridged"])
def test_late_first_from_outside(world: World, kind: str, family: int) -> None:
    """The same on the uplink. What comes to the node's own address may be for the node, which gets it then."""
    one, out = world.one, world.underlay.out
    pod = world.nat[1] if kind == "host port" else world.bridged
    flags = NatFlags.IPV6 if family == 6 else 0
    if kind == "host port":
        one.policies(pod, PortMapping(protocol=17, external_port=8700, internal_port=80, flags=flags))
    to, port = (node_address(one, family), 8700) if kind == "host port" else (pod.address(family), 80)
    payload = os.urandom(900)
    macs = one.facts.uplink_mac + out.mac("eth0")
    first, later = cut(macs, family, (packed(OUT[family]), packed(to)), port, payload, 4400 + family)

    def lost() -> int:
        return sum(n for key, n in one.drops().items() if key[2] == Reason.FRAGMENT_UNKNOWN)

    before, unknown = lost(), int(kind == "bridged")
    with bound(pod.space, socket.SOCK_DGRAM, pod.address(family), 80) as listening:
        inject(out, "eth0", later)
        poll("drop", lambda: lost() == before + unknown)
        inject(out, "eth0", first)
        inject(out, "eth0", later)
        assert listening.recvfrom(2000)[0] == payload
    assert lost() == before + unknown
    one.policies(pod)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_identification_from_two_pods(world: World, family: int) -> None:
    """Both hide behind the node's address; the outside must not put their pieces together."""
    payloads = [os.urandom(900) for _ in world.nat]
    port, number = 7900 + family, 777
    with ExitStack() as stack:
        listening = stack.enter_context(bound(world.underlay.out, socket.SOCK_DGRAM, OUT[family], port))
        for part in zip(
            *[
                pieces(pod, family, OUT[family], port, payload, number)
                for pod, payload in zip(world.nat, payloads, strict=True)
            ],
            strict=True,
        ):
            for pod, frame in zip(world.nat, part, strict=True):
                inject(pod.space, "eth0", frame)
        assert {listening.recvfrom(2000)[0] for _ in payloads} == set(payloads)


def test_the_nodes_own_fragments_pass(world: World) -> None:
    """The node reassembles what is for itself, late-first or not."""
    for family in FAMILIES:
        to = node_address(world.one, family)
        big_exchange(world.underlay.out, world.one.space, to, 7001)
        big_exchange(world.one.space, world.underlay.out, OUT[family], 7001)
