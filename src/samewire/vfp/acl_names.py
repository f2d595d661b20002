"""What the numbers in ACL tables stand for: which policy, and which IP set."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from samewire.hcn.numbered import name_of, numbered
from samewire.hcn.policies import ACL, NetworkACL, SetPolicy, TierAcl
from samewire.hcn.schema import Endpoint, Network
from samewire.vfp.hashes import set_name
from samewire.vfp.rule_names import ISOLATION_NUMBERS, rule_number


class AclNames(msgspec.Struct, frozen=True):
    """``policies``: the ``Id`` that a policy gave a rule, by the rules' numbers. ``sets``: ids by hashes."""

    policies: Mapping[int, str] = {}
    sets: Mapping[int, str] = {}


def acl_names(endpoint: Endpoint, network: Network) -> AclNames:
    """The names of an endpoint's rules and of the sets that they may name."""
    found: dict[int, str] = {}
    for number, policy in numbered(network.policies).pairs():
        if isinstance(policy, NetworkACL):
            found[rule_number(name_of(number), network=True)] = policy.rule_id
    for number, policy in numbered(endpoint.policies).pairs():
        if isinstance(policy, ACL):
            found[rule_number(name_of(number))] = policy.rule_id
        elif isinstance(policy, TierAcl):
            for j, rule in enumerate(policy.tier_acl_rules, 1):
                found[rule_number(name_of(number), j)] = rule.rule_id
    if endpoint.is_alone:
        found.update({rule_number(tier, j): "DisableICC" for tier in ISOLATION_NUMBERS for j in range(1, 4)})
    sets = {
        set_name(network.id, policy.set_id): policy.set_id
        for policy in network.policies
        if isinstance(policy, SetPolicy)
    }
    return AclNames({number: name for number, name in found.items() if name}, sets)
