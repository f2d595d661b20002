"""Checks of load balancers on their own, and their canonical form. Pure.

Fifty thousand of them come at once when a proxy starts: what is canonical already is recognised quickly.
"""

from __future__ import annotations

from collections.abc import Iterable
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Any, Final

import msgspec

from samewire.hcn import values
from samewire.hcn.errors import HcnCode, HcnError, fail
from samewire.hcn.loadbalancers import (
    LoadBalancer,
    LoadBalancerBackend,
    LoadBalancerFlags,
    LoadBalancerPortMapping,
)
from samewire.hcn.numbered import unlike

_replace = msgspec.structs.replace

TCP: Final = 6
UDP: Final = 17
SCTP: Final = 132
MAX_BACKENDS: Final = 16384
MAX_FRONTENDS: Final = 256
MAX_PORT: Final = 2**16 - 1
MAX_AFFINITY_S: Final = 2**32 - 1

_PROTOCOLS: Final = frozenset({TCP, UDP, SCTP})
_UNREADABLE: Final = HcnCode.INVALID_JSON
_IPV6: Final = int(LoadBalancerFlags.ENABLE_IPV6)  # arithmetic of enumerations would cost more than the rest


def check_load_balancer(value: LoadBalancer, before: LoadBalancer | None = None) -> LoadBalancer:
    """Return the canonical form of a load balancer. ``before``: the present one, whose members are in canonical form.
    Raises HcnError.
    """
    object_id, vips = values.guid_or_new(value.id, "$.ID"), _frontends(value)
    backends = check_backends(value.backends, "$.Backends", before.backends if before is not None else ())
    changed: dict[str, Any] = {}
    if (object_id, vips, backends) != (value.id, value.frontend_vips, value.backends):
        changed = {"id": object_id, "frontend_vips": vips, "backends": backends}
    if value.source_vip:
        changed["source_vip"] = station(value.source_vip, "$.SourceVIP")
    if value.endpoint_ids:
        known = before.endpoint_ids if before is not None else ()
        changed["endpoint_ids"] = guids(value.endpoint_ids, "$.HostComputeEndpoints", known)
    if value.network_id:
        changed["network_id"] = values.guid(value.network_id, "$.HostComputeNetwork")
    if value.local_endpoint_ids or value.draining_endpoint_ids:
        changed["local_endpoint_ids"] = guids(value.local_endpoint_ids, "$.LocalEndpoints")
        changed["draining_endpoint_ids"] = guids(value.draining_endpoint_ids, "$.DrainingEndpoints")
    if value.source_ranges:
        changed["source_ranges"] = tuple(
            values.address_or_prefix(item.strip(), f"$.SourceRanges[{index}]")
            for index, item in enumerate(value.source_ranges)
        )
    values.name(value.name, "$.name", _UNREADABLE)
    values.name(value.owner, "$.owner", _UNREADABLE)
    values.name(value.service_name, "$.service_name", _UNREADABLE)
    if not 0 <= value.affinity_timeout <= MAX_AFFINITY_S:
        fail("$.AffinityTimeout", f"{value.affinity_timeout} s is no time to wait", HcnCode.E_INVALIDARG)
    if changed:
        value = _replace(value, **changed)
    _check_mappings(value)
    _check_families(value)
    return value


