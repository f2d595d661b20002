"""The connections of the flow table as rows for people, joined with the endpoints they belong to. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, cast

from samewire.trace.model import FlowEnd, FlowRow
from samewire.trace.names import Names, member_name
from samewire.trace.probe import view_of_ends
from samewire.trace.rows import PackedRows
from samewire.trace.traffic import Traffic
from samewire.vfp.constants import TICK_S, Arrival, Fate, FlowFlag
from samewire.vfp.model import Entries
from samewire.vfp.simulate.entries import (
    has_ended,
    is_established,
    partner_key,
    plain_scope,
    transpose,
    tuple_of,
)
from samewire.vfp.simulate.packet import TCP
from samewire.vfp.tables import Flow, FlowKey

_PLACES: Final = {Arrival.UPLINK: "uplink", Arrival.TUNNEL: "tunnel", Arrival.HOST: "node"}
_FATES: Final = {Fate.UPLINK: "uplink", Fate.TUNNEL: "tunnel", Fate.HOST: "node", Fate.INGRESS: "uplink"}


def flow_rows(tables: Entries, names: Names, now_tick: int, port: int = 0) -> Iterator[FlowRow]:
    """Every connection, or those of one port, the most recently seen first; each is made when it is asked for."""
    flows = PackedRows.of(FlowKey, Flow, tables.get("sw_flows", {}))
    traffic = Traffic(tables)
    told: set[bytes] = set()  # the other entries of connections that have been shown: those seen earlier
    for packed in flows.highest_first("seen_tick"):
        if packed in told:
            continue
        key, flow = cast(tuple[FlowKey, Flow], flows.packed(packed))
        if port and port not in flow.port:
            continue
        other = None
        if flow.flags & FlowFlag.PAIR:
            there = partner_key(key, flow)
            other = cast(Flow | None, flows.get(there))
            if other is not None:
                told.add(there.pack())
                if flow.flags & FlowFlag.SECOND:
                    key, flow, other = there, other, flow
        yield traffic.counted(_flow_row(names, now_tick, key, flow, other), flow, other)


def _flow_row(names: Names, now_tick: int, key: FlowKey, flow: Flow, other: Flow | None) -> FlowRow:
    """``flow`` under ``key`` is the initiator's entry; or, when that is gone, the target's alone."""
    initiator = flow.flags & FlowFlag.INITIATOR
    ends = tuple_of(key, initiator)
    after = ends if flow.flags & FlowFlag.SECOND else transpose(ends, flow.action[initiator])
    seen = max(flow.seen_tick, other.seen_tick if other else 0)
    return FlowRow(
        ends=view_of_ends(key.family, key.protocol, ends),
        translated=view_of_ends(key.family, key.protocol, after) if after != ends else None,
        scope=plain_scope(key.scope),
        arrival=member_name(Arrival, flow.arrival),
        initiator=_initiator(names, flow),
        target=_target(names, flow, flow.action[initiator].fate),
        state=_state(key, flow, other),
        idle_s=round(max(0, now_tick - seen) * TICK_S, 1),
        rules=flow.rule,
        entries=2 if other else 1,
    )


def _initiator(names: Names, flow: Flow) -> FlowEnd:
    if flow.port[0]:
        return FlowEnd(port=flow.port[0], name=names.port(flow.port[0]))
    return FlowEnd(port=0, name=_PLACES.get(Arrival(flow.arrival), ""))


def _target(names: Names, flow: Flow, fate: int) -> FlowEnd:
    if flow.port[1]:
        return FlowEnd(port=flow.port[1], name=names.port(flow.port[1]))
    return FlowEnd(port=0, name=_FATES.get(Fate(fate), ""))


def _state(key: FlowKey, flow: Flow, other: Flow | None) -> str:
    flags = flow.flags | (other.flags if other else 0)
    if flags & FlowFlag.HOST:
        return "host"
    if key.protocol != TCP:
        return "replied" if flags & FlowFlag.REPLIED else "single"
    if flags & FlowFlag.DENIED:
        return "denied"
    if has_ended(flow, other):
        return "closing"
    return "established" if is_established(flow, other) else "half-open"
