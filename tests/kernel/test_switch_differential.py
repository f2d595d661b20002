"""The compiled programs, their traced build and the Python simulator agree: verdict, output bytes, drop, flows.

Tables and packets are drawn from a small universe, so that most packets hit something.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from samewire.vfp.constants import Arrival, Fate, Reason
from samewire.vfp.record import Record
from samewire.vfp.simulate import Outcome, Simulator
from samewire.vfp.tables import Flow, FlowKey
from tests.support.frames import frames
from tests.support.switch_rig import SwitchRig, now_tick, require_root
from tests.support.universe import Universe, tables

pytestmark = [pytest.mark.root, pytest.mark.kernelcore]

_PASS = -1
_SHOT = 2
_REDIRECT = 7


@pytest.fixture(scope="module")
def rig() -> Iterator[SwitchRig]:
    require_root()
    rig = SwitchRig()
    yield rig
    rig.close()


def _expected_verdict(outcome: Outcome, arrival: Arrival) -> int:
    if outcome.answered or outcome.fate != Fate.NOWHERE:
        return _REDIRECT
    return _SHOT if outcome.drop is not None else _PASS


def _comparable(flows: dict[Record, Record]) -> dict[Record, Record]:
    """Flows without what depends on time and place."""
    result: dict[Record, Record] = {}
    for key, flow in flows.items():
        assert isinstance(key, FlowKey)
        assert isinstance(flow, Flow)
        result[key] = replace(flow, seen_tick=0, slot=0)
    return result


def _play(rig: SwitchRig, universe: Universe, played: list[tuple[Arrival, int, bytes]]) -> None:
    rig.load_tables(universe.tables)
    simulator = Simulator(universe.tables, now_tick())
    for arrival, ifindex, frame in played:
        traced = rig.trace(frame, arrival, ifindex)
        ran = rig.run(frame, arrival, ifindex)
        simulator.state.now_tick = now_tick()
        outcome = simulator.receive(frame, arrival, ifindex)
        verdict = _expected_verdict(outcome, arrival)
        context = f"{arrival.name} {ifindex} {frame.hex()}\n{outcome}\n{ran}"
        assert ran.verdict == verdict, context
        if verdict != _SHOT:
            assert ran.frame == outcome.frame, context
        counted = ran.drop and (ran.drop.port, ran.drop.rule, ran.drop.layer, ran.drop.reason)
        expected = outcome.drop if outcome.drop and outcome.drop[3] != Reason.NONE else None
        assert counted == expected, context
        _compare_trace(traced.output, traced.frame, outcome, context)
    assert _comparable(rig.table("sw_flows")) == _comparable(dict(simulator.flows.items()))


def _compare_trace(output: object, frame: bytes, outcome: Outcome, context: str) -> None:
    fate, layer, reason = output.fate, output.drop_layer, output.drop_reason  # type: ignore[attr-defined]
    if outcome.drop is not None:
        if outcome.drop[3] != Reason.NONE:
            assert (layer, reason) == outcome.drop[2:], context
        return
    assert reason == Reason.NONE, context
    if outcome.answered:
        return
    assert fate == outcome.fate, context
    if outcome.fate != Fate.NOWHERE:
        assert frame == outcome.frame, context


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_programs_trace_and_simulator_agree(rig: SwitchRig, data: st.DataObject) -> None:
    universe = data.draw(tables(rig.devices))
    played = data.draw(st.lists(frames(universe), min_size=1, max_size=12))
    _play(rig, universe, played)
