"""Rules across the fields of a cluster file (pure): what the schema alone cannot say."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from samewire.lab.addressing import (
    IPNetwork,
    bare,
    leg,
    node_attachments,
    overlaps,
    router_addresses,
    segments,
    underlay_prefixes,
    vxlan_overhead,
    within,
)
from samewire.lab.cluster import NODE_DNS, Cluster, Dns, NetworkType, Services, Stack, UnderlayType
from samewire.lab.manifests import NAMESPACE
from samewire.lab.names import DNS_PORT, KUBELET_PORT

Fault = tuple[str, str]

#: Names that the lab itself gives to namespaces and directories beside the nodes'.
RESERVED_NAMES = frozenset({"switch", "router", "pods", "outside", "manifests"})
_IPV6_MTU = 1280
TAINT_EFFECTS = frozenset({"NoSchedule", "PreferNoSchedule", "NoExecute"})


def violations(cluster: Cluster) -> list[Fault]:
    """Every fault as (path, message); an empty list means that the file is sound."""
    faults = [*_syntax(cluster)]
    if faults:  # the rules below compare addresses and need them parsed
        return faults
    faults = [*_names(cluster), *_underlay(cluster)]
    if any(path.startswith("underlay") for path, _ in faults):  # nor can addresses be given out on it
        return faults
    return [
        *faults,
        *_pod_cidrs(cluster),
        *_services(cluster),
        *_networks(cluster),
        *_outside(cluster),
        *_manifests(cluster),
    ]


def _syntax(cluster: Cluster) -> Iterator[Fault]:
    prefixes = [(f"underlay.{family}", text) for family, text in _of_underlay(cluster)]
    for index, node in enumerate(cluster.nodes):
        prefixes += [(f"nodes[{index}].pod_cidrs[{at}]", text) for at, text in enumerate(node.pod_cidrs)]
    for name in ("cluster_cidrs", "load_balancer_cidrs"):
        found: tuple[str, ...] = getattr(cluster.services, name)
        prefixes += [(f"services.{name}[{at}]", text) for at, text in enumerate(found)]
    for index, network in enumerate(cluster.networks):
        where = f"networks[{index}]"
        prefixes += [(f"{where}.nat_exceptions[{at}]", x) for at, x in enumerate(network.nat_exceptions)]
        for at, server in enumerate(network.dns.servers):
            if server != NODE_DNS and not _is_address(server):
                yield f"{where}.dns.servers[{at}]", f"{server!r} is neither an address nor {NODE_DNS!r}"
        yield from _dns_words(f"{where}.dns", network.dns)
    for path, text in prefixes:
        if fault := _prefix_fault(text, of_hosts="nat_exceptions" not in path):
            yield path, fault
    for index, host in enumerate(cluster.outside):
        for at, address in enumerate(host.addresses):
            if fault := _address_fault(address):
                yield f"outside[{index}].addresses[{at}]", fault


def _dns_words(where: str, dns: Dns) -> Iterator[Fault]:
    """What pods find in resolv.conf, where a blank ends a word."""
    words = [(f"{where}.domain", dns.domain)] if dns.domain else []
    for name, found in (("search", dns.search), ("options", dns.options)):
        words += [(f"{where}.{name}[{at}]", word) for at, word in enumerate(found)]
    for path, word in words:
        if word.split() != [word]:
            yield path, f"{word!r} is not one word"


def _prefix_fault(text: str, of_hosts: bool) -> str:
    try:
        prefix = ipaddress.ip_network(text)
    except ValueError as error:
        return f"{error} (an example: 10.244.1.0/24)"
    if of_hosts and (prefix.is_multicast or prefix.is_loopback or prefix.is_link_local):
        return f"no node can reach another one at addresses of {prefix}"
    return ""


def _names(cluster: Cluster) -> Iterator[Fault]:
    seen: set[str] = set(RESERVED_NAMES)
    named = [(f"nodes[{i}].name", node.name) for i, node in enumerate(cluster.nodes)]
    named += [(f"outside[{i}].name", host.name) for i, host in enumerate(cluster.outside)]
    for path, name in named:
        if name in seen:
            yield path, f"{name!r} is " + ("reserved" if name in RESERVED_NAMES else "already taken")
        seen.add(name)
    networks: set[str] = set()
    for index, network in enumerate(cluster.networks):
        if network.name in networks:
            yield f"networks[{index}].name", f"{network.name!r} is already taken"
        networks.add(network.name)
    for index, node in enumerate(cluster.nodes):
        for at, taint in enumerate(node.taints):
            if taint.rpartition(":")[2] not in TAINT_EFFECTS or not taint.rpartition(":")[0]:
                yield (
                    f"nodes[{index}].taints[{at}]",
                    f"write key[=value]:Effect, Effect one of {sorted(TAINT_EFFECTS)}",
                )


def _underlay(cluster: Cluster) -> Iterator[Fault]:
    if not underlay_prefixes(cluster):
        yield "underlay", "it needs ipv4 or ipv6"
        return
    needed = _IPV6_MTU + vxlan_overhead(cluster)
    overlay = any(network.type is NetworkType.OVERLAY for network in cluster.networks)
    pods_have_ipv6 = any(ipaddress.ip_network(x).version == 6 for n in cluster.nodes for x in n.pod_cidrs)
    if overlay and pods_have_ipv6 and cluster.underlay.mtu < needed:
        yield "underlay.mtu", f"IPv6 pods of an Overlay network need {needed} or more"
    for field, text in _of_underlay(cluster):
        expected, prefix = 4 if field == "ipv4" else 6, ipaddress.ip_network(text)
        if prefix.version != expected:
            yield f"underlay.{field}", f"{prefix} is not an IPv{expected} prefix"
        elif prefix.num_addresses < 256:
            yield f"underlay.{field}", "the prefix is too small: use /24 or larger"
        elif cluster.underlay.type is UnderlayType.L3 and prefix.num_addresses < 16 * len(cluster.nodes):
            yield (
                f"underlay.{field}",
                f"no room for one subnet of 16 addresses for each of {len(cluster.nodes)} nodes",
            )


def _of_underlay(cluster: Cluster) -> list[tuple[str, str]]:
    """The underlay's prefixes as written, with the names of their fields."""
    underlay = cluster.underlay
    return [
        (name, text) for name, text in (("ipv4", underlay.ipv4), ("ipv6", underlay.ipv6)) if text is not None
    ]


