"""Load balancers, wanted against actual: a slice of the tables at a time, and the switch is free in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final, TypeVar

from samewire.errors import SamewireError
from samewire.hcn.loadbalancers import LoadBalancer
from samewire.hcn.schema import Kind
from samewire.hcn.switch import Change, StoreView
from samewire.node.apply import NodeSwitch
from samewire.node.balancers import COUNTS
from samewire.node.sweep import join_drops, service_of
from samewire.vfp.compile.balanced import TABLES
from samewire.vfp.diff import Operation, Put, Remove
from samewire.vfp.tables import TABLES as ALL_TABLES

_T = TypeVar("_T")

DROPS: Final = "sw_drops"
_SLICE: Final = 256
"""Entries or objects looked at in one go: a third of a millisecond, which is what a change waits for."""
_NAMED: Final = 1000  # differences described one by one


class BalancerAudit:
    """One run. ``found``: (table, what differs); ``failed``: what could not be repaired, in words."""

    def __init__(self, switch: NodeSwitch, view: StoreView, *, repair: bool) -> None:
        self._switch = switch
        self._view = view
        self._repair = repair
        self._unnamed = 0
        self._owners: dict[int, str] | None = None
        self.found: list[tuple[str, str]] = []
        self.failed: list[str] = []

    async def run(self) -> None:
        """Compare all tables. Raises KernelError when one cannot be read; what was found by then stays."""
        balancers = self._switch.balancers
        lacking: list[LoadBalancer] = []

        def look(values: list[LoadBalancer]) -> None:
            lacking.extend([value for value in values if value.id not in balancers])

        await self._in_slices(self._view.load_balancers(), look)
        for value in lacking:
            if self._view.load_balancer(value.id) == value:
                await self._lacking(value)
        for table in TABLES:
            await self._table(table)
            if self._unnamed:
                self.found.append((table, f"{self._unnamed} more entries"))
                self._unnamed = 0
        if self._repair:
            await self._sweep_counts()

    async def _lacking(self, value: LoadBalancer) -> None:
        """It could not be compiled at the start. Perhaps it can now; if not, it is not forgotten."""
        name = value.service_name or value.name or value.id
        self.found.append(("sw_services", f"nothing of load balancer {name}"))
        if self._repair:
            try:
                await self._switch.apply([Change(Kind.LOADBALANCER, value.id, value, value)], self._view)
            except SamewireError as error:
                self.failed.append(f"load balancer {name}: {error}")

    async def _sweep_counts(self) -> None:
        """Remove what the programs have counted for services that are no more; their drops lose the name."""
        switch, tables = self._switch, self._switch.kernel.tables
        counted: set[int] = set()

        def note(rows: list[tuple[bytes, bytes]]) -> None:
            counted.update([int.from_bytes(key, "little") for key, _ in rows])

        def note_drops(rows: list[tuple[bytes, bytes]]) -> None:
            counted.update([service_of(key) for key, _ in rows])

        def strike(values: list[LoadBalancer]) -> None:
            for value in values:
                counted.difference_update(switch.balancers.services_of(value.id))

        await self._in_slices(tables.rows(COUNTS), note)
        await self._in_slices(tables.rows(DROPS), note_drops)
        counted.discard(0)
        await self._in_slices(self._view.load_balancers(), strike)
        if counted:
            async with switch.lock:
                gone = counted.difference(switch.balancers.owners())
                tables.remove_rows(COUNTS, [number.to_bytes(4, "little") for number in gone])
                join_drops(tables.maps[DROPS], gone)

    async def _table(self, table: str) -> None:
        wanted = self._switch.balancers.rows[table]
        seen: set[bytes] = set()

        def compare(rows: list[tuple[bytes, bytes]]) -> None:
            seen.update([key for key, _ in rows])
            self._look_again(table, [key for key, row in rows if wanted.get(key) != row])

        await self._in_slices(self._switch.kernel.tables.rows(table), compare)
        await self._in_slices(
            list(wanted), lambda keys: self._look_again(table, [key for key in keys if key not in seen])
        )

    async def _in_slices(self, items: Iterable[_T], look: Callable[[list[_T]], None]) -> None:
        """Slice by slice with the switch's lock held; others have their turn in between."""
        left = iter(items)
        more = True
        while more:
            async with self._switch.lock:
                part = list(islice(left, _SLICE))
                look(part)
            more = len(part) == _SLICE
            await asyncio.sleep(0)

    def _look_again(self, table: str, suspects: list[bytes]) -> None:
        """A change may have come between reading and comparing: only what differs now counts."""
        tables, rows = self._switch.kernel.tables, self._switch.balancers.rows[table]
        wrong = [key for key in suspects if tables.row(table, key) != rows.get(key)]
        for key in wrong:
            if len(self.found) < _NAMED:
                text = _operation(table, key, rows.get(key)).describe()
                self.found.append((table, text + self._whose(table, key)))
            else:
                self._unnamed += 1
        if not wrong or not self._repair:
            return
        try:
            tables.write_rows(table, {key: rows[key] for key in wrong if key in rows})
            tables.remove_rows(table, [key for key in wrong if key not in rows])
        except SamewireError as error:
            self.failed.append(f"table {table}: {error}")

    def _whose(self, table: str, key: bytes) -> str:
        if self._owners is None:
            self._owners = self._switch.balancers.owners()
        load_balancer_id = self._owners.get(self._switch.balancers.number_of(table, key), "")
        value = self._view.load_balancer(load_balancer_id)
        return f" of load balancer {value.service_name or value.name or value.id}" if value else ""


def _operation(table: str, key: bytes, row: bytes | None) -> Operation:
    shape = ALL_TABLES[table]
    if row is None:
        return Remove(table, shape.key.unpack(key))
    return Put(table, shape.key.unpack(key), shape.value.unpack(row))
