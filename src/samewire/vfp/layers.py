"""The switch as VFP shows it: port -> layers -> groups -> rules, read from the tables.

For ``samewire get layers`` and for traces. A layer lists what the programs consult there, in the order of a
walk; rule ids are those that drops and traces name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import msgspec

from samewire.errors import NotFound
from samewire.vfp.acl_names import AclNames
from samewire.vfp.acl_view import AclIndex
from samewire.vfp.address import IPV4, IPV6, ZERO, address_bits, address_text, mac_text
from samewire.vfp.constants import (
    ACL_IN,
    ACL_OUT,
    COUNTED_NAT,
    COUNTED_PORTMAP,
    NAT_KEY_BITS,
    SCOPE_DIRECT,
    SCOPE_HOST,
    SCOPE_OUTSIDE,
    SCOPE_UPLINK,
    VLAN,
    VLAN_ID,
    NatAction,
    NatFlag,
    PortFlag,
    RouteFlag,
    RouteKind,
)
from samewire.vfp.counts import route_count, rule_count, service_count
from samewire.vfp.layers_service import service_rules
from samewire.vfp.model import Entries
from samewire.vfp.protocols import protocol_text
from samewire.vfp.record import Record
from samewire.vfp.rule_names import rule_text
from samewire.vfp.tables import (
    Bucket,
    Config,
    Id,
    Nat,
    NatKey,
    Nexthop,
    OwnRouteKey,
    Port,
    Portmap,
    PortmapKey,
    Route,
    RouteKey,
    Vni,
)

K = TypeVar("K", bound=Record)
V = TypeVar("V", bound=Record)


class RuleView(msgspec.Struct, frozen=True):
    """One rule: all conditions must hold. ``id`` 0 = not numbered; ``priority``: the lower decides first.

    ``name``: of a numbered one, for people. ``judged``: first packets, and flows after a change, that it decided on;
    None where that is not counted. ``object``: id of the HCN object that made it, where that is known. ``policy``: the
    ``Id`` that an ACL policy gave it.
    """

    id: int
    priority: int
    conditions: tuple[str, ...]
    action: str
    name: str = ""
    judged: int | None = None
    object: str = ""
    policy: str = ""


class GroupView(msgspec.Struct, frozen=True):
    """Rules consulted together; ``matcher`` is ``priority``, ``lpm`` or ``exact``."""

    name: str
    direction: str
    matcher: str
    rules: tuple[RuleView, ...]


class LayerView(msgspec.Struct, frozen=True):
    """One layer of a port. ``judged``: connections that its rules have decided on, None where that is not counted;
    ``dropped``: packets that have ended here.
    """

    name: str
    groups: tuple[GroupView, ...]
    judged: int | None = None
    dropped: int = 0


class PortView(msgspec.Struct, frozen=True):
    """One port. ``kind``: pod, uplink, tunnel or host; ``scope`` is that of a pod's network, ``vlan`` the tag of its
    frames on the uplink (0: none).
    """

    id: int
    kind: str
    scope: int
    generation: int
    flags: tuple[str, ...]
    mac: str
    addresses: tuple[str, ...]
    layers: tuple[LayerView, ...]
    vlan: int = 0


def all_ports(tables: Entries) -> list[PortView]:
    """Every port: the pods' in order of their ids, then the special ones."""
    index = AclIndex(tables)
    pods = sorted(key.value for key, _ in _rows(tables, "sw_ports", Id, Port))
    special = [ifindex for ifindex, _ in _special(tables)]
    return [port_layers(tables, ifindex, index) for ifindex in [*pods, *special]]


def port_layers(
    tables: Entries, port: int, index: AclIndex | None = None, names: AclNames | None = None
) -> PortView:
    """The layers of one port, by its id (ifindex); ``index``: of these tables. Raises ``NotFound``."""
    found = tables.get("sw_ports", {}).get(Id(port))
    if isinstance(found, Port):
        return _pod(tables, port, found, index or AclIndex(tables), names or AclNames())
    kind = dict(_special(tables)).get(port)
    if kind is None:
        raise NotFound("port", str(port))
    layers = {"uplink": _uplink, "tunnel": _tunnel, "host": _host}[kind](tables)
    return PortView(port, kind, SCOPE_UPLINK, 0, (), "", (), layers)


