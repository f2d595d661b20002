"""From a cluster file and its manifests to all that is known before touching the kernel (pure)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from msgspec import Struct

from samewire.lab.addressing import (
    Attachment,
    bare,
    family_of,
    first_host,
    leg,
    node_attachments,
    on_underlay,
    segments,
)
from samewire.lab.cluster import Cluster, Network, Stack
from samewire.lab.hostports import EVERY
from samewire.lab.manifests import POD_KINDS, Skipped, Workload, parse_manifests
from samewire.lab.rules import ingress_prefixes, unfit_address
from samewire.lab.schedule import Pending, Pod, Scheduler, node_labels
from samewire.lab.services import reasons_lacking, refused_services, service_plans, with_ingress


class NodePlan(Struct, frozen=True):
    """A node with its place on the underlay. ``port`` is its port on the underlay's switch; ``labels`` are those it
    has in Kubernetes.
    """

    name: str
    stack: Stack
    uplink: Attachment
    port: str
    pod_cidrs: tuple[str, ...]
    labels: dict[str, str] = {}

    @property
    def addresses(self) -> tuple[str, ...]:
        """The node's own addresses without prefix length, IPv4 first."""
        return tuple(bare(address) for address in self.uplink.addresses)

    def address(self, family: int) -> str | None:
        """The node's address of a family (4 or 6)."""
        return next((address for address in self.addresses if family_of(address) == family), None)

    def pod_cidr(self, family: int) -> str | None:
        """The node's pod prefix of a family (4 or 6)."""
        return next((prefix for prefix in self.pod_cidrs if family_of(prefix) == family), None)


class OutsidePlan(Struct, frozen=True):
    """An outside host; ``legs`` are its interfaces on underlay segments (empty without ``pod_routes``)."""

    name: str
    addresses: tuple[str, ...]
    legs: tuple[Attachment, ...]


class Plan(Struct, frozen=True):
    """The whole lab on paper. ``services``: Services and EndpointSlices of the manifests."""

    cluster: Cluster
    nodes: tuple[NodePlan, ...]
    outside: tuple[OutsidePlan, ...]
    pods: tuple[Pod, ...]
    pending: tuple[Pending, ...]
    skipped: tuple[Skipped, ...]
    services: tuple[dict[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """The cluster's name."""
        return self.cluster.name


def make_plan(cluster: Cluster, manifests: Mapping[str, str]) -> Plan:
    """Plan a lab; ``manifests`` maps every ``manifests[].path`` of the cluster file to its text."""
    tunnels = ("UDP", cluster.networks[0].vxlan_port, EVERY)
    scheduler = Scheduler(cluster.nodes, cluster.overrides, [tunnels])
    skipped: list[Skipped] = []
    services: list[dict[str, Any]] = []
    workloads: dict[tuple[str, ...], Workload] = {}
    for manifest in cluster.manifests:
        parsed = parse_manifests(manifests[manifest.path], manifest.namespace, manifest.path)
        skipped += parsed.skipped
        services += parsed.services
        network = manifest.network or cluster.networks[0].name
        # One that comes twice is the later one, as for who applies both.
        workloads.update({(network, one.kind, one.namespace, one.name): one for one in parsed.workloads})
    for (network, *_), workload in workloads.items():
        scheduler.place(workload, network)
    outside = {ipaddress.ip_address(text) for host in cluster.outside for text in host.addresses}
    balanced = with_ingress(services, ingress_prefixes(cluster), outside)
    refused = refused_services(balanced, cluster.services.cluster_cidrs)
    skipped += [Skipped("Service", "/".join(key), reason) for key, reason in refused.items()]
    unfit = _unfit(cluster, balanced)
    skipped += [Skipped("Service", "/".join(key), reason) for key, reason in unfit.items()]
    balanced = tuple(item for item in balanced if item["kind"] != "Service" or _key(item) not in unfit)
    lacking = reasons_lacking(service_plans(balanced, cluster.services.cluster_cidrs))
    skipped += [Skipped("Service", key, reason) for key, reason in lacking]
    return Plan(
        cluster,
        _nodes(cluster),
        _outside(cluster),
        tuple(scheduler.pods),
        tuple(scheduler.pending),
        tuple(skipped),
        balanced,
    )


def _unfit(cluster: Cluster, objects: Iterable[dict[str, Any]]) -> dict[tuple[str, str], str]:
    """The Services that name an address which none can have here, with the reason."""
    found = {}
    for service in service_plans(objects, cluster.services.cluster_cidrs):
        for address in (*service.cluster_ips, *service.external_ips):
            own = address in service.cluster_ips
            if reason := unfit_address(cluster, address, is_cluster_ip=own):
                found[service.namespace, service.name] = reason
    return found


def _key(item: dict[str, Any]) -> tuple[str, str]:
    return item["metadata"]["namespace"], item["metadata"]["name"]


def idle_overrides(plan: Plan) -> list[tuple[str, str]]:
    """Overrides of the cluster file that concern no container, as path and what is wrong."""
    faults = []
    waiting = {f"{pod.namespace}/{pod.name}" for pod in plan.pending}
    without = {found.name for found in plan.skipped if found.kind in POD_KINDS}
    for index, override in enumerate(plan.cluster.overrides):
        fitting = [pod for pod in plan.pods if fnmatchcase(pod.key, override.pod)]
        names = sorted({container.name for pod in fitting for container in pod.template.containers})
        if override.container in names or any(_may_fit(key, override.pod) for key in waiting):
            continue
        if any(_may_fit(name, override.pod.partition("/")[2]) for name in without):
            continue
        if names:
            there = f"{fitting[0].key} has no such container; there are {', '.join(names)}"
            faults.append((f"overrides[{index}].container", there))
        else:
            faults.append((f"overrides[{index}].pod", "no pod's namespace/name fits"))
    return faults


def _may_fit(name: str, pattern: str) -> bool:
    """Whether a pattern may be meant for a pod of this name, or for those of such a workload."""
    return pattern.startswith(f"{name}-") or any(
        fnmatchcase(name + end, pattern) for end in ("", "-0", "-x-x")
    )


def network_named(cluster: Cluster, name: str) -> Network:
    """The network of that name; the loader made sure that it exists."""
    return next(network for network in cluster.networks if network.name == name)


def gateway(cluster: Cluster, node: NodePlan, prefix: str) -> str:
    """The next hop of a pod prefix's default route: the router for a range of the underlay, else ``.1``."""
    if on_underlay(cluster, prefix) is not None:
        return next(via for via in node.uplink.gateways if family_of(via) == family_of(prefix))
    return first_host(prefix)


def nat_exceptions(cluster: Cluster, network: Network) -> tuple[str, ...]:
    """The destinations that see a pod's own address: the file's list, or all pod CIDRs."""
    return network.nat_exceptions or tuple(prefix for node in cluster.nodes for prefix in node.pod_cidrs)


def _nodes(cluster: Cluster) -> tuple[NodePlan, ...]:
    return tuple(
        NodePlan(
            node.name,
            node.stack,
            uplink,
            f"node{index}",
            tuple(sorted(node.pod_cidrs, key=family_of)),
            node_labels(node),
        )
        for index, (node, uplink) in enumerate(zip(cluster.nodes, node_attachments(cluster), strict=True))
    )


def _outside(cluster: Cluster) -> tuple[OutsidePlan, ...]:
    count = len(segments(cluster))
    return tuple(
        OutsidePlan(
            host.name,
            tuple(sorted(host.addresses, key=family_of)),
            tuple(leg(cluster, segment, index) for segment in range(count)) if host.pod_routes else (),
        )
        for index, host in enumerate(cluster.outside)
    )
