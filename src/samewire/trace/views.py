"""Ports and drops of the tables as rows for people, joined with the endpoints they belong to. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from samewire.hcn.schema import Route as HnsRoute
from samewire.trace.model import DropEventView, DropRow, FlowSummary, PortRow, TupleView
from samewire.trace.names import Names, member_name
from samewire.trace.probe import view_of_ends
from samewire.trace.reasons import explain
from samewire.trace.rows import typed_rows
from samewire.vfp.acl_names import AclNames
from samewire.vfp.address import IPV4, parse_prefix
from samewire.vfp.constants import Arrival, Counter, Layer, Reason
from samewire.vfp.counts import layer_count
from samewire.vfp.layers import GroupView, LayerView, PortView, RuleView, all_ports, port_layers
from samewire.vfp.layers_proxy import proxy_layer
from samewire.vfp.model import Entries, ProxyRule
from samewire.vfp.record import Record
from samewire.vfp.simulate.packet import Tuple
from samewire.vfp.tables import Count, DropEvent, DropKey, Id, Service, ServiceKey


def port_rows(tables: Entries, names: Names) -> list[PortRow]:
    """Every port, without its layers."""
    dropped: dict[int, int] = {}
    for key, count in typed_rows(tables, "sw_drops", DropKey, Count):
        dropped[key.port] = dropped.get(key.port, 0) + count.value
    rows = [_port_row(view, names, layers=False) for view in all_ports(tables)]
    return [replace(row, dropped=dropped.get(row.id, 0)) for row in rows]


class Owners(Struct, frozen=True):
    """Who else than a port's endpoint and network makes rules of it. ``balancers``: load balancers by the numbers of
    their services; ``routes``: route objects by the group and the condition of a rule.
    """

    balancers: Mapping[int, str] = {}
    routes: Mapping[tuple[str, ...], str] = {}


def route_owners(routes: Iterable[HnsRoute]) -> dict[tuple[str, ...], str]:
    """Whose the rules of some route objects are, which are all that a pod obeys."""
    found: dict[tuple[str, ...], str] = {}
    for route in routes:
        group = "ROUTE_OWN" if route.is_of_endpoints else "ROUTE_OUT"
        for entry in route.routes:
            prefix = parse_prefix(entry.destination_prefix)
            found[group, f"destination {prefix}"] = route.id
    return found


def layer_row(
    tables: Entries,
    names: Names,
    ifindex: int,
    owners: Owners | None = None,
    only: str = "",
    acl: AclNames | None = None,
) -> PortRow:
    """One port with its layers, groups and rules. Raises NotFound.

    ``only``: rules of this object alone; ``acl``: names of the port's ACL rules and sets.
    """
    known = owners or Owners()
    balancers = known.balancers
    if only in balancers.values():  # before they are too many to be shown
        services = typed_rows(tables, "sw_services", ServiceKey, Service)
        wanted: dict[Record, Record] = {
            key: value for key, value in services if balancers.get(value.service) == only
        }
        tables = {**tables, "sw_services": wanted}
    row = _port_row(port_layers(tables, ifindex, names=acl), names, layers=True)
    drops = drop_rows(tables, names, ifindex)
    layers = tuple(
        replace(
            layer,
            groups=_owned(row, layer, known, only),
            judged=_judged(tables, row, layer),
            dropped=sum(drop.packets for drop in drops if _is_of(layer.name, drop.layer)),
        )
        for layer in row.layers
    )
    return replace(row, layers=layers, dropped=sum(drop.packets for drop in drops))


def _judged(tables: Entries, row: PortRow, layer: LayerView) -> int | None:
    """What the rules of a layer have decided on. The uplink has the host ports of all pods."""
    counts = {
        rule.id: rule.judged for group in layer.groups for rule in group.rules if rule.judged is not None
    }
    if layer.name == "LB":
        return sum(counts.values()) if counts else None
    return layer_count(tables, layer.name, None if row.kind == "uplink" else row.id) if counts else None


def _is_of(layer: str, place: str) -> bool:
    """Whether what is dropped at a place (acl_in) is a layer's (ACL)."""
    return place.partition("_")[0].upper() == layer