def _special(tables: Entries) -> Iterator[tuple[int, str]]:
    for _, config in _rows(tables, "sw_config", Id, Config):
        yield from (
            (ifindex, kind)
            for ifindex, kind in (
                (config.uplink_ifindex, "uplink"),
                (config.tunnel_ifindex, "tunnel"),
                (config.host_peer_ifindex, "host"),
            )
            if ifindex
        )


def _rows(tables: Entries, table: str, key: type[K], value: type[V]) -> Iterator[tuple[K, V]]:
    for k, v in tables.get(table, {}).items():
        if isinstance(k, key) and isinstance(v, value):
            yield k, v


def _pod(tables: Entries, number: int, port: Port, index: AclIndex, names: AclNames) -> PortView:
    layers = (
        LayerView("GUARD", (GroupView("GUARD_OUT", "out", "exact", tuple(_guard(port))),)),
        LayerView("LB", (GroupView("LB_OUT", "out", "exact", _services(tables, port.scope)),)),
        LayerView("PORTMAP", (GroupView("PORTMAP_IN", "in", "exact", _portmaps(tables, number)),)),
        LayerView(
            "ACL",
            (
                GroupView(
                    "ACL_OUT", "out", "priority", tuple(_acl(tables, index, number, port, ACL_OUT, names))
                ),
                GroupView(
                    "ACL_IN", "in", "priority", tuple(_acl(tables, index, number, port, ACL_IN, names))
                ),
            ),
        ),
        LayerView("ROUTE", tuple(_ways(tables, number, port))),
        LayerView("NAT", (GroupView("NAT_OUT", "out", "lpm", _nat(tables, port.nat_set, number)),)),
        LayerView("QOS", (GroupView("QOS_OUT", "out", "exact", _qos(tables, number)),)),
        LayerView("L2", (GroupView("L2_IN", "in", "exact", (_delivery(port),)),)),
    )
    return PortView(
        id=number,
        kind="pod",
        scope=port.scope,
        generation=port.generation,
        flags=tuple(flag.name.lower() for flag in PortFlag if port.flags & flag and flag.name),
        mac=mac_text(port.mac),
        addresses=tuple(_addresses(port)),
        layers=layers,
        vlan=vlan_of(tables, port.scope),
    )


def vlan_of(tables: Entries, scope: int) -> int:
    """The VLAN that a scope is, 0 for none."""
    if scope == SCOPE_UPLINK:
        return 0
    tags = (key.value for key, value in _rows(tables, "sw_vnis", Id, Vni) if value.scope == scope)
    return next((tag & VLAN_ID for tag in tags if tag & VLAN), 0)


def _services(tables: Entries, scope: int) -> tuple[RuleView, ...]:
    return tuple(
        RuleView(r.id, 0, r.conditions, r.action, judged=service_count(tables, r.id))
        for r in service_rules(tables, scope)
    )


def _uplink(tables: Entries) -> tuple[LayerView, ...]:
    tags = [(key.value, value.scope) for key, value in _rows(tables, "sw_vnis", Id, Vni) if key.value & VLAN]
    vlans = tuple(
        RuleView(tag & VLAN_ID, 0, (f"vlan {tag & VLAN_ID}",), f"scope {scope}; untag for its endpoints")
        for tag, scope in sorted(tags)
    )
    return (
        LayerView("DECAP", (GroupView("VLAN_IN", "in", "exact", vlans),)),
        LayerView("LB", (GroupView("LB_IN", "in", "exact", _services(tables, SCOPE_OUTSIDE)),)),
        LayerView("PORTMAP", (GroupView("PORTMAP_IN", "in", "exact", _portmaps(tables, None)),)),
        LayerView("ROUTE", (GroupView("ROUTE_IN", "in", "lpm", _routes(tables, SCOPE_UPLINK)),)),
    )


