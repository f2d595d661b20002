"""Services, EndpointSlices and Nodes for tests, in few words."""

from __future__ import annotations

from typing import Any

from samewire.kube.model import (
    ClientIPConfig,
    Endpoint,
    EndpointConditions,
    EndpointHints,
    EndpointPort,
    EndpointSlice,
    Hint,
    LoadBalancerIngress,
    LoadBalancerStatus,
    Service,
    ServiceAnnotations,
    ServiceLabels,
    ServiceMetadata,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
    SessionAffinityConfig,
    SliceAnnotations,
    SliceLabels,
    SliceMetadata,
    TargetRef,
)
from samewire.proxy.topology import Place

HERE, THERE = "node-a", "node-b"
PLACE = Place(HERE, "zone-1")


def service(
    name: str = "web",
    *,
    ips: tuple[str, ...] = ("10.96.0.10",),
    ports: tuple[ServicePort, ...] = (ServicePort(port=80, name="http"),),
    ingress: tuple[str | LoadBalancerIngress, ...] = (),
    labels: ServiceLabels = ServiceLabels(),  # noqa: B008  # immutable
    annotations: ServiceAnnotations = ServiceAnnotations(),  # noqa: B008
    affinity_s: int | None = None,
    **spec: Any,
) -> Service:
    """A service; ``spec`` are further fields of its spec."""
    if affinity_s is not None:
        spec["session_affinity"] = "ClientIP"
        spec["session_affinity_config"] = SessionAffinityConfig(ClientIPConfig(affinity_s))
    points = tuple(LoadBalancerIngress(item) if isinstance(item, str) else item for item in ingress)
    return Service(
        ServiceMetadata(name=name, namespace="shop", labels=labels, annotations=annotations),
        ServiceSpec(cluster_ip=ips[0] if ips else "", cluster_ips=ips, ports=ports, **spec),
        ServiceStatus(LoadBalancerStatus(points)),
    )


def endpoint(
    address: str,
    *,
    node: str | None = THERE,
    ready: bool | None = True,
    serving: bool | None = None,
    terminating: bool | None = None,
    zones: tuple[str, ...] = (),
    nodes: tuple[str, ...] = (),
    uid: str = "",
) -> Endpoint:
    """An endpoint on another node, unless said otherwise."""
    hints = None
    if zones or nodes:
        hints = EndpointHints(tuple(map(Hint, zones)), tuple(map(Hint, nodes)))
    target = TargetRef(uid) if uid else None
    return Endpoint((address,), EndpointConditions(ready, serving, terminating), node, None, hints, target)


def endpoint_slice(
    *endpoints: Endpoint,
    of: str = "web",
    name: str = "",
    ports: tuple[EndpointPort, ...] = (EndpointPort(name="http", port=8080),),
    triggered: str = "",
    family: str = "",
    labels: SliceLabels | None = None,
) -> EndpointSlice:
    """A slice of a service; its family is that of the first endpoint."""
    six = bool(endpoints) and ":" in endpoints[0].addresses[0]
    return EndpointSlice(
        SliceMetadata(
            name=name or f"{of}-1",
            namespace="shop",
            labels=labels or SliceLabels(service_name=of),
            annotations=SliceAnnotations(triggered),
        ),
        family or ("IPv6" if six else "IPv4"),
        endpoints,
        ports,
    )