def _pod_cidrs(cluster: Cluster) -> Iterator[Fault]:
    taken: list[tuple[str, IPNetwork]] = []
    families = {
        tuple(sorted(ipaddress.ip_network(c).version for c in node.pod_cidrs)) for node in cluster.nodes
    }
    if len(families) > 1:
        yield "nodes", "all nodes need pod_cidrs of the same address families"
    for index, node in enumerate(cluster.nodes):
        versions: set[int] = set()
        for at, text in enumerate(node.pod_cidrs):
            path, prefix = f"nodes[{index}].pod_cidrs[{at}]", ipaddress.ip_network(text)
            if prefix.version in versions:
                yield path, "give at most one prefix a family"
            versions.add(prefix.version)
            if prefix.num_addresses < 8:
                yield path, "the prefix is too small: leave room for at least 8 addresses"
            for other, used in taken:
                if overlaps(prefix, used):
                    yield path, f"overlaps {used} of node {other}"
            taken.append((node.name, prefix))
            for fault in _beside_underlay(cluster, prefix):
                yield path, fault
            for own in _own_addresses(cluster):
                if overlaps(prefix, ipaddress.ip_network(own)):
                    yield path, f"holds {own}, an address of the router or of a node"
                    break


def _beside_underlay(cluster: Cluster, prefix: IPNetwork) -> Iterator[str]:
    """What a pod CIDR and the underlay's prefixes do not allow each other."""
    bridged = any(network.type is NetworkType.L2BRIDGE for network in cluster.networks)
    for under in underlay_prefixes(cluster):
        if overlaps(prefix, under) and not (bridged and within(prefix, under)):
            yield f"overlaps the underlay {under}; only ranges of an L2Bridge network may"
    if bridged and prefix.version not in {under.version for under in underlay_prefixes(cluster)}:
        yield f"L2Bridge pods leave by the underlay, which has no IPv{prefix.version}"


def _own_addresses(cluster: Cluster) -> list[str]:
    """What the router, the nodes and the legs of outside hosts have on the underlay."""
    found = [address for uplink in node_attachments(cluster) for address in uplink.addresses]
    for segment in range(len(segments(cluster))):
        found += router_addresses(cluster, segment)
        for index, host in enumerate(cluster.outside):
            found += leg(cluster, segment, index).addresses if host.pod_routes else ()
    return sorted(map(bare, found))


def _services(cluster: Cluster) -> Iterator[Fault]:
    services = cluster.services
    machines = _of_machines(cluster)
    outside = [ipaddress.ip_network(text) for host in cluster.outside for text in host.addresses]
    balanced = [ipaddress.ip_network(text) for text in services.cluster_cidrs]
    for at, prefix in enumerate(balanced):
        for other in (*machines, *outside):
            if overlaps(prefix, other):
                yield f"services.cluster_cidrs[{at}]", f"{prefix} overlaps {other}, which is in use"
        if prefix.version in {other.version for other in balanced[:at]}:
            yield f"services.cluster_cidrs[{at}]", "give at most one prefix a family"
    if services.load_balancer_cidrs == Services().load_balancer_cidrs:
        return  # which nobody has asked for (`ingress_prefixes`)
    for at, text in enumerate(services.load_balancer_cidrs):
        for other in (*machines, *balanced):
            if overlaps(ipaddress.ip_network(text), other):
                yield f"services.load_balancer_cidrs[{at}]", f"{text} overlaps {other}, which is in use"


def ingress_prefixes(cluster: Cluster) -> tuple[str, ...]:
    """Where the addresses of load balancers come from: of the default only what nothing else uses."""
    used = _of_machines(cluster) + [ipaddress.ip_network(text) for text in cluster.services.cluster_cidrs]
    found = cluster.services.load_balancer_cidrs
    return tuple(x for x in found if not any(overlaps(ipaddress.ip_network(x), other) for other in used))


