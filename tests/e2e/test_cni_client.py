"""The CNI client as runtimes execute it: the static binary and its Python twin, the same tests for both."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from samewire.cni import twin
from samewire.cni.result import SUPPORTED_VERSIONS
from samewire.cni.server import CniServer
from samewire.cni.verbs import CniPlugin
from samewire.cni.wire import MAX_REQUEST
from tests.support.cni import FakeBackend, variables
from tests.support.waiting import until

ROOT = Path(__file__).resolve().parents[2]
BINARY = "src/samewire/_build/samewire-cni"
CONF = b'{"cniVersion": "1.0.0", "name": "net"}'
PIPE = asyncio.subprocess.PIPE
BOUND_S = 20
"""Far more than anything takes, so that a hang is a failure."""

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(scope="session")
def binary() -> str:
    subprocess.run(["make", "--no-print-directory", "-C", str(ROOT), BINARY], check=True, capture_output=True)
    return str(ROOT / BINARY)


@pytest.fixture(params=["binary", "twin"])
def command(request: pytest.FixtureRequest, binary: str) -> Sequence[str]:
    return [binary] if request.param == "binary" else [sys.executable, "-m", "samewire.cni.twin"]


class Client:
    """Executes a client against one socket."""

    def __init__(self, command: Sequence[str], socket: Path) -> None:
        self.command = command
        self.socket = socket

    async def start(
        self, env: dict[str, str], stdin: int = PIPE, stdout: int = PIPE
    ) -> asyncio.subprocess.Process:
        variables = {"PATH": os.environ["PATH"], "SAMEWIRE_CNI_SOCKET": str(self.socket), **env}
        return await asyncio.create_subprocess_exec(
            *self.command, stdin=stdin, stdout=stdout, stderr=PIPE, env=variables
        )

    async def raw(self, env: dict[str, str], stdin: bytes = CONF, **more: str) -> tuple[int, bytes]:
        """Run to the end; returns exit status and stdout. Nothing may be on stderr."""
        process = await self.start({**env, **more})
        async with asyncio.timeout(BOUND_S):
            out, err = await process.communicate(stdin)
        assert err == b""
        assert process.returncode is not None
        return process.returncode, out

    async def run(self, env: dict[str, str], stdin: bytes = CONF, **more: str) -> tuple[int, Any]:
        """Run to the end; returns exit status and decoded stdout, None for none."""
        status, out = await self.raw(env, stdin, **more)
        return status, json.loads(out) if out else None


@pytest.fixture
def client(command: Sequence[str], tmp_path: Path) -> Client:
    return Client(command, tmp_path / "cni.sock")


@asynccontextmanager
async def answering(path: Path, handler: Handler) -> AsyncIterator[None]:
    """A daemon that does with each connection what a test says."""
    server = await asyncio.start_unix_server(handler, path)
    try:
        yield
    finally:
        server.close()
        await server.wait_closed()


class Recorder:
    """Answers every request with the same bytes, and keeps what it was asked."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.request = b""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.request = await reader.read()
        writer.write(self.answer)
        try:
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        except ConnectionError:
            pass  # a client that had enough


def no_answer(version: str, socket: Path | str, why: str) -> tuple[int, dict[str, Any]]:
    message = "the samewire daemon does not answer"
    return 1, {"cniVersion": version, "code": 11, "msg": message, "details": f"{socket}: {why}"}


