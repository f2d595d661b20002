"""Pure arithmetic of the benchmarks: summaries, ratios, the order of interleaved runs, the idle fraction."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal, TypeVar

import msgspec

Better = Literal["higher", "lower"]
T = TypeVar("T")


class Summary(msgspec.Struct, frozen=True):
    """One figure: the headline ``value`` (a median unless the metric says else), the range, the count."""

    value: float
    low: float
    high: float
    count: int


def percentile(samples: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest sample that at least ``percent`` % of all do not exceed.

    Raises ``ValueError`` for no samples or a percentage outside (0, 100].
    """
    if not samples or not 0 < percent <= 100:
        raise ValueError("percentile wants samples and 0 < percent <= 100")
    rank = math.ceil(len(samples) * percent / 100)
    return sorted(samples)[rank - 1]


def median_of(samples: Sequence[float]) -> Summary:
    """Median with minimum and maximum. Raises ``ValueError`` for no samples."""
    if not samples:
        raise ValueError("no samples")
    return Summary(statistics.median(samples), min(samples), max(samples), len(samples))


def percentile_of(samples: Sequence[float], percent: float) -> Summary:
    """A percentile with minimum and maximum of the same samples."""
    return Summary(percentile(samples, percent), min(samples), max(samples), len(samples))


def ratio(value: float, peer_value: float, better: Better) -> float | None:
    """How many times better ``value`` is than ``peer_value``; above 1 is always a win. None if undefined."""
    over, under = (value, peer_value) if better == "higher" else (peer_value, value)
    return over / under if under > 0 else None


def paired_ratio(values: Sequence[float], peer_values: Sequence[float], better: Better) -> float | None:
    """The median of the ratios of samples taken side by side; None if there is no pair, or an undefined one.

    What a whole repetition suffers (a neighbour of this virtual machine, its clock) hits both sides of a pair: the
    ratio of two medians would keep it.
    """
    ratios = [ratio(value, peer, better) for value, peer in zip(values, peer_values, strict=False)]
    known = [one for one in ratios if one is not None]
    return statistics.median(known) if known and len(known) == len(ratios) else None


def interleaved(items: Sequence[T], repetition: int) -> list[T]:
    """The order of one repetition: reversed every other time, so that drift does not favour a place."""
    return list(reversed(items)) if repetition % 2 else list(items)


def idle_fraction(before: Sequence[int], after: Sequence[int]) -> float:
    """The idle share of all CPU time between two ``cpu`` lines of /proc/stat.

    proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal; guest time is part of user. An
    interval without a tick counts as busy.
    """
    spent = [new - old for old, new in zip(before[:8], after[:8], strict=True)]
    total = sum(spent)
    return (spent[3] + spent[4]) / total if total > 0 else 0.0
