"""Wanted minus actual: ordered, typed, printable operations on table entries.

Order makes every moment safe: what others point at is put first (nexthops and sets before routes and ports,
ports before the addresses that lead to them), and removed last.

What is not compared: the ``generation`` of a port or of a network's sets (it says when, not what: an equal port
keeps its flows), and the ``full_ns`` of a bucket (it belongs to the programs). An entry that differs in anything
else is put whole, with its new generation or full bucket.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

import msgspec

from samewire.vfp.constants import VLAN, VLAN_ID
from samewire.vfp.model import Entries
from samewire.vfp.record import Record
from samewire.vfp.render import record_text
from samewire.vfp.tables import TABLES, AclSpace, Bucket, Id, OwnRouteKey, Port

# Compiled tables, the pointed-at before the pointing.
PUT_ORDER: Final = (
    "sw_config",
    "sw_nexthops",
    "sw_acl_vectors",
    "sw_acl_rules",
    "sw_acl_any",
    "sw_acl_prefixes",
    "sw_acl_ports",
    "sw_acl_sets",
    "sw_set_classes",
    "sw_set_members",
    "sw_nat",
    "sw_own_routes",
    "sw_buckets",
    "sw_source_macs",
    "sw_ports",
    "sw_endpoints",
    "sw_routes",
    "sw_neighbours",
    "sw_portmaps",
    "sw_backends",
    "sw_backend_sets",
    "sw_source_ranges",
    "sw_services",
    "sw_direct",
    "sw_vnis",
    "sw_acl_spaces",
)
# Put behind all removals: it has flows judged again, and what has gone must be gone by then.
LATE: Final = frozenset({"sw_acl_spaces"})
# What a port's flows were judged by, though its own row does not tell: see `Ownership.replace`.
JUDGED_BY: Final = frozenset({"sw_portmaps", "sw_own_routes"})
_RANK: Final = {table: i for i, table in enumerate(PUT_ORDER)}


class Put(msgspec.Struct, frozen=True):
    """Insert or replace an entry; ``late``: behind all removals."""

    table: str
    key: Record
    value: Record
    late: bool = False

    def describe(self) -> str:
        """One line for people."""
        family = getattr(self.key, "family", 0)
        return f"+ {self.table} {_key_text(self.table, self.key)} -> {record_text(self.value, family)}"


class Remove(msgspec.Struct, frozen=True):
    """Remove an entry; it is no error when it is gone already."""

    table: str
    key: Record

    def describe(self) -> str:
        """One line for people."""
        return f"- {self.table} {_key_text(self.table, self.key)}"


def _key_text(table: str, key: Record) -> str:
    if table == "sw_vnis" and type(key) is Id and key.value >= VLAN:
        return f"vlan {key.value & VLAN_ID}"
    return record_text(key)


Operation: TypeAlias = Put | Remove


def same(before: Record | None, after: Record | None) -> bool:
    """Whether two values mean the same (see above for what does not count)."""
    if before == after:
        return True
    if type(before) is Port and type(after) is Port:
        return msgspec.structs.replace(before, generation=after.generation) == after
    if type(before) is AclSpace and type(after) is AclSpace:
        return before.content == after.content
    if type(before) is Bucket and type(after) is Bucket:
        return (before.rate_bytes_per_s, before.burst_bytes) == (after.rate_bytes_per_s, after.burst_bytes)
    return False


def diff(wanted: Entries, actual: Entries) -> list[Operation]:
    """The operations that turn ``actual`` into ``wanted``, in the order to apply them.

    Tables that only the programs write are left alone, whatever ``actual`` holds of them.
    """
    operations: list[Operation] = []
    late: list[Operation] = []
    for table in PUT_ORDER:
        present = actual.get(table, {})
        puts = late if table in LATE else operations
        puts += (
            Put(table, key, value)
            for key, value in wanted.get(table, {}).items()
            if not same(present.get(key), value)
        )
    for table in reversed(PUT_ORDER):
        if TABLES[table].kind == "array":
            continue
        kept = wanted.get(table, {})
        operations += (Remove(table, key) for key in actual.get(table, {}) if key not in kept)
    return operations + late


def change(before: Entries, after: Entries) -> list[Operation]:
    """The operations for one object whose entries were ``before`` and shall be ``after``.

    Only for entries that nobody shares; `Ownership` counts the owners of those that may be.
    """
    return diff(after, before)


def ordered(operations: Iterable[Operation]) -> list[Operation]:
    """Operations of several changes as one: puts in order, removals in reverse order, late puts.

    Of own routes, which may change where they are, the longest come first and the shortest go first: at every moment
    each address is led as before or as after, whichever of its routes come and go.
    """
    return sorted(operations, key=_rank)


def is_early(operation: Operation) -> bool:
    """Whether it comes before what is to be active by then: all puts but the late ones."""
    return isinstance(operation, Put) and not is_late(operation)


def is_late(operation: Operation) -> bool:
    """Whether it comes behind all removals."""
    return isinstance(operation, Put) and (operation.late or operation.table in LATE)


def _rank(operation: Operation) -> tuple[int, int]:
    bits = operation.key.prefix_bits if isinstance(operation.key, OwnRouteKey) else 0
    if isinstance(operation, Remove):
        return 2 * len(PUT_ORDER) - _RANK[operation.table], bits
    return _RANK[operation.table] + (3 * len(PUT_ORDER) if is_late(operation) else 0), -bits


def apply(operations: Iterable[Operation], tables: Entries) -> dict[str, dict[Record, Record]]:
    """The tables after the operations; ``tables`` itself is not changed. Empty tables are left out."""
    result = {name: dict(rows) for name, rows in tables.items()}
    for operation in operations:
        rows = result.setdefault(operation.table, {})
        if isinstance(operation, Put):
            rows[operation.key] = operation.value
        else:
            rows.pop(operation.key, None)
    return {name: rows for name, rows in result.items() if rows}


def rows_of(entries: Entries) -> Iterator[tuple[str, Record, Record]]:
    """All entries as (table, key, value)."""
    for table, rows in entries.items():
        for key, value in rows.items():
            yield table, key, value
