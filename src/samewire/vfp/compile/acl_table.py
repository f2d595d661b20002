"""Rules in order -> the entries of an ACL table (``bpf/layout.h``, "ACL tables").

A rule's place is a bit. For every question the rules ask, each prefix that any of them names gets the vector of the
rules that are content with what the prefix contains; so what comes out grows with the rules as they are written (a list
of 100 addresses and 10 ports is one bit, 100 prefixes and 10 ports), never with their combinations.

Between the rules of a long list there are places left. A few rules more or less of one stage, or a tier more or less,
are an edit of the table: what is written is these rules, their prefixes and ports, and those within them. An edit adds
first, the first rule first, and takes away then, the last rule first. So at every moment each connection is judged by
the rules as they were or as they will be: its first match among those that are there is the first of the old list, or
of the new one. All else is a new table.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Final

import msgspec
from msgspec.structs import replace

from samewire.hcn.numbered import alike
from samewire.vfp.compile.acl_places import (
    WORD,
    Ends,
    Starts,
    ends_of,
    places_for,
    spread,
    starts_of,
    with_stage,
    without_stage,
    words_of,
)
from samewire.vfp.compile.acl_questions import Feature, Flip, Questions, features, protocols_asked, shape_of
from samewire.vfp.compile.acl_rules import Order, Rule, Sources, Stage, order_of
from samewire.vfp.compile.edits import Draft
from samewire.vfp.constants import ACL_EDITION_SHIFT, ACL_EDITIONS, AclAction
from samewire.vfp.hashes import hash64, space_name
from samewire.vfp.model import Compiled
from samewire.vfp.tables import AclRule, AclRuleKey, Port

_FEW: Final = 8
"""An edit of more than one rule in so many takes longer than a new table."""
_ASKED: Final = (1 << ACL_EDITION_SHIFT) - 1
_ENCODER: Final = msgspec.msgpack.Encoder()


class AclTable(msgspec.Struct, frozen=True):
    """A port's reference to a table; ``words`` 0 = everything passes. ``space`` 0: its rules name no sets."""

    table: int = 0
    words: int = 0
    shape: int = 0
    space: int = 0


class Table:
    """A table with its rules and their places. ``steps``: its entries, and before them those on the way there."""

    def __init__(self, reference: AclTable, rules: tuple[Rule, ...], places: Sequence[int]) -> None:
        self.reference = reference
        self.rules = rules
        self.places = places
        self.starts: Starts = starts_of(rules, places) if rules else {}
        self.stages: Mapping[Stage, int] = Counter(rule.stage for rule in rules)
        """How many rules a stage has."""
        self.steps: tuple[Compiled, ...] = ()
        self.asked: Mapping[Feature, int] = {}
        """How many rules have a feature."""
        self.sources: Sources | None = None
        """The policies that the rules were made of, where that is known."""
        self.questions: Questions

    @property
    def name(self) -> int:
        """What stands in the keys of its entries."""
        return self.reference.table


class Known(msgspec.Struct, frozen=True):
    """The tables that there are by name, names that may not be given, and the endpoint's own of both directions (in,
    out) where nobody else has them.
    """

    tables: Mapping[int, Table] = {}
    reserved: frozenset[int] = frozenset()
    own: tuple[Table | None, Table | None] = (None, None)


NONE_KNOWN: Final = Known()


def table_of(rules: tuple[Rule, ...], network_id: str, known: Known, own: Table | None = None) -> Table:
    """The table of such rules, which are in order, their stages without gaps: one that there is, ``own`` edited, or a
    new one.
    """
    at: int | None = None
    if own is not None:
        start, end = alike(own.rules, rules)
        gone, new = range(start, len(own.rules) - end), rules[start : len(rules) - end]
        if not gone and not new:
            return own
        changed = _edited(own, gone, new)
        if changed is not None:
            return changed
        at = len(rules) - end
    named = any(rule.source.sets or rule.destination.sets for rule in rules)
    content = _ENCODER.encode((network_id if named else "", rules, at))
    for attempt in count():
        name = hash64(content + bytes(attempt))
        found = known.tables.get(name)
        if found is not None and found.rules == rules:
            return found
        if found is None and name not in known.reserved:
            break
    return _built(name, rules, network_id if named else "", at)


