"""Networks: creation, modification, deletion with all that is theirs."""

from __future__ import annotations

from ipaddress import IPv4Network

import msgspec

from samewire.errors import Exhausted
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.normalise import check_network, check_subnet
from samewire.hcn.numbered import numbered
from samewire.hcn.plan.context import Context, created, deleted, get_network, modified, refuse_existing
from samewire.hcn.plan.endpoints import delete_endpoints
from samewire.hcn.plan.policies import check_sets
from samewire.hcn.plan.uplink import check_constraint, check_source_mac, check_vlans, tag_of, vlans_of
from samewire.hcn.policies import (
    DrMacAddress,
    HostRoute,
    NetAdapterName,
    Policy,
    ProviderAddress,
    first,
    parse_prefix,
)
from samewire.hcn.policy_lists import OF_OBJECT, PolicyList, placed
from samewire.hcn.schema import (
    Ipam,
    Kind,
    Network,
    NetworkType,
    RouteEntry,
    Subnet,
)
from samewire.hcn.state import View
from samewire.hcn.switch import Change, NodeFacts

_replace = msgspec.structs.replace

EXTERNAL = frozenset(
    {NetworkType.OVERLAY, NetworkType.L2BRIDGE, NetworkType.L2TUNNEL, NetworkType.TRANSPARENT}
)
"""Types on the node's uplink; HNS reports the management address on them as ProviderAddress."""

ROUTED = frozenset({NetworkType.OVERLAY, NetworkType.NAT})
"""Types whose gateway is the switch itself: without a default route the first address of the subnet is it."""

ISOLATED = frozenset({NetworkType.PRIVATE, NetworkType.INTERNAL})
"""Types that may reuse the subnets of others."""

DEFAULT_ROUTES = {4: "0.0.0.0/0", 6: "::/0"}


def create_network(context: Context, network: Network) -> list[Change]:
    """Plan the creation of a network. Raises HcnError, Exhausted."""
    network = check_network(network)
    refuse_existing(context.view, Kind.NETWORK, network.id)
    if network.name and context.view.network_by_name(network.name) is not None:
        raise HcnError(
            HcnCode.NETWORK_ALREADY_EXISTS,
            f"$.Name: A network with this name already exists. ({network.name})",
        )
    if network.type is NetworkType.NAT and not network.subnets:
        network = _replace(network, ipams=(Ipam(subnets=(_default_subnet(context),)),))
    network = with_gateways(network)
    check_clashes(context.view, network, context.facts)
    check_adapter(network.policies, context.facts, OF_OBJECT)
    check_vlans(network, vlans_of(network), context.facts)
    check_source_mac(network)
    check_sets(network, network.policies, OF_OBJECT)
    if network.type is NetworkType.OVERLAY and not (context.facts.management_ips and context.facts.dr_mac):
        raise HcnError(
            HcnCode.ADAPTER_NOT_FOUND,
            "$.Type: the node has no uplink address for an overlay, or its vxlan_port is taken",
        )
    return [created(Kind.NETWORK, stamped(network, context.facts))]


def delete_network(context: Context, network_id: str) -> list[Change]:
    """Plan the deletion of a network with its load balancers, routes and endpoints. Raises HcnError."""
    network = get_network(context.view, network_id)
    load_balancers = context.view.load_balancers_of_network(network.id)
    endpoints = delete_endpoints(context.view, context.view.endpoints_of_network(network.id))
    return [
        *(deleted(Kind.LOADBALANCER, value) for value in load_balancers),
        *(deleted(Kind.ROUTE, route) for route in context.view.routes_of_network(network.id)),
        *(change for change in endpoints if change.kind not in (Kind.LOADBALANCER, Kind.ROUTE)),
        deleted(Kind.NETWORK, network),
    ]


def refresh_networks(context: Context) -> list[Change]:
    """Plan what a change of the node's own addresses means for networks that are there."""
    return [
        change
        for network in context.view.networks()
        for change in modified(Kind.NETWORK, network, stamped(network, context.facts))
    ]


def _default_subnet(context: Context) -> Subnet:
    """Return the first /20 of 172.16.0.0/12 that nobody on the node uses. Raises Exhausted."""
    used = [parse_prefix(prefix) for prefix in context.facts.local_prefixes]
    used += [parse_prefix(ip) for ip in context.facts.management_ips]
    used += [
        parse_prefix(subnet.ip_address_prefix)
        for other in context.view.networks()
        for subnet in other.subnets
    ]
    for candidate in IPv4Network("172.16.0.0/12").subnets(new_prefix=20):
        if not any(candidate.overlaps(prefix) for prefix in used if prefix.version == 4 and prefix.prefixlen):
            return check_subnet(
                Subnet(ip_address_prefix=str(candidate)), NetworkType.NAT, "$.Ipams[0].Subnets[0]"
            )
    raise Exhausted("default NAT subnets", "all of 172.16.0.0/12 is in use on the node")


