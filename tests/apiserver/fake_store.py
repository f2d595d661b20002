"""The state of a Kubernetes API server: objects, one counter of versions, a history that can be forgotten."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
Key = tuple[str, str]
Matcher = Callable[[Json], bool]


class Refused(Exception):
    """An answer of the API that is no success."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message

    def status(self) -> Json:
        """The Status object."""
        return {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        }  # fmt: skip


def expired(message: str = "The resourceVersion for the provided watch is too old.") -> Refused:
    """The refusal for a version that is too old."""
    return Refused(410, "Expired", message)


@dataclass(frozen=True)
class Entry:
    """One change in the history. ``before`` None: it was new; ``after`` None: it was deleted."""

    version: int
    resource: str
    before: Json | None
    after: Json | None


@dataclass
class Store:
    """All resources of one server."""

    version: int = 100
    oldest: int = 0
    objects: dict[str, dict[Key, Json]] = field(default_factory=dict)
    history: list[Entry] = field(default_factory=list)
    snapshots: dict[str, tuple[int, list[Json]]] = field(default_factory=dict)
    listeners: list[Callable[[Entry], None]] = field(default_factory=list)

    def put(self, resource: str, item: Json, *, create: bool | None = None) -> Json:
        """Create or replace an object; ``create`` True or False insists on one of them."""
        table = self.objects.setdefault(resource, {})
        key = key_of(item)
        before = table.get(key)
        if create is True and before is not None:
            raise Refused(409, "AlreadyExists", f"{resource} {key[1]!r} already exists")
        if create is False and before is None:
            raise Refused(404, "NotFound", f"{resource} {key[1]!r} not found")
        self.version += 1
        uid = before["metadata"]["uid"] if before else str(uuid.uuid4())
        kept = {"uid": uid, "creationTimestamp": "2026-01-01T00:00:00Z"}
        after = {**item, "metadata": {**kept, **item["metadata"], "resourceVersion": str(self.version)}}
        table[key] = after
        self._record(Entry(self.version, resource, before, after))
        return after

    def get(self, resource: str, key: Key) -> Json:
        """One object."""
        found = self.objects.get(resource, {}).get(key)
        if found is None:
            raise Refused(404, "NotFound", f"{resource} {key[1]!r} not found")
        return found

    def delete(self, resource: str, key: Key) -> Json:
        """Delete an object; the last state is returned with the version of the deletion."""
        before = self.objects.get(resource, {}).pop(key, None)
        if before is None:
            raise Refused(404, "NotFound", f"{resource} {key[1]!r} not found")
        self.version += 1
        self._record(Entry(self.version, resource, before, None))
        return before

    def forget_history(self) -> None:
        """As a compaction: no version before the present one can be watched from, no list can be continued."""
        self.oldest = self.version
        self.history.clear()
        self.snapshots.clear()

    def page(self, resource: str, matches: Matcher, limit: int, token: str) -> tuple[list[Json], int, str]:
        """Items, version and continue token ("" at the end) of one page. All pages show the first one's moment."""
        if token:
            name, _, start_text = base64.b64decode(token).decode().partition(":")
            if name not in self.snapshots:
                raise expired("The provided continue parameter is too old")
            version, items = self.snapshots[name]
            start = int(start_text)
        else:
            version, start, name = self.version, 0, uuid.uuid4().hex
            table = self.objects.get(resource, {})
            items = [table[key] for key in sorted(table) if matches(table[key])]
            self.snapshots[name] = (version, items)
        end = start + limit if limit else len(items)
        following = base64.b64encode(f"{name}:{end}".encode()).decode() if end < len(items) else ""
        return items[start:end], version, following

    def since(self, resource: str, version: int) -> Iterator[Entry]:
        """The history after a version. Raises ``Refused`` (410) if that is forgotten."""
        if version < self.oldest:
            raise expired()
        return (entry for entry in self.history if entry.resource == resource and entry.version > version)

    def _record(self, entry: Entry) -> None:
        self.history.append(entry)
        for listener in tuple(self.listeners):
            listener(entry)


def key_of(item: Json) -> Key:
    """(namespace, name)."""
    return (item["metadata"].get("namespace", ""), item["metadata"]["name"])


def selection(labels: str, fields: str) -> Matcher:
    """What the selectors of a request choose."""
    terms = [term.strip() for term in labels.split(",") if term.strip()]
    wanted = [term.split("=", 1) for term in fields.replace("==", "=").split(",") if term]

    def matches(item: Json) -> bool:
        found = item["metadata"].get("labels") or {}
        return all(_label(found, term) for term in terms) and all(
            _field(item, path) == value for path, value in wanted
        )

    return matches


def event_line(entry: Entry, matches: Matcher) -> bytes | None:
    """The event that a watcher with this selection sees; an object that leaves the selection is deleted for it."""
    was = entry.before is not None and matches(entry.before)
    now = entry.after is not None and matches(entry.after)
    if now:
        return line("MODIFIED" if was else "ADDED", entry.after)
    if was:
        last = entry.before if entry.after is None else entry.after
        assert last is not None
        metadata = {**last["metadata"], "resourceVersion": str(entry.version)}
        return line("DELETED", {**last, "metadata": metadata})
    return None


def line(kind: str, item: Mapping[str, Any] | None) -> bytes:
    """One line of a watch."""
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


def _label(found: Mapping[str, str], term: str) -> bool:
    if term.startswith("!"):
        return term[1:] not in found
    if "!=" in term:
        name, value = term.split("!=", 1)
        return found.get(name) != value
    if "=" in term:
        name, value = term.replace("==", "=").split("=", 1)
        return found.get(name) == value
    return term in found


def _field(item: Json, path: str) -> str:
    value: Any = item
    for part in path.split("."):
        value = value.get(part, "") if isinstance(value, dict) else ""
    return str(value)
