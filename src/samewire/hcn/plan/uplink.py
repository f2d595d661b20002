"""What policies ask of the node's uplink.

VLAN: the switch tags what leaves and untags what arrives, but for the VLAN whose interface is the node's uplink: there
the kernel does. A network is one VLAN, with all its subnets and endpoints.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.policies import (
    VLAN,
    InterfaceConstraint,
    OutBoundNAT,
    Policy,
    SourceMacAddress,
    first,
)
from samewire.hcn.policy_lists import placed
from samewire.hcn.schema import Network, NetworkType
from samewire.hcn.switch import NodeFacts

_ON_THE_UNDERLAY = frozenset({NetworkType.L2BRIDGE, NetworkType.L2TUNNEL, NetworkType.TRANSPARENT})
_WITH_ONE_MAC = frozenset({NetworkType.L2BRIDGE, NetworkType.L2TUNNEL})


def vlans_of(network: Network) -> Iterator[tuple[str, VLAN]]:
    """The VLAN policies of the network and of its subnets, with their places."""
    yield from placed(network.policies, VLAN)
    for i, ipam in enumerate(network.ipams):
        for j, subnet in enumerate(ipam.subnets):
            yield from placed(subnet.policies, VLAN, f"$.Ipams[{i}].Subnets[{j}].Policies")


def check_constraint(policies: Iterable[Policy], facts: NodeFacts, path: str) -> None:
    """Refuse to be bound to another interface than the uplink. Raises HcnError(ADAPTER_NOT_FOUND)."""
    for where, constraint in placed(policies, InterfaceConstraint, path):
        if constraint.interface_alias not in ("", facts.uplink):
            field, other = "InterfaceAlias", constraint.interface_alias
        elif constraint.interface_index not in (0, facts.uplink_ifindex):
            field, other = "InterfaceIndex", f"the interface with index {constraint.interface_index}"
        else:
            continue
        raise HcnError(
            HcnCode.ADAPTER_NOT_FOUND,
            f"{where}.{field}: the uplink of this node is {facts.uplink}, index {facts.uplink_ifindex}, not {other}",
        )


def check_source_mac(network: Network) -> None:
    """Refuse a source MAC where frames have the pod's, or are the node's. Raises HcnError(INVALID_NETWORK_TYPE)."""
    policy = first(network.policies, SourceMacAddress)
    if policy and network.type not in _WITH_ONE_MAC:
        raise HcnError(
            HcnCode.INVALID_NETWORK_TYPE,
            f"$.Policies: SourceMacAddress {policy.source_mac_address}: a network of type {network.type.value} sends "
            "no frames that could carry it to the underlay; it is for L2Bridge and L2Tunnel",
        )


def tag_of(network: Network, facts: NodeFacts) -> int:
    """The tag that the switch gives the frames of a network, 0 for none."""
    return network.vlan if network.type in _ON_THE_UNDERLAY and network.vlan != facts.uplink_vlan else 0


def on_one_wire(one: Network, other: Network, facts: NodeFacts) -> bool:
    """Whether the endpoints of two networks have addresses of one link."""
    bridged = one.type in _ON_THE_UNDERLAY and other.type in _ON_THE_UNDERLAY
    return bridged and tag_of(one, facts) == tag_of(other, facts)


def check_vlans(network: Network, vlans: Iterable[tuple[str, VLAN]], facts: NodeFacts) -> None:
    """Refuse a VLAN, named with its place, whose tag the frames of this network would not carry. Raises
    HcnError(INVALID_NETWORK_TYPE, INVALID_POLICY, REQUEST_UNSUPPORTED).
    """
    tag = tag_of(network, facts)
    for where, policy in vlans:
        if network.type not in _ON_THE_UNDERLAY:
            raise HcnError(
                HcnCode.INVALID_NETWORK_TYPE,
                f"{where}.IsolationId: VLAN {policy.isolation_id}: a network of type {network.type.value} sends "
                "no frames of its own to the underlay; a VLAN is for L2Bridge, L2Tunnel and Transparent",
            )
        if facts.uplink_vlan and policy.isolation_id != facts.uplink_vlan:
            raise HcnError(
                HcnCode.REQUEST_UNSUPPORTED,
                f"{where}.IsolationId: VLAN {policy.isolation_id}: the uplink {facts.uplink} is that of VLAN "
                f"{facts.uplink_vlan}, and there are no tags within tags; make the interface below it the uplink",
            )
        if tag != (0 if policy.isolation_id == facts.uplink_vlan else policy.isolation_id):
            here = f"VLAN {tag}" if tag else "no VLAN"
            raise HcnError(
                HcnCode.INVALID_POLICY,
                f"{where}.IsolationId: VLAN {policy.isolation_id}: the network is {here}, and all that is in it with "
                "it; a network of its own can have this VLAN",
            )


def check_translation(network: Network, policies: Iterable[Policy], facts: NodeFacts, path: str) -> None:
    """Refuse to translate to the node's address in a VLAN, where it is nobody's. Raises HcnError(INVALID_POLICY)."""
    tag = tag_of(network, facts)
    for where, policy in placed(policies, OutBoundNAT, path) if tag else ():
        if not policy.virtual_ip:
            raise HcnError(
                HcnCode.INVALID_POLICY,
                f"{where}.VirtualIP: OutBoundNAT needs one in VLAN {tag}: answers to the node's address would not "
                "come back",
            )
