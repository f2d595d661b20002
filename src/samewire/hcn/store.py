"""The desired store: SQLite on disk (WAL), the same objects in memory.

Look-ups are answered by `Store.state`; the file is written within the same call that changes it, in one
transaction for all objects of a change. ``synchronous=NORMAL``: nothing is lost when the process dies; a
power cut may lose the last transactions, and takes the network namespaces they were about with it.

"Cannot be read" is never "empty": a damaged, truncated, foreign, newer or locked file raises `StoreError`.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from samewire.errors import Exhausted
from samewire.hcn import policy_rows
from samewire.hcn.checkpoint import DUE_BYTES, LIMIT_PAGES, Checkpoints
from samewire.hcn.errors import StoreError
from samewire.hcn.migrations import MIGRATIONS, OBJECTS, SETTINGS
from samewire.hcn.policy_rows import POLICIES, Statement
from samewire.hcn.reboot import casualties, netns_alive, read_boot_id
from samewire.hcn.room import Room
from samewire.hcn.schema import STRUCTS, Kind
from samewire.hcn.state import State
from samewire.hcn.storefile import create_if_absent, damaged, explain, hold_directory, identity
from samewire.hcn.switch import Change

APPLICATION_ID = 0x53776972  # "Swir": tells our file from any other SQLite file
SCHEMA_VERSION = 5
MAX_NUMBER = 2**32 - 1

_SCHEMA = f"""
BEGIN;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
{OBJECTS}
{POLICIES}
CREATE TABLE numbers (
    kind TEXT NOT NULL, key TEXT NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (kind, key)
) WITHOUT ROWID;
CREATE TABLE counters (kind TEXT NOT NULL PRIMARY KEY, last INTEGER NOT NULL) WITHOUT ROWID;
{SETTINGS}
COMMIT;
"""
_DELETE = "DELETE FROM objects WHERE kind = ? AND id = ?"
_UPDATE = """ON CONFLICT (kind, id) DO UPDATE SET json = excluded.json, numbers = excluded.numbers,
    apart = excluded.apart, last_name = excluded.last_name"""
# One row, which is what a change of a Service is: a third less than the other takes.
_PUT_ONE = f"""INSERT INTO objects (position, boot_id, kind, id, json, numbers, apart, last_name)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?) {_UPDATE}"""
# One statement for any number of rows: it does not ask for the interpreter before it is done. The last two parameters:
# the rows' JSON texts in one, and for each row its kind and id, and where its text begins and how long it is, and what
# `policy_rows.stored` says of its policies. (Not ``value->>0``: SQLite 3.37, beside which Ubuntu 22.04 has Python 3.11,
# does not know it.)
_PUT = f"""INSERT INTO objects
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), ? + key, ?,
        substr(?, json_extract(value, '$[2]'), json_extract(value, '$[3]')),
        json_extract(value, '$[4]'), coalesce(json_extract(value, '$[5]'), 0),
        coalesce(json_extract(value, '$[6]'), 0)
    FROM json_each(?) WHERE true {_UPDATE}"""
_encode = msgspec.json.Encoder().encode


@cache
def _decoder(kind: Kind) -> msgspec.json.Decoder[Any]:
    """Made when there is something to read: a decoder takes a millisecond or two."""
    return msgspec.json.Decoder(STRUCTS[kind])


class Store:
    """The objects of one node. One process has it open; all methods are to be called from one thread."""

    def __init__(self, path: Path, boot_id: str | None = None) -> None:
        """Open the file, or create it when there is none. Raises StoreError."""
        self.path = path
        self.state = State()
        self._alone = threading.Lock()  # one transaction at a time
        # Of its own: no change is to wait for the tools' threads, or for names that are looked up in vain.
        self._thread = ThreadPoolExecutor(1, "store")
        self._boot_id = boot_id or read_boot_id()
        self._position = 0
        self._numbers: dict[tuple[str, str], int] = {}
        self._counters: dict[str, int] = {}
        self._failure = ""  # of the last change
        self._room = Room(path)
        try:
            with ExitStack() as opened:
                opened.callback(os.close, hold_directory(path))
                self._room.give()  # for the files that are made now
                create_if_absent(path, _SCHEMA)
                self._db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
                opened.callback(self._db.close)
                self._file = identity(path)
                self._prepare()
                self._load()
                self._checkpoints = Checkpoints(path, self._alone)
                opened.callback(self._checkpoints.close)
                self._thread.submit(bool)  # begins now: could it not later, a change would stay in its queue
                self._room.keep()
                self._opened = opened.pop_all()
        except OSError as error:
            raise StoreError(str(path), f"cannot be opened: {error}") from error
        except sqlite3.Error as error:
            raise StoreError(str(path), explain(error)) from error

    def lost(self) -> str:
        """Why what is written now would be gone with this process; "" when the file is where it was."""
        if identity(self.path) == self._file:
            return ""
        return "the database was deleted or replaced under the running daemon; put it back, or `samewire uninstall`"

    def trouble(self) -> str:
        """Why no change can be kept now; "" when all is well. After one that could not be, this tries again."""
        if self._failure and not self.lost():
            with suppress(StoreError):
                self._transaction(
                    lambda: self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}"), frees=False
                )
        return self.lost() or self._failure

    def _is_full(self) -> bool:
        """Whether a change found no room, and there still is too little for one: what is written now was smaller."""
        return "disk is full" in self._failure and self._room.is_short()

    def close(self) -> None:
        """Close the file, once what is on its way to it is written."""
        self._thread.shutdown()
        self._opened.close()

    def commit(self, changes: Sequence[Change]) -> None:
        """Write changes in one transaction, then show them in `state`. Raises StoreError (nothing has
        changed then).
        """
        self._refuse_when_lost()
        self._carry_out(self._statements(changes), _frees(changes))
        self.state.apply(changes)

    async def commit_beside(self, changes: Sequence[Change]) -> None:
        """The same, with a thread that writes; call no other commit before it is done. Others have their turn, and see
        the changes at once: there is no moment at which the switch has them and `state` has not.
        """
        self._refuse_when_lost()
        statements = self._statements(changes)
        self.state.apply(changes)
        try:
            await asyncio.get_running_loop().run_in_executor(
                self._thread, self._carry_out, statements, _frees(changes)
            )
        except Exception:
            self.state.apply([change.inverse() for change in reversed(changes)])
            raise

    def allocate_number(self, kind: str, key: str) -> int:
        """Return the number of ``key``, the next free one (from 1) when it has none yet.

        A number is never given to another key of the kind, not even after `release_number`, a failed change
        or a restart. The allocation is its own transaction. Raises Exhausted, StoreError.
        """
        known = self._numbers.get((kind, key))
        if known is not None:
            return known
        number = self._counters.get(kind, 0) + 1
        if number > MAX_NUMBER:
            raise Exhausted(f"numbers of {kind}", f"all {MAX_NUMBER} have been used")
        self._counters[kind] = number  # stays even if the write fails: somebody may have seen it
        self._transaction(lambda: self._write_number(kind, key, number), frees=False)
        self._numbers[kind, key] = number
        return number

    def reserve_numbers(self, kind: str, count: int) -> int:
        """Return the first of ``count`` numbers of a kind that will never be given again. Raises Exhausted,
        StoreError.
        """
        first = self._counters.get(kind, 0) + 1
        if first + count - 1 > MAX_NUMBER:
            raise Exhausted(f"numbers of {kind}", f"all {MAX_NUMBER} have been used")
        self._count_to(kind, first + count - 1)
        return first

    def last_number(self, kind: str) -> int:
        """Return the last number of a kind that has been given, 0 when none has."""
        return self._counters.get(kind, 0)

    def skip_numbers(self, kind: str, last: int) -> None:
        """Let the next number of a kind be above ``last``. Raises StoreError."""
        if last > self._counters.get(kind, 0):
            self._count_to(kind, last)

    def _count_to(self, kind: str, last: int) -> None:
        self._counters[kind] = last
        self._transaction(lambda: self._write_counter(kind, last), frees=False)

    def release_number(self, kind: str, key: str) -> None:
        """Forget the number of ``key`` (no error when it has none). Raises StoreError."""
        if (kind, key) in self._numbers:
            self._transaction(
                lambda: self._db.execute("DELETE FROM numbers WHERE kind = ? AND key = ?", (kind, key))
            )
            del self._numbers[kind, key]

    def numbers(self, kind: str) -> dict[str, int]:
        """Return all numbers of a kind by key."""
        return {key: number for (of_kind, key), number in self._numbers.items() if of_kind == kind}

    def setting(self, name: str) -> Any:
        """Return the JSON value of a setting of the node, None when it is not set. Raises StoreError."""
        try:
            with self._alone:
                row = self._db.execute("SELECT json FROM settings WHERE name = ?", (name,)).fetchone()
        except sqlite3.Error as error:
            raise StoreError(str(self.path), explain(error)) from error
        return msgspec.json.decode(row[0]) if row else None

    def set_setting(self, name: str, value: Any) -> None:
        """Write the JSON value of a setting of the node; None removes it. Raises StoreError."""
        row = (name, _encode(value))
        if value is None:
            self._transaction(lambda: self._db.execute("DELETE FROM settings WHERE name = ?", (name,)))
        else:
            self._transaction(lambda: self._db.execute("REPLACE INTO settings VALUES (?, ?)", row))

    def prune_after_reboot(self, alive: Callable[[str], bool] = netns_alive) -> list[Change]:
        """Drop what did not outlive a reboot, and return it. Call before anything else; does nothing in the
        same boot.

        Gone are non-persistent networks with all that is theirs, and namespaces whose network namespace is
        gone, with their endpoints. The kernel holds nothing of them, so the switch is not told. Raises
        StoreError.
        """
        try:
            rows = self._db.execute(
                "SELECT kind, id FROM objects WHERE boot_id != ?", (self._boot_id,)
            ).fetchall()
        except sqlite3.Error as error:
            raise StoreError(str(self.path), explain(error)) from error
        changes = casualties(self.state, [(Kind(kind), object_id) for kind, object_id in rows], alive)
        self.commit(changes)
        return changes

    def _prepare(self) -> None:
        """Check that the file is ours and whole, and bring it to the present version."""
        db = self._db
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(f"PRAGMA wal_autocheckpoint = {LIMIT_PAGES}")
        db.execute(f"PRAGMA journal_size_limit = {DUE_BYTES}")
        db.execute("PRAGMA cache_size = -16384")  # KiB, at most
        verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise StoreError(str(self.path), damaged(verdict))
        if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise StoreError(str(self.path), "this is no database of Samewire")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise StoreError(
                str(self.path),
                f"written by a newer Samewire (version {version}, this one knows {SCHEMA_VERSION}): install that again",
            )
        db.execute("BEGIN EXCLUSIVE")
        for step in range(version, SCHEMA_VERSION):
            MIGRATIONS[step](db)
            db.execute(f"PRAGMA user_version = {step + 1}")
        db.execute("COMMIT")

    def _load(self) -> None:
        """Read everything into memory; a row that cannot be read is an error, not an absence."""
        apart: dict[tuple[str, str], list[tuple[int, str]]] = {}
        for kind, object_id, number, text in self._db.execute(
            "SELECT * FROM policies ORDER BY kind, id, number"
        ):
            apart.setdefault((kind, object_id), []).append((number, text))
        for kind, object_id, position, data, numbers, beside, last_name in self._db.execute(
            "SELECT kind, id, position, json, numbers, apart, last_name FROM objects ORDER BY position"
        ):
            try:
                rows = apart.pop((kind, object_id), [])
                value = policy_rows.restored(
                    _decoder(Kind(kind)).decode(data), numbers, beside, last_name, rows
                )
            except (TypeError, ValueError, msgspec.MsgspecError) as error:
                raise StoreError(str(self.path), f"{kind} {object_id} cannot be read: {error}") from error
            self.state.apply([Change(Kind(kind), object_id, None, value)])
            self._position = position
        if apart:
            raise StoreError(str(self.path), f"policies of {next(iter(apart))} are there, but not the object")
        for kind, key, number in self._db.execute("SELECT kind, key, number FROM numbers"):
            self._numbers[kind, key] = number
        self._counters.update(self._db.execute("SELECT kind, last FROM counters").fetchall())

    def _transaction(self, write: Callable[[], object], *, frees: bool = True) -> None:
        self._refuse_when_lost()

        def transact() -> None:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                write()
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

        self._write(transact, frees)

    def _write(self, work: Callable[[], object], frees: bool) -> None:
        """Do what writes. Raises StoreError."""
        with self._alone:
            try:
                try:
                    work()
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                        raise
                    self._write_when_full(work, frees)
            except sqlite3.Error as error:
                self._failure = explain(error)
                raise StoreError(str(self.path), self._failure) from error
            if not self._is_full():
                self._failure = ""
                self._room.keep()
        self._checkpoints.begin_if_due()

    def _write_when_full(self, work: Callable[[], object], frees: bool) -> None:
        """Once more: the log, written back, begins anew in the room it has; else in what is kept for what ``frees``."""
        try:
            self._checkpoints.is_complete()
            work()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL or not (frees and self._room.give()):
                raise
            try:
                self._checkpoints.is_complete()
                work()
            finally:
                self._room.keep()

    def _refuse_when_lost(self) -> None:
        lost = self.lost()
        if lost:
            raise StoreError(str(self.path), lost)

    def _statements(self, changes: Sequence[Change]) -> list[Statement]:
        """What writes changes, all that needs the interpreter done: in their order, runs of the same sort as one."""
        statements = [statement for change in changes for statement in policy_rows.statements(change)]
        for gone, run in groupby(changes, key=lambda change: change.after is None):
            if gone:
                statements += [(_DELETE, (change.kind.value, change.id)) for change in run]
            else:
                statements.append(self._put(list(run)))
        return statements

    def _carry_out(self, statements: Sequence[Statement], frees: bool) -> None:
        """In one transaction, from any thread. One statement is a transaction by itself: SQLite is called once, and a
        thread that calls it waits for the interpreter once.
        """
        if not statements:
            return  # nothing written proves nothing: `trouble` would be forgotten
        if len(statements) != 1:
            self._transaction(lambda: [self._db.execute(*one) for one in statements], frees=frees)
            return
        self._write(lambda: self._db.execute(*statements[0]), frees)

    def _put(self, changes: Sequence[Change]) -> Statement:
        first = self._position + 1
        self._position += len(changes)
        if len(changes) == 1:
            (change,) = changes
            row, *policies = policy_rows.stored(change.after)
            return _PUT_ONE, (first, self._boot_id, change.kind.value, change.id, _encode(row), *policies)
        texts, places, begin = [], [], 1
        for change in changes:
            row, *policies = policy_rows.stored(change.after)
            text = _encode(row)
            texts.append(text)
            beside = policies if any(policies) else ()
            places.append((change.kind.value, change.id, begin, len(text), *beside))
            begin += len(text)
        return _PUT, (first, self._boot_id, b"".join(texts), _encode(places).decode())

    def _write_counter(self, kind: str, last: int) -> None:
        self._db.execute(
            "INSERT INTO counters VALUES (?, ?) ON CONFLICT (kind) DO UPDATE SET last = excluded.last",
            (kind, last),
        )

    def _write_number(self, kind: str, key: str, number: int) -> None:
        self._write_counter(kind, number)
        self._db.execute("INSERT INTO numbers VALUES (?, ?, ?)", (kind, key, number))


def _frees(changes: Sequence[Change]) -> bool:
    """Whether something goes, and nothing comes."""
    return any(change.after is None for change in changes) and not any(
        change.before is None for change in changes
    )
