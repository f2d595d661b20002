"""HCN policies: one frozen struct for each type that the switch enforces, `OtherPolicy` for the rest.

On the wire a policy is ``{"Type": "OutBoundNAT", "Settings": {"VirtualIP": "10.0.0.1"}}``; here it is
``OutBoundNAT(virtual_ip="10.0.0.1")``, so that code selects with ``isinstance`` or `select`. Addresses,
prefixes and MACs are strings in canonical form once an object has passed the service (see
``hcn/normalise.py``).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TypeVar

from samewire.hcn.base import U16, U32, U64, Wire

P = TypeVar("P", bound="PolicyBase")

ANY_PROTOCOL = 256


class NatFlags(enum.IntFlag):
    """Flags of OutBoundNAT and PortMapping."""

    LOCAL_ROUTED_VIP = 1
    IPV6 = 2
    EXTERNAL_PORT_RESERVED = 4


class AclAction(enum.StrEnum):
    """What an ACL rule does; `PASS` leaves the decision to the next tier."""

    ALLOW = "Allow"
    BLOCK = "Block"
    PASS = "Pass"


class AclDirection(enum.StrEnum):
    """Direction of an ACL rule, as the endpoint sees it."""

    IN = "In"
    OUT = "Out"


class AclRuleType(enum.StrEnum):
    """Where Windows enforces a rule. Here both are enforced by the switch."""

    HOST = "Host"
    SWITCH = "Switch"


class PolicyBase(Wire, frozen=True, kw_only=True, tag_field="Type", tag=lambda name: name):
    """Base of all policies; the class name is the HCN type name.

    ``extra`` holds the unknown fields of ``Settings``, ``beside`` those next to ``Type`` and ``Settings``.
    """

    beside: tuple[tuple[str, str], ...] = ()


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
    endpoint.
    """

    protocol: U32 = 0
    internal_port: U16 = 0
    external_port: U16 = 0
    vip: str = ""
    flags: U32 = 0


class ACL(PolicyBase, frozen=True, kw_only=True):
    """A 5-tuple rule. The lowest ``priority`` number wins; the lists are comma-separated text as HCN has
    them.

    Read the lists with `acl_protocols`, `acl_prefixes` and `acl_ports`. In: local = the endpoint, remote =
    the source; out: local = the endpoint, remote = the destination.
    """

    rule_id: str = ""
    protocols: str = ""
    action: AclAction
    direction: AclDirection
    local_addresses: str = ""
    remote_addresses: str = ""
    local_ports: str = ""
    remote_ports: str = ""
    rule_type: AclRuleType = AclRuleType.SWITCH
    priority: U16 = 0


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
    """MAC that the network's frames carry on the underlay."""

    source_mac_address: str


class NeighborDiscovery(PolicyBase, frozen=True, kw_only=True):
    """The switch answers neighbour requests for a prefix from this address and MAC."""

    target_ip_prefix: str
    sender_ip_address: str
    sender_mac_address: str


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
    | OtherPolicy
)

KNOWN_POLICIES: dict[str, type[PolicyBase]] = {
    cls.__name__.lower(): cls for cls in PolicyBase.__subclasses__() if cls is not OtherPolicy
}


NOT_ENFORCED: frozenset[type[PolicyBase]] = frozenset(
    {OtherPolicy, VLAN, SourceMacAddress, NeighborDiscovery, PortName}
)
"""Policies without effect in the switch, which objects report in their Health. Whoever enforces one takes it out."""


def policy_type(policy: Policy) -> str:
    """Return the HCN name of a policy's type."""
    return policy.type_name if isinstance(policy, OtherPolicy) else type(policy).__name__


def select(policies: Iterable[Policy], wanted: type[P]) -> list[P]:
    """Return the policies of one type, in their order."""
    return [policy for policy in policies if isinstance(policy, wanted)]


def first(policies: Iterable[Policy], wanted: type[P]) -> P | None:
    """Return the first policy of a type, or None."""
    return next((policy for policy in policies if isinstance(policy, wanted)), None)


@lru_cache(maxsize=4096)
def parse_prefix(text: str) -> IPv4Network | IPv6Network:
    """Return an address or prefix as a network; host bits are cleared. Raises ValueError."""
    return ip_network(text, strict=False)


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
            return frozenset(family_of(hint) for hint in hints)
    return frozenset({4, 6})


def mapping_family(policy: PortMapping, addresses: Iterable[str]) -> int:
    """Return the IP version of a PortMapping on an endpoint with these addresses.

    The IPv6 flag or the VIP's version decides; without both it is IPv4, or IPv6 on an endpoint that has
    only that.
    """
    if policy.vip:
        return ip_address(policy.vip).version
    if policy.flags & NatFlags.IPV6:
        return 6
    versions = {ip_address(address).version for address in addresses}
    return 6 if versions == {6} else 4


def _items(text: str) -> list[str]:
    return [item for raw in text.split(",") if (item := raw.strip())]


def acl_protocols(text: str) -> tuple[int, ...]:
    """Return the IP protocol numbers of an ACL list; () = any. Raises ValueError."""
    numbers = [int(item, 10) for item in _items(text)]
    if any(not 0 <= number <= ANY_PROTOCOL for number in numbers):
        raise ValueError(
            f"{text!r} holds a number that is no IP protocol (0 to 255, or {ANY_PROTOCOL} for any)"
        )
    return () if ANY_PROTOCOL in numbers else tuple(numbers)


def acl_prefixes(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Return the prefixes of an ACL list; () = any. Raises ValueError."""
    return tuple(parse_prefix(item) for item in _items(text))


def acl_ports(text: str) -> tuple[tuple[int, int], ...]:
    """Return the inclusive port ranges of an ACL list ("80,443,8000-8080"); () = any. Raises ValueError."""
    ranges = []
    for item in _items(text):
        low, dash, high = item.partition("-")
        pair = (int(low, 10), int(high if dash else low, 10))
        if not 0 <= pair[0] <= pair[1] <= 2**16 - 1:
            raise ValueError(f"{item!r} is no port or range of ports")
        ranges.append(pair)
    return tuple(ranges)
