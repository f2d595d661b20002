"""Removes what the programs have noted about ports that are gone: their flows, drops and rule counts.

The flows are stale anyway; this frees their places in the table. Drops of services that are gone stay, without
their names.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Collection
from typing import Final

import structlog
from msgspec.structs import replace

from samewire.errors import KernelError
from samewire.kernel.bpf import BpfMap
from samewire.vfp.constants import Layer
from samewire.vfp.tables import Count, DropKey, Flow, RuleCountKey

log = structlog.get_logger(__name__)

_DELAY_S: Final = 5.0  # many ports go together
_SLICE: Final = 512  # flows looked at before others have their turn
_PORTS: Final = struct.Struct("=II")
_PORTS_AT: Final = next(field for field in Flow.fields if field.name == "port").offset
_OF_SERVICES: Final = (Layer.LB, Layer.ROUTE)  # whose drops name services


def service_of(key: bytes) -> int:
    """The service that a drop names, 0 for none."""
    found = DropKey.unpack(key)
    return found.rule if found.layer in _OF_SERVICES else 0


def join_drops(drops: BpfMap, services: Collection[int]) -> None:
    """Count the drops of these services as of none, so that no port's sum goes down. Raises KernelError."""
    named: dict[bytes, list[tuple[bytes, bytes]]] = {}
    for key, value in drops.items():
        if service_of(key) in services:
            named.setdefault(replace(DropKey.unpack(key), rule=0).pack(), []).append((key, value))
    for joined, rows in named.items():
        present = drops.lookup(joined)
        values = [value for _, value in rows] + ([] if present is None else [present])
        sums = [
            Count(sum(Count.unpack(one).value for one in counts)).pack()
            for counts in zip(*map(drops.per_cpu_values, values), strict=True)
        ]
        drops.delete_batch([key for key, _ in rows])  # first: a full table has no room for one more
        drops.update(joined, b"".join(sums))


class PortSweeper:
    """Collects ports, and sweeps once for all of them."""

    def __init__(self, flows: BpfMap, drops: BpfMap, rule_counts: BpfMap) -> None:
        self._flows = flows
        self._drops = drops
        self._rule_counts = rule_counts
        self._ports: set[int] = set()
        self._task: asyncio.Task[None] | None = None

    def add(self, ifindex: int) -> None:
        """Have the flows of a removed port swept soon."""
        self._ports.add(ifindex)
        if self._task is None:
            self._task = asyncio.ensure_future(self._later())

    def add_left_over(self, known: Collection[int]) -> None:
        """After a start: sweep what is noted about ports that are not ``known``. Raises KernelError.

        An earlier daemon was stopped before it came to that, or was not there when they went.
        """
        noted = {RuleCountKey.unpack(key).port for key, _ in self._rule_counts.items()}
        noted |= {DropKey.unpack(key).port for key, _ in self._drops.items()}
        for ifindex in noted - {0, *known}:
            self.add(ifindex)

    async def close(self) -> None:
        """Give up a sweep that has not begun or is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def sweep(self, ports: set[int]) -> int:
        """Remove all flows and counts of these ports, a slice at a time; returns how many flows. Raises
        KernelError.
        """
        removed = 0
        doomed = [key for key, _ in self._drops.items() if DropKey.unpack(key).port in ports]
        self._drops.delete_batch(doomed)
        doomed = [key for key, _ in self._rule_counts.items() if RuleCountKey.unpack(key).port in ports]
        self._rule_counts.delete_batch(doomed)
        doomed = []
        for number, (key, value) in enumerate(self._flows.items()):
            if not ports.isdisjoint(_PORTS.unpack_from(value, _PORTS_AT)):
                doomed.append(key)
            if number % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
        for number, key in enumerate(doomed):
            removed += self._flows.delete(key)
            if number % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
        return removed

    async def _later(self) -> None:
        try:
            while self._ports:
                await asyncio.sleep(_DELAY_S)
                ports, self._ports = self._ports, set()
                try:
                    removed = await self.sweep(ports)
                except KernelError:
                    self._ports |= ports  # with the next one that goes
                    raise
                if removed:
                    log.info("flows of removed ports swept", ports=len(ports), flows=removed)
        except KernelError as error:
            log.warning("flows of removed ports could not be swept", error=str(error))
        finally:
            self._task = None
