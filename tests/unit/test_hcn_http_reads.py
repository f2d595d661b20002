"""Reads that are answered at once: the same answers as by the long way, in the same order, to the same people."""

from __future__ import annotations

import asyncio
import gc
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from samewire.hcn import http_guard
from samewire.hcn.http import HttpServer, make_app
from samewire.hcn.http_reads import Reads, missing
from samewire.hcn.query import Rendered
from samewire.hcn.schema import Endpoint, Kind
from samewire.hcn.service import HnsService
from samewire.hcn.store import Store
from tests.support.hcn import FakeSwitch, overlay

HOST = b"Host: x\r\n"
V1 = b'{"SchemaVersion":{"Major":1,"Minor":0}}'
V2 = b'{"SchemaVersion":{"Major":2,"Minor":0},"Flags":0}'
DETAILED = b'{"SchemaVersion":{"Major":2,"Minor":0},"Flags":1}'


@pytest.fixture
def service(tmp_path: Path) -> Iterator[HnsService]:
    store = Store(tmp_path / "hns.db")
    yield HnsService(store, FakeSwitch())
    store.close()


@pytest.fixture
async def path(service: HnsService, tmp_path: Path) -> AsyncIterator[Path]:
    server = HttpServer(make_app(service, allowed_uids={os.getuid()}), tmp_path / "s.sock")
    await server.start()
    yield tmp_path / "s.sock"
    await server.close()


@pytest.fixture
async def object_id(service: HnsService) -> str:
    network = await service.create_network(overlay())
    return (await service.create_endpoint(Endpoint(name="web", network_id=network.id))).id


class Connection:
    """A client that says when which bytes go."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, *parts: bytes) -> None:
        """Send parts, each in a piece of its own."""
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def hear(self) -> tuple[int, dict[str, str], bytes]:
        """One answer: status, headers, body."""
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return int(head[0].split()[1]), headers, body


@pytest.fixture
async def connection(path: Path) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_unix_connection(path)
    yield Connection(reader, writer)
    writer.close()
    await writer.wait_closed()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What has been answered at once."""
    seen = []
    real = Reads.answer

    def answer(self: Reads, data: bytes) -> tuple[bytes, bool] | None:
        result = real(self, data)
        if result is not None:
            seen.append(data)
        return result

    monkeypatch.setattr(Reads, "answer", answer)
    return seen


def get(object_id: str, headers: bytes = HOST, kind: str = "endpoints") -> bytes:
    return f"GET /v2/{kind}/{object_id} HTTP/1.1\r\n".encode() + headers + b"\r\n"


def query(object_id: str, body: bytes = b"", headers: bytes = HOST) -> bytes:
    length = b"Content-Length: %d\r\n\r\n" % len(body)
    return f"POST /v2/endpoints/{object_id}/query HTTP/1.1\r\n".encode() + headers + length + body


