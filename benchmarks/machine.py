"""The machine under the benchmarks: waiting until it is idle, a private CPU share, what it is."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks.stats import idle_fraction

IDLE_WANTED = 0.93
POLL_S = 0.1

# (where, file, the highest value): cgroup v1's cpu controller, then v2.
_SHARES = (
    (Path("/sys/fs/cgroup/cpu"), "cpu.shares", "262144"),
    (Path("/sys/fs/cgroup"), "cpu.weight", "10000"),
)


class Environment(msgspec.Struct, frozen=True):
    """What a reader needs to judge a run by."""

    kernel: str
    machine: str
    cpus: int
    cpu_model: str
    pinned_cpu: int
    private_cpu_share: bool
    repetitions: int
    seconds_each: float
    noisy_blocks: int
    blocks: int
    steal_percent: float


def pinned_cpu() -> int:
    """The CPU that clients and servers share: the last we may use (the first serves most interrupts)."""
    return max(os.sched_getaffinity(0))


def cpu_ticks() -> list[int]:
    """The ``cpu`` line of /proc/stat."""
    with Path("/proc/stat").open() as stat:
        return [int(word) for word in stat.readline().split()[1:]]


def cpu_model() -> str:
    """The processor's name for itself."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


class IdleGate:
    """Lets a block of measurements begin once the machine was ``IDLE_WANTED`` idle for ``window_s``.

    After ``limit_s`` it lets the block begin all the same and counts it as noisy: the report says so.
    """

    def __init__(self, window_s: float, limit_s: float) -> None:
        self._window_s = window_s
        self._limit_s = limit_s
        self._first_ticks = cpu_ticks()
        self.blocks = 0
        self.noisy = 0

    def wait(self) -> bool:
        """True if the machine was idle, False if the limit passed first."""
        self.blocks += 1
        deadline = time.monotonic() + self._limit_s
        while True:
            before = cpu_ticks()
            time.sleep(self._window_s)
            if idle_fraction(before, cpu_ticks()) >= IDLE_WANTED:
                return True
            if time.monotonic() >= deadline:
                self.noisy += 1
                return False
            time.sleep(POLL_S)

    def steal_percent(self) -> float:
        """The share of CPU time the hypervisor took since this gate was made."""
        spent = [new - old for old, new in zip(self._first_ticks, cpu_ticks(), strict=True)]
        return 100 * spent[7] / max(1, sum(spent[:8]))


def _own_cgroup(root: Path, file: str) -> Path:
    """The directory below ``root`` that this process is in (cgroups(7), /proc/pid/cgroup)."""
    controller = "cpu" if file == "cpu.shares" else ""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return root / path.lstrip("/")
    return root


@contextlib.contextmanager
def cpu_share() -> Iterator[bool]:
    """Runs this process and its children in a private cgroup with the highest CPU share; yields if it can.

    Not possible without a writable cpu controller, as in many containers; the benchmarks run without, then.
    """
    for root, file, share in _SHARES:
        group = root / f"swb-{os.getpid()}"
        try:
            home = _own_cgroup(root, file)
            group.mkdir()
        except OSError:
            continue
        try:
            (group / file).write_text(share)
            (group / "cgroup.procs").write_text(str(os.getpid()))
        except OSError:
            group.rmdir()
            continue
        try:
            yield True
        finally:
            (home / "cgroup.procs").write_text(str(os.getpid()))
            _remove(group)
        return
    yield False


def _remove(group: Path) -> None:
    """A cgroup stays busy for a moment after its last process was reaped."""
    deadline = time.monotonic() + 5
    while True:
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(POLL_S)
        else:
            return
