"""The backends of a load balancer, from endpoints and from explicit addresses. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

import msgspec

from samewire.hcn.loadbalancers import BackendFlags, LoadBalancer
from samewire.hcn.schema import Endpoint
from samewire.vfp.address import parse_mac
from samewire.vfp.compile.places import ELSEWHERE, Domain, Near, pack

LOCAL: Final = int(BackendFlags.LOCAL)
DRAINING: Final = int(BackendFlags.DRAINING)
LOCAL_POLICY_ONLY: Final = int(BackendFlags.LOCAL_POLICY_ONLY)


class EndpointView(Protocol):
    """The endpoints as a compiler sees them."""

    def endpoint(self, endpoint_id: str) -> Endpoint | None: ...
    def endpoint_by_ip(self, network_id: str, ip: str) -> Endpoint | None: ...


class Member(msgspec.Struct, frozen=True, gc=False):
    """One backend. ``target``: its 16 address bytes and its port in network order. ``endpoint``: the one that it is
    here, "" for one elsewhere. ``provider`` and ``mac``: how DSR reaches it, empty when it does not. ``tenant``: who
    is behind an address elsewhere, as far as that is known.
    """

    target: bytes
    scope: int
    flags: int
    endpoint: str = ""
    provider: str = ""
    mac: bytes = b""
    tenant: str = ""

    @property
    def identity(self) -> str:
        """What must not change of a backend beside its target."""
        return self.endpoint or self.tenant


def members(value: LoadBalancer, internal_port: int, domain: Domain, view: EndpointView) -> list[Member]:
    """The backends of one port mapping."""
    backends = _backends(value, internal_port, domain, view)
    if not value.endpoint_ids:
        return backends
    found = list(_endpoints(value, internal_port, domain, view))
    named = {member.target for member in found}
    return found + [member for member in backends if member.target not in named]


def _endpoints(
    value: LoadBalancer, internal_port: int, domain: Domain, view: EndpointView
) -> Iterator[Member]:
    v6 = value.is_ipv6
    port, scope = internal_port.to_bytes(2, "big"), domain.scope
    local, draining = frozenset(value.local_endpoint_ids), frozenset(value.draining_endpoint_ids)
    for endpoint_id in value.endpoint_ids:
        endpoint = view.endpoint(endpoint_id)
        if endpoint is None:
            continue
        here = endpoint_id in local if local else not endpoint.is_remote
        flags = (LOCAL if here else 0) | (DRAINING if endpoint_id in draining else 0)
        for entry in endpoint.ip_configurations:
            address = entry.ip_address
            if (":" in address) == v6:
                yield Member(pack(address) + port, scope, flags, endpoint_id)
                break


def _backends(value: LoadBalancer, internal_port: int, domain: Domain, view: EndpointView) -> list[Member]:
    """The explicit backends, without pods of this node that are not there (any more): another may get the address."""
    find = domain.finder(6 if value.is_ipv6 else 4)
    found = []
    for backend in value.backends:
        address, provider = backend.ip_address, backend.provider_address
        packed = pack(address)
        scope, network_id, near = find(packed)
        here = ""
        if near is not ELSEWHERE:
            endpoint = view.endpoint_by_ip(network_id, address)
            if endpoint is not None:
                here = endpoint.id
            elif near is Near.POD:
                continue
        target = packed + (backend.port or internal_port).to_bytes(2, "big")
        mac = parse_mac(backend.mac_address, "$.Backends") if backend.mac_address else b""
        found.append(Member(target, scope, backend.flags, here, provider, mac, backend.target_id))
    return found
