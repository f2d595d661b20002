"""How the libraries for Windows programs use their connections, against a server that answers as it is told.

The library is the one that is built for Linux from the same sources.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import samewire
from samewire.kernel.computenetwork import ComputeNetwork, LibraryError

LIBRARY = Path(samewire.__file__).parent / "_build" / "windows" / "libcomputenetwork.so"
NO_SERVER = 0x800706BA
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"


class Server:
    """Has one list of answers a connection, which ends after them: ``ended`` counts."""

    def __init__(self, answers: list[list[bytes]]) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self.ended = threading.Semaphore(0)
        self._answers = answers
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        for answers in self._answers:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                for answer in answers:
                    request = connection.recv(65536)
                    if not request:
                        break
                    self.requests.append(request)
                    connection.sendall(answer)
            self.ended.release()

    def close(self) -> None:
        """The end."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, *answers: list[bytes]) -> Iterator[Server]:
    server = Server(list(answers))
    monkeypatch.setenv("SAMEWIRE_HNS_ADDRESS", server.address)
    monkeypatch.setenv("SAMEWIRE_HNS_TOKEN", "secret")
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def library() -> ComputeNetwork:
    if not LIBRARY.exists():
        pytest.fail(f"{LIBRARY} is not there: run `make windows-shim`", pytrace=False)
    return ComputeNetwork(str(LIBRARY))


def enumerate_networks(library: ComputeNetwork) -> list[str]:
    return library.enumerate("Networks")


def test_a_connection_is_kept(library: ComputeNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(monkeypatch, [EMPTY] * 20) as server:
        for _ in range(20):
            assert enumerate_networks(library) == []
        assert (server.connections, len(server.requests)) == (1, 20)
        assert all(b"Authorization: Bearer secret\r\n" in request for request in server.requests)


def test_one_that_has_ended_is_not_used(library: ComputeNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    closing = EMPTY.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    to_the_end = b'HTTP/1.1 200 OK\r\n\r\n["1"]'
    with serving(monkeypatch, [EMPTY], [closing], [to_the_end], [EMPTY]) as server:
        for wanted in ([], [], ["1"], []):
            assert enumerate_networks(library) == wanted
            assert server.ended.acquire(timeout=10)
        assert server.connections == 4


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"no HTTP at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n\r\n",
    ],
)
def test_half_an_answer_is_none(
    library: ComputeNetwork, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    with serving(monkeypatch, [answer]), pytest.raises(LibraryError) as caught:
        enumerate_networks(library)
    assert caught.value.hresult == NO_SERVER
    assert "samewire daemon hung up" in caught.value.text


@pytest.mark.parametrize(
    "address", ["", ":80", "[:80", "127.0.0.1", "127.0.0.1:0", "localhost:80", "x" * 200 + ":1"]
)
def test_an_address_that_is_none(
    library: ComputeNetwork, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("SAMEWIRE_HNS_ADDRESS", address)
    with pytest.raises(LibraryError) as caught:
        enumerate_networks(library)
    assert caught.value.hresult == NO_SERVER
    assert "SAMEWIRE_HNS_ADDRESS" in caught.value.text
