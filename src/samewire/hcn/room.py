"""Room on the disk that is kept for when it is full.

What goes must be able to, or the disk stays full: the removal of a pod is a change, too. Written in the room that the
log has, it needs none, but for the log's pages to be written back the database's file may have to grow. And a start
makes files before it can do anything else.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

ENOUGH_BYTES: Final = 256 << 10
"""Some times what a pod takes."""
_STEP_BYTES: Final = 64 << 10
_SIZES: Final = range(16 * _STEP_BYTES, 0, -_STEP_BYTES)  # the largest that can be had
SUFFIX: Final = ".room"


class Room:
    """A file beside a database that holds nothing but its place. Nobody minds its absence."""

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(database.name + SUFFIX)
        self._bytes = 0

    def is_short(self) -> bool:
        """Whether the disk has too little room for a change, beside what is kept. What is free, as statvfs(2) has it,
        says nothing of that: of an ext4 up to 16 MiB are for nobody.
        """
        from tempfile import TemporaryFile  # not for disks that are not full

        try:
            with TemporaryFile(dir=self._path.parent) as probe:
                return not _has(probe.fileno(), ENOUGH_BYTES)
        except OSError:
            return True

    def keep(self) -> None:
        """Take as much as can be had, up to the largest size; as long as that is held, this costs nothing."""
        if self._bytes == _SIZES[0]:
            return
        with suppress(OSError):
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self._bytes = next(
                    (size for size in _SIZES if size > self._bytes and _has(handle, size)), self._bytes
                )
            finally:
                os.close(handle)

    def give(self) -> bool:
        """Let go of it; whether there was something to give."""
        self._bytes = 0
        try:
            self._path.unlink()
        except OSError:
            return False
        return True


def _has(handle: int, size: int) -> bool:
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError:
        return False
    return True
