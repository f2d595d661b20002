"""The forward hop of DSR: a tunnel to the backend's node whose inner destination MAC names the endpoint. Pure."""

from __future__ import annotations

from typing import Final

from samewire.hcn.loadbalancers import LoadBalancer
from samewire.hcn.schema import NetworkType
from samewire.vfp.address import Address, parse_address, parse_mac
from samewire.vfp.compile.builder import Builder
from samewire.vfp.compile.members import Member
from samewire.vfp.compile.places import Domain, pack
from samewire.vfp.constants import SCOPE_UPLINK
from samewire.vfp.model import Compiled
from samewire.vfp.tables import Id

DIRECT_VNI: Final = 2**24 - 1
"""What the forward hop is sent under between nodes of bridged networks, which have no VNI of their own."""


def direct_vni(domain: Domain, scope: int) -> int:
    """The VNI under which the members of a scope are reached, 0 when they are not."""
    context = domain.contexts.get(scope)
    if context is None or not context.facts.tunnel_ifindex:
        return 0
    if context.plan.type is NetworkType.OVERLAY:
        return context.plan.vni
    return DIRECT_VNI if context.plan.bridged and scope == SCOPE_UPLINK else 0


def hop_key(member: Member) -> str:
    """The name under which the hop to a member has its number (kind ``nexthop``)."""
    return f"direct/{member.scope}/{member.provider}/{member.mac.hex()}"


def compile_direct(value: LoadBalancer, domain: Domain) -> Compiled:
    """The nexthops of the backends that can be reached by DSR. Raises Invalid, Exhausted."""
    builder = Builder()
    find = domain.finder(6 if value.is_ipv6 else 4)
    for index, backend in enumerate(value.backends):
        if not backend.mac_address:
            continue
        packed = pack(backend.ip_address)
        scope = find(packed).scope
        vni = direct_vni(domain, scope)
        if not vni:
            continue
        context = domain.contexts[scope]
        path = f"$.Backends[{index}]"
        provider: Address = parse_address(backend.provider_address, f"{path}.ProviderAddress")
        mac = parse_mac(backend.mac_address, f"{path}.MacAddress")
        member = Member(packed, scope, 0, "", backend.provider_address, mac)
        number = context.nexthop(hop_key(member))
        builder.put("sw_nexthops", Id(number), context.tunnel(provider, vni, mac))
    return Compiled(builder.entries)