def _built(name: int, rules: tuple[Rule, ...], network_id: str, at: int | None) -> Table:
    space = space_name(network_id) if network_id else 0
    asked = Counter(feature for rule in rules for feature in features(rule))
    reference = AclTable(name, words_of(len(rules)), shape_of(asked), space)
    table = Table(reference, rules, spread(rules, at))
    table.asked = asked
    fill(table, network_id)
    return table


def fill(table: Table, network_id: str) -> None:
    """Work out all entries of a table from its rules, their places and what they ask."""
    shape = table.reference.shape & _ASKED
    apart = table.reference.words > 1
    table.questions = Questions(table.name, shape, network_id, protocols_asked(table.asked), apart=apart)
    draft, ends = Draft({}), ends_of(table.starts)
    for rule, place in zip(table.rules, table.places, strict=True):
        _enter_rule(table, draft, rule, place, ends)
    table.questions.begin(draft)
    table.questions.flip(draft, zip(table.rules, table.places, strict=True), there=True)
    table.questions.edition = table
    table.steps = (draft.compiled(),)


def edited(before: Table, gone: Sequence[Order], new: Sequence[Rule]) -> Table | None:
    """The table with some rules less, and some more; None when that takes a new one. Both are in order.

    ``gone``: their places in the order.
    """
    old = [bisect_left(before.rules, order, key=order_of) for order in gone]
    if gone != [order_of(rule) for index in old for rule in before.rules[index : index + 1]]:
        return None
    return _edited(before, old, new)


