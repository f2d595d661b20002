"""HCN policies that decide what may pass: ACL, NetworkACL, TierAcl, and the address sets they name.

Lists are comma-separated text, as HCN has them; read them with `acl_protocols`, `acl_addresses` and
`acl_ports`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network

import msgspec

from samewire.hcn.base import U16, Wire
from samewire.hcn.policy_base import PolicyBase, parse_prefix, text_items

ANY_PROTOCOL = 256


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


class SetType(enum.StrEnum):
    """What a set holds: addresses and prefixes, or the ids of other sets."""

    IPSET = "IPSET"
    NESTEDIPSET = "NESTEDIPSET"


class ACL(PolicyBase, frozen=True, kw_only=True):
    """A 5-tuple rule of an endpoint. The lowest ``priority`` number wins.

    In: local = the endpoint, remote = the source; out: local = the endpoint, remote = the destination. The
    address lists may name sets of the endpoint's network.
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


class NetworkACL(PolicyBase, frozen=True, kw_only=True):
    """A 5-tuple rule of all endpoints of a network, seen from each of them; fields as in `ACL`."""

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


class TierAclRule(Wire, frozen=True, kw_only=True):
    """One rule of a tier; `Pass` leaves the decision to the next tier."""

    rule_id: str = ""
    protocols: str = ""
    tier_acl_rule_action: AclAction
    local_addresses: str = ""
    remote_addresses: str = ""
    local_ports: str = ""
    remote_ports: str = ""
    priority: U16 = 0


class TierAcl(PolicyBase, frozen=True, kw_only=True):
    """A tier of rules for one direction of an endpoint. Tiers are asked in ascending ``order``."""

    name: str = ""
    direction: AclDirection
    order: U16 = 0
    tier_acl_rules: tuple[TierAclRule, ...] = ()


class SetPolicy(PolicyBase, frozen=True, kw_only=True):
    """A set of addresses that ACLs of the network's endpoints name by its id in their address lists.

    ``values`` is comma-separated: addresses and prefixes, or for a nested set the ids of flat ones.
    """

    set_id: str
    name: str = ""
    policy_type: SetType = SetType.IPSET
    values: str = ""


AclRule = ACL | NetworkACL | TierAclRule


class AclAddresses(msgspec.Struct, frozen=True):
    """An address list: prefixes and ids of sets. Nothing in either = any address."""

    prefixes: tuple[IPv4Network | IPv6Network, ...] = ()
    sets: tuple[str, ...] = ()


def acl_protocols(text: str) -> tuple[int, ...]:
    """Return the IP protocol numbers of an ACL list; () = any. Raises ValueError."""
    numbers = [_number(item) for item in text_items(text)]
    if any(number > ANY_PROTOCOL for number in numbers):
        raise ValueError(
            f"{text[:64]!r} holds a number that is no IP protocol (0 to 255, or {ANY_PROTOCOL} for any)"
        )
    return () if ANY_PROTOCOL in numbers else tuple(numbers)


def acl_addresses(text: str) -> AclAddresses:
    """Return the prefixes and the ids of sets in an ACL's address list. What is no address is an id."""
    prefixes: list[IPv4Network | IPv6Network] = []
    sets: list[str] = []
    for item in text_items(text):
        if is_prefix(item):
            prefixes.append(parse_prefix(item))
        else:
            sets.append(item)
    return AclAddresses(tuple(prefixes), tuple(sets))


def is_prefix(item: str) -> bool:
    """True for an address or a prefix, False for the id of a set."""
    try:
        parse_prefix(item)
    except ValueError:
        return False
    return True


def acl_ports(text: str) -> tuple[tuple[int, int], ...]:
    """Return the inclusive port ranges of an ACL list ("80,443,8000-8080"); () = any. Raises ValueError."""
    ranges = []
    for item in text_items(text):
        low, dash, high = item.partition("-")
        pair = (_number(low), _number(high if dash else low))
        if not pair[0] <= pair[1] <= 2**16 - 1:
            raise ValueError(f"{item[:64]!r} is no port or range of ports")
        ranges.append(pair)
    return tuple(ranges)


def _number(text: str) -> int:
    """Decimal digits, and none of the other forms that Python reads (1_0, +1). Raises ValueError."""
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"{digits[:64]!r} is no number")
    return int(digits)


def set_members(policy: SetPolicy) -> tuple[str, ...]:
    """Return the values of a set, in order."""
    return tuple(text_items(policy.values))


def sets_named(policy: object) -> Iterator[str]:
    """Yield the ids of the sets that a policy names, in its address lists or as a nested set's members."""
    if isinstance(policy, SetPolicy):
        yield from set_members(policy) if policy.policy_type is SetType.NESTEDIPSET else ()
    for rule in policy.tier_acl_rules if isinstance(policy, TierAcl) else (policy,):
        if isinstance(rule, AclRule):
            for text in (rule.local_addresses, rule.remote_addresses):
                yield from acl_addresses(text).sets
