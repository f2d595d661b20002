"""What policies ask of the node's uplink.

VLAN: the kernel tags what leaves by a VLAN's own interface; the switch itself does not. `bpf_redirect_neigh` asks the
kernel for the next hop's MAC, and that asks on the interface it sends by: a tag pushed by the switch would have the
neighbour of the untagged LAN behind it.
"""

from __future__ import annotations

from collections.abc import Iterable

from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.policies import VLAN, InterfaceConstraint, Policy, SourceMacAddress, first
from samewire.hcn.schema import Network, NetworkType
from samewire.hcn.switch import NodeFacts

_ON_THE_UNDERLAY = frozenset({NetworkType.L2BRIDGE, NetworkType.L2TUNNEL, NetworkType.TRANSPARENT})
_WITH_ONE_MAC = frozenset({NetworkType.L2BRIDGE, NetworkType.L2TUNNEL})


def vlans_of(network: Network) -> list[VLAN]:
    """The VLAN policies of the network and of its subnets."""
    lists = (network.policies, *(subnet.policies for subnet in network.subnets))
    return [policy for policies in lists for policy in policies if isinstance(policy, VLAN)]


def check_constraint(policies: Iterable[Policy], facts: NodeFacts) -> None:
    """Refuse to be bound to another interface than the uplink. Raises HcnError(ADAPTER_NOT_FOUND)."""
    constraint = first(policies, InterfaceConstraint)
    if constraint and constraint.interface_alias not in ("", facts.uplink):
        raise HcnError(
            HcnCode.ADAPTER_NOT_FOUND,
            f"$.Policies: the uplink of this node is {facts.uplink}, not {constraint.interface_alias}",
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


def check_vlans(network: Network, policies: Iterable[Policy], facts: NodeFacts) -> None:
    """Refuse a VLAN whose tag the frames of this network would not carry. Raises
    HcnError(INVALID_NETWORK_TYPE, REQUEST_UNSUPPORTED).
    """
    for policy in policies:
        if not isinstance(policy, VLAN):
            continue
        if network.type not in _ON_THE_UNDERLAY:
            raise HcnError(
                HcnCode.INVALID_NETWORK_TYPE,
                f"Settings.IsolationId: VLAN {policy.isolation_id}: a network of type {network.type.value} sends "
                "no frames of its own to the underlay; a VLAN is for L2Bridge, L2Tunnel and Transparent",
            )
        if policy.isolation_id != facts.uplink_vlan:
            here = f"carries VLAN {facts.uplink_vlan}" if facts.uplink_vlan else "is not a VLAN's interface"
            raise HcnError(
                HcnCode.REQUEST_UNSUPPORTED,
                f"Settings.IsolationId: VLAN {policy.isolation_id}: frames are tagged by the kernel, and the uplink "
                f"{facts.uplink} {here}; make the interface of VLAN {policy.isolation_id} this node's uplink",
            )
