"""How often rules have decided, from the tables that count it. None: it is not counted."""

from __future__ import annotations

from typing import Final

from samewire.vfp.constants import ACL_IN, ACL_OUT, COUNTED_NAT, COUNTED_PORTMAP, COUNTED_ROUTE, RouteKind
from samewire.vfp.model import Entries
from samewire.vfp.tables import Config, Count, Id, Route, RuleCountKey, ServiceCount

_SIDES: Final = {
    "ACL": {ACL_IN, ACL_OUT},
    "NAT": {COUNTED_NAT},
    "PORTMAP": {COUNTED_PORTMAP},
    "ROUTE": {COUNTED_ROUTE + kind for kind in RouteKind},
}


def rule_count(tables: Entries, port: int, rule: int, side: int) -> int:
    """Connections that a rule of a port has judged; ``side``: ACL_IN, ACL_OUT or COUNTED_*."""
    found = tables.get("sw_rule_counts", {}).get(RuleCountKey(port, rule, side))
    return found.value if isinstance(found, Count) else 0


def route_count(tables: Entries, port: int, route: Route) -> int | None:
    """Connections of a port that went where a route leads: routes with the same next hop are counted together."""
    if not counted_slots(tables):
        return None
    return rule_count(tables, port, route.nexthop, COUNTED_ROUTE + route.kind)


def service_count(tables: Entries, service: int) -> int | None:
    """Connections to a service, of all ports: balanced, and refused."""
    if not service:
        return None
    found = tables.get("sw_service_counts", {}).get(Id(service))
    return found.connections + found.refused if isinstance(found, ServiceCount) else 0


def layer_count(tables: Entries, layer: str, port: int | None) -> int:
    """Connections that all rules of a port's layer have judged, those that are gone by now too; None: of all ports."""
    return sum(
        value.value
        for key, value in tables.get("sw_rule_counts", {}).items()
        if isinstance(key, RuleCountKey) and isinstance(value, Count)
        if key.side in _SIDES[layer] and port in (None, key.port)
    )


def counted_slots(tables: Entries) -> int:
    """Slots of the flow table with counters: all of them, or 0, when ``sw_flow_counts`` has one element."""
    config = tables.get("sw_config", {}).get(Id(0))
    slots = config.flow_slots if isinstance(config, Config) else 0
    return slots if slots and Id(2 * slots - 1) in tables.get("sw_flow_counts", {}) else 0
