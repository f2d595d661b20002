"""Endpoints: the port, the addresses it owns, its host ports, ACLs, NAT and bandwidth cap."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from samewire.hcn.policies import OutBoundNAT, ProviderAddress, first
from samewire.hcn.policy_lists import named
from samewire.hcn.schema import Endpoint, Network, NetworkType
from samewire.hcn.schema import Route as RouteObject
from samewire.vfp.address import IPV4, IPV6, NO_MAC, ZERO, Address, Prefix, parse_address, parse_mac
from samewire.vfp.compile.acl import compile_acl
from samewire.vfp.compile.acl_table import NONE_KNOWN, AclTable, Known
from samewire.vfp.compile.builder import Builder, onlink_nexthop
from samewire.vfp.compile.isolation import isolation
from samewire.vfp.compile.link import (
    POLICE_SLACK_BYTES,
    endpoint_addresses,
    endpoint_gateway,
    endpoint_mac,
    endpoint_mtu,
    incoming_cap,
    mac_on_wire,
    outgoing_cap,
)
from samewire.vfp.compile.nat import compile_nat
from samewire.vfp.compile.plan import Context, NetworkPlan, network_context
from samewire.vfp.compile.portmap import compile_portmaps
from samewire.vfp.compile.proxy import proxies_translated
from samewire.vfp.compile.route import own_routes
from samewire.vfp.compile.vlan import answer_for_translated
from samewire.vfp.constants import SCOPE_UPLINK, PortFlag, RouteKind
from samewire.vfp.model import Compiled, HostBinding, HostRoute, NodeFacts, Numbers
from samewire.vfp.tables import Bucket, EndpointKey, Id, Port, SourceMac
from samewire.vfp.tables import Endpoint as EndpointEntry

_SLOT = {IPV4: 0, IPV6: 1}
_LINK_LOCAL = Prefix(IPV6, bytes([0xFE, 0x80]).ljust(16, b"\0"), 10)
_EVERYTHING, _PROXIES = 0xFFFE, 0xFFFF  # in the place of policies' names


def compile_endpoint(
    endpoint: Endpoint,
    network: Network,
    facts: NodeFacts,
    numbers: Numbers,
    port_ifindex: int,
    generation: int,
    known: Known = NONE_KNOWN,
    routes: Iterable[RouteObject] = (),
) -> Compiled:
    """Everything that one endpoint adds to the tables.

    ``port_ifindex`` is the host end's; ``generation`` must be new whenever the endpoint's policy may have
    changed. For a remote endpoint both are ignored. ``known``: the ACL tables that there are;
    ``routes``: those that only the endpoints that they name obey, and that name this one.
    Raises ``Invalid`` (naming the field), ``Exhausted``.
    """
    context = network_context(network, facts, numbers)
    plan, scope = context.plan, context.scope
    builder = Builder()
    addresses = endpoint_addresses(endpoint, plan)
    if endpoint.is_remote:
        for address in addresses:
            _remote_address(builder, endpoint, address.address, context)
        return Compiled(builder.entries)
    mac = endpoint_mac(endpoint)
    for own in addresses:
        key = EndpointKey(own.packed, scope, own.family)
        builder.put("sw_endpoints", key, EndpointEntry(port_ifindex, 0, mac))
    alone = isolation(endpoint, plan, facts, addresses)
    allow_unmatched = facts.acl_allow_unmatched
    acls = compile_acl(
        builder, network.id, network.policies, endpoint.policies, allow_unmatched, known, alone
    )
    nat = compile_nat(builder, _nat_policies(endpoint, network, plan), facts, numbers)
    route_set = own_routes(builder, endpoint, routes, context, port_ifindex)
    port = _port(endpoint, context, generation, addresses, acls, nat, route_set)
    builder.put("sw_ports", Id(port_ifindex), port)
    mapped_ports = compile_portmaps(builder, endpoint, addresses, scope, port_ifindex)
    if plan.source_mac != NO_MAC:
        builder.put("sw_source_macs", Id(port_ifindex), SourceMac(plan.source_mac))
    if plan.vlan:
        answer_for_translated(builder, endpoint.policies, context, mac_on_wire(plan, mac, facts))
    rate, burst = outgoing_cap(endpoint)
    if rate:
        # Deeper than the shaper in the pod: what that lets pass is not dropped here.
        builder.put("sw_buckets", Id(port_ifindex), Bucket(rate, burst + POLICE_SLACK_BYTES, 0))
    binding = _bridged(builder, context, addresses, mac) if plan.bridged else HostBinding()
    return builder.compiled(replace(binding, forwards=builder.forwards, mapped_ports=mapped_ports))


def _port(
    endpoint: Endpoint,
    context: Context,
    generation: int,
    addresses: tuple[Prefix, ...],
    acls: tuple[AclTable, AclTable],
    nat: tuple[int, bool],
    route_set: int,
) -> Port:
    plan = context.plan
    own = [ZERO, ZERO]
    gateways = [ZERO, ZERO]
    for prefix in addresses:
        own[_SLOT[prefix.family]] = prefix.packed
        gateway = endpoint_gateway(endpoint, plan, prefix.address)
        gateways[_SLOT[prefix.family]] = _answerable(gateway, context.facts)
    nat_set, nat_explicit = nat
    flags = (
        (PortFlag.TRANSPARENT if plan.type is NetworkType.TRANSPARENT else 0)
        | (PortFlag.CAP_IN if incoming_cap(endpoint)[0] else 0)
        | (PortFlag.CAP_OUT if outgoing_cap(endpoint)[0] else 0)
        | (PortFlag.NAT_EXPLICIT if nat_explicit else 0)
        | (PortFlag.SOURCE_MAC if plan.source_mac != NO_MAC else 0)
        | (PortFlag.TAGGED if plan.vlan else 0)
    )
    return Port(
        generation=generation,
        scope=context.scope,
        flags=int(flags),
        mac=endpoint_mac(endpoint),
        gateway_mac=plan.gateway_mac,
        address=(own[0], own[1]),
        gateway=(gateways[0], gateways[1]),
        nat_set=nat_set,
        acl_table=(acls[0].table, acls[1].table),
        acl_space=acls[0].space or acls[1].space,
        route_set=route_set,
        acl_words=(acls[0].words, acls[1].words),
        acl_shape=(acls[0].shape, acls[1].shape),
        mtu=endpoint_mtu(endpoint, plan, context.facts),
    )


def _nat_policies(
    endpoint: Endpoint, network: Network, plan: NetworkPlan
) -> tuple[tuple[int, OutBoundNAT], ...]:
    """The endpoint's OutBoundNAT policies; without any, a NAT network translates everything. A proxy that shall
    see the node's address is a destination of one more.
    """
    policies = named(endpoint.policies, OutBoundNAT)
    if plan.type is NetworkType.NAT and not policies:
        policies.append((_EVERYTHING, OutBoundNAT()))
    translated = proxies_translated(network.policies, endpoint.policies)
    if translated and not plan.vlan:  # where the node's address is nobody's
        policies.append((_PROXIES, OutBoundNAT(destinations=translated)))
    return tuple(policies)


def _bridged(builder: Builder, context: Context, addresses: tuple[Prefix, ...], mac: bytes) -> HostBinding:
    """An endpoint on the underlay's own subnet: a host route of its own, both here and in the node's stack.

    The NIC must let in its multicast groups (neighbour solicitations), and a MAC that is not the NIC's. That it listens
    to these groups switches are told, but not those of a VLAN: the kernel would tell them without a tag.
    """
    plan, facts = context.plan, context.facts
    routes: list[HostRoute] = []
    filters: list[bytes] = [mac] if plan.type is NetworkType.TRANSPARENT else []
    for own in addresses:
        prefix = own.address.host_prefix
        builder.route(context.scope, prefix, RouteKind.LOCAL)
        subnet = plan.subnet_of(own.address)
        if plan.host_port and (subnet is None or subnet.underlay):
            builder.from_host(prefix, SCOPE_UPLINK)
            source = facts.address(own.family)
            routes.append(HostRoute(prefix, Address(own.family, source) if source != ZERO else None))
        if own.family == IPV6:
            filters.append(solicited_node_mac(own.packed))
    listens = tuple(own.packed for own in addresses if own.family == IPV6 and not plan.vlan)
    return HostBinding(routes=tuple(routes), nic_filters=tuple(filters), listens=listens)


def solicited_node_mac(address: bytes) -> bytes:
    """The multicast MAC on which neighbour solicitations for an IPv6 address arrive (RFC 4291, RFC 2464)."""
    return b"\x33\x33\xff" + address[13:16]


def _remote_address(builder: Builder, endpoint: Endpoint, address: Address, context: Context) -> None:
    """An address on another node: behind its RemoteSubnetRoute, its provider address, or on the underlay.

    Without any of those, or when the provider is this node itself (a virtual IP), there is no way to it and
    it has no entry.
    """
    plan = context.plan
    mac = parse_mac(endpoint.mac_address, "$.MacAddress") if endpoint.mac_address else NO_MAC
    if plan.vlan:
        return  # in the VLAN like any other host: pods ask for its MAC there
    if plan.bridged:
        if not _is_on_link(address, context):
            return  # behind a router, or the node itself: where the network's and the node's routes lead
        nexthop = onlink_nexthop(address.family, context.numbers)
        builder.route(context.scope, address.host_prefix, RouteKind.UPLINK, nexthop=nexthop)
    elif (remote := plan.remote.containing(address)) is not None:
        nexthop = context.remote_nexthop(remote)
    else:
        nexthop = _provider_nexthop(builder, endpoint, mac, context)
        if nexthop and plan.subnet_of(address) is None:  # no route of the network's leads there
            builder.route(context.scope, address.host_prefix, RouteKind.LOCAL)
    if nexthop:
        key = EndpointKey(address.packed, context.scope, address.family)
        builder.put("sw_endpoints", key, EndpointEntry(0, nexthop, mac))


def _is_on_link(address: Address, context: Context) -> bool:
    """Whether an address of a bridged network is asked for on the wire. The node does not ask for its own."""
    plan, facts = context.plan, context.facts
    if any(own.address == address for own in facts.addresses):
        return False
    underlay = (*(own.network for own in facts.addresses), *facts.underlay)
    return plan.subnet_of(address) is not None or any(address in prefix for prefix in underlay)


def _provider_nexthop(builder: Builder, endpoint: Endpoint, mac: bytes, context: Context) -> int:
    plan = context.plan
    policy = first(endpoint.policies, ProviderAddress)
    if policy is None or not plan.uplink:
        return 0
    provider = parse_address(policy.provider_address, "$.Policies")
    if provider.packed == ZERO or any(own.address == provider for own in context.facts.addresses):
        return 0
    router = plan.remote.behind(provider)
    number = context.nexthop(f"endpoint/{endpoint.id}")
    hop = context.tunnel(provider, plan.vni, router.router_mac if router else mac)
    builder.put("sw_nexthops", Id(number), hop)
    return number


def _answerable(gateway: bytes, facts: NodeFacts) -> bytes:
    """In whose name an endpoint gets errors, and what is led back to it: its gateway's, or the node's where that has a
    link-local address, to which nobody can answer.
    """
    if Prefix(IPV6, gateway, 128) not in _LINK_LOCAL:
        return gateway
    return facts.address(IPV6)
