"""The arithmetic of the benchmarks."""

from __future__ import annotations

import pytest

from benchmarks import stats
from benchmarks.stats import Summary


def test_median_comes_with_its_range() -> None:
    assert stats.median_of([5.0, 1.0, 3.0]) == Summary(3.0, 1.0, 5.0, 3)
    assert stats.median_of([4.0, 1.0]) == Summary(2.5, 1.0, 4.0, 2)


def test_no_samples_is_an_error_and_not_a_zero() -> None:
    with pytest.raises(ValueError, match="samples"):
        stats.median_of([])
    with pytest.raises(ValueError, match="samples"):
        stats.percentile([], 99)


@pytest.mark.parametrize(
    ("count", "percent", "expected"), [(200, 99, 198), (40, 99, 40), (100, 99, 99), (10, 50, 5), (3, 100, 3)]
)
def test_percentile_is_a_nearest_rank(count: int, percent: float, expected: int) -> None:
    samples = [float(value) for value in range(count, 0, -1)]
    assert stats.percentile(samples, percent) == expected
    assert stats.percentile_of(samples, percent) == Summary(expected, 1, count, count)


@pytest.mark.parametrize("percent", [0, -1, 101])
def test_percentile_refuses_what_is_none(percent: float) -> None:
    with pytest.raises(ValueError, match="percent"):
        stats.percentile([1.0], percent)


def test_ratio_above_one_is_a_win_in_both_directions() -> None:
    assert stats.ratio(300, 100, "higher") == 3
    assert stats.ratio(3, 9, "lower") == 3
    assert stats.ratio(0, 9, "lower") is None
    assert stats.ratio(9, 0, "higher") is None


def test_every_other_repetition_is_reversed() -> None:
    assert [stats.interleaved("abc", repetition) for repetition in range(3)] == [
        ["a", "b", "c"],
        ["c", "b", "a"],
        ["a", "b", "c"],
    ]


def test_idle_fraction_counts_steal_as_busy_and_guest_once() -> None:
    before = [100, 0, 50, 1000, 0, 0, 0, 0, 70, 0]
    after = [110, 0, 55, 1080, 3, 0, 0, 2, 99, 0]
    assert stats.idle_fraction(before, after) == 0.83
    assert stats.idle_fraction(before, before) == 0


def test_a_paired_ratio_forgets_what_hits_both_sides_of_a_pair() -> None:
    assert stats.paired_ratio([10.0, 5.0, 20.0], [8.0, 4.0, 16.0], "higher") == 1.25
    assert stats.paired_ratio([4.0], [8.0, 1.0], "lower") == 2.0
    assert stats.paired_ratio([], [1.0], "higher") is None
    assert stats.paired_ratio([1.0, 1.0], [0.0, 1.0], "higher") is None
