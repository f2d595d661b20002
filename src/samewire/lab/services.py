"""Kubernetes Services of a lab (pure): what the nodes' daemons are given, and who ought to answer.

The daemons read a directory of manifests: the Services as published, and the Nodes and Pods that the lab has made.
Which addresses a Service has is what those daemons work out from the same files (`samewire.kube.admission`); which pods
stand behind it is worked out here on its own, from labels and declared ports, because the check must not believe them.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from samewire.kube.admission import Wanted, admit
from samewire.kube.manifest_files import parse_manifests
from samewire.kube.source_ranges import source_ranges

if TYPE_CHECKING:
    from samewire.lab.plan import NodePlan
    from samewire.lab.state import PodState

Json = dict[str, Any]


class ServicePortPlan(Struct, frozen=True):
    """One port. ``target``: a number, or the name of a port that each pod declares for itself."""

    port: int
    protocol: str
    target: int | str
    node_port: int = 0


class Taken(Struct, frozen=True):
    """An address and port that a Service names, and another one, ``owner``, has."""

    address: str
    port: int
    protocol: str
    owner: str


class ServicePlan(Struct, frozen=True):
    """A Service with its addresses. ``external_ips`` include those of a load balancer in front, ``ingress_ips``, to
    which only clients in ``source_ranges`` get (of a family without any: all). ``distribution``: its
    ``trafficDistribution``. ``preserves``: it has the annotation ``preserve-destination``. ``taken``: what leads to
    another Service. ``unread_ranges``: source ranges that are no prefixes.
    """

    namespace: str
    name: str
    cluster_ips: tuple[str, ...]
    external_ips: tuple[str, ...]
    ports: tuple[ServicePortPlan, ...]
    selector: dict[str, str]
    internal_local: bool = False
    external_local: bool = False
    distribution: str = ""
    ingress_ips: tuple[str, ...] = ()
    source_ranges: tuple[str, ...] = ()
    preserves: bool = False
    taken: tuple[Taken, ...] = ()
    unread_ranges: tuple[str, ...] = ()

    @property
    def is_lacking(self) -> bool:
        """Whether the daemons have not all of it in the switch, and say so."""
        return bool(self.taken or self.unread_ranges)

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    def has(self, address: str, port: ServicePortPlan) -> bool:
        """Whether an address and port of the Service lead to it."""
        return not any(
            (one.address, one.port, one.protocol) == (address, port.port, port.protocol) for one in self.taken
        )


class Answerer(Struct, frozen=True):
    """A pod that stands behind a Service port, with the port it is served on."""

    pod: PodState
    port: int


def with_ingress(
    objects: Iterable[Json],
    prefixes: Sequence[str],
    taken: Container[ipaddress.IPv4Address | ipaddress.IPv6Address] = (),
) -> tuple[Json, ...]:
    """The objects; load balancers without an address get one a family that is not ``taken``, in order."""
    hosts = [(one for one in ipaddress.ip_network(prefix).hosts() if one not in taken) for prefix in prefixes]
    made = []
    for item in objects:
        spec = item.get("spec") or {}
        given = ((item.get("status") or {}).get("loadBalancer") or {}).get("ingress")
        if item.get("kind") == "Service" and spec.get("type") == "LoadBalancer" and not given:
            ingress = [{"ip": str(address)} for address in (next(one, None) for one in hosts) if address]
            item = {**item, "status": {"loadBalancer": {"ingress": ingress}}}
        made.append(item)
    return tuple(made)


def service_plans(objects: Iterable[Json], cluster_cidrs: Iterable[str]) -> tuple[ServicePlan, ...]:
    """The Services that have addresses of their own, by name."""
    admitted, _ = _admit(objects, cluster_cidrs)
    owners: dict[tuple[str, int, str], str] = {}
    plans = [_plan(item) for item in admitted.values() if _has_addresses(item)]
    cluster = {_shortest(address): plan.key for plan in plans for address in plan.cluster_ips}
    return tuple(replace(plan, taken=tuple(_claim(plan, cluster, owners))) for plan in plans)


def reasons_lacking(services: Iterable[ServicePlan]) -> Iterator[tuple[str, str]]:
    """The Services that lack an address, by ``namespace/name``, with the reason, one for each that has it; and those
    with source ranges that nobody can read.
    """
    for service in services:
        if service.unread_ranges:
            yield service.key, f"loadBalancerSourceRanges: no prefixes: {', '.join(service.unread_ranges)}"
        by_owner: dict[str, list[str]] = {}
        for one in service.taken:
            by_owner.setdefault(one.owner, []).append(f"{one.address} port {one.port}/{one.protocol}")
        for owner, claims in by_owner.items():
            what = f"{', '.join(claims)} {'is' if len(claims) == 1 else 'are'}"
            yield service.key, f"{what} that of Service {owner}, the rest is served"


def cluster_prefixes(objects: Iterable[Json], cluster_cidrs: Sequence[str]) -> list[str]:
    """Where cluster IPs are: the cluster file's prefixes, and those that Services have brought from another cluster."""
    networks = [ipaddress.ip_network(text) for text in cluster_cidrs]
    plans = service_plans(objects, cluster_cidrs)
    found = [ipaddress.ip_address(address) for plan in plans for address in plan.cluster_ips]
    others = [str(one) for one in found if not any(one in network for network in networks)]
    return [*cluster_cidrs, *others]


def refused_services(objects: Iterable[Json], cluster_cidrs: Iterable[str]) -> dict[tuple[str, str], str]:
    """The Services, by namespace and name, that an API server would not have taken, with the reason."""
    return dict(_admit(objects, cluster_cidrs)[1])


