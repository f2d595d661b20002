"""``samewire capture`` on a real pod."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.utils import PcapNgReader

from tests.support.node import can_ping, poll
from tests.support.two_nodes import CLIENT, NEAR_SUBNETS, WEB, World, in_pod, run

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack, tmp_path_factory.mktemp("world"))


@contextmanager
def capturing(world: World, pod: str, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        sys.executable,
        "-m",
        "samewire.cli.main",
        "--socket",
        World.socket(world.near),
        "capture",
        pod,
    ]
    with subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def wait_for_socket(pod: str) -> None:
    """Wait until somebody has a packet socket in the pod."""

    def open_sockets() -> bool:
        lines = in_pod(pod, lambda: Path("/proc/thread-self/net/packet").read_text().splitlines())
        return len(lines) > 1

    poll("the capture runs", open_sockets)


def test_both_directions(world: World, tmp_path: Path) -> None:
    file = tmp_path / "web.pcapng"
    with capturing(world, "shop/web", "-w", str(file)) as process:
        wait_for_socket(world.web)
        assert can_ping(world.client, WEB, count=3)
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=20)
    assert process.returncode == 0
    assert b"packets of shop/web (eth0)" in message
    with PcapNgReader(str(file)) as reader:
        packets = [(str(p.direction), p[IP].src, p[IP].dst, p[ICMP].type) for p in reader if ICMP in p]
    assert packets == [("1", CLIENT, WEB, 8), ("2", WEB, CLIENT, 0)] * 3


def test_into_a_pipe_and_so_many(world: World) -> None:
    with capturing(world, WEB, "-w", "-", "--count", "2", stdout=subprocess.PIPE) as process:
        wait_for_socket(world.web)
        assert can_ping(world.client, WEB)
        data, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    done = subprocess.run(["tcpdump", "-nn", "-r", "-"], input=data, capture_output=True, check=True)
    assert len(done.stdout.splitlines()) == 2


def test_as_text_for_some_time(world: World) -> None:
    with capturing(world, "web", "--seconds", "5", stdout=subprocess.PIPE) as process:
        wait_for_socket(world.web)
        assert can_ping(world.client, WEB)
        text, _ = process.communicate(timeout=20)
    lines = [line.split(maxsplit=1)[1] for line in text.decode().splitlines() if "icmp " in line]
    assert len(lines) == 2
    assert lines[0].startswith(f"in  icmp {CLIENT} > {WEB} id ")
    assert lines[1].startswith(f"out icmp {WEB} > {CLIENT} id ")


def test_termination_leaves_a_whole_file(world: World, tmp_path: Path) -> None:
    file = tmp_path / "web.pcapng"
    with capturing(world, "web", "-w", str(file)) as process:
        wait_for_socket(world.web)
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 0
    subprocess.run(["tcpdump", "-r", str(file)], capture_output=True, check=True)


def test_a_pod_that_goes_ends_its_capture(world: World, tmp_path: Path) -> None:
    pod = world.pod(world.near, "shop/short")
    file = tmp_path / "short.pcapng"
    with capturing(world, "shop/short", "-w", str(file)) as process:
        wait_for_socket(pod)
        world.near.delete("c-short", pod, world.near.conf("pods", *NEAR_SUBNETS))
        _, message = process.communicate(timeout=20)
    assert process.returncode == 0
    assert b"the pod is gone" in message
    subprocess.run(["tcpdump", "-r", str(file)], capture_output=True, check=True)


def test_a_file_that_cannot_be_written(world: World, tmp_path: Path) -> None:
    result = run(world.near, "capture", "web", "-w", str(tmp_path / "none" / "x"))
    assert result.exit_code == 1
    assert "No such file or directory" in result.stderr
