"""Endpoints -> the veth pair they want: addresses, routes, neighbours, MTU and the cap towards the pod."""

from __future__ import annotations

import re
from collections.abc import Iterator

from samewire.errors import Invalid
from samewire.hcn.policies import QOS, EncapOverhead, InterfaceParameters, first
from samewire.hcn.policy_lists import placed
from samewire.hcn.schema import Endpoint, EndpointFlags, Network, NetworkType
from samewire.vfp.address import (
    NO_MAC,
    ZERO,
    Address,
    Prefix,
    address_bits,
    parse_address,
    parse_mac,
    parse_prefix,
)
from samewire.vfp.announcement import announcement
from samewire.vfp.compile.plan import NetworkPlan, plan_network
from samewire.vfp.compile.proxy import compile_proxies
from samewire.vfp.model import LinkNeighbour, LinkRoute, NodeFacts, PortLink

DEFAULT_INTERFACE = "eth0"
LEAST_MTU = 68  # of any interface, as the kernel has it
LEAST_MTU_OF_IPV6 = 1280  # of one that is to keep its IPv6 addresses (RFC 8200, section 5)
FURTHER_METRIC = 2048  # above 1024, what the kernel makes of "no metric" for IPv6
# Bursts of the two shapers. A full bucket passes beside the rate: 10 ms of it are 0.5 % over two seconds. A
# segmentation-offloaded packet larger than the bucket is cut by the shaper, so the least holds single packets only.
BURST_S = 0.01
MIN_BURST_BYTES = 16 * 1024
# What the policer's bucket in the switch (bpf/bucket.h) is deeper than the shaper's that stands before it. Dropping
# alone does not hold TCP near a rate: measured with round trips of microseconds, 0.25 of 20 Mbit/s to 2 Gbit/s with
# bursts of 50 ms, because every retransmission timeout of 200 ms loses what the bucket cannot keep; with bursts of a
# second it would be right on average and twice the rate over the first two seconds. The shapers hold 0.95 to 1.0.
POLICE_SLACK_BYTES = 64 * 1024


def compile_link(endpoint: Endpoint, network: Network, facts: NodeFacts, netns_path: str) -> PortLink:
    """The link of a local endpoint in the namespace ``netns_path``. Raises ``Invalid``, naming the field."""
    plan = plan_network(network, facts)
    addresses = endpoint_addresses(endpoint, plan)
    routes = _routes(endpoint, plan, addresses)
    mac = endpoint_mac(endpoint)
    rate, burst = incoming_cap(endpoint)
    outgoing_rate, outgoing_burst = outgoing_cap(endpoint)
    return PortLink(
        endpoint_id=endpoint.id,
        host_name=host_name(endpoint.id),
        host_mac=plan.gateway_mac,
        netns_path=netns_path,
        interface_name=endpoint.interface_name or DEFAULT_INTERFACE,
        mac=mac,
        mtu=endpoint_mtu(endpoint, plan, facts),
        addresses=addresses,
        routes=routes,
        neighbours=_neighbours(plan, routes),
        rate_bytes_per_s=rate,
        burst_bytes=burst,
        outgoing_rate_bytes_per_s=outgoing_rate,
        outgoing_burst_bytes=outgoing_burst,
        proxies=compile_proxies(network.policies, endpoint.policies, addresses),
        announcements=_announcements(plan, addresses, mac_on_wire(plan, mac, facts)),
    )


def host_name(endpoint_id: str) -> str:
    """The host end's name: ``sw`` and the first 11 hex digits of the endpoint's id."""
    return "sw" + endpoint_id.replace("-", "").lower()[:11]


def endpoint_mac(endpoint: Endpoint) -> bytes:
    """The endpoint's own MAC. Raises ``Invalid``."""
    return parse_mac(endpoint.mac_address, "$.MacAddress")


