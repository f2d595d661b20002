"""Counts in what people read: 1 pod, 2 pods."""

from __future__ import annotations


def counted(count: int, one: str, many: str = "") -> str:
    """A number and what it is a number of. ``many``: the plural, when an ``s`` does not make it."""
    return f"{count} {one if count == 1 else many or f'{one}s'}"
