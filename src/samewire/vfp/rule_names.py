"""Names of ACL rules in drops, traces and counters (``SW_RULE_*`` in ``bpf/layout.h``)."""

from __future__ import annotations

from typing import Final

from samewire.vfp.constants import RULE_NETWORK, RULE_POLICY_MASK, RULE_TIER_SHIFT

ISOLATION_NUMBERS: Final = (0xFFFE, 0xFFFF)
"""In the place of policies' numbers: the tiers that the endpoint flag ``DisableICC`` stands for."""


def rule_number(policy: int, place: int = 0, *, network: bool = False) -> int:
    """The name of a rule: number of its policy in its list (`samewire.hcn.numbered`), place in the tier (from 1, 0 = no
    tier).
    """
    return policy | place << RULE_TIER_SHIFT | (RULE_NETWORK if network else 0)


def tier_of(number: int) -> int:
    """The number of the policy that is a rule's tier; 0 for those of the list."""
    return number & RULE_POLICY_MASK if (number & ~RULE_NETWORK) >> RULE_TIER_SHIFT else 0


def rule_text(number: int) -> str:
    """A rule's name for people: ``3``, ``3.2`` (second rule of the tier that is policy 3), ``network 1``."""
    place = (number & ~RULE_NETWORK) >> RULE_TIER_SHIFT
    text = f"{number & RULE_POLICY_MASK}.{place}" if place else str(number & RULE_POLICY_MASK)
    return f"network {text}" if number & RULE_NETWORK else text


def rule_in(layer: str, number: int) -> str:
    """The name for people of a rule of ``layer``, as lists of rules have it; "" for none."""
    return rule_text(number) if number and layer.startswith("acl") else str(number or "")
