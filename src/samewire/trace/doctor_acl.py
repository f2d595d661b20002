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
    rules = _Rules(state, tables)
    for info in snapshot.endpoints:
        port = ports.get(Id(info.port)) if info.port else None
        for direction, side, name, field in _OWN_SIDES if port is not None else ():
            assert port is not None
            found = list(_never(state, rules, port, direction, side)) if port.acl_words[direction] else []
            if found:
                more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
                yield Finding(
                    Level.WARNING,
                    "acl",
                    info.label,
                    f"rule {', '.join(map(rule_text, found[:_SHOWN]))}{more} ({name}) asks in {field} for IP sets that "
                    "the endpoint is not in: it never matches",
                    "A rule that names sets has its sources in LocalAddresses and its destinations in RemoteAddresses, "
                    "in both directions; or the endpoint's address is missing in the set.",
                )


class _Rules:
    """The rules of all ACL tables, gone through once: there are as many tables as pods, and all rules in one map."""

    def __init__(self, state: State, tables: Entries) -> None:
        self.asking: dict[tuple[int, int], int] = {}
        """Those that ask for sets, as bits, by table and side."""
        self.names: dict[int, dict[int, int]] = {}
        """The names by table and place."""
        for key, name in typed_rows(tables, "sw_acl_sets", AclSetKey, Hash):
            place = key.table, key.side
            self.asking[place] = self.asking.get(place, 0) | bits_of(state, name)
        for rule_key, rule in typed_rows(tables, "sw_acl_rules", AclRuleKey, AclRule) if self.asking else ():
            self.names.setdefault(rule_key.table, {})[rule_key.index] = rule.rule


def _never(state: State, rules: _Rules, port: Port, direction: int, side: int) -> Iterator[int]:
    """The names of the rules that ask for sets on a side where none of the port's addresses is in any of them."""
    table, content = port.acl_table[direction], 0
    asked = rules.asking.get((table, side), 0)
    if not asked:
        return
    for family, address in zip(FAMILIES, port.address, strict=True):
        if address != ZERO:
            content |= content_with(state, family, address, table, side, port.acl_space)
    for place, name in rules.names.get(table, {}).items():
        if (asked & ~content) >> place & 1:
            yield name