def mac_on_wire(plan: NetworkPlan, mac: bytes, facts: NodeFacts) -> bytes:
    """The MAC by which an endpoint of the underlay, whose own is ``mac``, is known there; zero without an uplink."""
    if plan.type is NetworkType.TRANSPARENT:
        return mac
    return plan.source_mac if plan.source_mac != NO_MAC else facts.uplink_mac


def endpoint_addresses(endpoint: Endpoint, plan: NetworkPlan) -> tuple[Prefix, ...]:
    """The endpoint's addresses, each with the prefix length given, else the subnet's, else that of a host.

    Raises ``Invalid`` for malformed addresses and for more than one of a family.
    """
    found: dict[int, Prefix] = {}
    for i, entry in enumerate(endpoint.ip_configurations):
        path = f"$.IpConfigurations[{i}].IpAddress"
        address = parse_address(entry.ip_address, path)
        if address.family in found:
            raise Invalid(path, f"a second IPv{address.family} address; an endpoint has one of each family")
        bits = entry.prefix_length
        if bits is None:
            subnet = plan.subnet_of(address)
            bits = subnet.prefix.bits if subnet else address_bits(address.family)
        found[address.family] = Prefix(address.family, address.packed, bits)
    return tuple(found.values())


def endpoint_mtu(endpoint: Endpoint, plan: NetworkPlan, facts: NodeFacts) -> int:
    """The endpoint's MTU in bytes: what the network leaves, or less when InterfaceParameters says so.

    The uplink's may become less than the kernel takes of an interface: that is no reason to be without the endpoint.
    """
    overhead = first(endpoint.policies, EncapOverhead)
    left = facts.uplink_mtu - overhead.overhead if overhead else plan.mtu
    has_ipv6 = any(":" in entry.ip_address for entry in endpoint.ip_configurations)
    mtu = max(left, LEAST_MTU_OF_IPV6 if has_ipv6 else LEAST_MTU)
    wanted = first(endpoint.policies, InterfaceParameters)
    return min(mtu, wanted.mtu) if wanted and wanted.mtu else mtu


def check_overhead(endpoint: Endpoint, facts: NodeFacts) -> None:
    """Raises ``Invalid`` for an EncapOverhead that leaves too little of what the uplink has now."""
    overhead = first(endpoint.policies, EncapOverhead)
    if overhead and facts.uplink_mtu - overhead.overhead < LEAST_MTU:
        path, _ = next(placed(endpoint.policies, EncapOverhead))
        left = f"leaves {facts.uplink_mtu - overhead.overhead} of the uplink's {facts.uplink_mtu} bytes"
        raise Invalid(f"{path}.Overhead", f"{left}; an interface needs {LEAST_MTU}")


def endpoint_gateway(endpoint: Endpoint, plan: NetworkPlan, address: Address) -> bytes:
    """The gateway of one of the endpoint's addresses, packed: its own default route, else the subnet's."""
    for entry in endpoint.routes:
        if entry.next_hop and parse_prefix(entry.destination_prefix, "$.Routes").bits == 0:
            via = parse_address(entry.next_hop, "$.Routes")
            if via.family == address.family and via.packed != ZERO:
                return via.packed
    subnet = plan.subnet_of(address)
    return subnet.gateway.packed if subnet and subnet.gateway else ZERO


def incoming_cap(endpoint: Endpoint) -> tuple[int, int]:
    """The cap towards the endpoint: bytes per second and burst in bytes; zeros when there is none."""
    qos = first(endpoint.policies, QOS)
    if qos is None:
        return 0, 0
    return cap(qos.maximum_incoming_bandwidth_in_bytes, qos.maximum_incoming_burst_in_bytes)


def outgoing_cap(endpoint: Endpoint) -> tuple[int, int]:
    """The cap from the endpoint: bytes per second and burst in bytes; zeros when there is none."""
    qos = first(endpoint.policies, QOS)
    if qos is None:
        return 0, 0
    return cap(qos.maximum_outgoing_bandwidth_in_bytes, qos.maximum_outgoing_burst_in_bytes)


