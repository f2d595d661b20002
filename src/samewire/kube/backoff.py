"""Waiting longer after each failure, never all at the same moment."""

from __future__ import annotations

import random
from typing import Final

# What a server asks for is honoured up to here: a broken proxy must not silence a node for a day.
_LONGEST_REQUEST_S: Final = 60.0


class Backoff:
    """Delays that double from ``first_s`` up to ``longest_s``, each between half and all of that."""

    def __init__(self, first_s: float, longest_s: float, chance: random.Random) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._chance = chance
        self._failures = 0

    def reset(self) -> None:
        """It went well: the next failure is a first one."""
        self._failures = 0

    def next_s(self, asked_s: float | None = None) -> float:
        """How long to wait now; ``asked_s``: what the server asked for at least (Retry-After)."""
        # The exponent is bounded: an hour of failures must not make a number that is none.
        delay_s = min(self._longest_s, self._first_s * 2.0 ** min(self._failures, 32))
        self._failures += 1
        delay_s *= self._chance.uniform(0.5, 1.0)
        if asked_s is None:
            return delay_s
        asked_s = min(asked_s, _LONGEST_REQUEST_S)
        return max(delay_s, asked_s * self._chance.uniform(1.0, 1.25))
