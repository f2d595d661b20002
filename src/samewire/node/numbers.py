"""Numbers of the compilers, kept in the store as long as something compiled uses them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Final

from samewire.hcn.store import Store
from samewire.vfp.model import Numbers

Key = tuple[str, str]

_BALANCING: Final = "balancing"  # services, backend sets and backends: ids in one row
_BLOCK: Final = 1 << 16
_GENERATIONS: Final = "generations"  # of ports and sets


class StoreNumbers:
    """A `samewire.vfp.model.Numbers` on the store, which knows who uses a number.

    Between ``begin`` and ``keep`` (or ``drop``) it notes which numbers one owner's compilation asks for; those
    that an owner no longer asks for, and nobody else does, are released.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._asked: dict[Key, None] = {}
        self._held: dict[Hashable, dict[Key, None]] = {}
        self._users: dict[Key, int] = {}
        self._next = self._end = 0
        self.silent: Numbers = _Silent(store)
        """The same numbers, without a note of who asks: for those that somebody else holds."""

    def fresh(self) -> int:
        """A number for load balancing that has never been used. Raises Exhausted, StoreError.

        They are drawn from the store in blocks, and kept nowhere but in what is compiled: the kernel's tables tell
        them after a restart.
        """
        if self._next == self._end:
            self._next = self._store.reserve_numbers(_BALANCING, _BLOCK)
            self._end = self._next + _BLOCK
        self._next += 1
        return self._next - 1

    def start_above(self, number: int) -> None:
        """Let all fresh numbers be above this one."""
        if number >= self._next:
            self._next = self._end = 0
            self._store.skip_numbers(_BALANCING, number)

    def last_generation(self) -> int:
        """The last one that may have been given."""
        return self._store.last_number(_GENERATIONS)

    def keep_generations(self, last: int) -> None:
        """Let all be above this one from the next start on. Raises StoreError."""
        self._store.skip_numbers(_GENERATIONS, last)

    def number(self, kind: str, key: str) -> int:
        """The number of ``key``, allocated at the first call. Raises Exhausted, StoreError."""
        self._asked[kind, key] = None
        return self._store.allocate_number(kind, key)

    def begin(self) -> None:
        """Start noting for one owner."""
        self._asked = {}

    def asked(self) -> dict[Key, None]:
        """What has been asked for since ``begin``."""
        return self._asked

    def hold(self, owner: Hashable, keys: dict[Key, None]) -> None:
        """Make ``keys`` what an owner uses; an empty set forgets it. Raises StoreError."""
        self.hold_all({owner: keys})

    def hold_all(self, asked: Mapping[Any, dict[Key, None]]) -> None:
        """The same for several owners at once: what one leaves to another stays what it is. Raises StoreError."""
        for keys in asked.values():
            for key in keys:
                self._users[key] = self._users.get(key, 0) + 1
        for owner, keys in asked.items():
            for key in self._held.pop(owner, {}):
                self._users[key] -= 1
                if not self._users[key]:
                    del self._users[key]
                    self._store.release_number(*key)
            if keys:
                self._held[owner] = keys

    def forget_unused(self, keys: dict[Key, None]) -> None:
        """Release those of ``keys`` that nobody uses: after a change that failed. Raises StoreError."""
        for key in keys:
            if key not in self._users:
                self._store.release_number(*key)

    def sweep(self, kinds: tuple[str, ...] = ("scope", "nexthop", "acl", "nat")) -> int:
        """Release every number that nobody uses: after a start, when all owners hold theirs. Returns how
        many.
        """
        unused = [(kind, key) for kind in kinds for key in self._store.numbers(kind)]
        unused = [key for key in unused if key not in self._users]
        for kind, key in unused:
            self._store.release_number(kind, key)
        return len(unused)


class _Silent:
    """The store's numbers as they are."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def number(self, kind: str, key: str) -> int:
        return self._store.allocate_number(kind, key)
