"""From outcomes to rows, verdicts and files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import goals, results
from benchmarks.case import METRICS, Case, Comparison, Context, Outcome
from benchmarks.machine import Environment
from benchmarks.results import Report
from benchmarks.stats import Summary

ENVIRONMENT = Environment("6.1", "x86_64", 2, "a CPU", 1, True, 5, 1.0, 1, 20, 0.25)


class _Case(Case):
    name = "overlay"

    def __init__(self, *comparisons: Comparison) -> None:
        self.comparisons = comparisons

    def steps(self, context: Context) -> int:
        return 0

    def run(self, context: Context) -> Outcome:
        return Outcome()


def _outcome(**figures: float) -> Outcome:
    """Figures named subject__metric."""
    named = {(key.split("__")[0], key.split("__")[1]): value for key, value in figures.items()}
    return Outcome(measured={key: Summary(value, value - 1, value + 1, 5) for key, value in named.items()})


def _line(comparison: Comparison, outcome: Outcome) -> results.Line:
    [line] = results.lines_of(_Case(comparison), outcome, "ours")
    return line


@pytest.mark.parametrize(
    ("ours", "verdict"), [(114.0, "miss"), (115.0, "pass"), (129.9, "pass"), (130.0, "stretch")]
)
def test_a_goal_is_met_from_its_ratio_on(ours: float, verdict: str) -> None:
    line = _line(Comparison("rr", "ours", "peer", 1.15, 1.3), _outcome(ours__rr=ours, peer__rr=100.0))
    assert line.verdict == verdict


def test_less_time_is_better() -> None:
    line = _line(
        Comparison("add_median", "ours", "peer", 3.0), _outcome(ours__add_median=3, peer__add_median=9)
    )
    assert (line.row.ratio, line.verdict) == (3.0, "pass")


def test_a_fixed_limit_is_a_peer() -> None:
    comparison = Comparison("memory", "ours", "limit", 1.0, limit=80.0)
    assert _line(comparison, _outcome(ours__memory=60)).verdict == "pass"
    row = _line(comparison, _outcome(ours__memory=100)).row
    assert (row.value, row.peer, row.peer_value, row.ratio, row.goal) == (100, "limit", 80, 0.8, 1.0)


def test_what_was_not_measured_stays_visible() -> None:
    outcome = _outcome(peer__rr=100.0)
    outcome.fail("ours", ValueError("it broke"))
    outcome.fail("ours", ValueError("later"))
    line = _line(Comparison("rr", "ours", "peer", 1.15), outcome)
    assert (line.row.value, line.row.peer_value, line.row.ratio) == (None, 100, None)
    assert (line.verdict, line.failure) == ("failed", "ValueError: it broke")


def test_a_missing_peer_is_no_pass() -> None:
    line = _line(Comparison("rr", "ours", "peer", 1.0), _outcome(ours__rr=100.0))
    assert (line.row.ratio, line.verdict) == (None, "failed")


def test_rows_without_goal_have_no_verdict() -> None:
    assert _line(Comparison("flow_inserts", "ours"), _outcome(ours__flow_inserts=1.0)).verdict == ""
    line = _line(Comparison("rr", "kernel", "raw"), _outcome(kernel__rr=50.0, raw__rr=100.0))
    assert (line.row.case, line.row.ratio, line.verdict) == ("overlay: kernel", 0.5, "")


def test_the_files(tmp_path: Path) -> None:
    case = _Case(Comparison("rr", "ours", "peer", 1.15), Comparison("crr", "ours", "peer", 1.0))
    lines = results.lines_of(case, _outcome(ours__rr=123456.7, peer__rr=100000.0), "ours")
    report = Report(ENVIRONMENT, lines, {"overlay, ours": "line one\nline two"})
    results.write(report, tmp_path)
    rows = json.loads((tmp_path / "latest.json").read_bytes())
    assert rows[0] == {
        "case": "overlay",
        "metric": "rr",
        "value": 123460.0,
        "unit": "transactions/s",
        "peer": "peer",
        "peer_value": 100000.0,
        "ratio": 1.2346,
        "goal": 1.15,
    }
    assert rows[1]["value"] is None
    text = (tmp_path / "latest.md").read_text()
    assert "| ours | TCP RR | 123,457 (123,456–123,458) | transactions/s | peer |" in text
    assert "- overlay, ours: line one line two" in text
    assert json.loads((tmp_path / "latest-detail.json").read_bytes())["environment"]["noisy_blocks"] == 1


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (36881.4, "36,881"), (208.6, "209"), (9.345, "9.35"), (0.9512, "0.951")]
)
def test_numbers_for_people(value: float | None, text: str) -> None:
    assert results.number(value) == text


def test_every_comparison_names_a_known_metric_and_every_goal_a_peer() -> None:
    for case in goals.cases().values():
        for comparison in case.comparisons:
            assert comparison.metric in METRICS
            assert comparison.goal is None or comparison.peer is not None
            assert comparison.stretch is None or comparison.goal is not None


def test_the_goals_of_the_specification_are_all_there() -> None:
    """Spot checks, one per line of the specification's table."""
    wanted = {
        ("cni", "add_median", "bridge"): 3.0,
        ("cni", "add_p99", "bridge + ipMasq"): 8.0,
        ("cni", "add_parallel", "bridge"): 4.0,
        ("cni", "del_median", "bridge + ipMasq"): 15.0,
        ("same-node", "crr", "stateless redirect_peer"): 0.85,
        ("same-node", "udp_rr", "bridge + ipMasq + conntrack"): 1.0,
        ("overlay", "udp_rr", "kernel VXLAN + masq + conntrack"): 1.15,
        ("l2bridge", "stream", "host-gw + masq + conntrack"): 1.0,
        ("outside", "crr", "bridge + masquerade"): 1.3,
        ("scale", "memory", "limit"): 1.0,
    }
    cases = goals.cases()
    found = {
        (case.name, one.metric, one.peer): one.goal
        for case in cases.values()
        for one in case.comparisons
        if one.goal  # other subjects stand beside the same peers
    }
    assert {key: found.get(key) for key in wanted} == wanted
