"""Services whose endpoints are being put into other slices.

When the ports of a Service change, Kubernetes' controller fills its slices anew, in any order, one after the other. An
endpoint that has been in one of them and will be in another is in none for a while, and must not lose its connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from samewire.kube.model import EndpointSlice, Key
from samewire.kube.service_model import EndpointPorts
from samewire.kube.source import Change

PATIENCE_S: Final = 10.0
"""Longest time from one slice to the next. Two sets of ports may also stay side by side."""


class Rearranged:
    """What is known of them. ``over`` is called for a service whose next slice has not come in time."""

    def __init__(self, over: Callable[[Key], None]) -> None:
        self._over = over
        self._replaced: dict[Key, set[EndpointPorts]] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}

    def note(self, changes: Iterable[Change[EndpointSlice]]) -> None:
        """Take over changes of slices."""
        for change in changes:
            old, new = change.old, change.new
            if old is None or new is None or not old.ports or not new.ports or old.ports == new.ports:
                continue
            key = new.service_key
            if key is not None and key == old.service_key:
                self._replaced.setdefault(key, set()).add(old.ports)
                self._start(key)

    def lasts(self, key: Key, slices: Iterable[EndpointSlice]) -> bool:
        """Whether some of a service's slices are still as they have been; asked no more once none is."""
        replaced = self._replaced.get(key)
        if replaced is None:
            return False
        if any(piece.ports in replaced for piece in slices):
            return True
        self._forget(key)
        return False

    def close(self) -> None:
        """Nothing is called any more."""
        for key in tuple(self._replaced):
            self._forget(key)

    def _start(self, key: Key) -> None:
        before = self._timers.get(key)
        if before is not None:
            before.cancel()
        self._timers[key] = asyncio.get_running_loop().call_later(PATIENCE_S, self._end, key)

    def _end(self, key: Key) -> None:
        self._forget(key)
        self._over(key)

    def _forget(self, key: Key) -> None:
        del self._replaced[key]
        self._timers.pop(key).cancel()