async def test_through_the_real_server(client: Client) -> None:
    backend = FakeBackend()
    server = CniServer(CniPlugin(backend), client.socket, allowed_uids={os.getuid()})
    await server.start()
    try:
        status, result = await client.run(variables("ADD"))
        assert (status, result["cniVersion"], result["interfaces"][1]["name"]) == (0, "1.0.0", "eth0")
        assert list(backend.attachments) == [("pod1", "eth0")]
        status, error = await client.run(variables("ADD"))
        assert (status, error["code"], error["cniVersion"]) == (1, 102, "1.0.0")
        check = json.dumps({**json.loads(CONF), "prevResult": result}).encode()
        assert await client.run(variables("CHECK"), check) == (0, None)
        assert await client.run(variables("DEL")) == (0, None)
        status, error = await client.run(variables("ADD", interface="a/b"))
        assert (status, error["code"]) == (1, 4)
        status, error = await client.run({}, b"")
        assert (status, error["code"]) == (1, 4)
        new = CONF.replace(b"1.0.0", b"1.1.0")
        assert await client.run({"CNI_COMMAND": "STATUS"}, new) == (0, None)
        gc = json.dumps({**json.loads(new), "cni.dev/valid-attachments": []}).encode()
        assert await client.run({"CNI_COMMAND": "GC"}, gc) == (0, None)
    finally:
        await server.close()
    assert backend.attachments == {}


async def test_what_is_sent(client: Client) -> None:
    recorder = Recorder(b"0\n")
    env = {"CNI_COMMAND": "ADD", "CNI_ARGS": "A=B;C=D\nE", "CNI_EMPTY": "", "XCNI_NO": "1", "CNINO": "2"}
    stdin = b'{"a":\0"b"}\n\xff'
    async with answering(client.socket, recorder):
        assert await client.run(env, stdin) == (0, None)
    head, mark, body = recorder.request.partition(b"\0\0")
    assert set(head.split(b"\0")) == {b"CNI_COMMAND=ADD", b"CNI_ARGS=A=B;C=D\nE", b"CNI_EMPTY="}
    assert (mark, body) == (b"\0\0", stdin)


async def test_no_variables_and_no_stdin(client: Client) -> None:
    recorder = Recorder(b"0\n")
    async with answering(client.socket, recorder):
        assert await client.run({}, b"") == (0, None)
    assert recorder.request == b"\0"


@pytest.mark.parametrize("answer", [b"0\n", b'0\n{"a":1}', b"7\nplain\0text\n\n", b"255\n"])
async def test_the_answer_is_printed_as_it_is(client: Client, answer: bytes) -> None:
    async with answering(client.socket, Recorder(answer)):
        status, out = await client.raw(variables("ADD"))
    assert b"%d\n%b" % (status, out) == answer


@pytest.mark.parametrize(
    ("answer", "details"),
    [
        (b"", "answer: none"),
        (b"0", "answer: malformed"),
        (b"\n{}", "answer: malformed"),
        (b"{}", "answer: malformed"),
        (b"-1\n{}", "answer: malformed"),
        (b"256\n{}", "answer: malformed"),
        (b"99999999999999999999\n{}", "answer: malformed"),
        (b"0 \n{}", "answer: malformed"),
        (b"0\n" + b"x" * (1 << 20), "answer: too long"),
    ],
)
async def test_bad_answers(client: Client, answer: bytes, details: str) -> None:
    async with answering(client.socket, Recorder(answer)):
        assert await client.run(variables("ADD")) == no_answer("1.0.0", client.socket, details)


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
async def test_no_daemon(client: Client, verb: str) -> None:
    """DEL fails too, in the end: the runtime must come again, or pod and address would stay for ever."""
    answer = await client.run(variables(verb), SAMEWIRE_CNI_TIMEOUT_S="3")
    assert answer == no_answer("1.0.0", client.socket, "connect: No such file or directory")


async def test_no_daemon_any_more(client: Client) -> None:
    async with answering(client.socket, Recorder(b"")):
        pass
    answer = await client.run(variables("DEL"), b"", SAMEWIRE_CNI_TIMEOUT_S="3")
    assert answer == no_answer("1.1.0", client.socket, "connect: Connection refused")


