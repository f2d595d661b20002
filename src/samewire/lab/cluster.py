"""The cluster file: what a lab is made of, as typed values and as a JSON schema.

The structs below *are* the file format: field descriptions become the schema that editors complete from
(``docs/api/cluster.schema.json``, exported by :func:`json_schema`). Reading a file, with errors that name the
line, is :mod:`samewire.lab.loader`; rules across fields are :mod:`samewire.lab.rules`.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

DnsLabel = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9]([-a-z0-9]{0,22}[a-z0-9])?$",
        description="Lower-case letters, digits and dashes, at most 24 (socket paths are short).",
    ),
]
Cidr = Annotated[str, Meta(description="An address prefix such as 10.244.1.0/24 or fd00:244:1::/64.")]

#: Stands for the address of the pod's own node in a DNS server list (a node-local resolver).
NODE_DNS = "node"


class UnderlayType(Enum):
    """How the nodes reach one another."""

    L2 = "l2"
    L3 = "l3"


class Stack(Enum):
    """What programs a node's network."""

    SAMEWIRE = "samewire"
    KERNEL = "kernel"


class NetworkType(Enum):
    """The HNS network types a lab can build across nodes."""

    OVERLAY = "Overlay"
    L2BRIDGE = "L2Bridge"


class Underlay(Struct, frozen=True, forbid_unknown_fields=True):
    """The network between the nodes."""

    type: Annotated[
        UnderlayType,
        Meta(
            description="l2: all nodes share one switch. l3: each node has its own subnet behind a router "
            "that knows nothing of pods."
        ),
    ]
    ipv4: Annotated[
        Cidr | None,
        Meta(
            description="IPv4 addresses of the nodes. l2: the router has .1, nodes .11, .12, ... in file "
            "order. l3: cut into one subnet a node; the router has .1 and the node .2 of each. null: the "
            "underlay has IPv6 only."
        ),
    ] = "172.31.0.0/16"
    ipv6: Annotated[
        Cidr | None, Meta(description="The same for IPv6; absent: the underlay has IPv4 only.")
    ] = None
    mtu: Annotated[int, Meta(ge=1280, le=9216, description="Bytes, on every underlay link.")] = 1500


class Node(Struct, frozen=True, forbid_unknown_fields=True):
    """One node: a network namespace with its own stack."""

    name: DnsLabel
    stack: Annotated[
        Stack,
        Meta(
            description="samewire: a daemon with the eBPF switch. kernel: bridge and host-local plugins, "
            "kernel VXLAN or static routes, kernel masquerade."
        ),
    ]
    pod_cidrs: Annotated[
        tuple[Cidr, ...], Meta(min_length=1, max_length=2, description="Pod addresses: one prefix a family.")
    ]
    labels: Annotated[
        dict[str, str],
        Meta(
            description="Node labels for nodeSelector; kubernetes.io/hostname, os and arch are set unless "
            "given here."
        ),
    ] = {}
    taints: Annotated[
        tuple[str, ...],
        Meta(description="Taints as key[=value]:Effect; only tolerating pods are placed here."),
    ] = ()


class Dns(Struct, frozen=True, forbid_unknown_fields=True):
    """What pods with dnsPolicy ClusterFirst find in resolv.conf."""

    servers: Annotated[
        tuple[str, ...],
        Meta(description=f"Addresses; '{NODE_DNS}' stands for the address of the pod's own node."),
    ] = (NODE_DNS,)
    domain: Annotated[str, Meta(description="The cluster domain; search lists are built from it.")] = (
        "cluster.local"
    )
    search: Annotated[tuple[str, ...], Meta(description="Searched after the cluster's own suffixes.")] = ()
    options: Annotated[tuple[str, ...], Meta(description="resolv.conf options.")] = ("ndots:5",)


