"""Services and EndpointSlices, cut down to what is read."""

from __future__ import annotations

from sys import intern
from typing import TYPE_CHECKING, Literal

from msgspec import Struct, field
from msgspec.structs import force_setattr

from samewire.kube.base import Key, KubeObject, Metadata, Protocol

Family = Literal["IPv4", "IPv6"]
TrafficPolicy = Literal["Cluster", "Local"]


class ServiceLabels(Struct, frozen=True, gc=False, omit_defaults=True):
    """Labels by which a Service asks proxies to leave it alone."""

    service_proxy_name: str | None = field(default=None, name="service.kubernetes.io/service-proxy-name")
    headless: str | None = field(default=None, name="service.kubernetes.io/headless")


class ServiceAnnotations(Struct, frozen=True, gc=False, omit_defaults=True):
    """Annotations that change how a Service is balanced. Values are as written; "" = not there."""

    preserve_destination: str = field(default="", name="preserve-destination")
    dsr: str = field(default="", name="samewire.io/dsr")
    load_balancer_source_ranges: str = field(
        default="", name="service.beta.kubernetes.io/load-balancer-source-ranges"
    )


class ServiceMetadata(Metadata, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """Metadata of a Service."""

    labels: ServiceLabels = ServiceLabels()
    annotations: ServiceAnnotations = ServiceAnnotations()


class ServicePort(Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """One port of a Service; ``name`` joins it with the ports of the EndpointSlices."""

    port: int
    name: str = ""
    protocol: Protocol = "TCP"
    node_port: int = 0

    def __post_init__(self) -> None:
        if self.name:
            force_setattr(self, "name", intern(self.name))


class ClientIPConfig(Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """``timeout_seconds``: how long a client sticks to its endpoint."""

    timeout_seconds: int | None = None


class SessionAffinityConfig(Struct, frozen=True, gc=False, omit_defaults=True):
    """Settings of ClientIP affinity."""

    client_ip: ClientIPConfig | None = field(default=None, name="clientIP")


class ServiceSpec(Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """Spec of a Service."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"] = "ClusterIP"
    cluster_ip: str = field(default="", name="clusterIP")
    cluster_ips: tuple[str, ...] = field(default=(), name="clusterIPs")
    ip_families: tuple[Family, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    external_ips: tuple[str, ...] = field(default=(), name="externalIPs")
    session_affinity: Literal["None", "ClientIP"] = "None"
    session_affinity_config: SessionAffinityConfig | None = None
    external_traffic_policy: TrafficPolicy | Literal[""] = ""
    internal_traffic_policy: TrafficPolicy = "Cluster"
    health_check_node_port: int = 0
    load_balancer_source_ranges: tuple[str, ...] = ()
    publish_not_ready_addresses: bool = False
    traffic_distribution: str = ""


class LoadBalancerIngress(Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """One ingress point. ``ip``: "" where the cloud gives only a host name. ``ip_mode``: VIP or Proxy."""

    ip: str = ""
    ip_mode: str = "VIP"


class LoadBalancerStatus(Struct, frozen=True, gc=False, omit_defaults=True):
    """What a cloud's load balancer reported."""

    ingress: tuple[LoadBalancerIngress, ...] = ()


class ServiceStatus(Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """Status of a Service."""

    load_balancer: LoadBalancerStatus = LoadBalancerStatus()


class Service(KubeObject[ServiceMetadata], frozen=True, gc=False, omit_defaults=True):
    """v1 Service."""

    metadata: ServiceMetadata = ServiceMetadata()
    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus = ServiceStatus()

    @property
    def headless(self) -> bool:
        """Whether it has endpoints but no VIP."""
        return self.spec.cluster_ip == "None"

    @property
    def cluster_ips(self) -> tuple[str, ...]:
        """Its cluster VIPs, one a family; none for headless and ExternalName Services."""
        spec = self.spec
        if spec.type == "ExternalName":
            return ()
        found = spec.cluster_ips or ((spec.cluster_ip,) if spec.cluster_ip else ())
        return tuple(address for address in found if address and address != "None")


class SliceLabels(Struct, frozen=True, gc=False, omit_defaults=True):
    """Labels of an EndpointSlice. ``service_name`` names its Service, in the same namespace."""

    service_name: str = field(default="", name="kubernetes.io/service-name")
    service_proxy_name: str | None = field(default=None, name="service.kubernetes.io/service-proxy-name")
    headless: str | None = field(default=None, name="service.kubernetes.io/headless")


class SliceAnnotations(Struct, frozen=True, gc=False, omit_defaults=True):
    """``last_change_trigger_time``: RFC 3339 time of the pod or Service change that led to this version."""

    last_change_trigger_time: str = field(default="", name="endpoints.kubernetes.io/last-change-trigger-time")


class SliceMetadata(Metadata, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """Metadata of an EndpointSlice."""

    labels: SliceLabels = SliceLabels()
    annotations: SliceAnnotations = SliceAnnotations()


class EndpointConditions(Struct, frozen=True, gc=False, omit_defaults=True):
    """As published; absent is None. Use `Endpoint.ready` and its siblings, which know the defaults."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Hint(Struct, frozen=True, gc=False):
    """The name of a zone or node that should use an endpoint."""

    name: str

    def __post_init__(self) -> None:
        if self.name:
            force_setattr(self, "name", intern(self.name))


class EndpointHints(Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """Who should use an endpoint."""

    for_zones: tuple[Hint, ...] = ()
    for_nodes: tuple[Hint, ...] = ()


class TargetRef(Struct, frozen=True, gc=False, omit_defaults=True):
    """What an endpoint stands for, by its ``uid``: an address can pass from one pod to another."""

    uid: str = ""


class Endpoint(Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """One endpoint of a slice. By the API's rule the addresses are alternatives: use the first."""

    addresses: tuple[str, ...] = ()
    conditions: EndpointConditions = EndpointConditions()
    node_name: str | None = None
    zone: str | None = None
    hints: EndpointHints | None = None
    target_ref: TargetRef | None = None

    @property
    def ready(self) -> bool:
        """Whether it takes new connections (unknown counts as ready)."""
        return self.conditions.ready is not False

    @property
    def serving(self) -> bool:
        """Whether it can serve, terminating or not (unknown counts as so, whatever ``ready`` says)."""
        return self.conditions.serving is not False

    @property
    def terminating(self) -> bool:
        """Whether its pod is going away."""
        return self.conditions.terminating is True


class EndpointPort(Struct, frozen=True, gc=False, omit_defaults=True):
    """One port of all endpoints of a slice. ``port`` None = every port (not usable behind a VIP)."""

    name: str | None = ""
    protocol: Protocol | None = "TCP"
    port: int | None = None

    def __post_init__(self) -> None:
        if self.name:
            force_setattr(self, "name", intern(self.name))


# The API server writes null for an empty list of these two.
if TYPE_CHECKING:
    Endpoints = tuple[Endpoint, ...]
    EndpointPorts = tuple[EndpointPort, ...]
else:
    Endpoints = tuple[Endpoint, ...] | None
    EndpointPorts = tuple[EndpointPort, ...] | None


class EndpointSlice(KubeObject[SliceMetadata], frozen=True, gc=False, rename="camel", omit_defaults=True):
    """discovery.k8s.io/v1 EndpointSlice. ``address_type`` is IPv4, IPv6 or FQDN."""

    metadata: SliceMetadata = SliceMetadata()
    address_type: str = ""
    endpoints: Endpoints = ()
    ports: EndpointPorts = ()

    def __post_init__(self) -> None:
        force_setattr(self, "address_type", intern(self.address_type))
        if self.endpoints is None:
            force_setattr(self, "endpoints", ())  # type: ignore[unreachable]
        for endpoint in self.endpoints:  # here, as a call for each of them would cost more than reading it
            if endpoint.node_name:
                force_setattr(endpoint, "node_name", intern(endpoint.node_name))
            if endpoint.zone:
                force_setattr(endpoint, "zone", intern(endpoint.zone))
        if self.ports is None:
            force_setattr(self, "ports", ())  # type: ignore[unreachable]

    @property
    def service_key(self) -> Key | None:
        """The key of its Service; None for a slice that belongs to none."""
        name = self.metadata.labels.service_name
        return (self.metadata.namespace, name) if name else None
