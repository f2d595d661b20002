"""What controllers see of Kubernetes: one interface, whatever the objects come from.

A controller names the kinds it wants (`Source.watch`) and is called with batches:

1. Once a kind is complete, one batch with ``snapshot`` set that holds every object. Before that: nothing.
2. Then batches of changes, in the order in which they happened. A batch holds what arrived together, so a burst is
   few calls. Both sides of a change are given; an object that did not change is never reported.

A source that cannot reach its origin goes on trying and changes nothing: objects stay as they were last known, and
`Source.health` says how old that knowledge is. When it comes back after a gap, the differences to what was known
arrive as ordinary changes. An object that cannot be read is skipped and counted; what was known of it stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar

from msgspec import Struct

from samewire.kube.model import Key, Object, ObjectT

T_co = TypeVar("T_co", bound=Object, covariant=True)


class Change(Struct, Generic[T_co], frozen=True, gc=False):
    """One change of one object. ``old`` None: it is new. ``new`` None: it is gone. Never both."""

    key: Key
    old: T_co | None
    new: T_co | None


class Batch(Struct, Generic[T_co], frozen=True, gc=False):
    """Changes of one kind, oldest first; a key may occur more than once.

    ``snapshot``: the first batch for this handler, with every object there is (``old`` is always None).
    ``received_s``: the event loop's time at which the first of them arrived; to measure latency with.
    """

    kind: type[T_co]
    changes: tuple[Change[T_co], ...]
    snapshot: bool
    received_s: float


class KindHealth(Struct, frozen=True):
    """How well one kind is known.

    ``synced``: the snapshot has been handed over; never unset again. ``connected``: events flow at this moment.
    ``last_contact_s``: the event loop's time of the last good word from the origin (an event, a bookmark, a complete
    list), None before the first. ``error``: why it is not connected, "" if it is. ``lost``: something is in the way,
    and has been since the last good word; not set while a list is being read. ``unread``: what is there and has
    never been read; a part of a key that nobody knows is empty.
    """

    kind: str
    synced: bool
    connected: bool
    last_contact_s: float | None
    error: str
    objects: int
    lost: bool = False
    unread: tuple[Key, ...] = ()


class Counts(Struct):
    """What happened to one kind since the start; only ever grows."""

    lists: int = 0
    watches: int = 0
    events: int = 0
    bookmarks: int = 0
    malformed: int = 0
    expired: int = 0
    throttled: int = 0
    stalled: int = 0
    failures: int = 0
    handler_failures: int = 0


class Source(Protocol):
    """Where Kubernetes objects come from. All of it lives in one event loop.

    Call `watch` for each kind, then `start`; handlers added later get their snapshot at once if the kind is synced.
    """

    def watch(self, kind: type[ObjectT], handler: Callable[[Batch[ObjectT]], None]) -> None:
        """Call ``handler`` with every batch of a kind, in the event loop.

        A handler must return soon (note what is dirty, wake a task). An exception it raises is logged and counted and
        stops nobody.
        """

    def objects(self, kind: type[ObjectT]) -> Mapping[Key, ObjectT]:
        """What is known now, as a live read-only view that changes with each batch; empty before the snapshot."""

    def health(self) -> tuple[KindHealth, ...]:
        """The state of every watched kind."""

    def counts(self) -> Mapping[str, Counts]:
        """Per kind's name, what happened to it."""

    async def start(self) -> None:
        """Begin; returns without waiting for the first snapshot, and whether or not the origin can be reached."""

    async def wait_synced(self) -> None:
        """Wait until every watched kind has been handed over."""

    async def close(self) -> None:
        """Stop and free everything. No handler is called afterwards."""
