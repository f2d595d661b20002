"""Health checks of direct server return: whether the answers that leave from the backend's node get to the client.

Each node sees one half of such a connection. The one that the client has called sees all of the client's packets and
none of the answers; the backend's node sees both, and answers with an address that is another node's. A client that
sends nothing but its SYN has not got the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from samewire.counted import counted
from samewire.trace.matching import nexthop
from samewire.trace.rows import typed_rows
from samewire.trace.snapshot import Finding, Level, Snapshot
from samewire.vfp.address import address_text
from samewire.vfp.constants import Arrival, Fate, FlowFlag, TcpFlag
from samewire.vfp.model import Entries
from samewire.vfp.simulate.entries import tuple_of
from samewire.vfp.tables import Flow, FlowKey

_TCP: Final = 6
_PATIENCE_TICKS: Final = (
    2  # a tick is about a second; an answer that arrives is confirmed within milliseconds
)
_SHOWN: Final = 3


class _Way(NamedTuple):
    """What such connections have in common: the address that was called, and the backend's node, "" = this one."""

    called: str
    provider: str


def direct_return(snapshot: Snapshot) -> Iterator[Finding]:
    """Clients get the answers that do not come back the way they asked."""
    going: dict[_Way, list[str]] = {}
    waiting: dict[_Way, list[str]] = {}
    for key, flow in typed_rows(snapshot.tables or {}, "sw_flows", FlowKey, Flow):
        way = _way(snapshot.tables or {}, key, flow)
        if way is None:
            continue
        client = address_text(key.family, tuple_of(key, flow.flags & FlowFlag.INITIATOR).source)
        if flow.tcp[0] & (TcpFlag.DATA | TcpFlag.FIN):
            going.setdefault(way, []).append(client)
        elif snapshot.now_tick - flow.seen_tick >= _PATIENCE_TICKS:
            waiting.setdefault(way, []).append(client)
    for way, clients in waiting.items():
        yield _finding(way, clients, works=way in going)


def _way(tables: Entries, key: FlowKey, flow: Flow) -> _Way | None:
    """None for what is no TCP connection of DSR as its initiator's packets see it."""
    if key.protocol != _TCP or flow.flags & FlowFlag.SECOND or not flow.flags & FlowFlag.DIRECT:
        return None
    direction = flow.flags & FlowFlag.INITIATOR
    ends = tuple_of(key, direction)
    called = f"{address_text(key.family, ends.destination)} port {ends.destination_port}"
    action = flow.action[direction]
    if flow.arrival == Arrival.TUNNEL and action.fate == Fate.PORT:
        return _Way(called, "")
    hop = nexthop(tables, action.target) if action.fate == Fate.TUNNEL else None
    if flow.arrival != Arrival.UPLINK or hop is None:
        return None
    return _Way(called, address_text(hop.family, hop.address))


def _finding(way: _Way, clients: list[str], *, works: bool) -> Finding:
    names = ", ".join(sorted(set(clients))[:_SHOWN]) + (", ..." if len(set(clients)) > _SHOWN else "")
    if way.provider:
        who = f"node {way.provider} answers {names} directly"
        but = "its pod does not answer, or the answers are lost (the doctor there tells which)"
    else:
        who = f"this node answers {names} directly"
        but = "the answers are lost on the way"
    return Finding(
        Level.WARNING if works else Level.ERROR,
        "direct-return",
        way.called,
        f"{who}, with the address that was called, and {counted(len(clients), 'connection')} did not get past the "
        f"client's SYN: {but}. A router with strict reverse path filtering (rp_filter=1), a cloud's source check or a "
        "stateful firewall drops packets whose source is reached by another way",
        "Let the routers on the way filter loosely (net.ipv4.conf.*.rp_filter=2) and switch the source check off, or "
        'give the Service the annotation samewire.io/dsr: "false": then it is translated (SNAT).',
    )
