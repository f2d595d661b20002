"""What ACL policies mean, said as plainly as possible: go through them in order, the first that matches decides."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from samewire.hcn.policies import (
    ACL,
    AclAction,
    AclDirection,
    AclRule,
    NetworkACL,
    Policy,
    SetPolicy,
    SetType,
    TierAcl,
)


class Packet(NamedTuple):
    """A connection's first packet: from source to destination."""

    protocol: int
    source: str
    destination: str
    source_port: int
    destination_port: int


class Verdict(NamedTuple):
    """Whether it passes, and which rule says so: "" none, else "network 2", "3", "4.1" (rule 1 of the tier at 4)."""

    passes: bool
    rule: str


Stage = list[tuple[str, AclRule, AclAction]]


def judge(
    direction: AclDirection,
    network: Sequence[Policy],
    endpoint: Sequence[Policy],
    packet: Packet,
    allow_unmatched: bool = False,
) -> Verdict:
    """The verdict of an endpoint with these policies, in a network with those."""
    sets = {policy.set_id: policy for policy in network if isinstance(policy, SetPolicy)}
    stages = _stages(direction, network, endpoint)
    if not stages:
        return Verdict(True, "")
    for number, stage in enumerate(stages):
        for name, rule, action in sorted(
            stage, key=lambda item: (item[1].priority, item[2] is not AclAction.BLOCK)
        ):
            if not _matches(rule, direction, packet, sets):
                continue
            if action is not AclAction.PASS:
                return Verdict(action is AclAction.ALLOW, name)
            if number == len(stages) - 1:
                return Verdict(True, name)
            break
    return Verdict(allow_unmatched, "")


def _stages(direction: AclDirection, network: Sequence[Policy], endpoint: Sequence[Policy]) -> list[Stage]:
    tiers: list[tuple[int, Stage]] = []
    last: Stage = []
    for position, policy in enumerate(network, 1):
        if isinstance(policy, NetworkACL) and policy.direction is direction:
            last.append((f"network {position}", policy, policy.action))
    for position, policy in enumerate(endpoint, 1):
        if isinstance(policy, ACL) and policy.direction is direction:
            last.append((str(position), policy, policy.action))
        elif isinstance(policy, TierAcl) and policy.direction is direction:
            rules = enumerate(policy.tier_acl_rules, 1)
            tiers.append(
                (policy.order, [(f"{position}.{i}", rule, rule.tier_acl_rule_action) for i, rule in rules])
            )
    tiers.sort(key=lambda tier: tier[0])
    return [stage for stage in (*(stage for _, stage in tiers), last) if stage]


def _listed(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _matches(rule: AclRule, direction: AclDirection, packet: Packet, sets: Mapping[str, SetPolicy]) -> bool:
    protocols = _listed(rule.protocols)
    if protocols and "256" not in protocols and str(packet.protocol) not in protocols:
        return False
    inward = direction is AclDirection.IN
    names_sets = any(
        item in sets for text in (rule.local_addresses, rule.remote_addresses) for item in _listed(text)
    )
    ends = [packet.source, packet.destination]
    if inward and not names_sets:
        ends.reverse()
    for text, address in zip((rule.local_addresses, rule.remote_addresses), ends, strict=True):
        if _listed(text) and not any(_contains(item, address, sets) for item in _listed(text)):
            return False
    ports = [packet.source_port, packet.destination_port] if packet.protocol in (6, 17, 132) else [0, 0]
    if inward:
        ports.reverse()
    for text, port in zip((rule.local_ports, rule.remote_ports), ports, strict=True):
        ranges = [[int(end) for end in item.split("-")] for item in _listed(text)]
        if ranges and not any(found[0] <= port <= found[-1] for found in ranges):
            return False
    return True


def _contains(item: str, address: str, sets: Mapping[str, SetPolicy]) -> bool:
    named = sets.get(item)
    if named is None:
        return ipaddress.ip_address(address) in ipaddress.ip_network(item, strict=False)
    if named.policy_type is SetType.IPSET:
        return any(_contains(member, address, {}) for member in _listed(named.values))
    return any(_contains(member, address, sets) for member in _listed(named.values) if member in sets)
