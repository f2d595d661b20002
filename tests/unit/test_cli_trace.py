"""``samewire trace`` and ``capture`` up to what they ask of the daemon and the kernel."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from samewire.cli.main import cli
from tests.support.tools import INFOS, StubDaemon
from tests.unit.test_trace_follow import DELIVERED, TUNNELLED

TRACE = "POST /v2/switch/trace"
BLOCKED = replace(
    DELIVERED,
    fate="dropped",
    endpoint=None,
    drop={"layer": "acl_in", "reason": "blocked", "rule": 2, "explanation": "E.", "remedy": "R."},
)


def plain(value: Any) -> Any:
    return json.loads(msgspec.json.encode(value))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[StubDaemon]:
    with StubDaemon(tmp_path) as stub:
        stub.answers[TRACE] = (200, plain(DELIVERED))
        stub.answers["GET /v2/switch/endpoints"] = (200, plain(INFOS))
        yield stub


def trace(daemon: StubDaemon, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["--socket", daemon.socket, "trace", "--from", "client", *arguments])


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["10.0.0.1:80"], {"to": "10.0.0.1", "port": 80}),
        (["10.0.0.1"], {"to": "10.0.0.1", "protocol": "icmp"}),
        (["[fd00::1]:80"], {"to": "fd00::1", "port": 80}),
        (["fd00:0:0::1"], {"to": "fd00::1", "protocol": "icmp"}),
        (["[fd00::1]"], {"to": "fd00::1", "protocol": "icmp"}),
        (["10.0.0.1:53", "--proto", "udp"], {"to": "10.0.0.1", "port": 53, "protocol": "udp"}),
        (["10.0.0.1:80", "--proto", "icmp"], {"to": "10.0.0.1", "protocol": "icmp"}),
        (["10.0.0.1:80", "--source-port", "1234"], {"to": "10.0.0.1", "port": 80, "source_port": 1234}),
    ],
)
def test_what_is_asked(daemon: StubDaemon, arguments: list[str], asked: dict[str, Any]) -> None:
    result = trace(daemon, "--to", *arguments)
    assert result.exit_code == 0, result.output
    assert daemon.requests == [(TRACE, {"from": "client", **asked})]


@pytest.mark.parametrize(
    "arguments",
    [
        ["web"],
        ["10.0.0.1:x"],
        ["10.0.0.1:0"],
        ["10.0.0.1:65536"],
        ["10.0.0.1:"],
        ["10.0.0.1:+80"],
        ["10.0.0.1:8_0"],
        ["[fd00::1:80"],
        ["[fd00::1]80"],
        ["[fd00::1]:"],
        ["10.0.0"],
        ["10.0.0.1", "--proto", "tcp"],
        ["10.0.0.1:80", "--source-port", "0"],
        ["10.0.0.1:80", "--peers", "/nonexistent"],
    ],
)
def test_wrong_usage(daemon: StubDaemon, arguments: list[str]) -> None:
    assert trace(daemon, "--to", *arguments).exit_code == 2
    assert daemon.requests == []


def test_what_is_printed(daemon: StubDaemon) -> None:
    printed = trace(daemon, "--to", "10.244.2.9:80").stdout
    assert not any(line.endswith(" ") for line in printed.splitlines())
    lines = printed.splitlines()
    assert lines[0].startswith("n    tcp 10.244.1.6:40000 > 10.244.2.9:80")
    assert lines[-1] == "→ delivered on n to shop/web-0 (10.244.1.5, fd00:244:1::5)"


def test_a_drop_is_status_1(daemon: StubDaemon) -> None:
    daemon.answers[TRACE] = (200, plain(BLOCKED))
    result = trace(daemon, "--to", "10.0.0.1:80")
    assert result.exit_code == 1
    assert "✗ dropped on n by ACL IN, which asks the receiver's rules: blocked, rule 2" in result.stdout
    assert "  What to do: R." in result.stdout


def test_json(daemon: StubDaemon) -> None:
    daemon.answers[TRACE] = (200, plain(BLOCKED))
    result = trace(daemon, "--to", "10.0.0.1:80", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"arrived": False, "hops": [plain(BLOCKED)], "end": ""}


def test_both_halves(daemon: StubDaemon, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    daemon.answers[TRACE] = (200, plain(TUNNELLED))
    with StubDaemon(tmp_path / "far") as far:
        far.answers[TRACE] = (200, plain(replace(DELIVERED, node="far", arrival="tunnel")))
        peers = tmp_path / "peers.json"
        peers.write_text(json.dumps({"192.168.1.11": far.socket}))
        result = trace(daemon, "--to", "10.244.2.9:80", "--peers", str(peers))
        assert result.exit_code == 0, result.output
        assert far.requests[0][1] == {
            "arrival": "tunnel",
            "vni": 4096,
            "tunnel_source": "192.168.1.10",
            "frame": "aabb",
        }
    assert "→ delivered on far to shop/web-0" in result.stdout


@pytest.mark.parametrize("text", ["{", "[]", '{"192.168.1.11": 1}', '{"node-2": "/s"}', "\x00"])
def test_peers_files_that_are_wrong(daemon: StubDaemon, tmp_path: Path, text: str) -> None:
    file = tmp_path / "peers.json"
    file.write_text(text)
    result = trace(daemon, "--to", "10.0.0.1:80", "--peers", str(file))
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {file}: ")
    assert len(result.stderr.splitlines()) == 1


def test_a_pod_that_does_not_exist(daemon: StubDaemon) -> None:
    daemon.answers[TRACE] = (404, {"Error": "endpoint 'client' not found", "ErrorCode": 0x80070490})
    result = trace(daemon, "--to", "10.0.0.1:80")
    assert (result.exit_code, result.stderr) == (3, "Error: endpoint 'client' not found\n")


@pytest.mark.parametrize(
    ("pod", "status", "message"),
    [
        ("nobody", 3, "endpoint 'nobody' not found"),
        ("far", 1, "endpoint far is on another node"),
        ("web-0", 3, "network namespace '/run/netns/web' not found"),
    ],
)
def test_captures_that_cannot_begin(daemon: StubDaemon, pod: str, status: int, message: str) -> None:
    daemon.answers["GET /v2/switch/endpoints"] = (
        200,
        plain([replace(info, netns_path=info.netns_path and f"{info.netns_path}-nope") for info in INFOS]),
    )
    result = CliRunner().invoke(cli, ["--socket", daemon.socket, "capture", pod])
    assert result.exit_code == status
    assert message.replace("web'", "web-nope'") in result.stderr
    assert len(result.stderr.splitlines()) == 1
