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

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final, NamedTuple, cast

import msgspec

from samewire.errors import Invalid
from samewire.hcn.numbered import name_of, numbered
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
from samewire.hcn.policy_lists import PolicyList
from samewire.remembered import remembered
from samewire.vfp.address import Prefix, parse_prefix
from samewire.vfp.constants import ACL_STAGES, ACL_WORDS, RULE_NETWORK, RULE_TIER_SHIFT
from samewire.vfp.constants import AclAction as Verdict
from samewire.vfp.rule_names import ISOLATION_NUMBERS, rule_number

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
Stage = tuple[int, int]
"""A tier's order and its number, by which equal ones are in order."""

LIST: Final[Stage] = (1 << 16, 0)
"""The stage behind all tiers."""

Order = tuple[Stage, int, bool, bool, bool, int, int]


class Ends(msgspec.Struct, frozen=True):
    """The addresses that a rule takes at one end; neither prefixes nor sets = any."""

    prefixes: tuple[Prefix, ...] = ()
    sets: tuple[str, ...] = ()

    @property
    def any(self) -> bool:
        """Whether every address will do."""
        return not self.prefixes and not self.sets


class Rule(msgspec.Struct, frozen=True):
    """One rule. ``number`` is the name in drops and traces; () stands for any protocol or port. ``rank``: the number of
    its policy in its list, by which equal ones are in order.
    """

    number: int
    priority: int
    action: Verdict
    stage: Stage
    source: Ends
    destination: Ends
    protocols: tuple[int, ...]
    source_ports: Ports
    destination_ports: Ports
    rank: int = 0


class Sources(NamedTuple):
    """What an endpoint's rules are made of: policies, the tiers of its isolation, and whether what no rule matches
    passes.
    """

    network: PolicyList
    endpoint: PolicyList
    isolation: tuple[TierAcl, ...] = ()
    allow_unmatched: bool = False


class _Given(msgspec.Struct, frozen=True):
    """A rule as it stands in some policy."""

    stage: Stage
    number: int
    rank: int
    priority: int
    action: AclAction
    policies: PolicyList
    fields: AclRule


def has_rules(policies: Sequence[Policy]) -> bool:
    """Whether there is a policy with ACL rules of either direction."""
    listed = numbered(policies)
    return any(listed.group(kind).items for kind in _RULES)


def direction_rules(
    direction: AclDirection,
    network: Sequence[Policy],
    endpoint: Sequence[Policy],
    isolation: tuple[TierAcl, ...] = (),
) -> tuple[Rule, ...]:
    """The rules of one direction. Raises ``Invalid``, naming the field, for malformed and for too many ones."""
    own = numbered(endpoint)
    stages = [_tier_rules(number, tier, own) for number, tier in _tiers(direction, own, isolation)]
    stages.append(list(_listed(direction, numbered(network), own)))
    stages = [stage for stage in stages if stage]
    if len(stages) > ACL_STAGES:
        raise Invalid("$.Policies", f"an endpoint has at most {ACL_STAGES - 1} tiers a direction")
    if sum(map(len, stages)) > MAX_RULES:
        raise Invalid("$.Policies", f"an endpoint has at most {MAX_RULES} ACL rules a direction")
    return tuple(
        _named_rule(given, direction) for rules in stages for given in sorted(rules, key=_precedence)
    )


def changed_rules(
    direction: AclDirection, before: Sources, now: Sources
) -> tuple[list[Order], list[Rule]] | None:
    """The rules of a direction that have gone, as their places in the order, and those that have come, both in order.
    None where it takes a look at all of them: another isolation, or so many tiers that there is none to spare. Raises
    ``Invalid``, naming the field.
    """
    if before[2:] != now[2:]:
        return None
    if len(_tiers(direction, now.endpoint, now.isolation)) >= ACL_STAGES - 1:
        return None
    own = now.endpoint.difference(before.endpoint).of(ACL, TierAcl)
    shared = now.network.difference(before.network).of(NetworkACL)
    gone = {
        (given.stage, given.number): given
        for difference, policies in ((shared, before.network), (own, before.endpoint))
        for given in _rules_of(direction, difference.gone, policies)
    }
    new = []
    for difference, policies in ((shared, now.network), (own, now.endpoint)):
        for given in _rules_of(direction, difference.new, policies):
            known = gone.get((given.stage, given.number))
            if known is not None and (known.rank, known.fields) == (given.rank, given.fields):
                del gone[given.stage, given.number]  # a tier of which another rule has changed
            else:
                new.append(_named_rule(given, direction))
    return sorted(map(_order_given, gone.values())), sorted(new, key=order_of)


