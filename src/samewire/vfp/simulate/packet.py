"""A frame in hand: parsed as ``bpf/packet.h`` parses it, and rewritten in place as ``bpf/rewrite.h`` does."""

from __future__ import annotations

from typing import Final

import msgspec

from samewire.vfp.address import IPV4, IPV6, ZERO
from samewire.vfp.constants import Reason, TcpFlag
from samewire.vfp.simulate import checksum, sctp

L3: Final = 14
ETH_IPV4: Final = b"\x08\x00"
ETH_IPV6: Final = b"\x86\xdd"
ETH_ARP: Final = b"\x08\x06"
ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
ICMPV6: Final = 58
SCTP: Final = 132
WITH_PORTS: Final = frozenset({TCP, UDP, SCTP})

FRAGMENT_FIRST: Final = 1
FRAGMENT_LATER: Final = 2

FRAGMENT: Final = 44
EXTENSIONS: Final = frozenset({0, 43, FRAGMENT, 60})  # hop-by-hop, routing, destination options
MAX_EXTENSIONS: Final = 6
_ICMP4_ERRORS: Final = frozenset({3, 11, 12})
_IPV6_HEADER: Final = 40


class Malformed(Exception):
    """The frame is nothing that the switch carries; ``reason`` says why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.name)
        self.reason = reason


class Tuple(msgspec.Struct, frozen=True):
    """A connection or packet, by its ends. Addresses are 16 bytes, ports plain integers."""

    source: bytes
    destination: bytes
    source_port: int = 0
    destination_port: int = 0

    @property
    def reverse(self) -> Tuple:
        """The other direction."""
        return Tuple(self.destination, self.source, self.destination_port, self.source_port)


class Packet(msgspec.Struct):
    """The frame's bytes and what the parser found in them."""

    data: bytearray
    family: int = 0
    protocol: int = 0
    tuple: Tuple = Tuple(ZERO, ZERO)
    ttl: int = 0
    tcp_flags: int = 0
    fragment: int = 0
    fragment_id: int = 0
    fragment_at: int = 0
    icmp_type: int = 0
    icmp_error: bool = False
    neighbour: bool = False
    l4: int = 0

    @property
    def is_icmp(self) -> bool:
        """ICMP of the packet's own family."""
        return self.protocol == (ICMP if self.family == IPV4 else ICMPV6)

    @property
    def is_for_all(self) -> bool:
        """A broadcast or multicast frame: it is not answered."""
        return bool(self.data[0] & 1)

    @property
    def ip_length(self) -> int:
        """Bytes behind the Ethernet header (a frame here is never a GSO one)."""
        return len(self.data) - L3

    @property
    def counted_bytes(self) -> int:
        """Bytes of the IP packet: a short frame has more."""
        at = L3 + (2 if self.family == IPV4 else 4)
        said = int.from_bytes(self.data[at : at + 2], "big") + (0 if self.family == IPV4 else 40)
        return min(said, self.ip_length)


def pad(address: bytes) -> bytes:
    """An address as the tables have it: 16 bytes."""
    return address + bytes(16 - len(address))


def parse(data: bytearray) -> Packet:
    """Parse a frame. Raises ``Malformed``."""
    packet = Packet(data)
    if data[12:14] == ETH_IPV4:
        _parse_ipv4(packet)
    elif data[12:14] == ETH_IPV6:
        _parse_ipv6(packet)
    else:
        raise Malformed(Reason.NOT_IP)
    return packet


def _parse_ipv4(packet: Packet) -> None:
    data = packet.data
    if len(data) < L3 + 20 or data[L3] >> 4 != 4 or data[L3] & 0xF < 5:
        raise Malformed(Reason.MALFORMED)
    packet.family = IPV4
    packet.protocol = data[L3 + 9]
    packet.ttl = data[L3 + 8]
    packet.l4 = L3 + (data[L3] & 0xF) * 4
    packet.tuple = Tuple(pad(bytes(data[L3 + 12 : L3 + 16])), pad(bytes(data[L3 + 16 : L3 + 20])))
    offset = int.from_bytes(data[L3 + 6 : L3 + 8], "big")
    if offset & 0x3FFF:
        packet.fragment = FRAGMENT_LATER if offset & 0x1FFF else FRAGMENT_FIRST
        packet.fragment_id = int.from_bytes(data[L3 + 4 : L3 + 6], "little")
        if packet.fragment == FRAGMENT_LATER:
            return
    _parse_l4(packet)


