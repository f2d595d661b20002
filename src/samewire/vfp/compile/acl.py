"""ACL policies -> the switch's prioritised list.

Order: the lower Priority number first; at equal priority Block before Allow (HNS leaves it open; blocking is
the safe reading); then the order of the list. The first match decides. A direction without any rule lets
everything pass; with at least one, what no rule matches is blocked. ``Pass`` leaves the list: there is no
further tier here, so what it matches passes. Host and Switch rules are enforced alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from samewire.errors import Invalid
from samewire.hcn.policies import ACL, AclAction, AclDirection, Policy, acl_ports, acl_protocols
from samewire.vfp.address import ZERO, Prefix, parse_prefix
from samewire.vfp.compile.builder import Builder, digest
from samewire.vfp.constants import MAX_ACL_PER_SET, PROTOCOL_ANY
from samewire.vfp.constants import AclAction as Verdict
from samewire.vfp.model import Numbers
from samewire.vfp.tables import AclKey, AclRule

ANY_PORT = ((0, 65535),)
ANY_ADDRESS = (Prefix(0, ZERO, 0),)


class AclSet(msgspec.Struct, frozen=True):
    """A port's reference to its list: key of sw_acl and length; length 0 = everything passes."""

    set: int = 0
    count: int = 0


def compile_acl(
    builder: Builder, endpoint_id: str, policies: Sequence[Policy], numbers: Numbers
) -> tuple[AclSet, AclSet]:
    """Add the sets of an endpoint's ACL policies; returns (in, out). Raises ``Invalid``, naming the field."""
    rules = [(i, policy) for i, policy in enumerate(policies) if isinstance(policy, ACL)]
    if not rules:
        return AclSet(), AclSet()
    return (
        _compile_set(builder, f"{endpoint_id}/in", AclDirection.IN, rules, numbers),
        _compile_set(builder, f"{endpoint_id}/out", AclDirection.OUT, rules, numbers),
    )


def expand_rules(rules: Iterable[tuple[int, ACL]]) -> list[AclRule]:
    """The ordered entries of one direction's policies, each given with its position in the endpoint's list.

    Raises ``Invalid`` for malformed lists, and when more than SW_MAX_ACL_PER_SET entries come out.
    """
    ordered = sorted(
        rules, key=lambda item: (item[1].priority, item[1].action is not AclAction.BLOCK, item[0])
    )
    entries: list[AclRule] = []
    for position, policy in ordered:
        path = f"$.Policies[{position}]"
        entries += _expand(policy, position + 1, path, MAX_ACL_PER_SET - len(entries))
    if ordered and not entries:
        # Every rule named a local and a remote end of different families: none can match, so nothing passes.
        entries.append(
            AclRule(0, 0, PROTOCOL_ANY, Verdict.BLOCK, 0, 0, 0, ZERO, ZERO, *ANY_PORT[0], *ANY_PORT[0])
        )
    return entries


def _compile_set(
    builder: Builder,
    name: str,
    direction: AclDirection,
    rules: list[tuple[int, ACL]],
    numbers: Numbers,
) -> AclSet:
    entries = expand_rules([item for item in rules if item[1].direction is direction])
    if not entries:
        return AclSet()
    content = digest(entry.pack() for entry in entries)
    number = numbers.number("acl", f"{name}/{content}")
    for index, entry in enumerate(entries):
        builder.put("sw_acl", AclKey(number, index), entry)
    return AclSet(number, len(entries))


def _expand(policy: ACL, rule: int, path: str, room: int) -> list[AclRule]:
    """One policy's entries: every combination of its protocols, ends and ports."""
    settings = f"{path}.Settings"
    protocols = _protocols(policy, settings)
    ends = list(_ends(policy, settings))
    local_ports = _ports(policy.local_ports, f"{settings}.LocalPorts")
    remote_ports = _ports(policy.remote_ports, f"{settings}.RemotePorts")
    count = len(protocols) * len(ends) * len(local_ports) * len(remote_ports)
    if count > room:
        raise Invalid(
            path,
            f"the endpoint's ACL policies of one direction expand to more than {MAX_ACL_PER_SET} entries",
        )
    action = Verdict.BLOCK if policy.action is AclAction.BLOCK else Verdict.ALLOW
    return [
        AclRule(
            rule,
            policy.priority,
            protocol,
            action,
            local.family or remote.family,
            local.bits,
            remote.bits,
            local.packed,
            remote.packed,
            *local_port,
            *remote_port,
        )
        for protocol in protocols
        for local, remote in ends
        for local_port in local_ports
        for remote_port in remote_ports
    ]


def _ends(policy: ACL, path: str) -> Iterator[tuple[Prefix, Prefix]]:
    """Pairs of local and remote prefixes of one family; family 0 stands for any address of either."""
    local = _prefixes(policy.local_addresses, f"{path}.LocalAddresses")
    for remote in _prefixes(policy.remote_addresses, f"{path}.RemoteAddresses"):
        for own in local:
            if own.family == remote.family or not own.family or not remote.family:
                yield own, remote


def _prefixes(text: str, path: str) -> Sequence[Prefix]:
    items = [item for raw in text.split(",") if (item := raw.strip())]
    return [parse_prefix(item, path) for item in items] or ANY_ADDRESS


def _protocols(policy: ACL, path: str) -> tuple[int, ...]:
    try:
        return acl_protocols(policy.protocols) or (PROTOCOL_ANY,)
    except ValueError as error:
        raise Invalid(f"{path}.Protocols", str(error)) from None


def _ports(text: str, path: str) -> tuple[tuple[int, int], ...]:
    try:
        return acl_ports(text) or ANY_PORT
    except ValueError as error:
        raise Invalid(path, str(error)) from None
