"""Changing a list of policies, at the cost of the policies given and not of those that are there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.normalise_policies import (
    REPEATABLE,
    Scope,
    already_there,
    check_policies,
    check_policy,
    identity,
)
from samewire.hcn.policies import Policy, SetPolicy, policy_type, sets_named
from samewire.hcn.schema import Network

Policies = tuple[Policy, ...]

GIVEN = "$.Settings.Policies"


def add_policies(present: Policies, given: Policies, scope: Scope) -> Policies:
    """Return a list with policies appended. Raises HcnError (POLICY_ALREADY_EXISTS for what may be there
    once).
    """
    new = check_policies(given, scope, GIVEN)
    single = [(index, identity(policy)) for index, policy in enumerate(new) if identity(policy) is not None]
    if single:
        there = {identity(policy) for policy in present}
        for index, mine in single:
            if mine in there:
                name = policy_type(new[index])
                raise HcnError(already_there(new[index]), f"{GIVEN}[{index}]: there is already such a {name}")
    return (*present, *new)


def put_policies(present: Policies, given: Policies, scope: Scope) -> Policies:
    """Return a list in which the given policies take the place of those they are the new form of.

    A policy that may be there once (a set by its Id, a RemoteSubnetRoute by its prefix, most others by their
    type) replaces its namesake; of types that may be repeated the given ones replace all. Raises HcnError.
    """
    new = check_policies(given, scope, GIVEN)
    by_identity = {mine: policy for policy in new if (mine := identity(policy)) is not None}
    whole = {type(policy) for policy in new} & REPEATABLE
    kept = [
        by_identity.pop(mine, policy) if (mine := identity(policy)) is not None else policy
        for policy in present
        if type(policy) not in whole
    ]
    return (*kept, *(policy for policy in new if identity(policy) is None or identity(policy) in by_identity))


def remove_policies(present: Policies, unwanted: Policies, scope: Scope) -> Policies:
    """Return a list without the given policies: sets by their Id, others by type and settings. Raises
    HcnError(POLICY_NOT_FOUND).
    """
    going: Counter[object] = Counter()
    for index, policy in enumerate(unwanted):
        path = f"{GIVEN}[{index}]"
        going[_match(check_policy(policy, scope, path))] += 1
    rest = []
    for policy in present:
        match = _match(policy)
        if going.get(match):
            going[match] -= 1
        else:
            rest.append(policy)
    for index, policy in enumerate(unwanted):
        if going[_match(check_policy(policy, scope, GIVEN))]:
            raise HcnError(
                HcnCode.POLICY_NOT_FOUND,
                f"{GIVEN}[{index}]: there is no {policy_type(policy)} policy with these settings",
            )
    return tuple(rest)


def _match(policy: Policy) -> object:
    return identity(policy) if isinstance(policy, SetPolicy) else policy


def check_sets(network: Network, policies: Iterable[Policy], path: str) -> None:
    """Refuse policies that name a set which the network has not. Raises HcnError(POLICY_NOT_FOUND)."""
    wanted = {name: policy for policy in policies for name in sets_named(policy)}
    if not wanted:
        return
    there = {policy.set_id for policy in network.policies if isinstance(policy, SetPolicy)}
    missing = next((name for name in wanted if name not in there), None)
    if missing is not None:
        raise HcnError(
            HcnCode.POLICY_NOT_FOUND,
            f"{path}: {missing[:64]!r} is neither an address nor the Id of a SetPolicy of the network; "
            "add the set first",
        )
