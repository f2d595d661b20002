"""Sizes and offloads with real packets: the limit is exact, the answer is right, and checksums on the wire are true."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from samewire.hcn.policies import QOS, NatFlags, OutBoundNAT, PortMapping
from samewire.hcn.schema import NetworkType
from samewire.vfp.constants import Counter, Layer, Reason
from tests.support.netlab import Lab, Space
from tests.support.node_rig import Pod
from tests.support.traffic import IcmpSocket, Sniffer, bound, stream, tcp_pair, udp
from tests.support.verify import Headers, headers_of, verified
from tests.support.worlds import OUT, Underlay, bridged, node_address, overlay, own

pytestmark = [pytest.mark.root]

FAMILIES = (4, 6)
LIMIT = {4: 1450, 6: 1430}  # largest inner packet by the IP version of the provider address
HEADERS = {4: 28, 6: 48}
TOO_BIG = {4: (3, 4), 6: (2, 0)}
MEGABYTE = 1 << 20


class World:
    """Two nodes with an overlay over each IP version; one pod that is larger than the tunnel."""

    def __init__(self, lab: Lab) -> None:
        self.underlay = Underlay(lab)
        self.one, self.two = self.underlay.node(11), self.underlay.node(12)
        self.pairs: dict[int, tuple[Pod, Pod]] = {}
        for provider, here, there, vni in ((4, 1, 2, 4096), (6, 3, 4, 4097)):
            near = self.one.network(overlay(self.one, here, (self.two, there, provider), vni=vni))
            far = self.two.network(overlay(self.two, there, (self.one, here, provider), vni=vni))
            self.pairs[provider] = (
                self.one.pod(near, f"10.{here}.0.10", f"fd{here:02}::10", policies=[OutBoundNAT()]),
                self.two.pod(far, f"10.{there}.0.10", f"fd{there:02}::10", policies=[OutBoundNAT()]),
            )
        self.nat = self.one.pod(self.one.network(own(NetworkType.NAT, 8)), "10.8.0.10", "fd08::10")
        self.bridged = self.one.pod(self.one.network(bridged()), "192.168.9.110", "fd09::110")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        yield World(lab)


def probing(space: Space, family: int) -> socket.socket:
    """A UDP socket that sets DF and believes nobody's MTU but its interface's."""
    opened = space.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    level, option = (socket.IPPROTO_IP, 10) if family == 4 else (socket.IPPROTO_IPV6, 23)
    opened.setsockopt(level, option, 3)  # IP_MTU_DISCOVER: IP_PMTUDISC_PROBE
    return opened


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("provider", FAMILIES)
def test_every_size_around_the_limit(world: World, provider: int, family: int) -> None:
    """What fits arrives, what does not is answered from the gateway with the right MTU; nothing is cut."""
    near, far = world.pairs[provider]
    assert near.link.mtu == LIMIT[provider]
    near.space.ip("link", "set", "eth0", "mtu", "1500")
    gateway = {4: "10.{}.0.1", 6: "fd{:02}::1"}[family].format(1 if provider == 4 else 3)
    sent = world.one.counter(Counter.TOO_BIG_SENT)
    sizes = range(LIMIT[provider] - 3, LIMIT[provider] + 4)
    with (
        Sniffer(world.one.space, "eth0") as wire,
        bound(far.space, socket.SOCK_DGRAM, far.address(family), 7100) as listening,
        IcmpSocket(near.space, family) as errors,
        probing(near.space, family) as opened,
    ):
        for size in sizes:
            opened.sendto(bytes(size - HEADERS[family]), (far.address(family), 7100))
            if size <= LIMIT[provider]:
                assert len(listening.recvfrom(2000)[0]) == size - HEADERS[family]
            else:
                error = errors.receive(lambda m: (m.type, m.code) == TOO_BIG[family])
                assert (error.source, error.word & 0xFFFF) == (gateway, LIMIT[provider])
        outer = [headers_of(f) for f in wire.frames() if f[12:14] in (b"\x08\0", b"\x86\xdd")]
    near.space.ip("link", "set", "eth0", "mtu", str(LIMIT[provider]))
    outer = [h for h in outer if h.inner is not None]
    assert len(outer) == 4
    assert all(not h.fragment and h.dont_fragment and len(h.packet) <= 1500 for h in outer)
    assert world.one.counter(Counter.TOO_BIG_SENT) == sent + 3
    assert world.one.dropped(near.port, Layer.MTU, Reason.TOO_BIG) >= 3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_node_learns_the_limit(world: World, family: int) -> None:
    """samewire0 is as large as the uplink: the node's own streams to remote pods adapt."""
    far = world.pairs[4][1]
    with tcp_pair(world.one.space, far.space, far.address(family), 7200) as (near, end):
        stream(near, end, os.urandom(MEGABYTE))