def _parse_ipv6(packet: Packet) -> None:
    data = packet.data
    if len(data) < L3 + _IPV6_HEADER or data[L3] >> 4 != 6:
        raise Malformed(Reason.MALFORMED)
    packet.family = IPV6
    packet.ttl = data[L3 + 7]
    packet.tuple = Tuple(bytes(data[L3 + 8 : L3 + 24]), bytes(data[L3 + 24 : L3 + 40]))
    following, offset = data[L3 + 6], L3 + _IPV6_HEADER
    for _ in range(MAX_EXTENSIONS):
        if following not in EXTENSIONS:
            break
        if offset + 8 > len(data):
            raise Malformed(Reason.MALFORMED)
        if following == FRAGMENT:
            where = int.from_bytes(data[offset + 2 : offset + 4], "big")
            if where & 0xFFF9:  # an atomic fragment is a whole datagram
                packet.fragment = FRAGMENT_LATER if where & 0xFFF8 else FRAGMENT_FIRST
                packet.fragment_id = int.from_bytes(data[offset + 4 : offset + 8], "little")
                packet.fragment_at = offset
            length = 8
        else:
            length = (data[offset + 1] + 1) * 8
        following, offset = data[offset], offset + length
        if offset > 240:
            raise Malformed(Reason.MALFORMED)
        if packet.fragment == FRAGMENT_LATER:
            break
    else:
        raise Malformed(Reason.MALFORMED)
    packet.protocol, packet.l4 = following, offset
    if packet.fragment == FRAGMENT_LATER:
        return
    # Ports behind the first fragment's end would be nobody's: those of the datagram would come in the next one.
    end = L3 + _IPV6_HEADER + int.from_bytes(data[L3 + 4 : L3 + 6], "big")
    if packet.fragment and offset + 8 > end:
        raise Malformed(Reason.MALFORMED)
    _parse_l4(packet)


def _need(packet: Packet, count: int) -> memoryview:
    if packet.l4 + count > len(packet.data):
        raise Malformed(Reason.MALFORMED)
    return memoryview(bytes(packet.data[packet.l4 : packet.l4 + count]))


def _parse_l4(packet: Packet) -> None:
    if packet.protocol in WITH_PORTS:
        head = _need(packet, 20 if packet.protocol == TCP else 8)
        packet.tuple = msgspec.structs.replace(
            packet.tuple,
            source_port=int.from_bytes(head[0:2], "big"),
            destination_port=int.from_bytes(head[2:4], "big"),
        )
        if packet.protocol == TCP:
            packet.tcp_flags = _tcp_flags(head[13])
    elif packet.is_icmp:
        _parse_icmp(packet, _need(packet, 8))


def _tcp_flags(bits: int) -> int:
    flags = 0
    if not bits & 0x02:
        flags = TcpFlag.DATA
    elif not bits & 0x10:
        flags = TcpFlag.SYN
    return flags | (TcpFlag.FIN if bits & 0x01 else 0) | (TcpFlag.RST if bits & 0x04 else 0)


def _parse_icmp(packet: Packet, head: memoryview) -> None:
    packet.icmp_type = kind = head[0]
    request, reply = (8, 0) if packet.family == IPV4 else (128, 129)
    identifier = int.from_bytes(head[4:6], "big")
    if kind == request:
        packet.tuple = msgspec.structs.replace(packet.tuple, source_port=identifier)
    elif kind == reply:
        packet.tuple = msgspec.structs.replace(packet.tuple, destination_port=identifier)
    elif packet.family == IPV4:
        packet.icmp_error = kind in _ICMP4_ERRORS
    else:
        packet.icmp_error = kind < 128
        packet.neighbour = 130 <= kind <= 137 or kind == 143


def _checksum_at(packet: Packet) -> int:
    """Offset of the L4 checksum, 0 if there is none that covers ports or addresses."""
    if packet.fragment == FRAGMENT_LATER:
        return 0
    if packet.protocol == TCP:
        return packet.l4 + 16
    if packet.protocol == UDP:
        return packet.l4 + 6
    return packet.l4 + 2 if packet.is_icmp else 0