def guids(items: tuple[str, ...], path: str, known: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return GUIDs in canonical form, each once. ``known``: those of these are. Raises HcnError."""
    if not all(map(values.is_guid, unlike(items, known))):
        items = tuple(values.guid(item, f"{path}[{index}]") for index, item in enumerate(items))
    return tuple(dict.fromkeys(items))


def station(text: str, path: str) -> str:
    """Return an address that one host can have, in its shortest form. Raises HcnError(INVALID_IP)."""
    try:
        if ":" in text:
            packed = inet_pton(AF_INET6, text)
            if packed[0] not in (0, 0xFF) and inet_ntop(AF_INET6, packed) == text:
                return text
        else:
            if 1 <= inet_pton(AF_INET, text)[0] < 224:  # it takes no other form than the canonical one
                return text
    except (OSError, ValueError):
        pass
    return values.station_ip(text, path)


def check_backends(
    items: tuple[LoadBalancerBackend, ...], path: str, known: tuple[LoadBalancerBackend, ...] = ()
) -> tuple[LoadBalancerBackend, ...]:
    """Return explicit backends in canonical form, each address and port once. ``known``: those of these are. Raises
    HcnError.
    """
    if len(items) > MAX_BACKENDS:
        fail(path, f"a load balancer has at most {MAX_BACKENDS} backends", HcnCode.E_INVALIDARG)
    for item in unlike(items, known):
        address = item.ip_address
        if station(address, path) is not address or item.mac_address or item.provider_address:
            break
        if not 0 <= item.port <= MAX_PORT:
            break
    else:
        if len({(item.ip_address, item.port) for item in items}) == len(items):
            return items
    found: dict[tuple[str, int], LoadBalancerBackend] = {}
    for index, item in enumerate(items):
        backend = _backend(item, f"{path}[{index}]")
        found.setdefault((backend.ip_address, backend.port), backend)
    return tuple(found.values())


def _backend(item: LoadBalancerBackend, path: str) -> LoadBalancerBackend:
    if bool(item.provider_address) != bool(item.mac_address):
        fail(path, "ProviderAddress and MacAddress go together", HcnCode.E_INVALIDARG)
    if not 0 <= item.port <= MAX_PORT:
        fail(f"{path}.Port", f"{item.port} is no port", HcnCode.E_INVALIDARG)
    provider = item.provider_address
    return _replace(
        item,
        ip_address=station(item.ip_address, f"{path}.IpAddress"),
        provider_address=station(provider, f"{path}.ProviderAddress") if provider else "",
        mac_address=values.mac(item.mac_address, f"{path}.MacAddress", HcnCode.E_INVALIDARG)
        if item.mac_address
        else "",
    )


def _frontends(value: LoadBalancer) -> tuple[str, ...]:
    vips = value.frontend_vips
    if len(vips) > MAX_FRONTENDS:
        fail("$.FrontendVIPs", f"a load balancer has at most {MAX_FRONTENDS} VIPs", HcnCode.E_INVALIDARG)
    if len(vips) == 1 and vips[0] and station(vips[0], "$.FrontendVIPs[0]") is vips[0]:
        return vips
    # Some clients say "no VIP" (a node port) by one empty text.
    return tuple(
        dict.fromkeys(station(vip, f"$.FrontendVIPs[{index}]") for index, vip in enumerate(vips) if vip)
    )


def _check_mappings(value: LoadBalancer) -> None:
    mappings = value.port_mappings
    if not mappings:
        fail("$.PortMappings", "at least one is required")
    for index, mapping in enumerate(mappings):
        _check_mapping(mapping, index)
        if mapping.internal_port == 0 and _needs_internal_port(value):
            fail(
                f"$.PortMappings[{index}].InternalPort",
                "must be a port of the endpoints, not 0",
                HcnCode.INVALID_INTERNAL_PORT,
            )
    if len(mappings) == 1:
        return
    seen: set[tuple[int, int]] = set()
    for index, mapping in enumerate(mappings):
        key = mapping.protocol, mapping.external_port
        if key in seen:
            raise port_exists(f"$.PortMappings[{index}]", *key)
        seen.add(key)


def _check_mapping(mapping: LoadBalancerPortMapping, index: int) -> None:
    if mapping.protocol not in _PROTOCOLS:
        fail(
            f"$.PortMappings[{index}].Protocol",
            f"only TCP (6), UDP (17) and SCTP (132) are balanced, not {mapping.protocol}",
            HcnCode.MAPPING_NOT_SUPPORTED,
        )
    port = mapping.external_port
    if not 0 < port <= MAX_PORT:  # of a caller in this process, who has not come by the decoder
        reason = f"{port} is no port" if port else "is required"
        fail(f"$.PortMappings[{index}].ExternalPort", reason, HcnCode.E_INVALIDARG)
    port = mapping.internal_port
    if not 0 <= port <= MAX_PORT:
        fail(f"$.PortMappings[{index}].InternalPort", f"{port} is no port", HcnCode.INVALID_INTERNAL_PORT)


def _needs_internal_port(value: LoadBalancer) -> bool:
    """Whether some backend has no port of its own."""
    return bool(value.endpoint_ids) or any(not item.port for item in value.backends)


def _check_families(value: LoadBalancer) -> None:
    v6 = value.is_ipv6
    if not v6 and value.flags & _IPV6:
        fail("$.Flags", "the IPv6 flag (2) with an IPv4 VIP", HcnCode.INVALID_IP)
    if len(value.frontend_vips) > 1:
        _same_family(value.frontend_vips, v6, "$.FrontendVIPs")
    for item in value.backends:
        if (":" in item.ip_address) is not v6:
            _same_family([item.ip_address], v6, "$.Backends")
    if value.source_vip:
        _same_family((value.source_vip,), v6, "$.SourceVIP")


def _same_family(addresses: Iterable[str], v6: bool, path: str) -> None:
    for address in addresses:
        if (":" in address) != v6:
            fail(path, f"{address} is not IPv{6 if v6 else 4}, as the rest", HcnCode.INVALID_IP)


def port_exists(path: str, protocol: int, port: int, other: LoadBalancer | None = None) -> HcnError:
    """The error for a VIP's port that is taken, by load balancer ``other`` or by this one itself."""
    by = "another of its port mappings"
    if other is not None:
        name = other.service_name or other.name
        by = f"load balancer {other.id}" + (f" ({name})" if name else "")
        by += f" at {', '.join(other.frontend_vips)}" if other.frontend_vips else ""
    return HcnError(
        HcnCode.PORT_ALREADY_EXISTS, f"{path}: port {port} of protocol {protocol} is that of {by}"
    )
