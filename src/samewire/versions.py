"""Tables of entries that are changed and stay what they were: one dictionary, and how its older versions differ."""

from __future__ import annotations

from collections.abc import Collection, ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Version(Mapping[K, V]):
    """Entries that do not change. `changed` makes the next version at the cost of the change, however many there are.

    The newest version that was asked has the dictionary; to ask an older one costs what has changed since (Henry
    Baker, "Shallow Binding Makes Functional Arrays Fast"): who compares two asks all of the one first. To go through
    all is to go through a copy. Not for several threads.
    """

    __slots__ = ("_data", "_difference", "_other")

    def __init__(self, data: dict[K, V]) -> None:
        """Takes ``data`` over: nobody else may change it."""
        self._data: dict[K, V] | None = data
        self._other: Version[K, V] | None = None
        self._difference: Mapping[K, V | None] = {}
        """Without ``data``: what makes this one of the other's entries; None: it is not there."""

    def changed(self, changes: Mapping[K, V | None]) -> Version[K, V]:
        """The same with some entries put or, None, removed."""
        made = Version(self._entries())
        self._hand_over(made, changes)
        return made

    def apart(self, other: object) -> Collection[K] | None:
        """The keys by which this one may differ from another, when the one is the next of the other; else None."""
        if self is other:
            return ()
        if isinstance(other, Version):
            for one, next_ in ((self, other), (other, self)):
                if one._other is next_:
                    return tuple(one._difference)
        return None

    def _entries(self) -> dict[K, V]:
        return self._data if self._data is not None else self._fetched()

    def _fetched(self) -> dict[K, V]:
        """The dictionary, from the version that has it."""
        way = [self]
        while (other := way[-1]._other) is not None:
            way.append(other)
        for holder, asked in zip(way[::-1], way[-2::-1], strict=False):
            asked._data, asked._other = holder._data, None
            holder._hand_over(asked, asked._difference)
        return self._entries()

    def _hand_over(self, other: Version[K, V], changes: Mapping[K, V | None]) -> None:
        """Let another version have the dictionary, which gets what that one differs in."""
        data = other._data
        assert data is not None
        self._data, self._other = None, other
        self._difference = {key: data.get(key) for key in changes}
        for key, value in changes.items():
            if value is None:
                data.pop(key, None)
            else:
                data[key] = value

    def __getitem__(self, key: K) -> V:
        return self._entries()[key]

    def __iter__(self) -> Iterator[K]:
        return iter(list(self._entries()))

    def __len__(self) -> int:
        return len(self._entries())

    def get(self, key: K, default: Any = None) -> Any:
        """The value of a key, or ``default``."""
        return self._entries().get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self._entries()

    def keys(self) -> KeysView[K]:
        """The keys, as of a dictionary."""
        return self._entries().copy().keys()

    def values(self) -> ValuesView[V]:
        """The values, as of a dictionary."""
        return self._entries().copy().values()

    def items(self) -> ItemsView[K, V]:
        """The entries, as of a dictionary."""
        return self._entries().copy().items()


def versioned(entries: Mapping[K, V]) -> Version[K, V]:
    """Entries as a version: as they are, or a copy of others."""
    return entries if isinstance(entries, Version) else Version(dict(entries))
