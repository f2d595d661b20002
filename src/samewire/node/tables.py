"""The compiled tables in the kernel: operations are written to maps, maps are read back as entries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Final

from samewire.kernel.bpf import BpfMap
from samewire.vfp.compile.balanced import ID
from samewire.vfp.compile.balanced import TABLES as BALANCED
from samewire.vfp.diff import Operation, Put
from samewire.vfp.model import Entries
from samewire.vfp.record import Record
from samewire.vfp.tables import TABLES, AclSpace, Port, Table

_MANY: Final = 32  # from here on a batch is cheaper than single updates
_REMEMBERED: Final = frozenset({"sw_ports", "sw_acl_spaces", "sw_nexthops", "sw_backends"})  # bpf/near.h
_FIRST: Final = ID.pack(0)


class KernelTables:
    """Maps by name, seen as tables."""

    def __init__(self, maps: Mapping[str, BpfMap]) -> None:
        self.maps = maps

    def write(self, operations: Iterable[Operation]) -> None:
        """Carry out operations in their order; a run of puts into one table may go as a batch.

        Raises KernelError; what was written by then stays.
        """
        remembered = False
        try:
            for (table, is_put), run in groupby(operations, key=lambda op: (op.table, isinstance(op, Put))):
                remembered = remembered or table in _REMEMBERED
                found = self.maps[table]
                items = list(run)
                if not is_put:
                    for item in items:
                        found.delete(item.key.pack())
                    continue
                self._put(
                    {item.key.pack(): item.value.pack() for item in items if isinstance(item, Put)}, found
                )
        finally:
            if remembered:
                self.changed()

    def changed(self) -> None:
        """Have the programs look anew at what they remember of ports, next hops and backends. Raises KernelError."""
        numbers = self.maps["sw_changes"]
        (last,) = ID.unpack(numbers.lookup(_FIRST) or _FIRST)
        numbers.update(_FIRST, ID.pack((last + 1) & 0xFFFFFFFF))

    def rows(self, name: str) -> Iterator[tuple[bytes, bytes]]:
        """The entries of one table as bytes. Raises KernelError."""
        return self.maps[name].items()

    def row(self, name: str, key: bytes) -> bytes | None:
        """One entry as bytes, None when it is not there. Raises KernelError."""
        return self.maps[name].lookup(key)

    def write_rows(self, name: str, rows: Mapping[bytes, bytes]) -> None:
        """Write entries that are bytes already. Raises KernelError; what was written by then stays."""
        try:
            self._put(rows, self.maps[name])
        finally:
            if rows and name in _REMEMBERED:  # a backend may be in another network than it was
                self.changed()

    def remove_rows(self, name: str, keys: Sequence[bytes]) -> None:
        """Remove entries; those that are gone already are fine. Raises KernelError."""
        found = self.maps[name]
        try:
            if len(keys) >= _MANY:
                found.delete_batch(keys)
                return
            for key in keys:
                found.delete(key)
        finally:
            if keys and name in _REMEMBERED:
                self.changed()

    def read(self, names: Iterable[str] | None = None) -> Entries:
        """The content of the compiled tables, or of those named. Raises KernelError.

        Those of load balancers are read only by name: there may be very much in them.
        """
        wanted = (
            [table for table in TABLES.values() if table.compiled and table.name not in BALANCED]
            if names is None
            else None
        )
        tables = wanted if wanted is not None else [TABLES[name] for name in names or ()]
        return {table.name: self._rows(table) for table in tables}

    def generation(self) -> int:
        """The highest generation of any port or IP sets; a new one must be above it. Raises KernelError."""
        rows = [*self._rows(TABLES["sw_ports"]).values(), *self._rows(TABLES["sw_acl_spaces"]).values()]
        return max((row.generation for row in rows if isinstance(row, Port | AclSpace)), default=0)

    def _put(self, rows: Mapping[bytes, bytes], found: BpfMap) -> None:
        if len(rows) >= _MANY:
            found.update_batch(rows)
            return
        for key, row in rows.items():
            found.update(key, row)

    def _rows(self, table: Table) -> dict[Record, Record]:
        rows: dict[Record, Record] = {}
        for key, value in self.maps[table.name].items():
            rows[table.key.unpack(key)] = table.value.unpack(value)
        return rows
