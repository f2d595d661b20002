"""CNI ADD and DEL: our client and daemon against Debian's ``bridge`` + ``host-local``.

The plugins are executed as a runtime does. A round of a subject is: a fresh node, ADD of all pods one after
the other, DEL of all, then both again with eight at a time. The pods' namespaces are made beforehand. Outside
the measured time a sample of pods is checked: the interface is there after ADD and gone after DEL.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import native, netns, ours, peers
from benchmarks.case import Case, Comparison, Context, Outcome
from benchmarks.errors import BenchError
from benchmarks.netns import Sandbox
from benchmarks.samewire_node import SamewireNode, outbound_nat
from benchmarks.stats import interleaved, median_of, percentile_of

PARALLEL = 8
SUBNET = "10.244.0.0/22"
CHECK_EVERY = 20


@dataclass(frozen=True)
class Plugin:
    """A plugin ready to be executed for pods of one node."""

    executable: Path
    conf: Path
    env: Mapping[str, str]
    node: str
    tmp: Path

    def execute(self, verb: str, pods: Mapping[str, str], workers: int = 1) -> native.CniTimes:
        """One execution per pod. Raises ``BenchError`` if any fails."""
        return native.execute_cni(
            verb, self.executable, self.conf, pods, self.node, self.tmp, self.env, workers
        )


class Subject(ABC):
    """One way to attach pods; opened on a fresh node for each round."""

    name: str
    label: str

    @abstractmethod
    def open(self, sandbox: Sandbox) -> Plugin:
        """Build the node."""

    @abstractmethod
    def close(self) -> None:
        """End what ``open`` started (the sandbox removes itself)."""


class BridgeSubject(Subject):
    """The ``bridge`` plugin, with or without its masquerade rules."""

    def __init__(self, name: str, label: str, *, ip_masq: bool) -> None:
        self.name = name
        self.label = label
        self._ip_masq = ip_masq

    def open(self, sandbox: Sandbox) -> Plugin:
        node = sandbox.netns("node")
        bridge = peers.BridgePlugin(sandbox.tmp, node, SUBNET, ip_masq=self._ip_masq)
        return Plugin(bridge.plugin, bridge.conf, bridge.env, node, bridge.tmp)

    def close(self) -> None:
        """Nothing runs on such a node."""


class SamewireSubject(Subject):
    """The Samewire client and daemon; every endpoint carries OutBoundNAT."""

    name = ours.NAME
    label = "cni-ours"

    def __init__(self) -> None:
        self.daemon: SamewireNode | None = None

    def open(self, sandbox: Sandbox) -> Plugin:
        node, _ = peers.outside_wire(sandbox)
        self.daemon = daemon = SamewireNode(sandbox.tmp, "a", node, "eth0")
        daemon.start()
        daemon.create_network(ours.overlay("bench", SUBNET))
        conf = daemon.write_conf("bench", {"subnet": SUBNET}, [outbound_nat(peers.CLUSTER)])
        return Plugin(daemon.plugin, conf, daemon.env, node, daemon.tmp)

    def close(self) -> None:
        if self.daemon is not None:
            self.daemon.stop()


def container_ids(pods: list[str]) -> dict[str, str]:
    """Fresh container ids, as containerd makes them, for these namespaces."""
    return {secrets.token_hex(32): pod for pod in pods}


def check_attached(pods: list[str], *, attached: bool) -> None:
    """Whether a sample of pods has (has not) its interface. Raises ``BenchError``."""
    for pod in pods[::CHECK_EVERY]:
        has = '"eth0"' in netns.ip(pod, "-j", "link", "show")
        if has != attached:
            raise BenchError(f"{pod}: eth0 is {'still' if has else 'not'} there")
        if attached:
            peers.pod_address(pod)


class Cni(Case):
    """ADD and DEL of many pods, sequential and in parallel."""

    name = "cni"

    def __init__(self, comparisons: tuple[Comparison, ...]) -> None:
        self.comparisons = comparisons
        self._subjects: tuple[Subject, ...] = (
            BridgeSubject("bridge", "cni-bridge", ip_masq=False),
            BridgeSubject("bridge + ipMasq", "cni-masq", ip_masq=True),
            SamewireSubject(),
        )

    def _rounds(self, context: Context) -> int:
        return 1 if context.quick else 2

    def steps(self, context: Context) -> int:
        return 1 + self._rounds(context) * len(self._subjects) * 4

    def run(self, context: Context) -> Outcome:
        outcome = Outcome()
        times: dict[tuple[str, str], list[float]] = {}
        with Sandbox("cni") as sandbox:
            context.progress.step(f"cni: {context.pods} pod namespaces")
            pods = sandbox.many([f"p{index}" for index in range(context.pods)])
            for repetition in range(self._rounds(context)):
                for subject in interleaved(self._subjects, repetition):
                    if subject.name in outcome.failures:
                        continue
                    try:
                        self._round(context, subject, pods, times)
                    except Exception as error:  # whatever it is, it is this subject's failure
                        outcome.fail(subject.name, error)
        for (name, metric), samples in times.items():
            outcome.measured[name, metric] = (
                percentile_of(samples, 99) if metric.endswith("_p99") else median_of(samples)
            )
        return outcome

    def _round(
        self, context: Context, subject: Subject, pods: list[str], times: dict[tuple[str, str], list[float]]
    ) -> None:
        with Sandbox(subject.label) as sandbox:
            try:
                plugin = subject.open(sandbox)
                for workers in (1, PARALLEL):
                    ids = container_ids(pods)
                    for verb in ("ADD", "DEL"):
                        how = "sequential" if workers == 1 else f"{workers} in parallel"
                        context.progress.step(f"cni: {verb} of {len(pods)} pods, {how}, {subject.name}")
                        context.gate.wait()
                        result = plugin.execute(verb, ids, workers)
                        check_attached(pods, attached=verb == "ADD")
                        self._keep(times, subject.name, verb, workers, result)
            finally:
                subject.close()

    @staticmethod
    def _keep(
        times: dict[tuple[str, str], list[float]],
        subject: str,
        verb: str,
        workers: int,
        result: native.CniTimes,
    ) -> None:
        kept = verb.lower()
        if workers == 1:
            for metric in (f"{kept}_median", f"{kept}_p99"):
                times.setdefault((subject, metric), []).extend(result.ms)
        else:
            times.setdefault((subject, f"{kept}_parallel"), []).append(len(result.ms) / result.wall_s)
