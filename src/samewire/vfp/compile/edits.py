"""The next entries of an owner, made of its last ones: what has changed is known and need not be looked for."""

from __future__ import annotations

from samewire.vfp.model import Compiled, Edit, Entries
from samewire.vfp.record import Record


class Draft:
    """Entries being changed. Those that it begins with stay as they are."""

    def __init__(self, base: Entries) -> None:
        self._base = base
        self._rows: dict[str, dict[Record, Record]] = {}
        self._touched: dict[tuple[str, Record], None] = {}

    def put(self, table: str, key: Record, value: Record) -> None:
        """Add or replace an entry."""
        self._own(table)[key] = value
        self._touched[table, key] = None

    def remove(self, table: str, key: Record) -> None:
        """Remove an entry that is there."""
        del self._own(table)[key]
        self._touched[table, key] = None

    def get(self, table: str, key: Record) -> Record | None:
        """An entry as it is by now."""
        return self._rows.get(table, self._base.get(table, {})).get(key)

    def _own(self, table: str) -> dict[Record, Record]:
        rows = self._rows.get(table)
        if rows is None:
            rows = self._rows[table] = dict(self._base.get(table, {}))
        return rows

    def compiled(self) -> Compiled:
        """All entries, and what is to be done to those that it began with."""
        entries = {table: rows for table, rows in {**self._base, **self._rows}.items() if rows}
        if not self._base:
            return Compiled(entries)
        puts: list[tuple[str, Record, Record]] = []
        gone: list[tuple[str, Record]] = []
        for table, key in self._touched:
            after, before = self._rows[table].get(key), self._base.get(table, {}).get(key)
            if after is None and before is not None:
                gone.append((table, key))
            elif after is not None and after != before:
                puts.append((table, key, after))
        return Compiled(entries, edit=Edit(self._base, tuple(puts), tuple(gone)))
