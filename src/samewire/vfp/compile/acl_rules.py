"""ACL, NetworkACL and TierAcl policies -> one direction's rules, in the order in which they are asked.

Stages: the tiers by ascending Order (tiers of one Order: as listed), then the list, in which the network's NetworkACLs
and the endpoint's ACLs stand together. Within a stage: the lower Priority number first; at equal priority Block before
the others (HNS leaves it open; blocking is the safe reading); then the order of the list, the network's first. The
first match decides; Pass leaves the decision to the next stage, in the last it lets pass. Host and Switch rules are
enforced alike.

Which end an address list means: In, local is the endpoint and remote the source; Out, remote is the destination. But a
rule that names IP sets has its sources in LocalAddresses and its destinations in RemoteAddresses in both directions:
that is what HNS does with sets, and what the clients that use them (Azure NPM) write. Ports are the endpoint's and the
peer's in any case.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final

import msgspec

from samewire.errors import Invalid
from samewire.hcn.policies import (
    ACL,
    AclAction,
    AclDirection,
    AclRule,
    NetworkACL,
    Policy,
    TierAcl,
    acl_ports,
    acl_protocols,
)
from samewire.vfp.address import Prefix, parse_prefix
from samewire.vfp.constants import ACL_STAGES, ACL_WORDS
from samewire.vfp.constants import AclAction as Verdict
from samewire.vfp.rule_names import rule_number

MAX_RULES: Final = 64 * ACL_WORDS - 1
"""Of one direction of an endpoint: its own, its tiers' and its network's. One place is the fallback's."""

_VERDICTS: Final = {
    AclAction.ALLOW: Verdict.ALLOW,
    AclAction.BLOCK: Verdict.BLOCK,
    AclAction.PASS: Verdict.PASS,
}
_RULES: Final = (ACL, NetworkACL, TierAcl)
_NUMBERS: Final = frozenset("0123456789.")

Ports = tuple[tuple[int, int], ...]


class Ends(msgspec.Struct, frozen=True):
    """The addresses that a rule takes at one end; neither prefixes nor sets = any."""

    prefixes: tuple[Prefix, ...] = ()
    sets: tuple[str, ...] = ()

    @property
    def any(self) -> bool:
        """Whether every address will do."""
        return not self.prefixes and not self.sets


class Rule(msgspec.Struct, frozen=True):
    """One rule. ``number`` is the name in drops and traces; () stands for any protocol or port."""

    number: int
    priority: int
    action: Verdict
    stage: int
    source: Ends
    destination: Ends
    protocols: tuple[int, ...]
    source_ports: Ports
    destination_ports: Ports


class _Given(msgspec.Struct, frozen=True):
    """A rule as it stands in some policy."""

    number: int
    priority: int
    action: AclAction
    place: int
    path: str
    fields: AclRule


def has_rules(policies: Sequence[Policy]) -> bool:
    """Whether there is a policy with ACL rules of either direction."""
    return any(isinstance(policy, _RULES) for policy in policies)


def direction_rules(
    direction: AclDirection, network: Sequence[Policy], endpoint: Sequence[Policy]
) -> tuple[Rule, ...]:
    """The rules of one direction. Raises ``Invalid``, naming the field, for malformed and for too many ones."""
    stages = [*_tiers(direction, endpoint), list(_listed(direction, network, endpoint))]
    stages = [stage for stage in stages if stage]
    if len(stages) > ACL_STAGES:
        raise Invalid("$.Policies", f"an endpoint has at most {ACL_STAGES - 1} tiers a direction")
    if sum(map(len, stages)) > MAX_RULES:
        raise Invalid("$.Policies", f"an endpoint has at most {MAX_RULES} ACL rules a direction")
    return tuple(
        _named_rule(given, stage, direction)
        for stage, rules in enumerate(stages)
        for given in sorted(rules, key=_precedence)
    )