def _tunnel(tables: Entries) -> tuple[LayerView, ...]:
    vnis = [(key.value, value.scope) for key, value in _rows(tables, "sw_vnis", Id, Vni)]
    rules = sorted((vni, scope) for vni, scope in vnis if vni < VLAN)
    views = tuple(
        RuleView(
            vni, 0, (f"vni {vni}",), "decap, direct" if scope == SCOPE_DIRECT else f"decap, scope {scope}"
        )
        for vni, scope in rules
    )
    return (LayerView("DECAP", (GroupView("DECAP_IN", "in", "exact", views),)),)


def _host(tables: Entries) -> tuple[LayerView, ...]:
    return (LayerView("ROUTE", (GroupView("HOST_OUT", "out", "lpm", _routes(tables, SCOPE_HOST)),)),)


def _addresses(port: Port) -> Iterator[str]:
    for family, packed in zip((IPV4, IPV6), port.address, strict=True):
        if packed != ZERO:
            yield address_text(family, packed)


def _guard(port: Port) -> Iterator[RuleView]:
    if port.flags & PortFlag.BLOCKED:
        yield RuleView(0, 0, ("any",), "drop: port blocked")
        return
    if port.flags & PortFlag.NO_GUARD:
        yield RuleView(0, 0, ("any",), "pass: guard off")
        return
    for address in _addresses(port):
        yield RuleView(0, 0, (f"source mac {mac_text(port.mac)}", f"source {address}"), "pass")
        yield RuleView(0, 0, (f"arp/nd sender {address} at {mac_text(port.mac)}",), "pass")
    yield RuleView(0, 1, ("any",), "drop: spoofed")


def _portmaps(tables: Entries, port: int | None) -> tuple[RuleView, ...]:
    rules = []
    for key, value in _rows(tables, "sw_portmaps", PortmapKey, Portmap):
        if port is None or value.port == port:
            where = "any node address" if key.address == ZERO else address_text(key.family, key.address)
            target = address_text(key.family, value.address)
            conditions = (
                f"ipv{key.family} {protocol_text(key.protocol)}",
                f"destination {where} port {key.port}",
            )
            action = f"rewrite destination to {target} port {value.internal_port}, port {value.port}"
            number = key.family << 24 | key.protocol << 16 | key.port
            judged = rule_count(tables, value.port, number, COUNTED_PORTMAP)
            rules.append(RuleView(0, 0, conditions, action, judged=judged))
    return tuple(sorted(rules, key=lambda rule: rule.conditions))


def _acl(
    tables: Entries, index: AclIndex, number: int, port: Port, side: int, names: AclNames
) -> Iterator[RuleView]:
    if not port.acl_words[side]:
        yield RuleView(0, 65535, ("any",), "allow: no rules")
        return
    fallback = "block: no rule matched"
    for rule in index.rules(port, side, names.sets):
        if rule.rule:
            yield RuleView(
                id=rule.rule,
                priority=rule.priority,
                conditions=rule.conditions,
                action=rule.action,
                name=rule_text(rule.rule),
                policy=names.policies.get(rule.rule, ""),
                judged=rule_count(tables, number, rule.rule, side),
            )
        else:
            fallback = "allow: no rule matched"
    yield RuleView(0, 65535, ("any",), fallback)


def _nat(tables: Entries, number: int, port: int) -> tuple[RuleView, ...]:
    found = [
        (key.family, key.address, key.prefix_bits - NAT_KEY_BITS, value)
        for key, value in _rows(tables, "sw_nat", NatKey, Nat)
        if number and key.set == number
    ]
    return tuple(
        RuleView(
            value.rule,
            address_bits(family) - bits,
            (f"destination {address_text(family, packed)}/{bits}",),
            _nat_action(family, value),
            judged=rule_count(tables, port, value.rule, COUNTED_NAT) if value.action else None,
        )
        for family, packed, bits, value in _longest_first(found)
    )


