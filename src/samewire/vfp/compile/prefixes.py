"""Bit sets by prefix, where a prefix has those of all around it too; and port ranges as prefixes."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Final, Self

from samewire.versions import Version

Node = tuple[int, int]
"""A prefix: its value as a whole number of ``width`` bits, and its length."""

EVERY: Final[Node] = (0, 0)

_MANY: Final = 16  # from here on sorting is cheaper than inserting


class Nested:
    """Prefixes with bits of their own, and what follows: each has those of all prefixes around it too.

    A change costs what it concerns: the prefixes that are named, and those within them. ``entered`` are the prefixes
    that matter, with all their bits: one that says what the next longer one around it says is left out. Those in
    ``always`` stay when they have no bits of their own.
    """

    def __init__(self, width: int, always: Iterable[Node] = ()) -> None:
        self.width = width
        self.direct: Version[Node, int] = Version({})
        self.entered: Version[Node, int] = Version({})
        self._always = frozenset(always)
        self._order: list[Node] = []
        self._lengths: dict[int, int] = {}

    def copy(self) -> Self:
        """One like this, which can be changed without changing this."""
        made = type(self).__new__(type(self))
        made.width, made._always = self.width, self._always
        made.direct, made.entered = self.direct, self.entered
        made._order, made._lengths = self._order.copy(), self._lengths.copy()
        return made

    def change(self, bits: Mapping[Node, int]) -> dict[Node, tuple[int | None, int | None]]:
        """Give prefixes these bits as their own, 0 = none. Returns how others are entered now: before and after."""
        changed: dict[Node, tuple[int | None, int | None]] = {}
        self._place(bits)
        for node in bits:
            if node not in self.direct and node in self.entered:
                changed[node] = self.entered[node], None
        done = 0
        # So many that a look at all of them is cheaper than one at the surroundings of each.
        whole = len(bits) > len(self._order) // 4
        for value, length in [EVERY] if whole else sorted(bits):
            if value >= done:
                done = value + (1 << (self.width - length))
                for node, after in self._within((value, length), done):
                    before = self.entered.get(node)
                    if before != after:
                        changed[node] = before, after
        self.entered = self.entered.changed({node: after for node, (_, after) in changed.items()})
        return changed

    def _place(self, bits: Mapping[Node, int]) -> None:
        new = [node for node in bits if node not in self.direct and (bits[node] or node in self._always)]
        wished = {node: own if own or node in self._always else None for node, own in bits.items()}
        for node in [node for node, own in wished.items() if own is None and node in self.direct]:
            del self._order[bisect_left(self._order, node)]
            self._count(node[1], -1)
        self.direct = self.direct.changed(wished)
        for _, length in new:
            self._count(length, 1)
        if len(new) < _MANY:
            for node in new:
                insort(self._order, node)
        else:
            self._order = sorted([*self._order, *new])

    def _count(self, length: int, more: int) -> None:
        left = self._lengths.get(length, 0) + more
        if left:
            self._lengths[length] = left
        else:
            del self._lengths[length]

    def _within(self, first: Node, end: int) -> Iterator[tuple[Node, int | None]]:
        """Work out a prefix and all within it anew; None: it says what the next one around it says."""
        around: list[tuple[int, int | None]] = [(end, self._outer(first))]  # ends of prefixes, and their bits
        low, high = bisect_left(self._order, first), bisect_left(self._order, (end, 0))
        for node in self._order[low:high]:
            value, length = node
            while value >= around[-1][0]:
                around.pop()
            outer = around[-1][1]
            answer = self.direct[node] | (outer or 0)
            around.append((value + (1 << (self.width - length)), answer))
            yield node, None if answer == outer else answer

    def _outer(self, node: Node) -> int | None:
        """The bits of the next prefix around one."""
        value, length = node
        for shorter in sorted(self._lengths, reverse=True):
            if shorter < length:
                rest = self.width - shorter
                found: int | None = self.entered.get((value >> rest << rest, shorter))
                if found is not None:
                    return found
        return None


@lru_cache(maxsize=8192)
def range_prefixes(low: int, high: int, width: int = 16) -> tuple[Node, ...]:
    """The fewest prefixes that make up an inclusive range."""
    found = []
    while low <= high:
        size = low & -low or 1 << width
        while size > high - low + 1:
            size >>= 1
        found.append((low, width + 1 - size.bit_length()))
        low += size
    return tuple(found)
