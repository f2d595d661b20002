"""Structure layouts from the .BTF section of an object file: what the compiler made of layout.h.

Only what a comparison with Python records needs: structs with their members, and enum constants
(Documentation/bpf/btf.rst).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

import msgspec

from samewire.errors import Invalid
from samewire.kernel.bpf.elf import Elf

_KIND_INT, _KIND_PTR, _KIND_ARRAY, _KIND_STRUCT, _KIND_UNION, _KIND_ENUM = 1, 2, 3, 4, 5, 6
_KIND_TYPEDEF, _KIND_VOLATILE, _KIND_CONST, _KIND_RESTRICT = 8, 9, 10, 11
_KIND_FUNC_PROTO, _KIND_VAR, _KIND_DATASEC, _KIND_DECL_TAG, _KIND_ENUM64 = 13, 14, 15, 17, 19
_ALIASES: Final = frozenset({_KIND_TYPEDEF, _KIND_VOLATILE, _KIND_CONST, _KIND_RESTRICT})


class BtfField(msgspec.Struct, frozen=True):
    """A member of a structure, in bytes."""

    name: str
    offset: int
    size: int


class BtfStruct(msgspec.Struct, frozen=True):
    """A structure, in bytes."""

    name: str
    size: int
    fields: tuple[BtfField, ...]


class Btf(msgspec.Struct, frozen=True):
    """The named structures and enum constants of an object."""

    structs: dict[str, BtfStruct]
    constants: dict[str, int]


class _Type(msgspec.Struct):
    name: str
    kind: int
    size_or_type: int
    extra: bytes
    members: list[tuple[str, bytes]]


def read_btf(path: Path) -> Btf:
    """Read an ELF object's BTF. Raises ``Invalid`` if it has none."""
    section = Elf.read(path).section(".BTF")
    if section is None:
        raise Invalid(str(path), "has no .BTF section; compile it with -g")
    types = _types(section)
    structs = {t.name: _struct(t, types) for t in types.values() if t.kind == _KIND_STRUCT and t.name}
    constants: dict[str, int] = {}
    for item in types.values():
        if item.kind == _KIND_ENUM:
            constants.update({name: struct.unpack("<i", row)[0] for name, row in item.members})
    return Btf(structs, constants)


def _extra_size(kind: int, count: int) -> int:
    if kind in (_KIND_STRUCT, _KIND_UNION, _KIND_DATASEC, _KIND_ENUM64):
        return 12 * count
    if kind in (_KIND_ENUM, _KIND_FUNC_PROTO):
        return 8 * count
    return {_KIND_INT: 4, _KIND_ARRAY: 12, _KIND_VAR: 4, _KIND_DECL_TAG: 4}.get(kind, 0)


def _types(btf: bytes) -> dict[int, _Type]:
    header_size, type_at, type_size, text_at = struct.unpack_from("<IIII", btf, 4)
    texts = header_size + text_at

    def text(offset: int) -> str:
        return btf[texts + offset : btf.index(b"\0", texts + offset)].decode()

    types: dict[int, _Type] = {}
    at, number = header_size + type_at, 1
    while at < header_size + type_at + type_size:
        name, info, size_or_type = struct.unpack_from("<III", btf, at)
        kind, count = info >> 24 & 0x1F, info & 0xFFFF
        at += 12
        extra = btf[at : at + _extra_size(kind, count)]
        members: list[tuple[str, bytes]] = []
        if kind in (_KIND_STRUCT, _KIND_ENUM):
            step = len(extra) // count if count else 0
            for i in range(count):
                row = extra[i * step : (i + 1) * step]
                members.append((text(struct.unpack_from("<I", row)[0]), row[4:]))
        types[number] = _Type(text(name), kind, size_or_type, extra, members)
        at += _extra_size(kind, count)
        number += 1
    return types


def _struct(item: _Type, types: dict[int, _Type]) -> BtfStruct:
    fields = []
    for name, row in item.members:
        member, bits = struct.unpack("<II", row)
        fields.append(BtfField(name, (bits & 0xFFFFFF) // 8, _size(member, types)))
    return BtfStruct(item.name, item.size_or_type, tuple(fields))


def _size(number: int, types: dict[int, _Type]) -> int:
    item = types[number]
    if item.kind in _ALIASES:
        return _size(item.size_or_type, types)
    if item.kind == _KIND_PTR:
        return 8
    if item.kind == _KIND_ARRAY:
        element, _index, count = struct.unpack("<III", item.extra)
        return _size(element, types) * int(count)
    return item.size_or_type
