"""SCTP through services and mapped ports, with raw packets: ports and addresses change, and the CRC32c stays right.

The kernel that tests run on may have no SCTP: the packets are made and checked here.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Final

import pytest

from samewire.hcn.policies import NatFlags, PortMapping
from samewire.vfp.address import parse_address
from samewire.vfp.constants import (
    SCOPE_ANY,
    SCOPE_HOST,
    SCOPE_OUTSIDE,
    SCOPE_UPLINK,
    Counter,
    Layer,
    Reason,
    ServiceFlag,
)
from samewire.vfp.simulate.packet import SCTP, Packet, parse
from samewire.vfp.tables import Id, Port
from tests.support.frames import ip_packet
from tests.support.netlab import Lab, Space
from tests.support.node_rig import Pod
from tests.support.sctp import WAIT_S, RawSctp, crc32c, segment
from tests.support.services import Balancer, Target
from tests.support.traffic import Sniffer, inject
from tests.support.worlds import OUT, Underlay, bridged, node_address, overlay

pytestmark = [pytest.mark.root]

FAMILIES = (4, 6)
VIP: Final = {4: "10.96.0.10", 6: "fd96::10"}
GATEWAY: Final = {4: "10.1.0.1", 6: "fd01::1"}
LOOPBACK: Final = {4: "127.0.0.1", 6: "::1"}
SOURCE_VIP: Final = {4: "10.1.0.2", 6: "fd01::2"}
INTERNAL, CLIENT_PORT, HOST_PORT = 8080, 41000, 13868


def test_the_reference_is_right() -> None:
    assert crc32c(b"123456789") == 0xE3069283


def packet(family: int, ends: tuple[str, int, str, int], body: bytes) -> bytes:
    """An IP packet with an SCTP packet whose checksum is right."""
    source, source_port, destination, destination_port = ends
    addresses = parse_address(source).packed, parse_address(destination).packed
    return ip_packet(family, *addresses, SCTP, segment(source_port, destination_port, body), 64, 0, 0)


class World:
    """A node with a client and a server, and another node with a server; all by raw frames."""

    def __init__(self, lab: Lab) -> None:
        self.underlay = Underlay(lab)
        self.node, self.other = self.underlay.node(11), self.underlay.node(12)
        near = self.node.network(overlay(self.node, 1, (self.other, 2, 4)))
        far = self.other.network(overlay(self.other, 2, (self.node, 1, 4)))
        self.client = self.node.pod(near, "10.1.0.10", "fd01::10")
        self.local = self.node.pod(near, "10.1.0.11", "fd01::11")
        self.remote = self.other.pod(far, "10.2.0.12", "fd02::12")
        mappings = [
            PortMapping(protocol=SCTP, external_port=HOST_PORT, internal_port=INTERNAL, flags=flags)
            for flags in (0, NatFlags.IPV6)
        ]
        self.mapped = self.node.pod(near, "10.1.0.13", "fd01::13", policies=mappings)
        port = self.node.table("sw_ports")[Id(self.client.port)]
        assert isinstance(port, Port)
        self.port = port
        self.node.attach_loopback()

    def service(self, pod: Pod, family: int, **fields: int | str) -> Balancer:
        """A service with this pod as its backend."""
        target = Target(pod.address(family), INTERNAL, self.port.scope)
        return Balancer(self.node, target, protocol=SCTP, source=SOURCE_VIP[family], **fields)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        yield World(lab)


def _ethernet(family: int, to: bytes, source: bytes, body: bytes) -> bytes:
    return to + source + (b"\x08\0" if family == 4 else b"\x86\xdd") + body


def _received(sniffer: Sniffer, port: int) -> Packet:
    """The SCTP packet to a port that arrives, its checksum checked."""

    def wanted(frame: bytes) -> bool:
        if frame[12:14] not in (b"\x08\0", b"\x86\xdd"):
            return False
        found = parse(bytearray(frame))
        return found.protocol == SCTP and found.tuple.destination_port == port

    found = parse(bytearray(sniffer.wait(wanted)))
    head = bytes(found.data[found.l4 :])
    if found.family == 4:
        head = head[: int.from_bytes(found.data[16:18], "big") - 20]
    assert crc32c(head[:8] + bytes(4) + head[12:]) == int.from_bytes(head[8:12], "little")
    return found


def _converse(
    near: tuple[Space, bytes, bytes], server: Pod, family: int, client: str, to: str, port: int
) -> str:
    """One packet there and one back; who the server saw."""
    space, own_mac, gateway_mac = near
    body = bytes(range(1, 78))
    with Sniffer(server.space, "eth0", outgoing=False) as sniffer:
        ends = client, CLIENT_PORT, to, port
        inject(space, "eth0", _ethernet(family, gateway_mac, own_mac, packet(family, ends, body)))
        there = _received(sniffer, INTERNAL)
    seen = there.tuple
    size = 4 if family == 4 else 16
    assert seen.destination == parse_address(server.address(family)).packed
    with Sniffer(space, "eth0", outgoing=False) as sniffer:
        peer = str(ip_address(seen.source[:size]))
        answer = packet(family, (server.address(family), INTERNAL, peer, seen.source_port), body[::-1])
        back = bytes(there.data[6:12])
        inject(server.space, "eth0", _ethernet(family, back, server.mac, answer))
        here = _received(sniffer, CLIENT_PORT)
    assert here.tuple.source == parse_address(to).packed
    assert here.tuple.source_port == port
    return peer


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("server", ["local", "remote"])
def test_from_a_pod(world: World, server: str, family: int) -> None:
    pod: Pod = getattr(world, server)
    service = world.service(pod, family)
    service.vip(VIP[family], 80, SCOPE_ANY)
    near = world.client.space, world.client.mac, world.port.gateway_mac
    client = world.client.address(family)
    assert _converse(near, pod, family, client, VIP[family], 80) == client
    service.close()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", ["service", "host port"])
def test_a_pod_to_itself(world: World, way: str, family: int) -> None:
    """It sees its gateway, and a port of the pool."""
    pod = world.mapped
    to, port = (VIP[family], 80) if way == "service" else (node_address(world.node, family), HOST_PORT)
    service = world.service(pod, family)
    service.vip(VIP[family], 80, SCOPE_ANY)
    near = pod.space, pod.mac, world.port.gateway_mac
    seen = _converse(near, pod, family, pod.address(family), to, port)
    assert seen == ("10.1.0.1" if family == 4 else "fd01::1")
    service.close()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("server", ["local", "remote"])
def test_node_port_from_outside(world: World, server: str, family: int) -> None:
    """A remote backend sees the SourceVIP, and a port of the pool."""
    pod: Pod = getattr(world, server)
    service = world.service(pod, family)
    service.vip("", 30080, SCOPE_OUTSIDE, family=family)
    out = world.underlay.out
    # The node answers by neighbour discovery: it must know the client.
    out.command("ping", "-c", "1", "-W", "20", node_address(world.node, family))
    near = out, out.mac("eth0"), world.node.facts.uplink_mac
    seen = _converse(near, pod, family, OUT[family], node_address(world.node, family), 30080)
    assert seen == (OUT[family] if server == "local" else SOURCE_VIP[family])
    service.close()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("server", ["local", "remote"])
def test_from_the_node(world: World, server: str, family: int) -> None:
    """By the route to everywhere, as no hook translates its sockets; what is for no service goes on that way."""
    pod: Pod = getattr(world, server)
    service = world.service(pod, family)
    service.vip(VIP[family], 80, SCOPE_HOST)
    space, own = world.node.space.name, node_address(world.node, family)
    body = bytes(range(1, 78))
    with RawSctp(space, family) as client, RawSctp(pod.space.name, family) as backend:
        client.send(CLIENT_PORT, VIP[family], 80, body)
        seen = backend.receive(INTERNAL)
        assert (seen.body, seen.source[0]) == (body, own if server == "local" else SOURCE_VIP[family])
        backend.send(INTERNAL, *seen.source, body[::-1])
        back = client.receive(CLIENT_PORT)
        assert (back.source, back.body) == ((VIP[family], 80), body[::-1])
        with Sniffer(world.underlay.out, "eth0", outgoing=False) as sniffer:
            client.send(CLIENT_PORT, OUT[family], 81, body)
            assert _received(sniffer, 81).tuple.source == parse_address(own).packed
    service.close()


def _exchange(client: RawSctp, backend: RawSctp, to: tuple[str, int], port: int = INTERNAL) -> str:
    """One packet there and one back; who the backend saw."""
    body = bytes(range(1, 78))
    client.send(CLIENT_PORT, *to, body)
    seen = backend.receive(port)
    assert seen.body == body
    backend.send(port, *seen.source, body[::-1])
    back = client.receive(CLIENT_PORT)
    assert (back.source, back.body) == (to, body[::-1])
    return seen.source[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("server", ["local", "remote"])
def test_node_port_from_the_node(world: World, server: str, family: int) -> None:
    """What it sends to itself leaves by no uplink: the program on lo hands it over, and answers come from the node."""
    pod: Pod = getattr(world, server)
    service = world.service(pod, family)
    service.vip("", 30080, SCOPE_ANY, family=family)
    space, own = world.node.space.name, node_address(world.node, family)
    with RawSctp(space, family) as client, RawSctp(pod.space.name, family) as backend:
        seen = _exchange(client, backend, (own, 30080))
        assert seen == (own if server == "local" else SOURCE_VIP[family])
        seen = _exchange(client, backend, (GATEWAY[family], 30080))
        assert seen == (GATEWAY[family] if server == "local" else SOURCE_VIP[family])
    service.close()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("server", ["local", "remote"])
def test_node_port_from_the_node_by_loopback(world: World, server: str, family: int) -> None:
    """A pod cannot answer 127.0.0.1: it sees an address of the node's in its network."""
    pod: Pod = getattr(world, server)
    service = world.service(pod, family)
    service.vip("", 30080, SCOPE_ANY, family=family)
    with RawSctp(world.node.space.name, family) as client, RawSctp(pod.space.name, family) as backend:
        seen = _exchange(client, backend, (LOOPBACK[family], 30080))
        assert seen == (GATEWAY[family] if server == "local" else SOURCE_VIP[family])
    service.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_mapped_port_from_the_node(world: World, family: int) -> None:
    own = node_address(world.node, family)
    with RawSctp(world.node.space.name, family) as client, RawSctp(world.mapped.space.name, family) as pod:
        assert _exchange(client, pod, (own, HOST_PORT)) == own
        assert _exchange(client, pod, (LOOPBACK[family], HOST_PORT)) == GATEWAY[family]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", ["node port", "cluster IP"])
