"""Addresses for endpoints: checking the ones asked for, choosing the ones that were not."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import chain
from typing import Final

import msgspec

from samewire.errors import Exhausted
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.policies import parse_prefix
from samewire.hcn.schema import (
    Endpoint,
    IpamType,
    IpConfiguration,
    IpSubnet,
    Network,
    NetworkType,
    Subnet,
    SubnetFlags,
)
from samewire.hcn.state import View
from samewire.hcn.switch import NodeFacts

_replace = msgspec.structs.replace
_GATEWAY_IS_FREE: Final = int(
    SubnetFlags.DO_NOT_RESERVE_GATEWAY_ADDRESS
)  # the flag itself is slow to ask for
Address = IPv4Address | IPv6Address

MAX_PROBES = 2**17
"""Addresses looked at before a subnet counts as full; more than a node can have endpoints."""


HOST_COMPARTMENT = 1
"""The compartment of the node itself."""


class Pool:
    """Hands out addresses and compartment numbers in rotation: what was just freed is not reused at once.

    ``mapped_port``: the last port of the node that was chosen for a mapping.
    """

    def __init__(self) -> None:
        self.mapped_port = 0
        self._last: dict[str, int] = {}
        self._compartment = 0

    def compartment(self, view: View) -> int:
        """Return a compartment number that no namespace has."""
        if not self._compartment:
            used = (namespace.compartment_id for namespace in view.namespaces())
            self._compartment = max(used, default=HOST_COMPARTMENT)
        self._compartment += 1
        return self._compartment

    def pick(
        self, view: View, network: Network, subnet: Subnet, within: Subnet | IpSubnet, facts: NodeFacts
    ) -> str:
        """Return a free address of a subnet of a network, or of a range in it. Raises Exhausted."""
        prefix = parse_prefix(within.ip_address_prefix)
        low, high = int(prefix.network_address), int(prefix.broadcast_address)
        if high - low > 1:
            low += 1
            high -= prefix.version == 4
        taken = reserved(network, facts).union(_edges(subnet.ip_address_prefix))
        start = self._last.get(within.id, low - 1) + 1
        start = start if low <= start <= high else low
        make = IPv4Address if prefix.version == 4 else IPv6Address
        candidates: Iterator[int] = chain(range(start, high + 1), range(low, start))
        for number, _ in zip(candidates, range(MAX_PROBES), strict=False):
            text = str(make(number))
            if (
                text not in taken
                and view.endpoint_by_ip(network.id, text) is None
                and not view.is_source_vip(network.id, text)
            ):
                self._last[within.id] = number
                return text
        raise Exhausted(
            f"addresses of {within.ip_address_prefix}", f"network {network.name or network.id} has none left"
        )


def fill_addresses(
    pool: Pool, view: View, network: Network, facts: NodeFacts, endpoint: Endpoint
) -> Endpoint:
    """Return an endpoint with checked and complete IpConfigurations. Raises HcnError, Exhausted."""
    if endpoint.is_remote:
        return _replace(endpoint, ip_configurations=_remote(network, endpoint))
    entries = endpoint.ip_configurations or _one_of_each_family(network)
    versions = {ip_address(entry.ip_address).version for entry in entries if entry.ip_address}
    result = []
    for index, entry in enumerate(entries):
        path = f"$.IpConfigurations[{index}]"
        if entry.ip_address:
            subnet = _check_given(network, facts, entry, path)
        else:
            subnet, within = _find_subnet(network, entry.ip_subnet_id, path)
            version = parse_prefix(within.ip_address_prefix).version
            if version in versions:
                raise HcnError(
                    HcnCode.INVALID_IP, f"{path}: an endpoint has at most one IPv{version} address"
                )
            versions.add(version)
            entry = _replace(entry, ip_address=pool.pick(view, network, subnet, within, facts))
        result.append(_with_length(entry, subnet, path))
    return _replace(endpoint, ip_configurations=tuple(result))


def _one_of_each_family(network: Network) -> tuple[IpConfiguration, ...]:
    """Ask for an address of the first subnet of each IP version that HNS itself manages."""
    wanted: dict[int, str] = {}
    for ipam in network.ipams:
        for subnet in ipam.subnets if ipam.type is IpamType.STATIC else ():
            wanted.setdefault(parse_prefix(subnet.ip_address_prefix).version, subnet.id)
    if not wanted and not any(ipam.type is IpamType.DHCP for ipam in network.ipams):
        raise HcnError(
            HcnCode.INVALID_ENDPOINT,
            f"$.IpConfigurations: network {network.name or network.id} has no subnet to take an address from",
        )
    return tuple(IpConfiguration(ip_subnet_id=subnet_id) for subnet_id in wanted.values())


def _check_given(network: Network, facts: NodeFacts, entry: IpConfiguration, path: str) -> Subnet | None:
    """Return the subnet of an address that was asked for, None in a network without subnets. Raises
    HcnError.
    """
    subnet = network.subnet_of(entry.ip_address)
    if subnet is None:
        if not network.subnets:
            return None
        raise HcnError(
            HcnCode.ADDR_INVALID_OR_RESERVED,
            f"{path}.IpAddress: {entry.ip_address} is in no subnet of the network",
        )
    if entry.ip_subnet_id:
        _, within = _find_subnet(network, entry.ip_subnet_id, path)
        if ip_address(entry.ip_address) not in parse_prefix(within.ip_address_prefix):
            raise HcnError(
                HcnCode.INVALID_IP_SUBNET,
                f"{path}.IpAddress: {entry.ip_address} is not in {within.ip_address_prefix}",
            )
    zero = network.type is not NetworkType.OVERLAY and is_network_address(network, entry.ip_address)
    if zero or entry.ip_address in reserved(network, facts) or _is_edge(subnet, entry.ip_address):
        raise HcnError(HcnCode.ADDR_INVALID_OR_RESERVED, f"{path}.IpAddress: {entry.ip_address} is reserved")
    return subnet


def _is_edge(subnet: Subnet, ip: str) -> bool:
    """True for the broadcast address of an IPv4 subnet."""
    return ip == _edges(subnet.ip_address_prefix)[1]


def is_network_address(network: Network, ip: str) -> bool:
    """True for the address that stands for a subnet itself.

    On overlay networks source VIPs of the field use it, which are endpoints that nothing is attached to.
    """
    subnet = network.subnet_of(ip)
    return subnet is not None and ip == _edges(subnet.ip_address_prefix)[0]


@lru_cache(maxsize=1024)
def _edges(text: str) -> tuple[str, str]:
    """Return the address that stands for a subnet itself and an IPv4 subnet's broadcast address, "" for none."""
    prefix = parse_prefix(text)
    if prefix.prefixlen >= prefix.max_prefixlen - 1:
        return "", ""
    return str(prefix.network_address), str(prefix.broadcast_address) if prefix.version == 4 else ""


