"""What lies between us and the server: address families, encodings, headers, an HTTP proxy."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from samewire.errors import Unavailable
from samewire.kube.access import Access
from samewire.kube.api_source import ApiSource
from samewire.kube.auth import FixedCredential, Pem
from samewire.kube.client import KubeClient, Stalled
from samewire.kube.errors import ApiError
from samewire.kube.model import Service
from tests.apiserver.certs import Certificates, make_certificates
from tests.apiserver.conftest import Opener
from tests.apiserver.fake_server import FakeServer, Fault
from tests.apiserver.objects import BOUND_S, Recorder, service, until
from tests.apiserver.worlds import HASTY


class Proxy:
    """An HTTP proxy for CONNECT; it writes down where it was asked to go."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.url = ""
        self._ways: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[Proxy]:
        """Listen on 127.0.0.1."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for way in self._ways:
                way.cancel()
            await asyncio.gather(*self._ways, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, target, _ = head.split(" ", 2)
        self.asked.append(f"{method} {target}")
        host, _, port = target.rpartition(":")
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        for way in (_copy(reader, there_writer), _copy(there_reader, writer)):
            self._ways.add(asyncio.ensure_future(way))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def follow(source: ApiSource, server: FakeServer) -> None:
    """A list in pages, and a change that comes by the watch."""
    told: Recorder[Service] = Recorder()
    for number in range(7):
        server.store.put("services", service("a", f"web{number}"))
    source.watch(Service, told)
    await source.start()
    await until(lambda: len(told.cache) == 7)
    await until(lambda: server.watching("services"))
    server.store.put("services", service("a", "late"))
    await until(lambda: ("a", "late") in told.cache)


async def test_an_address_of_the_other_family(tmp_path_factory: pytest.TempPathFactory) -> None:
    made = make_certificates(tmp_path_factory.mktemp("six"), "IP:::1")
    async with FakeServer().serve(made.server_context(), host="::1") as server:
        assert server.url.startswith("https://[::1]:")
        access = Access(server.url, FixedCredential(), ca=Pem("ca", file=made.ca))
        source = ApiSource(KubeClient(access), timing=HASTY)
        try:
            await follow(source, server)
        finally:
            await source.close()


async def test_answers_that_are_compressed_all_the_same(server: FakeServer, open_api: Opener) -> None:
    server.compresses = True
    await follow(open_api(), server)


async def test_warnings_disturb_nobody(server: FakeServer, open_api: Opener) -> None:
    server.headers = {"Warning": '299 - "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1"'}
    source = open_api()
    await follow(source, server)
    assert source.counts()["Service"].failures == 0


async def test_watches_that_end_at_once_are_not_asked_for_in_a_hurry(
    server: FakeServer, open_api: Opener
) -> None:
    server.plan(*[Fault("watch", "services", truncate=True)] * 5)
    source = open_api()
    await follow(source, server)
    assert source.counts()["Service"].failures == 5
    assert len(server.requests("list", "services")) == 3, "a list of three pages, and no other"


async def test_a_server_by_its_name(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    client = KubeClient(Access(server.url.replace("127.0.0.1", "localhost"), FixedCredential()))
    assert b"ServiceList" in await client.request("GET", "/api/v1/services")
    await client.close()
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    client = KubeClient(Access("http://api.test", FixedCredential()))
    with pytest.raises(Unavailable, match=r"cannot connect to api\.test:80: Name or service not known"):
        await client.request("GET", "/api/v1/services")
    await client.close()


def test_nobody_waits_for_a_silent_name_server_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, released = threading.Event(), threading.Event()

    def silent(*_: object, **__: object) -> list[object]:
        asked.set()
        released.wait()
        raise socket.gaierror

    async def ask() -> None:
        client = KubeClient(Access("http://api.test", FixedCredential()))
        asking = asyncio.create_task(client.request("GET", "/api/v1/services"))
        await until(asked.is_set)
        asking.cancel()
        await asyncio.wait({asking})
        await client.close()

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    daemon = threading.Thread(target=lambda: asyncio.run(ask()))
    daemon.start()
    daemon.join(20)
    ended = not daemon.is_alive()
    released.set()
    daemon.join()
    assert ended


async def test_a_proxy_on_the_way(certificates: Certificates) -> None:
    async with FakeServer().serve(certificates.server_context()) as server, Proxy().serve() as proxy:
        ca = Pem("ca", file=certificates.ca)
        access = Access(server.url, FixedCredential("t"), ca=ca, proxy=proxy.url)
        source = ApiSource(KubeClient(access), timing=HASTY)
        try:
            await follow(source, server)
        finally:
            await source.close()
        assert set(proxy.asked) == {f"CONNECT {server.url.removeprefix('https://')}"}


async def test_a_proxy_that_is_away(server: FakeServer) -> None:
    client = KubeClient(Access(server.url, FixedCredential(), proxy="http://127.0.0.1:9"))
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9"):
        await client.request("GET", "/api/v1/services")
    await client.close()
    assert not server.seen


async def test_a_proxy_that_does_not_answer(certificates: Certificates) -> None:
    """It takes the connection, and says nothing to the CONNECT."""
    released = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await released.wait()
        writer.close()

    async with await asyncio.start_server(hold, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        access = Access("https://127.0.0.1:6443", FixedCredential(), proxy=f"http://127.0.0.1:{port}")
        client = KubeClient(access, connect_timeout_s=0.05)
        async with asyncio.timeout(30):
            with pytest.raises(Unavailable, match=r"https://127\.0\.0\.1:6443 does not answer"):
                await client.request("GET", "/api/v1/services")
        await client.close()
        released.set()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
            "the proxy answers 407 Proxy",
        ),
        (b"no answer\r\n\r\n", "Bad status line"),
    ],
)
async def test_a_proxy_s_password_is_in_no_error(answer: bytes, words: str) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Proxy-Authorization: Basic bWU6VE9QU0VDUkVU\r\n" in head
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as proxy:
        url = f"http://me:TOPSECRET@127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        client = KubeClient(Access("https://127.0.0.1:6443", FixedCredential(), proxy=url))
        with pytest.raises(Unavailable, match=words) as caught:
            await client.request("GET", "/api/v1/services")
        await client.close()
    assert "TOPSECRET" not in str(caught.value)


async def test_a_token_that_no_header_may_have(server: FakeServer) -> None:
    client = KubeClient(Access(server.url, FixedCredential("of two\nlines")))
    with pytest.raises(Unavailable, match="control character") as caught:
        await client.request("GET", "/api/v1/services")
    assert "of two" not in str(caught.value)
    await client.close()


async def test_a_server_that_refuses_connections_is_named_in_words(certificates: Certificates) -> None:
    async with FakeServer().serve() as server:
        url = server.url.replace("http:", "https:")
    client = KubeClient(Access(url, FixedCredential(), ca=Pem("ca", file=certificates.ca)))
    address = url.removeprefix("https://")
    with pytest.raises(Unavailable, match=rf"{url}: cannot connect to {address}: Connection refused$"):
        await client.request("GET", "/api/v1/services")
    await client.close()


async def test_somebody_else(server: FakeServer) -> None:
    wanted = (("Impersonate-User", "jane"), ("Impersonate-Group", "dev"), ("Impersonate-Group", "ops"))
    client = KubeClient(Access(server.url, FixedCredential("t"), impersonation=wanted))
    await client.request("GET", "/api/v1/services")
    await client.close()
    (seen,) = server.seen
    assert [item for item in seen.headers if item[0].startswith("Impersonate-")] == list(wanted)
    assert seen.token == "t"


async def test_a_refusal_that_is_no_utf8() -> None:
    """Somebody on the way answers, and writes Latin-1."""
    body = b'{"message": "acc\xe8s refus\xe9"}'

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        client = KubeClient(
            Access(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", FixedCredential())
        )
        with pytest.raises(ApiError, match=r"403 Forbidden: .*acc.s refus."):
            await client.request("GET", "/api/v1/services")
        await client.close()


async def test_a_redirect_is_named_and_not_followed(server: FakeServer) -> None:
    """Whoever answers there would get our token."""
    where = "https://elsewhere.test/api/v1/services"
    server.plan(Fault("list", "services", status=301, headers=(("Location", where),)))
    client = KubeClient(Access(server.url, FixedCredential("t")))
    with pytest.raises(ApiError, match=f"301 .*: it redirects to {where}, and redirects are not followed"):
        await client.request("GET", "/api/v1/services")
    await client.close()


async def test_an_answer_that_breaks_off_says_so_in_words(server: FakeServer) -> None:
    server.plan(Fault("list", "services", truncate=True))
    client = KubeClient(Access(server.url, FixedCredential()))
    with pytest.raises(Unavailable, match="the connection broke in the middle of an answer"):
        await client.request("GET", "/api/v1/services")
    await client.close()


async def test_an_answer_that_never_comes_to_its_end() -> None:
    """A byte now and then is no silence."""
    ended = asyncio.Event()

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.01)
        writer.close()
        ended.set()

    async with await asyncio.start_server(trickle, "127.0.0.1", 0) as server:
        access = Access(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", FixedCredential())
        client = KubeClient(access, answer_timeout_s=0.1)
        with pytest.raises(Stalled, match="does not come to the end of /api/v1/services"):
            await client.request("GET", "/api/v1/services")
        await client.close()
        await asyncio.wait_for(ended.wait(), BOUND_S)
