"""Packets and bytes of single flows: as many as really came, in each direction, over every kind of way."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import msgspec
import pytest

from samewire.hcn.policies import ACL, AclAction, AclDirection, NatFlags, OutBoundNAT, PortMapping
from samewire.hcn.schema import NetworkType
from samewire.kernel.bpf import SkbContext
from samewire.trace.flows import flow_rows
from samewire.trace.model import FlowEnd, FlowRow
from samewire.trace.names import Names
from samewire.vfp.constants import SCOPE_ANY, Counter, FlowFlag
from samewire.vfp.tables import FlowCount, FlowKey, Id, Port
from tests.support.frames import fill, ip_packet, pseudo
from tests.support.lockstep import together
from tests.support.netlab import Lab, Space, poll
from tests.support.node_rig import Node, Pod
from tests.support.services import Balancer, Target
from tests.support.switch_rig import now_tick
from tests.support.traffic import TIMEOUT_S, bound, family_of, stream, tcp_pair
from tests.support.universe import packed
from tests.support.worlds import OUT, Underlay, node_address, overlay, own

pytestmark = pytest.mark.root

FAMILIES: Final = (4, 6)
IP_HEADER: Final = {4: 20, 6: 40}
VIP: Final = {4: "10.96.0.10", 6: "fd96::10"}
SERVER_PORT: Final = 8080
_TCP_INFO: Final = 216  # up to tcpi_bytes_retrans
_ALLOW: Final = tuple(
    ACL(action=AclAction.ALLOW, direction=direction, priority=10) for direction in AclDirection
)


class Way(msgspec.Struct, frozen=True):
    """From a client to a server, and the nodes whose flow tables have the connection."""

    client: Space
    server: Space
    to: str
    at: str
    nodes: tuple[Node, ...]
    port: int = SERVER_PORT


class World:
    """Two nodes that count, an overlay network, pods with rules, translation and a host port, and a service."""

    def __init__(self, lab: Lab) -> None:
        self.underlay = Underlay(lab)
        self.one, self.two = (self.underlay.node(number, counted=True) for number in (11, 12))
        near = self.one.network(overlay(self.one, 1, (self.two, 2, 4)))
        far = self.two.network(overlay(self.two, 2, (self.one, 1, 4)))
        ports = tuple(
            PortMapping(protocol=protocol, external_port=8081, internal_port=SERVER_PORT, flags=flags)
            for protocol in (6, 17)
            for flags in (0, NatFlags.IPV6)
        )
        self.a = self.one.pod(near, "10.1.0.10", "fd01::10", policies=[*_ALLOW, OutBoundNAT()])
        self.b = self.one.pod(near, "10.1.0.11", "fd01::11", policies=[*_ALLOW, *ports])
        self.c = self.two.pod(far, "10.2.0.12", "fd02::12", policies=_ALLOW)
        port = self.one.table("sw_ports")[Id(self.a.port)]
        assert isinstance(port, Port)
        self.scope = port.scope
        for space in (self.a.space, self.b.space, self.c.space, self.underlay.out):
            space.set("ipv4", "tcp_sack", value=0)  # else an ACK is longer when a segment is late

    def way(self, name: str, family: int) -> Way:
        """One of `WAYS`."""
        a, b, c, out = self.a, self.b, self.c, self.underlay.out
        to_b, to_c = b.address(family), c.address(family)
        match name:
            case "one node":
                return Way(a.space, b.space, to_b, to_b, (self.one,))
            case "tunnel":
                return Way(a.space, c.space, to_c, to_c, (self.one, self.two))
            case "outbound":
                return Way(a.space, out, OUT[family], OUT[family], (self.one,))
            case "host port":
                return Way(out, b.space, node_address(self.one, family), to_b, (self.one,), 8081)
            case "service":
                return Way(a.space, b.space, VIP[family], to_b, (self.one,), 80)
            case _:
                return Way(a.space, c.space, VIP[family], to_c, (self.one, self.two), 80)


WAYS: Final = ("one node", "tunnel", "outbound", "host port", "service", "service on the other node")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        yield World(lab)


@contextmanager
def balanced(world: World, way: Way, protocol: int) -> Iterator[None]:
    """With the service that a way needs, if it needs one."""
    if way.to not in VIP.values():
        yield
        return
    service = Balancer(world.one, Target(way.at, SERVER_PORT, world.scope), protocol=protocol)
    service.vip(way.to, way.port, SCOPE_ANY)
    try:
        yield
    finally:
        service.close()


def rows(node: Node) -> list[FlowRow]:
    """The node's connections as the tools show them."""
    names = ("sw_config", "sw_flows", "sw_flow_counts")
    tables = {name: node.table(name) for name in names}
    return list(flow_rows(tables, Names((), lambda ifindex: ""), now_tick()))