def test_the_node_to_a_process_of_its_own(world: World, way: str, family: int) -> None:
    """A backend with the node's network: asked by its Service's name, it answers in that name."""
    own = node_address(world.node, family)
    service = Balancer(world.node, Target(own, INTERNAL, SCOPE_UPLINK), protocol=SCTP)
    service.vip("", 30080, SCOPE_ANY, family=family)
    service.vip(VIP[family], 30080, SCOPE_ANY)
    node = world.node.space.name
    with RawSctp(node, family) as client, RawSctp(node, family, own) as backend:
        to = own if way == "node port" else VIP[family]
        assert _exchange(client, backend, (to, 30080)) == own
        if way == "node port":
            assert _exchange(client, backend, (LOOPBACK[family], 30080)) == LOOPBACK[family]
    service.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_lo_keeps_what_is_for_nobody_else(world: World, family: int) -> None:
    """Other ports, and other protocols, are the node's own."""
    own, node = node_address(world.node, family), world.node
    first = node.counter(Counter.FIRST_PACKETS)
    with RawSctp(node.space.name, family) as client:
        client.send(CLIENT_PORT, own, 30081, b"to the node")
        assert client.receive(30081).body == b"to the node"
    node.space.command("ping", "-c", "1", "-W", "20", own)
    assert node.counter(Counter.FIRST_PACKETS) == first


