"""Writing captures in the pcapng format (draft-ietf-opsawg-pcapng): one interface, both directions. Pure."""

from __future__ import annotations

import enum
import struct
from typing import Final

_SECTION: Final = 0x0A0D0D0A
_INTERFACE: Final = 1
_STATISTICS: Final = 5
_PACKET: Final = 6

_BYTE_ORDER_MAGIC: Final = 0x1A2B3C4D
_LINKTYPE_ETHERNET: Final = 1
_NANOSECONDS: Final = 9

_OPT_END: Final = 0
_OPT_COMMENT: Final = 1
_SHB_USERAPPL: Final = 4
_IF_NAME: Final = 2
_IF_DESCRIPTION: Final = 3
_IF_TSRESOL: Final = 9
_EPB_FLAGS: Final = 2
_ISB_RECEIVED: Final = 4
_ISB_DROPPED: Final = 5


class Direction(enum.IntEnum):
    """Bits 0 and 1 of epb_flags, as seen from the interface."""

    UNKNOWN = 0
    INBOUND = 1
    OUTBOUND = 2


def header(interface: str, description: str = "", comment: str = "") -> bytes:
    """A section with one Ethernet interface, whose packets are not cut."""
    section = struct.pack("<IHHq", _BYTE_ORDER_MAGIC, 1, 0, -1) + _options(
        _text(_OPT_COMMENT, comment), _text(_SHB_USERAPPL, "samewire capture")
    )
    link = struct.pack("<HHI", _LINKTYPE_ETHERNET, 0, 0) + _options(
        _text(_IF_NAME, interface),
        _text(_IF_DESCRIPTION, description),
        _option(_IF_TSRESOL, bytes((_NANOSECONDS,))),
    )
    return _block(_SECTION, section) + _block(_INTERFACE, link)


def packet(time_ns: int, data: bytes, direction: Direction) -> bytes:
    """One whole packet. ``time_ns`` since 1970."""
    head = struct.pack("<IIIII", 0, time_ns >> 32, time_ns & 0xFFFFFFFF, len(data), len(data))
    flags = _option(_EPB_FLAGS, struct.pack("<I", direction))
    return _block(_PACKET, head + _padded(data) + _options(flags))


def statistics(time_ns: int, received: int, dropped: int) -> bytes:
    """The end of a capture: how many packets there were, and how many were lost before they could be read."""
    head = struct.pack("<III", 0, time_ns >> 32, time_ns & 0xFFFFFFFF)
    counts = (
        _option(_ISB_RECEIVED, struct.pack("<Q", received)),
        _option(_ISB_DROPPED, struct.pack("<Q", dropped)),
    )
    return _block(_STATISTICS, head + _options(*counts))


def _block(kind: int, body: bytes) -> bytes:
    length = 12 + len(body)
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


def _options(*options: bytes) -> bytes:
    return b"".join(options) + struct.pack("<HH", _OPT_END, 0)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _text(code: int, text: str) -> bytes:
    return _option(code, text.encode()) if text else b""


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
