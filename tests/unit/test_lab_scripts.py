"""The two scripts that run in namespaces, run here on loopback: the echo server and the probe runner."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from samewire.lab import agent, echo
from samewire.lab.processes import python_script


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A running echo server."""
    ready = tmp_path_factory.mktemp("echo") / "ready"
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        number = taken.getsockname()[1]
    with subprocess.Popen(
        python_script("echo.py", str(ready), "web", str(number)), stderr=subprocess.PIPE
    ) as server:
        while not ready.exists():
            assert server.poll() is None
        yield number
        server.kill()


def probe(protocol: str, address: str, port: int, size: int = 64) -> dict[str, Any]:
    wire = {"id": 1, "protocol": protocol, "address": address, "port": port, "size": size}
    return agent.run_probe({**wire, "timeout_s": 20.0, "tries": 1}, NO_PINGER)


NO_PINGER: Any = None


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize(
    ("protocol", "size"), [("tcp", 64), ("tcp", 1_000_000), ("udp", 64), ("udp", 12_000)]
)
def test_payloads_come_back_with_a_word_about_who_asked(
    port: int, protocol: str, size: int, address: str
) -> None:
    result = probe(protocol, address, port, size)
    assert result["error"] == ""
    reply = result["reply"]
    assert (reply["hostname"], reply["container"]) == (socket.gethostname(), "web")
    assert reply["client"]["address"] == address
    assert reply["server"] == {"address": address, "port": port}


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_http_on_the_same_port(port: int, address: str) -> None:
    reply = probe("http", address, port)["reply"]
    assert (reply["method"], reply["path"]) == ("GET", "/check")
    assert str(port) in reply["headers"]["Host"]


def test_http_keeps_the_connection_and_skips_bodies(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        post = b"POST /a HTTP/1.1\r\nContent-Length: 5\r\nX-Who: me\r\n\r\nhel"
        connection.sendall(post[:3])  # the method itself in two pieces
        connection.sendall(post[3:])
        connection.sendall(b"loHEAD /b HTTP/1.1\r\nConnection: close\r\n\r\n")
        answer = b""
        while data := connection.recv(65536):
            answer += data
    first, _, rest = answer.partition(b"\r\n\r\n")
    assert b"keep-alive" in first
    body, _, second = rest.partition(b"HTTP/1.1 200")
    assert json.loads(body)["headers"]["X-Who"] == "me"
    assert b"Connection: close" in second
    assert second.endswith(b"\r\n\r\n")  # HEAD has no body


def test_nonsense_closes_only_its_own_connection(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nContent-Length: many\r\n\r\n")
        assert connection.recv(100) == b""
    assert probe("tcp", "127.0.0.1", port)["ok"]


def test_connect_and_refusal(port: int) -> None:
    assert probe("connect", "127.0.0.1", port)["ok"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        for protocol in ("tcp", "udp"):
            result = probe(protocol, "127.0.0.1", free.getsockname()[1])
            assert (result["ok"], result["error"]) == (False, "Connection refused")


def test_a_wrong_answer_is_an_error_not_a_crash() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address, number = server.getsockname()
        server.settimeout(20)

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"{}\nwrong" + bytes(100))

        thread = threading.Thread(target=answer)
        thread.start()
        result = probe("tcp", address, number)
        thread.join()
    assert result["ok"] is False
    assert result["error"]


def test_the_last_try_has_the_rest_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is lost is soon asked again; what is slow comes at last."""
    waited: list[float] = []

    def attempt(_probe: object, _pinger: object, timeout_s: float) -> dict[str, Any]:
        waited.append(timeout_s)
        raise TimeoutError

    monkeypatch.setattr(agent, "_attempt", attempt)
    for timeout_s, tries in ((10.0, 3), (10.0, 1), (1.5, 3)):
        agent.run_probe({"id": 1, "timeout_s": timeout_s, "tries": tries}, NO_PINGER)
    assert waited == [1, 1, 8, 10, 0.5, 0.5, 0.5]


def test_who_waits_for_an_answer_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are; a node that is cut off took the check minutes, or more than it gives itself."""
    answered = threading.Event()

    def run(probe: dict[str, Any], _pinger: object) -> dict[str, Any]:
        if probe["id"] < 40:
            answered.wait()
        return {"id": probe["id"]}

    monkeypatch.setattr(agent, "run_probe", run)
    monkeypatch.setattr(agent, "_TRY_S", 0.01)
    results = agent.run_all([{"id": number} for number in range(41)], NO_PINGER)
    assert next(results) == {"id": 40}
    answered.set()
    assert {result["id"] for result in results} == set(range(40))


def test_what_has_come_is_seen_before_anybody_has_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel answers an echo request at once; a busy machine may run who notes it much later."""
    made: list[socket.socket] = []
    real = socket.socket

    def plain(family: int, _kind: int, _protocol: int) -> socket.socket:
        opened = real(family, socket.SOCK_DGRAM)
        opened.bind(("", 0))
        made.append(opened)
        return opened

    idle = SimpleNamespace(Lock=threading.Lock, Thread=lambda **_: SimpleNamespace(start=lambda: None))
    monkeypatch.setattr(agent, "threading", idle)
    monkeypatch.setattr(socket, "socket", plain)
    pinger = agent.Pinger()
    monkeypatch.undo()
    with made[0], made[1], socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for number in (1, 2):
            request = b"\x45" + bytes(19) + b"\x08" + bytes(7) + bytes([number])
            client.sendto(request, ("127.0.0.1", made[0].getsockname()[1]))
        assert pinger.seen() == {"01": "127.0.0.1", "02": "127.0.0.1"}


def test_a_port_that_is_taken_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = python_script(
            "echo.py", str(tmp_path / "ready"), "c", f"127.0.0.1@{taken.getsockname()[1]}"
        )
        with subprocess.Popen(command, stderr=subprocess.PIPE) as server:
            assert server.stderr is not None
            assert b"Address already in use" in server.stderr.readline()
            while not (tmp_path / "ready").exists():
                assert server.poll() is None
            server.kill()


def test_more_ports_than_the_usual_limit_of_files_allows(tmp_path: Path) -> None:
    """Four sockets a port: at 1024, 255 ports of published media servers were too many, and the lab did not come up."""
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket(socket.AF_INET6)) for _ in range(20)]
        for one in held:
            one.bind(("::", 0))
        ports = [str(one.getsockname()[1]) for one in held]
    ready = tmp_path / "ready"
    script = python_script("echo.py", str(ready), "web", *ports)
    with subprocess.Popen(("sh", "-c", 'ulimit -Sn 40; exec "$@"', "sh", *script)) as server:
        try:
            while not ready.exists():
                assert server.poll() is None
            assert not any(probe("connect", "127.0.0.1", int(port))["error"] for port in ports)
        finally:
            server.kill()


def test_checksum_is_the_internet_checksum() -> None:
    # RFC 1071, section 3: the example words 0001 f203 f4f5 f6f7 sum to ddf2.
    assert agent._checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF ^ 0xDDF2


def test_scripts_import_nothing_of_samewire() -> None:
    for module in (agent, echo):
        assert module.__file__ is not None
        assert "import samewire" not in Path(module.__file__).read_text()
        assert "from samewire" not in Path(module.__file__).read_text()