class Network(Struct, frozen=True, forbid_unknown_fields=True):
    """One virtual network, present on every node."""

    name: DnsLabel
    type: Annotated[
        NetworkType,
        Meta(
            description="Overlay: VXLAN. L2Bridge: pods on the underlay; pod_cidrs inside the underlay's "
            "subnet are ranges of it, others are routed to the node."
        ),
    ]
    vni: Annotated[
        int, Meta(ge=1, le=16777214, description="VXLAN id (Overlay). Windows needs 4096 or more.")
    ] = 4096
    vxlan_port: Annotated[
        int, Meta(ge=1, le=65535, description="UDP port of VXLAN; one for the cluster. Windows needs 4789.")
    ] = 4789
    host_route: Annotated[
        bool,
        Meta(description="Overlay: nodes reach pods and pods their node (HostRoute). Tenants set false."),
    ] = True
    nat_exceptions: Annotated[
        tuple[Cidr, ...],
        Meta(description="Destinations that see the pod's own address. Empty: the pod CIDRs of all nodes."),
    ] = ()
    dns: Dns = Dns()


class Outside(Struct, frozen=True, forbid_unknown_fields=True):
    """A host beyond the router that is no part of the cluster."""

    name: DnsLabel
    addresses: Annotated[
        tuple[str, ...], Meta(min_length=1, max_length=2, description="One address a family.")
    ]
    pod_routes: Annotated[
        bool,
        Meta(
            description="The host also has a leg on every underlay segment and routes to the pod CIDRs over "
            "it, so that pods excepted from NAT get their answers."
        ),
    ] = False


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """One file of Kubernetes manifests."""

    path: Annotated[str, Meta(description="Multi-document YAML, relative to the cluster file.")]
    network: Annotated[DnsLabel | None, Meta(description="Network of its pods; absent: the first.")] = None
    namespace: Annotated[str, Meta(description="For objects that name none, as kubectl -n does.")] = "default"


class Override(Struct, frozen=True, forbid_unknown_fields=True):
    """Runs a real command in a container instead of the echo server."""

    pod: Annotated[str, Meta(description="Shell pattern over namespace/pod, such as shop/web-*.")]
    container: str
    command: Annotated[
        tuple[str, ...],
        Meta(
            description="Run in the container's namespaces with this machine's files. Empty: the manifest's."
        ),
    ] = ()


class ProxyMode(Enum):
    """Who balances Services on samewire nodes."""

    KERNEL = "kernel"
    USERSPACE = "userspace"


IPV6_LOAD_BALANCERS = ("2001:db8:1b::/64",)


class Services(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the addresses of Kubernetes Services come from, and who balances them."""

    cluster_cidrs: Annotated[
        tuple[Cidr, ...],
        Meta(
            min_length=1,
            max_length=2,
            description="Cluster IPs, the main family first. The default has IPv6 first where no pod has IPv4.",
        ),
    ] = ("10.96.0.0/16", "fd00:10:96::/112")
    load_balancer_cidrs: Annotated[
        tuple[Cidr, ...],
        Meta(
            max_length=2,
            description="Services of type LoadBalancer that bring no status.loadBalancer get addresses from here, as "
            "a cloud would give them; the router sends those to the first samewire node. Where no pod has IPv4, the "
            "default is 2001:db8:1b::/64.",
        ),
    ] = ("192.0.2.0/24",)
    proxy_mode: Annotated[
        ProxyMode,
        Meta(
            description="kernel: the switch. userspace: a relay process a node, which backends see as the client."
        ),
    ] = ProxyMode.KERNEL


class Cluster(Struct, frozen=True, forbid_unknown_fields=True):
    """A whole lab."""

    underlay: Underlay
    nodes: Annotated[tuple[Node, ...], Meta(min_length=1, max_length=64)]
    networks: Annotated[tuple[Network, ...], Meta(min_length=1, max_length=16)]
    name: Annotated[
        str,
        Meta(
            pattern=r"^([a-z0-9]([-a-z0-9]{0,22}[a-z0-9])?)?$",
            description="Names the lab's namespaces and directory; empty: the file's name.",
        ),
    ] = ""
    outside: tuple[Outside, ...] = ()
    manifests: tuple[Manifest, ...] = ()
    overrides: tuple[Override, ...] = ()
    services: Services = Services()


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of the cluster file."""
    schema = msgspec.json.schema(Cluster)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Samewire lab cluster",
        **schema,
    }
