"""The ACL tables of an endpoint: what its policies and its network's say, for both directions.

A direction without any rule lets everything pass. With at least one, what no rule matches is blocked, or let pass where
the node is configured so.
"""

from __future__ import annotations

from collections.abc import Sequence

from samewire.hcn.numbered import numbered
from samewire.hcn.policies import AclDirection, Policy, TierAcl
from samewire.vfp.compile.acl_rules import (
    MAX_RULES,
    Ends,
    Rule,
    Sources,
    changed_rules,
    direction_rules,
    has_rules,
)
from samewire.vfp.compile.acl_table import NONE_KNOWN, AclTable, Known, Table, edited, table_of
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
    isolation: tuple[TierAcl, ...] = (),
) -> tuple[AclTable, AclTable]:
    """Add the ACL tables of an endpoint with these policies, in such a network; returns (in, out).

    Raises ``Invalid``, naming the field.
    """
    sources = Sources(numbered(network), numbered(endpoint), isolation, allow_unmatched)
    if not (has_rules(sources.network) or has_rules(sources.endpoint) or isolation):
        return AclTable(), AclTable()
    references = []
    for direction, own in zip((AclDirection.IN, AclDirection.OUT), known.own, strict=True):
        table = _changed(direction, sources, own) or _made(direction, sources, network_id, known, own)
        if table is not None:
            table.sources = sources
            builder.shared[table.name] = table
        references.append(table.reference if table is not None else AclTable())
    return references[0], references[1]


def _changed(direction: AclDirection, sources: Sources, own: Table | None) -> Table | None:
    """The endpoint's own table, edited by what has changed in the lists of policies; None when it takes a look at all
    of them.
    """
    if own is None or own.sources is None:
        return None
    changed = changed_rules(direction, own.sources, sources)
    if changed is None or len(own.rules) + len(changed[1]) > MAX_RULES:
        return None
    return edited(own, *changed) if any(changed) else own


def _made(
    direction: AclDirection, sources: Sources, network_id: str, known: Known, own: Table | None
) -> Table | None:
    rules = direction_rules(direction, *sources[:3])
    rules = _closed(rules, sources.allow_unmatched)
    return table_of(rules, network_id, known, own) if rules else None


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
