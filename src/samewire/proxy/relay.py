"""The user-mode relay as the daemon sees it: a process of its own, told over a unix socket what to relay.

``native/relay/control.c`` has the protocol. The relay outlives the daemon: connections go on, and the next daemon finds
it at its socket and says everything again, which changes nothing for services that are the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import msgspec

from samewire.errors import Unavailable

START_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 5.0
_NO_FILES = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]


class RelayBackend(msgspec.Struct, frozen=True):
    """Where a service's connections go. ``draining``: keeps its connections and gets no new ones."""

    address: str
    port: int
    draining: bool = False


class RelayService(msgspec.Struct, frozen=True):
    """One service port. ``listen``: the node's address that the relay binds; ``affinity_s`` 0: none."""

    id: str
    protocol: str
    listen: str
    backends: tuple[RelayBackend, ...] = ()
    affinity_s: int = 0


class RelayCounts(msgspec.Struct, frozen=True):
    """What a service has seen: connections (UDP: clients) accepted, failed, and open now."""

    port: int
    accepted: int
    failed: int
    open: int


class _Protocol(asyncio.StreamReaderProtocol):
    """Tells when the other side hangs up, which is when the relay ends."""

    def __init__(self, reader: asyncio.StreamReader, lost: Callable[[asyncio.StreamReader], None]) -> None:
        super().__init__(reader)
        self._reader = reader
        self._lost = lost

    def eof_received(self) -> bool:
        super().eof_received()
        self._lost(self._reader)
        return False  # close our side too

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._lost(self._reader)


class Relay:
    """A connection to the relay at ``socket``; started when none answers there. Use from one event loop."""

    def __init__(self, socket: Path) -> None:
        self.on_lost: Callable[[], None] = lambda: None
        """Called when the relay has ended by itself: it is started again when it is told something."""
        self._socket = socket
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._lock = asyncio.Lock()
        self._pid = 0

    async def put(self, services: Sequence[RelayService]) -> dict[str, int | Unavailable]:
        """Make or change services; returns by id the port the relay listens on, or why it does not.

        One that fails keeps none from the others. Raises Unavailable when the relay cannot be reached.
        """
        answers = await self._talk([_command(service) for service in services])
        return {service.id: _port_of(answer) for service, answer in zip(services, answers, strict=True)}

    async def delete(self, ids: Sequence[str]) -> None:
        """Forget services (no error for unknown ones); their connections end. Raises Unavailable."""
        await self._talk([f"del {one}" for one in ids])

    async def list(self) -> dict[str, RelayCounts]:
        """All services of the relay. Raises Unavailable."""
        async with self._lock:
            reader, writer = await self._connected()
            writer.write(b"list\n")
            found = {}
            while (line := await self._line(reader)) != "end":
                _, name, port, _, accepted, failed, still_open = line.split(" ")
                found[name] = RelayCounts(int(port), int(accepted), int(failed), int(still_open))
            return found

    async def users(self) -> Mapping[str, Sequence[tuple[str, int]]]:
        """The backends, address and port, that carry something, by service. Starts no relay: none, or one of an earlier
        release that does not know the question, carries nothing. Raises Unavailable when it hangs up.
        """
        found: dict[str, list[tuple[str, int]]] = {}
        async with self._lock:
            try:
                reader, writer = await self._connected(start=False)
            except Unavailable:
                return found
            writer.write(b"users\n")
            while (line := await self._line(reader)).startswith("carries "):
                _, name, address, port = line.split(" ")
                found.setdefault(name, []).append((address, int(port)))
        return found

    async def stop(self) -> None:
        """End the relay, and with it all its connections; nothing happens when there is none."""
        async with self._lock:
            await self._close()
            with contextlib.suppress(Unavailable):
                reader, writer = await self._connect()
                self._reader = self._writer = None  # nothing is lost when it hangs up now
                writer.write(b"quit\n")
                try:
                    with contextlib.suppress(OSError):  # a timeout is one too: it may hang
                        async with asyncio.timeout(ANSWER_TIMEOUT_S):
                            await writer.drain()
                            while await reader.read(4096):  # its end is the end of the process
                                pass
                finally:
                    writer.close()
            self._bury(wait=True)

    async def close(self) -> None:
        """Hang up; the relay goes on."""
        async with self._lock:
            await self._close()

    async def _talk(self, commands: Sequence[str]) -> Sequence[str]:
        async with self._lock:
            reader, writer = await self._connected()
            answers = []
            for command in commands:
                writer.write(command.encode() + b"\n")
                answers.append(await self._line(reader))
            return answers

    async def _line(self, reader: asyncio.StreamReader) -> str:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                line = await reader.readline()
        except OSError as error:  # a timeout is one too
            await self._close()
            raise Unavailable("relay", f"{self._socket}: the relay does not answer: {error!r}") from error
        except BaseException:
            self._drop()  # else the next command would get the answer to this one
            raise
        if not line.endswith(b"\n"):
            await self._close()
            raise Unavailable("relay", f"{self._socket}: the relay has hung up")
        return line[:-1].decode()

    async def _connected(self, *, start: bool = True) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is not None and self._writer is not None:
            return self._reader, self._writer
        try:
            return await self._connect()
        except Unavailable:
            if not start:
                raise
            return await self._start()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=1 << 20)
        protocol = _Protocol(reader, self._hung_up)
        try:
            transport, _ = await loop.create_unix_connection(lambda: protocol, str(self._socket))
        except OSError as error:
            raise Unavailable("relay", f"{self._socket}: no relay there: {error}") from error
        self._reader, self._writer = reader, asyncio.StreamWriter(transport, protocol, reader, loop)
        return self._reader, self._writer

    def _hung_up(self, reader: asyncio.StreamReader) -> None:
        """A connection has ended; if it was not us, the relay has, and with it all that it knew."""
        if reader is not self._reader:
            return
        self._reader = self._writer = None
        self.on_lost()

    async def _start(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Start the relay in a session of its own, so that it outlives us, and connect."""
        self._spawn()
        deadline = asyncio.get_running_loop().time() + START_TIMEOUT_S
        while True:
            try:
                return await self._connect()
            except Unavailable:
                if self._bury() or asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(0.005)

    def _spawn(self) -> None:
        """Take no notice of the old one, if there was any, and start a new one."""
        self._bury()
        program = str(files("samewire") / "_build" / "samewire-relay")
        command = [program, str(self._socket)]
        try:
            self._pid = os.posix_spawn(program, command, os.environ, file_actions=_NO_FILES, setsid=True)
        except OSError as error:
            raise Unavailable("relay", f"{program}: {error}") from error

    def _bury(self, wait: bool = False) -> bool:
        """True when the relay that we started has ended."""
        if self._pid and os.waitpid(self._pid, 0 if wait else os.WNOHANG)[0]:
            self._pid = 0
            return True
        return False

    async def _close(self) -> None:
        writer = self._drop()
        if writer is not None:
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _drop(self) -> asyncio.StreamWriter | None:
        """Hang up without waiting for it; returns what has been hung up."""
        writer, self._reader, self._writer = self._writer, None, None
        if writer is not None:
            writer.close()
        return writer


def _command(service: RelayService) -> str:
    backends = [f"{one.address}|{one.port}|{'d' if one.draining else 'a'}" for one in service.backends]
    return " ".join(["put", service.id, service.protocol, service.listen, str(service.affinity_s), *backends])


def _port_of(answer: str) -> int | Unavailable:
    word, _, rest = answer.partition(" ")
    return int(rest.split(" ")[1]) if word == "ok" else Unavailable("relay", rest)
