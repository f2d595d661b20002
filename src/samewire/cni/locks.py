"""Who may work at once: attachments of a network side by side, each alone, and GC without any of them.

Classes, not generators: an ADD goes through several of these, and the event loop keeps a list of async generators.
"""

from __future__ import annotations

import asyncio
from types import TracebackType


class _Gate:
    """Lets many in, or one alone. The one alone does not starve: others wait behind it."""

    def __init__(self) -> None:
        self.users = 0
        self.door = asyncio.Lock()
        self.empty = asyncio.Event()
        self.empty.set()
        self._inside = 0

    async def enter(self) -> None:
        """Go in beside others."""
        async with self.door:
            self._inside += 1
            self.empty.clear()

    def leave(self) -> None:
        """Go out again."""
        self._inside -= 1
        if not self._inside:
            self.empty.set()


class _Lock:
    def __init__(self) -> None:
        self.users = 0
        self.lock = asyncio.Lock()


class _Attachment:
    """Holds one attachment while it is entered, and a place in its network."""

    def __init__(self, locks: AttachmentLocks, network: str, key: tuple[str, str]) -> None:
        self._locks, self._network, self._key = locks, network, key

    async def __aenter__(self) -> None:
        locks = self._locks
        lock = locks.locks.setdefault(self._key, _Lock())
        lock.users += 1
        try:
            await lock.lock.acquire()
            try:
                await self._enter_gate()
            except BaseException:
                lock.lock.release()
                raise
        except BaseException:
            self._drop(lock)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        gate = self._locks.gates[self._network]
        gate.leave()
        self._locks.drop_gate(self._network, gate)
        lock = self._locks.locks[self._key]
        lock.lock.release()
        self._drop(lock)

    async def _enter_gate(self) -> None:
        gate = self._locks.use_gate(self._network)
        try:
            await gate.enter()
        except BaseException:
            self._locks.drop_gate(self._network, gate)
            raise

    def _drop(self, lock: _Lock) -> None:
        lock.users -= 1
        if not lock.users:
            del self._locks.locks[self._key]


class _Network:
    """Holds all attachments of a network while it is entered."""

    def __init__(self, locks: AttachmentLocks, network: str) -> None:
        self._locks, self._network = locks, network

    async def __aenter__(self) -> None:
        gate = self._locks.use_gate(self._network)
        try:
            await gate.door.acquire()
            try:
                await gate.empty.wait()
            except BaseException:
                gate.door.release()
                raise
        except BaseException:
            self._locks.drop_gate(self._network, gate)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        gate = self._locks.gates[self._network]
        gate.door.release()
        self._locks.drop_gate(self._network, gate)


class AttachmentLocks:
    """Locks by network and by attachment; they exist while somebody uses them."""

    def __init__(self) -> None:
        self.gates: dict[str, _Gate] = {}
        self.locks: dict[tuple[str, str], _Lock] = {}

    def attachment(self, network: str, key: tuple[str, str]) -> _Attachment:
        """Hold one attachment (container id, interface name), on whatever network: its interface is one."""
        return _Attachment(self, network, key)

    def network(self, network: str) -> _Network:
        """Hold all attachments of a network."""
        return _Network(self, network)

    def use_gate(self, network: str) -> _Gate:
        """The gate of a network, made for its first user."""
        gate = self.gates.setdefault(network, _Gate())
        gate.users += 1
        return gate

    def drop_gate(self, network: str, gate: _Gate) -> None:
        """A user has done; the last one's gate goes."""
        gate.users -= 1
        if not gate.users:
            del self.gates[network]