def with_proxies(row: PortRow, rules: Sequence[ProxyRule], only: str = "") -> PortRow:
    """The port with what its pod's own stack does before the switch, if it does anything."""
    if not rules:
        return row
    layer = proxy_layer(rules)
    return replace(row, layers=(replace(layer, groups=_owned(row, layer, Owners(), only)), *row.layers))


def _owned(row: PortRow, layer: LayerView, owners: Owners, only: str) -> tuple[GroupView, ...]:
    """The groups of a layer, each rule with the object that made it."""
    found = []
    for group in layer.groups:
        rules = [replace(rule, object=_owner(row, group.name, rule, owners)) for rule in group.rules]
        found.append(replace(group, rules=tuple(r for r in rules if not only or r.object == only)))
    return tuple(found)


def _owner(row: PortRow, group: str, rule: RuleView, owners: Owners) -> str:
    if group.startswith("LB_"):
        return owners.balancers.get(rule.id, "")
    if row.endpoint is None:
        return ""
    if route := owners.routes.get((group, *rule.conditions)):
        return route
    of_network = group == "ROUTE_OUT" or rule.name.startswith("network")
    return row.endpoint.network_id if of_network else row.endpoint.id


def flow_summary(tables: Entries) -> FlowSummary:
    """The counters of the flow table."""
    counts = {key.value: value.value for key, value in typed_rows(tables, "sw_counters", Id, Count)}

    def count(counter: Counter) -> int:
        return counts.get(counter, 0)

    return FlowSummary(
        flow_inserts=count(Counter.FLOW_INSERTS),
        first_packets=count(Counter.FIRST_PACKETS),
        stateless=count(Counter.STATELESS),
        redecided=count(Counter.FLOW_REDECIDED),
        recycled=count(Counter.FLOW_RECYCLED),
        aged=count(Counter.FLOW_AGED),
        entries=max(0, count(Counter.FLOW_INSERTS) - count(Counter.FLOWS_REMOVED)),
    )


def drop_rows(tables: Entries, names: Names, port: int = 0) -> list[DropRow]:
    """Every kind of drop, or those charged to one port, the most frequent first."""
    rows = [
        drop_row(names, key, count.value)
        for key, count in typed_rows(tables, "sw_drops", DropKey, Count)
        if not port or key.port == port
    ]
    return sorted(rows, key=lambda row: (-row.packets, row.port, row.layer, row.reason, row.rule))


def drop_row(names: Names, key: DropKey, packets: int) -> DropRow:
    """One kind of drop."""
    why = explain(key.reason)
    return DropRow(
        packets=packets,
        port=key.port,
        interface=names.interface(key.port),
        endpoint=names.label(key.port),
        layer=member_name(Layer, key.layer),
        reason=member_name(Reason, key.reason),
        rule=key.rule,
        arrival=member_name(Arrival, key.arrival),
        explanation=why.meaning,
        remedy=why.remedy,
    )


_UNREAD: Final = TupleView(protocol="", source="", source_port=0, destination="", destination_port=0)


def drop_event(names: Names, event: DropEvent) -> DropEventView:
    """One dropped packet."""
    ends = Tuple(event.source, event.destination, event.source_port, event.destination_port)
    view = view_of_ends(event.family, event.protocol, ends) if event.family else _UNREAD
    if event.family == IPV4 and not event.protocol:  # the switch's word for who asked for whom
        view = replace(view, protocol="arp")
    return DropEventView(time_ns=event.time_ns, ends=view, drop=drop_row(names, event.drop, 1))


def _port_row(view: PortView, names: Names, layers: bool) -> PortRow:
    return PortRow(
        id=view.id,
        kind=view.kind,
        interface=names.interface(view.id),
        scope=view.scope,
        generation=view.generation,
        flags=view.flags,
        mac=view.mac,
        addresses=view.addresses,
        endpoint=names.endpoint(view.id),
        vlan=view.vlan,
        layers=view.layers if layers else (),
    )
