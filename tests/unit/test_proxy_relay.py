"""The user-mode relay over loopback: real sockets on both sides, told what to do as the daemon does."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from pathlib import Path

import pytest

from samewire.errors import Unavailable
from samewire.proxy.relay import Relay, RelayBackend, RelayService
from tests.support.relayed import WAIT_S, connect, hang_up, listener, tcp_backend, udp_backend, until

ADDRESSES = {"ipv4": "127.0.0.1", "ipv6": "::1"}


async def connect_and_read(client: socket.socket, port: int) -> bytes:
    """What comes first. A reset may come while it connects already."""
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", port))
    return await asyncio.wait_for(loop.sock_recv(client, 1), WAIT_S)


@pytest.mark.parametrize("family", ADDRESSES)
async def test_bytes_cross_in_both_directions_and_the_end_too(relay: Relay, family: str) -> None:
    address = ADDRESSES[family]
    async with tcp_backend(address, b"one") as backend:
        port = await listener(relay, RelayService("web", "tcp", address, (backend,)))
        name, reader, writer = await connect(address, port)
        assert name == "one"
        sent = bytes(range(256)) * 40_000  # 10 MB: the pipes, and a slow reader now and then

        async def send() -> None:
            writer.write(sent)
            await writer.drain()
            writer.write_eof()

        sending = asyncio.create_task(send())
        assert await asyncio.wait_for(reader.read(-1), WAIT_S) == sent
        await sending
        await hang_up(writer)

        async def closed() -> bool:
            counts = (await relay.list())["web"]
            return counts.accepted == 1 and counts.open == 0

        await until(closed)


async def test_an_end_right_behind_the_data_is_passed_on(relay: Relay) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"all there is")
        await hang_up(writer)

    server = await asyncio.start_server(serve, "127.0.0.1")
    async with server:
        backend = RelayBackend("127.0.0.1", server.sockets[0].getsockname()[1])
        port = await listener(relay, RelayService("web", "tcp", "127.0.0.1", (backend,)))
        for _ in range(50):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await asyncio.wait_for(reader.read(-1), WAIT_S) == b"all there is"
            await hang_up(writer)


async def test_many_at_once(relay: Relay) -> None:
    async with tcp_backend("127.0.0.1", b"one") as one, tcp_backend("127.0.0.1", b"two") as two:
        port = await listener(relay, RelayService("web", "tcp", "127.0.0.1", (one, two)))

        async def talk(number: int) -> str:
            name, reader, writer = await connect("127.0.0.1", port)
            writer.write(b"%d\n" % number)
            assert await asyncio.wait_for(reader.readline(), WAIT_S) == b"%d\n" % number
            await hang_up(writer)
            return name

        names = await asyncio.gather(*(talk(number) for number in range(200)))
        assert set(names) == {"one", "two"}


async def test_a_removed_backend_ends_its_own_connections_and_a_draining_one_none(relay: Relay) -> None:
    async with tcp_backend("127.0.0.1", b"one") as one, tcp_backend("127.0.0.1", b"two") as two:
        both = RelayService("web", "tcp", "127.0.0.1", (one, two))
        port = await listener(relay, both)
        held: dict[str, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        while len(held) < 2:
            name, reader, writer = await connect("127.0.0.1", port)
            if name in held:
                await hang_up(writer)
            else:
                held[name] = reader, writer
        draining = RelayService("web", "tcp", "127.0.0.1", (RelayBackend(one.address, one.port, True), two))
        assert await listener(relay, draining) == port
        for reader, writer in held.values():
            writer.write(b"still here\n")
            assert await asyncio.wait_for(reader.readline(), WAIT_S) == b"still here\n"
        for _ in range(10):
            name, _, writer = await connect("127.0.0.1", port)
            assert name == "two"
            await hang_up(writer)
        assert await listener(relay, RelayService("web", "tcp", "127.0.0.1", (two,))) == port
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(held["one"][0].read(1), WAIT_S)
        held["two"][1].write(b"on and on\n")
        assert await asyncio.wait_for(held["two"][0].readline(), WAIT_S) == b"on and on\n"
        for _, writer in held.values():
            await hang_up(writer)


async def test_a_backend_that_is_named_twice_is_one(relay: Relay) -> None:
    """Saying the same again ends nothing, whichever of the two a connection was given to."""
    async with tcp_backend("127.0.0.1", b"one") as one:
        twice = RelayService("web", "tcp", "127.0.0.1", (one, one))
        port = await listener(relay, twice)
        held = [await connect("127.0.0.1", port) for _ in range(16)]
        assert await listener(relay, twice) == port
        for _, reader, writer in held:
            writer.write(b"still here\n")
            assert await asyncio.wait_for(reader.readline(), WAIT_S) == b"still here\n"
            await hang_up(writer)


async def test_a_refused_change_changes_nothing(relay: Relay) -> None:
    async with tcp_backend("127.0.0.1", b"one") as one, tcp_backend("127.0.0.1", b"two") as two:
        port = await listener(relay, RelayService("web", "tcp", "127.0.0.1", (one,), 3600))
        name, _, writer = await connect("127.0.0.1", port)
        assert name == "one"
        await hang_up(writer)
        await listener(relay, RelayService("web", "tcp", "127.0.0.1", (one, two), 3600))
        gone = RelayBackend(one.address, one.port, True)
        for listen, last in ("127.0.0.1", RelayBackend("nowhere", 80)), ("192.0.2.1", two):
            refused = RelayService("web", "tcp", listen, (gone, last), 3600)
            assert isinstance((await relay.put([refused]))["web"], Unavailable)
        for _ in range(16):  # one is not draining: who had it comes back to it
            name, _, writer = await connect("127.0.0.1", port)
            await hang_up(writer)
            assert name == "one"


async def test_another_backend_is_tried_when_one_refuses(relay: Relay) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = RelayBackend("127.0.0.1", unused.getsockname()[1])
        async with tcp_backend("127.0.0.1", b"alive") as alive:
            port = await listener(relay, RelayService("web", "tcp", "127.0.0.1", (dead, alive), 600))
            name, _, writer = await connect("127.0.0.1", port)
            assert name == "alive"
            await hang_up(writer)
        port = await listener(relay, RelayService("web", "tcp", "127.0.0.1", (dead,)))
        with socket.socket() as client:
            client.setblocking(False)
            with pytest.raises(ConnectionResetError):
                await connect_and_read(client, port)


async def test_a_client_with_affinity_comes_back_to_its_backend(relay: Relay) -> None:
    async with contextlib.AsyncExitStack() as stack:
        backends = [await stack.enter_async_context(tcp_backend("127.0.0.1", b"%d" % n)) for n in range(5)]
        port = await listener(relay, RelayService("web", "tcp", "127.0.0.1", tuple(backends), 3600))
        names = set()
        for _ in range(10):
            name, _, writer = await connect("127.0.0.1", port)
            names.add(name)
            await hang_up(writer)
        assert len(names) == 1
        left = tuple(one for index, one in enumerate(backends) if str(index) not in names)
        await listener(relay, RelayService("web", "tcp", "127.0.0.1", left, 3600))
        name, _, writer = await connect("127.0.0.1", port)
        assert name not in names
        await hang_up(writer)


async def test_a_client_whose_time_is_over_may_get_any_backend(relay: Relay) -> None:
    async with contextlib.AsyncExitStack() as stack:
        backends = [await stack.enter_async_context(tcp_backend("127.0.0.1", b"%d" % n)) for n in range(5)]
        port = await listener(relay, RelayService("web", "tcp", "127.0.0.1", tuple(backends), 1))
        names = set()
        for _ in range(20):
            name, _, writer = await connect("127.0.0.1", port)
            names.add(name)
            await hang_up(writer)
            if len(names) > 1:
                break
            await asyncio.sleep(1.1)  # its time
        assert len(names) > 1


async def test_silent_peers_are_asked_whether_they_are_there(relay: Relay) -> None:
    """Without that the connection of a client that has lost its power would stay for ever."""
    async with tcp_backend("127.0.0.1", b"one") as backend:
        port = await listener(relay, RelayService("web", "tcp", "127.0.0.1", (backend,)))
        _, _, writer = await connect("127.0.0.1", port)
        own, to_backend = f"0100007F:{port:04X}", f"0100007F:{backend.port:04X}"

        async def asking() -> bool:  # a timer on both sides
            rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
            mine = [row for row in rows if row[3] == "01" and (row[1] == own or row[2] == to_backend)]
            return [row[5][:2] for row in mine] == ["02", "02"]

        await until(asking)
        await hang_up(writer)


async def test_a_reset_is_passed_on(relay: Relay) -> None:
    ended = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"name\n")
        try:
            await reader.read(1)
        except ConnectionResetError:
            ended.set_result("reset")
        else:
            ended.set_result("end")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1")
    async with server:
        backend = RelayBackend("127.0.0.1", server.sockets[0].getsockname()[1])
        port = await listener(relay, RelayService("web", "tcp", "127.0.0.1", (backend,)))
        _, _, writer = await connect("127.0.0.1", port)
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        assert await asyncio.wait_for(ended, WAIT_S) == "reset"


@pytest.mark.parametrize("family", ADDRESSES)
async def test_datagrams_stay_with_their_backend_until_it_goes(relay: Relay, family: str) -> None:
    address = ADDRESSES[family]
    loop = asyncio.get_running_loop()
    with (
        udp_backend(address, b"one") as one,
        udp_backend(address, b"two") as two,
        socket.socket(socket.AF_INET6 if family == "ipv6" else socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        port = await listener(relay, RelayService("dns", "udp", address, (one, two)))
        client.setblocking(False)
        client.connect((address, port))

        async def ask(data: bytes) -> bytes:
            await loop.sock_sendall(client, data)
            return await asyncio.wait_for(loop.sock_recv(client, 65536), WAIT_S)

        first = (await ask(b"x")).split(b" ")[0]
        big = b"y" * 30_000
        for _ in range(20):
            assert await ask(big) == first + b" " + big
        other = two if first == b"one" else one
        await listener(relay, RelayService("dns", "udp", address, (other,)))
        assert (await ask(b"z")).split(b" ")[0] == (b"two" if first == b"one" else b"one")
        assert (await relay.list())["dns"].open == 1


async def test_the_next_daemon_finds_the_relay_as_it_was(relay: Relay, tmp_path: Path) -> None:
    async with tcp_backend("127.0.0.1", b"one") as backend:
        service = RelayService("web", "tcp", "127.0.0.1", (backend,))
        port = await listener(relay, service)
        _, reader, writer = await connect("127.0.0.1", port)
        await relay.close()
        again = Relay(tmp_path / "relay.sock")
        assert await listener(again, service) == port
        writer.write(b"hello\n")
        assert await asyncio.wait_for(reader.readline(), WAIT_S) == b"hello\n"
        await again.delete(["web", "never was there"])
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), WAIT_S)
        assert await again.list() == {}
        await hang_up(writer)
        await again.close()


async def test_a_refused_service_keeps_none_from_the_others(relay: Relay) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        bad = RelayService("bad", "tcp", "192.0.2.1")
        odd = RelayService("odd", "tcp", "127.0.0.1", (RelayBackend("nowhere", 80),))
        answers = await relay.put([bad, odd, RelayService("good", "udp", "127.0.0.1")])
    assert isinstance(answers["bad"], Unavailable)
    assert "backend" in str(answers["odd"])
    assert isinstance(answers["good"], int)
    assert set(await relay.list()) == {"good"}


@pytest.mark.parametrize(
    "line", ["", "put", "put x", "put x sctp 127.0.0.1 0", "x" * 2000, "put x tcp 127.0.0.1 -1"]
)
async def test_nonsense_is_answered_and_forgotten(relay: Relay, tmp_path: Path, line: str) -> None:
    await relay.list()
    reader, writer = await asyncio.open_unix_connection(tmp_path / "relay.sock")
    writer.write(line.encode() + b"\n")
    assert (await asyncio.wait_for(reader.readline(), WAIT_S)).startswith(b"error ")
    await hang_up(writer)
    assert await relay.list() == {}


async def test_a_relay_that_hangs_holds_up_no_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next daemon, which needs none, asks it to end, and does not wait for ever."""
    monkeypatch.setattr("samewire.proxy.relay.ANSWER_TIMEOUT_S", 0.05)
    path = tmp_path / "relay.sock"
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(path))
        deaf.listen()
        await asyncio.wait_for(Relay(path).stop(), WAIT_S)


async def test_who_stops_it_has_not_lost_it(relay: Relay) -> None:
    """The daemon in kernel mode would write all its services again."""
    lost: list[None] = []
    relay.on_lost = lambda: lost.append(None)
    await relay.list()
    await relay.stop()
    assert not lost


async def test_who_asks_after_one_that_gave_up_gets_an_answer_of_its_own(relay: Relay) -> None:
    async with tcp_backend("127.0.0.1", b"one") as backend:
        first, second = (RelayService(name, "tcp", "127.0.0.1", (backend,)) for name in ("a", "b"))
        ports = {"a": await listener(relay, first)}
        told = asyncio.create_task(relay.put([first]))
        await asyncio.sleep(0)  # it has asked, and there is no answer yet
        told.cancel()
        await asyncio.wait([told])
        ports["b"] = await listener(relay, second)
        assert {name: counts.port for name, counts in (await relay.list()).items()} == ports