def unfit_address(cluster: Cluster, text: str, *, is_cluster_ip: bool) -> str:
    """Why a Service cannot have an address in this lab, "" if it can: an external IP may also be a machine's."""
    address = ipaddress.ip_address(text)
    if address.is_multicast or address.is_unspecified or text == "255.255.255.255":
        return f"{text} cannot be the address of a host"
    pods = [ipaddress.ip_network(prefix) for node in cluster.nodes for prefix in node.pod_cidrs]
    outside = [ipaddress.ip_network(one) for host in cluster.outside for one in host.addresses]
    for used in (*_of_machines(cluster), *outside) if is_cluster_ip else pods:
        if address in used:
            return f"{text} is in {used}, which is in use"
    return ""


def _of_machines(cluster: Cluster) -> list[IPNetwork]:
    found = [ipaddress.ip_network(text) for node in cluster.nodes for text in node.pod_cidrs]
    return found + underlay_prefixes(cluster)


def _networks(cluster: Cluster) -> Iterator[Fault]:
    vnis: dict[int, str] = {}
    routed_to_host = 0
    for index, network in enumerate(cluster.networks):
        where = f"networks[{index}]"
        if network.type is NetworkType.L2BRIDGE:
            if cluster.underlay.type is not UnderlayType.L2:
                yield f"{where}.type", "L2Bridge needs an l2 underlay: an l3 router knows nothing of pods"
            if len(cluster.networks) > 1:
                yield f"{where}.type", "an L2Bridge network must be the only one: its pods share the underlay"
        elif network.vni in vnis:
            yield f"{where}.vni", f"VNI {network.vni} is already that of {vnis[network.vni]}"
        vnis[network.vni] = network.name
        routed_to_host += network.host_route
        if network.host_route and routed_to_host > 1:
            yield (
                f"{where}.host_route",
                "the networks use the same pod CIDRs, so one at most may reach the host",
            )
        yield from _vxlan_port(cluster, index)
        if network.nat_exceptions:
            yield from _uncovered(cluster, index)
    if len(cluster.networks) > 1:
        for index, node in enumerate(cluster.nodes):
            if node.stack is Stack.KERNEL:
                yield f"nodes[{index}].stack", "a kernel node carries one network; this cluster has several"


def _vxlan_port(cluster: Cluster, index: int) -> Iterator[Fault]:
    where, port = f"networks[{index}].vxlan_port", cluster.networks[index].vxlan_port
    if port != cluster.networks[0].vxlan_port:
        yield where, "all networks share one port"
    if port in {KUBELET_PORT, DNS_PORT}:
        yield where, f"{port} is the lab's own: every node serves it"


def _uncovered(cluster: Cluster, index: int) -> Iterator[Fault]:
    exceptions = [ipaddress.ip_network(text) for text in cluster.networks[index].nat_exceptions]
    for node in cluster.nodes:
        for text in node.pod_cidrs:
            if not any(within(ipaddress.ip_network(text), prefix) for prefix in exceptions):
                yield (
                    f"networks[{index}].nat_exceptions",
                    f"pod CIDR {text} of {node.name} is missing: pods would be NATed towards one another",
                )


def _outside(cluster: Cluster) -> Iterator[Fault]:
    taken: set[str] = set()
    pods = [ipaddress.ip_network(text) for node in cluster.nodes for text in node.pod_cidrs]
    for index, host in enumerate(cluster.outside):
        versions: set[int] = set()
        for at, text in enumerate(host.addresses):
            path, address = f"outside[{index}].addresses[{at}]", ipaddress.ip_address(text)
            prefix = ipaddress.ip_network(address)
            if address.version in versions:
                yield path, "give at most one address a family"
            versions.add(address.version)
            if address.version not in {under.version for under in underlay_prefixes(cluster)}:
                yield path, f"the underlay has no IPv{address.version}"
            if any(overlaps(prefix, other) for other in [*pods, *underlay_prefixes(cluster)]):
                yield path, "lies inside the underlay or a pod CIDR; the host is to be outside"
            if str(address) in taken:
                yield path, f"{text!r} is already taken"
            taken.add(str(address))


def _manifests(cluster: Cluster) -> Iterator[Fault]:
    names = {network.name for network in cluster.networks}
    for index, manifest in enumerate(cluster.manifests):
        if manifest.network is not None and manifest.network not in names:
            yield f"manifests[{index}].network", f"no network is named {manifest.network!r}"
        if not NAMESPACE.fullmatch(manifest.namespace):
            yield f"manifests[{index}].namespace", f"{manifest.namespace!r} is not a valid namespace"


def _address_fault(text: str) -> str:
    if not _is_address(text):
        return f"{text!r} is not an IP address"
    address = ipaddress.ip_address(text)
    special = address.is_multicast or address.is_loopback or address.is_link_local
    if special or address.is_unspecified or "%" in text or text == "255.255.255.255":
        return f"nobody reaches a host at {text}"
    return ""


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
