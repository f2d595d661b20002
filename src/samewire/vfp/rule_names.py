"""Names of ACL rules in drops, traces and counters (``SW_RULE_*`` in ``bpf/layout.h``)."""

from __future__ import annotations

from samewire.vfp.constants import RULE_NETWORK, RULE_POLICY_MASK, RULE_TIER_SHIFT


def rule_number(position: int, place: int = 0, *, network: bool = False) -> int:
    """The name of a rule: position of its policy (from 1), place in the tier (from 1, 0 = no tier)."""
    return position | place << RULE_TIER_SHIFT | (RULE_NETWORK if network else 0)


def rule_text(number: int) -> str:
    """A rule's name for people: ``3``, ``3.2`` (second rule of the tier that is policy 3), ``network 1``."""
    place = (number & ~RULE_NETWORK) >> RULE_TIER_SHIFT
    text = f"{number & RULE_POLICY_MASK}.{place}" if place else str(number & RULE_POLICY_MASK)
    return f"network {text}" if number & RULE_NETWORK else text
