"""Whether what is imported late still fits: the package may have been replaced under the running daemon.

An upgrade writes the files of another version. A module of that one, loaded among those of this one, makes a program
that nobody has ever tested.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import samewire
from samewire.errors import Unavailable

PACKAGE: Final = Path(samewire.__file__).parent
_OTHERS: Final = frozenset({"__pycache__", "windows"})
"""Directories: compiled bytecode, and what Windows programs load (`make test` builds it beside a running lab)."""


class Package:
    """The installed files as they were when this was made, but for those that may come and go."""

    def __init__(self, directory: Path = PACKAGE) -> None:
        self._directory = directory
        self._found = self._identity()

    def check(self, what: str) -> None:
        """To be called before ``what`` loads something of the package. Raises Unavailable."""
        if self._identity() != self._found:
            raise Unavailable(what, "Samewire was replaced on disk; restart the daemon: pods notice nothing")

    def _identity(self) -> int:
        return hash(frozenset(_files(str(self._directory))))


def _files(directory: str) -> Iterator[tuple[str, int, int, int]]:
    try:
        entries = list(os.scandir(directory))
    except OSError:  # gone: an uninstalled package, or one in the midst of its replacement
        return
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in _OTHERS:
                    yield from _files(entry.path)
                continue
            found = entry.stat()
        except OSError:
            continue
        yield entry.path, found.st_ino, found.st_mtime_ns, found.st_size