async def test_the_same_answer_as_by_the_long_way(
    connection: Connection, object_id: str, quick: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [
        get(object_id),
        get(object_id.lower(), b"host: x\r\nAccept: application/json\r\nConnection: keep-alive\r\n"),
        query(object_id),
        query(object_id, V2),
    ]
    answers = []
    for request in requests:
        await connection.say(request)
        answers.append(await connection.hear())
    assert quick == requests
    monkeypatch.setattr(Reads, "answer", lambda self, data: None)
    for request, (status, headers, body) in zip(requests, answers, strict=True):
        await connection.say(request)
        slow_status, slow_headers, slow_body = await connection.hear()
        assert (status, body) == (slow_status, slow_body)
        assert {**headers, "date": ""} == {**slow_headers, "date": ""}
    assert json.loads(answers[0][2])["Name"] == "web"


async def test_a_connection_ends_when_it_is_asked_to(
    path: Path, object_id: str, quick: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = []
    for _ in range(2):
        reader, writer = await asyncio.open_unix_connection(path)
        await Connection(reader, writer).say(get(object_id, HOST + b"Connection: close\r\n"))
        head, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        lines = sorted(line for line in head.split(b"\r\n") if not line.startswith(b"Date"))
        answers.append((lines, body))
        monkeypatch.setattr(Reads, "answer", lambda self, data: None)
    assert answers[0] == answers[1]
    assert len(quick) == 1


async def test_what_is_not_asked_plainly_goes_the_long_way(
    connection: Connection, object_id: str, quick: list[bytes]
) -> None:
    absent = "0A1B2C3D-0000-0000-0000-00000000000F"
    for request, status in (
        (query(object_id, V1), 200),
        (query(object_id, DETAILED), 200),
        (query(object_id, b"{"), 400),
        (query(object_id, b'{"Flags":7}'), 400),
        (get(absent), 404),
        (get(object_id, kind="networks"), 404),
        (get(object_id, HOST + b"X-Other: 1\r\n"), 200),
        (get(object_id, HOST + b"Transfer-Encoding: identity\r\n"), None),
    ):
        await connection.say(request)
        got, _, _ = await connection.hear()
        assert status in (None, got), request
        if got == 400 and status is None:
            break  # that connection is closed
    assert not quick


async def test_answers_keep_the_order_of_the_questions(
    connection: Connection, object_id: str, quick: list[bytes]
) -> None:
    """A creation that takes its time, and a read right behind it: in one piece, and in two."""
    for number, whole in enumerate((True, False)):
        body = json.dumps({"Name": f"n{number}", "Type": "NAT"}).encode()
        head = b"POST /v2/networks HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        if whole:
            await connection.say(head + body + get(object_id))
        else:
            await connection.say(head, body[:5], body[5:], get(object_id))
        statuses = [(await connection.hear())[0] for _ in range(2)]
        assert statuses == [201, 200]


async def test_a_body_in_pieces_is_nobodys_request(
    connection: Connection, object_id: str, quick: list[bytes]
) -> None:
    """What looks like a read within a body is part of it."""
    inner = get(object_id)
    head = b"POST /v2/networks HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(inner)
    await connection.say(head, inner)
    status, _, body = await connection.hear()
    assert (status, json.loads(body)["Success"]) == (400, False)
    assert not quick
    await connection.say(get(object_id))
    assert (await connection.hear())[0] == 200
    assert quick  # and the connection is as good as before


async def test_a_head_in_pieces(connection: Connection, object_id: str, quick: list[bytes]) -> None:
    request = get(object_id)
    await connection.say(request[:20], request[20:])
    assert (await connection.hear())[0] == 200
    await connection.say(request)
    assert (await connection.hear())[0] == 200
    assert not quick


async def test_a_read_shows_a_change_that_has_been_answered(
    connection: Connection, service: HnsService, object_id: str, quick: list[bytes]
) -> None:
    policy = {"Type": "PortName", "Settings": {"Name": "x"}}
    change = {"ResourceType": "Policy", "RequestType": "Add", "Settings": {"Policies": [policy]}}
    body = json.dumps(change).encode()
    head = f"POST /v2/endpoints/{object_id} HTTP/1.1\r\nContent-Length: {len(body)}\r\n".encode()
    await connection.say(get(object_id))
    assert b"PortName" not in (await connection.hear())[2]
    await connection.say(head + HOST + b"\r\n" + body)
    assert (await connection.hear())[0] == 200
    await connection.say(get(object_id))
    assert b"PortName" in (await connection.hear())[2]
    assert len(quick) == 2


async def test_strangers_read_nothing(
    service: HnsService, object_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_guard, "peer_uid", lambda peer: 1234)
    server = HttpServer(make_app(service), tmp_path / "closed.sock")
    await server.start()
    try:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "closed.sock")
        stranger = Connection(reader, writer)
        await stranger.say(get(object_id))
        assert (await stranger.hear())[0] == 403
        writer.close()
        await writer.wait_closed()
    finally:
        await server.close()


def test_how_much_of_a_request_is_missing() -> None:
    assert missing(b"GET / HTTP/1.1\r\n\r\n") == 0
    assert missing(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab") == 3
    assert missing(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nabGET") is None
    assert missing(b"GET / HTTP/1.1\r\n") is None
    assert missing(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n") is None


async def test_objects_that_are_gone_are_let_go(tmp_path: Path) -> None:
    """Pods come and go, and somebody asks for each of them: their texts are not kept for ever."""
    switch = FakeSwitch()
    store = Store(tmp_path / "hns.db")
    service = HnsService(store, switch)
    network = await service.create_network(overlay())
    rendered, view = Rendered(Kind.ENDPOINT), service.view
    stays = await service.create_endpoint(Endpoint(name="stays", network_id=network.id))
    text = rendered.json(view, stays)
    before = _endpoints()
    for number in range(300):
        made = await service.create_endpoint(Endpoint(name=f"pod{number}", network_id=network.id))
        assert made.id.encode() in rendered.json(view, made)
        await service.delete(Kind.ENDPOINT, made.id)
        switch.calls.clear()
    assert _endpoints() - before < 100
    assert rendered.json(view, stays) is text
    store.close()


def _endpoints() -> int:
    """How many there are in memory."""
    gc.collect()
    return sum(type(value) is Endpoint for value in gc.get_objects())
