"""Netlink messages as bytes: headers and attributes (RFC 3549; ``linux/netlink.h``). Pure.

All integers are in host order; attributes are padded to four bytes. Nothing here reads past what it was given:
a message that contradicts its own lengths raises :class:`KernelError` with ``EBADMSG``.
"""

from __future__ import annotations

import errno
import re
import struct
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import msgspec

from samewire.errors import Invalid, KernelError

T = TypeVar("T")

HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_ATTRIBUTE_U32 = struct.Struct("=HHI")
_ERROR = struct.Struct("=i")
_ACKNOWLEDGEMENT = struct.Struct("=IHHIIi")  # a header and the error number
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")  # by the length's last two bits

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_ECHO = 0x8
NLM_F_DUMP_INTR = 0x10
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_DUMP = 0x300
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
NLMSG_ERROR = 2
NLMSG_DONE = 3

_NESTED = 0x8000
_TYPE_MASK = 0x3FFF
_NLMSGERR_ATTR_MSG = 1
_NAME_BYTES = 15
_NAME = re.compile(r"[^/:\0\s]+")


class Request(msgspec.Struct, frozen=True):
    """One change: message type, flags and body; in words what it does; the errors that are no failure."""

    type: int
    flags: int
    body: bytes
    operation: str
    tolerate: frozenset[int] = frozenset()

    def tolerating(self, *errnos: int) -> Request:
        """The same request with more error numbers (``errno.ENODEV``) counted as success."""
        return msgspec.structs.replace(self, tolerate=self.tolerate | frozenset(errnos))


class Query(msgspec.Struct, Generic[T], frozen=True):
    """One question; ``decode`` turns the body of each answer into a value, or into ``None`` to drop it.

    ``name`` is the interface asked for, where it is one.
    """

    type: int
    body: bytes
    operation: str
    decode: Callable[[memoryview], T | None]
    name: str = ""


class Message(msgspec.Struct, frozen=True):
    """A message received."""

    type: int
    flags: int
    sequence: int
    body: memoryview


