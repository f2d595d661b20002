"""Packets and bytes of flows, joined with their rows. Pure."""

from __future__ import annotations

from msgspec.structs import replace

from samewire.trace.model import FlowEnd, FlowRow
from samewire.vfp.constants import FlowFlag
from samewire.vfp.counts import counted_slots
from samewire.vfp.model import Entries
from samewire.vfp.tables import Flow, FlowCount, Id


class Traffic:
    """What tables count of flows. Of ``sw_flow_counts`` only what is asked for is looked up."""

    def __init__(self, tables: Entries) -> None:
        self._slots = counted_slots(tables)
        self._counts = tables.get("sw_flow_counts", {})

    def counted(self, row: FlowRow, flow: Flow, other: Flow | None) -> FlowRow:
        """The row with what its ends have sent. ``flow``: the initiator's entry, or the target's when it is alone;
        ``other``: the target's, where it has one of its own.
        """
        if not self._slots:
            return row
        is_second, is_pair = flow.flags & FlowFlag.SECOND, flow.flags & FlowFlag.PAIR
        forth = None if is_second else flow
        back = other or (flow if is_second or not is_pair else None)
        return replace(
            row,
            initiator=self._sent(row.initiator, forth, by_initiator=True),
            target=self._sent(row.target, back, by_initiator=False),
        )

    def _sent(self, end: FlowEnd, entry: Flow | None, *, by_initiator: bool) -> FlowEnd:
        if entry is None:
            return end
        direction = bool(entry.flags & FlowFlag.INITIATOR) == by_initiator
        found = self._counts.get(Id(entry.slot + self._slots if direction else entry.slot))
        return replace(end, packets=found.packets, bytes=found.bytes) if isinstance(found, FlowCount) else end
