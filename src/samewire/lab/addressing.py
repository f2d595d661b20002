"""Who has which address on the underlay (pure), derived from the cluster file alone.

``l2``: one segment; the router has host number 1, node *i* has 11 + *i*, the legs of outside hosts with
``pod_routes`` have 201 + *k*. ``l3``: the prefix is cut into one subnet a node (segment *i* is node *i*'s);
the router has host number 1, the node 2, legs 3 + *k*.
"""

from __future__ import annotations

import ipaddress

from msgspec import Struct

from samewire.lab.cluster import Cluster, UnderlayType

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_ROUTER = 1
_L2_FIRST_NODE, _L2_FIRST_LEG = 11, 201
_L3_NODE, _L3_FIRST_LEG = 2, 3
_L3_IPV4_LENGTH, _L3_IPV6_LENGTH = 24, 64
#: Outer IP, UDP and VXLAN headers and the inner Ethernet header, by the outer family.
_VXLAN_OVERHEAD_BYTES = {4: 50, 6: 70}


class Attachment(Struct, frozen=True):
    """One interface on a segment: addresses with prefix length, and the router's addresses there."""

    segment: int
    addresses: tuple[str, ...]
    gateways: tuple[str, ...]


def overlaps(left: IPNetwork, right: IPNetwork) -> bool:
    """Do two prefixes of any family share an address?"""
    return left.version == right.version and left.overlaps(right)


def within(inner: IPNetwork, outer: IPNetwork) -> bool:
    """Is ``inner`` wholly inside ``outer``?"""
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]


def underlay_prefixes(cluster: Cluster) -> list[IPNetwork]:
    """The underlay's own prefixes, IPv4 first."""
    texts = (cluster.underlay.ipv4, cluster.underlay.ipv6)
    return [ipaddress.ip_network(text) for text in texts if text is not None]


def vxlan_overhead(cluster: Cluster) -> int:
    """What an Overlay network takes off each packet: tunnels end at the nodes' first addresses."""
    return _VXLAN_OVERHEAD_BYTES[underlay_prefixes(cluster)[0].version]


def segments(cluster: Cluster) -> list[tuple[IPNetwork, ...]]:
    """The prefixes of each underlay segment, IPv4 first."""
    prefixes = underlay_prefixes(cluster)
    if cluster.underlay.type is UnderlayType.L2:
        return [tuple(prefixes)]
    count = len(cluster.nodes)
    cut = [_cut(prefix, count) for prefix in prefixes]
    return [tuple(family[index] for family in cut) for index in range(count)]


def router_addresses(cluster: Cluster, segment: int) -> tuple[str, ...]:
    """The router's interface addresses on a segment."""
    return _hosts(segments(cluster)[segment], _ROUTER)


def node_attachments(cluster: Cluster) -> list[Attachment]:
    """The uplink of every node, in file order."""
    if cluster.underlay.type is UnderlayType.L2:
        numbers = [(0, _L2_FIRST_NODE + index) for index in range(len(cluster.nodes))]
    else:
        numbers = [(index, _L3_NODE) for index in range(len(cluster.nodes))]
    return [_attachment(cluster, segment, number) for segment, number in numbers]


def leg(cluster: Cluster, segment: int, host_index: int) -> Attachment:
    """The leg of the ``host_index``-th outside host on a segment."""
    first = _L2_FIRST_LEG if cluster.underlay.type is UnderlayType.L2 else _L3_FIRST_LEG
    return _attachment(cluster, segment, first + host_index)


def on_underlay(cluster: Cluster, pod_cidr: str) -> IPNetwork | None:
    """The underlay prefix that ``pod_cidr`` is a range of, or None for a routed pod CIDR."""
    inner = ipaddress.ip_network(pod_cidr)
    return next((outer for outer in underlay_prefixes(cluster) if within(inner, outer)), None)


def first_host(prefix: str) -> str:
    """``10.244.1.0/24`` -> ``10.244.1.1``."""
    return str(ipaddress.ip_network(prefix).network_address + 1)


def bare(interface: str) -> str:
    """``10.0.0.1/24`` -> ``10.0.0.1``."""
    return interface.partition("/")[0]


def family_of(text: str) -> int:
    """4 or 6, for an address or a prefix with or without length."""
    return ipaddress.ip_interface(text).version


def _attachment(cluster: Cluster, segment: int, number: int) -> Attachment:
    prefixes = segments(cluster)[segment]
    gateways = tuple(bare(address) for address in _hosts(prefixes, _ROUTER))
    return Attachment(segment, _hosts(prefixes, number), gateways)


def _hosts(prefixes: tuple[IPNetwork, ...], number: int) -> tuple[str, ...]:
    return tuple(f"{prefix.network_address + number}/{prefix.prefixlen}" for prefix in prefixes)


def _cut(prefix: IPNetwork, count: int) -> list[IPNetwork]:
    """``count`` equal subnets: /24 or /64 where they fit, else the largest that do."""
    preferred = _L3_IPV4_LENGTH if prefix.version == 4 else _L3_IPV6_LENGTH
    needed_bits = max(count - 1, 0).bit_length()
    length = preferred if preferred - prefix.prefixlen >= needed_bits else prefix.prefixlen + needed_bits
    size = 1 << (prefix.max_prefixlen - length)
    kind = type(prefix)
    return [kind((int(prefix.network_address) + index * size, length)) for index in range(count)]