def cap(rate_bytes_per_s: int, burst_bytes: int) -> tuple[int, int]:
    """A rate with its burst: the one given, else 10 ms of the rate; never less than a jumbo packet."""
    if not rate_bytes_per_s:
        return 0, 0
    return rate_bytes_per_s, max(burst_bytes or round(rate_bytes_per_s * BURST_S), MIN_BURST_BYTES)


def _routes(endpoint: Endpoint, plan: NetworkPlan, addresses: tuple[Prefix, ...]) -> tuple[LinkRoute, ...]:
    """The endpoint's own routes, and the subnet's gateway as default for each family that has none.

    The next hop 0.0.0.0 (or ::) of a default route means "no default route".
    """
    routes: list[LinkRoute] = []
    defaults: set[int] = set()
    families = {prefix.family for prefix in addresses}
    for i, entry in enumerate(endpoint.routes):
        path = f"$.Routes[{i}]"
        destination = parse_prefix(entry.destination_prefix, f"{path}.DestinationPrefix")
        via = parse_address(entry.next_hop, f"{path}.NextHop") if entry.next_hop else None
        if via is not None and via.family != destination.family:
            raise Invalid(f"{path}.NextHop", f"{via} is not of the family of {destination}")
        unspecified = via is not None and via.packed == ZERO
        if destination.bits == 0:
            defaults.add(destination.family)
        if destination.family in families and not (unspecified and destination.bits == 0):
            routes.append(LinkRoute(destination, None if unspecified else via, entry.metric))
    for own in addresses:
        subnet = plan.subnet_of(own.address)
        if own.family not in defaults and subnet is not None and subnet.gateway is not None:
            further = _further(endpoint.interface_name)
            metric = FURTHER_METRIC + further if further else 0
            routes.append(LinkRoute(Prefix(own.family, ZERO, 0), subnet.gateway, metric))
    if endpoint.flags & EndpointFlags.ENABLE_LOW_INTERFACE_METRIC and _further(endpoint.interface_name):
        return tuple(half for route in routes for half in _preferred(route))
    return tuple(routes)


def _further(interface_name: str) -> int:
    """The number of a further interface of a pod, 0 for eth0: that one has the way out, and a default route that nobody
    asked for must not take it away. Secondary networks' plugins call theirs net1.
    """
    if interface_name in ("", DEFAULT_INTERFACE):
        return 0
    number = re.search("[1-9][0-9]{0,4}$", interface_name)
    return int(number[0]) if number else 1


def _preferred(route: LinkRoute) -> Iterator[LinkRoute]:
    """A route of an interface with a low metric. Nothing is lower than the first interface's default route, which has
    none; the two halves of everything are longer, and do not depend on which interface was there first.
    """
    if route.destination.bits:
        yield route
        return
    for first_byte in (0, 0x80):
        half = Prefix(route.destination.family, bytes([first_byte]) + ZERO[1:], 1)
        yield LinkRoute(half, route.gateway)


def _announcements(plan: NetworkPlan, addresses: tuple[Prefix, ...], mac: bytes) -> tuple[bytes, ...]:
    """Of an endpoint on the underlay; in an overlay nobody but the tables knows where addresses are."""
    if not plan.bridged or mac == NO_MAC:
        return ()
    return tuple(announcement(own.address, mac, plan.vlan) for own in addresses)


def _neighbours(plan: NetworkPlan, routes: tuple[LinkRoute, ...]) -> tuple[LinkNeighbour, ...]:
    """All gateways are the switch. On a Transparent network and in a VLAN they are machines, found by ARP and ND."""
    if plan.type is NetworkType.TRANSPARENT or plan.vlan:
        return ()
    gateways = dict.fromkeys(route.gateway for route in routes if route.gateway is not None)
    return tuple(LinkNeighbour(gateway, plan.gateway_mac) for gateway in gateways)
