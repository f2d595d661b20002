"""When a capture ends: whatever is done to the clock, and with all that came before."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from samewire.cli import capture
from samewire.errors import Invalid
from samewire.kernel import packet_socket
from samewire.kernel.packet_socket import CapturedPacket

DAY_NS = 86_400 * 10**9


class Source:
    """A pod's interface, and the clocks: each look takes a second. ``jump_ns``: how the clock is set at the third."""

    def __init__(self, jump_ns: int = 0, *, busy: bool = True) -> None:
        self.looks = 0
        self.busy = busy
        self.jump_ns = jump_ns
        self.waiting: list[CapturedPacket] = []

    @property
    def passed_ns(self) -> int:
        return self.looks * 10**9

    def now_ns(self) -> int:
        return 50 * DAY_NS + self.passed_ns + (self.jump_ns if self.looks >= 3 else 0)

    def receive(self, timeout_s: float) -> CapturedPacket | None:
        """A packet that has come just now, or one that has waited."""
        self.looks += 1
        assert self.looks < 100, "no end"
        if self.waiting:
            return self.waiting.pop(0)
        return CapturedPacket(self.now_ns(), b"frame", False) if self.busy else None


def run(monkeypatch: pytest.MonkeyPatch, source: Source, seconds: float) -> int:
    monkeypatch.setattr(time, "time_ns", source.now_ns)
    monkeypatch.setattr(time, "monotonic_ns", lambda: source.passed_ns)
    taken: list[CapturedPacket] = []
    pretended: Any = source
    with capture._Limit(seconds) as limit:
        assert capture._run(pretended, taken.append, None, limit) == len(taken)
    return len(taken)


@pytest.mark.parametrize("busy", [True, False])
@pytest.mark.parametrize("jump_ns", [0, DAY_NS, -DAY_NS])
def test_a_clock_that_is_set_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, jump_ns: int, busy: bool
) -> None:
    source = Source(jump_ns, busy=busy)
    assert run(monkeypatch, source, 10) == (9 if busy else 0)
    assert source.looks == 10


def test_what_came_before_the_end_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source()
    start_ns = source.now_ns()
    source.waiting = [CapturedPacket(start_ns + number, b"frame", False) for number in range(20)]
    assert run(monkeypatch, source, 10) == 20


class _Opened(ExitStack):
    """A packet socket whose opener is told to end as soon as others can see it."""

    def __init__(self, interface: str, netns_fd: int) -> None:
        super().__init__()
        signal.raise_signal(signal.SIGTERM)

    def receive(self, timeout_s: float) -> None:
        """Nothing comes."""

    def statistics(self) -> tuple[int, int]:
        return 0, 0


def test_a_signal_that_comes_with_the_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It ends the capture, not the process: the file is whole."""

    def unheard(number: int, frame: object) -> None:
        pytest.fail("the process would have ended")

    info = SimpleNamespace(
        interface="eth0", netns_path="/proc/self/ns/net", label="web", network="pods", vlan=0, id="x"
    )
    monkeypatch.setattr(capture, "_find", lambda socket, pod: info)
    monkeypatch.setattr(packet_socket, "PacketSocket", _Opened)
    file = tmp_path / "web.pcapng"
    before = signal.signal(signal.SIGTERM, unheard)
    try:
        result = CliRunner().invoke(capture.capture, ["web", "-w", str(file)], obj="")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (result.exit_code, result.output) == (0, "0 packets of web (eth0)\n")
    assert file.read_bytes()[:4] == b"\x0a\x0d\x0d\x0a"


def test_a_disk_that_is_full_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    info = SimpleNamespace(
        interface="eth0", netns_path="/proc/self/ns/net", label="web", network="pods", vlan=0, id="x"
    )
    monkeypatch.setattr(capture, "_find", lambda socket, pod: info)
    monkeypatch.setattr(packet_socket, "PacketSocket", _Opened)
    result = CliRunner().invoke(capture.capture, ["web", "-w", "/dev/full"], obj="")
    assert isinstance(result.exception, Invalid)
    assert str(result.exception) == "/dev/full: No space left on device"
