"""An allocator of numbers in memory, for dry runs and tests; the daemon's lives in its store."""

from __future__ import annotations


class MemoryNumbers:
    """Counts from 1 for each kind and never gives a number twice (`samewire.vfp.model.Numbers`)."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], int] = {}
        self._last: dict[str, int] = {}

    def number(self, kind: str, key: str) -> int:
        """The number of ``key``, allocated at the first call."""
        found = self.known.get((kind, key))
        if found is None:
            found = self.known[kind, key] = self._last[kind] = self._last.get(kind, 0) + 1
        return found
