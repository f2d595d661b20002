"""Dropped packets as they happen: one reader of the ring buffer, any number of listeners."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

import structlog

from samewire.errors import SamewireError
from samewire.kernel.bpf import BpfMap, RingBuffer
from samewire.vfp.tables import DropEvent

log = structlog.get_logger(__name__)

_QUEUE: Final = 4096  # a listener that is slower loses the newest


class DropEvents:
    """``switch`` turns the programs' reports on and off: they cost nothing while nobody listens."""

    def __init__(self, ring: BpfMap, switch: Callable[[bool], Awaitable[None]]) -> None:
        self._ring = ring
        self._switch = switch
        self._queues: set[asyncio.Queue[DropEvent]] = set()
        self._reader: RingBuffer | None = None
        self._lock = asyncio.Lock()

    async def listen(self) -> AsyncGenerator[DropEvent, None]:
        """Every drop from now on, until it is closed. Raises SamewireError."""
        queue: asyncio.Queue[DropEvent] = asyncio.Queue(_QUEUE)
        await self._join(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            await self._leave(queue)

    async def _join(self, queue: asyncio.Queue[DropEvent]) -> None:
        async with self._lock:
            if self._reader is None:
                reader = RingBuffer(self._ring)
                reader.receive()  # what is left from earlier listeners
                try:
                    await self._switch(True)
                except BaseException:
                    reader.close()
                    raise
                self._reader = reader
                asyncio.get_running_loop().add_reader(reader.fileno(), self._readable)
            self._queues.add(queue)

    async def _leave(self, queue: asyncio.Queue[DropEvent]) -> None:
        self._queues.discard(queue)
        async with self._lock:
            if self._queues or self._reader is None:
                return
            asyncio.get_running_loop().remove_reader(self._reader.fileno())
            self._reader.close()
            self._reader = None
            try:
                await self._switch(False)
            except SamewireError as error:
                log.warning("reports of drops could not be switched off", error=str(error))

    def _readable(self) -> None:
        if self._reader is None:
            return
        for record in self._reader.receive():
            event = DropEvent.unpack(record[: DropEvent.size])
            for queue in self._queues:
                if not queue.full():
                    queue.put_nowait(event)
