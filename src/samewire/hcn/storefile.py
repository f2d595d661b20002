"""The database's file: made in one step, held by one process, told from another one in its place."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path

from samewire.hcn.errors import StoreError


def hold_directory(path: Path) -> int:
    """Be the only process with a database in this directory; returns the descriptor to close when done.

    The directory is made if there is none. SQLite's own exclusive mode would keep the checkpoints' connection out, too.
    Raises StoreError, OSError.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise StoreError(str(path), "another process has the database open") from error
    return descriptor


def identity(path: Path) -> tuple[int, int]:
    """Which file a path is; zeros when there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


def create_if_absent(path: Path, schema: str) -> None:
    """Make a complete new file under another name, so that a short or empty one is always damage. Call with the
    directory held: of two that make one at once, one would take the other's half. Raises StoreError, OSError.
    """
    if path.exists():
        if path.stat().st_size == 0:
            raise StoreError(str(path), "the file is empty; a database of Samewire never is")
        return
    if path.with_name(path.name + "-wal").exists():
        raise StoreError(str(path), "the database is gone but its write-ahead log is there")
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    db = sqlite3.connect(new, isolation_level=None)
    try:
        db.executescript(schema)
    finally:
        db.close()
    new.rename(path)


def explain(error: sqlite3.Error) -> str:
    """What is wrong, in words."""
    if "locked" in str(error):
        return "another process has the database open"
    if "unable to open" in str(error):
        return f"the database cannot be used: {error}; is its disk read-only?"
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return damaged(str(error))
    return f"the database cannot be used: {error}"


def damaged(how: str) -> str:
    """The same of a file that is not whole, and what to do: the daemon never makes a new one in its place."""
    what = " ".join(how.split())
    return f"the database is damaged ({what}): put its directory back as it was; or `samewire uninstall`, and remove it"