def order_of(rule: Rule) -> Order:
    """What rules are in the order of. The last one, for what no other matches, has no number."""
    return _order(rule.stage, rule.priority, rule.action, rule.number, rule.rank)


def _order_given(given: _Given) -> Order:
    return _order(given.stage, given.priority, _VERDICTS[given.action], given.number, given.rank)


def _order(stage: Stage, priority: int, action: Verdict, number: int, rank: int) -> Order:
    of_network, place = number & RULE_NETWORK, (number & ~RULE_NETWORK) >> RULE_TIER_SHIFT
    return stage, priority, action is not Verdict.BLOCK, not number, not of_network, rank, place


def _precedence(given: _Given) -> tuple[int, bool]:
    return given.priority, given.action is not AclAction.BLOCK


def _tiers(
    direction: AclDirection, policies: PolicyList, isolation: Iterable[TierAcl]
) -> list[tuple[int, TierAcl]]:
    """The tiers of a direction that have rules, with their numbers, in the order in which they are asked."""
    group = policies.group(TierAcl)
    tiers = [*zip(group.numbers, group.items, strict=True), *zip(ISOLATION_NUMBERS, isolation, strict=False)]
    mine = [tier for tier in tiers if tier[1].direction is direction and tier[1].tier_acl_rules]
    return sorted(mine, key=lambda tier: tier[1].order)


def _tier_rules(number: int, tier: TierAcl, policies: PolicyList) -> list[_Given]:
    return [
        _Given(
            (tier.order, number),
            rule_number(name_of(number), place),
            number,
            rule.priority,
            rule.tier_acl_rule_action,
            policies,
            rule,
        )
        for place, rule in enumerate(tier.tier_acl_rules, 1)
    ]


def _listed(direction: AclDirection, network: PolicyList, endpoint: PolicyList) -> Iterator[_Given]:
    for policies, kind in ((network, NetworkACL), (endpoint, ACL)):
        group = policies.group(kind)
        yield from _listed_ones(direction, zip(group.numbers, group.items, strict=True), policies)


def _listed_ones(
    direction: AclDirection, given: Iterable[tuple[int, ACL | NetworkACL]], policies: PolicyList
) -> Iterator[_Given]:
    for number, policy in given:
        if policy.direction is direction:
            name = rule_number(name_of(number), network=type(policy) is NetworkACL)
            yield _Given(LIST, name, number, policy.priority, policy.action, policies, policy)


def _rules_of(
    direction: AclDirection, given: Iterable[tuple[int, ACL | NetworkACL | TierAcl]], policies: PolicyList
) -> Iterator[_Given]:
    for number, policy in given:
        if not isinstance(policy, TierAcl):
            yield from _listed_ones(direction, [(number, policy)], policies)
        elif policy.direction is direction:
            yield from _tier_rules(number, policy, policies)


def _named_rule(given: _Given, direction: AclDirection) -> Rule:
    fields = given.number, given.rank, given.priority, given.action, given.stage, direction, given.fields
    try:
        return _rule(*fields)
    except Invalid as error:
        raise Invalid(f"{_path(given)}.{error.path}", error.message) from None


def _path(given: _Given) -> str:
    """Where the policy of a rule is, for error messages."""
    place = (given.number & ~RULE_NETWORK) >> RULE_TIER_SHIFT
    position = bisect_left(given.policies.numbers, given.rank)
    path = f"$.Policies[{position}].Settings" + (f".TierAclRules[{place - 1}]" if place else "")
    return f"network: {path}" if given.number & RULE_NETWORK else path


def _rule_length(*of_rule: object) -> int:
    fields = cast(AclRule, of_rule[-1])
    return len(fields.local_addresses) + len(fields.remote_addresses)


@remembered(16384, _rule_length)
def _rule(
    number: int,
    rank: int,
    priority: int,
    action: AclAction,
    stage: Stage,
    direction: AclDirection,
    fields: AclRule,
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
        rank=rank,
    )


def _ends(text: str, path: str) -> Ends:
    try:
        return _parsed_ends(text)
    except Invalid as error:
        raise Invalid(path, error.message) from None


@remembered(8192, len)
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
