"""Servers behind a user-mode relay, and clients in front of it, over loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

from samewire.proxy.relay import Relay, RelayBackend, RelayService

WAIT_S = 10.0


@contextlib.asynccontextmanager
async def tcp_backend(address: str, name: bytes) -> AsyncIterator[RelayBackend]:
    """Says its name, echoes what it gets until the end, then ends its own side."""

    writers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(name + b"\n")
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        await hang_up(writer)

    server = await asyncio.start_server(serve, address)
    async with server:
        yield RelayBackend(address, server.sockets[0].getsockname()[1])
    await asyncio.gather(*(hang_up(writer) for writer in writers))


@contextlib.contextmanager
def udp_backend(address: str, name: bytes) -> Iterator[RelayBackend]:
    """Answers each datagram with its name and what it got."""
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as own:
        own.bind((address, 0))
        own.setblocking(False)

        def answer() -> None:
            data, peer = own.recvfrom(65536)
            own.sendto(name + b" " + data, peer)

        loop.add_reader(own, answer)
        try:
            yield RelayBackend(address, own.getsockname()[1])
        finally:
            loop.remove_reader(own)


async def listener(relay: Relay, service: RelayService) -> int:
    """The port of a service that has been made or changed."""
    port = (await relay.put([service]))[service.id]
    assert isinstance(port, int), port
    return port


async def connect(address: str, port: int) -> tuple[str, asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection, and the name of the backend at its other end."""
    reader, writer = await asyncio.open_connection(address, port)
    name = (await asyncio.wait_for(reader.readline(), WAIT_S)).decode().strip()
    return name, reader, writer


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def until(said: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that will be true."""
    for _ in range(1000):
        if await said():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never was")
