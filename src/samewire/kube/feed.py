"""One kind of objects on its way to the controllers: what is known, who wants it, how fresh it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final, Generic

import structlog

from samewire.kube.model import Key, ObjectT
from samewire.kube.source import Batch, Change, Counts, KindHealth

log = structlog.get_logger(__name__)

Handler = Callable[[Batch[ObjectT]], None]

_REMEMBERED_FAULTS: Final = 1000


class Feed(Generic[ObjectT]):
    """The cache of one kind and its handlers. Used by the sources; not by controllers."""

    def __init__(self, kind: type[ObjectT], clock: Callable[[], float]) -> None:
        self.kind: type[ObjectT] = kind
        self.counts = Counts()
        self.synced = asyncio.Event()
        self.unread: set[Key] = set()
        """As ``KindHealth`` has it."""
        self._clock = clock
        self._objects: dict[Key, ObjectT] = {}
        self._handlers: list[Handler[ObjectT]] = []
        self._faults: set[tuple[Key, str]] = set()
        self._connected = False
        self._lost = False
        self._last_contact_s: float | None = None
        self._error = "not started"
        self._reported = ""

    @property
    def objects(self) -> Mapping[Key, ObjectT]:
        """What is known, live and read-only."""
        return MappingProxyType(self._objects)

    @property
    def health(self) -> KindHealth:
        """How well this kind is known."""
        return KindHealth(
            kind=self.kind.__name__,
            synced=self.synced.is_set(),
            connected=self._connected,
            last_contact_s=self._last_contact_s,
            error=self._error,
            objects=len(self._objects),
            lost=self._lost,
            unread=tuple(self.unread),
        )

    def add_handler(self, handler: Handler[ObjectT]) -> None:
        """Call it with every batch from now on; first with the snapshot, at once if there is one."""
        self._handlers.append(handler)
        if self.synced.is_set():
            self._call(handler, self._snapshot(self._clock()))

    def contact(self, *, connected: bool) -> None:
        """The origin has just said something good."""
        self._last_contact_s = self._clock()
        if connected and not self._connected:
            log.info("watching", kind=self.kind.__name__, objects=len(self._objects))
        if connected:
            self._reported = ""
        self._connected = connected
        self._lost = False
        self._error = "" if connected else "catching up"

    def lost(self, error: str) -> None:
        """The origin cannot be reached. What is known stays. Each reason is logged once until it is reached again."""
        if error != self._reported:
            log.warning("not watching", kind=self.kind.__name__, reason=error)
        self._reported = error
        self._connected = False
        self._lost = True
        self._error = error

    def unreadable(self, key: Key, reason: str) -> None:
        """Count an object that could not be decoded; each fault is logged once."""
        self.counts.malformed += 1
        fault = (key, reason)
        if fault in self._faults:
            return
        if len(self._faults) >= _REMEMBERED_FAULTS:
            self._faults.clear()
        self._faults.add(fault)
        log.warning("object skipped", kind=self.kind.__name__, namespace=key[0], name=key[1], reason=reason)

    def known_twin(self, item: ObjectT) -> ObjectT:
        """The object we have, if it equals this one: saves holding both while a list is being read."""
        known = self._objects.get(item.key)
        return known if known is not None and known == item else item

    def replace(self, items: Mapping[Key, ObjectT], received_s: float) -> None:
        """All there is, atomically. The first time it is the snapshot; later, the differences are handed over.

        Deletions go first: an address may have moved from a deleted object to a new one.
        """
        objects = self._objects
        changes = [Change(key, old, None) for key, old in objects.items() if key not in items]
        for change in changes:
            del objects[change.key]
        changes += self._puts(items.items())
        if self.synced.is_set():
            self._publish(Batch(self.kind, tuple(changes), False, received_s))
        else:
            self.synced.set()
            self._publish(self._snapshot(received_s))

    def apply(self, events: Iterable[tuple[Key, ObjectT | None]], received_s: float) -> None:
        """Puts (object) and deletions (None), in order; what changes nothing is left out."""
        changes: list[Change[ObjectT]] = []
        for key, new in events:
            self.unread.discard(key)
            if new is not None:
                changes += self._puts(((key, new),))
            elif (old := self._objects.pop(key, None)) is not None:
                changes.append(Change(key, old, None))
        self._publish(Batch(self.kind, tuple(changes), False, received_s))

    def _puts(self, items: Iterable[tuple[Key, ObjectT]]) -> list[Change[ObjectT]]:
        objects = self._objects
        changes = []
        for key, new in items:
            old = objects.get(key)
            if old is not new and old != new:
                objects[key] = new
                changes.append(Change(key, old, new))
        return changes

    def _snapshot(self, received_s: float) -> Batch[ObjectT]:
        changes = tuple(Change(key, None, new) for key, new in self._objects.items())
        return Batch(self.kind, changes, True, received_s)

    def _publish(self, batch: Batch[ObjectT]) -> None:
        if batch.changes or batch.snapshot:
            for handler in tuple(self._handlers):
                self._call(handler, batch)

    def _call(self, handler: Handler[ObjectT], batch: Batch[ObjectT]) -> None:
        try:
            handler(batch)
        except Exception:
            self.counts.handler_failures += 1
            log.exception("a handler failed", kind=self.kind.__name__, changes=len(batch.changes))