def _precedence(given: _Given) -> tuple[int, bool, int]:
    return given.priority, given.action is not AclAction.BLOCK, given.place


def _tiers(direction: AclDirection, policies: Sequence[Policy]) -> list[list[_Given]]:
    tiers: list[tuple[int, list[_Given]]] = []
    for i, policy in enumerate(policies):
        if type(policy) is TierAcl and policy.direction is direction:
            path = f"$.Policies[{i}].Settings.TierAclRules"
            rules = [
                _Given(
                    rule_number(i + 1, j),
                    rule.priority,
                    rule.tier_acl_rule_action,
                    j,
                    f"{path}[{j - 1}]",
                    rule,
                )
                for j, rule in enumerate(policy.tier_acl_rules, 1)
            ]
            tiers.append((policy.order, rules))
    return [rules for _, rules in sorted(tiers, key=lambda tier: tier[0])]


def _listed(
    direction: AclDirection, network: Sequence[Policy], endpoint: Sequence[Policy]
) -> Iterator[_Given]:
    place = 0
    for i, policy in enumerate(network):
        if isinstance(policy, NetworkACL) and policy.direction is direction:
            path = f"network: $.Policies[{i}].Settings"
            number = rule_number(i + 1, network=True)
            yield _Given(number, policy.priority, policy.action, place, path, policy)
            place += 1
    for i, policy in enumerate(endpoint):
        if isinstance(policy, ACL) and policy.direction is direction:
            path = f"$.Policies[{i}].Settings"
            yield _Given(rule_number(i + 1), policy.priority, policy.action, place, path, policy)
            place += 1


def _named_rule(given: _Given, stage: int, direction: AclDirection) -> Rule:
    try:
        return _rule(given.number, given.priority, given.action, stage, direction, given.fields)
    except Invalid as error:
        raise Invalid(f"{given.path}.{error.path}", error.message) from None


@lru_cache(maxsize=16384)
def _rule(
    number: int, priority: int, action: AclAction, stage: int, direction: AclDirection, fields: AclRule
) -> Rule:
    """One rule; of a list that is changed, all the others are the very same ones."""
    local = _ends(fields.local_addresses, "LocalAddresses")
    remote = _ends(fields.remote_addresses, "RemoteAddresses")
    local_ports = _ports(fields.local_ports, "LocalPorts")
    remote_ports = _ports(fields.remote_ports, "RemotePorts")
    outward = direction is AclDirection.OUT
    as_written = outward or bool(local.sets or remote.sets)
    return Rule(
        number=number,
        priority=priority,
        action=_VERDICTS[action],
        stage=stage,
        source=local if as_written else remote,
        destination=remote if as_written else local,
        protocols=_protocols(fields.protocols, "Protocols"),
        source_ports=local_ports if outward else remote_ports,
        destination_ports=remote_ports if outward else local_ports,
    )


def _ends(text: str, path: str) -> Ends:
    try:
        return _parsed_ends(text)
    except Invalid as error:
        raise Invalid(path, error.message) from None


@lru_cache(maxsize=8192)
def _parsed_ends(text: str) -> Ends:
    prefixes: dict[Prefix, None] = {}
    sets: dict[str, None] = {}
    for raw in text.split(","):
        item = raw.strip()
        if not item:
            continue
        if "/" in item or ":" in item or _NUMBERS.issuperset(item):
            prefixes[parse_prefix(item)] = None
        else:
            sets[item] = None
    return Ends(tuple(prefixes), tuple(sets))


@lru_cache(maxsize=1024)
def _protocols(text: str, path: str) -> tuple[int, ...]:
    try:
        return acl_protocols(text)
    except ValueError as error:
        raise Invalid(path, str(error)) from None


def _ports(text: str, path: str) -> Ports:
    try:
        return _parsed_ports(text)
    except ValueError as error:
        raise Invalid(path, str(error)) from None


@lru_cache(maxsize=8192)
def _parsed_ports(text: str) -> Ports:
    return acl_ports(text)
