"""The rows of a table with the types that its records have. Pure."""

from __future__ import annotations

import struct
from collections.abc import ItemsView, Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar

from samewire.vfp.model import Entries
from samewire.vfp.record import Record

K = TypeVar("K", bound=Record)
V = TypeVar("V", bound=Record)

_NUMBERS: Final = {1: "=B", 2: "=H", 4: "=I", 8: "=Q"}


def typed_rows(tables: Entries, table: str, key: type[K], value: type[V]) -> Iterator[tuple[K, V]]:
    """The entries of one table; none when it was not read."""
    for k, v in tables.get(table, {}).items():
        if isinstance(k, key) and isinstance(v, value):
            yield k, v


class PackedRows(Mapping[Record, Record]):
    """A table as the bytes that the kernel gave; a row is decoded when it is looked at.

    For tables of a hundred thousand rows: as records they take ten times the memory.
    """

    def __init__(self, key: type[Record], value: type[Record], rows: Iterable[tuple[bytes, bytes]]) -> None:
        self._key = key
        self._value = value
        self._rows = dict(rows)

    @classmethod
    def of(cls, key: type[Record], value: type[Record], rows: Mapping[Record, Record]) -> PackedRows:
        """Rows that may be packed already."""
        if isinstance(rows, PackedRows):
            return rows
        return cls(key, value, ((k.pack(), v.pack()) for k, v in rows.items()))

    def __getitem__(self, key: Record) -> Record:
        return self._value.unpack(self._rows[key.pack()])

    def __contains__(self, key: object) -> bool:
        return isinstance(key, self._key) and key.pack() in self._rows

    def __iter__(self) -> Iterator[Record]:
        return map(self._key.unpack, self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def items(self) -> ItemsView[Record, Record]:
        """The rows, each decoded once."""
        return _Items(self)

    def decoded(self) -> Iterator[tuple[Record, Record]]:
        """What ``items`` goes through."""
        for key, value in self._rows.items():
            yield self._key.unpack(key), self._value.unpack(value)

    def highest_first(self, member: str) -> list[bytes]:
        """The packed keys, by a number in their values."""
        field = next(field for field in self._value.fields if field.name == member)
        read, at, rows = struct.Struct(_NUMBERS[field.size]).unpack_from, field.offset, self._rows

        def number(key: bytes) -> Any:
            return read(rows[key], at)

        return sorted(rows, key=number, reverse=True)

    def packed(self, key: bytes) -> tuple[Record, Record]:
        """The row under a packed key."""
        return self._key.unpack(key), self._value.unpack(self._rows[key])


class _Items(ItemsView[Record, Record]):
    _mapping: PackedRows

    def __iter__(self) -> Iterator[tuple[Record, Record]]:
        return self._mapping.decoded()
