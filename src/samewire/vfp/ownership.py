"""Who wants which entry. Several owners may share one (a NAT set, a nexthop, a route): it goes with the last.

Owners that want different values for one key are settled by rank, then by age: a local endpoint beats a
remote one, and otherwise the owner that claimed the key last wins (a pod that gets the address of one which
is still being removed). When the winner goes, the next one's value comes back.

The cost of a change is proportional to the entries of the owner that changes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Final

import msgspec

from samewire.vfp.diff import Operation, Put, Remove, ordered, rows_of, same
from samewire.vfp.model import Entries
from samewire.vfp.record import Record
from samewire.vfp.tables import Endpoint

_EMPTY: Final[Entries] = {}


class _Claim(msgspec.Struct, frozen=True):
    """One owner's wish for one key; ``age`` grows with every new claim."""

    value: Record
    rank: int
    age: int


class Ownership:
    """Entries by owner and owners by entry. Owners are any hashable names, e.g. ("endpoint", id)."""

    def __init__(self) -> None:
        self._by_owner: dict[Hashable, Entries] = {}
        self._claims: dict[tuple[str, Record], dict[Hashable, _Claim]] = {}
        self._wanted: dict[str, dict[Record, Record]] = {}
        self._age = 0

    def tables(self) -> Entries:
        """What all owners together want. A live view: do not change it, do not keep it across changes."""
        return self._wanted

    def entries(self, owner: Hashable) -> Entries:
        """What one owner wants; empty when unknown."""
        return self._by_owner.get(owner, _EMPTY)

    def all_owners(self) -> Iterable[Hashable]:
        """Every owner, in order of first claim."""
        return self._by_owner.keys()

    def owners(self, table: str, key: Record) -> tuple[Hashable, ...]:
        """Who wants this entry; the winner first."""
        claims = self._claims.get((table, key), {})
        return tuple(sorted(claims, key=lambda owner: _precedence(claims[owner]), reverse=True))

    def replace(self, owner: Hashable, entries: Entries) -> list[Operation]:
        """Make ``entries`` what ``owner`` wants; returns the operations that this causes, in order.

        Equal entries keep the value that is there (a port its generation).
        """
        before = self._by_owner.get(owner, _EMPTY)
        operations: list[Operation] = []
        for table, key, value in rows_of(entries):
            operations += self._claim(owner, table, key, value)
        for table, key, _ in rows_of(before):
            if key not in entries.get(table, {}):
                operations += self._release(owner, table, key)
        held = {
            table: {key: self._claims[table, key][owner].value for key in rows}
            for table, rows in entries.items()
            if rows
        }
        if held:
            self._by_owner[owner] = held
        else:
            self._by_owner.pop(owner, None)
        return ordered(operations)

    def remove(self, owner: Hashable) -> list[Operation]:
        """Forget an owner; returns the operations for the entries that nobody wants any more."""
        return self.replace(owner, _EMPTY)

    def _claim(self, owner: Hashable, table: str, key: Record, value: Record) -> list[Operation]:
        claims = self._claims.setdefault((table, key), {})
        known = claims.get(owner)
        if known is not None and same(known.value, value):
            return []
        self._age += 1
        rank = _rank(value)
        age = known.age if known is not None and known.rank == rank else self._age
        claims[owner] = _Claim(value, rank, age)
        return self._settle(table, key, claims)

    def _release(self, owner: Hashable, table: str, key: Record) -> list[Operation]:
        claims = self._claims[table, key]
        del claims[owner]
        if claims:
            return self._settle(table, key, claims)
        del self._claims[table, key]
        rows = self._wanted[table]
        del rows[key]
        if not rows:
            del self._wanted[table]
        return [Remove(table, key)]

    def _settle(self, table: str, key: Record, claims: dict[Hashable, _Claim]) -> list[Operation]:
        rows = self._wanted.setdefault(table, {})
        winner = max(claims.values(), key=_precedence)
        if same(rows.get(key), winner.value):
            return []
        rows[key] = winner.value
        return [Put(table, key, winner.value)]


def _precedence(claim: _Claim) -> tuple[int, int]:
    return claim.rank, claim.age


def _rank(value: Record) -> int:
    return 1 if type(value) is Endpoint and value.port else 0
