"""The little of ELF that is needed of a BPF object: sections by name, and variables by symbol (elf(5))."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final, Self

import msgspec

from samewire.errors import Invalid

_SYMBOL_TABLE: Final = 2
_STT_OBJECT: Final = 1
_HEADER = struct.Struct("<IIQQQQII")  # name, type, flags, address, offset, size, link, info
_SYMBOL = struct.Struct("<IBBHQQ")  # name, info, other, section, value, size


class _Section(msgspec.Struct, frozen=True):
    name: str
    kind: int
    link: int
    data: bytes


class Elf:
    """A 64-bit little-endian ELF file."""

    def __init__(self, data: bytes, name: str) -> None:
        """Raises Invalid, naming the file as ``name``, when ``data`` is something else."""
        if data[:6] != b"\x7fELF\x02\x01":
            raise Invalid(name, "not a 64-bit little-endian ELF object")
        self._name = name
        try:
            self._sections = _sections(data)
        except (struct.error, IndexError, ValueError, OverflowError) as error:
            raise Invalid(name, f"damaged ELF object: {error}") from error

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file."""
        return cls(path.read_bytes(), str(path))

    def section(self, name: str) -> bytes | None:
        """The content of a section, or None when there is none of that name."""
        return next((section.data for section in self._sections if section.name == name), None)

    def variables(self, section: str) -> dict[str, tuple[int, int]]:
        """The variables in a section: name -> (offset in the section, size), in bytes."""
        found: dict[str, tuple[int, int]] = {}
        for table in self._sections:
            if table.kind != _SYMBOL_TABLE:
                continue
            names = self._sections[table.link].data
            for name, info, _other, index, value, size in _SYMBOL.iter_unpack(table.data):
                in_section = index < len(self._sections) and self._sections[index].name == section
                if in_section and info & 0xF == _STT_OBJECT:
                    found[_text(names, name)] = (value, size)
        return found


def _sections(data: bytes) -> list[_Section]:
    table = struct.unpack_from("<Q", data, 40)[0]
    entry_size, count, names_index = struct.unpack_from("<HHH", data, 58)
    headers = [_HEADER.unpack_from(data, table + i * entry_size) for i in range(count)]
    names = data[headers[names_index][4] :]
    return [
        _Section(_text(names, name), kind, link, data[offset : offset + size])
        for name, kind, _flags, _address, offset, size, link, _info in headers
    ]


def _text(table: bytes, at: int) -> str:
    return table[at : table.index(b"\0", at)].decode()