def _patch_checksum(packet: Packet, at: int, before: bytes, after: bytes) -> None:
    current = bytes(packet.data[at : at + 2])
    udp = packet.protocol == UDP
    if udp and current == b"\0\0":
        return  # no checksum was sent
    update = checksum.replace_by_difference if len(before) == 16 else checksum.replace
    result = update(current, before, after)
    packet.data[at : at + 2] = b"\xff\xff" if udp and result == b"\0\0" else result


def rewrite_address(packet: Packet, before: bytes, after: bytes, source: bool) -> None:
    """Replace the source or destination address."""
    at = _checksum_at(packet)
    if packet.family == IPV6:
        if at:
            _patch_checksum(packet, at, before, after)
        where = L3 + (8 if source else 24)
        packet.data[where : where + 16] = after
        return
    if before[:4] == after[:4]:
        return
    if at and packet.protocol != ICMP:
        _patch_checksum(packet, at, before[:4], after[:4])
    header = bytes(packet.data[L3 + 10 : L3 + 12])
    packet.data[L3 + 10 : L3 + 12] = checksum.replace(header, before[:4], after[:4])
    where = L3 + (12 if source else 16)
    packet.data[where : where + 4] = after[:4]


def rewrite_port(packet: Packet, before: int, after: int, source: bool) -> None:
    """Replace a port or the ICMP identifier; protocols without one are left alone. Raises ``Malformed``."""
    at = _checksum_at(packet)
    if before == after:
        return
    if packet.protocol == SCTP and packet.fragment != FRAGMENT_LATER:
        _rewrite_sctp_port(packet, after, source)
    if not at:
        return
    where = packet.l4 + 4 if packet.is_icmp else packet.l4 + (0 if source else 2)
    _patch_checksum(packet, at, before.to_bytes(2, "big"), after.to_bytes(2, "big"))
    packet.data[where : where + 2] = after.to_bytes(2, "big")


def _rewrite_sctp_port(packet: Packet, after: int, source: bool) -> None:
    if packet.fragment:  # the rest of the packet is not here
        raise Malformed(Reason.NAT_PROTOCOL)
    data, at = packet.data, packet.l4
    if at + 12 > len(data):
        raise Malformed(Reason.INTERNAL)
    length = int.from_bytes(data[L3 + 2 : L3 + 4] if packet.family == IPV4 else data[L3 + 4 : L3 + 6], "big")
    length += L3 + (0 if packet.family == IPV4 else _IPV6_HEADER) - at
    data[at : at + 12] = sctp.replace_port(
        bytes(data[at : at + 12]), length & 0xFFFF, 0 if source else 2, after
    )


def move_fragment_id(packet: Packet, port: int) -> None:
    """Tell apart the datagrams of pods that share a source address: the identification moves by the port."""
    data = packet.data
    if packet.family == IPV6:
        at = packet.fragment_at + 4
        moved = int.from_bytes(data[at : at + 4], "big") + port & 0xFFFFFFFF
        data[at : at + 4] = moved.to_bytes(4, "big")
        return
    before = bytes(data[L3 + 4 : L3 + 6])
    after = (int.from_bytes(before, "big") + port & 0xFFFF).to_bytes(2, "big")
    data[L3 + 10 : L3 + 12] = checksum.replace(bytes(data[L3 + 10 : L3 + 12]), before, after)
    data[L3 + 4 : L3 + 6] = after


def decrement_ttl(packet: Packet) -> None:
    """One hop further; the IPv4 checksum by RFC 1624 as ip_decrease_ttl() does it."""
    if packet.family == IPV6:
        packet.data[L3 + 7] -= 1
        return
    check = int.from_bytes(packet.data[L3 + 10 : L3 + 12], "little") + 1
    check = (check + (1 if check >= 0xFFFF else 0)) & 0xFFFF
    packet.data[L3 + 10 : L3 + 12] = check.to_bytes(2, "little")
    packet.data[L3 + 8] -= 1


def set_macs(packet: Packet, destination: bytes, source: bytes) -> None:
    """Write the Ethernet addresses."""
    packet.data[0:6] = destination
    packet.data[6:12] = source


def is_multicast(packet: Packet) -> bool:
    """For many, or for all."""
    destination = packet.tuple.destination
    if packet.family == 6:
        return destination[0] == 0xFF
    return destination[0] & 0xF0 == 0xE0 or destination[:4] == b"\xff\xff\xff\xff"