@pytest.mark.parametrize("killed", [True, False])
async def test_a_del_waits_for_the_next_daemon(client: Client, killed: bool) -> None:
    """podman forgets a container whose DEL has failed: its address would stay taken."""
    gone = asyncio.Event()

    async def ends(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        first.close()
        if not killed:
            client.socket.unlink()
        writer.close()
        gone.set()

    first = await asyncio.start_unix_server(ends, client.socket)
    call = asyncio.ensure_future(client.run(variables("DEL")))
    await gone.wait()
    recorder = Recorder(b"0\n")
    async with answering(client.socket, recorder):
        assert await call == (0, None)
    assert recorder.request.endswith(b"\0\0" + CONF)


async def test_a_socket_that_cannot_be(client: Client) -> None:
    status, error = await client.run(variables("ADD"), SAMEWIRE_CNI_SOCKET="/" + "x" * 200)
    assert (status, error["code"]) == (1, 11)
    assert error["details"].startswith("/" + "x" * 106 + ": connect: ")
    status, error = await client.run(variables("ADD"), SAMEWIRE_CNI_SOCKET="")
    assert (status, error["code"]) == (1, 11)
    assert error["details"].startswith("/run/samewire/cni.sock: ")


async def test_the_socket_that_a_configuration_names(client: Client, tmp_path: Path) -> None:
    """Whatever it is called, the error is JSON."""
    named = tmp_path / "näme\t"
    stdin = b'{"cniVersion": "1.0.0", "samewireSocket": "%b"}' % os.fsencode(named)
    answer = await client.run(variables("ADD"), stdin, SAMEWIRE_CNI_SOCKET="")
    assert answer == no_answer("1.0.0", tmp_path / "n??me?", "connect: No such file or directory")
    odd = f'{tmp_path}/"\\'
    answer = await client.run(variables("ADD"), SAMEWIRE_CNI_SOCKET=odd)
    assert answer == no_answer("1.0.0", tmp_path / "??", "connect: No such file or directory")


async def test_a_daemon_that_does_not_answer(client: Client) -> None:
    done = asyncio.Event()

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.close()

    async with answering(client.socket, silent):
        answer = await client.run(variables("ADD"), SAMEWIRE_CNI_TIMEOUT_S="0.2")
        done.set()
    assert answer == no_answer("1.0.0", client.socket, "not in time")


async def test_a_runtime_that_never_ends_its_configuration(client: Client) -> None:
    process = await client.start(variables("ADD", SAMEWIRE_CNI_TIMEOUT_S="0.2"))
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(CONF)
    async with asyncio.timeout(BOUND_S):
        out = await process.stdout.read()
        status = await process.wait()
    process.stdin.close()
    message = "the network configuration has no end"
    error = {"cniVersion": "1.1.0", "code": 11, "msg": message, "details": "not in time"}
    assert (status, json.loads(out)) == (1, error)


@pytest.mark.parametrize("limit", ["", "nonsense", "-1", "0", "nan", "1e99"])
async def test_a_nonsensical_timeout_is_the_default(client: Client, limit: str) -> None:
    async with answering(client.socket, Recorder(b"0\n")):
        assert await client.run(variables("ADD"), SAMEWIRE_CNI_TIMEOUT_S=limit) == (0, None)


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (b'{"cniVersion":"0.4.0"}', "0.4.0"),
        (b'{ "cniVersion" : "1.0.0" }', "1.0.0"),
        (b'{"cniVersion":"9.9.9"}', "1.1.0"),
        (b'{"cniVersion":"1.0.0', "1.1.0"),
        (b'{"cniVersion"', "1.1.0"),
        (b"", "1.1.0"),
        (b"\0\xff", "1.1.0"),
    ],
)
async def test_version_without_a_daemon(client: Client, stdin: bytes, version: str) -> None:
    expected = {"cniVersion": version, "supportedVersions": list(SUPPORTED_VERSIONS)}
    assert await client.run({"CNI_COMMAND": "VERSION"}, stdin) == (0, expected)


