"""Records: frozen structs with the byte layout of a C structure.

A record's annotations *are* its layout, in order: ``U8`` ... ``U64``, ``Be16`` (network order in memory, a
plain integer in Python), ``Addr``, ``Mac``, a record, ``tuple[X, X]`` or ``Annotated[tuple[X, ...], n]`` for
an array, and ``reserved: ClassVar[Pad] = Pad(n)`` for bytes that stay zero. ``@record("sw_port")`` compiles
them once into a ``struct.Struct``; ``tests/unit/test_layout.py`` compares the result with ``bpf/layout.h``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args, get_origin

import msgspec
from msgspec.structs import astuple

BE16 = "2s"  # struct has no way to mix byte orders

U8 = Annotated[int, "B"]
U16 = Annotated[int, "H"]
U32 = Annotated[int, "I"]
U64 = Annotated[int, "Q"]
Be16 = Annotated[int, BE16]
Addr = Annotated[bytes, "16s"]
Mac = Annotated[bytes, "6s"]


class Pad(int):
    """So many reserved bytes, always zero."""


class Field(msgspec.Struct, frozen=True):
    """Where one member of the C structure lies. ``count`` is 0 for a single value; ``be`` = network order."""

    name: str
    offset: int
    size: int
    count: int
    be: bool


class Record(msgspec.Struct, frozen=True, gc=False):
    """Base of every key and value. Equality and hash are those of the values, so keys work in dicts."""

    c_name: ClassVar[str] = ""
    fields: ClassVar[tuple[Field, ...]] = ()
    size: ClassVar[int] = 0
    _codec: ClassVar[_Codec]

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self._codec.pack(astuple(self))

    @classmethod
    def packer(cls) -> Callable[..., bytes]:
        """A function from the members' values to bytes, for bulk: no record is made. It wants plain integers and
        bytes; what is in network order as bytes, too.
        """
        return cls._codec.struct.pack

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> Self:
        """The record in ``data``, which must be exactly ``size`` bytes."""
        return cls(*cls._codec.unpack(data))


R = TypeVar("R", bound=type[Record])


class _Member(msgspec.Struct):
    """One annotated member while the layout is compiled: element code, count, nested record."""

    code: str
    count: int
    nested: type[Record] | None


class _Codec:
    """Packs the tuple of a record's values; plain records go straight to ``struct``."""

    def __init__(self, members: list[_Member | Pad]) -> None:
        wire = "".join(
            f"{member}x" if isinstance(member, Pad) else member.code * (member.count or 1)
            for member in members
        )
        self.struct = struct.Struct("=" + wire)
        self.members = [member for member in members if isinstance(member, _Member)]
        self.plain = all(
            not member.count and member.nested is None and member.code != BE16 for member in self.members
        )
        self._plan = list(_plan(self.members))

    def pack(self, values: tuple[Any, ...]) -> bytes:
        if self.plain:
            return self.struct.pack(*values)
        flat: list[Any] = []
        for member, value in zip(self.members, values, strict=True):
            items = value if member.count else (value,)
            if member.nested is not None:
                flat += [item.pack() for item in items]
            elif member.code == BE16:
                flat += [item.to_bytes(2, "big") for item in items]
            else:
                flat += items
        return self.struct.pack(*flat)

    def unpack(self, data: bytes | memoryview) -> tuple[Any, ...]:
        flat = self.struct.unpack(data)
        if self.plain:
            return flat
        values: list[Any] = []
        for start, end, convert in self._plan:
            if convert is None:
                values.append(flat[start:end] if end else flat[start])
            elif end:
                values.append(tuple(map(convert, flat[start:end])))
            else:
                values.append(convert(flat[start]))
        return tuple(values)


def _plan(members: list[_Member]) -> Iterator[tuple[int, int, Callable[[bytes], Any] | None]]:
    """Where a member's values are among those of the structure, and what becomes of each. End 0: it is no array."""
    position = 0
    for member in members:
        end = position + member.count if member.count else 0
        # Network order is what from_bytes() takes, unless told otherwise.
        convert = member.nested.unpack if member.nested else int.from_bytes if member.code == BE16 else None
        yield position, end, convert
        position += member.count or 1


def record(c_name: str) -> Callable[[R], R]:
    """Compile a record's annotations into the layout of the C structure ``c_name`` ("" = a plain integer)."""

    def decorate(cls: R) -> R:
        members: list[_Member | Pad] = []
        fields: list[Field] = []
        offset = 0
        for name, hint in cls.__annotations__.items():
            member = _member(cls, name, hint)
            members.append(member)
            if isinstance(member, Pad):
                size, count = int(member), 0
            else:
                size, count = struct.calcsize("=" + member.code) * (member.count or 1), member.count
            be = isinstance(member, _Member) and member.code == BE16
            fields.append(Field(name, offset, size, count, be))
            offset += size
        cls.c_name = c_name
        cls.fields = tuple(fields)
        cls.size = offset
        cls._codec = _Codec(members)
        return cls

    return decorate


def _member(cls: type[Record], name: str, hint: Any) -> _Member | Pad:
    if get_origin(hint) is ClassVar:
        pad = getattr(cls, name)
        assert isinstance(pad, Pad)
        return pad
    if get_origin(hint) is tuple:
        elements = get_args(hint)
        element = _member(cls, name, elements[0])
        assert isinstance(element, _Member)
        return _Member(element.code, len(elements), element.nested)
    if get_origin(hint) is Annotated and isinstance(get_args(hint)[1], int):
        sequence, count = get_args(hint)
        element = _member(cls, name, get_args(sequence)[0])
        assert isinstance(element, _Member)
        return _Member(element.code, count, element.nested)
    if isinstance(hint, type) and issubclass(hint, Record):
        return _Member(f"{hint.size}s", 0, hint)
    return _Member(get_args(hint)[1], 0, None)
