"""Imports structlog without what it loads on the way and the daemon never uses: rich and pygments, for tracebacks in
colour. Import this module before anything that imports it. (`samewire.node.lean_http` does the same for aiohttp.)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast


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


with _without("rich"):
    import structlog  # noqa: F401
