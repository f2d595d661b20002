"""EndpointSlices of a Service, derived from pods as Kubernetes' controller derives them (pure).

A slice holds endpoints of one family whose ports are the same numbers: a named target port may be another number in
each pod. Pods that ended or have no address yet are left out; pods that are going away are in, marked so.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from samewire.kube.admission import Wanted, WantedPort
from samewire.kube.model import (
    Endpoint,
    EndpointConditions,
    EndpointHints,
    EndpointPort,
    EndpointSlice,
    Family,
    Hint,
    Node,
    Pod,
    ServiceSpec,
    SliceLabels,
    SliceMetadata,
    TargetRef,
)

MAX_ENDPOINTS: Final = 100

_SAME_ZONE: Final = frozenset({"PreferClose", "PreferSameZone", "PreferSameNode"})


class PodIndex:
    """Pods by namespace and label, so that a Service finds its own without looking at all."""

    def __init__(self, pods: Iterable[Pod]) -> None:
        self._by_label: dict[tuple[str, str, str], list[Pod]] = {}
        for pod in sorted(pods, key=lambda item: item.key):
            if pod.finished or not pod.addresses:
                continue
            for name, value in pod.metadata.labels.items():
                self._by_label.setdefault((pod.metadata.namespace, name, value), []).append(pod)

    def select(self, namespace: str, selector: Mapping[str, str]) -> Iterator[Pod]:
        """The pods that have all these labels, in the order of their names. An empty selector selects nothing."""
        found = [self._by_label.get((namespace, *label), []) for label in selector.items()]
        wanted = selector.items()
        for pod in min(found, key=len, default=()):
            if wanted <= pod.metadata.labels.items():
                yield pod


def derive_slices(wanted: Wanted, pods: PodIndex, nodes: Mapping[str, Node]) -> list[EndpointSlice]:
    """The slices of an admitted Service. ``nodes``: by name, for zones."""
    service = wanted.service
    if service.spec.type == "ExternalName" or not wanted.spec.selector:
        return []
    groups: dict[tuple[Family, tuple[EndpointPort, ...]], list[Endpoint]] = {}
    for pod in pods.select(service.metadata.namespace, wanted.spec.selector):
        ports = tuple(_ports(wanted.spec.ports, pod))
        for family in service.spec.ip_families:
            addresses = tuple(text for text in pod.addresses if _family(text) == family)
            if addresses:
                endpoint = _endpoint(service.spec, pod, addresses[:1], nodes)
                groups.setdefault((family, ports), []).append(endpoint)
    return [
        _slice(wanted, family, ports, number, endpoints[start : start + MAX_ENDPOINTS])
        for (family, ports), endpoints in groups.items()
        for number, start in enumerate(range(0, len(endpoints), MAX_ENDPOINTS))
    ]


def _ports(ports: Iterable[WantedPort], pod: Pod) -> Iterator[EndpointPort]:
    """The Service's ports as numbers of this pod; a name that the pod does not declare is left out."""
    for port in ports:
        target = port.target_port or port.port
        if isinstance(target, str) and target.isdecimal():
            target = int(target)
        if isinstance(target, str):
            declared = (item for item in pod.ports if item.name == target and item.protocol == port.protocol)
            found = next(declared, None)
            if found is None:
                continue
            target = found.container_port
        yield EndpointPort(port.name, port.protocol, target)


def _endpoint(spec: ServiceSpec, pod: Pod, addresses: tuple[str, ...], nodes: Mapping[str, Node]) -> Endpoint:
    terminating = pod.metadata.deletion_timestamp is not None
    ready = spec.publish_not_ready_addresses or (pod.ready and not terminating)
    node = nodes.get(pod.spec.node_name)
    zone = (node.zone if node is not None else "") or None
    hints = None
    if ready and spec.traffic_distribution in _SAME_ZONE:
        for_nodes = spec.traffic_distribution == "PreferSameNode" and pod.spec.node_name
        hints = EndpointHints(
            for_zones=(Hint(zone),) if zone else (),
            for_nodes=(Hint(pod.spec.node_name),) if for_nodes else (),
        )
    return Endpoint(
        addresses=addresses,
        conditions=EndpointConditions(ready, pod.ready, terminating),
        node_name=pod.spec.node_name or None,
        zone=zone,
        hints=hints,
        target_ref=TargetRef(pod.metadata.uid) if pod.metadata.uid else None,
    )


def _slice(
    wanted: Wanted, family: Family, ports: tuple[EndpointPort, ...], number: int, endpoints: list[Endpoint]
) -> EndpointSlice:
    service = wanted.service
    group = hashlib.sha256(repr((family, ports)).encode()).hexdigest()[:8]
    name = f"{service.metadata.name}-{group}-{number}" if number else f"{service.metadata.name}-{group}"
    labels = SliceLabels(
        service_name=service.metadata.name,
        service_proxy_name=service.metadata.labels.service_proxy_name,
        headless="" if service.headless else None,
    )
    return EndpointSlice(
        metadata=SliceMetadata(name=name, namespace=service.metadata.namespace, labels=labels),
        address_type=family,
        endpoints=tuple(endpoints),
        ports=ports,
    )


def _family(text: str) -> Family:
    return "IPv6" if ipaddress.ip_address(text).version == 6 else "IPv4"
