"""Prometheus metrics, collected when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from samewire.node.node import Node
from samewire.node.servicemetrics import ServiceCollector
from samewire.node.stats import all_counters, all_drops
from samewire.vfp.constants import Arrival, Counter, Layer, Reason
from samewire.vfp.rule_names import rule_in

if TYPE_CHECKING:
    from samewire.node.services import Services


class NodeCollector(Collector):
    """Reads the node's counters from the kernel, and its objects from memory."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def collect(self) -> Iterator[Metric]:
        """Yield every metric. Raises KernelError."""
        yield from self._objects()
        yield from self._flows()
        yield self._drops()
        yield from self._audit()

    def _objects(self) -> Iterator[Metric]:
        view = self._node.store.state
        objects = GaugeMetricFamily("samewire_objects", "HNS objects by kind.", labels=["kind"])
        for kind, values in (
            ("networks", view.networks()),
            ("endpoints", view.endpoints()),
            ("namespaces", view.namespaces()),
            ("routes", view.routes()),
            ("loadbalancers", view.load_balancers()),
        ):
            objects.add_metric([kind], len(values))
        yield objects
        yield GaugeMetricFamily("samewire_ports", "Ports of the switch.", value=len(self._node.switch.ports))
        entries = GaugeMetricFamily("samewire_table_entries", "Wanted entries by table.", labels=["table"])
        for table, rows in self._node.switch.wanted.entries.tables().items():
            entries.add_metric([table], len(rows))
        for name, balanced in self._node.switch.balancers.rows.items():
            entries.add_metric([name], len(balanced))
        yield entries

    def _flows(self) -> Iterator[Metric]:
        values = all_counters(self._node.board.maps["sw_counters"])
        for counter in Counter:
            if counter is not Counter.MAX:
                name = f"samewire_{counter.name.lower()}"
                text = counter.name.lower().replace("_", " ")
                yield CounterMetricFamily(name, f"Counter of the switch: {text}.", value=values[counter])
        used = max(values[Counter.FLOW_INSERTS] - values[Counter.FLOWS_REMOVED], 0)
        yield GaugeMetricFamily("samewire_flow_entries", "Entries of the flow table in use.", value=used)
        size = self._node.board.maps["sw_flows"].max_entries
        yield GaugeMetricFamily("samewire_flow_capacity", "Size of the flow table.", value=size)

    def _drops(self) -> Metric:
        labels = ["port", "layer", "reason", "rule", "arrival"]
        drops = CounterMetricFamily("samewire_drops", "Packets dropped by the switch.", labels=labels)
        for key, packets in all_drops(self._node.board.maps["sw_drops"]):
            endpoint = self._node.switch.ports.endpoint_of(key.port)
            drops.add_metric(
                [
                    endpoint or str(key.port),
                    Layer(key.layer).name.lower(),
                    Reason(key.reason).name.lower(),
                    rule_in(Layer(key.layer).name.lower(), key.rule),
                    Arrival(key.arrival).name.lower() if key.arrival else "",
                ],
                packets,
            )
        return drops

    def _audit(self) -> Iterator[Metric]:
        auditor = self._node.auditor
        found = CounterMetricFamily(
            "samewire_audit_differences", "Differences from the kernel found by audits.", labels=["kind"]
        )
        for kind, number in auditor.totals.items():
            found.add_metric([kind], number)
        yield found
        yield GaugeMetricFamily(
            "samewire_audit_duration_seconds", "Time of the last audit.", value=auditor.last.duration_s
        )
        yield GaugeMetricFamily(
            "samewire_degraded_endpoints",
            "Endpoints that cannot be repaired.",
            value=len(auditor.degraded),
        )


def make_registry(node: Node, services: Services | None = None) -> CollectorRegistry:
    """The node's metrics, those of its services, and those of the process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(NodeCollector(node))
    if services is not None:
        registry.register(ServiceCollector(services))
    ProcessCollector(registry=registry)
    return registry


def render(registry: CollectorRegistry) -> bytes:
    """All metrics as text. Raises KernelError."""
    return generate_latest(registry)
