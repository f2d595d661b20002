"""Objects in v1 shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from samewire.hcn.base import Wire
from samewire.hcn.codec import encode, encode_policy
from samewire.hcn.flat import to_flat
from samewire.hcn.plan.network_changes import VFP_EXTENSION
from samewire.hcn.policies import (
    AutomaticDNS,
    DrMacAddress,
    EncapOverhead,
    NetAdapterName,
    Policy,
    ProviderAddress,
    SourceMacAddress,
    first,
    policy_type,
)
from samewire.hcn.query import render, state_of
from samewire.hcn.schema import (
    Dns,
    Endpoint,
    EndpointFlags,
    Namespace,
    NamespaceType,
    Network,
    NetworkType,
    Object,
    Subnet,
)
from samewire.hcn.state import View
from samewire.hcn.v1 import lists
from samewire.hcn.v1.read import DEFAULT_ROUTES

JsonObject = dict[str, Any]

HNS_VERSION = 15 << 32 | 4
"""Of HNS as each network reports it: major, minor."""


def to_v1(view: View, value: Object) -> JsonObject:
    """Return an object in v1 shape: load balancers and routes as policy lists."""
    write = _WRITERS.get(type(value))
    return write(view, value) if write else lists.to_v1(value)


def network_to_v1(view: View, network: Network) -> JsonObject:
    """Return an HNSNetwork."""
    adapter, mac = first(network.policies, NetAdapterName), first(network.policies, SourceMacAddress)
    provider, router = first(network.policies, ProviderAddress), first(network.policies, DrMacAddress)
    automatic = first(network.policies, AutomaticDNS)
    nat = network.type is NetworkType.NAT
    return _without_empty(
        {
            "ID": network.id,
            "Name": network.name,
            "Type": network.type.value,
            "NetworkAdapterName": adapter.network_adapter_name if adapter else "",
            "SourceMac": mac.source_mac_address if mac else "",
            "Policies": _policies(network.policies, _NETWORK_FIELDS),
            "MacPools": [encode(item) for item in network.mac_pool.ranges] if network.mac_pool else [],
            "Subnets": [_subnet(subnet) for subnet in network.subnets],
            **_dns(network.dns),
            "ManagementIP": provider.provider_address if provider else "",
            "AutomaticDNS": automatic.enable if automatic else None,
            "DrMacAddress": router.address if router else "",
            "NatName": (network.name or network.id) if nat else "",
            "CurrentEndpointCount": len(view.ids(("network", network.id))),
            "Extensions": [{"Id": VFP_EXTENSION, "IsEnabled": True}],
            "Flags": network.flags,
            "IPv6": any(":" in subnet.ip_address_prefix for subnet in network.subnets),
            "State": int(state_of(view, network)),
            "Version": HNS_VERSION,
            "Owner": network.owner,
        }
    ) | _unknown(network)


def endpoint_to_v1(view: View, endpoint: Endpoint) -> JsonObject:
    """Return an HNSEndpoint."""
    network = view.network(endpoint.network_id)
    namespace = view.namespace(endpoint.namespace_id) if endpoint.namespace_id else None
    overhead = first(endpoint.policies, EncapOverhead)
    flags = EndpointFlags(endpoint.flags)
    return _without_empty(
        {
            "ID": endpoint.id,
            "Name": endpoint.name,
            "VirtualNetwork": endpoint.network_id,
            "VirtualNetworkName": network.name if network else "",
            "Type": network.type.value if network else "",
            "Policies": _policies(endpoint.policies, _ENDPOINT_FIELDS),
            "MacAddress": endpoint.mac_address,
            **_addresses(endpoint, network),
            **_dns(endpoint.dns),
            "DNSDomain": endpoint.dns.domain if endpoint.dns else "",
            "IsRemoteEndpoint": endpoint.is_remote or None,
            "DisableICC": bool(flags & EndpointFlags.DISABLE_INTER_COMPUTE_COMMUNICATION) or None,
            "EnableLowMetric": bool(flags & EndpointFlags.ENABLE_LOW_INTERFACE_METRIC) or None,
            "EncapOverhead": overhead.overhead if overhead else None,
            "Namespace": namespace_to_v1(view, namespace) if namespace else None,
            "SharedContainers": list(endpoint.shared_containers),
            "State": int(state_of(view, endpoint)),
            "Flags": endpoint.flags,
            "Owner": endpoint.owner,
        }
    ) | _unknown(endpoint)


def field_policies(endpoint: Endpoint, body: Any) -> list[JsonObject]:
    """Return an endpoint's policies that are fields in v1, but for those that ``body`` gives anew."""
    given = {key.lower() for key in body} if isinstance(body, dict) else set()
    return [
        encode_policy(policy)
        for policy in endpoint.policies
        if isinstance(policy, _ENDPOINT_FIELDS) and policy_type(policy).lower() not in given
    ]


def namespace_to_v1(view: View, namespace: Namespace) -> JsonObject:
    """Return an HNSNamespace."""
    return _without_empty(
        {
            "ID": namespace.id,
            "IsDefault": namespace.type is NamespaceType.HOST_DEFAULT,
            "ResourceList": render(view, namespace).get("Resources", []),
            "CompartmentId": namespace.compartment_id,
        }
    ) | _unknown(namespace)


def _policies(policies: tuple[Policy, ...], elsewhere: tuple[type[Policy], ...]) -> list[JsonObject]:
    """Return flat policies; those that are fields of the object in v1 are left out."""
    return [to_flat(encode_policy(policy)) for policy in policies if not isinstance(policy, elsewhere)]


_NETWORK_FIELDS = (NetAdapterName, SourceMacAddress, AutomaticDNS)
_ENDPOINT_FIELDS = (EncapOverhead,)


def _subnet(subnet: Subnet) -> JsonObject:
    return _without_empty(
        {
            "ID": subnet.id,
            "AddressPrefix": subnet.ip_address_prefix,
            "GatewayAddress": subnet.gateway,
            "Policies": _policies(subnet.policies, ()),
            "IpSubnets": [encode(item) for item in subnet.ip_subnets],
            "Flags": subnet.flags,
        }
    ) | _unknown(subnet)


def _addresses(endpoint: Endpoint, network: Network | None) -> JsonObject:
    result: JsonObject = {}
    for entry in endpoint.ip_configurations:
        six = ":" in entry.ip_address
        result["IPv6Address" if six else "IPAddress"] = entry.ip_address
        result["IPv6PrefixLength" if six else "PrefixLength"] = entry.prefix_length
        subnet = network.subnet_of(entry.ip_address) if network else None
        own = (route.next_hop for route in endpoint.routes if route.destination_prefix == DEFAULT_ROUTES[six])
        result["GatewayAddressV6" if six else "GatewayAddress"] = next(own, subnet.gateway if subnet else "")
    return result


def _dns(dns: Dns | None) -> JsonObject:
    if dns is None:
        return {}
    search = dns.search or ((dns.domain,) if dns.domain else ())
    return {"DNSSuffix": ",".join(search), "DNSServerList": ",".join(dns.server_list)}


def _without_empty(fields: JsonObject) -> JsonObject:
    return {key: item for key, item in fields.items() if item is not None and item != "" and item != []}


def _unknown(value: Wire) -> JsonObject:
    return {name: msgspec.json.decode(text) for name, text in value.extra}


_WRITERS: dict[type, Callable[[View, Any], JsonObject]] = {
    Network: network_to_v1,
    Endpoint: endpoint_to_v1,
    Namespace: namespace_to_v1,
}
