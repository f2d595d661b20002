"""Metrics of services: kube-proxy's names where they fit, and what only we have."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from samewire.proxy.figures import Histogram

if TYPE_CHECKING:
    from samewire.node.services import Services

_PREFIX = "kubeproxy"


class ServiceCollector(Collector):
    """Reads the proxy's figures and the state of the source."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        yield from self._kube_proxy()
        yield from self._own()
        yield from self._source()

    def _kube_proxy(self) -> Iterator[Metric]:
        figures = self._services.proxy.figures
        yield _histogram(
            f"{_PREFIX}_sync_proxy_rules_duration_seconds",
            "Time to program one batch of services.",
            figures.syncs,
        )
        yield _histogram(
            f"{_PREFIX}_network_programming_duration_seconds",
            "From the change of a pod or service to its effect in the switch.",
            figures.programming,
        )
        for name, text, value in (
            ("last_timestamp_seconds", "When services were last programmed.", figures.last_sync_s),
            ("last_queued_timestamp_seconds", "When a change last arrived.", figures.last_queued_s),
            (
                "service_changes_pending",
                "Services with changes that are not programmed.",
                figures.services_pending,
            ),
        ):
            yield GaugeMetricFamily(f"{_PREFIX}_sync_proxy_rules_{name}", text, value=value)
        for name, text, value in (
            ("service_changes", "Changes of Services seen.", figures.service_changes),
            ("endpoint_changes", "Changes of EndpointSlices seen.", figures.slice_changes),
        ):
            yield CounterMetricFamily(f"{_PREFIX}_sync_proxy_rules_{name}", text, value=value)
        lacking = GaugeMetricFamily(
            f"{_PREFIX}_sync_proxy_rules_no_local_endpoints_total",
            "Services with the traffic policy Local that have endpoints, and none on this node.",
            labels=["traffic_policy"],
        )
        for policy, services in figures.without_local.items():
            lacking.add_metric([policy], len(services))
        yield lacking
        yield from self._health()

    def _health(self) -> Iterator[Metric]:
        answers = self._services.health.answers
        for name in ("healthz", "livez"):
            found = CounterMetricFamily(f"{_PREFIX}_proxy_{name}", f"Answers of /{name}.", labels=["code"])
            for (path, status), number in answers.items():
                if path == name:
                    found.add_metric([str(status)], number)
            yield found

    def _own(self) -> Iterator[Metric]:
        figures = self._services.proxy.figures
        yield _histogram(
            "samewire_service_change_duration_seconds",
            "From the arrival of a change at this node to its effect in the switch, by service.",
            figures.changes,
        )
        statuses = figures.statuses.values()
        yield GaugeMetricFamily("samewire_services", "Services that are balanced here.", value=len(statuses))
        failing = sum(1 for status in statuses if status.error)
        yield GaugeMetricFamily(
            "samewire_services_failing",
            "Services that are not in the switch as they should be.",
            value=failing,
        )
        yield CounterMetricFamily(
            "samewire_service_failures", "Failed attempts to program a service.", value=figures.failures
        )

    def _source(self) -> Iterator[Metric]:
        source = self._services.source
        states = GaugeMetricFamily(
            "samewire_kubernetes_connected", "Whether events of a kind arrive now.", labels=["kind"]
        )
        objects = GaugeMetricFamily("samewire_kubernetes_objects", "Known objects by kind.", labels=["kind"])
        for health in source.health():
            states.add_metric([health.kind], float(health.connected))
            objects.add_metric([health.kind], health.objects)
        yield states
        yield objects
        events = CounterMetricFamily(
            "samewire_kubernetes_events", "What happened to a kind since the start.", labels=["kind", "what"]
        )
        for kind, counts in source.counts().items():
            for what in counts.__struct_fields__:
                events.add_metric([kind, what], getattr(counts, what))
        yield events


def _histogram(name: str, text: str, values: Histogram) -> HistogramMetricFamily:
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*values.bounds, inf), values.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == inf else str(bound), total))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=values.sum)
