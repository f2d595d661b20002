"""Which entry of the tables decided a step, in words. Pure; it reads what the programs have read."""

from __future__ import annotations

from typing import Final, cast

from msgspec import Struct

from samewire.counted import counted
from samewire.trace.rows import typed_rows
from samewire.vfp.acl_names import AclNames
from samewire.vfp.acl_view import AclIndex, AclRuleView
from samewire.vfp.address import ZERO, address_text, masked
from samewire.vfp.constants import (
    ACL_IN,
    ACL_OUT,
    NAT_KEY_BITS,
    ROUTE_KEY_BITS,
    SCOPE_HOST,
    NatFlag,
    RouteKind,
)
from samewire.vfp.model import Entries
from samewire.vfp.rule_names import rule_text
from samewire.vfp.simulate.packet import Tuple
from samewire.vfp.tables import (
    Id,
    Nat,
    NatKey,
    Nexthop,
    OwnRouteKey,
    Port,
    Route,
    RouteKey,
)

_NO_NAMES: Final = AclNames()


class Packet(Struct, frozen=True):
    """What the rules are asked about: ``scope`` of the network, IP version and protocol, the ends as received."""

    scope: int
    family: int
    protocol: int
    ends: Tuple


def scope_from_host(tables: Entries, family: int, destination: bytes) -> int:
    """The network that the node itself means by an address; SCOPE_HOST when none."""
    found = _longest_route(tables, SCOPE_HOST, family, destination)
    return found[1].scope if found else SCOPE_HOST


def route_text(tables: Entries, packet: Packet, port: int) -> str:
    """The route of a packet's destination: its prefix, and where it leads. ``port``: whose own routes count, too."""
    destination = packet.ends.destination
    of_network = _longest_route(tables, packet.scope, packet.family, destination)
    own = _own_route(tables, port, packet.family, destination)
    if own is not None and (of_network is None or own.bits >= of_network[1].bits):
        return f"{_prefix(packet, own)} (the endpoint's own route) {_leads_to(tables, own)}"
    if of_network is None:
        return "no route"
    return f"{_prefix(packet, of_network[1])} {_leads_to(tables, of_network[1])}"


def _prefix(packet: Packet, route: Route) -> str:
    return f"{address_text(packet.family, masked(packet.ends.destination, route.bits))}/{route.bits}"


def _own_route(tables: Entries, ifindex: int, family: int, address: bytes) -> Route | None:
    port = cast(Port | None, tables.get("sw_ports", {}).get(Id(ifindex)))
    if port is None or not port.route_set:
        return None
    found = [
        route
        for key, route in typed_rows(tables, "sw_own_routes", OwnRouteKey, Route)
        if (key.set, key.family) == (port.route_set, family) and masked(address, route.bits) == key.address
    ]
    return max(found, key=lambda route: route.bits, default=None)


def nexthop(tables: Entries, number: int) -> Nexthop | None:
    """A next hop by its number."""
    return cast(Nexthop | None, tables.get("sw_nexthops", {}).get(Id(number)))


def nexthop_address(hop: Nexthop, family: int, destination: bytes) -> str:
    """The address that a packet is sent to: the gateway's, or on-link its own destination."""
    if hop.address == ZERO:
        return address_text(family, destination)
    return address_text(hop.family, hop.address)


def acl_text(tables: Entries, port: int, outward: bool, rule: int, names: AclNames = _NO_NAMES) -> str:
    """The rule of a port that decided; ``rule`` 0: none did."""
    own = cast(Port | None, tables.get("sw_ports", {}).get(Id(port)))
    side = ACL_OUT if outward else ACL_IN
    if own is None or not own.acl_words[side]:
        return "no rules: everything passes"
    rules = list(AclIndex(tables).rules(own, side, names.sets))
    given = names.policies.get(rule, "")
    called = f"rule {rule_text(rule)}" + (f" ({given})" if given else "")
    for view in rules:
        if view.rule == rule and rule:
            return f"{called}, priority {view.priority}: {view.action}, {_conditions_text(view)}"
    if rule:
        return called
    if any(not view.rule for view in rules):
        return f"no match in {counted(len(rules) - 1, 'rule')}: let pass"
    return f"no match in {counted(len(rules), 'rule')}"


def nat_text(tables: Entries, port: int, packet: Packet, rule: int) -> str:
    """The OutBoundNAT prefix that applied; ``rule`` 0: a pod that reaches itself."""
    if not rule:
        return "hairpin: the gateway stands in for the sender"
    own = cast(Port | None, tables.get("sw_ports", {}).get(Id(port)))
    found: tuple[NatKey, Nat] | None = None
    for key, value in typed_rows(tables, "sw_nat", NatKey, Nat):
        bits = key.prefix_bits - NAT_KEY_BITS
        if (key.set, key.family) != (own.nat_set if own else 0, packet.family):
            continue
        longer = found is None or key.prefix_bits > found[0].prefix_bits
        if longer and masked(packet.ends.destination, bits) == key.address:
            found = key, value
    if found is None:
        return f"rule {rule}"
    key, value = found
    where = ", everywhere" if value.flags & NatFlag.EXPLICIT else ""
    prefix = f"{address_text(key.family, key.address)}/{key.prefix_bits - NAT_KEY_BITS}"
    return f"rule {rule}: to {prefix}{where} as {address_text(key.family, value.address)}"


def _longest_route(tables: Entries, scope: int, family: int, address: bytes) -> tuple[RouteKey, Route] | None:
    found: tuple[RouteKey, Route] | None = None
    for key, value in typed_rows(tables, "sw_routes", RouteKey, Route):
        if (key.scope, key.family) != (scope, family) or (found and key.prefix_bits < found[0].prefix_bits):
            continue
        if masked(address, key.prefix_bits - ROUTE_KEY_BITS) == key.address:
            found = key, value
    return found


def _leads_to(tables: Entries, route: Route) -> str:
    if route.kind == RouteKind.LOCAL:
        return "is this network's own"
    if route.kind == RouteKind.HOST:
        return "is the node's own"
    if route.kind == RouteKind.SCOPE:
        return f"is network {route.scope}'s"
    if route.kind == RouteKind.BLACKHOLE:
        return "leads nowhere (blackhole)"
    hop = nexthop(tables, route.nexthop)
    if hop is None:
        return f"leads to next hop {route.nexthop}, which is missing"
    via = "on-link" if hop.address == ZERO else f"via {address_text(hop.family, hop.address)}"
    if route.kind == RouteKind.TUNNEL:
        return f"{via} in VXLAN {hop.vni}, MTU {hop.mtu}"
    if hop.vni:
        return f"is in VLAN {hop.vni} on the uplink, MTU {hop.mtu}"
    return f"{via} on the uplink, MTU {hop.mtu}"


def _conditions_text(view: AclRuleView) -> str:
    protocol = view.conditions[0].removeprefix("protocol ")
    return ", ".join(["any protocol" if protocol == "any" else protocol, *view.conditions[1:]])
