"""Rules in order -> the entries of an ACL table (``bpf/layout.h``, "ACL tables").

A rule's place is a bit. For every question the rules ask, each prefix that any of them names gets the vector of the
rules that are content with what the prefix contains; so what comes out grows with the rules as they are written (a list
of 100 addresses and 10 ports is one bit, 100 prefixes and 10 ports), never with their combinations.

Between the rules of a long list there are places left. One rule more or less of it is an edit of the table: what is
written is the rule, its prefixes and ports, and those within them. An edit adds first and takes away then, so that at
every moment each connection is judged by the rules as they were or as they will be. All else is a new table.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Final

import msgspec
from msgspec.structs import replace

from samewire.hcn.numbered import alike
from samewire.vfp.compile.acl_questions import Feature, Flip, Questions, features, protocols_asked, shape_of
from samewire.vfp.compile.acl_rules import Order, Rule, Sources, order_of
from samewire.vfp.compile.edits import Draft
from samewire.vfp.constants import ACL_EDITION_SHIFT, ACL_EDITIONS, ACL_WORDS, AclAction
from samewire.vfp.hashes import hash64, space_name
from samewire.vfp.model import Compiled, Entries
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

    def __init__(self, reference: AclTable, rules: tuple[Rule, ...], places: Sequence[int]) -> None:
        self.reference = reference
        self.rules = rules
        self.places = places
        self.starts = {rule.stage: place for rule, place in reversed(list(zip(rules, places, strict=True)))}
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
    at = len(rules)
    if own is not None:
        start, end = alike(own.rules, rules)
        gone, new = own.rules[start : len(own.rules) - end], rules[start : len(rules) - end]
        if not gone and not new:
            return own
        changed = _edited(own, range(start, len(own.rules) - end), [(start, rule) for rule in new])
        if changed is not None:
            return changed
        at = len(rules) - end
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


def _built(name: int, rules: tuple[Rule, ...], network_id: str, at: int) -> Table:
    words = _words(len(rules))
    space = space_name(network_id) if network_id else 0
    asked = Counter(feature for rule in rules for feature in features(rule))
    reference = AclTable(name, words, shape_of(asked), space)
    table = Table(reference, rules, _spread(len(rules), _WORD * words, at))
    table.asked = asked
    fill(table, network_id)
    return table


def fill(table: Table, network_id: str) -> None:
    """Work out all entries of a table from its rules, their places and what they ask."""
    shape = table.reference.shape & _ASKED
    apart = table.reference.words > 1
    table.questions = Questions(table.name, shape, network_id, protocols_asked(table.asked), apart=apart)
    draft = Draft({})
    for rule, place in zip(table.rules, table.places, strict=True):
        _enter_rule(table, draft, rule, place)
    table.questions.begin(draft)
    table.questions.flip(draft, zip(table.rules, table.places, strict=True), there=True)
    table.questions.edition = table
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


def edited(before: Table, gone: Sequence[Order], new: Sequence[Rule]) -> Table | None:
    """The table without a rule, with a rule more, or with another one; None when that takes a new one.

    ``gone``: their places in the order.
    """
    old = [bisect_left(before.rules, order, key=order_of) for order in gone]
    if gone != [order_of(rule) for index in old for rule in before.rules[index : index + 1]]:
        return None
    coming = [(bisect_left(before.rules, order_of(rule), key=order_of), rule) for rule in new]
    return _edited(before, old, coming)


def _edited(before: Table, old: Sequence[int], new: Sequence[tuple[int, Rule]]) -> Table | None:
    """The same, by the places of the rules in the list; ``new``: before which they come."""
    if before.reference.words == 1 or len(old) > 1 or len(new) > 1:
        return None
    asked = Counter(before.asked)
    asked.subtract(feature for index in old for feature in features(before.rules[index]))
    asked.update(feature for _, rule in new for feature in features(rule))
    if len(asked) != len(before.asked) or not all(asked.values()):
        return None  # what nobody asks any more, or nobody has asked before
    free = [_free(before, index, old, rule.stage) for index, rule in new]
    if -1 in free or not _shows(before.questions, before):
        return None
    table = Table(_next_edition(before.reference), (), ())
    table.starts, table.asked, table.questions = before.starts, asked, before.questions
    flips = [(rule, place, True) for (_, rule), place in zip(new, free, strict=True)]
    flips += [(before.rules[index], before.places[index], False) for index in old]
    table.questions.edition = table.questions.last = None  # nobody's, should it end in the middle
    table.steps = tuple(_steps(table, before.steps[-1].entries, flips))
    table.questions.edition, table.questions.last = table, (before, table.steps[-1].entries, flips)
    rules, places = list(before.rules), list(before.places)
    for (index, rule), place in zip(new, free, strict=True):
        rules.insert(index, rule)
        places.insert(index, place)
        old = [known + (known >= index) for known in old]  # where they are now
    for known in old:
        del rules[known], places[known]
    table.rules, table.places = tuple(rules), places
    return table


def _steps(table: Table, entries: Entries, flips: Iterable[Flip]) -> Iterator[Compiled]:
    """The entries with what comes, and then without what goes."""
    for rule, place, there in flips:
        draft = Draft(entries)
        table.questions.flip(draft, [(rule, place)], there=there)
        if there:
            _enter_rule(table, draft, rule, place)
        else:
            draft.remove("sw_acl_rules", AclRuleKey(table.name, place))
        compiled = draft.compiled()
        entries = compiled.entries
        yield compiled


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


def _free(table: Table, index: int, leaving: Sequence[int], stage: int) -> int:
    """A place for a rule of a stage before the rule of some index, -1 when there is none. Rules that are leaving are
    not in the way, but have their places yet.

    Right behind the rule before it: the next one is likely to be asked behind this one.
    """
    capacity = _WORD * table.reference.words
    left, right = index - 1, index
    left -= left in leaving
    right += right in leaving
    low = max(table.places[left] if left >= 0 else -1, table.starts[stage] - 1)
    high = table.places[right] if right < len(table.places) else capacity
    high = min(high, table.starts.get(stage + 1, capacity))
    taken = [table.places[known] for known in leaving]
    return next((place for place in range(low + 1, high) if place not in taken), -1)


def _enter_rule(table: Table, draft: Draft, rule: Rule, place: int) -> None:
    action, following = rule.action, 0
    if action is AclAction.PASS:
        if rule.stage == max(table.starts):
            action = AclAction.ALLOW
        else:
            following = table.starts[rule.stage + 1]
    value = AclRule(rule.number, rule.priority, following, action, rule.stage)
    draft.put("sw_acl_rules", AclRuleKey(table.name, place), value)
