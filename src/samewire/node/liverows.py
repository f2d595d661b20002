"""A table that is looked up in the kernel entry by entry: for tables that are too large to be read for one packet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from samewire.kernel.bpf import BpfMap
from samewire.vfp.record import Record
from samewire.vfp.tables import Table


class LiveRows(Mapping[Record, Record]):
    """The entries as they are at each look-up. Raises KernelError."""

    def __init__(self, table: Table, found: BpfMap) -> None:
        self._table = table
        self._map = found

    def __getitem__(self, key: Record) -> Record:
        value = self._map.lookup(key.pack())
        if value is None:
            raise KeyError(key)
        return self._table.value.unpack(value)

    def __iter__(self) -> Iterator[Record]:
        for key, _ in self._map.items():
            yield self._table.key.unpack(key)

    def __len__(self) -> int:
        return sum(1 for _ in self._map.items())
