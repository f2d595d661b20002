"""What a change of a network's policies means for IP sets and rules."""

from __future__ import annotations

from typing import TypeVar

from msgspec.structs import replace

from samewire.hcn.numbered import numbered
from samewire.hcn.policies import L4Proxy, NetworkACL, Policy, SetPolicy
from samewire.hcn.schema import Network

_APART = (SetPolicy, NetworkACL)

P = TypeVar("P", bound=Policy)


def same_but_rules(before: Network, after: Network) -> bool:
    """Whether two states of a network differ in nothing but IP sets and NetworkACLs: routes are as they were."""
    if replace(before, policies=()) != replace(after, policies=()):
        return False
    moved = numbered(after.policies).difference(numbered(before.policies)).items()
    return all(isinstance(policy, _APART) for policy in moved)


def rules_changed(before: Network, after: Network) -> bool:
    """Whether the rules that a network adds to all its endpoints are others."""
    return any(policies_moved(before, after, NetworkACL))


def proxies_changed(before: Network, after: Network) -> bool:
    """Whether the proxies that a network has for all its endpoints are others."""
    return any(policies_moved(before, after, L4Proxy))


def sets_changed(before: Network | None, after: Network | None) -> bool:
    """Whether the IP sets of a network are others."""
    return any(policies_moved(before, after, SetPolicy))


def policies_moved(before: Network | None, after: Network | None, kind: type[P]) -> tuple[list[P], list[P]]:
    """The policies of a type that a network has no longer, and those that it has now; a changed one is in both."""
    old, new = (numbered(network.policies if network is not None else ()) for network in (before, after))
    gone, come = ([policy for _, policy in side] for side in new.difference(old).of(kind))
    return gone, come
