"""``lab top``: what every pod uses, from its cgroups and its namespace's counters."""

from __future__ import annotations

import time
from pathlib import Path

from msgspec import Struct

from samewire.errors import NotFound
from samewire.lab.cgroups import usage
from samewire.lab.pods import PAUSE
from samewire.lab.state import LabState, PodState


class PodUsage(Struct, frozen=True):
    """One pod at one moment. Rates are over the time since the sample before, 0 in the first.

    ``memory_bytes`` is -1 where no memory controller is available; network figures are those of the pod's
    eth0 (0 for hostNetwork pods, which have none of their own). ``oom_score_adj`` is read from the first
    container: where the machine withholds CAP_SYS_RESOURCE it stays above what the QoS class asks for.
    """

    pod: str
    node: str
    qos: str
    oom_score_adj: int
    containers: int
    running: int
    cpu_s: float
    cpu_percent: float
    memory_bytes: int
    rx_bytes: int
    tx_bytes: int
    rx_bytes_per_s: float
    tx_bytes_per_s: float


class Sampler:
    """Takes samples of all pods of a lab, each with the rates since the last."""

    def __init__(self, state: LabState) -> None:
        self._state = state
        self._last: dict[str, PodUsage] = {}
        self._last_time_s = 0.0

    def sample(self) -> list[PodUsage]:
        """Read everything now."""
        now_s = time.monotonic()
        elapsed_s = now_s - self._last_time_s
        found = [self._read(pod, elapsed_s) for pod in self._state.pods]
        self._last = {item.pod: item for item in found}
        self._last_time_s = now_s
        return found

    def _read(self, pod: PodState, elapsed_s: float) -> PodUsage:
        names = [container.name for container in pod.pod.template.containers]
        pids = [_pid(pod, name) for name in names]
        used = usage(pod.cgroups)
        inside = () if pod.pod.template.host_network else (_pid(pod, PAUSE), *pids)
        received, sent = _network_bytes(next(filter(None, inside), 0))
        before = self._last.get(pod.pod.key)
        return PodUsage(
            pod=pod.pod.key,
            node=pod.pod.node,
            qos=pod.pod.template.qos,
            oom_score_adj=_oom_score_adj(pids[0]),
            containers=len(names),
            running=sum(pid > 0 for pid in pids),
            cpu_s=used.cpu_s,
            cpu_percent=_rate(used.cpu_s, before.cpu_s if before else None, elapsed_s) * 100,
            memory_bytes=used.memory_bytes,
            rx_bytes=received,
            tx_bytes=sent,
            rx_bytes_per_s=_rate(received, before.rx_bytes if before else None, elapsed_s),
            tx_bytes_per_s=_rate(sent, before.tx_bytes if before else None, elapsed_s),
        )


def parse_net_dev(text: str, interface: str) -> tuple[int, int]:
    """Bytes received and sent by an interface, from the text of /proc/<pid>/net/dev; zeros when it is absent."""
    for line in text.splitlines():
        name, colon, counters = line.partition(":")
        if colon and name.strip() == interface:
            fields = counters.split()
            return int(fields[0]), int(fields[8])
    return 0, 0


def _rate(now: float, before: float | None, elapsed_s: float) -> float:
    if before is None or elapsed_s <= 0:
        return 0.0
    return max(0.0, now - before) / elapsed_s


def _pid(pod: PodState, process: str) -> int:
    try:
        return pod.pid(process)
    except NotFound:
        return 0


def _network_bytes(pid: int) -> tuple[int, int]:
    try:
        return parse_net_dev(Path(f"/proc/{pid}/net/dev").read_text(), "eth0") if pid else (0, 0)
    except OSError:
        return 0, 0


def _oom_score_adj(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())
    except OSError:
        return 0
