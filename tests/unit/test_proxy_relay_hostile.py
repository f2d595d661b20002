"""The user-mode relay and peers that behave badly: resets, urgent data, silence, too many of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from samewire.proxy.relay import Relay, RelayBackend, RelayService
from tests.support.proxy import pid_behind
from tests.support.relayed import connect, hang_up, listener, tcp_backend, udp_backend, until

WAIT_S = 20.0
MAX_PIPES = 512


@contextlib.contextmanager
def standing_still(pid: int) -> Iterator[None]:
    """What happens meanwhile the process sees all at once."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def reset(own: socket.socket) -> None:
    own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    own.close()


@contextlib.asynccontextmanager
async def pairs(relay: Relay, count: int = 1) -> AsyncIterator[list[tuple[socket.socket, socket.socket]]]:
    """Connections through the relay: client and backend."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        backend = RelayBackend("127.0.0.1", server.getsockname()[1])
        port = await listener(relay, RelayService("web", "tcp", "127.0.0.1", (backend,)))
        made = []
        server.settimeout(WAIT_S)
        for _ in range(count):
            ends = (socket.create_connection(("127.0.0.1", port)), server.accept()[0])
            for end in ends:
                stack.enter_context(end)
                end.settimeout(WAIT_S)
            made.append(ends)
        yield made


def everything(own: socket.socket) -> tuple[bytes, str]:
    """What is said, and how it ends."""
    said = b""
    try:
        while piece := own.recv(1 << 20):
            said += piece
    except ConnectionResetError:
        return said, "reset"
    return said, "end"


def exactly(own: socket.socket, length: int) -> bytes:
    """So many bytes."""
    said = b""
    while len(said) < length:
        said += own.recv(length - len(said))
    return said


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("who", ["client", "backend"])
async def test_what_is_said_before_a_reset_arrives(
    relay: Relay, tmp_path: Path, who: str, busy: bool
) -> None:
    """As a server does that answers and closes while it is still being sent something."""
    async with pairs(relay) as ((client, backend),):
        speaker, listener_ = (client, backend) if who == "client" else (backend, client)
        with standing_still(pid_behind(tmp_path / "relay.sock")):
            speaker.sendall(b"413 too large")
            reset(speaker)
            if busy:
                listener_.sendall(b"more and more")
        assert everything(listener_) == (b"413 too large", "reset")


@pytest.mark.parametrize("size", [3, 3_000_000])
async def test_urgent_bytes_are_bytes_of_the_stream(relay: Relay, tmp_path: Path, size: int) -> None:
    async with pairs(relay) as ((client, backend),):

        def send() -> None:
            client.sendall(b"a" * size)
            client.send(b"!", socket.MSG_OOB)
            client.sendall(b"b" * size)

        at_once = size < 100
        with standing_still(pid_behind(tmp_path / "relay.sock")) if at_once else contextlib.nullcontext():
            sending = asyncio.create_task(asyncio.to_thread(send))
            if at_once:
                await sending
        said = await asyncio.to_thread(exactly, backend, 2 * size + 1)
        await sending
        assert said == b"a" * size + b"!" + b"b" * size


async def test_who_does_not_read_his_answers_keeps_nobody_waiting(relay: Relay, tmp_path: Path) -> None:
    # 1.6 MB: beyond what the sockets hold it takes up to 1 MiB at once, and the answers to that do not fit.
    question, asked = b"what".ljust(199) + b"\n", 8_000
    async with pairs(relay) as ((client, backend),):
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.connect(str(tmp_path / "relay.sock"))
            deaf.settimeout(0.5)
            lines = memoryview(question * asked)
            with contextlib.suppress(TimeoutError):
                while lines:
                    lines = lines[deaf.send(lines) :]
            assert lines, "it is not asked more than it can answer"
            client.sendall(b"hello")
            assert backend.recv(100) == b"hello"

            def rest() -> None:
                deaf.settimeout(WAIT_S)
                deaf.sendall(lines)

            sending = asyncio.create_task(asyncio.to_thread(rest))
            answers = b""
            while answers.count(b"\n") < asked:
                answers += await asyncio.to_thread(deaf.recv, 1 << 20)
            await sending
            assert set(answers.splitlines()) == {b"error - want put, del, list, users, stats or quit"}


async def test_of_too_many_clients_by_udp_the_longest_silent_is_forgotten(tmp_path: Path) -> None:
    """One that asks from a new port each time, as for DNS, leaves room for all others."""
    path, limit = tmp_path / "relay.sock", 200
    command = ["prlimit", f"--nofile={limit}", str(files("samewire") / "_build" / "samewire-relay")]
    process = await asyncio.create_subprocess_exec(*command, str(path))
    relay = Relay(path)
    await until(lambda: _is_there(path))
    try:
        with udp_backend("127.0.0.1", b"one") as one:
            port = await listener(relay, RelayService("dns", "udp", "127.0.0.1", (one,)))
            loop = asyncio.get_running_loop()
            for _ in range(2 * limit):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                    client.setblocking(False)
                    client.connect(("127.0.0.1", port))
                    await loop.sock_sendall(client, b"?")
                    assert await asyncio.wait_for(loop.sock_recv(client, 100), WAIT_S) == b"one ?"
        async with tcp_backend("127.0.0.1", b"two") as two:
            port = await listener(relay, RelayService("web", "tcp", "127.0.0.1", (two,)))
            name, _, writer = await connect("127.0.0.1", port)
            assert name == "two"
            await hang_up(writer)
    finally:
        await relay.stop()
        await process.wait()


async def test_a_client_by_udp_that_was_forgotten_comes_back_to_its_backend(
    relay: Relay, tmp_path: Path
) -> None:
    """After a minute's silence, or when it had to make room; here, as the next relay knows nobody."""
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        backends = [stack.enter_context(udp_backend("127.0.0.1", b"%d" % number)) for number in range(4)]
        clients = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(16)]
        heard: list[list[bytes]] = []
        for _ in range(2):
            port = await listener(relay, RelayService("dns", "udp", "127.0.0.1", tuple(backends)))
            heard.append([])
            for client in clients:
                client.setblocking(False)
                client.connect(("127.0.0.1", port))
                await loop.sock_sendall(client, b"?")
                heard[-1].append(await asyncio.wait_for(loop.sock_recv(client, 100), WAIT_S))
            await relay.stop()
        assert heard[0] == heard[1]
        assert len(set(heard[0])) > 1