def _admit(
    objects: Iterable[Json], cluster_cidrs: Iterable[str]
) -> tuple[dict[tuple[str, str], Wanted], list[tuple[tuple[str, str], str]]]:
    content = parse_manifests(
        json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}, default=str)
    )
    # One that comes twice is the later one, as for who applies both.
    services = {item.key: item for item in content.services}
    return admit(services.values(), [ipaddress.ip_network(text) for text in cluster_cidrs])


def node_objects(nodes: Iterable[NodePlan]) -> list[Json]:
    """The lab's nodes as Kubernetes has them."""
    return [
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node.name, "labels": node.labels},
            "spec": {"podCIDRs": list(node.pod_cidrs)},
            "status": {"addresses": [{"type": "InternalIP", "address": one} for one in node.addresses]},
        }
        for node in nodes
    ]


def balanced_pods(pods: Iterable[PodState], network: str) -> list[PodState]:
    """The pods that Services lead to: those of the proxies' network, and of the nodes' own. Another tenant's may have
    the same addresses.
    """
    return [one for one in pods if one.pod.template.host_network or one.pod.network == network]


def pod_objects(pods: Iterable[PodState]) -> list[Json]:
    """The lab's pods as Kubernetes has them: running, and ready."""
    return [_pod(state) for state in pods]


def answerers(
    service: ServicePlan, port: ServicePortPlan, pods: Iterable[PodState], family: int
) -> list[Answerer]:
    """The pods that a Service port leads to, by labels and declared ports."""
    found = []
    for state in pods:
        if state.pod.namespace != service.namespace or not service.selector:
            continue
        if not service.selector.items() <= state.pod.template.labels.items():
            continue
        target = _target(state, port)
        if target and any((":" in address) == (family == 6) for address in state.addresses):
            found.append(Answerer(state, target))
    return found


def is_served(service: ServicePlan, pods: Sequence[PodState]) -> bool:
    """Whether any pod stands behind a Service on every node: not one of the policy Local, which depends."""
    return not service.internal_local and any(
        answerers(service, port, pods, 6 if ":" in address else 4)
        for port in service.ports
        for address in service.cluster_ips
        if service.has(address, port)
    )


def routed_addresses(services: Iterable[ServicePlan]) -> Iterator[str]:
    """Addresses that the world beyond has to be told where they are."""
    yield from dict.fromkeys(address for service in services for address in service.external_ips)


def _claim(
    plan: ServicePlan, cluster: Mapping[str, str], owners: dict[tuple[str, int, str], str]
) -> Iterator[Taken]:
    """Claim a Service's addresses and ports; those that another one has, by its cluster IP or because it came before,
    as the daemons have it.
    """
    families = {":" in address for address in plan.cluster_ips}
    for address in dict.fromkeys((*plan.cluster_ips, *plan.external_ips)):
        short = _shortest(address)
        for port in plan.ports if (":" in address) in families else ():
            first = cluster.get(short) or plan.key
            owner = owners.setdefault((short, port.port, port.protocol), first)
            if owner != plan.key:
                yield Taken(address, port.port, port.protocol, owner)


def _shortest(address: str) -> str:
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return address


def _has_addresses(item: Any) -> bool:
    spec = item.service.spec
    return spec.type != "ExternalName" and bool(spec.cluster_ips) and spec.cluster_ips[0] != "None"


def _plan(item: Any) -> ServicePlan:
    service, spec = item.service, item.service.spec
    targets = {(port.port, port.protocol): port.target_port or port.port for port in item.spec.ports}
    ingress = tuple(
        one.ip for one in service.status.load_balancer.ingress if one.ip and one.ip_mode != "Proxy"
    )
    ranges = source_ranges(service)
    return ServicePlan(
        namespace=service.metadata.namespace,
        name=service.metadata.name,
        cluster_ips=spec.cluster_ips,
        external_ips=(*spec.external_ips, *ingress),
        ports=tuple(
            ServicePortPlan(port.port, port.protocol, targets[port.port, port.protocol], port.node_port)
            for port in spec.ports
        ),
        selector=item.spec.selector,
        internal_local=spec.internal_traffic_policy == "Local",
        external_local=spec.external_traffic_policy == "Local",
        distribution=spec.traffic_distribution,
        ingress_ips=ingress,
        source_ranges=tuple(chain.from_iterable(ranges.by_family.values())),
        unread_ranges=ranges.unread,
        preserves=service.metadata.annotations.preserve_destination == "true",
    )


def _target(state: PodState, port: ServicePortPlan) -> int:
    if isinstance(port.target, int):
        return port.target
    if port.target.isdecimal():
        return int(port.target)
    for container in state.pod.template.containers:
        for declared in container.ports:
            if declared.name == port.target and declared.protocol == port.protocol:
                return declared.container_port
    return 0


def _pod(state: PodState) -> Json:
    template = state.pod.template
    ports: list[Mapping[str, Any]] = [
        {
            "containerPort": port.container_port,
            "protocol": port.protocol,
            **({"name": port.name} if port.name else {}),
        }
        for container in template.containers
        for port in container.ports
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": state.pod.name, "namespace": state.pod.namespace, "labels": template.labels},
        "spec": {
            "nodeName": state.pod.node,
            "hostNetwork": template.host_network,
            "containers": [{"name": "all", "ports": ports}],
        },
        "status": {
            "phase": "Running",
            "podIPs": [{"ip": address} for address in state.addresses],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }
