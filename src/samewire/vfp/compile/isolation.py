"""The endpoint flag DisableInterComputeCommunication (``DisableICC``) as a tier of ACL rules in front of all others.

The endpoint and the others of its network do not talk: neither those of this node nor those behind the network's remote
subnets. Left are the gateways, the node, the endpoint itself (a service that leads back to it), and everything outside.
"""

from __future__ import annotations

from collections.abc import Iterable

from samewire.hcn.policies import AclAction, AclDirection, TierAcl, TierAclRule
from samewire.hcn.schema import Endpoint
from samewire.vfp.address import Prefix
from samewire.vfp.compile.plan import NetworkPlan
from samewire.vfp.model import NodeFacts

FIRST = -1  # an Order below all that a policy can have


def isolation(
    endpoint: Endpoint, plan: NetworkPlan, facts: NodeFacts, addresses: Iterable[Prefix]
) -> tuple[TierAcl, ...]:
    """The tiers of an endpoint that has the flag, () of any other."""
    if not endpoint.is_alone:
        return ()
    others = [subnet.prefix for subnet in plan.subnets] + [remote.prefix for remote in plan.remote.all]
    if not others:
        return ()
    gateways = [subnet.gateway.host_prefix for subnet in plan.subnets if subnet.gateway is not None]
    left = [*gateways, *(own.address.host_prefix for own in (*facts.addresses, *addresses))]
    rules = (
        _rule(1, AclAction.PASS, left),
        _rule(2, AclAction.BLOCK, others),
        _rule(3, AclAction.PASS, ()),
    )
    return tuple(
        TierAcl(name="DisableICC", direction=direction, order=FIRST, tier_acl_rules=rules)
        for direction in (AclDirection.IN, AclDirection.OUT)
    )


def _rule(priority: int, action: AclAction, remote: Iterable[Prefix]) -> TierAclRule:
    addresses = ",".join(dict.fromkeys(map(str, remote)))
    return TierAclRule(priority=priority, tier_acl_rule_action=action, remote_addresses=addresses)
