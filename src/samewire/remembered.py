"""What functions of texts have returned: of many short texts, and of a few long ones.

`functools.lru_cache` counts entries, whatever their size. An address list may have a hundred bytes or a hundred
thousand, and one that follows the pods of a cluster is another one with every pod: some thousand of those that have
been, each with what it was parsed to, are a gigabyte.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Final, ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")

LONG: Final = 1024
"""Characters from which on a text is a long one: some eighty addresses."""
FEW: Final = 1024
"""How many results of long texts are kept."""


def remembered(many: int, length: Callable[..., int]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Keep the last ``many`` results, of arguments whose texts are long in sum (``length``) only the last `FEW`."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        of_short = cast(Callable[P, T], lru_cache(many)(function))
        of_long = cast(Callable[P, T], lru_cache(FEW)(function))

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            chosen = of_short if length(*args, **kwargs) < LONG else of_long
            return chosen(*args, **kwargs)

        return call

    return decorate
