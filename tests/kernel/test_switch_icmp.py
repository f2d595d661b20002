"""ICMP errors with real packets: they come to whom they concern, quote what was sent, and add up."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from samewire.hcn.policies import ACL, AclAction, AclDirection, NatFlags, OutBoundNAT, PortMapping
from samewire.hcn.schema import NetworkType
from samewire.vfp.constants import Layer, Reason
from tests.support.netlab import Lab, Space, poll
from tests.support.traffic import TIMEOUT_S, IcmpSocket, Sniffer, ping, stream, tcp_pair, too_long
from tests.support.universe import packed
from tests.support.verify import Headers, quoted, verified
from tests.support.worlds import FAR, FAR_MTU, OUT, ROUTER, Underlay, bridged, node_address, overlay, own

pytestmark = [pytest.mark.root]

FAMILIES = (4, 6)
CLOSED = 7999
GATEWAY = {"nat": {4: "10.8.0.1", 6: "fd08::1"}, "overlay": {4: "10.1.0.1", 6: "fd01::1"}}
EXCEEDED = {4: 11, 6: 3}
UNREACHABLE = {4: (3, 3), 6: (1, 4)}
UNROUTED = {4: (3, 0), 6: (1, 0)}
TOO_BIG = {4: (3, 4), 6: (2, 0)}
ALLOW = [
    ACL(action=AclAction.ALLOW, direction=direction, priority=1)
    for direction in (AclDirection.IN, AclDirection.OUT)
]


class World:
    """Two nodes; pods behind NAT, on the underlay and in an overlay, without checksum offload."""

    def __init__(self, lab: Lab) -> None:
        self.underlay = Underlay(lab)
        self.one, self.two = self.underlay.node(11), self.underlay.node(12)
        nat = self.one.network(own(NetworkType.NAT, 8))
        here = self.one.network(overlay(self.one, 1, (self.two, 2, 4)))
        there = self.two.network(overlay(self.two, 2, (self.one, 1, 4)))
        self.pods = {
            "nat": self.one.pod(nat, "10.8.0.10", "fd08::10"),
            "l2bridge": self.one.pod(self.one.network(bridged()), "192.168.9.110", "fd09::110"),
            "overlay": self.one.pod(here, "10.1.0.10", "fd01::10", policies=[OutBoundNAT()]),
            "guarded": self.one.pod(here, "10.1.0.11", "fd01::11", policies=[OutBoundNAT(), *ALLOW]),
        }
        self.remote = {
            "plain": self.two.pod(there, "10.2.0.10", "fd02::10"),
            "guarded": self.two.pod(there, "10.2.0.11", "fd02::11", policies=ALLOW),
        }
        for pod in (*self.pods.values(), *self.remote.values()):
            pod.space.command("ethtool", "-K", "eth0", "tx", "off")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        yield World(lab)


def is_error(family: int, kinds: Callable[[int, int], bool]) -> Callable[[bytes], bool]:
    """Picks ICMP errors out of frames."""

    def wanted(frame: bytes) -> bool:
        if frame[12:14] != (b"\x08\0" if family == 4 else b"\x86\xdd"):
            return False
        at, protocol = (34, frame[23]) if family == 4 else (54, frame[20])
        return protocol == (1 if family == 4 else 58) and kinds(frame[at], frame[at + 1])

    return wanted


def the_error(sniffer: Sniffer, family: int, kind: tuple[int, int]) -> tuple[Headers, Headers]:
    """The next error of this kind, and what it quotes; its checksums are right."""
    headers = verified(sniffer.wait(is_error(family, lambda *found: found == kind)))
    return headers, quoted(headers)


def refused(opened: socket.socket) -> None:
    """The kernel has found the socket that an error is about."""
    opened.settimeout(TIMEOUT_S)
    with pytest.raises(ConnectionRefusedError):
        opened.recv(10)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["nat", "l2bridge", "overlay", "guarded"])
def test_port_unreachable_from_outside(world: World, kind: str, family: int) -> None:
    """The pod's socket fails, and the quoted packet is the one that it sent, bit by bit but for the TTL."""
    pod = world.pods[kind]
    with (
        Sniffer(pod.space, "eth0") as sniffer,
        pod.space.socket(*datagram(family)) as opened,
    ):
        opened.connect((OUT[family], CLOSED))
        opened.send(b"somebody there?")
        refused(opened)
        sent = verified(sniffer.wait(lambda frame: frame.endswith(b"somebody there?")))
        error, inner = the_error(sniffer, family, UNREACHABLE[family])
    assert error.source == packed(OUT[family])[: len(error.source)]
    assert error.destination == sent.source
    assert (inner.source, inner.destination, inner.l4) == (sent.source, sent.destination, sent.l4)