def _nat_action(family: int, value: Nat) -> str:
    if value.action == NatAction.NONE:
        return "pass: not translated"
    where = "everywhere" if value.flags & NatFlag.EXPLICIT else "on the uplink"
    return f"snat to {address_text(family, value.address)} {where}"


def _routes(tables: Entries, scope: int, port: int = 0) -> tuple[RuleView, ...]:
    """The routes of a scope; ``port``: whose connections they are to be counted for, where they are."""
    rows = (row for row in _rows(tables, "sw_routes", RouteKey, Route) if row[0].scope == scope)
    return _route_views(tables, ((key.family, key.address, value) for key, value in rows), port)


def _ways(tables: Entries, number: int, port: Port) -> Iterator[GroupView]:
    """A pod's own routes, if it has any, and its network's: of the two groups the longer prefix decides, its own where
    both are as long.
    """
    if port.route_set:
        rows = _rows(tables, "sw_own_routes", OwnRouteKey, Route)
        own = ((key.family, key.address, value) for key, value in rows if key.set == port.route_set)
        yield GroupView("ROUTE_OWN", "out", "lpm", _route_views(tables, own, number))
    yield GroupView("ROUTE_OUT", "out", "lpm", _routes(tables, port.scope, number))


def _route_views(
    tables: Entries, rows: Iterable[tuple[int, bytes, Route]], port: int
) -> tuple[RuleView, ...]:
    found = [(family, address, value.bits, value) for family, address, value in rows]
    hops = tables.get("sw_nexthops", {})
    return tuple(
        RuleView(
            0,
            address_bits(family) - bits,
            (f"destination {address_text(family, packed)}/{bits}",),
            _route_action(value, hops.get(Id(value.nexthop))),
            judged=route_count(tables, port, value) if port else None,
        )
        for family, packed, bits, value in _longest_first(found)
    )


def _longest_first(rows: Iterable[tuple[int, bytes, int, V]]) -> list[tuple[int, bytes, int, V]]:
    return sorted(rows, key=lambda row: (row[0], -row[2], row[1]))


def _route_action(route: Route, hop: Record | None) -> str:
    ttl = ", ttl - 1" if route.flags & RouteFlag.DECREMENT else ""
    match route.kind:
        case RouteKind.LOCAL:
            return f"local endpoint{ttl}"
        case RouteKind.HOST:
            return "host"
        case RouteKind.SCOPE:
            return f"scope {route.scope}"
        case RouteKind.BLACKHOLE:
            return "drop: blackhole"
    if not isinstance(hop, Nexthop):
        return f"drop: nexthop {route.nexthop} is missing"
    via = "on-link" if hop.address == ZERO else address_text(hop.family, hop.address)
    if route.kind == RouteKind.TUNNEL:
        return f"encap vxlan vni {hop.vni} to {via}, inner mac {mac_text(hop.mac)}, mtu {hop.mtu}{ttl}"
    if hop.vni:
        return f"uplink in vlan {hop.vni}, by the mac that the endpoint has found, mtu {hop.mtu}"
    return f"uplink via {via}, mtu {hop.mtu}{ttl}"


def _qos(tables: Entries, port: int) -> tuple[RuleView, ...]:
    bucket = tables.get("sw_buckets", {}).get(Id(port))
    if not isinstance(bucket, Bucket):
        return ()
    action = f"cap {bucket.rate_bytes_per_s} bytes/s, burst {bucket.burst_bytes} bytes"
    return (RuleView(0, 0, ("any",), action),)


def _delivery(port: Port) -> RuleView:
    if port.flags & PortFlag.TRANSPARENT:
        return RuleView(0, 0, ("any",), "deliver as it is")
    how = "through the host end's queue" if port.flags & PortFlag.CAP_IN else "to the peer"
    macs = f"destination mac {mac_text(port.mac)}, source mac {mac_text(port.gateway_mac)}"
    return RuleView(0, 0, ("any",), f"set {macs}; deliver {how}")
