"""Who may work at once: attachments of a network side by side, each alone, and GC without any of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class _Gate:
    """Lets many in, or one alone. The one alone does not starve: others wait behind it."""

    def __init__(self) -> None:
        self.users = 0
        self._inside = 0
        self._door = asyncio.Lock()
        self._empty = asyncio.Event()
        self._empty.set()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        async with self._door:
            self._inside += 1
            self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        async with self._door:
            await self._empty.wait()
            yield


class _Lock:
    def __init__(self) -> None:
        self.users = 0
        self.lock = asyncio.Lock()


class AttachmentLocks:
    """Locks by network and by attachment; they exist while somebody uses them."""

    def __init__(self) -> None:
        self._gates: dict[str, _Gate] = {}
        self._locks: dict[tuple[str, str], _Lock] = {}

    @asynccontextmanager
    async def attachment(self, network: str, key: tuple[str, str]) -> AsyncIterator[None]:
        """Hold one attachment (container id, interface name), on whatever network: its interface is one."""
        lock = self._locks.setdefault(key, _Lock())
        lock.users += 1
        try:
            async with lock.lock, self._gate(network) as gate, gate.shared():
                yield
        finally:
            lock.users -= 1
            if not lock.users:
                del self._locks[key]

    @asynccontextmanager
    async def network(self, network: str) -> AsyncIterator[None]:
        """Hold all attachments of a network."""
        async with self._gate(network) as gate, gate.alone():
            yield

    @asynccontextmanager
    async def _gate(self, network: str) -> AsyncIterator[_Gate]:
        gate = self._gates.setdefault(network, _Gate())
        gate.users += 1
        try:
            yield gate
        finally:
            gate.users -= 1
            if not gate.users:
                del self._gates[network]
