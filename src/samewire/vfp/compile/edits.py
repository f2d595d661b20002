"""The next entries of an owner, made of its last ones: what has changed is known and need not be looked for."""

from __future__ import annotations

from typing import TypeVar

from samewire.versions import Version, versioned
from samewire.vfp.model import Compiled, Edit, Entries
from samewire.vfp.record import Record

T = TypeVar("T")


class Latest(dict[str, T]):
    """What was compiled last, by the name of its owner; of so many owners."""

    def __init__(self, owners: int) -> None:
        super().__init__()
        self._owners = owners

    def keep(self, name: str, value: T) -> None:
        """Remember it, instead of what has been there longest if need be."""
        self.pop(name, None)
        if len(self) >= self._owners:
            del self[next(iter(self))]
        self[name] = value


class Draft:
    """Entries being changed. Those that it begins with stay as they are."""

    def __init__(self, base: Entries) -> None:
        self._base = base
        self._changes: dict[str, dict[Record, Record | None]] = {}

    def put(self, table: str, key: Record, value: Record) -> None:
        """Add or replace an entry."""
        self._changes.setdefault(table, {})[key] = value

    def remove(self, table: str, key: Record) -> None:
        """Remove an entry that is there."""
        if self.get(table, key) is None:
            raise KeyError(key)
        self._changes.setdefault(table, {})[key] = None

    def get(self, table: str, key: Record) -> Record | None:
        """An entry as it is by now."""
        changes = self._changes.get(table, {})
        return changes[key] if key in changes else self._base.get(table, {}).get(key)

    def compiled(self) -> Compiled:
        """All entries, and what is to be done to those that it began with."""
        entries = dict(self._base)
        puts: list[tuple[str, Record, Record]] = []
        gone: list[tuple[str, Record]] = []
        for table, wished in self._changes.items():
            rows = versioned(self._base.get(table, Version({})))
            changes = {key: value for key, value in wished.items() if rows.get(key) != value}
            puts += ((table, key, value) for key, value in changes.items() if value is not None)
            gone += ((table, key) for key, value in changes.items() if value is None)
            entries[table] = rows.changed(changes)
        entries = {table: rows for table, rows in entries.items() if rows}
        return Compiled(entries, edit=Edit(self._base, tuple(puts), tuple(gone)) if self._base else None)
