"""Load balancers, wanted against actual: a slice of the tables at a time, and the switch is free in between."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Final

from samewire.errors import SamewireError
from samewire.hcn.loadbalancers import LoadBalancer
from samewire.hcn.schema import Kind
from samewire.hcn.switch import Change, StoreView
from samewire.node.apply import NodeSwitch
from samewire.node.balancers import COUNTS
from samewire.vfp.compile.balanced import TABLES
from samewire.vfp.diff import Operation, Put, Remove
from samewire.vfp.tables import TABLES as ALL_TABLES

_SLICE: Final = 4096
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
        async with self._switch.lock:
            lacking = [value for value in self._view.load_balancers() if value.id not in balancers]
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
        """Remove what the programs have counted for services that are no more."""
        async with self._switch.lock:
            tables, known = self._switch.kernel.tables, self._switch.balancers.owners()
            counted = [key for key, _ in tables.rows(COUNTS)]
            tables.remove_rows(COUNTS, [key for key in counted if int.from_bytes(key, "little") not in known])

    async def _table(self, table: str) -> None:
        switch = self._switch
        entries = switch.kernel.tables.rows(table)
        seen: set[bytes] = set()
        more = True
        while more:
            async with switch.lock:
                wanted = switch.balancers.rows[table]
                part = list(islice(entries, _SLICE))
                seen.update(key for key, _ in part)
                self._look_again(table, [key for key, row in part if wanted.get(key) != row])
            more = len(part) == _SLICE
            await asyncio.sleep(0)
        async with switch.lock:
            self._look_again(table, [key for key in switch.balancers.rows[table] if key not in seen])

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
