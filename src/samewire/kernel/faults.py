"""Fault injection: a hook in front of every change asked of the kernel.

Tests set ``inject`` to a function that raises for the operation of their choice, to see that a transaction
which fails half-way leaves nothing behind. Unset (always, outside tests) it costs one comparison.
"""

from __future__ import annotations

from collections.abc import Callable

inject: Callable[[str], None] | None = None


def check(operation: str) -> None:
    """Called with the words of an operation (``"create veth swa1"``) before the kernel is asked.

    Raises whatever the installed hook raises.
    """
    if inject is not None:
        inject(operation)
