"""From outcomes to rows, and the files they are written to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.case import METRICS, Case, Comparison, Outcome
from benchmarks.machine import Environment
from benchmarks.stats import Summary, paired_ratio, ratio

RESULTS = Path(__file__).parent / "results"


class Row(msgspec.Struct, frozen=True):
    """One line of ``latest.json``.

    ``value`` is the subject's figure (null if it could not be measured), ``peer_value`` the peer's from the
    same run, ``ratio`` how many times better the subject is, ``goal`` the least ratio that passes (null: only
    reported). ``case`` is the case's name; a row about a peer carries the peer's name after a colon.
    """

    case: str
    metric: str
    value: float | None
    unit: str
    peer: str | None
    peer_value: float | None
    ratio: float | None
    goal: float | None


class Line(msgspec.Struct, frozen=True):
    """A row with what the tables show beside it."""

    row: Row
    comparison: Comparison
    summary: Summary | None
    peer_summary: Summary | None
    failure: str | None

    @property
    def verdict(self) -> str:
        """``pass``, ``stretch`` (that too), ``miss``, ``failed`` (not measured), or empty without a goal."""
        if self.row.value is None or (self.row.peer is not None and self.row.peer_value is None):
            return "failed"
        if self.row.goal is None or self.row.ratio is None:
            return ""
        if self.comparison.stretch is not None and self.row.ratio >= self.comparison.stretch:
            return "stretch"
        return "pass" if self.row.ratio >= self.row.goal else "miss"


class Report(msgspec.Struct, frozen=True):
    """A whole run: how, the lines of all cases, and what failed (case and subject -> reason)."""

    environment: Environment
    lines: list[Line]
    failures: dict[str, str]


def lines_of(case: Case, outcome: Outcome, subject: str) -> list[Line]:
    """The lines of one case; figures of anything but ``subject`` are named in the row's ``case``."""
    return [_line(case.name, comparison, outcome, subject) for comparison in case.comparisons]


def _line(case: str, comparison: Comparison, outcome: Outcome, subject: str) -> Line:
    metric = METRICS[comparison.metric]
    own = outcome.measured.get((comparison.subject, comparison.metric))
    if comparison.limit is not None:
        peer: Summary | None = Summary(comparison.limit, comparison.limit, comparison.limit, 1)
    else:
        peer = outcome.measured.get((comparison.peer or "", comparison.metric))
    row = Row(
        case=case if comparison.subject == subject else f"{case}: {comparison.subject}",
        metric=comparison.metric,
        value=_rounded(own.value if own else None),
        unit=metric.unit,
        peer=comparison.peer,
        peer_value=_rounded(peer.value if peer else None),
        ratio=_rounded(_ratio_of(comparison, outcome, own, peer)),
        goal=comparison.goal,
    )
    reasons = (outcome.failures.get(comparison.subject), outcome.failures.get(comparison.peer or ""))
    return Line(row, comparison, own, peer, next((reason for reason in reasons if reason), None))


def _ratio_of(
    comparison: Comparison, outcome: Outcome, own: Summary | None, peer: Summary | None
) -> float | None:
    """The ratio of pairs where there are any, else that of the two figures."""
    if own is None or peer is None:
        return None
    better = METRICS[comparison.metric].better
    samples = outcome.samples.get((comparison.subject, comparison.metric), [])
    peer_samples = outcome.samples.get((comparison.peer or "", comparison.metric), [])
    paired = paired_ratio(samples, peer_samples, better)
    return ratio(own.value, peer.value, better) if paired is None else paired


def _rounded(value: float | None) -> float | None:
    """Five significant digits: more would only pretend."""
    return None if value is None else float(f"{value:.5g}")


def number(value: float | None) -> str:
    """A figure for people: three or four digits, thousands separated."""
    if value is None:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def spread(summary: Summary | None) -> str:
    """``median (min-max)``, or the one value there is."""
    if summary is None:
        return "-"
    if summary.count == 1:
        return number(summary.value)
    return f"{number(summary.value)} ({number(summary.low)}–{number(summary.high)})"


def by_case(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """The lines of each case, in order."""
    grouped: dict[str, list[Line]] = {}
    for line in lines:
        grouped.setdefault(line.row.case.partition(":")[0], []).append(line)
    return grouped


def goal_text(comparison: Comparison) -> str:
    """The goal for people, with the stretch goal where there is one."""
    if comparison.goal is None:
        return ""
    return f"≥ {comparison.goal:g}" + (f" (stretch {comparison.stretch:g})" if comparison.stretch else "")


def markdown(report: Report) -> str:
    """The whole report as Markdown."""
    env = report.environment
    noisy = f"{env.noisy_blocks} of {env.blocks} blocks began on a machine that was not idle"
    share = "private CPU share" if env.private_cpu_share else "no private CPU share"
    parts = [
        "# Benchmark results",
        "",
        f"{env.cpus} CPUs ({env.cpu_model}), Linux {env.kernel} {env.machine}; datapath: {env.repetitions} "
        f"repetitions of {env.seconds_each:g} s, client and server on CPU {env.pinned_cpu}, {share}; "
        f"{noisy}; {env.steal_percent:.1f} % of the CPU time was stolen by the hypervisor.",
        "",
        "Median (min–max). The ratio counts how many times better the first figure is; of the datapath it is the "
        "median of the ratios of measurements taken one after the other.",
    ]
    for case, lines in by_case(report.lines).items():
        parts += [
            "",
            f"## {case}",
            "",
            "| what | metric | figure | unit | peer | peer's figure | ratio | goal | |",
        ]
        parts.append("|---|---|---|---|---|---|---|---|---|")
        parts += [_markdown_row(line) for line in lines]
    if report.failures:
        parts += ["", "## Failed", ""]
        parts += [f"- {what}: {' '.join(reason.split())}" for what, reason in report.failures.items()]
    return "\n".join(parts) + "\n"


def _markdown_row(line: Line) -> str:
    row, comparison = line.row, line.comparison
    cells = (
        comparison.subject,
        METRICS[row.metric].title,
        spread(line.summary),
        row.unit,
        row.peer or "",
        spread(line.peer_summary) if row.peer else "",
        number(row.ratio) if row.peer else "",
        goal_text(comparison),
        line.verdict,
    )
    return "| " + " | ".join(cells) + " |"


def write(report: Report, directory: Path) -> None:
    """Write ``latest.json`` (the rows), ``latest.md`` (the tables), ``latest-detail.json`` (all there is)."""
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / "latest.json", [line.row for line in report.lines])
    _write_json(directory / "latest-detail.json", report)
    (directory / "latest.md").write_text(markdown(report))


def _write_json(path: Path, value: Sequence[Row] | Report) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
