"""What a case of the benchmarks is, what it gets and what it hands back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from benchmarks.machine import IdleGate
from benchmarks.stats import Better, Summary


class Metric(msgspec.Struct, frozen=True):
    """How a metric is read: what it is called in tables, its unit, which direction is better."""

    title: str
    unit: str
    better: Better


METRICS = {
    "stream": Metric("TCP stream", "Gbit/s", "higher"),
    "rr": Metric("TCP RR", "transactions/s", "higher"),
    "udp_rr": Metric("UDP RR", "transactions/s", "higher"),
    "crr": Metric("TCP CRR", "connections/s", "higher"),
    "flow_inserts": Metric("flow inserts a connection", "inserts", "lower"),
    "add_median": Metric("ADD, sequential, median", "ms", "lower"),
    "add_p99": Metric("ADD, sequential, p99", "ms", "lower"),
    "add_parallel": Metric("ADD, 8 in parallel", "pods/s", "higher"),
    "del_median": Metric("DEL, sequential, median", "ms", "lower"),
    "del_p99": Metric("DEL, sequential, p99", "ms", "lower"),
    "del_parallel": Metric("DEL, 8 in parallel", "pods/s", "higher"),
    "first_packet": Metric("first packet of a flow", "ns", "lower"),
    "later_packet": Metric("later packets of a flow", "ns", "lower"),
    "cpu": Metric("daemon CPU time, start and 250 ADDs", "s", "lower"),
    "adds_cpu": Metric("daemon CPU time, 250 ADDs alone", "s", "lower"),
    "start_cpu": Metric("daemon CPU time, start", "s", "lower"),
    "attach_cpu": Metric("CPU time a pod, of 250", "ms", "lower"),
    "memory": Metric("daemon resident memory", "MB", "lower"),
    "service_start": Metric("cold start until the last service answers", "s", "lower"),
    "service_memory": Metric("daemon resident memory", "MB", "lower"),
    "change_p50": Metric("one slice's change, arrival to effect, p50", "ms", "lower"),
    "change_p99": Metric("one slice's change, arrival to effect, p99", "ms", "lower"),
    "change_cpu": Metric("one slice's change, daemon CPU time", "ms", "lower"),
    "modify_cpu": Metric("one policy more or less, daemon CPU time", "ms", "lower"),
    "storm_lost": Metric("1,000 changes/s: services that end up wrong", "", "lower"),
    "storm_backlog": Metric("1,000 changes/s: until all are in, after the last", "s", "lower"),
}


class Comparison(msgspec.Struct, frozen=True):
    """One line of the report: a subject's figure beside a peer's (or beside a fixed ``limit``).

    ``goal`` is the least ratio that passes, the ratio counting how many times better the subject is; None
    where the line is only reported.
    """

    metric: str
    subject: str
    peer: str | None = None
    goal: float | None = None
    stretch: float | None = None
    limit: float | None = None


class Progress(Protocol):
    """Where a case says how far it is."""

    def step(self, text: str) -> None:
        """One step is about to begin."""


@dataclass(frozen=True)
class Context:
    """What a case gets: how long to measure, the gate before each block, where to report."""

    quick: bool
    repetitions: int
    seconds: float
    pods: int
    cpu: int
    gate: IdleGate
    progress: Progress


@dataclass
class Outcome:
    """What a case measured, by (subject, metric), and the subjects that failed, with the reason.

    ``samples``: the single measurements, where subjects were measured in turns; the n-th ones of two subjects are
    a pair.
    """

    measured: dict[tuple[str, str], Summary] = field(default_factory=dict)
    samples: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def fail(self, subject: str, error: BaseException) -> None:
        """Keep the first reason a subject failed for."""
        text = str(error) or repr(error)
        kind = "" if type(error).__name__ == "BenchError" else f"{type(error).__name__}: "
        self.failures.setdefault(subject, kind + text)


class Case(ABC):
    """A group of figures taken together."""

    name: str
    comparisons: tuple[Comparison, ...]

    @abstractmethod
    def steps(self, context: Context) -> int:
        """How many times ``run`` will report progress when nothing fails."""

    @abstractmethod
    def run(self, context: Context) -> Outcome:
        """Measure. Failures of single subjects are part of the outcome; the others go on."""
