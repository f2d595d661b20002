"""Rules in order -> the entries of an ACL table (``bpf/layout.h``, "ACL tables").

A rule's place is a bit. For every question the rules ask, each prefix that any of them names gets the vector of the
rules that are content with what the prefix contains; so what comes out grows with the rules as they are written (a list
of 100 addresses and 10 ports is one bit, 100 prefixes and 10 ports), never with their combinations.

Between the rules of a long list there are places left. One rule more or less of it is an edit of the table: what is
written is the rule, its prefixes and ports, and those within them. An edit adds first and takes away then, so that at
every moment each connection is judged by the rules as they were or as they will be. All else is a new table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Final

import msgspec
from msgspec.structs import replace

from samewire.vfp.compile.acl_questions import Questions, protocols_asked, shape_of
from samewire.vfp.compile.acl_rules import Rule
from samewire.vfp.compile.edits import Draft
from samewire.vfp.constants import ACL_EDITION_SHIFT, ACL_EDITIONS, ACL_WORDS, AclAction
from samewire.vfp.hashes import hash64, space_name
from samewire.vfp.model import Compiled
from samewire.vfp.tables import AclRule, AclRuleKey, Port

_WORD: Final = 64
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

    def __init__(self, reference: AclTable, rules: Sequence[Rule], places: Sequence[int]) -> None:
        self.reference = reference
        self.rules = rules
        self.places = places
        self.starts = {rule.stage: place for rule, place in reversed(list(zip(rules, places, strict=True)))}
        self.steps: tuple[Compiled, ...] = ()
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


def table_of(rules: Sequence[Rule], network_id: str, known: Known, own: Table | None = None) -> Table:
    """The table of such rules, which are in order, their stages without gaps: one that there is, ``own`` edited, or a
    new one.
    """
    at = len(rules)
    if own is not None:
        if own.rules == rules:
            return own
        edited = _edited(own, rules)
        if edited is not None:
            return edited
        at = _parts(own.rules, rules)[1].stop
    named = any(rule.source.sets or rule.destination.sets for rule in rules)
    content = _ENCODER.encode((network_id if named else "", rules, at if at != len(rules) else -1))
    for attempt in count():
        name = hash64(content + bytes(attempt))
        found = known.tables.get(name)
        if found is not None and found.rules == rules:
            return found
        if found is None and name not in known.reserved:
            break
    return _built(name, rules, network_id if named else "", at)


def _built(name: int, rules: Sequence[Rule], network_id: str, at: int) -> Table:
    words = _words(len(rules))
    space = space_name(network_id) if network_id else 0
    reference = AclTable(name, words, shape_of(rules), space)
    table = Table(reference, rules, _spread(len(rules), _WORD * words, at))
    fill(table, network_id)
    return table


def fill(table: Table, network_id: str) -> None:
    """Work out all entries of a table from its rules and their places."""
    shape = table.reference.shape & _ASKED
    table.questions = Questions(table.name, shape, network_id, protocols_asked(table.rules))
    draft = Draft({})
    _enter_rules(table, draft, None)
    table.questions.begin(draft)
    table.questions.flip(draft, zip(table.rules, table.places, strict=True), there=True)
    table.steps = (draft.compiled(),)


def _words(rules: int) -> int:
    """Short lists are one word, and have no places between; long ones have four places for each rule, if they can."""
    return 1 if rules <= _WORD else min(4 * -(-rules // _WORD), ACL_WORDS)


def _spread(rules: int, places: int, at: int) -> list[int]:
    """Places for rules: half of those that are left lie between them, half before rule ``at``."""
    if places == _WORD:
        return list(range(rules))
    between = (places - rules) // 2
    behind = places - rules - between
    return [i + between * i // rules + (behind if i >= at else 0) for i in range(rules)]


def _edited(before: Table, rules: Sequence[Rule]) -> Table | None:
    """The table with these rules instead; None when it takes a new one."""
    old, new = _parts(before.rules, rules)
    if not _can_be_edited(before, rules, old, new):
        return None
    places = list(before.places)
    places[old] = [_free(before, old, rules[new][0].stage)] if rules[new] else []
    if -1 in places:
        return None
    table = Table(_next_edition(before.reference), rules, places)
    table.starts = before.starts
    table.questions = before.questions.copy()
    more = Draft(before.steps[-1].entries)
    _enter_rules(table, more, before)
    table.questions.flip(more, zip(rules[new], places[new], strict=True), there=True)
    table.steps = (more.compiled(),)
    if before.rules[old]:
        fewer = Draft(table.steps[0].entries)
        table.questions.flip(fewer, zip(before.rules[old], before.places[old], strict=True), there=False)
        fewer.remove("sw_acl_rules", AclRuleKey(table.name, before.places[old][0]))
        table.steps = (*table.steps, fewer.compiled())
    return table


def _next_edition(reference: AclTable) -> AclTable:
    """The reference after an edit: never one without, and never that before."""
    edition = reference.shape >> ACL_EDITION_SHIFT
    return replace(
        reference, shape=reference.shape & _ASKED | (edition % ACL_EDITIONS + 1) << ACL_EDITION_SHIFT
    )


def was_edited(port: Port, direction: int) -> bool:
    """Whether a port's table is another than its name says."""
    return bool(port.acl_shape[direction] >> ACL_EDITION_SHIFT)