def with_gateways(network: Network) -> Network:
    """Return a network whose subnets have a gateway, where its type is routed."""
    if network.type not in ROUTED:
        return network
    ipams = tuple(
        _replace(ipam, subnets=tuple(_with_gateway(subnet) for subnet in ipam.subnets))
        for ipam in network.ipams
    )
    return _replace(network, ipams=ipams)


def _with_gateway(subnet: Subnet) -> Subnet:
    prefix = parse_prefix(subnet.ip_address_prefix)
    if subnet.gateway or prefix.prefixlen > prefix.max_prefixlen - 2:
        return subnet
    route = RouteEntry(next_hop=str(prefix[1]), destination_prefix=DEFAULT_ROUTES[prefix.version])
    return _replace(subnet, routes=(*subnet.routes, route))


def check_clashes(view: View, network: Network, facts: NodeFacts) -> None:
    """Refuse a VNI or a subnet that another network of the node has. In another VLAN it is another subnet. Raises
    HcnError.
    """
    for other in view.networks():
        if other.id == network.id:
            continue
        name = other.name or other.id
        if network.vni and other.vni == network.vni:
            raise HcnError(HcnCode.INVALID_NETWORK, f"$.Ipams: VSID {network.vni} is that of network {name}")
        overlays = network.type is NetworkType.OVERLAY and other.type is NetworkType.OVERLAY
        # The node's own routing table is one: of overlays that it is part of none may have another's subnet.
        tenants = overlays and not (first(network.policies, HostRoute) and first(other.policies, HostRoute))
        apart = tag_of(network, facts) != tag_of(other, facts)
        if tenants or apart or network.type in ISOLATED or other.type in ISOLATED:
            continue
        for subnet in network.subnets:
            for theirs in other.subnets:
                if parse_prefix(subnet.ip_address_prefix).overlaps(parse_prefix(theirs.ip_address_prefix)):
                    raise HcnError(
                        HcnCode.INVALID_SUBNET,
                        f"$.Ipams: {subnet.ip_address_prefix} overlaps {theirs.ip_address_prefix} of {name}",
                    )


def check_adapter(policies: tuple[Policy, ...], facts: NodeFacts, path: str) -> None:
    """Refuse an adapter, or an address of one, that is not the node's uplink. Raises
    HcnError(ADAPTER_NOT_FOUND).
    """
    for where, adapter in placed(policies, NetAdapterName, path):
        if facts.uplink and adapter.network_adapter_name != facts.uplink:
            raise HcnError(
                HcnCode.ADAPTER_NOT_FOUND,
                f"{where}.NetworkAdapterName: the uplink of this node is {facts.uplink}, not "
                f"{adapter.network_adapter_name}",
            )
    check_constraint(policies, facts, path)
    for where, provider in placed(policies, ProviderAddress, path):
        if provider.provider_address not in facts.management_ips:
            raise HcnError(
                HcnCode.ADAPTER_NOT_FOUND,
                f"{where}.ProviderAddress: the uplink does not hold {provider.provider_address}",
            )


def stamped(network: Network, facts: NodeFacts) -> Network:
    """Write what the node knows into the policies: DR MAC on overlays, management address on external
    networks.
    """
    if network.type not in EXTERNAL:
        return network
    policies = numbered(network.policies)
    if network.type is NetworkType.OVERLAY and facts.dr_mac:
        policies = _with(policies, DrMacAddress(address=facts.dr_mac))
    provider = first(policies, ProviderAddress)
    address = _provider_address(provider.provider_address if provider else "", facts.management_ips)
    if address:
        policies = _with(policies, ProviderAddress(provider_address=address))
    return _replace(network, policies=policies)


def _provider_address(held: str, management_ips: tuple[str, ...]) -> str:
    """Return the provider address that follows the held one; empty if there is none. One that is gone is
    followed by one of its family only: a node that is given a new address is without one for a moment,
    and its peers' tunnels do not change their family.
    """
    if held in management_ips:
        return held
    family = [address for address in management_ips if not held or (":" in address) == (":" in held)]
    return family[0] if family else held


def _with(policies: PolicyList, new: Policy) -> PolicyList:
    """Return policies with the one of the new one's type replaced in its place, or the new one added."""
    there = policies.group(type(new))
    if not there.items:
        return policies.edited(new=(new,))
    return policies if there.items[0] == new else policies.edited(instead={there.numbers[0]: new})
