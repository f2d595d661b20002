"""Changing a list of policies."""

from __future__ import annotations

from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.normalise_policies import Scope, check_policy
from samewire.hcn.policies import Policy, policy_type


def remove_policies(
    present: tuple[Policy, ...], unwanted: tuple[Policy, ...], scope: Scope
) -> tuple[Policy, ...]:
    """Return a list without the given policies, matched by type and settings. Raises
    HcnError(POLICY_NOT_FOUND).
    """
    rest = list(present)
    for index, policy in enumerate(unwanted):
        path = f"$.Settings.Policies[{index}]"
        canonical = check_policy(policy, scope, path)
        if canonical not in rest:
            raise HcnError(
                HcnCode.POLICY_NOT_FOUND,
                f"{path}: there is no {policy_type(policy)} policy with these settings",
            )
        rest.remove(canonical)
    return tuple(rest)
