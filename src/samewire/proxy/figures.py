"""What the proxy counts, without a metrics library: `samewire.node.metrics` turns it into Prometheus' form."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec
import structlog

from samewire.kube.model import Key

log = structlog.get_logger(__name__)

# kube-proxy's
SYNC_BUCKETS_S: Final = tuple(0.001 * 2**power for power in range(15))
PROGRAMMING_BUCKETS_S: Final = (
    0.25,
    0.5,
    *(float(second) for second in range(1, 60)),
    *(float(second) for second in range(60, 120, 5)),
    *(float(second) for second in range(120, 301, 30)),
)
# an EndpointSlice's event to its effect, which is a matter of milliseconds here
CHANGE_BUCKETS_S: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0)


class Histogram:
    """Counts of values up to each bound, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Add a value."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)


class ServiceStatus(msgspec.Struct, gc=False):
    """How one service stands. ``changed_s``: Unix time of the last change in the switch, ``latency_s``: from the
    arrival of the event to that change; both 0 before the first. ``error``: why its present state is not in the switch.
    ``attempts``: failures in a row.
    """

    changed_s: float = 0.0
    latency_s: float = 0.0
    error: str = ""
    attempts: int = 0


class Figures:
    """All figures of one proxy."""

    def __init__(self) -> None:
        self.syncs = Histogram(SYNC_BUCKETS_S)
        self.programming = Histogram(PROGRAMMING_BUCKETS_S)
        self.changes = Histogram(CHANGE_BUCKETS_S)
        self.last_sync_s = 0.0
        self.last_queued_s = 0.0
        self.service_changes = 0
        self.slice_changes = 0
        self.services_pending = 0
        self.failures = 0
        self.statuses: dict[Key, ServiceStatus] = {}
        self.without_local: dict[str, set[Key]] = {"internal": set(), "external": set()}
        """Services whose traffic policy is Local, with endpoints, and with none here."""

    def status(self, key: Key) -> ServiceStatus:
        """A service's status, made if it has none."""
        found = self.statuses.get(key)
        if found is None:
            found = self.statuses[key] = ServiceStatus()
        return found

    def lacks(self, key: Key, error: str, *, again: bool = False) -> ServiceStatus:
        """Note what a service lacks, "" = nothing. The same counts one more time only where it was tried ``again``."""
        status = self.status(key)
        fresh = error != "" and status.error != error
        if fresh:
            log.warning("a service is not in the switch as it should be", service="/".join(key), error=error)
        self.failures += fresh or again
        status.error = error
        return status

    def forget(self, key: Key) -> None:
        """A service is gone."""
        self.statuses.pop(key, None)
        for services in self.without_local.values():
            services.discard(key)

    def note_local(self, key: Key, internal: bool, external: bool) -> None:
        """Note whether a service lacks endpoints here that its policies want."""
        for name, lacking in (("internal", internal), ("external", external)):
            if lacking:
                self.without_local[name].add(key)
            else:
                self.without_local[name].discard(key)


def trigger_time_s(text: str) -> float:
    """The Unix time in an EndpointSlice's trigger-time annotation; 0 when there is none to read."""
    if not text:
        return 0.0
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0
