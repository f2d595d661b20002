"""What keeps the daemon's start short. Import this module before anything that imports structlog: it does so without
what structlog loads on the way and the daemon never uses, rich and pygments, for tracebacks in colour.
(`samewire.node.lean_http` does the same for aiohttp.)
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast


class _LatePattern:
    """A regular expression that is compiled when it is first used, and then is as fast as any."""

    def __init__(self, pattern: str | bytes, flags: int = 0) -> None:
        self._arguments = pattern, flags
        self.pattern = pattern

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return re.Pattern  # for ``isinstance``

    def __getattr__(self, name: str) -> Any:
        value = getattr(_compile(*self._arguments), name)
        setattr(self, name, value)
        return value


_compile: Callable[..., Any] = re.compile


@contextmanager
def late_patterns() -> Iterator[None]:
    """Within, regular expressions are compiled when they are first used.

    The daemon's modules and the routes of its API have 140, and most of them are for what a node never meets.
    """
    module, before = cast(Any, re), re.compile
    module.compile = _LatePattern
    try:
        yield
    finally:
        module.compile = before


@contextmanager
def _without(package: str) -> Iterator[None]:
    """Within, imports of a package fail as if it were not installed, unless it has been imported before."""
    modules = cast(dict[str, Any], sys.modules)
    hidden = package not in modules
    if hidden:
        modules[package] = None
    try:
        yield
    finally:
        if hidden:
            del modules[package]


with late_patterns(), _without("rich"):
    import structlog  # noqa: F401