@pytest.mark.parametrize("options", [("hop-by-hop",), ("destination",), ("hop-by-hop", "destination")])
def test_errors_about_packets_with_extension_headers(world: World, options: tuple[str, ...]) -> None:
    """The ports of what is quoted stand behind them, of whole packets and of first fragments."""
    with world.pods["nat"].space.socket(*datagram(6)) as opened:
        for option in options:
            number = {"hop-by-hop": 54, "destination": 59}[option]  # IPV6_HOPOPTS, IPV6_DSTOPTS
            opened.setsockopt(socket.IPPROTO_IPV6, number, b"\0\0\x01\x04\0\0\0\0")
        opened.connect((OUT[6], CLOSED))
        for size in (10, 3000):
            opened.send(bytes(size))
            refused(opened)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("near", ["overlay", "guarded"])
@pytest.mark.parametrize("far", ["plain", "guarded"])
def test_port_unreachable_through_the_tunnel(world: World, near: str, far: str, family: int) -> None:
    pod, remote = world.pods[near], world.remote[far]
    with Sniffer(pod.space, "eth0") as sniffer, pod.space.socket(*datagram(family)) as opened:
        opened.connect((remote.address(family), CLOSED))
        opened.send(b"x")
        refused(opened)
        error, inner = the_error(sniffer, family, UNREACHABLE[family])
    assert error.source == packed(remote.address(family))[: len(error.source)]
    assert inner.source == error.destination


@pytest.mark.parametrize("family", FAMILIES)
def test_port_unreachable_from_a_pod(world: World, family: int) -> None:
    """Outside -> host port -> a pod that does not listen: the error comes from the node, about the host port."""
    pod, out, port = world.pods["nat"], world.underlay.out, 8300 + family
    flags = NatFlags.IPV6 if family == 6 else 0
    world.one.policies(pod, PortMapping(protocol=17, external_port=port, internal_port=CLOSED, flags=flags))
    to = node_address(world.one, family)
    with Sniffer(out, "eth0", outgoing=False) as sniffer, out.socket(*datagram(family)) as opened:
        opened.connect((to, port))
        opened.send(b"x")
        refused(opened)
        error, inner = the_error(sniffer, family, UNREACHABLE[family])
    world.one.policies(pod)
    assert error.source == inner.destination == packed(to)[: len(error.source)]
    assert inner.ports[1] == port


