"""What is asked of an object's list of policies, as keys for `Numbered.by`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

from samewire.hcn.numbered import Numbered, name_of, numbered
from samewire.hcn.policies import (
    ACL,
    L4WFPPROXY,
    L4Proxy,
    NeighborDiscovery,
    NetworkACL,
    OtherPolicy,
    OutBoundNAT,
    Policy,
    PortMapping,
    RemoteSubnetRoute,
    SDNRoute,
    SetPolicy,
    TierAcl,
    VSwitchExtension,
    sets_named,
)

P = TypeVar("P")

PolicyList = Numbered[Policy]

OF_OBJECT: Final = "$.Policies"
"""Where the policies of an object are in it."""

GIVEN: Final = "$.Settings.Policies"
"""Where policies are in a modify request."""

MANY: Final = 64
"""Policies of an object that are stored and shown as a whole."""

BULKY: Final = 4096
"""Characters of a set's members."""

REPEATABLE = frozenset(
    {
        *(ACL, OutBoundNAT, PortMapping, SDNRoute, NeighborDiscovery, OtherPolicy),
        *(NetworkACL, TierAcl, L4Proxy, L4WFPPROXY, VSwitchExtension),
    }
)


def identity(policy: Policy) -> object:
    """Return what may be there once in a list, None for a policy that may be repeated."""
    if isinstance(policy, RemoteSubnetRoute):
        return policy.destination_prefix
    if isinstance(policy, SetPolicy):
        return set_identity(policy.set_id)
    return None if type(policy) in REPEATABLE else type(policy)


def set_identity(set_id: str) -> object:
    """The identity of the set of that id."""
    return SetPolicy, set_id


def identities(policy: Policy) -> tuple[object, ...]:
    """What a policy is found by: its identity, or all that it says."""
    mine = identity(policy)
    return (policy,) if mine is None else (mine,)


def named(policies: Iterable[Policy], kind: type[P]) -> list[tuple[int, P]]:
    """The policies of one type with their names, in order."""
    group = numbered(policies).group(kind)
    return [(name_of(number), policy) for number, policy in zip(group.numbers, group.items, strict=True)]


def placed(policies: Iterable[Policy], kind: type[P], path: str = OF_OBJECT) -> Iterator[tuple[str, P]]:
    """The policies of one type with where they are in the list at ``path``, for error messages."""
    listed = numbered(policies)
    group = listed.group(kind)
    for number, policy in zip(group.numbers, group.items, strict=True):
        yield path_of(listed, number, path), policy


def path_of(policies: PolicyList, number: int, path: str = OF_OBJECT, skipped: int = 0) -> str:
    """Where a policy is, by its number, in a list at ``path`` that has all but the first ``skipped`` of these."""
    return f"{path}[{bisect_left(policies.numbers, number) - skipped}].Settings"


def mapped_ports(policy: Policy) -> tuple[tuple[int, int], ...]:
    """The protocol and the node's port that a policy maps to its endpoint."""
    return ((policy.protocol, policy.external_port),) if isinstance(policy, PortMapping) else ()


def mapped_places(policy: Policy) -> tuple[tuple[int, int, str], ...]:
    """The same with the address, "" for every one of the node."""
    return tuple((*port, policy.vip) for port in mapped_ports(policy) if isinstance(policy, PortMapping))


def sets_of(policy: Policy) -> Iterable[str]:
    """The ids of the sets that a policy names, each once."""
    return dict.fromkeys(sets_named(policy))


def bulky(policy: Policy) -> tuple[bool, ...]:
    """True for an IP set with very many members."""
    return (True,) if isinstance(policy, SetPolicy) and len(policy.values) > BULKY else ()


def is_long(policies: PolicyList) -> bool:
    """Whether a list is so long that its policies are stored apart, and what is shown of each is kept."""
    return len(policies) > MANY or True in policies.by(bulky)


def routers(policy: Policy) -> tuple[str, ...]:
    """The next hop of an SDNRoute that has one."""
    return (policy.next_hop,) if isinstance(policy, SDNRoute) and policy.next_hop else ()