def _can_be_edited(before: Table, rules: Sequence[Rule], old: slice, new: slice) -> bool:
    """Whether it is a rule more, a rule less or another rule, and none that asks what no other asks."""
    return (
        before.reference.words > 1
        and old.stop - old.start <= 1
        and new.stop - new.start <= 1
        and {rule.stage for rule in rules} == before.starts.keys()
        and shape_of(rules) == before.reference.shape & _ASKED
        and protocols_asked(rules) == before.questions.protocols
    )


def _free(table: Table, between: slice, stage: int) -> int:
    """A place for a rule of a stage beside those in a slice, -1 when there is none.

    Right behind the rule before it: the next one is likely to be asked behind this one.
    """
    capacity = _WORD * table.reference.words
    low = max(table.places[between.start - 1] if between.start else -1, table.starts[stage] - 1)
    high = table.places[between.stop] if between.stop < len(table.places) else capacity
    high = min(high, table.starts.get(stage + 1, capacity))
    taken = table.places[between]
    return next((place for place in range(low + 1, high) if place not in taken), -1)


def _parts(old: Sequence[Rule], new: Sequence[Rule]) -> tuple[slice, slice]:
    """Where two lists differ, the rules' names aside: what is not between their common beginning and end."""
    shorter = min(len(old), len(new))
    start = 0
    while start < shorter and _alike(old[start], new[start]):
        start += 1
    end = 0
    while end < shorter - start and _alike(old[-1 - end], new[-1 - end]):
        end += 1
    return slice(start, len(old) - end), slice(start, len(new) - end)


def _alike(one: Rule, other: Rule) -> bool:
    return one is other or replace(one, number=other.number) == other


def _enter_rules(table: Table, draft: Draft, before: Table | None) -> None:
    """The rules themselves, but for those that are there by the same name."""
    present = dict(zip(before.places, before.rules, strict=True)) if before is not None else {}
    last = max(table.starts)
    for rule, place in zip(table.rules, table.places, strict=True):
        known = present.get(place)
        if known is not rule and (known is None or known.number != rule.number):
            action, following = rule.action, 0
            if action is AclAction.PASS:
                if rule.stage == last:
                    action = AclAction.ALLOW
                else:
                    following = table.starts[rule.stage + 1]
            value = AclRule(rule.number, rule.priority, following, action, rule.stage)
            draft.put("sw_acl_rules", AclRuleKey(table.name, place), value)