@pytest.mark.parametrize("family", FAMILIES)
def test_larger_than_a_capped_pods_interface(world: World, family: int) -> None:
    """A cap's queue takes only what fits the interface: the sender is told, and it counts."""
    node, out, port = world.one, world.underlay.out, 8600 + family
    flags = NatFlags.IPV6 if family == 6 else 0
    pod = node.pod(
        world.pairs[4][0].network,
        f"10.1.0.{50 + family}",
        f"fd01::{50 + family}",
        policies=[
            PortMapping(protocol=17, external_port=port, internal_port=80, flags=flags),
            QOS(maximum_incoming_bandwidth_in_bytes=10 * MEGABYTE),
        ],
    )
    to = node_address(node, family)
    at = (pod.address(family), 80)
    assert udp(out, pod.space, to, port, at=at, size=1450 - HEADERS[family]).server == (to, port)
    with IcmpSocket(out, family) as errors, probing(out, family) as opened:
        opened.sendto(bytes(1451 - HEADERS[family]), (to, port))
        error = errors.receive(lambda m: (m.type, m.code) == TOO_BIG[family])
        assert error.word & 0xFFFF == 1450


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("path", ["tunnel4", "tunnel6", "nat", "bridged"])
@pytest.mark.parametrize("offload", ["on", "off"])
def test_streams_and_checksums(world: World, offload: str, path: str, family: int) -> None:
    """Megabytes both ways, segmented by the stack or left to the device; every packet on the wire adds up."""
    near, far = world.pairs[6] if path == "tunnel6" else world.pairs[4]
    pod = {"nat": world.nat, "bridged": world.bridged}.get(path, near)
    server, to = (far.space, far.address(family)) if "tunnel" in path else (world.underlay.out, OUT[family])
    ends = [(world.one.space, "eth0"), (world.two.space, "eth0"), (world.underlay.out, "eth0")]
    for space, name in ends:
        # Transmit offloads off: what leaves is what a plain wire would see.
        settings = ["tx", offload, "tso", offload, "gso", offload]
        space.command("ethtool", "-K", name, *settings)
    data = os.urandom(MEGABYTE)
    with ExitStack() as stack:
        wire = stack.enter_context(Sniffer(world.one.space, "eth0"))
        near_end, far_end = stack.enter_context(tcp_pair(pod.space, server, to, 7300))
        stream(near_end, far_end, data)
        stream(far_end, near_end, data)
        frames = wire.frames()
    for space, name in ends:
        space.command("ethtool", "-K", name, "tx", "on", "tso", "on", "gso", "on")
    if offload == "on":
        return
    seen = [verified(frame) for frame in frames if frame[12:14] in (b"\x08\0", b"\x86\xdd")]
    carried = [h for h in seen if _tcp(h)]
    assert len(carried) > 2 * MEGABYTE / 1500
    assert all(len(h.packet) <= 1500 and not h.fragment for h in seen)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("path", ["tunnel4", "tunnel6", "nat", "bridged"])
