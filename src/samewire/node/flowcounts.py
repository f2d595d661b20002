"""What was counted of flows, from the slots that they had in old maps to those that they get in new ones."""

from __future__ import annotations

from samewire.kernel.bpf import BpfMap
from samewire.node.layouts import Convert
from samewire.vfp.tables import FlowCount

_NONE = FlowCount(0, 0)


class CountCopy:
    """Adds to the new counters what the old ones have; called again, what they have got since."""

    def __init__(self, new: BpfMap, convert: Convert | None) -> None:
        self._new = new
        self._convert = convert
        self._carried: dict[tuple[int, int], FlowCount] = {}

    def carry(self, old: BpfMap | None, old_slot: int, new_slot: int) -> None:
        """One flow's, both directions. Nothing where one of the two does not count. Raises KernelError."""
        if old is None or self._convert is None or 1 in (old.max_entries, self._new.max_entries):
            return
        for direction in (0, 1):
            self._add(
                old,
                old_slot + direction * (old.max_entries // 2),
                new_slot + direction * (self._new.max_entries // 2),
            )

    def _add(self, old: BpfMap, source: int, target: int) -> None:
        counted = _read(old, source, self._convert)
        known = self._carried.get((old.id, source), _NONE)
        if counted == known:
            return
        self._carried[old.id, source] = counted
        there = _read(self._new, target, None)
        total = FlowCount(
            packets=there.packets + counted.packets - known.packets,
            bytes=there.bytes + counted.bytes - known.bytes,
        )
        self._new.update(target.to_bytes(4, "little"), total.pack())


def _read(counts: BpfMap, index: int, convert: Convert | None) -> FlowCount:
    value = counts.lookup(index.to_bytes(4, "little"))
    if value is None:
        return _NONE
    return FlowCount.unpack(convert(value) if convert else value)