def ends_of(node: Node, protocol: str, *ports: int) -> tuple[FlowEnd, FlowEnd]:
    """What both ends of a connection have sent; named by one of its ports as the initiator, or the server, sees it."""
    (row,) = [
        row
        for row in rows(node)
        if row.ends.protocol == protocol
        and {row.ends.source_port, row.translated.source_port if row.translated else 0} & set(ports)
    ]
    return row.initiator, row.target


def counted(end: FlowEnd) -> tuple[int | None, int | None]:
    return end.packets, end.bytes


@pytest.mark.kernelcore
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", WAYS)
def test_datagrams(world: World, name: str, family: int) -> None:
    """The first of them, too; and one direction does not count for the other."""
    way = world.way(name, family)
    headers = IP_HEADER[family] + 8
    with (
        balanced(world, way, 17),
        bound(way.server, socket.SOCK_DGRAM, way.at, SERVER_PORT) as server,
        way.client.socket(family_of(way.to), socket.SOCK_DGRAM) as client,
    ):
        client.settimeout(TIMEOUT_S)
        client.connect((way.to, way.port))
        source = client.getsockname()[1]
        for number in range(1, 8):
            client.send(bytes(100 + number))
            _, sender = server.recvfrom(1000)
        for node in way.nodes:
            there, back = ends_of(node, "udp", source, sender[1])
            assert counted(there) == (7, 7 * headers + sum(100 + n for n in range(1, 8)))
            assert counted(back) == (0, 0)
        for _ in range(3):
            server.sendto(bytes(50), sender)
            client.recv(1000)
        for node in way.nodes:
            there, back = ends_of(node, "udp", source, sender[1])
            assert there.packets == 7
            assert counted(back) == (3, 3 * (headers + 50))


def sent(opened: socket.socket) -> tuple[int, int]:
    """Segments and bytes that TCP itself has sent on a connection (linux/tcp.h, struct tcp_info)."""
    info = opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO)
    (segments,) = struct.unpack_from("=I", info, 136)
    (data,) = struct.unpack_from("=Q", info, 200)
    return segments, data


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", WAYS)
def test_a_stream(world: World, name: str, family: int) -> None:
    """Packets as they would be on the wire, though offloads join them here: as many as TCP says it has sent."""
    way = world.way(name, family)
    syn, later = IP_HEADER[family] + 40, IP_HEADER[family] + 32  # with all options; with timestamps

    def agrees(node: Node) -> bool:
        there, back = ends_of(node, "tcp", near.getsockname()[1], far.getpeername()[1])
        segments, data = sent(near)
        answers, answered = sent(far)  # TCP has forgotten the SYN-ACK, which was no connection's yet
        return counted(there) == (segments, syn + (segments - 1) * later + data) and counted(back) == (
            answers + 1,
            syn + answers * later + answered,
        )

    with (
        balanced(world, way, 6),
        tcp_pair(way.client, way.server, way.to, way.port, at=(way.at, SERVER_PORT)) as (near, far),
    ):
        stream(near, far, bytes(200_000))
        stream(far, near, bytes(50_000))
        assert sent(near)[0] > 100
        for node in way.nodes:
            poll(f"the counts of {name}", partial(agrees, node))


def test_the_nodes_own_connection_on_a_port_of_the_pool(world: World) -> None:
    with tcp_pair(world.one.space, world.underlay.out, OUT[4], 8083, source=50007) as (near, far):
        stream(near, far, bytes(5000))
        poll("its packets", lambda: ends_of(world.one, "tcp", 50007)[0].packets == sent(near)[0])
        poll("its answers", lambda: ends_of(world.one, "tcp", 50007)[1].packets == sent(far)[0] + 1)


