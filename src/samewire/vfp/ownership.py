"""Who wants which entry. Several owners may share one (a NAT set, a nexthop, a route): it goes with the last.

Owners that want different values for one key: a local endpoint beats a remote one; otherwise the owner that stands
highest wins, and of several the one that came last (a pod that gets the address of one which is still being removed).
When the winner goes, the value of the one before it comes back.

The cost of a change is proportional to the entries of the owner that changes, however many share them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Final

from msgspec.structs import replace

from samewire.versions import Version, versioned
from samewire.vfp.diff import JUDGED_BY, Operation, Put, Remove, ordered, rows_of, same
from samewire.vfp.model import Edit, Entries
from samewire.vfp.record import Record
from samewire.vfp.tables import Endpoint, OwnRouteKey, Port

_EMPTY: Final[Entries] = {}
_NO_ROWS: Final[Mapping[Record, Record]] = {}
_CONTESTED: Final = "sw_endpoints"
_PORTS: Final = "sw_ports"


class Ownership:
    """Entries by owner and owners by entry. Owners are any hashable names, e.g. ("endpoint", id)."""

    def __init__(self, standing: Callable[[Any], tuple[int, str]] = lambda _: (0, "")) -> None:
        """``standing``: how high an owner stands."""
        self._standing = standing
        self._by_owner: dict[Hashable, Entries] = {}
        self._given: dict[Hashable, Entries] = {}  # what the owner's entries were made of
        # Table -> key -> owner -> value, the owners in the order in which they came.
        self._claims: dict[str, dict[Record, dict[Hashable, Record]]] = {}
        # The same of entries that several want, the owners by how high they stand: all pods may want one.
        self._shared: dict[tuple[str, Record], dict[tuple[int, str], dict[Hashable, None]]] = {}
        self._wanted: dict[str, dict[Record, Record]] = {}

    def tables(self) -> Entries:
        """What all owners together want. A live view: do not change it, do not keep it across changes."""
        return self._wanted

    def entries(self, owner: Hashable) -> Entries:
        """What one owner wants; empty when unknown."""
        return self._by_owner.get(owner, _EMPTY)

    def all_owners(self) -> Iterable[Hashable]:
        """Every owner that wants anything."""
        return self._by_owner.keys()

    def owners(self, table: str, key: Record) -> tuple[Hashable, ...]:
        """Who wants this entry, in the order in which they came."""
        return tuple(self._claims.get(table, {}).get(key, ()))

    def replace(self, owner: Hashable, entries: Entries, edit: Edit | None = None) -> list[Operation]:
        """Make ``entries`` what ``owner`` wants; returns the operations that this causes, in order.

        Entries that mean the same keep the value that is there (a port its generation). ``edit`` says how they follow
        from others; when those are the owner's, nothing else is looked at. Of a table that is the next version of the
        owner's, what differs is. A port whose mappings go or change, or whose own routes change where they are, gets
        its new generation behind them.
        """
        before, given = self._by_owner.get(owner, _EMPTY), self._given.get(owner, _EMPTY)
        operations: list[Operation] = []
        if edit is not None and given is edit.base:
            held = self._edited(owner, before, edit, operations)
        else:
            held = self._compared(owner, before, given, entries, operations)
        if _judged_otherwise(before, entries, operations):
            held |= self._judge_behind(owner, before, entries, operations)
        if held:
            self._by_owner[owner] = held
            self._given[owner] = entries
        else:
            self._by_owner.pop(owner, None)
            self._given.pop(owner, None)
        return ordered(operations)

    def _edited(
        self, owner: Hashable, before: Entries, edit: Edit, operations: list[Operation]
    ) -> dict[str, Mapping[Record, Record]]:
        changes: dict[str, dict[Record, Record | None]] = {}
        for table, key, value in edit.puts:
            changes.setdefault(table, {})[key] = self._claim(owner, table, key, value, operations)
        for table, key in edit.gone:
            changes.setdefault(table, {})[key] = None
            self._release(owner, table, key, operations)
        own = {table: versioned(before.get(table, {})).changed(rows) for table, rows in changes.items()}
        return {table: rows for table, rows in {**before, **own}.items() if rows}

    def _compared(
        self, owner: Hashable, before: Entries, given: Entries, entries: Entries, operations: list[Operation]
    ) -> dict[str, Mapping[Record, Record]]:
        held: dict[str, Mapping[Record, Record]] = {}
        compared = dict(before)
        for table, rows in entries.items():
            moved = rows.apart(given.get(table)) if given and isinstance(rows, Version) else None
            if moved is not None:
                kept = self._moved(owner, table, compared.pop(table, _NO_ROWS), rows, moved, operations)
                if kept:
                    held[table] = kept
            elif rows:
                held[table] = {
                    key: self._claim(owner, table, key, value, operations) for key, value in rows.items()
                }
        for table, key, _ in rows_of(compared):
            if key not in held.get(table, _EMPTY):
                self._release(owner, table, key, operations)
        return held

    def _moved(
        self,
        owner: Hashable,
        table: str,
        before: Mapping[Record, Record],
        rows: Mapping[Record, Record],
        moved: Iterable[Record],
        operations: list[Operation],
    ) -> Mapping[Record, Record]:
        changes: dict[Record, Record | None] = {}
        for key in moved:
            value = rows.get(key)
            if value is not None:
                changes[key] = self._claim(owner, table, key, value, operations)
            elif key in before:
                changes[key] = None
                self._release(owner, table, key, operations)
        return versioned(before).changed(changes) if changes else before

    def _judge_behind(
        self, owner: Hashable, before: Entries, entries: Entries, operations: list[Operation]
    ) -> Entries:
        """Write a port's new generation last, and what else is new of it under the one that it had: flows that were
        judged anew while a mapping or a route was still there would keep it. Returns the ports that are now held.
        """
        ports, known = entries.get(_PORTS, _NO_ROWS), before.get(_PORTS, _NO_ROWS)
        for key, port in ports.items():
            last = known.get(key)
            if not isinstance(port, Port) or not isinstance(last, Port):
                continue
            self._claims[_PORTS][key][owner] = self._wanted[_PORTS][key] = port
            for place, step in enumerate(operations):
                if isinstance(step, Put) and (step.table, step.key) == (_PORTS, key):
                    operations[place] = Put(_PORTS, key, replace(port, generation=last.generation))
            operations.append(Put(_PORTS, key, port, late=True))
        return {_PORTS: ports} if ports else {}

    def remove(self, owner: Hashable) -> list[Operation]:
        """Forget an owner; returns the operations for the entries that nobody wants any more."""
        return self.replace(owner, _EMPTY)

    def _claim(
        self, owner: Hashable, table: str, key: Record, value: Record, operations: list[Operation]
    ) -> Record:
        """Enter one wish; returns the value that is now held for this owner."""
        claims = self._claims.setdefault(table, {}).setdefault(key, {})
        known = claims.get(owner)
        if known is value or (known is not None and same(known, value)):
            return known
        claims[owner] = value
        if known is None and len(claims) > 1:
            self._share(table, key, claims if len(claims) == 2 else (owner,))
        self._settle(table, key, claims, operations)
        return value

    def _share(self, table: str, key: Record, owners: Iterable[Hashable]) -> None:
        """Note who has come to want an entry that several want."""
        ranks = self._shared.setdefault((table, key), {})
        for owner in owners:
            ranks.setdefault(self._standing(owner), {})[owner] = None

    def _unshare(self, table: str, key: Record, owner: Hashable, left: int) -> None:
        """Note that an owner wants it no more; ``left``: how many still do."""
        if left == 1:
            del self._shared[table, key]
        elif left:
            ranks, standing = self._shared[table, key], self._standing(owner)
            del ranks[standing][owner]
            if not ranks[standing]:
                del ranks[standing]

    def _release(self, owner: Hashable, table: str, key: Record, operations: list[Operation]) -> None:
        keys = self._claims[table]
        claims = keys[key]
        del claims[owner]
        self._unshare(table, key, owner, len(claims))
        if claims:
            self._settle(table, key, claims, operations)
            return
        del keys[key]
        del self._wanted[table][key]
        if not keys:
            del self._claims[table]
            del self._wanted[table]
        operations.append(Remove(table, key))

    def _settle(
        self, table: str, key: Record, claims: dict[Hashable, Record], operations: list[Operation]
    ) -> None:
        rows = self._wanted.setdefault(table, {})
        winner = self._winner(table, key, claims)
        if not same(rows.get(key), winner):
            rows[key] = winner
            operations.append(Put(table, key, winner))

    def _winner(self, table: str, key: Record, claims: dict[Hashable, Record]) -> Record:
        if len(claims) == 1:
            return next(iter(claims.values()))
        ranks = self._shared[table, key]
        first = claims[next(reversed(ranks[max(ranks)]))]
        if table == _CONTESTED and not _is_local(first):
            return next((value for value in reversed(claims.values()) if _is_local(value)), first)
        return first


def _judged_otherwise(before: Entries, after: Entries, operations: Iterable[Operation]) -> bool:
    """Whether flows of a port that stays were judged by what changes, or would be by what comes, beside its own row."""
    moved = [step for step in operations if step.table in JUDGED_BY]
    if not moved:
        return False
    mapped, sets = before.get("sw_portmaps", _NO_ROWS), _route_sets(before) & _route_sets(after)
    return any(
        step.key.set in sets if isinstance(step.key, OwnRouteKey) else step.key in mapped for step in moved
    )


def _route_sets(entries: Entries) -> set[int]:
    return {port.route_set for port in entries.get(_PORTS, _NO_ROWS).values() if isinstance(port, Port)}


def _is_local(value: Record) -> bool:
    return isinstance(value, Endpoint) and value.port != 0