async def test_version_does_not_wait_for_stdin(client: Client) -> None:
    process = await client.start({"CNI_COMMAND": "VERSION"})
    assert process.stdin is not None
    assert process.stdout is not None
    async with asyncio.timeout(BOUND_S):
        out = await process.stdout.read()
        assert await process.wait() == 0
    process.stdin.close()
    assert json.loads(out)["cniVersion"] == "1.1.0"


async def test_long_and_too_long_configurations(client: Client) -> None:
    recorder = Recorder(b"0\n")
    async with answering(client.socket, recorder):
        long = CONF + b" " * 900_000
        assert await client.run(variables("ADD"), long) == (0, None)
        assert recorder.request.endswith(b"\0\0" + long)
        process = await client.start(variables("ADD"))
        async with asyncio.timeout(BOUND_S):
            out, _ = await process.communicate(b" " * (MAX_REQUEST + 1))
    error = {"cniVersion": "1.1.0", "code": 5, "msg": "too long", "details": "network configuration"}
    assert (process.returncode, json.loads(out)) == (1, error)


async def test_the_answer_of_a_daemon_that_does_not_read(client: Client) -> None:
    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b'1\n{"code":5}')
        writer.close()

    async with answering(client.socket, hasty):
        assert await client.run(variables("ADD"), b" " * 900_000) == (1, {"code": 5})


async def waits_or_has_ended(process: asyncio.subprocess.Process) -> None:
    """Return when a client that has had all that there is can go no further."""
    stat = Path(f"/proc/{process.pid}/stat")
    await until(lambda: stat.read_text().rpartition(")")[2].split()[0] in "SZ", BOUND_S)


async def test_a_configuration_in_pieces_on_a_non_blocking_stdin(client: Client) -> None:
    """Some runtimes make both ends of the pipe so; what has not come yet is no end."""
    recorder = Recorder(b"0\n")
    theirs, ours = os.pipe()
    os.set_blocking(theirs, False)
    async with answering(client.socket, recorder):
        process = await client.start(variables("ADD"), stdin=theirs)
        os.write(ours, CONF[:9])
        await until(lambda: not unread(theirs), BOUND_S)
        await waits_or_has_ended(process)
        os.write(ours, CONF[9:])
        os.close(ours)
        os.close(theirs)
        async with asyncio.timeout(BOUND_S):
            assert await process.communicate() == (b"", b"")
    assert recorder.request.endswith(b"\0\0" + CONF)


async def test_an_answer_longer_than_a_non_blocking_stdout_takes(client: Client) -> None:
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    async with answering(client.socket, Recorder(b"0\n" + b"x" * 500_000)):
        process = await client.start(variables("ADD"), stdin=asyncio.subprocess.DEVNULL, stdout=theirs)
        os.close(theirs)
        await until(lambda: unread(ours), BOUND_S)
        await waits_or_has_ended(process)
        with os.fdopen(ours, "rb") as pipe:
            found = await asyncio.to_thread(pipe.read)
        async with asyncio.timeout(BOUND_S):
            assert await process.wait() == 0
    assert found == b"x" * 500_000


def unread(fd: int) -> int:
    """How many bytes wait in a pipe."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


async def test_a_runtime_that_has_blocked_the_alarm(client: Client) -> None:
    """Its mask of signals is the client's too, which has a time limit nevertheless."""
    done = asyncio.Event()

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.close()

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    try:
        async with answering(client.socket, silent):
            answer = await client.run(variables("ADD"), SAMEWIRE_CNI_TIMEOUT_S="0.2")
            done.set()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert answer == no_answer("1.0.0", client.socket, "not in time")


def test_one_list_of_versions() -> None:
    assert twin.VERSIONS == SUPPORTED_VERSIONS
    source = (ROOT / "native" / "samewire-cni.c").read_text()
    assert ", ".join(f'"{version}"' for version in SUPPORTED_VERSIONS) in source


def test_the_binary_needs_nothing(binary: str) -> None:
    found = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False)
    assert "not a dynamic executable" in found.stderr + found.stdout
