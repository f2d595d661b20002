"""Frames by which the wire learns that an address has come to this node. Pure.

Routers and neighbours remember for half a minute and longer where an address was. A pod that gets one which a pod of
another node has just had would not be answered until then.
"""

from __future__ import annotations

import struct
from typing import Final

from samewire.vfp.address import IPV4, Address

_EVERYBODY: Final = b"\xff" * 6
_ALL_NODES_MAC: Final = bytes.fromhex("333300000001")
_ALL_NODES: Final = bytes.fromhex("ff02000000000000" + "0000000000000001")
_ICMPV6: Final = 58
_ADVERTISEMENT: Final = 136
_OVERRIDE: Final = 0x20000000
_HOP_LIMIT: Final = 255


def announcement(address: Address, mac: bytes, vlan: int = 0) -> bytes:
    """The frame, with a tag unless ``vlan`` is 0: an ARP announcement (RFC 5227), or an unsolicited neighbour
    advertisement (RFC 4861, 7.2.6).
    """
    tag = struct.pack("!HH", 0x8100, vlan) if vlan else b""
    if address.family == IPV4:
        own = address.packed[:4]
        body = struct.pack("!HHHBBH6s4s6x4s", 0x0806, 1, 0x0800, 6, 4, 1, mac, own, own)
        return _EVERYBODY + mac + tag + body
    return _ALL_NODES_MAC + mac + tag + _advertisement(address.packed, mac)


def _advertisement(own: bytes, mac: bytes) -> bytes:
    option = struct.pack("!BB6s", 2, 1, mac)
    text = struct.pack("!BBHI16s", _ADVERTISEMENT, 0, 0, _OVERRIDE, own) + option
    pseudo = own + _ALL_NODES + struct.pack("!II", len(text), _ICMPV6)
    text = text[:2] + struct.pack("!H", _checksum(pseudo + text)) + text[4:]
    return struct.pack("!HIHBB", 0x86DD, 6 << 28, len(text), _ICMPV6, _HOP_LIMIT) + own + _ALL_NODES + text


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
