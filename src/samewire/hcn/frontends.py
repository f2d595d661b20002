"""Who can see a load balancer, and which of two may have the same virtual address and port. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from samewire.hcn.loadbalancers import LoadBalancer, LoadBalancerPortMapping, PortMappingFlags
from samewire.hcn.numbered import unlike
from samewire.hcn.policies import HostRoute, first
from samewire.hcn.schema import Network, NetworkFlags, NetworkType

FrontendKey = tuple[str, int, int, str]

# Plain integers: arithmetic of enumerations would cost more than all the rest.
_PRIVATE, _OVERLAY = NetworkType.PRIVATE, NetworkType.OVERLAY
_NO_HOST_PORT: Final = int(NetworkFlags.DISABLE_HOST_PORT)
_INTERNAL: Final = int(PortMappingFlags.INTERNAL_LOAD_BALANCER)
_OUTSIDE: Final = int(PortMappingFlags.VIP_EXTERNAL_IP | PortMappingFlags.USE_MUX)
_LOCAL_ROUTED: Final = int(PortMappingFlags.LOCAL_ROUTED_VIP)


class Reach(msgspec.Struct, frozen=True, gc=False):
    """Who sees a port mapping beside the pods of its network: the node, clients outside."""

    host: bool
    outside: bool


def has_host_port(network: Network) -> bool:
    """Whether the node itself takes part in a network."""
    if network.type is _PRIVATE or network.flags & _NO_HOST_PORT:
        return False
    if network.type is _OVERLAY:
        return first(network.policies, HostRoute) is not None
    return True


def reach(value: LoadBalancer, mapping: LoadBalancerPortMapping, network: Network | None) -> Reach:
    """Return who sees a mapping. One that names no network is for the node and the pods of all networks."""
    flags = mapping.flags
    outside = not flags & _INTERNAL and (not value.frontend_vips or bool(flags & _OUTSIDE))
    host = network is None or has_host_port(network) or bool(flags & _LOCAL_ROUTED)
    return Reach(host, outside)


def frontend_keys(value: LoadBalancer) -> list[tuple[FrontendKey, LoadBalancerPortMapping]]:
    """Return what a load balancer claims: ("frontend", protocol, port, VIP or family of a node port)."""
    vips = value.frontend_vips or ("6" if value.is_ipv6 else "4",)
    return [
        (("frontend", mapping.protocol, mapping.external_port, vip), mapping)
        for mapping in value.port_mappings
        for vip in vips
    ]


def member_keys(value: LoadBalancer | None, beside: LoadBalancer | None) -> list[tuple[str, str]]:
    """Return what a load balancer is found by for its members, of which there may be thousands: what another state of
    it has not.
    """
    if value is None:
        return []
    endpoints, backends = value.endpoint_ids, value.backends
    if beside is not None:
        endpoints, backends = unlike(endpoints, beside.endpoint_ids), unlike(backends, beside.backends)
    ids, addresses = set(endpoints), {item.ip_address for item in backends}
    if beside is not None and ids:
        ids.difference_update(beside.endpoint_ids)
    if beside is not None and addresses:
        addresses.difference_update([item.ip_address for item in beside.backends])
    return [
        *[("endpoint-lbs", endpoint_id) for endpoint_id in ids],
        *[("backend", address) for address in addresses],
    ]


def clash(one: LoadBalancer, mine: Reach, other: LoadBalancer, theirs: Reach) -> bool:
    """Whether two mappings with the same key cannot both be: somebody would see both."""
    if one.network_id == other.network_id or (mine.outside and theirs.outside):
        return True
    # One for all networks gives way to a network's own, there and on the node.
    return bool(one.network_id and other.network_id) and mine.host and theirs.host
