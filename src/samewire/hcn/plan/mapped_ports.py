"""The node's ports for mappings that leave the choice to the service (``ExternalPort`` 0), as Docker's do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Final, cast

import msgspec

from samewire.errors import Exhausted
from samewire.hcn.numbered import numbered
from samewire.hcn.plan.context import Context
from samewire.hcn.policies import NatFlags, Policy, PortMapping, select
from samewire.hcn.schema import Endpoint

FIRST_PORT: Final = 20000
LAST_PORT: Final = 29999
"""Below Kubernetes' node ports and below what Linux gives to sockets that ask for no port of their own."""

_replace = msgspec.structs.replace


def with_ports(context: Context, endpoint: Endpoint, before: tuple[Policy, ...] = ()) -> Endpoint:
    """Return an endpoint whose mappings all have a port of the node. Raises Exhausted.

    A mapping that was there ``before`` and comes again without a port keeps the one it was given: whoever says
    the same twice changes nothing.
    """
    policies = numbered(endpoint.policies)
    asked = policies.by(_left_open).get(True, ())
    if not asked:
        return endpoint
    named = {(policy.protocol, policy.external_port) for policy in select(policies, PortMapping)}
    kept: dict[Policy, list[PortMapping]] = {}
    for policy in reversed(select(before, PortMapping)):
        if (policy.protocol, policy.external_port) not in named:
            kept.setdefault(_replace(policy, external_port=0), []).append(policy)
    usable = context.usable_ports()
    found: dict[int, Policy] = {}
    for number in asked:
        policy = cast(PortMapping, policies.at(number))
        # Nobody can have reserved a port that was not known.
        policy = _replace(policy, flags=policy.flags & ~NatFlags.EXTERNAL_PORT_RESERVED)
        old = kept.get(policy)
        policy = (
            old.pop() if old else _replace(policy, external_port=_free_port(context, policy, named, usable))
        )
        named.add((policy.protocol, policy.external_port))
        found[number] = policy
    return _replace(endpoint, policies=policies.edited(instead=found))


def _left_open(policy: Policy) -> tuple[bool, ...]:
    return (True,) if isinstance(policy, PortMapping) and not policy.external_port else ()


def _free_port(
    context: Context, policy: PortMapping, named: set[tuple[int, int]], usable: Callable[[int, int], bool]
) -> int:
    """Return a port that is nobody's, in rotation: what was just freed is not given out again at once."""
    start = context.pool.mapped_port + 1
    start = start if FIRST_PORT <= start <= LAST_PORT else FIRST_PORT
    ports = chain(range(start, LAST_PORT + 1), range(FIRST_PORT, start))
    protocol = policy.protocol
    for port in ports:
        if (protocol, port) in named or _spoken_for(context, policy, port) or not usable(protocol, port):
            continue
        context.pool.mapped_port = port
        return port
    raise Exhausted(
        f"ports {FIRST_PORT}-{LAST_PORT} of protocol {protocol}",
        "all are mapped, reserved or in use; name an ExternalPort beyond them, or delete endpoints",
    )


def _spoken_for(context: Context, policy: PortMapping, port: int) -> bool:
    """Whether an endpoint or a load balancer has a port of the node, whichever address it is for."""
    view = context.view
    if view.ids(("mapping", policy.protocol, port)):
        return True
    return any(view.ids(("frontend", policy.protocol, port, where)) for where in _places(context, policy))


def _places(context: Context, policy: PortMapping) -> Iterator[str]:
    """What frontends at the node's own addresses are called (`samewire.hcn.frontends.frontend_keys`)."""
    yield from ("4", "6")
    yield from context.facts.management_ips
    if policy.vip:
        yield policy.vip