def datagram(family: int) -> tuple[int, int]:
    """Arguments of a UDP socket."""
    return (socket.AF_INET if family == 4 else socket.AF_INET6), socket.SOCK_DGRAM


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["nat", "l2bridge", "overlay", "guarded"])
def test_a_smaller_link_beyond(world: World, kind: str, family: int) -> None:
    """A router's "too big" reaches the pod: its kernel learns the path's MTU, and a stream goes through."""
    pod, far = world.pods[kind], world.underlay.far
    size = FAR_MTU - (28 if family == 4 else 48) + 1
    with pod.space.socket(*datagram(family)) as opened, Sniffer(pod.space, "eth0") as sniffer:
        level, option = (
            (socket.IPPROTO_IP, 10) if family == 4 else (socket.IPPROTO_IPV6, 23)
        )  # IP_MTU_DISCOVER, IPV6_MTU_DISCOVER
        opened.setsockopt(level, option, 2)  # IP_PMTUDISC_DO
        opened.connect((FAR[family], 9))
        opened.send(bytes(size))
        error, inner = the_error(sniffer, family, TOO_BIG[family])
        assert error.source == packed(ROUTER[family])[: len(error.source)]
        assert inner.source == error.destination == packed(pod.address(family))[: len(error.source)]
        poll("path MTU", lambda: too_long(opened, size))
    with tcp_pair(pod.space, far, FAR[family], 90) as (near, end):
        stream(near, end, bytes(200_000))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["nat", "l2bridge", "overlay", "guarded"])
def test_traceroute_by_echo(world: World, kind: str, family: int) -> None:
    """Hop by hop to the far host: the switch counts as a hop where it routes, and not where it bridges."""
    pod = world.pods[kind]
    hops = [ROUTER[family], FAR[family]]
    if kind != "l2bridge":
        hops.insert(0, GATEWAY["nat" if kind == "nat" else "overlay"][family])
    with IcmpSocket(pod.space, family) as opened:
        for ttl, hop in enumerate(hops, 1):
            opened.request(FAR[family], 4000 + ttl, ttl=ttl)
            if hop == FAR[family]:
                assert opened.reply(4000 + ttl).source == hop
                continue
            error = opened.receive(lambda m: m.type == EXCEEDED[family])
            assert error.source == hop
            inner = error.payload[20 if family == 4 else 40 :]
            assert inner[4:6] == (4000 + ttl).to_bytes(2, "big"), "the pod's own identifier"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["nat", "l2bridge", "overlay", "guarded"])
@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_traceroute_by_udp_and_tcp(world: World, protocol: str, kind: str, family: int) -> None:
    pod = world.pods[kind]
    hops = [ROUTER[family]]
    if kind != "l2bridge":
        hops.insert(0, GATEWAY["nat" if kind == "nat" else "overlay"][family])
    for ttl, hop in enumerate(hops, 1):
        with ExitStack() as stack:
            sniffer = stack.enter_context(Sniffer(pod.space, "eth0"))
            opened = stack.enter_context(probe(pod.space, protocol, family, ttl))
            opened.setblocking(False)
            try:
                opened.connect((FAR[family], 33434 + ttl))
                opened.send(b"probe")
            except BlockingIOError:
                pass
            error, inner = the_error(sniffer, family, (EXCEEDED[family], 0))
            assert error.source == packed(hop)[: len(error.source)]
            assert inner.source == packed(pod.address(family))[: len(inner.source)]
            assert inner.ports == (opened.getsockname()[1], 33434 + ttl)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_route_is_said_at_once(world: World, family: int) -> None:
    """As by any router: a client that has another address to try does not wait for minutes."""
    pod = world.one.pod(
        world.one.network(own(NetworkType.INTERNAL, 7)), f"10.7.0.{family}", f"fd07::{family}"
    )
    with pod.space.socket(datagram(family)[0], socket.SOCK_STREAM) as opened:
        opened.settimeout(TIMEOUT_S)
        with pytest.raises(OSError, match="unreachable") as refused:
            opened.connect((OUT[family], 80))
    assert refused.value.errno == errno.ENETUNREACH
    with IcmpSocket(pod.space, family) as opened:
        opened.request(OUT[family], 5000 + family)
        error = opened.receive(lambda m: (m.type, m.code) == UNROUTED[family])
    assert error.source == {4: "10.7.0.1", 6: "fd07::1"}[family]
    assert world.one.dropped(pod.port, Layer.ROUTE, Reason.NO_ROUTE) >= 2


