"""The places of an ACL table's rules: each is a bit, in the order in which the rules are asked.

Between the rules of a long list there are places left, most of all at both ends of each stage. A stage has the places
from where it starts up to where the next one does; what passes goes on there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Final

from samewire.vfp.compile.acl_rules import Rule, Stage, order_of
from samewire.vfp.constants import ACL_WORDS

WORD: Final = 64

Starts = dict[Stage, int]
"""Where each stage starts, in order."""

Ends = dict[Stage, int | None]
"""Where what passes in a stage goes on; None or nothing for the last one."""


def words_of(rules: int) -> int:
    """Short lists are one word, and have no places between; long ones have four places for each rule, if they can."""
    return 1 if rules <= WORD else min(4 * -(-rules // WORD), ACL_WORDS)


def spread(rules: Sequence[Rule], at: int | None) -> list[int]:
    """Places for rules: of those that are left half lie between the rules, and half at the ends of the stages. Where
    rule ``at`` has found none, half of all lie before it.
    """
    count, capacity = len(rules), WORD * words_of(len(rules))
    if capacity == WORD:
        return list(range(count))
    left = capacity - count
    there = left // 2 if at is not None else 0
    stages = 1 + sum(one.stage != other.stage for one, other in pairwise(rules))
    end = (left - there) // 2 // (stages + 1)
    between = left - there - end * (stages + 1)
    places, ends = [], end
    for i, rule in enumerate(rules):
        if i and rule.stage != rules[i - 1].stage:
            ends += end
        places.append(i + ends + between * i // count + (there if at is not None and i >= at else 0))
    return places


def starts_of(rules: Sequence[Rule], places: Sequence[int]) -> Starts:
    """Where the stages of a new table start: in the middle of what lies between their rules."""
    starts = {rules[0].stage: 0}
    for (before, last), (rule, first) in pairwise(zip(rules, places, strict=True)):
        if rule.stage != before.stage:
            starts[rule.stage] = (last + 1 + first) // 2
    return starts


def ends_of(starts: Starts) -> Ends:
    """Where what passes in each stage goes on."""
    return {stage: starts[following] for stage, following in pairwise(starts)}


def with_stage(
    starts: Starts, stage: Stage, count: int, rules: Sequence[Rule], places: Sequence[int], capacity: int
) -> Starts | None:
    """The same with one more stage of so many rules, which starts where the one behind it did. None when there is no
    room, and behind the rule for what no other matches.
    """
    behind = next((known for known in starts if known > stage), None)
    if behind is None:
        room = capacity - places[-1] - 1 - count
        return {**starts, stage: places[-1] + 1 + room // 2} if room >= 0 and rules[-1].number else None
    start = starts[behind]
    room = places[next(i for i, rule in enumerate(rules) if rule.stage == behind)] - start - count
    if room < 0:
        return None
    return dict(sorted({**starts, stage: start, behind: start + count + (room + 1) // 2}.items()))


def without_stage(starts: Starts, stage: Stage) -> Starts:
    """The same without a stage: the next one starts where it did."""
    behind = next((known for known in starts if known > stage), None)
    return {known: starts[stage if known == behind else known] for known in starts if known != stage}


def places_for(
    new: Sequence[Rule],
    rules: Sequence[Rule],
    places: Sequence[int],
    leaving: Collection[int],
    starts: Mapping[Stage, int],
    capacity: int,
) -> list[int] | None:
    """Places for rules of one stage, in order, among others; None when there are not enough. Rules that are leaving are
    not in the way, but have their places yet.

    Right behind the rule before them: the next one is likely to be asked behind these. Before all others of their
    stage, right before those.
    """
    stage = new[0].stage
    end = min((start for start in starts.values() if start > starts[stage]), default=capacity)
    taken = {places[index] for index in leaving}
    found: list[int] = []

    def kept_before(rule: Rule) -> int:
        index = bisect_left(rules, order_of(rule), key=order_of) - 1
        while index in leaving:
            index -= 1
        return index

    for index, group in groupby(new, key=kept_before):
        coming, after = len(list(group)), index + 1
        while after in leaving:
            after += 1
        low = max(places[index] + 1 if index >= 0 else 0, starts[stage])
        high = min(places[after] if after < len(places) else capacity, end)
        free = [place for place in range(low, high) if place not in taken]
        if len(free) < coming:
            return None
        is_front = index < 0 or rules[index].stage != stage
        is_alone = after >= len(rules) or rules[after].stage != stage
        found += free[-coming:] if is_front and not is_alone else free[:coming]
    return found