def test_datagrams_that_the_offload_cuts(world: World, path: str, family: int) -> None:
    """UDP_SEGMENT, as QUIC uses it: one write is many datagrams, there and back."""
    near, far = world.pairs[6] if path == "tunnel6" else world.pairs[4]
    pod = {"nat": world.nat, "bridged": world.bridged}.get(path, near)
    server, to = (far.space, far.address(family)) if "tunnel" in path else (world.underlay.out, OUT[family])
    size, count = 1200, 8
    data = os.urandom(size * count)
    with (
        bound(server, socket.SOCK_DGRAM, to, 7350) as listening,
        bound(pod.space, socket.SOCK_DGRAM, pod.address(family)) as opened,
    ):
        for one in (listening, opened):
            one.setsockopt(socket.SOL_UDP, 103, size)  # UDP_SEGMENT
        opened.sendto(data, (to, 7350))
        got = [listening.recvfrom(2 * size) for _ in range(count)]
        assert b"".join(part for part, _ in got) == data
        listening.sendto(data, got[0][1])
        assert b"".join(opened.recv(2 * size) for _ in range(count)) == data


@pytest.mark.parametrize("path", ["tunnel4", "tunnel6", "nat", "bridged"])
def test_segments_beyond_64_kilobytes(world: World, path: str) -> None:
    """BIG TCP over IPv6: the header that the kernel puts in front goes when it cuts, and makes nothing too big."""
    near, far = world.pairs[6] if path == "tunnel6" else world.pairs[4]
    pod = {"nat": world.nat, "bridged": world.bridged}.get(path, near)
    server, to = (far.space, far.address(6)) if "tunnel" in path else (world.underlay.out, OUT[6])
    pod.space.ip("link", "set", "eth0", "gso_max_size", "185000")
    refused = world.one.dropped(pod.port, Layer.MTU, Reason.TOO_BIG)
    with tcp_pair(pod.space, server, to, 7380) as (near_end, far_end):
        stream(near_end, far_end, os.urandom(4 * MEGABYTE))
    pod.space.ip("link", "set", "eth0", "gso_max_size", "65536")
    assert world.one.dropped(pod.port, Layer.MTU, Reason.TOO_BIG) == refused


def _tcp(headers: Headers) -> bool:
    inner = headers.inner or headers
    return inner.protocol == 6


@pytest.mark.parametrize("family", FAMILIES)
def test_datagrams_without_checksum_keep_none(world: World, family: int) -> None:
    """IPv4 UDP without checksum stays so through NAT; one that comes out as zero is sent as ones."""
    pod, out = world.nat, world.underlay.out
    with (
        Sniffer(out, "eth0", outgoing=False) as sniffer,
        pod.space.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as opened,
        bound(out, socket.SOCK_DGRAM, OUT[family], 7400) as listening,
    ):
        if family == 4:
            opened.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK
        for value in range(200):
            opened.sendto(value.to_bytes(2, "big"), (OUT[family], 7400))
            assert listening.recvfrom(10)[0] == value.to_bytes(2, "big")
        frames = [f for f in sniffer.frames() if f[12:14] == (b"\x08\0" if family == 4 else b"\x86\xdd")]
    sums = [frame[40:42] if family == 4 else frame[60:62] for frame in frames]
    assert len(sums) >= 200
    assert (sums.count(bytes(2)) >= 200) == (family == 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_fragments_of_the_right_size(world: World, family: int) -> None:
    """A pod cuts by its own MTU, so that every piece fits the tunnel and none is answered."""
    for provider, (near, far) in world.pairs.items():
        before = world.one.dropped(near.port, Layer.MTU, Reason.TOO_BIG)
        udp(near.space, far.space, far.address(family), 7500, size=9000)
        assert world.one.dropped(near.port, Layer.MTU, Reason.TOO_BIG) == before, provider
