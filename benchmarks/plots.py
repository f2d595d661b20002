"""One picture per case: every ratio as a bar, its goal as a mark. SVG."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("svg")  # before pyplot: no display is wanted

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.case import METRICS
from benchmarks.results import Line, Report, by_case, number

BAR_HEIGHT = 0.8
COLOURS = {"pass": "#2a9d8f", "stretch": "#1b7f5f", "miss": "#e76f51", "": "#8d99ae", "failed": "#d9d9d9"}


def write(report: Report, directory: Path) -> list[Path]:
    """Write ``latest-<case>.svg`` for every case that has ratios, replacing earlier ones; returns them."""
    directory.mkdir(parents=True, exist_ok=True)
    for stale in directory.glob("latest-*.svg"):
        stale.unlink()
    written = []
    for case, all_lines in by_case(report.lines).items():
        lines = [line for line in all_lines if line.row.ratio is not None]
        if lines:
            path = directory / f"latest-{case}.svg"
            _plot(case, lines, path)
            written.append(path)
    return written


def _plot(case: str, lines: list[Line], path: Path) -> None:
    # A fixed salt and no date: the same figures give the same file.
    with mpl.rc_context({"svg.hashsalt": "samewire", "font.size": 8}):
        figure, axes = plt.subplots(figsize=(9, 1.2 + 0.28 * len(lines)))
        _bars(axes, lines)
        axes.set_title(f"{case}: times better than the peer (black: goal)")
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def _bars(axes: Axes, lines: list[Line]) -> None:
    for place, line in enumerate(lines):
        ratio = line.row.ratio or 0.0
        axes.barh(place, ratio, height=BAR_HEIGHT, color=COLOURS[line.verdict])
        axes.text(ratio, place, f" {number(ratio)}×", va="center")
        if line.row.goal is not None:
            ends = (place - BAR_HEIGHT / 2, place + BAR_HEIGHT / 2)
            axes.vlines(line.row.goal, *ends, color="black", linewidth=1.5)
    labels = [
        f"{METRICS[line.row.metric].title}: {line.comparison.subject} / {line.row.peer}" for line in lines
    ]
    axes.set_yticks(range(len(lines)), labels)
    axes.invert_yaxis()
    axes.axvline(1.0, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xlabel("ratio")
    axes.margins(x=0.1)
