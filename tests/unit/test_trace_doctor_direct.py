"""Connections of direct server return whose answers do not arrive are told from those that work."""

from __future__ import annotations

import pytest

from samewire.trace.doctor_direct import direct_return
from samewire.trace.snapshot import Finding, Level, Snapshot
from samewire.vfp.address import parse_address
from samewire.vfp.constants import SCOPE_UPLINK, Arrival, Fate, FlowFlag, TcpFlag
from samewire.vfp.record import Record
from samewire.vfp.simulate.packet import Tuple
from samewire.vfp.simulate.state import make_key
from samewire.vfp.tables import Action, Flow, Id, Nexthop
from tests.support.tools import FACTS

NOW, HOP = 100, 77
SYN, DATA = TcpFlag.SYN, TcpFlag.DATA


def action(fate: int, target: int = 0) -> Action:
    return Action(fate, 0, 0, 0, target, bytes(16), bytes(16))


def look(
    *connections: tuple[str, int, int], arrival: int = Arrival.UPLINK, flags: int = FlowFlag.DIRECT
) -> list[Finding]:
    """What the doctor says of connections (client, what it has sent, last seen at) to 192.0.2.80 port 80."""
    hop = Nexthop(2, 4, 1450, 0, 4096, parse_address("192.168.1.11").packed, bytes(16), bytes(6))
    rows: dict[Record, Record] = {}
    going = action(Fate.TUNNEL, HOP) if arrival == Arrival.UPLINK else action(Fate.PORT, 9)
    for client, sent, seen in connections:
        ends = Tuple(parse_address(client).packed, parse_address("192.0.2.80").packed, 40000, 80)
        key, direction = make_key(ends, SCOPE_UPLINK, 4, 6)
        actions = (action(0), going) if direction else (going, action(0))
        own = flags | (FlowFlag.INITIATOR if direction else 0)
        rows[key] = Flow(actions, (0, 0), (0, 0), (0, 0), seen, 0, 0, own, (sent, 0), arrival)
    snapshot = Snapshot(
        facts=FACTS,
        networks=(),
        endpoints=(),
        tables={"sw_flows": rows, "sw_nexthops": {Id(HOP): hop}},
        differences=(),
        degraded={},
        live_namespaces=frozenset(),
        links=(),
        sysctls={},
        kernel_stats={},
        flow_capacity=1000,
        ageing_ticks=(1, 2),
        now_tick=NOW,
    )
    return list(direct_return(snapshot))


@pytest.mark.parametrize(
    ("arrival", "who"), [(Arrival.UPLINK, "node 192.168.1.11"), (Arrival.TUNNEL, "this node")]
)
def test_clients_that_never_get_past_their_syn(arrival: int, who: str) -> None:
    (finding,) = look(("198.51.100.5", SYN, NOW - 5), ("198.51.100.250", SYN, NOW - 9), arrival=arrival)
    assert (finding.level, finding.object) == (Level.ERROR, "192.0.2.80 port 80")
    assert finding.message.startswith(f"{who} answers 198.51.100.250, 198.51.100.5 directly")
    assert "2 connections" in finding.message


def test_some_get_through() -> None:
    (finding,) = look(("198.51.100.5", SYN, NOW - 5), ("198.51.100.6", SYN | DATA, NOW - 9))
    assert finding.level is Level.WARNING


def test_what_is_fine() -> None:
    assert look(("198.51.100.5", SYN | DATA, NOW - 50)) == []
    assert look(("198.51.100.5", SYN, NOW)) == [], "it may still get its answer"
    assert look(("198.51.100.5", SYN, NOW - 5), flags=0) == [], "no direct server return"
    assert look(("198.51.100.5", SYN, NOW - 5), flags=FlowFlag.DIRECT | FlowFlag.SECOND) == []
