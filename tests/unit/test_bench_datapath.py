"""How scenarios are measured in turns, and what a broken one does to the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from benchmarks import datapath, native
from benchmarks.case import Context
from benchmarks.datapath import Datapath
from benchmarks.errors import BenchError
from benchmarks.machine import IdleGate
from benchmarks.native import Endpoints, LoadResult
from benchmarks.scenario import Scenario


class _Steps:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def step(self, text: str) -> None:
        self.texts.append(text)


class _Fake(Scenario):
    """A scenario that builds nothing; ``breaks`` says where it fails."""

    def __init__(self, name: str, breaks: str = "") -> None:
        self.name = name
        self.label = name
        self.breaks = breaks
        self.torn_down = 0
        self.inserts = 0
        super().__init__()

    def setup(self) -> Endpoints:
        if self.breaks == "setup":
            raise RuntimeError("no such thing")
        return Endpoints(self.name, self.name, "10.0.0.1")

    def teardown(self) -> None:
        super().teardown()
        self.torn_down += 1
        if self.breaks == "teardown":
            raise BenchError("stuck")

    def flow_inserts(self) -> int | None:
        self.inserts += 500
        return self.inserts


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """What would have been measured: (scenario, mode, port)."""
    made: list[tuple[str, str, int]] = []

    def measure(ends: Endpoints, mode: str, seconds: float, cpu: int, port: int) -> LoadResult:
        made.append((ends.client, mode, port))
        if ends.client == "lossy" and mode == "crr":
            raise BenchError("more than 20 datagrams lost")
        return LoadResult(mode, seconds, 1000, 1e9 * len(made), 0, 0)

    monkeypatch.setattr(native, "measure", measure)
    return made


def _context(steps: _Steps, repetitions: int = 2) -> Context:
    gate = IdleGate(window_s=0, limit_s=0)
    return Context(True, repetitions, 0.1, 40, 0, gate, steps)


def _makers(scenarios: list[_Fake]) -> list[Callable[[], Scenario]]:
    return [partial(_itself, scenario) for scenario in scenarios]


def _itself(scenario: Scenario) -> Scenario:
    return scenario


def test_turns_are_interleaved_and_tuples_fresh(calls: list[tuple[str, str, int]]) -> None:
    scenarios, steps = [_Fake("a"), _Fake("b")], _Steps()
    case = Datapath("case", _makers(scenarios), ("rr", "crr"), ())
    context = _context(steps)
    outcome = case.run(context)
    assert [(name, mode) for name, mode, _ in calls] == [
        *[("a", "rr"), ("b", "rr"), ("a", "crr"), ("b", "crr")],
        *[("b", "rr"), ("a", "rr"), ("b", "crr"), ("a", "crr")],
    ]
    used = [port for name, _, port in calls if name == "a"]
    assert len(used) == len(set(used)) == 4
    assert len(steps.texts) == case.steps(context)
    assert not outcome.failures
    assert [scenario.torn_down for scenario in scenarios] == [1, 1]
    assert outcome.measured["a", "rr"].count == 2
    assert outcome.measured["a", "flow_inserts"].value == 0.5
    assert context.gate.blocks == 2  # one a figure, for several repetitions
    assert len(outcome.samples["a", "rr"]) == 2


def test_a_stream_is_reported_in_gbit(calls: list[tuple[str, str, int]]) -> None:
    outcome = Datapath("case", _makers([_Fake("a")]), ("stream",), ()).run(_context(_Steps(), 1))
    assert outcome.measured["a", "stream"].value == pytest.approx(8.0)


def test_a_scenario_that_does_not_come_up_is_removed_and_the_others_go_on(
    calls: list[tuple[str, str, int]],
) -> None:
    broken, good = _Fake("broken", "setup"), _Fake("good")
    outcome = Datapath("case", _makers([broken, good]), ("rr",), ()).run(_context(_Steps()))
    assert outcome.failures == {"broken": "RuntimeError: no such thing"}
    assert {name for name, _, _ in calls} == {"good"}
    assert broken.torn_down
    assert good.torn_down
    assert ("broken", "rr") not in outcome.measured


def test_a_scenario_that_breaks_off_is_not_measured_again(calls: list[tuple[str, str, int]]) -> None:
    outcome = Datapath("case", _makers([_Fake("lossy"), _Fake("good")]), ("crr",), ()).run(_context(_Steps()))
    assert outcome.failures == {"lossy": "more than 20 datagrams lost"}
    assert [name for name, _, _ in calls] == ["lossy", "good", "good"]


def test_a_scenario_that_cannot_be_removed_is_reported(calls: list[tuple[str, str, int]]) -> None:
    stuck, good = _Fake("stuck", "teardown"), _Fake("good")
    outcome = Datapath("case", _makers([stuck, good]), ("rr",), ()).run(_context(_Steps()))
    assert outcome.failures == {"stuck": "stuck"}
    assert good.torn_down == 1
    assert outcome.measured["stuck", "rr"].count == 2


def test_a_gbit_is_a_thousand_million_bits() -> None:
    assert datapath.BYTES_TO_GBIT * 125_000_000 == 1
