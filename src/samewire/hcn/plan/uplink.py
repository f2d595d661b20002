"""What policies ask of the node's uplink.

VLAN: the switch tags what leaves and untags what arrives, but for the VLAN whose interface is the node's uplink: there
the kernel does. A network is one VLAN, with all its subnets and endpoints.
"""

from __future__ import annotations

from collections.abc import Iterable

from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.policies import (
    VLAN,
    InterfaceConstraint,
    OutBoundNAT,
    Policy,
    SourceMacAddress,
    first,
    select,
)
from samewire.hcn.schema import Network, NetworkType
from samewire.hcn.switch import NodeFacts

_ON_THE_UNDERLAY = frozenset({NetworkType.L2BRIDGE, NetworkType.L2TUNNEL, NetworkType.TRANSPARENT})
_WITH_ONE_MAC = frozenset({NetworkType.L2BRIDGE, NetworkType.L2TUNNEL})


def vlans_of(network: Network) -> list[VLAN]:
    """The VLAN policies of the network and of its subnets."""
    lists = (network.policies, *(subnet.policies for subnet in network.subnets))
    return [policy for policies in lists for policy in select(policies, VLAN)]


def check_constraint(policies: Iterable[Policy], facts: NodeFacts) -> None:
    """Refuse to be bound to another interface than the uplink. Raises HcnError(ADAPTER_NOT_FOUND)."""
    constraint = first(policies, InterfaceConstraint)
    if constraint is None:
        return
    if constraint.interface_alias not in ("", facts.uplink):
        other = constraint.interface_alias
    elif constraint.interface_index not in (0, facts.uplink_ifindex):
        other = f"the interface with index {constraint.interface_index}"
    else:
        return
    raise HcnError(
        HcnCode.ADAPTER_NOT_FOUND,
        f"$.Policies: InterfaceConstraint: the uplink of this node is {facts.uplink}, index {facts.uplink_ifindex}, "
        f"not {other}",
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


def check_vlans(network: Network, policies: Iterable[Policy], facts: NodeFacts) -> None:
    """Refuse a VLAN whose tag the frames of this network would not carry. Raises
    HcnError(INVALID_NETWORK_TYPE, INVALID_POLICY, REQUEST_UNSUPPORTED).
    """
    tag = tag_of(network, facts)
    for policy in policies:
        if not isinstance(policy, VLAN):
            continue
        if network.type not in _ON_THE_UNDERLAY:
            raise HcnError(
                HcnCode.INVALID_NETWORK_TYPE,
                f"Settings.IsolationId: VLAN {policy.isolation_id}: a network of type {network.type.value} sends "
                "no frames of its own to the underlay; a VLAN is for L2Bridge, L2Tunnel and Transparent",
            )
        if facts.uplink_vlan and policy.isolation_id != facts.uplink_vlan:
            raise HcnError(
                HcnCode.REQUEST_UNSUPPORTED,
                f"Settings.IsolationId: VLAN {policy.isolation_id}: the uplink {facts.uplink} is that of VLAN "
                f"{facts.uplink_vlan}, and there are no tags within tags; make the interface below it the uplink",
            )
        if tag != (0 if policy.isolation_id == facts.uplink_vlan else policy.isolation_id):
            here = f"VLAN {tag}" if tag else "no VLAN"
            raise HcnError(
                HcnCode.INVALID_POLICY,
                f"Settings.IsolationId: VLAN {policy.isolation_id}: the network is {here}, and all that is in it with "
                "it; a network of its own can have this VLAN",
            )


def check_translation(network: Network, policies: Iterable[Policy], facts: NodeFacts) -> None:
    """Refuse to translate to the node's address in a VLAN, where it is nobody's. Raises HcnError(INVALID_POLICY)."""
    tag = tag_of(network, facts)
    for policy in policies if tag else ():
        if isinstance(policy, OutBoundNAT) and not policy.virtual_ip:
            raise HcnError(
                HcnCode.INVALID_POLICY,
                f"Settings.VirtualIP: OutBoundNAT needs one in VLAN {tag}: answers to the node's address would not "
                "come back",
            )
