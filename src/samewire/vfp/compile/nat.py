"""OutBoundNAT policies -> a tree of prefixes that already hold the answer.

The answer for a destination is the first policy in the list that has it in its Destinations (or has none)
and not in its Exceptions; a policy without an address of a family to translate to has no part in that
family. Every prefix that any policy mentions gets the answer of its own points, and those that only repeat
what the next shorter prefix says are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

import msgspec

from samewire.hcn.policies import OutBoundNAT, nat_families
from samewire.vfp.address import ZERO, Prefix, parse_address, parse_prefix
from samewire.vfp.compile.builder import Builder, digest
from samewire.vfp.constants import NAT_KEY_BITS, NatAction, NatFlag
from samewire.vfp.model import FAMILIES, NodeFacts, Numbers
from samewire.vfp.tables import Nat, NatKey

NO_NAT: Final = Nat(NatAction.NONE, 0, 0, 0, ZERO)

# An OutBoundNAT policy with its number: its name in the endpoint's list (`samewire.hcn.numbered`).
NumberedPolicy = tuple[int, OutBoundNAT]


class NatTree(msgspec.Struct, frozen=True):
    """The answers by prefix, and a name for the content. ``explicit``: some come from Destinations."""

    answers: tuple[tuple[Prefix, Nat], ...]
    digest: str
    explicit: bool


class PrefixSet:
    """Prefixes of one family, for "does one of them contain this prefix?"."""

    def __init__(self, family: int, prefixes: Iterable[Prefix]) -> None:
        self.prefixes = frozenset(prefix for prefix in prefixes if prefix.family == family)
        self.lengths = sorted({prefix.bits for prefix in self.prefixes})

    def covers(self, prefix: Prefix) -> bool:
        """Whether one of the prefixes contains all of ``prefix``."""
        for bits in self.lengths:
            if bits > prefix.bits:
                return False
            if Prefix(prefix.family, prefix.packed, bits).network in self.prefixes:
                return True
        return False


class _Policy(msgspec.Struct, frozen=True):
    """One policy in one family."""

    answer: Nat
    destinations: PrefixSet | None
    exceptions: PrefixSet

    def applies(self, prefix: Prefix) -> bool:
        """Whether it decides for those points of ``prefix`` that no longer prefix covers."""
        if self.destinations is not None and not self.destinations.covers(prefix):
            return False
        return not self.exceptions.covers(prefix)


def compile_nat(
    builder: Builder, policies: tuple[NumberedPolicy, ...], facts: NodeFacts, numbers: Numbers
) -> tuple[int, bool]:
    """Add the NAT set of an endpoint's policies, shared by all endpoints with the same.

    Returns its number (0 = none) and whether it has explicit destinations. Raises ``Invalid`` for malformed
    addresses.
    """
    if not policies:
        return 0, False
    tree = nat_tree(policies, tuple(facts.address(family) for family in FAMILIES))
    if not tree.answers:
        return 0, False
    number = numbers.number("nat", tree.digest)
    for prefix, answer in tree.answers:
        key = NatKey(NAT_KEY_BITS + prefix.bits, number, prefix.family, prefix.packed)
        builder.put("sw_nat", key, answer)
    return number, tree.explicit


# Most pods of a node have the very same policies; a set holds a few dozen prefixes, seldom a few thousand.
@lru_cache(maxsize=128)
def nat_tree(policies: tuple[NumberedPolicy, ...], node: tuple[bytes, ...]) -> NatTree:
    """The tree of a list of policies; ``node`` holds the node's addresses in the order of FAMILIES."""
    answers: list[tuple[Prefix, Nat]] = []
    for family, address in zip(FAMILIES, node, strict=True):
        answers += _family_tree(family, [_policy(item, family, address) for item in policies])
    content = digest(b"%d/%d/" % (p.family, p.bits) + p.packed + answer.pack() for p, answer in answers)
    explicit = any(answer.flags & NatFlag.EXPLICIT for _, answer in answers)
    return NatTree(tuple(answers), content, explicit)


def _policy(item: NumberedPolicy, family: int, node: bytes) -> _Policy | None:
    """The policy as it is in one family; None when it has no part in it, or no address to translate to."""
    number, policy = item
    path = f"$.Policies[{number - 1}].Settings"
    virtual = parse_address(policy.virtual_ip, f"{path}.VirtualIP") if policy.virtual_ip else None
    if family not in nat_families(policy):
        return None
    destinations = _prefixes(policy.destinations, f"{path}.Destinations")
    exceptions = _prefixes(policy.exceptions, f"{path}.Exceptions")
    source = node
    if virtual is not None:
        source = virtual.packed if virtual.family == family else ZERO
    if source == ZERO:
        return None
    flags = NatFlag.EXPLICIT if destinations else 0
    return _Policy(
        Nat(NatAction.SNAT, flags, policy.max_port_pool_usage, number, source),
        PrefixSet(family, destinations) if destinations else None,
        PrefixSet(family, exceptions),
    )


def _prefixes(texts: Iterable[str], path: str) -> list[Prefix]:
    return [parse_prefix(text, path) for text in texts]


def _family_tree(family: int, policies: list[_Policy | None]) -> list[tuple[Prefix, Nat]]:
    active = [policy for policy in policies if policy is not None]
    mentioned = {Prefix(family, ZERO, 0)}
    for policy in active:
        mentioned |= policy.exceptions.prefixes
        if policy.destinations is not None:
            mentioned |= policy.destinations.prefixes
    kept: list[tuple[Prefix, Nat]] = []
    above: list[tuple[Prefix, Nat]] = []
    # Sorted by (address, length), a prefix comes behind all that contain it: a stack holds the way down.
    for prefix in sorted(mentioned):
        answer = next((policy.answer for policy in active if policy.applies(prefix)), NO_NAT)
        while above and prefix not in above[-1][0]:
            above.pop()
        if answer != (above[-1][1] if above else NO_NAT):
            kept.append((prefix, answer))
        above.append((prefix, answer))
    return kept
