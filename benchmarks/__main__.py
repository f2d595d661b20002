"""``python -m benchmarks [--cases a,b] [--quick]``: run, print, write benchmarks/results (as root)."""

from __future__ import annotations

import os
import platform
import signal
import sys
from types import FrameType

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from benchmarks import goals, machine, native, netns, plots, results
from benchmarks.case import METRICS, Case, Context
from benchmarks.ours import NAME
from benchmarks.results import Line, Report

FULL = {"repetitions": 80, "seconds": 0.1, "pods": 200}
QUICK = {"repetitions": 10, "seconds": 0.1, "pods": 40}
LOG_WIDTH = 160
STYLES = {"pass": "green", "stretch": "bold green", "miss": "bold red", "failed": "red"}


class _Bar:
    """The progress of one case, as the case sees it."""

    def __init__(self, progress: RichProgress, task: TaskID) -> None:
        self._progress = progress
        self._task = task
        self._begun = False

    def step(self, text: str) -> None:
        # A step is reported when it begins: the one before is done.
        self._progress.update(self._task, advance=1 if self._begun else 0, description=text)
        self._begun = True


def _context(quick: bool, gate: machine.IdleGate, bar: _Bar) -> Context:
    size = QUICK if quick else FULL
    return Context(
        quick=quick,
        repetitions=int(size["repetitions"]),
        seconds=float(size["seconds"]),
        pods=int(size["pods"]),
        cpu=machine.pinned_cpu(),
        gate=gate,
        progress=bar,
    )


def _environment(context: Context, gate: machine.IdleGate, private: bool) -> machine.Environment:
    return machine.Environment(
        kernel=platform.release(),
        machine=platform.machine(),
        cpus=os.cpu_count() or 1,
        cpu_model=machine.cpu_model(),
        pinned_cpu=context.cpu,
        private_cpu_share=private,
        repetitions=context.repetitions,
        seconds_each=context.seconds,
        noisy_blocks=gate.noisy,
        blocks=gate.blocks,
        steal_percent=gate.steal_percent(),
    )


def _run_all(chosen: list[Case], quick: bool, console: Console) -> Report:
    """Run the cases one after the other; what is measured is written after each, so that a run cut off keeps it."""
    gate = (
        machine.IdleGate(window_s=0.2, limit_s=0.6) if quick else machine.IdleGate(window_s=1.5, limit_s=30.0)
    )
    lines: list[Line] = []
    failures: dict[str, str] = {}
    columns = (TextColumn("{task.description:60}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with machine.cpu_share() as private, RichProgress(*columns, console=console) as progress:
        for case in chosen:
            task = progress.add_task(case.name)
            context = _context(quick, gate, _Bar(progress, task))
            progress.update(task, total=case.steps(context))
            outcome = case.run(context)
            progress.update(task, completed=case.steps(context), description=case.name)
            lines += results.lines_of(case, outcome, NAME)
            failures |= {f"{case.name}, {subject}": reason for subject, reason in outcome.failures.items()}
            report = Report(_environment(context, gate, private), lines, failures)
            results.write(report, results.RESULTS)
    return report


def _table(case: str, lines: list[Line]) -> Table:
    table = Table(title=case, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for heading in ("what", "metric", "figure", "peer", "peer's figure", "ratio", "goal", ""):
        numeric = heading in ("figure", "peer's figure", "ratio")
        wraps = heading in ("what", "metric", "peer")
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=not wraps)
    for line in lines:
        row, style = line.row, STYLES.get(line.verdict, "")
        metric = f"{METRICS[row.metric].title}, {row.unit}"
        peer = (
            (row.peer, results.number(row.peer_value), results.number(row.ratio))
            if row.peer
            else ("", "", "")
        )
        verdict = f"[{style}]{line.verdict}[/]" if style else ""
        goal = results.goal_text(line.comparison)
        table.add_row(line.comparison.subject, metric, results.number(row.value), *peer, goal, verdict)
    return table


def _print(report: Report, console: Console) -> None:
    for case, lines in results.by_case(report.lines).items():
        console.print()
        console.print(_table(case, lines))
    verdicts = [line.verdict for line in report.lines if line.row.goal is not None]
    passed = verdicts.count("pass") + verdicts.count("stretch")
    console.print()
    console.print(
        f"Goals: {passed} pass, {verdicts.count('miss')} miss, {verdicts.count('failed')} not measured."
    )
    env = report.environment
    if env.noisy_blocks:
        console.print(f"[yellow]{env.noisy_blocks} of {env.blocks} blocks began on a busy machine.[/]")
    for what, reason in report.failures.items():
        console.print(f"failed: {what}: {reason}", style="red", markup=False, soft_wrap=True)


def _choose(names: str) -> list[Case]:
    known = goals.cases()
    wanted = [name.strip() for name in names.split(",") if name.strip()] or list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise click.BadParameter(
            f"unknown {', '.join(unknown)}; there are {', '.join(known)}", param_hint="--cases"
        )
    return [known[name] for name in wanted]


def _stop(number: int, frame: FrameType | None) -> None:
    """A terminated run removes its namespaces as an interrupted one does."""
    raise KeyboardInterrupt


@click.command(context_settings={"max_content_width": 110})
@click.option("--cases", default="", help="Cases to run, separated by commas (default: all).")
@click.option("--quick", is_flag=True, help="Short and coarse: two cases in less than a minute.")
def main(cases: str, quick: bool) -> None:
    """Measure Samewire beside its peers. Exits 1 if a scenario failed; a missed goal is only shown."""
    chosen = _choose(cases)
    if os.geteuid() != 0:
        raise click.ClickException("the benchmarks make network namespaces and load eBPF: run them as root")
    signal.signal(signal.SIGTERM, _stop)
    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH)
    netns.sweep()
    native.build()
    report = _run_all(chosen, quick, console)
    plots.write(report, results.RESULTS)
    _print(report, console)
    written = "benchmarks/results/latest.{json,md}, latest-detail.json, latest-<case>.svg"
    console.print(f"Written: {written}", highlight=False)
    sys.exit(1 if report.failures else 0)


if __name__ == "__main__":
    main()
