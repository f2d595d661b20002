"""The source whose objects come from an API server."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from typing import Any

from samewire.kube.client import KubeClient
from samewire.kube.feed import Feed
from samewire.kube.model import Key, ObjectT
from samewire.kube.reflector import Reflector, Selector, Timing
from samewire.kube.source import Batch, Counts, KindHealth


class ApiSource:
    """A `Source` on a client, which it closes at its end. ``selectors``: per kind; all objects of the others."""

    def __init__(
        self,
        client: KubeClient,
        selectors: Mapping[type, Selector] | None = None,
        timing: Timing | None = None,
        chance: random.Random | None = None,
    ) -> None:
        self._client = client
        self._selectors = dict(selectors or {})
        self._timing = timing or Timing()
        self._chance = chance or random.Random()
        self._feeds: dict[type, Feed[Any]] = {}
        self._tasks: dict[type, asyncio.Task[None]] = {}
        self._started = False

    def watch(self, kind: type[ObjectT], handler: Callable[[Batch[ObjectT]], None]) -> None:
        """See `Source.watch`."""
        if kind not in self._feeds:
            self._feeds[kind] = Feed(kind, asyncio.get_running_loop().time)
            if self._started:
                self._reflect(kind)
        self._feeds[kind].add_handler(handler)

    def objects(self, kind: type[ObjectT]) -> Mapping[Key, ObjectT]:
        """See `Source.objects`."""
        feed = self._feeds.get(kind)
        return feed.objects if feed is not None else {}

    def health(self) -> tuple[KindHealth, ...]:
        """See `Source.health`."""
        return tuple(feed.health for feed in self._feeds.values())

    def counts(self) -> Mapping[str, Counts]:
        """See `Source.counts`."""
        return {kind.__name__: feed.counts for kind, feed in self._feeds.items()}

    async def start(self) -> None:
        """See `Source.start`."""
        self._started = True
        for kind in self._feeds:
            self._reflect(kind)

    async def wait_synced(self) -> None:
        """See `Source.wait_synced`."""
        for feed in tuple(self._feeds.values()):
            await feed.synced.wait()

    async def close(self) -> None:
        """See `Source.close`."""
        tasks = tuple(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()

    def _reflect(self, kind: type) -> None:
        selector = self._selectors.get(kind, Selector())
        reflector = Reflector(self._client, self._feeds[kind], selector, self._timing, self._chance)
        self._tasks[kind] = asyncio.get_running_loop().create_task(
            reflector.run(), name=f"kube-{kind.__name__}"
        )
