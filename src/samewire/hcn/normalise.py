"""Checks of objects on their own, and their canonical form. Pure.

What depends on other objects (free addresses, clashes, references) is in `samewire.hcn.plan`.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from samewire.hcn import values
from samewire.hcn.errors import HcnCode, fail
from samewire.hcn.normalise_policies import Scope, check_policies
from samewire.hcn.policies import VSID, first, parse_prefix
from samewire.hcn.schema import (
    Dns,
    Endpoint,
    IpConfiguration,
    IpSubnet,
    MacPool,
    MacRange,
    Namespace,
    Network,
    NetworkType,
    Resource,
    Route,
    RouteEntry,
    SdnRoute,
    Subnet,
)

_replace = msgspec.structs.replace

FULL_LENGTH = {4: 32, 6: 128}
MAX_SUBNETS = 64


def check_network(network: Network) -> Network:
    """Return the canonical form of a network. Raises HcnError."""
    ipams = tuple(
        _replace(
            ipam,
            subnets=tuple(
                check_subnet(subnet, network.type, f"$.Ipams[{index}].Subnets[{number}]")
                for number, subnet in enumerate(ipam.subnets)
            ),
        )
        for index, ipam in enumerate(network.ipams)
    )
    network = _replace(
        network,
        id=values.guid_or_new(network.id, "$.ID"),
        name=values.name(network.name, "$.Name", HcnCode.INVALID_NETWORK),
        owner=values.name(network.owner, "$.Owner", HcnCode.INVALID_NETWORK),
        policies=check_policies(network.policies, Scope.NETWORK, "$.Policies"),
        mac_pool=_mac_pool(network.mac_pool),
        dns=check_dns(network.dns, "$.Dns"),
        ipams=ipams,
    )
    check_subnets(network)
    return network


def check_subnets(network: Network) -> None:
    """Refuse subnets of one network that clash. Raises HcnError."""
    subnets = network.subnets
    if len(subnets) > MAX_SUBNETS:
        fail("$.Ipams", f"a network has at most {MAX_SUBNETS} subnets", HcnCode.INVALID_NETWORK)
    for index, subnet in enumerate(subnets):
        mine = parse_prefix(subnet.ip_address_prefix)
        for other in subnets[:index]:
            if mine.overlaps(parse_prefix(other.ip_address_prefix)):
                fail("$.Ipams", f"{mine} overlaps {other.ip_address_prefix}", HcnCode.INVALID_SUBNET)
        if len({subnet.id for subnet in subnets}) != len(subnets):
            fail("$.Ipams", "two subnets have the same ID", HcnCode.INVALID_SUBNET)
    if network.type is NetworkType.OVERLAY:
        if not subnets:
            fail("$.Ipams", "an overlay network needs a subnet", HcnCode.INVALID_NETWORK)
        if len({subnet.vni for subnet in subnets}) != 1:
            fail("$.Ipams", "all subnets of an overlay network need the same VSID", HcnCode.INVALID_POLICY)


def check_subnet(subnet: Subnet, network_type: NetworkType, path: str) -> Subnet:
    """Return the canonical form of a subnet. Raises HcnError."""
    if not subnet.ip_address_prefix:
        fail(f"{path}.IpAddressPrefix", "is required", HcnCode.INVALID_SUBNET)
    prefix = values.prefix(subnet.ip_address_prefix, f"{path}.IpAddressPrefix")
    policies = check_policies(subnet.policies, Scope.SUBNET, f"{path}.Policies")
    overlay = network_type is NetworkType.OVERLAY
    if overlay != (first(policies, VSID) is not None):
        need = "need one" if overlay else "have none"
        fail(
            f"{path}.Policies",
            f"VSID: subnets of {network_type.value} networks {need}",
            HcnCode.INVALID_POLICY,
        )
    routes = tuple(
        _route_entry(route, f"{path}.Routes[{index}]", HcnCode.INVALID_SUBNET)
        for index, route in enumerate(subnet.routes)
    )
    subnet = _replace(
        subnet,
        id=values.guid_or_new(subnet.id, f"{path}.ID"),
        ip_address_prefix=prefix,
        policies=policies,
        routes=routes,
        ip_subnets=tuple(
            check_ip_subnet(item, prefix, f"{path}.IpSubnets[{index}]")
            for index, item in enumerate(subnet.ip_subnets)
        ),
    )
    _check_gateway(subnet, path)
    return subnet


def _check_gateway(subnet: Subnet, path: str) -> None:
    gateway = subnet.gateway
    if gateway and parse_prefix(gateway).version != parse_prefix(subnet.ip_address_prefix).version:
        fail(
            f"{path}.Routes",
            f"{gateway} cannot be a gateway of {subnet.ip_address_prefix}",
            HcnCode.INVALID_SUBNET,
        )


def check_ip_subnet(item: IpSubnet, within: str, path: str) -> IpSubnet:
    """Return the canonical form of a range within a subnet. Raises HcnError."""
    if not item.ip_address_prefix:
        fail(f"{path}.IpAddressPrefix", "is required", HcnCode.INVALID_IP_SUBNET)
    prefix = values.prefix(item.ip_address_prefix, f"{path}.IpAddressPrefix")
    inner, outer = parse_prefix(prefix), parse_prefix(within)
    if inner.version != outer.version or not inner.overlaps(outer) or inner.prefixlen < outer.prefixlen:
        fail(f"{path}.IpAddressPrefix", f"{prefix} is not within {within}", HcnCode.INVALID_IP_SUBNET)
    return _replace(item, id=values.guid_or_new(item.id, f"{path}.ID"), ip_address_prefix=prefix)


def _route_entry(route: RouteEntry, path: str, code: HcnCode) -> RouteEntry:
    if not route.next_hop or not route.destination_prefix:
        fail(path, "a route needs DestinationPrefix and NextHop", code)
    hop = values.ip(route.next_hop, f"{path}.NextHop")
    prefix = values.prefix(route.destination_prefix, f"{path}.DestinationPrefix")
    if prefix == "0.0.0.0/0" and ":" in hop:
        prefix = "::/0"  # as hns.v2.psm1 says "default route" of either family
    if parse_prefix(hop).version != parse_prefix(prefix).version:
        fail(f"{path}.NextHop", f"{hop} and {prefix} differ in IP version", code)
    return _replace(route, next_hop=hop, destination_prefix=prefix)


def check_endpoint(endpoint: Endpoint) -> Endpoint:
    """Return the canonical form of an endpoint. Raises HcnError."""
    invalid = HcnCode.INVALID_ENDPOINT
    return _replace(
        endpoint,
        id=values.guid_or_new(endpoint.id, "$.ID"),
        name=values.name(endpoint.name, "$.Name", invalid),
        owner=values.name(endpoint.owner, "$.Owner", invalid),
        policies=check_policies(endpoint.policies, Scope.ENDPOINT, "$.Policies"),
        ip_configurations=_ip_configurations(endpoint.ip_configurations),
        dns=check_dns(endpoint.dns, "$.Dns"),
        routes=tuple(
            _route_entry(route, f"$.Routes[{index}]", invalid) for index, route in enumerate(endpoint.routes)
        ),
        mac_address=values.mac(endpoint.mac_address, "$.MacAddress", invalid) if endpoint.mac_address else "",
        interface_name=values.interface_name(endpoint.interface_name, "$.InterfaceName"),
        container_id=values.name(endpoint.container_id, "$.ContainerId", invalid),
    )


def _ip_configurations(entries: tuple[IpConfiguration, ...]) -> tuple[IpConfiguration, ...]:
    result = []
    versions = set()
    for index, entry in enumerate(entries):
        path = f"$.IpConfigurations[{index}]"
        address = values.station_ip(entry.ip_address, f"{path}.IpAddress") if entry.ip_address else ""
        # Some callers write 0 for what they do not say.
        length = entry.prefix_length or None
        if address:
            version = 6 if ":" in address else 4
            if version in versions:
                fail(path, f"an endpoint has at most one IPv{version} address", HcnCode.INVALID_IP)
            versions.add(version)
            if length is not None and length > FULL_LENGTH[version]:
                fail(
                    f"{path}.PrefixLength",
                    f"{length} is no prefix length",
                    HcnCode.INVALID_PREFIX,
                )
        elif not entry.ip_subnet_id:
            continue
        subnet_id = values.guid(entry.ip_subnet_id, f"{path}.IpSubnetId") if entry.ip_subnet_id else ""
        result.append(_replace(entry, ip_address=address, prefix_length=length, ip_subnet_id=subnet_id))
    return tuple(result)


def check_namespace(namespace: Namespace) -> Namespace:
    """Return the canonical form of a namespace. Raises HcnError."""
    return _replace(
        namespace,
        id=values.guid_or_new(namespace.id, "$.ID"),
        name=values.name(namespace.name, "$.Name", HcnCode.INVALID_JSON),
        owner=values.name(namespace.owner, "$.Owner", HcnCode.INVALID_JSON),
        netns_path=values.netns_path(namespace.netns_path, "$.NetnsPath"),
        resources=tuple(
            _resource(item, f"$.Resources[{index}]") for index, item in enumerate(namespace.resources)
        ),
    )


def _resource(item: Resource, path: str) -> Resource:
    values.name(item.data.resource_id, f"{path}.Data.Id", HcnCode.INVALID_JSON_REFERENCE)
    return item


def check_route(route: Route) -> Route:
    """Return the canonical form of a route object. Raises HcnError."""
    return _replace(
        route,
        id=values.guid_or_new(route.id, "$.ID"),
        name=values.name(route.name, "$.Name", HcnCode.INVALID_JSON),
        owner=values.name(route.owner, "$.Owner", HcnCode.INVALID_JSON),
        network_id=values.guid(route.network_id, "$.HostComputeNetwork") if route.network_id else "",
        endpoint_ids=tuple(
            dict.fromkeys(
                values.guid(item, f"$.HostComputeEndpoints[{index}]")
                for index, item in enumerate(route.endpoint_ids)
            )
        ),
        routes=tuple(_sdn_route(item, f"$.Routes[{index}]") for index, item in enumerate(route.routes)),
    )


def _sdn_route(item: SdnRoute, path: str) -> SdnRoute:
    prefix = values.destination(item.destination_prefix, f"{path}.DestinationPrefix")
    hop = values.optional_ip(item.next_hop, f"{path}.NextHop")
    if hop and parse_prefix(hop).version != parse_prefix(prefix).version:
        fail(f"{path}.NextHop", f"{hop} and {prefix} differ in IP version", HcnCode.INVALID_IP)
    return _replace(item, destination_prefix=prefix, next_hop=hop)


def check_dns(dns: Dns | None, path: str) -> Dns | None:
    """Return the canonical form of resolver settings; empty entries are dropped. Raises HcnError."""
    if dns is None:
        return None
    return _replace(
        dns,
        domain=values.domain(dns.domain, f"{path}.Domain") if dns.domain else "",
        search=_texts(dns.search, f"{path}.Search", values.domain),
        server_list=_texts(dns.server_list, f"{path}.ServerList", values.ip),
        options=_texts(dns.options, f"{path}.Options", values.resolver_option),
    )


def _texts(items: tuple[str, ...], path: str, check: Callable[[str, str], str]) -> tuple[str, ...]:
    return tuple(check(item, f"{path}[{index}]") for index, item in enumerate(items) if item)


def _mac_pool(pool: MacPool | None) -> MacPool | None:
    if pool is None:
        return None
    return _replace(
        pool,
        ranges=tuple(
            _mac_range(item, f"$.MacPool.Ranges[{index}]") for index, item in enumerate(pool.ranges)
        ),
    )


def _mac_range(item: MacRange, path: str) -> MacRange:
    start = values.mac(item.start_mac_address, f"{path}.StartMacAddress", HcnCode.INVALID_NETWORK)
    end = values.mac(item.end_mac_address, f"{path}.EndMacAddress", HcnCode.INVALID_NETWORK)
    if start > end:
        fail(path, f"{start} comes after {end}", HcnCode.INVALID_NETWORK)
    return _replace(item, start_mac_address=start, end_mac_address=end)
