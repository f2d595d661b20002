"""What brings the database of an older Samewire up to date, one version at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import msgspec

from samewire.hcn.codec import decode_policy, encode_policy
from samewire.hcn.errors import HcnError
from samewire.hcn.policies import KNOWN_POLICIES, OtherPolicy
from samewire.hcn.policy_rows import POLICIES, moved_apart

OBJECTS = """CREATE TABLE objects (
    kind TEXT NOT NULL, id TEXT NOT NULL, position INTEGER PRIMARY KEY, boot_id TEXT NOT NULL,
    json BLOB NOT NULL, numbers TEXT, apart INTEGER NOT NULL DEFAULT 0, last_name INTEGER NOT NULL DEFAULT 0,
    UNIQUE (kind, id)
);"""
_OBJECTS_3 = """CREATE TABLE objects (
    kind TEXT NOT NULL, id TEXT NOT NULL, position INTEGER PRIMARY KEY, boot_id TEXT NOT NULL,
    json BLOB NOT NULL, UNIQUE (kind, id)
);"""
SETTINGS = "CREATE TABLE settings (name TEXT NOT NULL PRIMARY KEY, json BLOB NOT NULL) WITHOUT ROWID;"


def _to_2(db: sqlite3.Connection) -> None:
    """Settings of the node; policies that were unknown to version 1 are now read as what they are."""
    db.execute(SETTINGS)
    rows = db.execute("SELECT kind, id, json FROM objects").fetchall()
    for kind, object_id, data in rows:
        value = msgspec.json.decode(data)
        if _recognise(value):
            row = (msgspec.json.encode(value), kind, object_id)
            db.execute("UPDATE objects SET json = ? WHERE kind = ? AND id = ?", row)


def _recognise(value: Any) -> bool:
    """Replace unknown policies of a stored object that are known by now; True if there was one."""
    found = False
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        found |= _recognise(item)
    policies: list[Any] = (value.get("Policies") or []) if isinstance(value, dict) else []
    for index, item in enumerate(policies):
        if item.get("Type") == OtherPolicy.__name__ and item.get("TypeName", "").lower() in KNOWN_POLICIES:
            old = msgspec.convert(item, OtherPolicy)
            try:
                policies[index] = msgspec.to_builtins(decode_policy(encode_policy(old)))
            except HcnError:
                continue  # it could not be read by that name: it stays what it was
            found = True
    return found


def _to_3(db: sqlite3.Connection) -> None:
    """Objects in their order on disk, with an index beside: very many are written at a third of the cost."""
    db.execute("ALTER TABLE objects RENAME TO old_objects")
    db.execute(_OBJECTS_3)
    db.execute(
        "INSERT INTO objects SELECT kind, id, position, boot_id, json FROM old_objects ORDER BY position"
    )
    db.execute("DROP TABLE old_objects")


def _to_4(db: sqlite3.Connection) -> None:
    """Policies have numbers that they keep, and rows of their own where there are many."""
    db.execute("ALTER TABLE objects ADD COLUMN numbers TEXT")
    db.execute("ALTER TABLE objects ADD COLUMN apart INTEGER NOT NULL DEFAULT 0")
    db.execute(POLICIES)
    for kind, object_id, data in db.execute("SELECT kind, id, json FROM objects").fetchall():
        value = msgspec.json.decode(data)
        apart = len(value.get("Policies", ()))
        try:
            rows = moved_apart(kind, object_id, value)
        except msgspec.MsgspecError:
            continue  # whoever loads it says what is wrong
        if rows is not None:
            db.execute(*rows)
            row = (msgspec.json.encode(value), apart, kind, object_id)
            db.execute("UPDATE objects SET json = ?, apart = ? WHERE kind = ? AND id = ?", row)


def _to_5(db: sqlite3.Connection) -> None:
    """The name that was given last to a policy of an object: that one may have gone."""
    db.execute("ALTER TABLE objects ADD COLUMN last_name INTEGER NOT NULL DEFAULT 0")


MIGRATIONS: dict[int, Callable[[sqlite3.Connection], None]] = {1: _to_2, 2: _to_3, 3: _to_4, 4: _to_5}
"""What brings a file of version N to N + 1; run in one transaction with the new version number."""
