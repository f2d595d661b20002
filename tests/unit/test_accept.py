"""Doors: who finds no room waits, and is not forgotten; the log has a line about it, not thousands."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from samewire import accept
from samewire.accept import Connections, Door


class Listener(socket.socket):
    """One whose process has no descriptors left, for some time."""

    failures = 0

    def accept(self) -> tuple[socket.socket, object]:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "none left")
        return super().accept()


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    monkeypatch.setattr(accept, "_WAIT_S", 0.0)
    with Listener(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "door"))
        made.listen(100)
        yield made


def connect(listener: Listener) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(listener.getsockname())
    return client


async def test_without_descriptors_they_wait(listener: Listener) -> None:
    listener.failures = 50
    taken: asyncio.Queue[socket.socket] = asyncio.Queue()
    with capture_logs() as logs:
        door = Door(listener, taken.put_nowait)
        with connect(listener), connect(listener):
            for _ in range(2):
                (await asyncio.wait_for(taken.get(), 20)).close()
        door.close()
    assert [line["event"] for line in logs] == ["connections have to wait"]


async def test_so_many_and_no_more(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through all doors together; whoever goes makes room."""
    monkeypatch.setattr(accept, "MOST", 2)
    begun: asyncio.Queue[asyncio.BaseTransport] = asyncio.Queue()

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            begun.put_nowait(transport)

    connections = Connections(Protocol)
    second = Listener(socket.AF_UNIX)
    second.bind(listener.getsockname() + "2")
    second.listen(100)
    doors = connections.door(listener), connections.door(second)
    clients = [connect(listener), connect(second)]
    first = [await asyncio.wait_for(begun.get(), 20) for _ in clients]
    clients += [connect(listener), connect(second)]
    for _ in range(100):
        await asyncio.sleep(0)
    assert begun.empty()
    first[0].close()
    first.append(await asyncio.wait_for(begun.get(), 20))
    for door in doors:
        door.close()
    for transport in first:
        transport.close()
    for client in clients:
        client.close()
