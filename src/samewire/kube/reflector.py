"""Keeps one kind in step with an API server: list, then watch, for ever.

A round is a list if we have no resource version to start from, then one watch. Whatever fails ends the round, is
waited for, and the next round takes up where this one was. Only four things make us list again: the server has
forgotten our version (410), it refuses our version several times in a row (we may not watch, say), its history turns
out to be another, shorter one (a restored backup), or the stream is unreadable at the same place twice. A list replaces
what is known only when all its pages are there; what was known of an object that cannot be decoded stays.

Lists are paged and without a resource version, so they show the newest state and never go back in time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import Final, Generic

import structlog
from msgspec import Struct

from samewire.errors import SamewireError, Unavailable
from samewire.kube.backoff import Backoff
from samewire.kube.client import KubeClient, Stalled, TooLarge
from samewire.kube.errors import ApiError
from samewire.kube.feed import Feed
from samewire.kube.model import Key, ObjectT
from samewire.kube.wire import PATHS, BrokenStream, Decoder, Event, LineSplitter, Page

log = structlog.get_logger(__name__)

_PAGED_ATTEMPTS: Final = 2
_SMALLER: Final = 10
_REFUSALS_BEFORE_LIST: Final = 3
_UNCLEAR: Final = (400, 500)
_SHORT_WATCH_S: Final = 1.0
_GRACE_S: Final = 15.0


class Selector(Struct, frozen=True):
    """Which objects of a kind: label and field selectors as in the API's list requests, "" = all."""

    labels: str = ""
    fields: str = ""


class Timing(Struct, frozen=True):
    """How long things may take.

    A watch is asked to last between ``watch_min_s`` and ``watch_max_s``. ``silence_s``: longest time without a byte;
    servers send a bookmark about every minute. Backoff: see `Backoff`.
    """

    page_size: int = 500
    watch_min_s: float = 240.0
    watch_max_s: float = 480.0
    silence_s: float = 120.0
    backoff_first_s: float = 0.2
    backoff_longest_s: float = 30.0


