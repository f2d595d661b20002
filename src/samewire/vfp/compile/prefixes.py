"""Bit sets by prefix, where a prefix has those of all around it too; and port ranges as prefixes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

Node = tuple[int, int]
"""A prefix: its value as a whole number of ``width`` bits, and its length."""


def inherited(nodes: Mapping[Node, int], width: int, parent: int | None = None) -> Iterator[tuple[Node, int]]:
    """Every prefix with its own bits and those of all prefixes around it, in order of the values.

    Prefixes whose answer is that of the next longer one around them are left out; ``parent`` is what holds where there
    is none (None: nothing, not even 0).
    """
    around: list[tuple[int, int | None]] = [(1 << width, parent)]  # end of a prefix, and its answer
    for node in sorted(nodes):
        value, bits = node
        while value >= around[-1][0]:
            around.pop()
        outer = around[-1][1] if len(around) > 1 else None
        answer = nodes[node] | (outer or 0)
        around.append((value + (1 << (width - bits)), answer))
        if answer != around[-2][1]:
            yield node, answer


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