async def test_another_backend_is_tried_when_one_is_silent(relay: Relay) -> None:
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):  # nobody accepts: what comes next is not answered
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        silent = RelayBackend("127.0.0.1", full.getsockname()[1])
        async with tcp_backend("127.0.0.1", b"alive") as alive:
            port = await listener(relay, RelayService("web", "tcp", "127.0.0.1", (silent, alive)))
            made = await asyncio.gather(*(connect("127.0.0.1", port) for _ in range(16)))
            assert {name for name, _, _ in made} == {"alive"}
            for _, _, writer in made:
                await hang_up(writer)


async def test_bytes_in_pipes_are_bounded(relay: Relay, tmp_path: Path) -> None:
    """They are on nobody's account: readers that do not read would fill the node's memory."""
    count, said = MAX_PIPES + 50, b"x" * 40_000
    files_before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files_before[1], files_before[1]))
    try:
        async with pairs(relay, count) as made:
            pid = pid_behind(tmp_path / "relay.sock")
            others = _pipes(pid)
            with standing_still(pid):
                for client, _ in made:
                    client.sendall(said)
            for _, backend in made:
                assert exactly(backend, len(said)) == said
            assert _pipes(pid) - others <= MAX_PIPES
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, files_before)


def _pipes(pid: int) -> int:
    links = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(str(link.readlink()))
    return len({link for link in links if link.startswith("pipe:")})


async def _is_there(path: Path) -> bool:
    return path.exists()
