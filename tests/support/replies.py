"""Answers to frames: what the other end would send back. Swapping both ends keeps every checksum right."""

from __future__ import annotations

from typing import Final

from samewire.vfp.simulate import checksum
from samewire.vfp.simulate.packet import ICMP, ICMPV6, TCP, Malformed, Packet, parse
from tests.support.frames import fill, ip_packet, pseudo

_ECHO: Final = {4: (8, 0), 6: (128, 129)}


def reply_to(frame: bytes, tcp_flags: int) -> bytes | None:
    """The frame turned round, as an answer with these TCP flags; None for what has no answer."""
    if frame[12:14] not in (b"\x08\x00", b"\x86\xdd"):
        return None
    data = bytearray(frame)
    data[0:6], data[6:12] = frame[6:12], frame[0:6]
    try:
        packet = parse(data)
    except Malformed:
        return None
    length, at = (4, 26) if packet.family == 4 else (16, 22)
    data[at : at + length], data[at + length : at + 2 * length] = (
        frame[at + length : at + 2 * length],
        frame[at : at + length],
    )
    if not packet.fragment or packet.fragment == 1:
        _turn_l4(packet, frame, tcp_flags)
    return bytes(data)


def error_about(frame: bytes, sender: bytes | None, size: int) -> bytes | None:
    """An ICMP error that quotes ``size`` bytes of a frame's packet, from its destination or from a router."""
    try:
        packet = parse(bytearray(frame))
    except Malformed:
        return None
    family, source = packet.family, sender or packet.tuple.destination
    message = bytes((3 if family == 4 else 1, 3 if family == 4 else 4, 0, 0)) + bytes(4) + frame[14:][:size]
    message += bytes(len(message) % 2)
    if family == 4:
        message = fill(message, 2, message)
    else:
        covered = pseudo(6, source, packet.tuple.source, ICMPV6, len(message))
        message = fill(message, 2, covered + message)
    protocol = ICMP if family == 4 else ICMPV6
    head = frame[6:12] + frame[0:6] + frame[12:14]
    return head + ip_packet(family, source, packet.tuple.source, protocol, message, 64, 0, 3)


def _turn_l4(packet: Packet, frame: bytes, tcp_flags: int) -> None:
    data, l4 = packet.data, packet.l4
    if packet.is_icmp:
        request, reply = _ECHO[packet.family]
        if data[l4] == request:
            _patch(data, l4, l4 + 2, bytes((reply, data[l4 + 1])))
    elif packet.protocol != ICMP and len(data) >= l4 + 4:
        data[l4 : l4 + 2], data[l4 + 2 : l4 + 4] = frame[l4 + 2 : l4 + 4], frame[l4 : l4 + 2]
    if packet.protocol == TCP:
        _patch(data, l4 + 12, l4 + 16, bytes((data[l4 + 12], tcp_flags)))


def _patch(data: bytearray, at: int, checksum_at: int, value: bytes) -> None:
    """Change two bytes that a checksum covers."""
    current = bytes(data[checksum_at : checksum_at + 2])
    data[checksum_at : checksum_at + 2] = checksum.replace(current, bytes(data[at : at + 2]), value)
    data[at : at + 2] = value
