"""Imports two libraries without what they load on the way and the daemon never uses.

A third of the daemon's start was this: structlog brings rich and pygments for tracebacks in colour, and aiohttp reads
the machine's certificates twice for its client. Import this module before anything that imports either.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

_CERTIFICATES: Final = "SSL_CERT_FILE"


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


@contextmanager
def _certificates_unread() -> Iterator[None]:
    """Within, the one file of all certificates counts as empty; those found by their names still count."""
    before = os.environ.get(_CERTIFICATES)
    os.environ[_CERTIFICATES] = os.devnull
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CERTIFICATES]
        else:
            os.environ[_CERTIFICATES] = before


with _without("rich"):
    import structlog  # noqa: F401
with _certificates_unread():
    import aiohttp  # noqa: F401