class Reflector(Generic[ObjectT]):
    """One kind of one API server, kept in a feed."""

    def __init__(
        self,
        client: KubeClient,
        feed: Feed[ObjectT],
        selector: Selector,
        timing: Timing,
        chance: random.Random,
    ) -> None:
        self._client = client
        self._feed: Feed[ObjectT] = feed
        self._timing = timing
        self._chance = chance
        self._path = PATHS[feed.kind]
        self._decoder: Decoder[ObjectT] = Decoder(feed.kind)
        self._backoff = Backoff(timing.backoff_first_s, timing.backoff_longest_s, chance)
        self._clock = asyncio.get_running_loop().time
        named = {"labelSelector": selector.labels, "fieldSelector": selector.fields}
        self._selector = {name: value for name, value in named.items() if value}
        self._version = ""
        self._broken_at = ""
        self._refusals = 0
        self._forgotten = False

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            try:
                await self._round()
            except SamewireError as error:
                await asyncio.sleep(self._failed(error))
            except Exception as error:
                # A fault of ours must not freeze the kind for good: start over, but not in a hurry.
                log.exception("reflecting failed", kind=self._feed.kind.__name__)
                self._version = ""
                await asyncio.sleep(self._failed(Unavailable("reflector", repr(error))))

    async def _round(self) -> None:
        if not self._version:
            await self._list()
        await self._watch()

    def _failed(self, error: SamewireError) -> float:
        """Note what went wrong and what to do next; returns how long to wait before."""
        counts, asked_s = self._feed.counts, None
        counts.failures += 1
        if isinstance(error, ApiError):
            asked_s = error.retry_after_s
            if error.expired:
                counts.expired += 1
                self._forget()
            elif error.throttled:
                counts.throttled += 1
            elif error.status in _UNCLEAR or error.status < 400 or error.reason == "Timeout" or error.advice:
                self._refused()
        elif isinstance(error, Stalled):
            counts.stalled += 1
        elif isinstance(error, BrokenStream):
            counts.malformed += 1
            if self._version == self._broken_at:
                self._version = ""
            self._broken_at = self._version
        advice = error.advice if isinstance(error, ApiError) else ""
        self._feed.lost(f"{error} ({self._path}: {advice})" if advice else str(error))
        return self._backoff.next_s(asked_s)

    def _forget(self) -> None:
        """List next. Soon, however long the server was away before; but not one list after the other."""
        self._version = ""
        if not self._forgotten:
            self._backoff.reset()
        self._forgotten = True

    def _refused(self) -> None:
        """An answer that a version of another history would also get ("Too large resource version"), an error without
        a code in the stream, or the right to list without that to watch: then lists have to do.
        """
        self._refusals += 1
        if self._refusals >= _REFUSALS_BEFORE_LIST:
            self._refusals = 0
            self._version = ""

    def _well(self) -> None:
        """The server has said something that brings us on."""
        self._refusals = 0
        self._forgotten = False
        self._backoff.reset()
        self._feed.contact(connected=True)

    # --- list -------------------------------------------------------------------------------------------------------

    async def _list(self) -> None:
        """All objects. A continue token that expires on the way starts it again, at last in one piece."""
        for _ in range(_PAGED_ATTEMPTS):
            try:
                await self._list_all(self._timing.page_size)
                return
            except ApiError as error:
                if not error.expired:
                    raise
                self._feed.counts.expired += 1
        await self._list_all(0)

    async def _list_all(self, page_size: int) -> None:
        feed, token = self._feed, ""
        began_s = self._clock()
        found: dict[Key, ObjectT] = {}
        unread: set[Key] = set()
        while True:
            try:
                page = await self._page(page_size, token)
            except TooLarge:
                if page_size <= 1:
                    raise
                # An object may be a thousand times as large as they are as a rule.
                page_size = max(1, page_size // _SMALLER)
                continue
            for item in page.items:
                found[item.key] = feed.known_twin(item)
            unread |= self._keep_unreadable(page, found)
            feed.contact(connected=False)
            token = page.meta.continue_token
            if not token:
                break
        if not page.meta.resource_version:
            raise BrokenStream("a list came without a resourceVersion")
        feed.counts.lists += 1
        feed.unread = unread
        feed.replace(found, began_s)
        self._version = page.meta.resource_version

    async def _page(self, page_size: int, token: str) -> Page[ObjectT]:
        """One page; when the server is busy, the same page again later."""
        params = dict(self._selector)
        if page_size:
            params["limit"] = str(page_size)
        if token:
            params["continue"] = token
        while True:
            try:
                return self._decoder.page(await self._client.request("GET", self._path, params=params))
            except ApiError as error:
                if not error.throttled:
                    raise
                self._feed.counts.throttled += 1
                self._feed.lost(str(error))
                await asyncio.sleep(self._backoff.next_s(error.retry_after_s))

    def _keep_unreadable(self, page: Page[ObjectT], found: dict[Key, ObjectT]) -> set[Key]:
        """What cannot be read is not what is gone. Returns the keys of what has never been read."""
        unread = set()
        for key, reason in page.unreadable:
            self._feed.unreadable(key, reason)
            known = self._feed.objects
            kept = known if not key[1] else {key: known[key]} if key in known else {}
            for kept_key, item in kept.items():
                found.setdefault(kept_key, item)
            if not kept:
                unread.add(key)
        return unread

    # --- watch ------------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Follow the changes from our version on, until the server ends it."""
        timing, counts = self._timing, self._feed.counts
        timeout_s = self._chance.uniform(timing.watch_min_s, timing.watch_max_s)
        params = {
            **self._selector,
            "watch": "1",
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, round(timeout_s))),
        }
        began_s = self._clock()
        told_before = counts.events + counts.bookmarks
        try:
            async with asyncio.timeout(timeout_s + _GRACE_S):
                silent = await self._follow(params)
        except TimeoutError:
            raise Stalled("Kubernetes API", "a watch did not end in its time") from None
        told = counts.events + counts.bookmarks > told_before
        if silent:
            await self._look()
        elif not told and self._clock() - began_s < _SHORT_WATCH_S:
            raise Unavailable("Kubernetes API", "a watch ended at once, without an event")
        self._forgotten = False
        self._backoff.reset()

    async def _follow(self, params: dict[str, str]) -> bool:
        """Returns whether it ended because the server said nothing any more."""
        splitter = LineSplitter()
        async with self._client.stream(self._path, params, self._timing.silence_s) as stream:
            self._feed.counts.watches += 1
            self._feed.contact(connected=True)
            try:
                async for chunk in stream.chunks():
                    self._take(splitter.feed(chunk))
            except Stalled:
                self._feed.counts.stalled += 1
                return True
        return False

    async def _look(self) -> None:
        """After a silence: does the server answer, and is our version one of its history?

        Silence alone is no fault: where nothing changes, there need be no bookmarks. But a server whose history is
        behind our version does the same: it is silent until it has come that far, and what changes till then is lost.
        """
        page = await self._page(1, "")
        there, ours = page.meta.resource_version, self._version
        if there.isdecimal() and ours.isdecimal() and int(there) < int(ours):
            log.warning("the server's history is another one", kind=self._feed.kind.__name__)
            self._version = ""

    def _take(self, lines: Iterable[bytes]) -> None:
        """Hand over what came together, and remember how far we are. Raises ``BrokenStream``, ``ApiError``."""
        received_s = self._clock()
        version_before = self._version
        changes: list[tuple[Key, ObjectT | None]] = []
        try:
            for line in lines:
                event = self._decoder.event(line)
                if event.type == "ERROR":
                    raise ApiError(event.code, event.reason, event.message)
                self._note(event, changes)
                self._version = event.version or self._version
        finally:
            if self._version != version_before:
                self._well()
            if changes:
                self._feed.apply(changes, received_s)

    def _note(self, event: Event[ObjectT], changes: list[tuple[Key, ObjectT | None]]) -> None:
        counts = self._feed.counts
        if event.type == "BOOKMARK":
            counts.bookmarks += 1
            return
        counts.events += 1
        if event.type == "PUT" and event.object is None:
            self._feed.unreadable(event.key, event.message)
        else:
            changes.append((event.key, event.object))
