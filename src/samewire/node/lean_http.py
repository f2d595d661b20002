"""Imports aiohttp without reading the machine's certificates, which its client does twice and the daemon never needs.

Import this module before anything that imports aiohttp.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_CERTIFICATES: Final = "SSL_CERT_FILE"


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


with _certificates_unread():
    import aiohttp  # noqa: F401
