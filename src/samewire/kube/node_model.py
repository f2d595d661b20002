"""Nodes, Namespaces and Pods, cut down to what is read."""

from __future__ import annotations

from msgspec import Struct, field

from samewire.kube.base import KubeObject, Metadata, Protocol, keep_once


class NodeMetadata(Metadata, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """Metadata of a Node, with all labels and annotations (flannel's prefix is configurable)."""

    uid: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    deletion_timestamp: str | None = None


class Taint(Struct, frozen=True, gc=False, omit_defaults=True):
    """One taint; the key tells whether a node is about to be removed."""

    key: str
    effect: str = ""


class NodeSpec(Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """Spec of a Node."""

    pod_cidr: str = field(default="", name="podCIDR")
    pod_cidrs: tuple[str, ...] = field(default=(), name="podCIDRs")
    taints: tuple[Taint, ...] = ()


class NodeAddress(Struct, frozen=True, gc=False):
    """``type``: InternalIP, ExternalIP, Hostname, InternalDNS, ExternalDNS."""

    type: str
    address: str


class NodeStatus(Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """Status of a Node, without what its heartbeat moves."""

    addresses: tuple[NodeAddress, ...] = ()


class Node(KubeObject[NodeMetadata], frozen=True, gc=False, omit_defaults=True):
    """v1 Node."""

    metadata: NodeMetadata = NodeMetadata()
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()

    @property
    def pod_cidrs(self) -> tuple[str, ...]:
        """The pod subnets it was given, one a family."""
        return self.spec.pod_cidrs or ((self.spec.pod_cidr,) if self.spec.pod_cidr else ())

    @property
    def zone(self) -> str:
        """Its topology zone, "" if it has none."""
        return self.metadata.labels.get("topology.kubernetes.io/zone", "")


class LabelledMetadata(Metadata, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """Metadata of an object that selectors choose. ``deletion_timestamp``: set once it is going away."""

    uid: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    deletion_timestamp: str | None = None


class Namespace(KubeObject[LabelledMetadata], frozen=True, gc=False, omit_defaults=True):
    """v1 Namespace."""

    metadata: LabelledMetadata = LabelledMetadata()


class ContainerPort(Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """A declared port; ``name`` is what named target ports refer to."""

    container_port: int
    name: str = ""
    protocol: Protocol = "TCP"
    host_port: int = 0

    def __post_init__(self) -> None:
        keep_once(self, "name")


class Container(Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """A container; ``restart_policy`` "Always" makes an init container a sidecar, whose ports count."""

    name: str = ""
    ports: tuple[ContainerPort, ...] = ()
    restart_policy: str = ""


class PodSpec(Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """Spec of a Pod."""

    node_name: str = ""
    host_network: bool = False
    containers: tuple[Container, ...] | None = ()
    init_containers: tuple[Container, ...] = ()

    def __post_init__(self) -> None:
        keep_once(self, "node_name")


class PodIP(Struct, frozen=True, gc=False):
    """One address of a Pod."""

    ip: str


class PodCondition(Struct, frozen=True, gc=False):
    """``status``: "True", "False" or "Unknown"."""

    type: str
    status: str

    def __post_init__(self) -> None:
        keep_once(self, "type", "status")


class PodStatus(Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """Status of a Pod."""

    phase: str = ""
    pod_ip: str = field(default="", name="podIP")
    pod_ips: tuple[PodIP, ...] = field(default=(), name="podIPs")
    conditions: tuple[PodCondition, ...] = ()

    def __post_init__(self) -> None:
        keep_once(self, "phase")


class Pod(KubeObject[LabelledMetadata], frozen=True, gc=False, omit_defaults=True):
    """v1 Pod."""

    metadata: LabelledMetadata = LabelledMetadata()
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Its addresses, the primary one first; none before it has any."""
        status = self.status
        return tuple(item.ip for item in status.pod_ips) or ((status.pod_ip,) if status.pod_ip else ())

    @property
    def ports(self) -> tuple[ContainerPort, ...]:
        """Declared ports of its containers and sidecars, in the order in which named ports are looked up."""
        sidecars = (item for item in self.spec.init_containers if item.restart_policy == "Always")
        return tuple(port for item in (*(self.spec.containers or ()), *sidecars) for port in item.ports)

    @property
    def ready(self) -> bool:
        """Whether its Ready condition is true."""
        return any(item.type == "Ready" and item.status == "True" for item in self.status.conditions)

    @property
    def finished(self) -> bool:
        """Whether it ran to its end: its addresses are no longer its own."""
        return self.status.phase in ("Succeeded", "Failed")