def test_an_error_about_a_packet_with_all_options(world: World) -> None:
    """The quote has room for the longest header and the ports behind it: the sender's kernel finds the socket."""
    with probe(world.pods["nat"].space, "udp", 4, 1) as opened:
        opened.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x07\x27\x04" + bytes(37))  # record route
        opened.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
        opened.connect((FAR[4], 33434))
        opened.send(b"probe")
        poll(
            "it is told", lambda: opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EHOSTUNREACH
        )


def probe(space: Space, protocol: str, family: int, ttl: int) -> socket.socket:
    """A socket that sends with a TTL."""
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    opened = space.socket(socket.AF_INET if family == 4 else socket.AF_INET6, kind)
    if family == 4:
        opened.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
    else:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
    return opened


@pytest.mark.parametrize("family", FAMILIES)
def test_hops_of_the_overlay(world: World, family: int) -> None:
    """One hop between nodes: a TTL of one ends at the gateway, a TTL of two arrives with one left."""
    pod, remote = world.pods["overlay"], world.remote["plain"]
    with IcmpSocket(pod.space, family) as opened, Sniffer(remote.space, "eth0") as sniffer:
        opened.request(remote.address(family), 77, ttl=1)
        error = opened.receive(lambda m: m.type == EXCEEDED[family])
        assert error.source == GATEWAY["overlay"][family]
        opened.request(remote.address(family), 78, ttl=2)
        opened.reply(78)
        frames = [f for f in sniffer.frames() if f[12:14] in (b"\x08\0", b"\x86\xdd")]
        echo = [verified(f) for f in frames]
        assert [
            h.ttl
            for h in echo
            if h.destination == packed(remote.address(family))[: len(h.source)]
            and h.protocol in (1, 58)
            and h.l4[0] in (8, 128)
        ] == [1]
    same = world.pods["guarded"]
    with IcmpSocket(pod.space, family) as opened:
        opened.request(same.address(family), 79, ttl=1)  # a neighbour: no hop at all
        opened.reply(79)


@pytest.mark.parametrize("family", FAMILIES)
def test_time_exceeded_for_who_comes_in(world: World, family: int) -> None:
    """Outside -> host port with a TTL of one: the node is the hop that ends it."""
    pod, out, port = world.pods["nat"], world.underlay.out, 8400 + family
    flags = NatFlags.IPV6 if family == 6 else 0
    policies = [PortMapping(protocol=p, external_port=port, internal_port=80, flags=flags) for p in (6, 17)]
    world.one.policies(pod, *policies)
    to = node_address(world.one, family)
    out.command("ethtool", "-K", "eth0", "tx", "off")
    for protocol in ("udp", "tcp"):
        with Sniffer(out, "eth0", outgoing=False) as sniffer, probe(out, protocol, family, 1) as opened:
            opened.setblocking(False)
            try:
                opened.connect((to, port))
                opened.send(b"probe")
            except BlockingIOError:
                pass
            error, inner = the_error(sniffer, family, (EXCEEDED[family], 0))
            assert error.source == packed(to)[: len(error.source)]
            assert inner.ports[1] == port
    out.command("ethtool", "-K", "eth0", "tx", "on")
    world.one.policies(pod)


@pytest.mark.parametrize("family", FAMILIES)
def test_errors_about_nothing_are_the_nodes_own(world: World, family: int) -> None:
    """The node's own connection is refused by the outside: its error is not taken for a pod's."""
    with world.one.space.socket(*datagram(family)) as opened:
        opened.connect((OUT[family], CLOSED))
        opened.send(b"x")
        refused(opened)


def test_pods_left_alone(world: World) -> None:
    """After all of this everybody still answers, and no drop is a riddle."""
    for pod in world.pods.values():
        for family in FAMILIES:
            ping(pod.space, OUT[family])
    odd = {key: n for key, n in world.one.drops().items() if key[2] in (Reason.INTERNAL, Reason.MARTIAN)}
    assert not odd
    assert (Layer.ICMP, Reason.MALFORMED) not in {key[1:] for key in world.one.drops()}
