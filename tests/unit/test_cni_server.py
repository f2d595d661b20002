"""cni.sock: framing, limits, who may ask, and that every request is answered once."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from samewire.cni import server as module
from samewire.cni.errors import CniCode, CniError
from samewire.cni.server import CniServer
from samewire.cni.verbs import CniPlugin
from samewire.cni.wire import MAX_REQUEST, MAX_VARIABLES, decode_request, encode_reply
from samewire.errors import Conflict, Unavailable
from tests.support.cni import FakeBackend, variables

CONF = b'{"cniVersion":"1.1.0","name":"net"}'


def encode(env: dict[str, str], stdin: bytes = CONF) -> bytes:
    return b"".join(f"{name}={value}\0".encode() for name, value in env.items()) + b"\0" + stdin


class Served:
    """A server on a backend in memory."""

    def __init__(self, tmp_path: Path) -> None:
        self.backend = FakeBackend()
        self.path = tmp_path / "cni.sock"
        self.server = CniServer(CniPlugin(self.backend), self.path, allowed_uids={os.getuid()})

    async def send(self, data: bytes) -> tuple[int, Any]:
        """Send a whole request; returns the exit status and the decoded output, None for none."""
        reader, writer = await asyncio.open_unix_connection(self.path)
        try:
            writer.write(data)
            writer.write_eof()
            return parse(await reader.read())
        finally:
            writer.close()


def parse(answer: bytes) -> tuple[int, Any]:
    status, newline, output = answer.partition(b"\n")
    assert newline, answer
    return int(status), json.loads(output) if output else None


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    served = Served(tmp_path)
    await served.server.start()
    yield served
    await served.server.close()


def test_framing() -> None:
    env = variables("ADD", CNI_ARGS="A=B;C=", CNI_EMPTY="")
    assert decode_request(encode(env, b"{\0}\n")) == (env, b"{\0}\n")
    assert decode_request(b"\0") == ({}, b"")
    assert encode_reply(1, b"{}") == b"1\n{}"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", CniCode.IO_FAILURE),
        (b"CNI_COMMAND=ADD\0", CniCode.IO_FAILURE),
        (b"CNI_COMMAND=ADD", CniCode.IO_FAILURE),
        (b"CNI_COMMAND\0\0", CniCode.IO_FAILURE),
        (b"PATH=/bin\0\0", CniCode.IO_FAILURE),
        (b"\xff\xfe=1\0\0", CniCode.IO_FAILURE),
        (b"CNI_ARGS=\xff\0\0", CniCode.INVALID_ENVIRONMENT),
        (b"".join(b"CNI_%d=1\0" % n for n in range(MAX_VARIABLES + 1)) + b"\0", CniCode.IO_FAILURE),
        (CONF, CniCode.IO_FAILURE),
    ],
)
async def test_malformed_requests_are_answered(served: Served, data: bytes, code: int) -> None:
    with pytest.raises(CniError):
        decode_request(data)
    status, output = await served.send(data)
    assert (status, output["code"], output["cniVersion"]) == (1, code, "1.1.0")


async def test_socket(served: Served) -> None:
    found = served.path.stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert found.st_mode & 0o777 == 0o600
    with pytest.raises(Conflict, match="another process listens"):
        await CniServer(served.server.plugin, served.path).start()


async def test_close_removes_the_socket(tmp_path: Path) -> None:
    served = Served(tmp_path)
    await served.server.close()
    await served.server.start()
    await served.server.close()
    assert not served.path.exists()
    with pytest.raises(Unavailable):
        await CniServer(served.server.plugin, tmp_path / "absent" / "cni.sock").start()


async def test_a_call(served: Served) -> None:
    status, output = await served.send(encode(variables("ADD")))
    assert (status, output["interfaces"][1]["name"]) == (0, "eth0")
    assert await served.send(encode(variables("DEL"))) == (0, None)


async def test_one_line_of_log_for_a_request(served: Served) -> None:
    with capture_logs() as lines:
        await served.send(encode(variables("ADD")))
        await served.send(encode(variables("ADD")))
        await served.send(b"")
    facts = [
        (line["log_level"], line["event"], line["verb"], line["network"], line.get("code")) for line in lines
    ]
    assert facts == [
        ("info", "cni", "ADD", "net", None),
        ("warning", "cni", "ADD", "net", CniCode.CONFLICT),
        ("warning", "cni", "", "", CniCode.IO_FAILURE),
    ]
    assert (lines[0]["container"], lines[0]["interface"]) == ("pod1", "eth0")
    assert lines[0]["ms"] >= 0


async def test_strangers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(tmp_path)
    monkeypatch.setattr(module, "_peer_uid", lambda _socket: 65534)
    await served.server.start()
    try:
        status, output = await served.send(encode(variables("ADD")))
        assert (status, output["msg"]) == (1, "user id 65534 may not use this socket")
        assert served.backend.calls == []
    finally:
        await served.server.close()


def test_who_asks_is_what_the_kernel_says() -> None:
    one, two = socket.socketpair(socket.AF_UNIX)
    with one, two:
        assert module._peer_uid(one) == os.getuid()


async def test_too_long_requests(served: Served) -> None:
    status, output = await served.send(encode(variables("ADD"), b" " * (MAX_REQUEST + 1)))
    assert (status, output["code"]) == (1, CniCode.IO_FAILURE)
    assert "longer than" in output["msg"]
    padded = CONF + b" " * (MAX_REQUEST - len(encode(variables("ADD"))))
    assert (await served.send(encode(variables("ADD"), padded)))[0] == 0


async def test_a_client_that_never_ends_its_request(served: Served) -> None:
    served.server.read_timeout_s = 0.02
    reader, writer = await asyncio.open_unix_connection(served.path)
    writer.write(b"CNI_COMMAND=ADD\0")
    status, output = parse(await reader.read())
    writer.close()
    assert (status, output["code"], output["msg"]) == (1, 11, "the request did not come to its end")


async def test_a_call_that_takes_too_long_goes_on_to_its_end(served: Served) -> None:
    served.server.request_timeout_s = 0.02
    served.backend.gate = asyncio.Event()
    status, output = await served.send(encode(variables("ADD")))
    assert (status, output["code"]) == (1, CniCode.TRY_AGAIN)
    assert served.backend.attachments == {}
    served.backend.gate.set()
    served.server.request_timeout_s = 10
    assert await served.send(encode(variables("DEL"))) == (0, None)
    assert served.backend.calls == ["ensure_network", "attach", "detach"]


async def test_a_client_that_went_away(served: Served) -> None:
    served.backend.gate = asyncio.Event()
    _, writer = await asyncio.open_unix_connection(served.path)
    writer.write(encode(variables("ADD")))
    writer.write_eof()
    await served.backend.arrivals.get()
    writer.close()
    await writer.wait_closed()
    served.backend.gate.set()
    assert await served.send(encode(variables("DEL"))) == (0, None)
    assert served.backend.calls == ["ensure_network", "attach", "detach"]


async def test_close_lets_calls_end(tmp_path: Path) -> None:
    served = Served(tmp_path)
    await served.server.start()
    served.backend.gate = asyncio.Event()
    answer = asyncio.ensure_future(served.send(encode(variables("ADD"))))
    await served.backend.arrivals.get()
    closing = asyncio.ensure_future(served.server.close())
    await asyncio.sleep(0)
    served.backend.gate.set()
    assert (await answer)[0] == 0
    await closing


async def test_close_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_TIMEOUT_S", 0.02)
    served = Served(tmp_path)
    await served.server.start()
    served.backend.gate = asyncio.Event()
    reader, writer = await asyncio.open_unix_connection(served.path)
    writer.write(encode(variables("ADD")))
    writer.write_eof()
    await served.backend.arrivals.get()
    idle_reader, idle = await asyncio.open_unix_connection(served.path)
    await asyncio.sleep(0)
    await served.server.close()
    assert await reader.read() == b""
    assert await idle_reader.read() == b""
    for each in (writer, idle):
        each.close()
    assert served.server.running == set()


async def test_many_at_once(served: Served) -> None:
    calls = [served.send(encode(variables("ADD", f"pod{number}"))) for number in range(50)]
    assert [status for status, _ in await asyncio.gather(*calls)] == [0] * 50
    assert len(served.backend.attachments) == 50
