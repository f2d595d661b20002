"""What a change of a network's policies means for IP sets and rules."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from samewire.hcn.policies import L4Proxy, NetworkACL, Policy, SetPolicy
from samewire.hcn.schema import Network

_APART = (SetPolicy, NetworkACL)


def same_but_rules(before: Network, after: Network) -> bool:
    """Whether two states of a network differ in nothing but IP sets and NetworkACLs: routes are as they were."""
    return _plain(before) == _plain(after)


def rules_changed(before: Network, after: Network) -> bool:
    """Whether the rules that a network adds to all its endpoints are others."""
    return _of(NetworkACL, before.policies) != _of(NetworkACL, after.policies)


def proxies_changed(before: Network, after: Network) -> bool:
    """Whether the proxies that a network has for all its endpoints are others."""
    return _of(L4Proxy, before.policies) != _of(L4Proxy, after.policies)


def sets_changed(before: Network | None, after: Network | None) -> bool:
    """Whether the IP sets of a network are others."""
    return _of(SetPolicy, before.policies if before else ()) != _of(
        SetPolicy, after.policies if after else ()
    )


def _of(kind: type[Policy], policies: Iterable[Policy]) -> list[tuple[int, Policy]]:
    """Policies of a kind, with their positions: those are in the rules' names."""
    return [(i, policy) for i, policy in enumerate(policies) if isinstance(policy, kind)]


def _plain(network: Network) -> Network:
    return replace(network, policies=tuple(p for p in network.policies if not isinstance(p, _APART)))
