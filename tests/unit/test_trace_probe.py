"""Probes against scapy, as an independent reader of packets."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet

from samewire.errors import Invalid
from samewire.trace.model import TupleView
from samewire.trace.probe import ACK, PROTOCOLS, Probe, build, checksum, view_of
from samewire.vfp.address import parse_address
from samewire.vfp.simulate.packet import parse

ENDS = {4: ("10.244.1.5", "93.184.216.34"), 6: ("fd00:244:1::5", "2001:db8::34")}
CASES = [(name, family) for name in PROTOCOLS for family in (4, 6)]


def probe(name: str, family: int, port: int = 80) -> bytes:
    source, destination = ENDS[family]
    return build(
        Probe(
            source_mac=bytes.fromhex("0e2a0af40105"),
            destination_mac=bytes.fromhex("025357000001"),
            source=parse_address(source),
            destination=parse_address(destination),
            protocol=PROTOCOLS[name][family],
            source_port=40000,
            destination_port=0 if name == "icmp" else port,
        )
    )


def without_checksums(frame: bytes) -> Packet:
    """The frame as scapy reads it, with its checksums left for scapy to fill."""
    packet = Ether(frame)
    layer: Packet = packet
    while layer:
        for field in ("chksum", "cksum"):
            if field in layer.fields:
                delattr(layer, field)
        layer = layer.payload
    return packet


@pytest.mark.parametrize(("name", "family"), CASES)
def test_checksums_and_lengths_are_right(name: str, family: int) -> None:
    frame = probe(name, family)
    assert bytes(without_checksums(frame)) == frame
    packet = Ether(frame)
    assert (packet.src, packet.dst) == ("0e:2a:0a:f4:01:05", "02:53:57:00:00:01")
    ip = packet[IP] if family == 4 else packet[IPv6]
    assert (ip.src, ip.dst) == ENDS[family]
    assert (ip.len if family == 4 else ip.plen + 40) == len(frame) - 14
    assert (ip.ttl if family == 4 else ip.hlim) == 64


@pytest.mark.parametrize("family", [4, 6])
def test_what_is_in_them(family: int) -> None:
    tcp = Ether(probe("tcp", family))[TCP]
    assert (tcp.sport, tcp.dport, str(tcp.flags)) == (40000, 80, "S")
    udp = Ether(probe("udp", family))[UDP]
    assert (udp.sport, udp.dport) == (40000, 80)
    sctp = Ether(probe("sctp", family))[SCTP]
    assert (sctp.sport, sctp.dport, sctp.tag, sctp.payload.type, sctp.payload.len) == (40000, 80, 0, 1, 20)
    icmp = Ether(probe("icmp", family))[ICMP if family == 4 else ICMPv6EchoRequest]
    assert (icmp.type, icmp.id) == (8 if family == 4 else 128, 40000)


def test_flags_of_an_established_connection() -> None:
    source, destination = ENDS[4]
    frame = build(
        Probe(
            source_mac=bytes(6),
            destination_mac=bytes(6),
            source=parse_address(source),
            destination=parse_address(destination),
            protocol=6,
            source_port=1,
            destination_port=2,
            tcp_flags=ACK,
        )
    )
    assert str(Ether(frame)[TCP].flags) == "A"


@pytest.mark.parametrize(("name", "family"), CASES)
def test_read_back(name: str, family: int) -> None:
    assert view_of(parse(bytearray(probe(name, family)))) == TupleView(
        protocol="icmpv6" if (name, family) == ("icmp", 6) else name,
        source=ENDS[family][0],
        source_port=40000,
        destination=ENDS[family][1],
        destination_port=0 if name == "icmp" else 80,
    )


def test_families_do_not_mix() -> None:
    with pytest.raises(Invalid, match="cannot be reached"):
        build(
            Probe(
                source_mac=bytes(6),
                destination_mac=bytes(6),
                source=parse_address("10.0.0.1"),
                destination=parse_address("fd00::1"),
                protocol=6,
                source_port=1,
                destination_port=2,
            )
        )


def test_checksum_of_odd_lengths_and_zero() -> None:
    assert checksum(b"\x01") == 0xFEFF
    assert checksum(b"\xff\xff") == 0
    assert checksum(b"\xff\xff\x00\x01\xff\xff") == 0xFFFE


def test_a_udp_checksum_is_never_zero() -> None:
    """Zero would mean that there is none; over 65,536 ports one of them must come out as zero."""
    for port in range(65536):
        frame = probe("udp", 4, port)
        assert frame[40:42] != b"\0\0"
        if frame[40:42] == b"\xff\xff":
            return
    pytest.fail("no port gave the interesting checksum")