def _edited(before: Table, old: Sequence[int], new: Sequence[Rule]) -> Table | None:
    """The same, by the places of the old ones in the list."""
    gone = [before.rules[index] for index in old]
    if before.reference.words == 1 or len(gone) + len(new) > max(2, len(before.rules) // _FEW):
        return None
    asked, stages = Counter(before.asked), Counter(before.stages)
    asked.subtract(feature for rule in gone for feature in features(rule))
    asked.update(feature for rule in new for feature in features(rule))
    if len(asked) != len(before.asked) or not all(asked.values()):
        return None  # what nobody asks any more, or nobody has asked before
    stages.subtract(rule.stage for rule in gone)
    stages.update(rule.stage for rule in new)
    if not _is_a_list(stages, before.rules[-1]) or not _can_be_mixed(before.stages, stages, gone, new):
        return None
    arranged = _arranged(before, set(old), new)
    if arranged is None or not _shows(before.questions, before):
        return None
    added, meanwhile = arranged
    table = Table(_next_edition(before.reference), (), ())
    table.starts, table.stages, table.asked, table.questions = meanwhile, +stages, asked, before.questions
    for stage in before.stages.keys() - table.stages.keys():
        table.starts = without_stage(table.starts, stage)
    table.rules, table.places = _merged(before, old, new, added)
    coming = [(rule, place, True) for rule, place in zip(new, added, strict=True)]
    going = [(before.rules[index], before.places[index], False) for index in reversed(old)]
    table.questions.edition = table.questions.last = None  # nobody's, should it end in the middle
    table.steps = tuple(_steps(before, table, coming, going, meanwhile))
    table.questions.edition = table
    table.questions.last = before, table.steps[-1].entries, [*coming, *going]
    return table


def _is_a_list(stages: Mapping[Stage, int], last: Rule) -> bool:
    """Whether rules are left, and the one for what no other matches is not a stage by itself: what passes before it
    would meet that one.
    """
    return any(stages.values()) and (bool(last.number) or stages[last.stage] != 1)


def _can_be_mixed(
    before: Mapping[Stage, int], after: Mapping[Stage, int], gone: Sequence[Rule], new: Sequence[Rule]
) -> bool:
    """Whether old and new rules may stand together for a while: they are of one stage, or a stage comes and another
    goes. What passes in a stage would else meet some rules of a list that never was.
    """
    touched = {rule.stage for rule in (*gone, *new)}
    if len(touched) <= 1:
        return True
    coming, going = {rule.stage for rule in new}, {rule.stage for rule in gone}
    return (
        len(coming) == len(going) == 1
        and not any(before.get(stage) for stage in coming)
        and not any(after[stage] for stage in going)
    )


def _arranged(before: Table, leaving: set[int], new: Sequence[Rule]) -> tuple[list[int], Starts] | None:
    """Places for new rules, and where the stages start while old and new ones are there. None when there is no room."""
    starts: Starts | None = before.starts
    if not new:
        return [], before.starts
    capacity = WORD * before.reference.words
    if new[0].stage not in before.starts:
        starts = with_stage(before.starts, new[0].stage, len(new), before.rules, before.places, capacity)
    if starts is None:
        return None
    added = places_for(new, before.rules, before.places, leaving, starts, capacity)
    return (added, starts) if added is not None else None


def _merged(
    before: Table, old: Sequence[int], new: Sequence[Rule], added: Sequence[int]
) -> tuple[tuple[Rule, ...], list[int]]:
    """The rules and their places without old ones and with new ones."""
    rules, places = list(before.rules), list(before.places)
    for index in reversed(old):
        del rules[index], places[index]
    for rule, place in zip(new, added, strict=True):
        index = bisect_left(places, place)
        rules.insert(index, rule)
        places.insert(index, place)
    return tuple(rules), places


def _steps(
    before: Table, table: Table, coming: Sequence[Flip], going: Sequence[Flip], meanwhile: Starts
) -> Iterator[Compiled]:
    """The entries with what comes, and then without what goes. In between what passes in a stage that was the last one,
    or is from now on, is told so.
    """
    draft, ends, entered = Draft(before.steps[-1].entries), ends_of(meanwhile), ends_of(before.starts)
    for rule, place, _ in coming:
        table.questions.flip(draft, [(rule, place)], there=True)
        _enter_rule(table, draft, rule, place, ends)
        entered[rule.stage] = ends.get(rule.stage)
        yield (step := draft.compiled())
        draft = Draft(step.entries)
    ends = ends_of(table.starts)
    moved = {stage for stage in table.starts if ends.get(stage) != entered.get(stage)}
    for rule, place in zip(table.rules, table.places, strict=True) if moved else ():
        if rule.stage in moved and rule.action is AclAction.PASS:
            _enter_rule(table, draft, rule, place, ends)
    if moved:
        yield (step := draft.compiled())
        draft = Draft(step.entries)
    for rule, place, _ in going:
        table.questions.flip(draft, [(rule, place)], there=False)
        draft.remove("sw_acl_rules", AclRuleKey(table.name, place))
        yield (step := draft.compiled())
        draft = Draft(step.entries)


def _shows(questions: Questions, table: Table) -> bool:
    """Bring questions back to a table, if what they are now was made of it and has been taken back. They go from
    edition to edition, and are not copied.
    """
    if questions.edition is not table and questions.last is not None and questions.last[0] is table:
        _, entries, flips = questions.last
        draft = Draft(entries)
        questions.edition = questions.last = None
        for rule, place, there in reversed(flips):
            questions.flip(draft, [(rule, place)], there=not there)
        questions.edition = table
    return questions.edition is table


def _next_edition(reference: AclTable) -> AclTable:
    """The reference after an edit: never one without, and never that before."""
    edition = reference.shape >> ACL_EDITION_SHIFT
    return replace(
        reference, shape=reference.shape & _ASKED | (edition % ACL_EDITIONS + 1) << ACL_EDITION_SHIFT
    )


def was_edited(port: Port, direction: int) -> bool:
    """Whether a port's table is another than its name says."""
    return bool(port.acl_shape[direction] >> ACL_EDITION_SHIFT)


def _enter_rule(table: Table, draft: Draft, rule: Rule, place: int, ends: Ends) -> None:
    action, following = rule.action, ends.get(rule.stage) if rule.action is AclAction.PASS else 0
    if following is None:
        action, following = AclAction.ALLOW, 0
    value = AclRule(rule.number, rule.priority, following, action)
    draft.put("sw_acl_rules", AclRuleKey(table.name, place), value)