@pytest.mark.parametrize("family", FAMILIES)
def test_lo_keeps_what_is_in_no_table(world: World, family: int) -> None:
    """Ports of services and endpoints at addresses that only the kernel knows: a process there has them."""
    node = world.node.space
    service = world.service(world.local, family)
    service.vip("", 30080, SCOPE_ANY, family=family)
    shown = node.ip("-6", "-brief", "address", "show", "dev", "eth0", "scope", "link")
    link_local = shown.split()[2].partition("/")[0]
    node.ip("route", "replace", "local", "198.51.100.0/24", "dev", "lo")
    for to in ("198.51.100.7",) if family == 4 else (f"{link_local}%eth0",):
        for port in (30080, HOST_PORT):
            with RawSctp(node.name, family) as client:
                client.send(CLIENT_PORT, to, port, b"to the node")
                assert client.receive(port).body == b"to the node"
    service.close()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("server", ["pod", "process"])
def test_from_the_node_where_pods_are_on_the_underlay(server: str, family: int) -> None:
    """samewire0 has no address there, and the gateway is another machine. All strict about ways back."""
    with Lab() as lab:
        node = Underlay(lab).node(11)
        node.space.set("ipv4", "conf", "all", "rp_filter", value=1)
        pod = node.pod(node.network(bridged()), "192.168.9.130", "fd09::130")
        node.attach_loopback()
        own = node_address(node, family)
        where, space, bound = (
            (own, node.space, own) if server == "process" else (pod.address(family), pod.space, "")
        )
        service = Balancer(node, Target(where, INTERNAL, SCOPE_UPLINK), protocol=SCTP)
        service.vip("", 30080, SCOPE_ANY, family=family)
        service.vip(VIP[family], 80, SCOPE_ANY)
        with RawSctp(node.space.name, family) as client, RawSctp(space.name, family, bound) as backend:
            assert _exchange(client, backend, (own, 30080)) == own
            assert _exchange(client, backend, (VIP[family], 80)) == own
            seen = _exchange(client, backend, (LOOPBACK[family], 30080))
            assert seen == (LOOPBACK[family] if server == "process" else own)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_endpoints_from_the_node(world: World, family: int) -> None:
    """The node is told, from its own address."""
    service = Balancer(world.node, protocol=SCTP, flags=int(ServiceFlag.REJECT))
    service.vip("", 30082, SCOPE_ANY, family=family)
    own = node_address(world.node, family)
    before = world.node.counter(Counter.LB_REFUSED)
    with Sniffer(world.node.space, "lo", outgoing=False) as sniffer:
        with RawSctp(world.node.space.name, family) as client:
            client.send(CLIENT_PORT, own, 30082, bytes(20))
        at, kind = (34, b"\3\3") if family == 4 else (54, b"\1\4")
        sniffer.wait(lambda got: got[at : at + 2] == kind)
    assert world.node.counter(Counter.LB_REFUSED) == before + 1
    service.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_node_hears_errors_about_a_vip(world: World, family: int) -> None:
    """That nobody is there, and that a packet is too long for the tunnel: its stack takes them."""
    refused, at = (b"\3\3", 20) if family == 4 else (b"\1\4", 0)
    too_big = b"\3\4" if family == 4 else b"\2\0"
    nobody = Balancer(world.node, protocol=SCTP, flags=int(ServiceFlag.REJECT))
    nobody.vip(VIP[family], 83, SCOPE_ANY)
    somebody = world.service(world.remote, family)
    somebody.vip(VIP[family], 84, SCOPE_ANY)
    kind, protocol = (socket.AF_INET, 1) if family == 4 else (socket.AF_INET6, 58)
    with (
        world.node.space.socket(kind, socket.SOCK_RAW, protocol) as errors,
        RawSctp(world.node.space.name, family) as client,
    ):
        errors.settimeout(WAIT_S)

        def hears(error: bytes) -> None:
            while errors.recv(2000)[at : at + 2] != error:
                pass

        client.send(CLIENT_PORT, VIP[family], 83, bytes(20))
        hears(refused)
        client.send(CLIENT_PORT, VIP[family], 84, bytes(1440))
        hears(too_big)
    nobody.close()
    somebody.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_node_hears_errors_where_pods_are_on_the_underlay(family: int) -> None:
    """samewire0 has no address there, and takes nothing from whom another route leads to."""
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with Lab() as lab:
        node = Underlay(lab).node(11)
        node.network(bridged())
        node.attach_loopback()
        nobody = Balancer(node, protocol=SCTP, flags=int(ServiceFlag.REJECT))
        nobody.vip(VIP[family], 83, SCOPE_ANY)
        with node.space.socket(kind, socket.SOCK_RAW, SCTP) as client:
            client.settimeout(WAIT_S)
            client.connect((VIP[family], 0))
            client.send(segment(CLIENT_PORT, 83, bytes(20)))
            with pytest.raises(ConnectionRefusedError):
                client.recv(2000)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_association_stays_with_its_backend_while_that_is_there(world: World, family: int) -> None:
    """Whoever comes; and it is with another one when that goes, who knows nothing of it and says so."""
    first, second = (
        Target(pod.address(family), INTERNAL, world.port.scope) for pod in (world.local, world.remote)
    )
    service = Balancer(world.node, first, protocol=SCTP)
    service.vip(VIP[family], 80, SCOPE_ANY)
    near, client = (
        (world.client.space, world.client.mac, world.port.gateway_mac),
        world.client.address(family),
    )

    def talk(server: Pod) -> None:
        assert _converse(near, server, family, client, VIP[family], 80) == client

    talk(world.local)
    service.add(second)
    service.drain(first)
    talk(world.local)
    service.remove(first)
    talk(world.remote)
    service.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_mapped_port(world: World, family: int) -> None:
    out, to = world.underlay.out, node_address(world.node, family)
    out.command("ping", "-c", "1", "-W", "20", to)
    near = out, out.mac("eth0"), world.node.facts.uplink_mac
    assert _converse(near, world.mapped, family, OUT[family], to, HOST_PORT) == OUT[family]
    near = world.client.space, world.client.mac, world.port.gateway_mac
    client = world.client.address(family)
    assert _converse(near, world.mapped, family, client, to, HOST_PORT) == client


@pytest.mark.parametrize("family", FAMILIES)
def test_refused(world: World, family: int) -> None:
    """Port unreachable, as for every protocol but TCP."""
    service = Balancer(world.node, protocol=SCTP, flags=int(ServiceFlag.REJECT))
    service.vip(VIP[family], 81, SCOPE_ANY)
    ends = world.client.address(family), CLIENT_PORT, VIP[family], 81
    frame = _ethernet(family, world.port.gateway_mac, world.client.mac, packet(family, ends, bytes(20)))
    with Sniffer(world.client.space, "eth0", outgoing=False) as sniffer:
        inject(world.client.space, "eth0", frame)
        at, kind = (34, b"\3\3") if family == 4 else (54, b"\1\4")
        sniffer.wait(lambda got: got[at : at + 2] == kind)
    assert world.node.dropped(world.client.port, Layer.LB, Reason.NO_BACKEND)
    service.close()
