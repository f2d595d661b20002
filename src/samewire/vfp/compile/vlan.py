"""A network that is a VLAN of the uplink's: whose its tag is, and the way out of its scope.

Networks with the same tag share a scope: they are one link. Nothing is resolved here: pods find their gateway and other
neighbours in the VLAN by ARP and ND of their own, and the switch sends by the MAC that they have found.
"""

from __future__ import annotations

from collections.abc import Iterable

from samewire.hcn.policies import OutBoundNAT, Policy, select
from samewire.vfp.address import IPV4, ZERO, Address, Prefix, parse_address
from samewire.vfp.compile.builder import Builder, uplink_nexthop
from samewire.vfp.compile.plan import Context
from samewire.vfp.constants import ROUTE_KEY_BITS, SCOPE_UPLINK, VLAN, VLAN_ID, VLAN_NODE, RouteKind
from samewire.vfp.model import FAMILIES
from samewire.vfp.tables import Id, Neighbour, RouteKey, Vni


def compile_vlan(builder: Builder, context: Context) -> None:
    """Add what all networks of a VLAN want alike."""
    plan, scope = context.plan, context.scope
    nexthop = vlan_nexthop(context)
    builder.put("sw_nexthops", Id(nexthop), uplink_nexthop(context.facts, Address(IPV4, ZERO), plan.vlan))
    builder.put("sw_vnis", Id(VLAN | plan.vlan), Vni(scope))
    builder.put("sw_vnis", Id(VLAN_NODE | VLAN_ID), Vni(SCOPE_UPLINK))
    for family in FAMILIES:
        everything = Prefix(family, ZERO, 0)
        builder.route(scope, everything, RouteKind.UPLINK, nexthop=nexthop, target_scope=scope)


def answer_for_translated(builder: Builder, policies: Iterable[Policy], context: Context, mac: bytes) -> None:
    """Let the VLAN know the addresses that an endpoint with this ``mac`` there is translated to: nobody has them."""
    for policy in select(policies, OutBoundNAT):
        if policy.virtual_ip:
            own = parse_address(policy.virtual_ip, "$.Policies").host_prefix
            key = RouteKey(ROUTE_KEY_BITS + own.bits, context.scope, own.family, own.packed)
            builder.put("sw_neighbours", key, Neighbour(mac, 0, own.packed))


def vlan_nexthop(context: Context) -> int:
    """The number of the nexthop that all destinations in the network's VLAN have."""
    return context.nexthop(f"uplink/vlan/{context.plan.vlan}")
