"""The native programs: they compile without a warning, move data over both families, execute plugins."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from benchmarks import native, netns
from benchmarks.errors import BenchError

ADDRESSES = {"ipv4": "127.0.0.1", "ipv6": "::1"}


@pytest.fixture(scope="module", autouse=True)
def build(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The programs, built afresh and apart from those of a benchmark run."""
    native.BUILD = tmp_path_factory.mktemp("build")
    native.build()


def _free_port(address: str) -> int:
    """A port that nobody uses."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # Below those that the kernel hands out and those that the client calls from, and not where another run of these
    # tests begins.
    for port in range(10000 + os.getpid() % 100 * 90, 20000):
        try:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(family, kind) as probe:
                    probe.bind((address, port))
        except OSError:
            continue
        return port
    raise AssertionError("no free port")


def _measure(monkeypatch: pytest.MonkeyPatch, address: str, mode: str, port: int) -> native.LoadResult:
    # Without a namespace of its own: "/proc/self/ns/net" is the one we are in, but entering it wants root.
    monkeypatch.setattr(netns, "path", lambda name: name)
    monkeypatch.setattr(native, "_namespace", lambda name: [])
    ends = native.Endpoints("", "", address)
    return native.measure(ends, mode, 0.05, min(os.sched_getaffinity(0)), port)


@pytest.mark.parametrize("family", ADDRESSES)
@pytest.mark.parametrize("mode", ["stream", "rr", "crr", "udp_rr"])
def test_load_moves_data(monkeypatch: pytest.MonkeyPatch, mode: str, family: str) -> None:
    address = ADDRESSES[family]
    result = _measure(monkeypatch, address, mode, _free_port(address))
    assert result.mode == mode
    assert result.count > 0
    assert result.seconds >= 0.05
    assert result.rate == pytest.approx(result.count / result.seconds, rel=0.01)


def test_a_client_without_a_server_fails_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    port = _free_port("127.0.0.1")
    with pytest.raises(BenchError, match=f"connect to port {port}: Connection refused"):
        netns.run([native.BUILD / "load", "-c", "-m", "rr", "-a", "127.0.0.1", "-P", str(port), "-t", "0.05"])


def test_a_server_that_cannot_listen_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    port = _free_port("127.0.0.1")
    with socket.create_server(("0.0.0.0", port)), pytest.raises(BenchError, match="Address already in use"):
        _measure(monkeypatch, "127.0.0.1", "rr", port)


@pytest.mark.parametrize(
    "arguments", [[], ["-s"], ["-c", "-m", "rr", "-a", "127.0.0.1", "-P", "9"], ["-s", "-m", "fast"]]
)
def test_load_refuses_incomplete_arguments(arguments: list[str]) -> None:
    with pytest.raises(BenchError, match=r"usage:|unknown mode"):
        netns.run([native.BUILD / "load", *arguments])


def _plugin(tmp_path: Path, script: str) -> tuple[Path, Path]:
    plugin, conf = tmp_path / "plugin", tmp_path / "conf"
    plugin.write_text(f"#!/bin/sh\n{script}\n")
    plugin.chmod(plugin.stat().st_mode | stat.S_IXUSR)
    conf.write_text('{"type": "plugin"}')
    return plugin, conf


def _execute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, workers: int = 1
) -> native.CniTimes:
    monkeypatch.setattr(native, "_namespace", lambda name: [])
    plugin, conf = _plugin(tmp_path, script)
    pods = {f"id{index}": f"pod{index}" for index in range(6)}
    env = {"CNI_PATH": "/plugins", "CNI_ARGS": "stale", "PATH": os.environ["PATH"], "OUT": str(tmp_path)}
    return native.execute_cni("ADD", plugin, conf, pods, "node", tmp_path, env, workers)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_plugin_is_executed_as_a_runtime_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: int
) -> None:
    script = '{ env | grep ^CNI_ | sort; cat; echo; } > "$OUT/$CNI_CONTAINERID"; echo "{}"'
    times = _execute(monkeypatch, tmp_path, script, workers)
    assert len(times.ms) == 6
    assert all(0 < each <= times.wall_s * 1000 for each in times.ms)
    assert (tmp_path / "id4").read_text().splitlines() == [
        "CNI_COMMAND=ADD",
        "CNI_CONTAINERID=id4",
        "CNI_IFNAME=eth0",
        "CNI_NETNS=/run/netns/pod4",
        "CNI_PATH=/plugins",
        '{"type": "plugin"}',
    ]


def test_a_failing_plugin_is_reported_with_its_own_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = r"""[ "$CNI_CONTAINERID" = id2 ] || exit 0; printf '{"msg":\n"no room \\o/"}'; exit 1"""
    with pytest.raises(BenchError, match=r'plugin ADD: 1 of 6 failed: {"msg":\n"no room \\o/"}'):
        _execute(monkeypatch, tmp_path, script)


def test_more_output_than_a_pipe_holds_does_not_hang(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    times = _execute(monkeypatch, tmp_path, "head -c 200000 /dev/zero")
    assert times.failed == 0
