"""Health checks of ACL rules: those that can never match."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from samewire.trace.rows import typed_rows
from samewire.trace.snapshot import Finding, Level, Snapshot
from samewire.vfp.address import ZERO
from samewire.vfp.constants import ACL_DESTINATION, ACL_IN, ACL_OUT, ACL_SOURCE
from samewire.vfp.model import FAMILIES, Entries
from samewire.vfp.rule_names import rule_text
from samewire.vfp.simulate.acl import bits_of, content_with
from samewire.vfp.simulate.state import State
from samewire.vfp.tables import AclRule, AclRuleKey, AclSetKey, Hash, Id, Port

_SHOWN: Final = 5
_ASKED: Final = ("sw_acl_", "sw_set_")
_OWN_SIDES: Final = (
    (ACL_IN, ACL_DESTINATION, "In", "RemoteAddresses"),
    (ACL_OUT, ACL_SOURCE, "Out", "LocalAddresses"),
)


def sets(snapshot: Snapshot) -> Iterator[Finding]:
    """Where a rule names sets for the endpoint's own end, the endpoint is in one of them: else it never matches."""
    tables = snapshot.tables or {}
    ports = dict(typed_rows(tables, "sw_ports", Id, Port))
    state = State({table: dict(rows) for table, rows in tables.items() if table.startswith(_ASKED)}, 0)
    for info in snapshot.endpoints:
        port = ports.get(Id(info.port)) if info.port else None
        for direction, side, name, field in _OWN_SIDES if port is not None else ():
            assert port is not None
            rules = list(_never(state, tables, port, direction, side)) if port.acl_words[direction] else []
            if rules:
                more = f" and {len(rules) - _SHOWN} more" if len(rules) > _SHOWN else ""
                yield Finding(
                    Level.WARNING,
                    "acl",
                    info.label,
                    f"rule {', '.join(map(rule_text, rules[:_SHOWN]))}{more} ({name}) asks in {field} for IP sets that "
                    "the endpoint is not in: it never matches",
                    "A rule that names sets has its sources in LocalAddresses and its destinations in RemoteAddresses, "
                    "in both directions; or the endpoint's address is missing in the set.",
                )


def _never(state: State, tables: Entries, port: Port, direction: int, side: int) -> Iterator[int]:
    """The names of the rules that ask for sets on a side where none of the port's addresses is in any of them."""
    table, asked, content = port.acl_table[direction], 0, 0
    for key, name in typed_rows(tables, "sw_acl_sets", AclSetKey, Hash):
        if (key.table, key.side) == (table, side):
            asked |= bits_of(state, name)
    if not asked:
        return
    for family, address in zip(FAMILIES, port.address, strict=True):
        if address != ZERO:
            content |= content_with(state, family, address, table, side, port.acl_space)
    for rule_key, rule in typed_rows(tables, "sw_acl_rules", AclRuleKey, AclRule):
        if rule_key.table == table and (asked & ~content) >> rule_key.index & 1:
            yield rule.rule
