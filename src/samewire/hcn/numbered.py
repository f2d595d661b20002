"""Lists whose items keep a number for their life, and which know at once what they hold.

Numbers ascend along a list, with gaps between them for items that come in between. Their last bits are the item's name
for people (`name_of`): 1, 2, 3, ... in the order in which items have come.

One item more or less of a list of thousands costs what it concerns: what has been worked out of a list (its items by
type, by key, each item's text) is worked out of the last list and the difference, in a few steps that walk references
and no items.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from operator import ne
from typing import Any, Final, NamedTuple, TypeVar

from samewire.versions import Version

T = TypeVar("T")
P = TypeVar("P")
R = TypeVar("R")

NAME_BITS: Final = 16
MAX_ITEMS: Final = 0xFFF0
"""Of one list. One that has used up so many names is numbered anew."""

_NAME: Final = (1 << NAME_BITS) - 1
_GAP: Final = 1 << 47  # numbers fit into SQLite's 63 bits
_STEP: Final = _GAP + 1

_SHORT: Final = 64
"""So many are looked at as fast as it is found out which are alike."""

Keys = Callable[[Any], Iterable[Hashable]]
Index = Version[Hashable, tuple[int, ...]]


class Group(NamedTuple):
    """The items of one type, and their numbers."""

    items: tuple[Any, ...] = ()
    numbers: Sequence[int] = ()


class Difference(NamedTuple):
    """What makes one list of another: items with their numbers. One that stays and changes is in both."""

    gone: tuple[tuple[int, Any], ...] = ()
    new: tuple[tuple[int, Any], ...] = ()

    def of(self, *kinds: type) -> Difference:
        """The part of it that is of some types."""
        return Difference(*(tuple(pair for pair in side if type(pair[1]) in kinds) for side in self))

    def items(self) -> list[Any]:
        """All items that are gone, new, or both."""
        return [item for side in self for _, item in side]


def name_of(number: int) -> int:
    """The name of an item: small, and unique in its list."""
    return number & _NAME


class Numbered(tuple[T, ...]):
    """Items in order, with ascending numbers. A plain tuple in all else; equal to one with the same items."""

    numbers: Sequence[int]
    last_name: int
    """The highest one that was ever given, here or in a list that this one was made of."""
    _memo: dict[Any, Any]
    _self: object
    _origin: tuple[object, Difference] | None

    def __new__(
        cls, items: Iterable[T] = (), numbers: Sequence[int] | None = None, last_name: int = 0
    ) -> Numbered[T]:
        """``numbers``: those of the items; new ones if there are none yet. ``last_name``: at least."""
        made = super().__new__(cls, items)
        made.numbers = range(_STEP, _STEP * (len(made) + 1), _STEP) if numbers is None else numbers
        made.last_name = max(map(name_of, numbers), default=0) if numbers is not None else len(made)
        made.last_name = max(last_name, made.last_name)
        made._memo = {}
        made._self = object()
        made._origin = None
        return made

    def pairs(self) -> Iterable[tuple[int, T]]:
        """The items with their numbers."""
        return zip(self.numbers, self, strict=True)

    def at(self, number: int) -> T:
        """The item of a number that there is."""
        return self[bisect_left(self.numbers, number)]

    def of(self, kind: type[P]) -> tuple[P, ...]:
        """The items of exactly one type."""
        return self.group(kind).items

    def group(self, kind: type) -> Group:
        """The items of exactly one type, with their numbers; the same object while they are the same."""
        if not self:
            return _NONE
        groups: dict[type, Group] | None = self._memo.get(Group)
        if groups is None:
            groups = self._memo[Group] = self._grouped()
        return groups.get(kind, _NONE)

    def by(self, keys: Keys) -> Index:
        """The numbers of the items by what a function says of them. It is asked once for each item."""
        index: Index | None = self._memo.get(keys)
        if index is None:
            found: dict[Hashable, list[int]] = {}
            for number, item in self.pairs():
                for key in keys(item):
                    found.setdefault(key, []).append(number)
            index = Version({key: tuple(numbers) for key, numbers in found.items()})
            self._memo[keys] = index
        return index

    def mapped(self, function: Callable[[T], R]) -> tuple[R, ...]:
        """What a function says of each item, in order. It is asked once for each."""
        found: tuple[R, ...] | None = self._memo.get((function,))
        if found is None:
            found = self._memo[(function,)] = tuple(map(function, self))
        return found

    def edited(
        self,
        gone: Collection[int] = (),
        new: Sequence[T] = (),
        instead: Mapping[int, T] | None = None,
        between: Mapping[int, Sequence[T]] | None = None,
    ) -> Numbered[T]:
        """The list without the items of some numbers, with others in the place of some, with others before some, and
        with new ones at its end.
        """
        others, inserted = instead or {}, between or {}
        coming = {bisect_left(self.numbers, number): tuple(items) for number, items in inserted.items()}
        coming[len(self)] = tuple(new)
        edit = _Edit(
            sorted(bisect_left(self.numbers, number) for number in gone),
            {
                place: item
                for number, item in others.items()
                if self[place := bisect_left(self.numbers, number)] != item
            },
            coming,
        )
        numbers = self._new_numbers(coming)
        if numbers is None:
            return Numbered(edit.carry_out(self))
        made = self._with(edit, numbers)
        changed = [*edit.gone, *edit.instead]
        difference = Difference(
            tuple((self.numbers[place], self[place]) for place in changed),
            (
                *((self.numbers[place], item) for place, item in edit.instead.items()),
                *(pair for place in coming for pair in zip(numbers[place], coming[place], strict=True)),
            ),
        )
        made._inherit(self, edit, difference)
        return made

    def _with(self, edit: _Edit, numbers: Mapping[int, Sequence[int]]) -> Numbered[T]:
        at_end = numbers[len(self)]
        kept: Sequence[int]
        if isinstance(self.numbers, range) and len(numbers) == 1 and not edit.gone:
            kept = range(_STEP, _STEP * (len(self) + len(at_end) + 1), _STEP)
        else:
            kept = tuple(_Edit(edit.gone, {}, numbers).carry_out(self.numbers))
        made: Numbered[T] = super().__new__(Numbered, edit.carry_out(self))
        made.numbers, made.last_name = kept, self.last_name + sum(map(len, numbers.values()))
        made._memo, made._self, made._origin = {}, object(), None
        return made

    def _new_numbers(self, coming: Mapping[int, Sequence[T]]) -> dict[int, Sequence[int]] | None:
        """Numbers for items that come, by the place before which they do; None when there are none left."""
        name = self.last_name
        found: dict[int, Sequence[int]] = {}
        for place, items in coming.items():
            low = self.numbers[place - 1] >> NAME_BITS if place else 0
            gap = _GAP >> NAME_BITS
            if place < len(self):
                gap = ((self.numbers[place] >> NAME_BITS) - low) // (len(items) + 1)
            orders = range(low + gap, low + gap * (len(items) + 1), gap) if gap else ()
            found[place] = [order << NAME_BITS | (name + i) for i, order in enumerate(orders, 1)]
            name += len(items)
            if len(orders) < len(items) or (items and found[place][-1] >= _GAP << NAME_BITS):
                return None
        return found if name <= MAX_ITEMS else None

    def updated(self, items: Sequence[T]) -> Numbered[T]:
        """The list with these items instead of its own: those that are alike, in their order, keep their numbers."""
        return self.edited(*aligned(Group(self, self.numbers), items))

    def _grouped(self) -> dict[type, Group]:
        found: dict[type, list[tuple[int, T]]] = {}
        for pair in self.pairs():
            found.setdefault(type(pair[1]), []).append(pair)
        return {
            kind: Group(tuple(item for _, item in pairs), tuple(number for number, _ in pairs))
            for kind, pairs in found.items()
        }

    def _inherit(self, base: Numbered[T], edit: _Edit, difference: Difference) -> None:
        """Take over what has been worked out of the list that this one was made of."""
        self._origin = base._self, difference
        for what, known in base._memo.items():
            if what is Group:
                self._memo[Group] = _regrouped(known, difference)
            elif isinstance(what, tuple):
                (function,) = what
                self._memo[what] = tuple(edit.carry_out(known, function))
            else:
                self._memo[what] = _reindexed(known, what, difference)

    def difference(self, before: Numbered[T]) -> Difference:
        """How this list follows from another one."""
        if self is before:
            return Difference()
        for one, other, back in ((self, before, False), (before, self, True)):
            if one._origin is not None and one._origin[0] is other._self:
                gone, new = one._origin[1]
                return Difference(new, gone) if back else Difference(gone, new)
        old, new_ = (tuple(items.pairs()) for items in (before, self))
        start, end = alike(old, new_)
        pairs = old[start : len(old) - end], new_[start : len(new_) - end]
        same = set(pairs[0]) & set(pairs[1])
        return Difference(*(tuple(pair for pair in side if pair not in same) for side in pairs))


class Alignment(NamedTuple):
    """How to make items of what there is: the parameters of `Numbered.edited`."""

    gone: Sequence[int]
    new: Sequence[Any]
    instead: dict[int, Any]
    between: dict[int, Sequence[Any]]


def aligned(old: Group, items: Sequence[T]) -> Alignment:
    """How to make items of others: those that are alike at the beginning and the end stay."""
    items = tuple(items)
    start, end = alike(old.items, items)
    stop = len(old.items) - end
    numbers, wanted = old.numbers[start:stop], items[start : len(items) - end]
    changed = map(ne, old.items[start:stop], wanted)
    instead = {numbers[i]: wanted[i] for i, differs in enumerate(changed) if differs}
    more = wanted[len(numbers) :]
    if more and end:
        return Alignment((), (), instead, {old.numbers[stop]: more})
    return Alignment(numbers[len(wanted) :], more, instead, {})


_NONE: Final = Group()


def numbered(items: Iterable[T]) -> Numbered[T]:
    """Items as a list with numbers: as it is, or a plain one numbered through."""
    if isinstance(items, Numbered):
        return items
    return Numbered(items) if items else _EMPTY


_EMPTY: Final[Numbered[Any]] = Numbered()
"""One for all: what has been worked out of it stays worked out."""


class _Edit(NamedTuple):
    """Places to be left out, in order; places with something else; what comes before places."""

    gone: list[int]
    instead: dict[int, Any]
    coming: Mapping[int, Sequence[Any]]

    def carry_out(self, items: Iterable[Any], function: Callable[[Any], Any] | None = None) -> list[Any]:
        """``items`` with the others, or with what a function says of them."""
        result = list(items)
        for place, item in self.instead.items():
            result[place] = item if function is None else function(item)
        going = set(self.gone)
        for place in sorted(going | self.coming.keys(), reverse=True):
            if place in going:
                del result[place]
            new = self.coming.get(place, ())
            result[place:place] = new if function is None else map(function, new)
        return result


def _regrouped(groups: Mapping[type, Group], difference: Difference) -> dict[type, Group]:
    made = dict(groups)
    for kind in {type(item) for item in difference.items()}:
        items, numbers = (list(side) for side in made.pop(kind, _NONE))
        for number, item in difference.gone:
            if type(item) is kind:
                place = bisect_left(numbers, number)
                del items[place], numbers[place]
        for number, item in difference.new:
            if type(item) is kind:
                place = bisect_left(numbers, number)
                items.insert(place, item)
                numbers.insert(place, number)
        if items:
            made[kind] = Group(tuple(items), tuple(numbers))
    return made


def _reindexed(index: Index, keys: Keys, difference: Difference) -> Index:
    changes: dict[Hashable, list[int]] = {}
    for side, comes in ((difference.gone, False), (difference.new, True)):
        for number, item in side:
            for key in keys(item):
                numbers = changes.get(key)
                if numbers is None:  # one list for all that changes: thousands may have a key in common
                    numbers = changes[key] = list(index.get(key, ()))
                if comes:
                    insort(numbers, number)
                else:
                    del numbers[bisect_left(numbers, number)]
    if not changes:
        return index
    return index.changed({key: tuple(numbers) or None for key, numbers in changes.items()})


def alike(one: tuple[Any, ...], other: tuple[Any, ...]) -> tuple[int, int]:
    """How much of two tuples is alike at their beginning, and at their end."""
    shorter = min(len(one), len(other))
    start = _common(one, other, shorter)
    return start, _common(one[::-1], other[::-1], shorter - start)


def unlike(items: tuple[T, ...], known: tuple[T, ...]) -> tuple[T, ...]:
    """What of a tuple is not at the beginning or the end of another one, too; all of it, where that is short."""
    if len(known) <= _SHORT:
        return items
    start, end = alike(items, known)
    return items[start : len(items) - end]


def _common(one: tuple[Any, ...], other: tuple[Any, ...], most: int) -> int:
    low = 0
    while low < most:
        middle = (low + most + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            most = middle - 1
    return low
