"""HCN policies: one frozen struct for each type that HCN knows, `OtherPolicy` for the rest.

On the wire a policy is ``{"Type": "OutBoundNAT", "Settings": {"VirtualIP": "10.0.0.1"}}``; here it is
``OutBoundNAT(virtual_ip="10.0.0.1")``, so that code selects with ``isinstance`` or `select`. Addresses,
prefixes and MACs are strings in canonical form once an object has passed the service (see
``hcn/normalise.py``).
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import TypeVar

from samewire.hcn.base import U16, U32, U64
from samewire.hcn.numbered import Numbered
from samewire.hcn.policies_acl import (
    ACL,
    ANY_PROTOCOL,
    AclAction,
    AclAddresses,
    AclDirection,
    AclRule,
    AclRuleType,
    NetworkACL,
    SetPolicy,
    SetType,
    TierAcl,
    TierAclRule,
    acl_addresses,
    acl_ports,
    acl_protocols,
    is_prefix,
    set_members,
    sets_named,
)
from samewire.hcn.policies_proxy import L4WFPPROXY, FilterTuple, L4Proxy, ProxyExceptions
from samewire.hcn.policy_base import PolicyBase, parse_prefix

P = TypeVar("P", bound="PolicyBase")


__all__ = [
    "ACL",
    "ANY_PROTOCOL",
    "KNOWN_POLICIES",
    "L4WFPPROXY",
    "NOT_ENFORCED",
    "QOS",
    "VLAN",
    "VSID",
    "AclAction",
    "AclAddresses",
    "AclDirection",
    "AclRule",
    "AclRuleType",
    "AutomaticDNS",
    "DrMacAddress",
    "EncapOverhead",
    "Encryption",
    "FilterTuple",
    "HostRoute",
    "InterfaceConstraint",
    "InterfaceParameters",
    "Iov",
    "L2Driver",
    "L4Proxy",
    "LayerConstraint",
    "NatFlags",
    "NeighborDiscovery",
    "NetAdapterName",
    "NetworkACL",
    "OtherPolicy",
    "OutBoundNAT",
    "Policy",
    "PolicyBase",
    "PortMapping",
    "PortName",
    "ProviderAddress",
    "ProxyExceptions",
    "RemoteSubnetRoute",
    "SDNRoute",
    "SetPolicy",
    "SetType",
    "SourceMacAddress",
    "TierAcl",
    "TierAclRule",
    "VSwitchExtension",
    "VxlanPort",
    "acl_addresses",
    "acl_ports",
    "acl_protocols",
    "family_of",
    "first",
    "is_prefix",
    "mapping_family",
    "nat_families",
    "parse_prefix",
    "policy_type",
    "select",
    "set_members",
    "sets_named",
]


class NatFlags(enum.IntFlag):
    """Flags of OutBoundNAT and PortMapping."""

    LOCAL_ROUTED_VIP = 1
    IPV6 = 2
    EXTERNAL_PORT_RESERVED = 4


class OutBoundNAT(PolicyBase, frozen=True, kw_only=True):
    """Source NAT of what the endpoint sends out.

    ``virtual_ip`` is the address to use ("" = the node's own); destinations in ``exceptions`` keep the
    endpoint's address; with ``destinations`` only those are translated. `nat_families` says which IP
    versions it is for. ``max_port_pool_usage`` bounds the ports that the endpoint may hold (0 = no bound).
    """

    virtual_ip: str = ""
    exceptions: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()
    flags: U32 = 0
    max_port_pool_usage: U16 = 0


class PortMapping(PolicyBase, frozen=True, kw_only=True):
    """A port of the node (``external_port`` on ``vip``, "" = every node address) mapped to a port of the
    endpoint. Asked for with port 0, the service chooses one (`samewire.hcn.plan.mapped_ports`).
    """

    protocol: U32 = 0
    internal_port: U16 = 0
    external_port: U16 = 0
    vip: str = ""
    flags: U32 = 0


class SDNRoute(PolicyBase, frozen=True, kw_only=True):
    """Traffic to a prefix goes to ``next_hop`` ("" = the node); ``need_encap`` sends it through the node's
    own path.
    """

    destination_prefix: str
    next_hop: str = ""
    need_encap: bool = False
    automatic_endpoint_monitor: bool = False


class QOS(PolicyBase, frozen=True, kw_only=True):
    """Bandwidth caps in bytes per second and bursts in bytes, 0 = none. All but the outgoing cap are Linux
    extensions.
    """

    maximum_outgoing_bandwidth_in_bytes: U64 = 0
    maximum_incoming_bandwidth_in_bytes: U64 = 0
    maximum_outgoing_burst_in_bytes: U64 = 0
    maximum_incoming_burst_in_bytes: U64 = 0


class ProviderAddress(PolicyBase, frozen=True, kw_only=True):
    """Network: the node's management address. Endpoint: the underlay address of the node that has it."""

    provider_address: str


class EncapOverhead(PolicyBase, frozen=True, kw_only=True):
    """Bytes to subtract from the MTU for encapsulation done by others."""

    overhead: U16


class InterfaceParameters(PolicyBase, frozen=True, kw_only=True):
    """MTU of the endpoint's interface, in bytes."""

    mtu: U16


class PortName(PolicyBase, frozen=True, kw_only=True):
    """A name for the switch port, shown by the tools."""

    name: str


class VSID(PolicyBase, frozen=True, kw_only=True):
    """The VXLAN network identifier (VNI) of an overlay subnet."""

    isolation_id: U32


class VLAN(PolicyBase, frozen=True, kw_only=True):
    """The VLAN of a subnet or an endpoint (1 to 4094)."""

    isolation_id: U32


class RemoteSubnetRoute(PolicyBase, frozen=True, kw_only=True):
    """A pod subnet behind another node: prefix -> VNI, that node's underlay address and router MAC."""

    destination_prefix: str
    isolation_id: U32
    provider_address: str
    distributed_router_mac_address: str


class HostRoute(PolicyBase, frozen=True, kw_only=True):
    """Opens the path between this node and its own pods on an overlay network."""


class DrMacAddress(PolicyBase, frozen=True, kw_only=True):
    """MAC of this node's distributed router on an overlay network; written by Samewire."""

    address: str


class VxlanPort(PolicyBase, frozen=True, kw_only=True):
    """UDP destination port of the overlay."""

    port: U16


class NetAdapterName(PolicyBase, frozen=True, kw_only=True):
    """The node's interface that the network uses as uplink."""

    network_adapter_name: str


class SourceMacAddress(PolicyBase, frozen=True, kw_only=True):
    """MAC that the frames of the network's pods carry on the underlay, and that the underlay is told for them."""

    source_mac_address: str


class NeighborDiscovery(PolicyBase, frozen=True, kw_only=True):
    """The switch answers questions for neighbours of a prefix with this MAC, those of IPv6 from this address."""

    target_ip_prefix: str
    sender_ip_address: str
    sender_mac_address: str


class AutomaticDNS(PolicyBase, frozen=True, kw_only=True):
    """Endpoints without resolver settings of their own get the node's."""

    enable: bool = True


class InterfaceConstraint(PolicyBase, frozen=True, kw_only=True):
    """The node's interface that a network uses, by any of its names."""

    interface_guid: str = ""
    interface_luid: U64 = 0
    interface_index: U32 = 0
    interface_media_type: U32 = 0
    interface_alias: str = ""
    interface_description: str = ""


class Iov(PolicyBase, frozen=True, kw_only=True):
    """Wishes for a virtual function of the NIC."""

    iov_offload_weight: U32 = 0
    queue_pairs_requested: U32 = 0
    interrupt_moderation: U32 = 0


class VSwitchExtension(PolicyBase, frozen=True, kw_only=True):
    """Turns an extension of the Windows switch on or off."""

    extension_id: str = ""
    enable: bool = False


class LayerConstraint(PolicyBase, frozen=True, kw_only=True):
    """The layer of the Windows switch that a network's policies go to."""

    layer_id: str = ""


class L2Driver(PolicyBase, frozen=True, kw_only=True):
    """Settings of the Windows l2bridge driver, whose fields nobody documents."""


class Encryption(PolicyBase, frozen=True, kw_only=True):
    """Encryption of an endpoint's virtual network traffic, whose fields nobody documents."""


class OtherPolicy(PolicyBase, frozen=True, kw_only=True):
    """A policy that is stored and returned but not enforced.

    ``settings_json`` is the JSON text of its settings, with sorted keys.
    """

    type_name: str
    settings_json: str = "null"


Policy = (
    OutBoundNAT
    | PortMapping
    | ACL
    | NetworkACL
    | TierAcl
    | SetPolicy
    | L4Proxy
    | L4WFPPROXY
    | SDNRoute
    | QOS
    | ProviderAddress
    | EncapOverhead
    | InterfaceParameters
    | PortName
    | VSID
    | VLAN
    | RemoteSubnetRoute
    | HostRoute
    | DrMacAddress
    | VxlanPort
    | NetAdapterName
    | SourceMacAddress
    | NeighborDiscovery
    | AutomaticDNS
    | InterfaceConstraint
    | Iov
    | VSwitchExtension
    | LayerConstraint
    | L2Driver
    | Encryption
    | OtherPolicy
)

_IPV6 = int(NatFlags.IPV6)

KNOWN_POLICIES: dict[str, type[PolicyBase]] = {
    cls.__name__.lower(): cls for cls in PolicyBase.__subclasses__() if cls is not OtherPolicy
}


NOT_ENFORCED: frozenset[type[PolicyBase]] = frozenset(
    {OtherPolicy, Iov, VSwitchExtension, LayerConstraint, L2Driver, Encryption}
)
"""Policies without effect in the switch, which objects report in their Health. Whoever enforces one takes it out."""


def policy_type(policy: Policy) -> str:
    """Return the HCN name of a policy's type."""
    return policy.type_name if isinstance(policy, OtherPolicy) else type(policy).__name__


def select(policies: Iterable[Policy], wanted: type[P]) -> list[P]:
    """Return the policies of one type, in their order."""
    own = policies.of(wanted) if isinstance(policies, Numbered) else policies
    return [policy for policy in own if type(policy) is wanted]


def first(policies: Iterable[Policy], wanted: type[P]) -> P | None:
    """Return the first policy of a type, or None."""
    own = policies.of(wanted) if isinstance(policies, Numbered) else policies
    return next((policy for policy in own if type(policy) is wanted), None)


@lru_cache(maxsize=4096)
def family_of(text: str) -> int:
    """Return 4 or 6 for an address or prefix. Raises ValueError."""
    return parse_prefix(text).version


def nat_families(policy: OutBoundNAT) -> frozenset[int]:
    """Return the IP versions an OutBoundNAT policy is for.

    HCN flags IPv6 (`NatFlags.IPV6`), but dual-stack configurations in the field omit the flag and only give
    addresses: the VirtualIP, else the destinations, else the exceptions decide. A policy that says nothing
    is for both.
    """
    if policy.flags & NatFlags.IPV6:
        return frozenset({6})
    for hints in ((policy.virtual_ip,) if policy.virtual_ip else (), policy.destinations, policy.exceptions):
        if hints:
            return frozenset(6 if ":" in hint else 4 for hint in hints)
    return frozenset({4, 6})


def mapping_family(policy: PortMapping, addresses: Collection[str]) -> int:
    """Return the IP version of a PortMapping on an endpoint with these addresses.

    The IPv6 flag or the VIP's version decides; without both it is IPv4, or IPv6 on an endpoint that has
    only that.
    """
    if policy.vip:
        return 6 if ":" in policy.vip else 4
    if policy.flags & _IPV6:
        return 6
    return 6 if addresses and all(":" in address for address in addresses) else 4
