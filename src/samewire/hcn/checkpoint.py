"""The write-ahead log's checkpoints: in a thread and on a connection of their own, while commits go on.

SQLite itself would do one within a commit, which copies the whole log and waits for the disk: 0.1 to 0.5 s in which no
change gets through.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger(__name__)

DUE_BYTES: Final = 64 << 20
"""Size of the log that asks for a checkpoint. That much of its file is kept when it begins anew: the commit that does
so would wait for the rest to be given back. Ids are random, and fifty thousand load balancers on their way write every
page many times, 136 MB in all; a much smaller log would have them copied as often."""
DUE_S: Final = 60.0
"""Age of what is in the log that asks for one: a full disk leaves the log the room that it has, and a copy of the
database's file alone misses a minute."""
LIMIT_PAGES: Final = 65536
"""Size of the log at which a commit does the work itself, should the thread have failed: 256 MB."""
_PASSES: Final = 4


class Checkpoints:
    """Keeps the log of one database small. ``alone`` is held by whoever writes."""

    def __init__(self, path: Path, alone: threading.Lock) -> None:
        """Raises sqlite3.Error."""
        self._path = path
        self._log_path = f"{path}-wal"
        self._alone = alone
        self._due_bytes = DUE_BYTES
        self._due_at_s = time.monotonic() + DUE_S
        self._failed = False
        self._running: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA synchronous = NORMAL")
        # Opens the log: later there might be another one.
        self._db.execute("SELECT 1 FROM settings").fetchone()
        self._thread.submit(bool)  # begins now: what cannot begin later must not fail a commit that is made

    def begin_if_due(self) -> None:
        """To be called after each commit: starts a checkpoint if it is time and none is on."""
        if self._running is not None and not self._running.done():
            return
        # Without a file, what is in the log would go with this process: somebody has removed it.
        if time.monotonic() > self._due_at_s or not 0 < self._size_bytes() <= self._due_bytes:
            self._running = self._thread.submit(self._run)

    def close(self) -> None:
        """Wait for the one that is on, and close the connection."""
        self._thread.shutdown()
        self._db.close()

    def _run(self) -> None:
        try:
            complete = any(self.is_complete() for _ in range(_PASSES))
            if not complete:
                # Changes come faster than passes end: the few that are left, with nobody in between.
                with self._alone:
                    complete = self.is_complete()
        except sqlite3.Error as error:
            if not self._failed:
                log.warning(
                    "the database's log cannot be written back", path=str(self._path), error=str(error)
                )
            complete, self._failed = False, True
        else:
            self._failed = False
        # What cannot be done now (the disk is full, a tool of the administrator reads) is not tried at each commit.
        self._due_bytes = DUE_BYTES if complete else self._size_bytes() + DUE_BYTES
        self._due_at_s = time.monotonic() + DUE_S

    def is_complete(self) -> bool:
        """One pass: what is in the log when it begins. True when that was all, and the log can begin anew. Raises
        sqlite3.Error.
        """
        _, pages, done = self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        return bool(pages == done)

    def _size_bytes(self) -> int:
        try:
            return os.stat(self._log_path).st_size
        except FileNotFoundError:
            return 0
