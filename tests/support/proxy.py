"""A source and an HNS service for the tests of the proxy's controller."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from samewire.errors import SamewireError, Unavailable
from samewire.hcn.loadbalancers import LoadBalancer
from samewire.kube.model import EndpointSlice, Key, Node, Service
from samewire.kube.source import Batch, Change, Counts, KindHealth
from samewire.proxy.ids import OWNER


def pid_behind(path: Path) -> int:
    """The process that listens at a unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        packed = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", packed)[0])


class FakeSource:
    """A source whose objects the test sets."""

    def __init__(self) -> None:
        self._handlers: dict[type, list[Callable[[Any], None]]] = {}
        self._objects: dict[type, dict[Key, Any]] = {Service: {}, EndpointSlice: {}, Node: {}}
        self.unread: dict[str, tuple[Key, ...]] = {}

    def watch(self, kind: type, handler: Callable[[Any], None]) -> None:
        self._handlers.setdefault(kind, []).append(handler)

    def objects(self, kind: type) -> Mapping[Key, Any]:
        return self._objects[kind]

    def health(self) -> tuple[KindHealth, ...]:
        return tuple(
            KindHealth(
                kind.__name__, True, True, None, "", len(known), unread=self.unread.get(kind.__name__, ())
            )
            for kind, known in self._objects.items()
        )

    def counts(self) -> Mapping[str, Counts]:
        return {}

    async def start(self) -> None:
        self.sync()

    async def wait_synced(self) -> None: ...

    async def close(self) -> None: ...

    def sync(self, *kinds: type) -> None:
        """Hand over what is there as the snapshots of some kinds, or of all."""
        for kind in kinds or tuple(self._objects):
            changes = tuple(Change(key, None, value) for key, value in self._objects[kind].items())
            self._send(kind, changes, snapshot=True)

    def put(self, *values: Any, quiet: bool = False) -> None:
        """Add or replace objects; ``quiet``: before the snapshot."""
        for value in values:
            known = self._objects[type(value)]
            change = Change(value.key, known.get(value.key), value)
            known[value.key] = value
            if not quiet:
                self._send(type(value), (change,))

    def remove(self, *values: Any) -> None:
        """Remove objects."""
        for value in values:
            del self._objects[type(value)][value.key]
            self._send(type(value), (Change(value.key, value, None),))

    def _send(self, kind: type, changes: tuple[Change[Any], ...], snapshot: bool = False) -> None:
        now = asyncio.get_running_loop().time()
        for handler in self._handlers.get(kind, ()):
            handler(Batch(kind, changes, snapshot, now))


class FakeWriter:
    """Keeps load balancers; ``refuse`` is asked for each id, and says why not."""

    def __init__(self, network_id: str | None = "NETWORK") -> None:
        self.network = network_id
        self.addresses: tuple[str, ...] | None = None
        self.objects: dict[str, LoadBalancer] = {}
        self.writes: list[tuple[list[str], list[str]]] = []
        self.refuse: Callable[[LoadBalancer], str] = lambda value: ""
        self.down = False
        self.gate: asyncio.Event | None = None
        """Writing waits for it."""

    def network_id(self) -> str | None:
        return self.network

    def node_port_addresses(self) -> tuple[str, ...] | None:
        return self.addresses

    def get(self, lb_id: str) -> LoadBalancer | None:
        return self.objects.get(lb_id)

    def owned(self) -> Iterable[LoadBalancer]:
        return [value for value in self.objects.values() if value.owner == OWNER]

    async def write(
        self, puts: Sequence[LoadBalancer], deletes: Sequence[str]
    ) -> Mapping[str, SamewireError]:
        await asyncio.sleep(0)
        if self.gate is not None:
            await self.gate.wait()
        if self.down:
            raise Unavailable("HNS", "down")
        self.writes.append(([value.id for value in puts], list(deletes)))
        failed: dict[str, SamewireError] = {}
        for lb_id in deletes:
            self.objects.pop(lb_id, None)
        for value in puts:
            reason = self.refuse(value)
            if reason:
                failed[value.id] = SamewireError(reason)
            else:
                self.objects[value.id] = value
        return failed