def reserved(network: Network, facts: NodeFacts) -> set[str]:
    """Return the addresses no endpoint gets: the node's own and the gateways."""
    found = set(facts.management_ips)
    for subnet in network.subnets:
        if not subnet.flags & _GATEWAY_IS_FREE:
            found.update(route.next_hop for route in subnet.routes)
    return found


def _find_subnet(network: Network, subnet_id: str, path: str) -> tuple[Subnet, Subnet | IpSubnet]:
    """Return the subnet and the range that an IpSubnetId names. Raises HcnError(INVALID_IP_SUBNET)."""
    for subnet in network.subnets:
        ranges: tuple[Subnet | IpSubnet, ...] = (subnet, *subnet.ip_subnets)
        for within in ranges:
            if within.id == subnet_id:
                return subnet, within
    raise HcnError(HcnCode.INVALID_IP_SUBNET, f"{path}.IpSubnetId: the network has no subnet {subnet_id}")


def _with_length(entry: IpConfiguration, subnet: Subnet | None, path: str) -> IpConfiguration:
    if subnet is None:
        if entry.prefix_length is None:
            raise HcnError(
                HcnCode.INVALID_PREFIX, f"{path}.PrefixLength: is required in a network without subnets"
            )
        return entry
    length = entry.prefix_length or parse_prefix(subnet.ip_address_prefix).prefixlen
    return _replace(entry, prefix_length=length, ip_subnet_id=entry.ip_subnet_id or subnet.id)


def _remote(network: Network, endpoint: Endpoint) -> tuple[IpConfiguration, ...]:
    """Complete the addresses of a remote endpoint, which may be outside of the network's subnets."""
    if not endpoint.ip_configurations or not all(endpoint.addresses):
        raise HcnError(HcnCode.INVALID_ENDPOINT, "$.IpConfigurations: a remote endpoint needs its address")
    result = []
    for entry in endpoint.ip_configurations:
        subnet = network.subnet_of(entry.ip_address)
        host = ip_address(entry.ip_address).max_prefixlen
        length = parse_prefix(subnet.ip_address_prefix).prefixlen if subnet else host
        result.append(_replace(entry, prefix_length=entry.prefix_length or length))
    return tuple(result)
