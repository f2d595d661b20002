"""What a node would want of the kernel if it began anew with the objects that it has, beside what it wants now."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from samewire.node.node import Node
from samewire.node.owners import Owners
from samewire.node.planning import plan_everything
from samewire.node.wanted import Changes, Wanted
from samewire.vfp.compile import route, sets
from samewire.vfp.model import Entries
from samewire.vfp.record import Record
from samewire.vfp.tables import AclSpace, Port

_ACL, _SPACES = "sw_acl_", "sw_acl_spaces"


def unlike_afresh(node: Node) -> list[Any]:
    """What differs: entries, wishes of the node's stack, load balancers' rows."""
    switch, view = node.switch, node.service.view
    made = Wanted({})
    owners = Owners(switch.numbers, made, switch.ports, switch.balancers, 1 << 20)
    remembered: tuple[dict[str, Any], ...] = (route._LAST, sets._LAST)
    kept = [(latest, dict(latest)) for latest in remembered]
    for latest, _ in kept:
        latest.clear()
    for owner in plan_everything(view, switch.ports.__contains__).owners:
        switch.numbers.begin()
        made.replace(owner, owners.compile(owner, view, switch.node_facts), Changes())
    for latest, last in kept:
        latest.clear()
        latest.update(last)
    now, anew = (_comparable(wanted.entries.tables()) for wanted in (switch.wanted, made))
    found: list[Any] = [
        (key, now.get(key), anew.get(key))
        for key in now.keys() | anew.keys()
        if now.get(key) != anew.get(key)
    ]
    found += switch.wanted.bindings.wanted() ^ made.bindings.wanted()
    everything = {value.id: True for value in view.load_balancers()}
    balance = switch.balancers.plan(everything, view, switch.node_facts)
    for moved in (balance.puts, balance.removals):
        found += [(table, rows) for table, rows in moved.items() if rows]
    return found


def _comparable(tables: Entries) -> dict[tuple[str, Record], Record]:
    """All rows, without generations; ACL tables may have been edited, so that they have other rows for the same."""
    return {
        (table, key): _without_generation(value)
        for table, rows in tables.items()
        if table == _SPACES or not table.startswith(_ACL)
        for key, value in rows.items()
    }


def _without_generation(value: Record) -> Record:
    if isinstance(value, Port):
        return replace(value, generation=0, acl_table=(0, 0), acl_words=(0, 0), acl_shape=(0, 0))
    return replace(value, generation=0) if isinstance(value, AclSpace) else value
