"""Changing a list of policies, at the cost of the policies given and not of those that are there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.normalise_policies import Scope, already_there, check_length, check_policies, check_policy
from samewire.hcn.numbered import Group, aligned, numbered
from samewire.hcn.policies import OtherPolicy, Policy, SetPolicy, policy_type, sets_named
from samewire.hcn.policy_lists import GIVEN, REPEATABLE, PolicyList, identities, identity, set_identity
from samewire.hcn.schema import Network

Policies = tuple[Policy, ...]


def add_policies(present: Policies, given: Policies, scope: Scope) -> PolicyList:
    """Return a list with policies appended. Raises HcnError (POLICY_ALREADY_EXISTS for what may be there
    once).
    """
    new, before = check_policies(given, scope, GIVEN), numbered(present)
    single = [(index, mine) for index, policy in enumerate(new) if (mine := identity(policy)) is not None]
    for index, mine in single:
        if mine in before.by(identities):
            name = policy_type(new[index])
            raise HcnError(already_there(new[index]), f"{GIVEN}[{index}]: there is already such a {name}")
    return _bounded(before.edited(new=new))


def _bounded(policies: PolicyList) -> PolicyList:
    check_length(policies, GIVEN)
    return policies


def put_policies(present: Policies, given: Policies, scope: Scope) -> PolicyList:
    """Return a list in which the given policies take the place of those they are the new form of.

    A policy that may be there once (a set by its Id, a RemoteSubnetRoute by its prefix, most others by their
    type) replaces its namesake; of types that may be repeated the given ones replace all. Raises HcnError.
    """
    before = numbered(present)
    new: list[Policy] = []
    gone: list[int] = []
    instead: dict[int, Policy] = {}
    between: dict[int, Sequence[Policy]] = {}
    given = check_policies(given, scope, GIVEN)
    for policy in given:
        mine = identity(policy)
        there = () if mine is None else before.by(identities).get(mine, ())
        if there and before.at(there[0]) != policy:
            instead[there[0]] = policy
        elif mine is not None and not there:
            new.append(policy)
    for kind, name in dict.fromkeys(_sort(policy) for policy in given if type(policy) in REPEATABLE):
        found = aligned(_group(before, kind, name), _group(given, kind, name).items)
        gone += found.gone
        new += found.new
        instead |= found.instead
        between |= found.between
    return _bounded(before.edited(gone, new, instead, between))


def _sort(policy: Policy) -> tuple[type[Policy], str]:
    """The type of a policy; one that is not known has its name alone."""
    return type(policy), policy.type_name.lower() if isinstance(policy, OtherPolicy) else ""


def _group(policies: PolicyList, kind: type[Policy], name: str) -> Group:
    group = policies.group(kind)
    if not name:
        return group
    pairs = [
        (policy, number)
        for policy, number in zip(group.items, group.numbers, strict=True)
        if _sort(policy) == (kind, name)
    ]
    return Group(tuple(policy for policy, _ in pairs), tuple(number for _, number in pairs))


def remove_policies(present: Policies, unwanted: Policies, scope: Scope) -> PolicyList:
    """Return a list without the given policies: sets by their Id, others by type and settings. Raises
    HcnError(POLICY_NOT_FOUND).
    """
    before = numbered(present)
    going: dict[int, None] = {}
    left: dict[object, Iterator[int]] = {}  # equal policies, each to be given away once
    for index, policy in enumerate(unwanted):
        wanted = check_policy(policy, scope, f"{GIVEN}[{index}]")
        (key,) = identities(wanted)
        if key not in left:
            left[key] = iter(before.by(identities).get(key, ()))
        number = next(left[key], None)
        if number is None or not (isinstance(wanted, SetPolicy) or before.at(number) == wanted):
            raise HcnError(
                HcnCode.POLICY_NOT_FOUND,
                f"{GIVEN}[{index}]: there is no {policy_type(policy)} policy with these settings",
            )
        going[number] = None
    return before.edited(going)


def without_policies(present: Policies) -> PolicyList:
    """Return a list without any. What comes into it later is not called as one was that is gone: rules' counts and
    drops go by these names.
    """
    before = numbered(present)
    return before.edited(before.numbers)


def check_sets(network: Network, policies: Iterable[Policy], path: str) -> None:
    """Refuse policies that name a set which the network has not. Raises HcnError(POLICY_NOT_FOUND)."""
    wanted = {name: place for place, policy in enumerate(policies) for name in sets_named(policy)}
    if not wanted:
        return
    there = numbered(network.policies).by(identities)
    missing = next((name for name in wanted if set_identity(name) not in there), None)
    if missing is not None:
        raise HcnError(
            HcnCode.POLICY_NOT_FOUND,
            f"{path}[{wanted[missing]}].Settings: {missing[:64]!r} is neither an address nor the Id of a SetPolicy of "
            "the network; add the set first",
        )