def test_a_flow_that_is_judged_again_goes_on_counting(world: World) -> None:
    node, pod, out = world.one, world.a, world.underlay.out
    with (
        bound(out, socket.SOCK_DGRAM, OUT[4], 8084) as server,
        pod.space.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        client.connect((OUT[4], 8084))
        source = client.getsockname()[1]
        for number in range(6):
            if number == 3:
                redecided = node.counter(Counter.FLOW_REDECIDED)
                node.policies(pod, *_ALLOW, OutBoundNAT(exceptions=("203.0.113.0/24",)))
            client.send(bytes(10))
            _, sender = server.recvfrom(100)
            server.sendto(b"", sender)
        assert node.counter(Counter.FLOW_REDECIDED) > redecided
        poll("the answers", lambda: ends_of(node, "udp", source)[1].packets == 6)
        assert counted(ends_of(node, "udp", source)[0]) == (6, 6 * 38)
    node.policies(pod, *_ALLOW, OutBoundNAT())


# --- the program alone: two CPUs at once, slots used again ----------------------------------------------------------


def datagram(pod: Pod, source: int, destination: str = OUT[4]) -> bytes:
    """A frame of the pod: 12 bytes of UDP in 32 of IPv4."""
    ends = packed(pod.ip), packed(destination)
    raw = struct.pack("!HHHH", source, 53, 12, 0) + b"data"
    raw = fill(raw, 6, pseudo(4, *ends, 17, len(raw)) + raw)
    return pod.link.host_mac + pod.mac + b"\x08\0" + ip_packet(4, *ends, 17, raw, 64, 0, 1)


def run(node: Node, pod: Pod, frame: bytes) -> int:
    program = node.program("sw_ingress")
    return node.space.run(lambda: program.test_run(frame, SkbContext(ifindex=pod.port))).retval


@pytest.mark.kernelcore
def test_two_cpus_at_once_lose_nothing(world: World) -> None:
    """Packets of one direction of one flow; and first packets, of which one CPU's flow is adopted by the other."""
    with Lab() as lab:
        node = Underlay(lab).node(31, counted=True, nat_ports=(50000, 51000))
        pod = node.pod(node.network(own(NetworkType.NAT, 8)), "10.8.0.10", "fd08::10")
        frame, rounds = datagram(pod, 7), 3000
        together(lambda who, i: run(node, pod, frame), rounds)
        assert counted(ends_of(node, "udp", 7)[0]) == (2 * rounds, 2 * rounds * 32)
        frames = [datagram(pod, source) for source in range(1000, 1400)]
        together(lambda who, i: run(node, pod, frames[i]), len(frames))
        assert {row.initiator.packets for row in rows(node) if row.ends.source_port >= 1000} == {2}
        assert len(rows(node)) == 401


@pytest.mark.kernelcore
def test_a_slot_that_is_used_again_starts_at_zero(world: World) -> None:
    with Lab() as lab:
        node = Underlay(lab).node(32, counted=True, flows=16, nat_ports=(50000, 51000))
        pod = node.pod(node.network(own(NetworkType.NAT, 8)), "10.8.0.10", "fd08::10")
        used: list[int] = []
        for source in range(1000, 1100):
            for _ in range(3):
                run(node, pod, datagram(pod, source))
            assert counted(ends_of(node, "udp", source)[0]) == (3, 96)
            for key, flow in node.flow_table().items():
                if flow.flags & FlowFlag.SECOND:
                    assert node.table("sw_flow_counts")[Id(flow.slot)] == FlowCount(0, 0)
                used.append(flow.slot)
                node.map("sw_flows").delete(key.pack())
                node.map("sw_flow_slots").update(Id(flow.slot).pack(), bytes(FlowKey.size))
        assert len(set(used)) < len(used)


def test_padding_is_no_byte_of_the_packet(world: World) -> None:
    """A NIC fills short frames up to 60 bytes; and a header that promises more than comes is not believed."""
    with Lab() as lab:
        node = Underlay(lab).node(34, counted=True)
        pod = node.pod(node.network(own(NetworkType.NAT, 8)), "10.8.0.10", "fd08::10")
        frame = datagram(pod, 7)
        run(node, pod, frame.ljust(60, b"\0"))
        assert counted(ends_of(node, "udp", 7)[0]) == (1, 32)
        run(node, pod, frame[:16] + b"\xff\xff" + frame[18:])
        assert counted(ends_of(node, "udp", 7)[0]) == (2, 64)


@pytest.mark.kernelcore
@pytest.mark.parametrize(("said", "packets"), [(0, 3), (3, 3), (1, 1)])
def test_packets_that_a_nic_has_joined(world: World, said: int, packets: int) -> None:
    """A virtual machine's NIC says how long they were, and not how many; the kernel asks that itself, too."""
    with Lab() as lab:
        node = Underlay(lab).node(35, counted=True)
        pod = node.pod(node.network(own(NetworkType.NAT, 8)), "10.8.0.10", "fd08::10")
        ends = packed(pod.ip), packed(OUT[4])
        raw = struct.pack("!HHHH", 7, 53, 8 + 250, 0) + bytes(250)
        frame = pod.link.host_mac + pod.mac + b"\x08\0" + ip_packet(4, *ends, 17, raw, 64, 0, 1)
        context = SkbContext(ifindex=pod.port, gso_segs=said, gso_size=100)
        program = node.program("sw_ingress")
        node.space.run(lambda: program.test_run(frame, context))
        assert counted(ends_of(node, "udp", 7)[0]) == (packets, packets * 28 + 250)


def test_a_node_that_does_not_count_has_no_memory_for_it(world: World) -> None:
    with Lab() as lab:
        node = Underlay(lab).node(33)
        pod = node.pod(node.network(own(NetworkType.NAT, 8)), "10.8.0.10", "fd08::10")
        run(node, pod, datagram(pod, 7))
        assert node.map("sw_flow_counts").max_entries == 1
        assert node.table("sw_flow_counts") == {Id(0): FlowCount(0, 0)}
        assert ends_of(node, "udp", 7)[0].packets is None
