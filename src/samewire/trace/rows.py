"""The rows of a table with the types that its records have. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from samewire.vfp.model import Entries
from samewire.vfp.record import Record

K = TypeVar("K", bound=Record)
V = TypeVar("V", bound=Record)


def typed_rows(tables: Entries, table: str, key: type[K], value: type[V]) -> Iterator[tuple[K, V]]:
    """The entries of one table; none when it was not read."""
    for k, v in tables.get(table, {}).items():
        if isinstance(k, key) and isinstance(v, value):
            yield k, v
