"""The ACL tables of an endpoint: what its policies and its network's say, for both directions.

A direction without any rule lets everything pass. With at least one, what no rule matches is blocked, or let pass where
the node is configured so.
"""

from __future__ import annotations

from collections.abc import Sequence

from samewire.hcn.policies import AclDirection, Policy
from samewire.vfp.compile.acl_rules import Ends, Rule, direction_rules, has_rules
from samewire.vfp.compile.acl_table import NONE_KNOWN, AclTable, Known, table_of
from samewire.vfp.compile.builder import Builder
from samewire.vfp.constants import AclAction

_ANY = Ends()


def compile_acl(
    builder: Builder,
    network_id: str,
    network: Sequence[Policy],
    endpoint: Sequence[Policy],
    allow_unmatched: bool = False,
    known: Known = NONE_KNOWN,
) -> tuple[AclTable, AclTable]:
    """Add the ACL tables of an endpoint with these policies, in such a network; returns (in, out).

    Raises ``Invalid``, naming the field.
    """
    if not has_rules(network) and not has_rules(endpoint):
        return AclTable(), AclTable()
    references = []
    for direction, own in zip((AclDirection.IN, AclDirection.OUT), known.own, strict=True):
        rules = _closed(direction_rules(direction, network, endpoint), allow_unmatched)
        table = table_of(rules, network_id, known, own) if rules else None
        if table is not None:
            builder.shared[table.name] = table
        references.append(table.reference if table is not None else AclTable())
    return references[0], references[1]


def _closed(rules: tuple[Rule, ...], allow_unmatched: bool) -> tuple[Rule, ...]:
    if not rules or not allow_unmatched:
        return rules
    fallback = Rule(
        number=0,
        priority=0xFFFF,
        action=AclAction.ALLOW,
        stage=rules[-1].stage,
        source=_ANY,
        destination=_ANY,
        protocols=(),
        source_ports=(),
        destination_ports=(),
    )
    return (*rules, fallback)