def pack(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """A whole message, padded to four bytes so that others may follow it."""
    length = HEADER.size + len(body)
    return HEADER.pack(length, kind, flags, sequence, 0) + body + _PADDING[length & 3]


def messages(data: memoryview) -> Iterator[Message]:
    """The messages in one datagram. Raises KernelError (EBADMSG)."""
    offset = 0
    while len(data) - offset >= HEADER.size:
        length, kind, flags, sequence, _port = HEADER.unpack_from(data, offset)
        if length < HEADER.size or offset + length > len(data):
            raise malformed(f"message of {length} bytes in {len(data) - offset}")
        yield Message(kind, flags, sequence, data[offset + HEADER.size : offset + length])
        offset += (length + 3) & ~3


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute with its padding."""
    length = _ATTRIBUTE.size + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + _PADDING[length & 3]


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind | _NESTED, b"".join(attributes))


def u8(kind: int, value: int) -> bytes:
    """An attribute of one byte."""
    return attribute(kind, struct.pack("=B", value))


def u32(kind: int, value: int) -> bytes:
    """An attribute of four bytes in host order."""
    return _ATTRIBUTE_U32.pack(_ATTRIBUTE_U32.size, kind, value)


def u64(kind: int, value: int) -> bytes:
    """An attribute of eight bytes in host order."""
    return attribute(kind, struct.pack("=Q", value))


def be16(kind: int, value: int) -> bytes:
    """An attribute of two bytes in network order (ports)."""
    return attribute(kind, struct.pack(">H", value))


def text(kind: int, value: str) -> bytes:
    """An attribute of NUL-terminated text."""
    return attribute(kind, value.encode() + b"\0")


def interface_name(kind: int, name: str) -> bytes:
    """An attribute that holds an interface name; :class:`Invalid` when no interface can have that name."""
    if not _NAME.fullmatch(name) or name in (".", "..") or len(name.encode()) > _NAME_BYTES:
        raise Invalid("interface name", f"{name!r} must be 1 to 15 bytes without blanks, slashes and colons")
    return text(kind, name)


def attributes(data: memoryview) -> dict[int, memoryview]:
    """All attributes, by type; the last wins when a type repeats, as it does in the kernel's own parser.

    Raises KernelError (EBADMSG).
    """
    found: dict[int, memoryview] = {}
    unpack, offset, end = _ATTRIBUTE.unpack_from, 0, len(data)
    while end - offset >= _ATTRIBUTE.size:
        length, kind = unpack(data, offset)
        stop = offset + length
        if length < _ATTRIBUTE.size or stop > end:
            raise malformed(f"attribute of {length} bytes in {end - offset}")
        found[kind & _TYPE_MASK] = data[offset + _ATTRIBUTE.size : stop]
        offset = (stop + 3) & ~3
    return found


def first_u32(data: memoryview, offset: int, wanted: int, default: int) -> int:
    """A four-byte number out of the first attribute of a type; those behind it are not looked at.

    Raises KernelError (EBADMSG).
    """
    unpack, end = _ATTRIBUTE.unpack_from, len(data) - _ATTRIBUTE.size
    while offset <= end:  # some forty times for an interface's other end
        length, kind = unpack(data, offset)
        if kind == wanted:
            return get_u32({wanted: data[offset + _ATTRIBUTE.size : offset + length]}, wanted, default)
        if length < _ATTRIBUTE.size:
            raise malformed(f"attribute of {length} bytes")
        offset += length + 3 & ~3
    return default


def fixed(layout: struct.Struct, data: memoryview) -> tuple[tuple[int, ...], dict[int, memoryview]]:
    """The fixed head of a message body and the attributes after it (`attributes`).

    Raises KernelError (EBADMSG).
    """
    if len(data) < layout.size:
        raise malformed(f"body of {len(data)} bytes where {layout.size} are due")
    return layout.unpack_from(data), attributes(data[(layout.size + 3) & ~3 :])


def get_u32(found: dict[int, memoryview], kind: int, default: int) -> int:
    """A four-byte number out of :func:`attributes`."""
    data = found.get(kind)
    return default if data is None else int.from_bytes(data[:4], "little" if _LITTLE else "big")


def get_text(found: dict[int, memoryview], kind: int) -> str:
    """A text out of :func:`attributes`, empty when absent."""
    return bytes(found.get(kind, b"")).split(b"\0", 1)[0].decode(errors="replace")


def get_bytes(found: dict[int, memoryview], kind: int) -> bytes:
    """Raw bytes out of :func:`attributes`, empty when absent."""
    return bytes(found.get(kind, b""))


def is_success(data: memoryview, sequence: int) -> bool:
    """Whether a datagram is the acknowledgement of that number, and says that all went well."""
    if len(data) < _ACKNOWLEDGEMENT.size:
        return False
    _, kind, _, answered, _, code = _ACKNOWLEDGEMENT.unpack_from(data)
    return kind == NLMSG_ERROR and answered == sequence and not code


def error_of(message: Message) -> tuple[int, str]:
    """The positive error number (0: success) and the kernel's own words in an ERROR or DONE message.

    Raises KernelError (EBADMSG).
    """
    if len(message.body) < _ERROR.size:
        return 0, ""  # DONE without a status
    code = -_ERROR.unpack_from(message.body)[0]
    offset = _ERROR.size
    if message.type == NLMSG_ERROR:
        if len(message.body) < offset + HEADER.size:
            raise malformed("error message without the header it answers")
        echoed = HEADER.unpack_from(message.body, offset)[0]
        offset += HEADER.size if message.flags & NLM_F_CAPPED else (echoed + 3) & ~3
    detail = ""
    if message.flags & NLM_F_ACK_TLVS:
        detail = get_text(attributes(message.body[offset:]), _NLMSGERR_ATTR_MSG)
    return code, detail


def malformed(detail: str) -> KernelError:
    """The error for bytes that are no netlink."""
    return KernelError("decode netlink message", errno.EBADMSG, detail)


_LITTLE = struct.pack("=H", 1) == b"\1\0"
