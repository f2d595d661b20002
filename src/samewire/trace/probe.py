"""Packets to trace with: built from scratch, with right checksums, and read back after the switch. Pure."""

from __future__ import annotations

import struct
from typing import Final

from msgspec import Struct

from samewire.errors import Invalid
from samewire.trace.model import TupleView
from samewire.vfp.address import IPV4, Address, address_text
from samewire.vfp.protocols import protocol_text
from samewire.vfp.simulate import sctp
from samewire.vfp.simulate.packet import ICMP, ICMPV6, SCTP, TCP, UDP, Packet, Tuple
from samewire.vfp.tables import TraceStep

PROTOCOLS: Final = {
    "tcp": {4: TCP, 6: TCP},
    "udp": {4: UDP, 6: UDP},
    "sctp": {4: SCTP, 6: SCTP},
    "icmp": {4: ICMP, 6: ICMPV6},
}
SYN: Final = 0x02
ACK: Final = 0x10
TTL: Final = 64

_PAYLOAD: Final = b"samewire trace\n\0"
_ETHERTYPE: Final = {4: b"\x08\x00", 6: b"\x86\xdd"}
_ECHO_REQUEST: Final = {ICMP: 8, ICMPV6: 128}
_CHECKSUM_AT: Final = {TCP: 16, UDP: 6, ICMP: 2, ICMPV6: 2}


class Probe(Struct, frozen=True, kw_only=True):
    """A packet to build. MACs are 6 bytes, ``protocol`` is IP's number; ICMP: ``source_port`` is the identifier."""

    source_mac: bytes
    destination_mac: bytes
    source: Address
    destination: Address
    protocol: int
    source_port: int
    destination_port: int
    tcp_flags: int = SYN


def build(probe: Probe) -> bytes:
    """The Ethernet frame of a probe. Raises ``Invalid`` when its addresses are of two families."""
    if probe.source.family != probe.destination.family:
        raise Invalid("to", f"{probe.destination} cannot be reached from {probe.source}")
    segment = _filled(probe, _segment(probe))
    family = probe.source.family
    header = _ipv4_header if family == IPV4 else _ipv6_header
    return probe.destination_mac + probe.source_mac + _ETHERTYPE[family] + header(probe, segment) + segment


def view_of(packet: Packet) -> TupleView:
    """The ends of a parsed packet."""
    return view_of_ends(packet.family, packet.protocol, packet.tuple)


def view_of_ends(family: int, protocol: int, ends: Tuple | TraceStep) -> TupleView:
    """The ends of a packet or connection, as a record of the switch has them."""
    return TupleView(
        protocol=protocol_text(protocol),
        source=address_text(family, ends.source),
        source_port=ends.source_port,
        destination=address_text(family, ends.destination),
        destination_port=ends.destination_port,
    )


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _segment(probe: Probe) -> bytes:
    ports = struct.pack("!HH", probe.source_port, probe.destination_port)
    if probe.protocol == TCP:
        return ports + struct.pack("!IIBBHHH", 1, 0, 0x50, probe.tcp_flags, 0xFFFF, 0, 0)
    if probe.protocol == UDP:
        return ports + struct.pack("!HH", 8 + len(_PAYLOAD), 0) + _PAYLOAD
    if probe.protocol == SCTP:
        init = struct.pack("!BBHIIHHI", 1, 0, 20, 1, 0xFFFF, 1, 1, 1)
        tag = bytes(4)
        return ports + tag + sctp.checksum(ports + tag + bytes(4) + init) + init
    kind = _ECHO_REQUEST[probe.protocol]
    return struct.pack("!BBHHH", kind, 0, 0, probe.source_port, 1) + _PAYLOAD


def _filled(probe: Probe, segment: bytes) -> bytes:
    if probe.protocol == SCTP:
        return segment  # its own covers no address
    value = checksum(_pseudo_header(probe, len(segment)) + segment)
    if not value and probe.protocol == UDP:
        value = 0xFFFF
    at = _CHECKSUM_AT[probe.protocol]
    return segment[:at] + struct.pack("!H", value) + segment[at + 2 :]


def _pseudo_header(probe: Probe, length: int) -> bytes:
    if probe.protocol == ICMP:
        return b""
    if probe.source.family == IPV4:
        ends = probe.source.packed[:4] + probe.destination.packed[:4]
        return ends + struct.pack("!BBH", 0, probe.protocol, length)
    return probe.source.packed + probe.destination.packed + struct.pack("!II", length, probe.protocol)


def _ipv4_header(probe: Probe, segment: bytes) -> bytes:
    dont_fragment = 0x4000
    ends = probe.source.packed[:4] + probe.destination.packed[:4]
    head = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(segment), 0, dont_fragment, TTL, probe.protocol)
    return head + struct.pack("!H", checksum(head + b"\0\0" + ends)) + ends


def _ipv6_header(probe: Probe, segment: bytes) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(segment), probe.protocol, TTL)
    return head + probe.source.packed + probe.destination.packed
