"""Checksums of captured frames, inner and outer, by the arithmetic of the RFCs and nothing else."""

from __future__ import annotations

import struct
from typing import Final

import msgspec

VXLAN_PORT: Final = 4789
_EXTENSIONS: Final = (0, 43, 44, 60)
_PLACES: Final = {6: 16, 17: 6, 58: 2}


class Headers(msgspec.Struct, frozen=True):
    """The headers of an IP packet. ``fragment``: it is a piece of a datagram; ``inner``: of a VXLAN packet."""

    family: int
    source: bytes
    destination: bytes
    protocol: int
    ttl: int
    fragment: bool
    first: bool
    identification: int
    dont_fragment: bool
    packet: bytes
    l4: bytes
    inner: Headers | None = None

    @property
    def ports(self) -> tuple[int, int]:
        """Source and destination port."""
        source, destination = struct.unpack_from("!HH", self.l4)
        return source, destination


def ones(data: bytes) -> int:
    """One's complement sum; 0xffff for data that holds its own right checksum."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(total)


def dissect(packet: bytes) -> Headers:
    """The headers of an IP packet; padding behind it is cut off."""
    if packet[0] >> 4 == 4:
        length, identification, offset = struct.unpack_from("!HHH", packet, 2)
        packet = packet[:length]
        return Headers(
            4,
            packet[12:16],
            packet[16:20],
            packet[9],
            packet[8],
            bool(offset & 0x3FFF),
            not offset & 0x1FFF,
            identification,
            bool(offset & 0x4000),
            packet,
            packet[(packet[0] & 15) * 4 :],
        )
    following, at = packet[6], 40
    packet = packet[: 40 + int.from_bytes(packet[4:6], "big")]
    fragment, first, identification = False, True, 0
    while following in _EXTENSIONS:
        length = 8
        if following == 44:
            offset, identification = struct.unpack_from("!HI", packet, at + 2)
            fragment, first = bool(offset & 0xFFF9), not offset & 0xFFF8
        else:
            length = (packet[at + 1] + 1) * 8
        following, at = packet[at], at + length
    return Headers(
        6,
        packet[8:24],
        packet[24:40],
        following,
        packet[7],
        fragment,
        first,
        identification,
        True,
        packet,
        packet[at:],
    )


def headers_of(frame: bytes) -> Headers:
    """The headers of a frame, and of what is inside VXLAN; checksums may be left to the device."""
    headers = dissect(frame[14:])
    if headers.protocol == 17 and not headers.fragment and headers.ports[1] == VXLAN_PORT:
        return msgspec.structs.replace(headers, inner=headers_of(headers.l4[16:]))
    return headers


def verified(frame: bytes) -> Headers:
    """As `headers_of`, of a frame all checksums of which are right: IP, L4 and those inside VXLAN."""
    headers = headers_of(frame)
    _verify(headers)
    if headers.inner is not None:
        _verify(headers.inner)
    return headers


def _verify(headers: Headers) -> None:
    if headers.family == 4:
        length = (headers.packet[0] & 15) * 4
        assert ones(headers.packet[:length]) == 0xFFFF, "IPv4 header checksum"
    if headers.fragment:
        return
    l4, protocol = headers.l4, headers.protocol
    if protocol == 1:
        assert ones(l4) == 0xFFFF, "ICMP checksum"
        return
    place = _PLACES.get(protocol)
    if place is None:
        return
    if protocol == 17 and l4[place : place + 2] == bytes(2):
        assert headers.family == 4 or headers.ports[1] == VXLAN_PORT, "no UDP checksum over IPv6"
        return
    pseudo = headers.source + headers.destination + struct.pack("!II", len(l4), protocol)
    assert ones(pseudo + l4) == 0xFFFF, f"checksum of protocol {protocol}: {headers.packet.hex()}"


def quoted(headers: Headers) -> Headers:
    """The packet that an ICMP error quotes, as far as it does."""
    return dissect(headers.l4[8:])
