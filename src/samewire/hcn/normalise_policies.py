"""Checks of policies and their canonical form. Pure; the result of a policy is cached, since pods repeat
them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NoReturn

import msgspec

from samewire.hcn import values
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.normalise_acl import CHECKS as ACL_CHECKS
from samewire.hcn.numbered import MAX_ITEMS
from samewire.hcn.policies import (
    ACL,
    L4WFPPROXY,
    QOS,
    VLAN,
    VSID,
    AutomaticDNS,
    DrMacAddress,
    EncapOverhead,
    Encryption,
    HostRoute,
    InterfaceConstraint,
    InterfaceParameters,
    Iov,
    L2Driver,
    L4Proxy,
    LayerConstraint,
    NeighborDiscovery,
    NetAdapterName,
    NetworkACL,
    OtherPolicy,
    OutBoundNAT,
    Policy,
    PolicyBase,
    PortMapping,
    PortName,
    ProviderAddress,
    RemoteSubnetRoute,
    SDNRoute,
    SetPolicy,
    SourceMacAddress,
    TierAcl,
    VSwitchExtension,
    VxlanPort,
    family_of,
)
from samewire.hcn.policy_lists import PolicyList, identity
from samewire.remembered import LONG, remembered

MIN_MTU = 576
# The last one is the switch's own, for what goes to pods of bridged networks of other nodes.
MAX_VNI = 2**24 - 2
MAX_VLAN = 4094
TCP, UDP, SCTP = 6, 17, 132

_FEW = 16

_replace = msgspec.structs.replace


class Scope(enum.StrEnum):
    """What a policy is attached to."""

    NETWORK = "a network"
    SUBNET = "a subnet"
    ENDPOINT = "an endpoint"


ALLOWED: dict[Scope, frozenset[type[PolicyBase]]] = {
    Scope.ENDPOINT: frozenset(
        {
            *(ACL, EncapOverhead, InterfaceParameters, OutBoundNAT, PortMapping, PortName, ProviderAddress),
            *(QOS, SDNRoute, VLAN, TierAcl, L4Proxy, L4WFPPROXY),
            *(Iov, InterfaceConstraint, L2Driver, Encryption),
        }
    ),
    Scope.NETWORK: frozenset(
        {
            *(DrMacAddress, HostRoute, NeighborDiscovery, NetAdapterName, ProviderAddress, RemoteSubnetRoute),
            *(SourceMacAddress, VxlanPort, SetPolicy, NetworkACL, L4Proxy, SDNRoute),
            *(AutomaticDNS, InterfaceConstraint, VSwitchExtension, LayerConstraint, L2Driver, VLAN),
        }
    ),
    Scope.SUBNET: frozenset({VLAN, VSID}),
}


def check_policies(policies: Iterable[Policy], scope: Scope, path: str) -> PolicyList:
    """Return the canonical form of an object's policies. ``path`` is the list's. Raises HcnError."""
    policies = tuple(policies)
    check_length(policies, path)
    result: list[Policy] = []
    seen: set[object] = set()
    for index, policy in enumerate(policies):
        canonical = check_policy(policy, scope, f"{path}[{index}]")
        mine = identity(canonical)
        if mine is not None and mine in seen:
            _fail(
                f"{path}[{index}]",
                f"there is already such a {type(policy).__name__}",
                already_there(policy),
            )
        seen.add(mine)
        result.append(canonical)
    return _shared(tuple(result)) if len(result) <= _FEW else PolicyList(result)


@lru_cache(maxsize=1024)
def _shared(policies: tuple[Policy, ...]) -> PolicyList:
    """Short lists are alike for many pods: what is known of one is known of all."""
    return PolicyList(policies)


def check_length(policies: Sequence[Policy], path: str) -> None:
    """Refuse more policies than an object can have. Raises HcnError."""
    if len(policies) > MAX_ITEMS:
        _fail(path, f"an object has at most {MAX_ITEMS} policies")


def check_policy(policy: Policy, scope: Scope, path: str) -> Policy:
    """Return the canonical form of one policy. Raises HcnError."""
    try:
        return _checked(policy, scope)
    except HcnError as error:
        raise HcnError(error.code, f"{path}.{error.message}") from None


def already_there(policy: Policy) -> HcnCode:
    """Return the code of a policy that may be there once, and is."""
    if isinstance(policy, InterfaceParameters):
        return HcnCode.INTERFACEPARAMETERS_ALREADY_APPLIED
    return HcnCode.POLICY_ALREADY_EXISTS


def _length(policy: Policy, _: Scope) -> int:
    match policy:
        case ACL() | NetworkACL():
            return len(policy.local_addresses) + len(policy.remote_addresses)
        case SetPolicy():
            return len(policy.values)
        case TierAcl():
            return LONG
    return 0


@remembered(4096, _length)
def _checked(policy: Policy, scope: Scope) -> Policy:
    if isinstance(policy, OtherPolicy):
        return policy
    kind = type(policy)
    if kind not in ALLOWED[scope]:
        _fail("Type", f"{kind.__name__} is not a policy of {scope.value}", HcnCode.INVALID_POLICY_TYPE)
    check: Callable[[Any], Policy] | None = _CHECKS.get(kind)
    return check(policy) if check else policy


def _fail(path: str, message: str, code: HcnCode = HcnCode.INVALID_POLICY) -> NoReturn:
    raise HcnError(code, f"{path}: {message}")


def _list(items: tuple[str, ...], path: str) -> tuple[str, ...]:
    return tuple(
        values.address_or_prefix(item, f"{path}[{index}]") for index, item in enumerate(items) if item
    )


def _nat(policy: OutBoundNAT) -> OutBoundNAT:
    policy = _replace(
        policy,
        virtual_ip=values.station_ip(policy.virtual_ip, "Settings.VirtualIP") if policy.virtual_ip else "",
        exceptions=_list(policy.exceptions, "Settings.Exceptions"),
        destinations=_list(policy.destinations, "Settings.Destinations"),
    )
    if policy.virtual_ip:
        version = family_of(policy.virtual_ip)
        for index, item in enumerate(policy.destinations):
            if family_of(item) != version:
                _fail(
                    f"Settings.Destinations[{index}]",
                    f"{item} and VirtualIP {policy.virtual_ip} differ in IP version",
                )
    return policy


def _mapping(policy: PortMapping) -> PortMapping:
    if not policy.protocol:
        policy = _replace(policy, protocol=TCP)  # hns.v2.psm1 names none
    if policy.protocol not in (TCP, UDP, SCTP):
        _fail(
            "Settings.Protocol",
            f"only ports of TCP ({TCP}), UDP ({UDP}) and SCTP ({SCTP}) can be mapped, got {policy.protocol}",
            HcnCode.MAPPING_NOT_SUPPORTED,
        )
    if policy.internal_port == 0:
        _fail("Settings.InternalPort", "must be a port of the endpoint, not 0", HcnCode.INVALID_INTERNAL_PORT)
    vip = values.optional_ip(policy.vip, "Settings.VIP")
    # 0.0.0.0 and :: are how container runtimes say "every address"
    return _replace(
        policy, vip="" if vip in ("0.0.0.0", "::") else vip, flags=policy.flags | (2 if vip == "::" else 0)
    )


def _route(policy: SDNRoute) -> SDNRoute:
    prefix = values.destination(policy.destination_prefix, "Settings.DestinationPrefix")
    hop = values.optional_ip(policy.next_hop, "Settings.NextHop")
    if hop and family_of(hop) != family_of(prefix):
        _fail("Settings.NextHop", f"{hop} and {prefix} differ in IP version")
    return _replace(policy, destination_prefix=prefix, next_hop=hop)


def _remote(policy: RemoteSubnetRoute) -> RemoteSubnetRoute:
    if not 1 <= policy.isolation_id <= MAX_VNI:
        _fail("Settings.IsolationId", f"a VNI is from 1 to {MAX_VNI}, got {policy.isolation_id}")
    router = values.mac(policy.distributed_router_mac_address, "Settings.DistributedRouterMacAddress")
    return _replace(
        policy,
        destination_prefix=values.prefix(policy.destination_prefix, "Settings.DestinationPrefix"),
        provider_address=values.station_ip(policy.provider_address, "Settings.ProviderAddress"),
        distributed_router_mac_address=router,
    )


def _provider(policy: ProviderAddress) -> ProviderAddress:
    return _replace(
        policy, provider_address=values.station_ip(policy.provider_address, "Settings.ProviderAddress")
    )


def _mtu(policy: InterfaceParameters) -> InterfaceParameters:
    if policy.mtu < MIN_MTU:
        _fail("Settings.Mtu", f"must be at least {MIN_MTU} bytes, got {policy.mtu}")
    return policy


def _vsid(policy: VSID) -> VSID:
    if not 1 <= policy.isolation_id <= MAX_VNI:
        _fail("Settings.IsolationId", f"a VNI is from 1 to {MAX_VNI}, got {policy.isolation_id}")
    return policy


def _vlan(policy: VLAN) -> VLAN:
    if not 1 <= policy.isolation_id <= MAX_VLAN:
        _fail("Settings.IsolationId", f"a VLAN is from 1 to {MAX_VLAN}, got {policy.isolation_id}")
    return policy


def _dr_mac(policy: DrMacAddress) -> DrMacAddress:
    return _replace(policy, address=values.mac(policy.address, "Settings.Address"))


def _source_mac(policy: SourceMacAddress) -> SourceMacAddress:
    return _replace(
        policy, source_mac_address=values.mac(policy.source_mac_address, "Settings.SourceMacAddress")
    )


def _adapter(policy: NetAdapterName) -> NetAdapterName:
    values.interface_name(policy.network_adapter_name, "Settings.NetworkAdapterName", HcnCode.INVALID_POLICY)
    if not policy.network_adapter_name:
        _fail("Settings.NetworkAdapterName", "must name an interface", HcnCode.ADAPTER_NOT_FOUND)
    return policy


def _vxlan_port(policy: VxlanPort) -> VxlanPort:
    if policy.port == 0:
        _fail("Settings.Port", "must not be 0")
    return policy


def _discovery(policy: NeighborDiscovery) -> NeighborDiscovery:
    prefix = values.prefix(policy.target_ip_prefix, "Settings.TargetIpPrefix")
    sender = values.station_ip(policy.sender_ip_address, "Settings.SenderIpAddress")
    if family_of(sender) != family_of(prefix):
        _fail("Settings.SenderIpAddress", f"{sender} and TargetIpPrefix {prefix} differ in IP version")
    return _replace(
        policy,
        target_ip_prefix=prefix,
        sender_ip_address=sender,
        sender_mac_address=values.mac(policy.sender_mac_address, "Settings.SenderMacAddress"),
    )


def _port_name(policy: PortName) -> PortName:
    values.name(policy.name, "Settings.Name", HcnCode.INVALID_POLICY)
    return policy


_CHECKS: dict[type[PolicyBase], Callable[[Any], Policy]] = {
    OutBoundNAT: _nat,
    PortMapping: _mapping,
    **ACL_CHECKS,
    SDNRoute: _route,
    RemoteSubnetRoute: _remote,
    ProviderAddress: _provider,
    InterfaceParameters: _mtu,
    VSID: _vsid,
    VLAN: _vlan,
    DrMacAddress: _dr_mac,
    SourceMacAddress: _source_mac,
    NetAdapterName: _adapter,
    VxlanPort: _vxlan_port,
    NeighborDiscovery: _discovery,
    PortName: _port_name,
}
