"""The node itself: sw_config, and the underlay's routes in scope 0."""

from __future__ import annotations

from typing import Final

from samewire.vfp.address import IPV4, ZERO, Address, Prefix
from samewire.vfp.compile.builder import Builder, gateway_nexthop, onlink_nexthop, uplink_nexthop
from samewire.vfp.compile.direct import DIRECT_VNI
from samewire.vfp.constants import (
    LAYOUT_VERSION,
    SCOPE_DIRECT,
    SCOPE_UPLINK,
    TICK_S,
    VLAN_NODE,
    ConfigFlag,
    RouteKind,
)
from samewire.vfp.model import FAMILIES, Compiled, HostBinding, NodeFacts, Numbers
from samewire.vfp.tables import Config, Id, Vni

# Idle times in seconds, those of Linux's conntrack where it has one: users know them.
IDLE_S: Final = {
    "idle_tcp_half_open": 60,
    "idle_tcp_established": 432_000,
    "idle_tcp_closing": 60,
    "idle_udp_single": 30,
    "idle_udp_stream": 120,
    "idle_icmp": 30,
    "idle_other": 600,
}

_LONGEST_WITH_BROADCAST: Final = 30


def compile_node(facts: NodeFacts, numbers: Numbers) -> Compiled:
    """The node's own entries: facts for the programs, its gateways and addresses, the underlay's subnets."""
    builder = Builder()
    builder.put("sw_config", Id(0), _config(facts))
    for family in FAMILIES:
        gateway = Address(family, facts.gateway(family))
        if gateway.packed != ZERO:
            number = gateway_nexthop(family, numbers)
            builder.put("sw_nexthops", Id(number), uplink_nexthop(facts, gateway))
        if facts.address(family) != ZERO:
            number = onlink_nexthop(family, numbers)
            builder.put("sw_nexthops", Id(number), uplink_nexthop(facts, Address(family, ZERO)))
    underlay_routes(builder, SCOPE_UPLINK, facts, numbers, flags=0)
    host_routes(builder, SCOPE_UPLINK, facts)
    builder.put("sw_vnis", Id(DIRECT_VNI), Vni(SCOPE_DIRECT))
    for vlan in facts.vlans:
        builder.put("sw_vnis", Id(VLAN_NODE | vlan), Vni(SCOPE_UPLINK))
    binding = HostBinding(reserved_ports=f"{facts.nat_port_low}-{facts.nat_port_high}")
    return Compiled(builder.entries, binding)


def underlay_routes(builder: Builder, scope: int, facts: NodeFacts, numbers: Numbers, *, flags: int) -> None:
    """The way out of a scope: the underlay's own subnets on-link, everything else by the default gateway."""
    for gateway in facts.gateways:
        everything = Prefix(gateway.family, ZERO, 0)
        number = gateway_nexthop(gateway.family, numbers)
        builder.route(scope, everything, RouteKind.UPLINK, nexthop=number, flags=flags)
    for own in facts.addresses:
        number = onlink_nexthop(own.family, numbers)
        builder.route(scope, own.network, RouteKind.UPLINK, nexthop=number, flags=flags)


def closed_broadcasts(builder: Builder, scope: int, facts: NodeFacts) -> None:
    """Nobody behind the node speaks to all machines of its link: a router forwards no such packet (RFC 2644)."""
    for own in facts.addresses:
        if own.family == IPV4 and own.bits <= _LONGEST_WITH_BROADCAST:
            builder.route(scope, own.broadcast, RouteKind.BLACKHOLE)


def host_routes(builder: Builder, scope: int, facts: NodeFacts) -> None:
    """The node's own addresses belong to its own stack."""
    for own in facts.addresses:
        builder.route(scope, own.address.host_prefix, RouteKind.HOST)


def _config(facts: NodeFacts) -> Config:
    flags = (ConfigFlag.CSUM_IPV6 if facts.csum_ipv6 else 0) | (ConfigFlag.EVENTS if facts.events else 0)
    return Config(
        layout_version=LAYOUT_VERSION,
        uplink_ifindex=facts.uplink_ifindex,
        tunnel_ifindex=facts.tunnel_ifindex,
        host_ifindex=facts.host_ifindex,
        host_peer_ifindex=facts.host_peer_ifindex,
        flow_slots=facts.flow_slots,
        uplink_mac=facts.uplink_mac,
        tunnel_mac=facts.tunnel_mac,
        host_mac=facts.host_mac,
        host_peer_mac=facts.host_peer_mac,
        nat_port_low=facts.nat_port_low,
        nat_port_high=facts.nat_port_high,
        vxlan_port=facts.vxlan_port,
        flags=int(flags),
        netns=facts.netns,
        address=(facts.address(4), facts.address(6)),
        **{name: round(seconds / TICK_S) for name, seconds in IDLE_S.items()},
    )
