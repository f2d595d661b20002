"""Networks: the routes of a scope, VNIs, remote subnets, and what the host wants of the network."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from samewire.errors import Invalid, NotFound
from samewire.hcn.policies import VSID, NeighborDiscovery, first, select
from samewire.hcn.schema import Network, NetworkType
from samewire.vfp.address import NO_MAC, Prefix, address_bits, parse_address, parse_mac, parse_prefix
from samewire.vfp.compile.builder import Builder
from samewire.vfp.compile.node import closed_broadcasts, host_routes, underlay_routes
from samewire.vfp.compile.plan import Context, NetworkPlan, RemoteSubnet, network_context
from samewire.vfp.compile.route import sdn_routes, subnet_routes
from samewire.vfp.compile.vlan import compile_vlan
from samewire.vfp.constants import ROUTE_KEY_BITS, NeighbourFlag, RouteFlag, RouteKind
from samewire.vfp.model import Compiled, HostBinding, HostRoute, NodeFacts, Numbers
from samewire.vfp.tables import Id, Neighbour, RouteKey, Vni

MAX_VNI = 2**24 - 2
"""The highest of all is DSR's own (`samewire.vfp.compile.direct`)."""


def compile_network(network: Network, facts: NodeFacts, numbers: Numbers) -> Compiled:
    """Everything that holds for a network whatever endpoints it has, but for its remote subnets.

    Those are owners of their own (`compile_remote`): one that comes is none of the others' business. Only where the
    network itself has a route to the very prefix is it decided here which of the two holds.
    Raises ``Invalid`` (naming the field), ``Exhausted``.
    """
    context = network_context(network, facts, numbers)
    plan, scope = context.plan, context.scope
    builder = Builder()
    if not plan.bridged:
        if plan.uplink:
            underlay_routes(builder, scope, facts, numbers, flags=context.routed_flags)
            closed_broadcasts(builder, scope, facts)
        if plan.type is not NetworkType.PRIVATE:
            host_routes(builder, scope, facts)
    for subnet in plan.subnets:
        if not subnet.underlay:
            builder.route(scope, subnet.prefix, RouteKind.LOCAL)
        if plan.bound(subnet) and subnet.gateway is not None:
            builder.route(scope, subnet.gateway.host_prefix, RouteKind.HOST)
    if plan.vlan:
        compile_vlan(builder, context)
    _vnis(builder, network, scope)
    for prefix in plan.shadowed:
        _remote(builder, _the_remote(plan, prefix), context)
    _neighbours(builder, network, context)
    subnet_routes(builder, network, context)
    binding = _host_binding(builder, plan, scope)
    sdn_routes(builder, network, context)
    filters = (plan.source_mac,) if plan.source_mac not in (NO_MAC, facts.uplink_mac) else ()
    return builder.compiled(replace(binding, forwards=builder.forwards, nic_filters=filters))


def compile_remote(network: Network, prefix: Prefix, facts: NodeFacts, numbers: Numbers) -> Compiled:
    """One remote subnet of a network: its tunnel, the route to it, and the node's own. Raises ``Exhausted``."""
    context = network_context(network, facts, numbers)
    remote = _the_remote(context.plan, prefix)
    builder = Builder()
    if prefix not in context.plan.shadowed:
        _remote(builder, remote, context)
    routes = tuple(_node_routes(context, remote))
    for route in routes:
        builder.from_host(route.destination, context.scope)
    return Compiled(builder.entries, HostBinding(routes=routes))


def _the_remote(plan: NetworkPlan, prefix: Prefix) -> RemoteSubnet:
    remote = plan.remote.at(prefix)
    if remote is None:
        raise NotFound("remote subnet", str(prefix))
    return remote


def _remote(builder: Builder, remote: RemoteSubnet, context: Context) -> None:
    number = context.remote_nexthop(remote)
    hop = context.tunnel(remote.provider, remote.vni or context.plan.vni, remote.router_mac)
    builder.put("sw_nexthops", Id(number), hop)
    builder.route(context.scope, remote.prefix, RouteKind.TUNNEL, nexthop=number, flags=RouteFlag.DECREMENT)


def _vnis(builder: Builder, network: Network, scope: int) -> None:
    if network.type is not NetworkType.OVERLAY:
        return
    for i, ipam in enumerate(network.ipams):
        for j, subnet in enumerate(ipam.subnets):
            policy = first(subnet.policies, VSID)
            if policy is None or not 1 <= policy.isolation_id <= MAX_VNI:
                path = f"$.Ipams[{i}].Subnets[{j}].Policies"
                raise Invalid(path, f"an Overlay subnet needs a VSID policy with IsolationId 1..{MAX_VNI}")
            builder.put("sw_vnis", Id(policy.isolation_id), Vni(scope))


def _neighbours(builder: Builder, network: Network, context: Context) -> None:
    """What is answered for the prefixes of NeighborDiscovery policies; of equal prefixes the first one's counts.

    One that has all of the link's addresses has those of the machines there, too: they speak for themselves.
    """
    plan = context.plan
    link = [s.prefix for s in plan.subnets] if plan.vlan else [own.network for own in context.facts.addresses]
    for policy in reversed(select(network.policies, NeighborDiscovery)):
        prefix = parse_prefix(policy.target_ip_prefix, "$.Policies")
        key = RouteKey(ROUTE_KEY_BITS + prefix.bits, context.scope, prefix.family, prefix.packed)
        all_of_link = any(own in prefix and own.bits < address_bits(own.family) for own in link)
        flags = NeighbourFlag.PODS if all_of_link or not prefix.bits else 0
        mac = parse_mac(policy.sender_mac_address, "$.Policies")
        sender = parse_address(policy.sender_ip_address, "$.Policies")
        builder.put("sw_neighbours", key, Neighbour(mac, flags, sender.packed))


def _host_binding(builder: Builder, plan: NetworkPlan, scope: int) -> HostBinding:
    """The gateway addresses on samewire0, and routes through it; the host's packets find the scope again."""
    bound = [subnet for subnet in plan.subnets if plan.bound(subnet)]
    routes = [HostRoute(subnet.prefix, subnet.gateway) for subnet in bound]
    for route in routes:
        builder.from_host(route.destination, scope)
    addresses = tuple(subnet.gateway.host_prefix for subnet in bound if subnet.gateway is not None)
    return HostBinding(addresses=addresses, routes=tuple(routes))


def _node_routes(context: Context, remote: RemoteSubnet) -> Iterator[HostRoute]:
    """The node's own route to a remote subnet, from its address in the network; none where it has none.

    With the tunnel's MTU: the node cuts its datagrams itself, and loses none to learn how long they may be.
    """
    plan = context.plan
    bound = (subnet for subnet in plan.subnets if plan.bound(subnet))
    first_bound = next((subnet for subnet in bound if subnet.prefix.family == remote.prefix.family), None)
    if first_bound is not None:
        yield HostRoute(remote.prefix, first_bound.gateway, context.tunnel_mtu(remote.provider))
