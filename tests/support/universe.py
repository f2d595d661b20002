"""A small world for random tables: few addresses, few ports, two networks and the uplink."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

import msgspec
from hypothesis import strategies as st
from msgspec.structs import replace

from samewire.hcn.policies import ACL, AclAction, AclDirection, Policy
from samewire.hcn.schema import Network, NetworkType
from samewire.vfp.address import ZERO, masked
from samewire.vfp.compile.acl import compile_acl
from samewire.vfp.compile.acl_table import AclTable
from samewire.vfp.compile.builder import Builder
from samewire.vfp.compile.direct import DIRECT_VNI
from samewire.vfp.compile.sets import compile_sets
from samewire.vfp.constants import (
    LAYOUT_VERSION,
    NAT_KEY_BITS,
    OWN_ROUTE_KEY_BITS,
    ROUTE_KEY_BITS,
    SCOPE_DIRECT,
    SCOPE_HOST,
    SCOPE_UPLINK,
    VLAN,
    VLAN_ID,
    VLAN_NODE,
    Fate,
    NeighbourFlag,
    PortFlag,
    RouteKind,
)
from samewire.vfp.model import HostBinding
from samewire.vfp.record import Record
from samewire.vfp.simulate.packet import pad
from samewire.vfp.tables import (
    TABLES,
    Config,
    Endpoint,
    EndpointKey,
    Id,
    Nat,
    NatKey,
    Neighbour,
    Nexthop,
    OwnRouteKey,
    Port,
    Portmap,
    PortmapKey,
    Route,
    RouteKey,
    SourceMac,
    Vni,
)
from tests.support.acl_policies import endpoint_policies, network_policies
from tests.support.universe_services import add_direct, add_services

Tables = dict[str, dict[Record, Record]]

VNI: Final = 4096
OWN_ROUTES: Final = 5 << 32 | 6
VLAN_NUMBER: Final = 7
TAGGED_SCOPE: Final = 3
NAT_LOW: Final = 50000
NAT_HIGH: Final = 50003
UPLINK_MAC: Final = bytes.fromhex("02aaaaaaaa01")
TUNNEL_MAC: Final = bytes.fromhex("02aaaaaaaa02")
HOST_MAC: Final = bytes.fromhex("02aaaaaaaa03")
HOST_PEER_MAC: Final = bytes.fromhex("02aaaaaaaa04")
GATEWAY_MAC: Final = bytes.fromhex("025357000001")
SOURCE_MAC: Final = bytes.fromhex("02cccccccc01")
PEER_MAC: Final = bytes.fromhex("02bbbbbbbb01")
PORTS: Final = (53, 80, 8080, 40000, 50001, 4789)
PROTOCOLS: Final = (1, 6, 17, 58, 132, 47)


def packed(text: str) -> bytes:
    """An address as the tables have it."""
    return pad(ip_address(text).packed)


# Pods, gateways, a remote pod, the node, an outside host, in both families.
PODS: Final = {4: ("10.1.0.10", "10.1.0.11", "10.1.0.12"), 6: ("fd01::10", "fd01::11", "fd01::12")}
GATEWAY: Final = {4: "10.1.0.1", 6: "fd01::1"}
REMOTE: Final = {4: "10.2.0.20", 6: "fd02::20"}
NODE: Final = {4: "192.168.9.1", 6: "fd09::1"}
LOOPBACK: Final = {4: "127.0.0.1", 6: "::1"}
OUTSIDE: Final = {4: ("192.168.9.2", "203.0.113.5"), 6: ("fd09::2", "2001:db8::5")}
ROUTES: Final = {
    4: ("10.1.0.0/24", "10.2.0.0/24", "0.0.0.0/0", "192.168.9.1/32", "10.1.0.1/32"),
    6: ("fd01::/64", "fd02::/64", "::/0", "fd09::1/128", "fd01::1/128"),
}
_PREFIXES: Final = [
    "10.1.0.0/24",
    "10.1.0.11",
    "10.1.0.8/30",
    "10.2.0.20",
    "0.0.0.0/1",
    "fd01::/64",
    "fd01::11",
    "2001:db8::/32",
]
NETWORK: Final = "11111111-2222-3333-4444-555555555555"


class Universe(msgspec.Struct):
    """The tables, and what frames should be made of."""

    tables: Tables
    pods: list[tuple[int, bytes, dict[int, bytes]]]
    uplink: int
    host_peer: int
    tags: tuple[int, ...] = (0,)
    is_bridged: bool = False  # the pods are in the uplink's own scope


def addresses(family: int) -> list[bytes]:
    """Every address that a packet may carry."""
    names = (*PODS[family], GATEWAY[family], REMOTE[family], NODE[family], *OUTSIDE[family])
    return [packed(name) for name in names]


def _route(text: str, scope: int, route: Route) -> tuple[Record, Record]:
    name, bits = text.split("/")
    family = ip_address(name).version
    key = RouteKey(ROUTE_KEY_BITS + int(bits), scope, family, masked(packed(name), int(bits)))
    return key, replace(route, bits=int(bits))


def network_sets() -> st.SearchStrategy[list[Policy]]:
    """Policies of a network."""
    return network_policies(_PREFIXES)


def _endpoint_policies() -> st.SearchStrategy[list[Policy]]:
    """Mostly none, or with last rules that allow: what is blocked makes no flow."""
    allow = [ACL(action=AclAction.ALLOW, direction=direction, priority=200) for direction in AclDirection]
    some = endpoint_policies(_PREFIXES)
    return st.just([]) | st.just([]) | some | some.map(lambda rules: [*rules, *allow])


def put_policies(t: Tables, network: list[Policy], endpoint: list[Policy]) -> tuple[AclTable, AclTable]:
    """Enter the ACL tables of an endpoint."""
    builder = Builder()
    made = compile_acl(builder, NETWORK, network, endpoint)
    for name, rows in builder.compiled(HostBinding()).everything().items():
        t.setdefault(name, {}).update(rows)
    return made


def put_sets(t: Tables, network: list[Policy], generation: int) -> None:
    """Make these the IP sets of the network."""
    compiled = compile_sets(
        Network(id=NETWORK, type=NetworkType.OVERLAY, policies=tuple(network)), generation
    )
    for name in ("sw_set_members", "sw_set_classes", "sw_acl_spaces"):
        t[name] = dict(compiled.entries.get(name, {}))


def config(devices: list[int]) -> Config:
    """A node whose uplink is the last of these devices, and whose own end is the one before."""
    return Config(
        layout_version=LAYOUT_VERSION,
        uplink_ifindex=devices[-1],
        tunnel_ifindex=0,
        host_ifindex=devices[-2],
        host_peer_ifindex=devices[-2],
        flow_slots=8192,
        uplink_mac=UPLINK_MAC,
        tunnel_mac=TUNNEL_MAC,
        host_mac=HOST_MAC,
        host_peer_mac=HOST_PEER_MAC,
        nat_port_low=NAT_LOW,
        nat_port_high=NAT_HIGH,
        vxlan_port=4789,
        flags=1,
        idle_tcp_half_open=120,
        idle_tcp_established=7200,
        idle_tcp_closing=30,
        idle_udp_single=30,
        idle_udp_stream=180,
        idle_icmp=30,
        idle_other=600,
        address=(packed(NODE[4]), packed(NODE[6])),
    )


@st.composite
def tables(draw: st.DrawFn, devices: list[int]) -> Universe:
    """Random tables: three pods, of which some lie in the uplink's scope, with random policies."""
    t: Tables = {name: {} for name in ("sw_ports", "sw_endpoints", "sw_routes", "sw_nat", "sw_portmaps")}
    t |= {"sw_own_routes": {}, "sw_source_macs": {}, "sw_neighbours": {}}
    t |= {name: {} for name in TABLES if name.startswith(("sw_acl_", "sw_set_"))}
    network = draw(st.just([]) | network_sets())
    put_sets(t, network, 1)
    t["sw_config"] = {Id(0): config(devices)}
    t["sw_nexthops"] = {
        Id(1): Nexthop(
            RouteKind.UPLINK, 4, draw(st.sampled_from([1500, 100])), devices[-1], 0, ZERO, ZERO, bytes(6)
        ),
        Id(2): Nexthop(
            RouteKind.TUNNEL,
            4,
            draw(st.sampled_from([1450, 90])),
            0,
            VNI,
            packed("192.168.9.3"),
            ZERO,
            PEER_MAC,
        ),
        Id(3): Nexthop(RouteKind.UPLINK, 4, 1500, devices[-1], VLAN_NUMBER, ZERO, ZERO, bytes(6)),
        Id(4): Nexthop(RouteKind.UPLINK, 4, 1500, devices[-1], 0, ZERO, ZERO, bytes(6)),
    }
    scope = draw(st.sampled_from([1, 1, 1, SCOPE_UPLINK, SCOPE_UPLINK, TAGGED_SCOPE]))
    t["sw_vnis"] = {Id(VNI): Vni(scope), Id(DIRECT_VNI): Vni(SCOPE_DIRECT)}
    tags = _draw_tags(draw, t, scope)
    _draw_routes(draw, t, scope)
    _draw_own_routes(draw, t, scope)
    pods = [_draw_pod(draw, t, scope, i, devices[i], network) for i in range(3)]
    _draw_nat(draw, t)
    for family in (4, 6):
        if draw(st.booleans()):
            t["sw_endpoints"][EndpointKey(packed(REMOTE[family]), scope, family)] = Endpoint(0, 2, PEER_MAC)
        if draw(st.booleans()):
            pod = draw(st.sampled_from(pods))
            address = draw(st.sampled_from([ZERO, packed(NODE[family])]))
            key = PortmapKey(address, 8080, draw(st.sampled_from([6, 17, 132])), family)
            t["sw_portmaps"][key] = Portmap(
                pod[0], draw(st.sampled_from([scope, scope, 2])), 80, pod[2][family]
            )
    _draw_neighbours(draw, t, scope)
    vips = {family: [packed(OUTSIDE[family][1]), packed(REMOTE[family])] for family in (4, 6)}
    targets = {family: [pods[0][2][family], pods[1][2][family], *addresses(family)] for family in (4, 6)}
    add_services(draw, t, scope, vips, targets, {family: packed(GATEWAY[family]) for family in (4, 6)})
    add_direct(draw, t, scope, vips, pods)
    return Universe(t, pods, devices[-1], devices[-2], tags, scope == SCOPE_UPLINK)


def _draw_tags(draw: st.DrawFn, t: Tables, scope: int) -> tuple[int, ...]:
    """Whose tags are known. Returns the tags that frames on the uplink have, 0 for none."""
    t["sw_vnis"][Id(VLAN_NODE | 9)] = Vni(SCOPE_UPLINK)
    if draw(st.booleans()):
        t["sw_vnis"][Id(VLAN_NODE | VLAN_ID)] = Vni(SCOPE_UPLINK)
    known, others = VLAN | VLAN_NUMBER, (VLAN | 9, VLAN | 10)
    t["sw_vnis"][Id(known)] = Vni(TAGGED_SCOPE)
    return (known,) * 6 + (0, *others) if scope == TAGGED_SCOPE else (0,) * 12 + (known, *others)


def _draw_routes(draw: st.DrawFn, t: Tables, scope: int) -> None:
    kinds = {
        0: RouteKind.LOCAL,
        1: RouteKind.TUNNEL,
        2: RouteKind.UPLINK,
        3: RouteKind.HOST,
        4: RouteKind.HOST,
    }
    for family in (4, 6):
        for i, text in enumerate(ROUTES[family]):
            kind = kinds[i] if draw(st.integers(0, 19)) else draw(st.sampled_from(list(RouteKind)))
            flags = draw(st.sampled_from([0, 1]))
            for where in {scope, SCOPE_UPLINK}:
                if draw(st.integers(0, 19)):
                    tagged = where == TAGGED_SCOPE
                    nexthop = {RouteKind.TUNNEL: 2, RouteKind.UPLINK: 3 if tagged else 1}.get(kind, 0)
                    target = TAGGED_SCOPE if tagged and kind == RouteKind.UPLINK else 0
                    key, value = _route(text, where, Route(kind, flags, target, nexthop, 0))
                    t["sw_routes"][key] = value
        for text in ROUTES[family][:2]:
            key, value = _route(text, SCOPE_HOST, Route(RouteKind.SCOPE, 0, scope, 0, 0))
            t["sw_routes"][key] = value


def _draw_own_routes(draw: st.DrawFn, t: Tables, scope: int) -> None:
    """Routes of some pods' own: as long as the network's, shorter and longer."""
    kinds = [RouteKind.UPLINK, RouteKind.UPLINK, RouteKind.TUNNEL, RouteKind.HOST, RouteKind.LOCAL]
    tagged = scope == TAGGED_SCOPE
    for family in (4, 6):
        full = 32 if family == 4 else 128
        for text in (*ROUTES[family][:3], *(f"{name}/{full}" for name in (*OUTSIDE[family], REMOTE[family]))):
            if draw(st.booleans()):
                continue
            kind = draw(st.sampled_from(kinds))
            nexthop = {RouteKind.TUNNEL: 2, RouteKind.UPLINK: 3 if tagged else 4}.get(kind, 0)
            target = TAGGED_SCOPE if tagged and kind == RouteKind.UPLINK else 0
            name, length = text.split("/")
            bits = int(length)
            address = masked(packed(name), bits)
            key = OwnRouteKey(
                OWN_ROUTE_KEY_BITS + bits, OWN_ROUTES & 0xFFFFFFFF, OWN_ROUTES >> 32, family, address
            )
            t["sw_own_routes"][key] = Route(kind, draw(st.sampled_from([0, 1])), target, nexthop, bits)


def _draw_neighbours(draw: st.DrawFn, t: Tables, scope: int) -> None:
    for family in (4, 6):
        for text in draw(st.sampled_from([[], [], ROUTES[family][1:3], [ROUTES[family][2]]])):
            for where in {scope, SCOPE_UPLINK}:
                key, _ = _route(text, where, Route(RouteKind.LOCAL, 0, 0, 0, 0))
                flags = draw(st.sampled_from([0, 0, NeighbourFlag.PODS]))
                t["sw_neighbours"][key] = Neighbour(SOURCE_MAC, int(flags), packed(GATEWAY[family]))


def _draw_pod(
    draw: st.DrawFn, t: Tables, scope: int, index: int, ifindex: int, network: list[Policy]
) -> tuple[int, bytes, dict[int, bytes]]:
    mac = bytes.fromhex("0e2a0a01000a")[:5] + bytes((index + 10,))
    own = {family: packed(PODS[family][index]) for family in (4, 6)}
    acls = put_policies(t, network, draw(_endpoint_policies()))
    flags = draw(st.sampled_from([0] * 10 + [1, 2, 2, 4, 16, 32, 32, 64, 64]))
    if scope == TAGGED_SCOPE and draw(st.integers(0, 9)):
        flags |= PortFlag.TAGGED
    if flags & PortFlag.SOURCE_MAC and draw(st.booleans()):
        t["sw_source_macs"][Id(ifindex)] = SourceMac(SOURCE_MAC)
    t["sw_ports"][Id(ifindex)] = Port(
        generation=draw(st.integers(1, 2)),
        scope=scope,
        flags=flags,
        mac=mac,
        gateway_mac=GATEWAY_MAC,
        address=(own[4], own[6]),
        gateway=(packed(GATEWAY[4]), packed(GATEWAY[6])),
        nat_set=draw(st.sampled_from([0, 7, 7])),
        acl_table=(acls[0].table, acls[1].table),
        acl_space=acls[0].space or acls[1].space,
        route_set=draw(st.sampled_from([0, OWN_ROUTES, OWN_ROUTES])),
        acl_words=(acls[0].words, acls[1].words),
        acl_shape=(acls[0].shape, acls[1].shape),
        mtu=1450,
    )
    for family in (4, 6):
        if draw(st.integers(0, 9)):
            t["sw_endpoints"][EndpointKey(own[family], scope, family)] = Endpoint(ifindex, 0, mac)
    return ifindex, mac, own


def _draw_nat(draw: st.DrawFn, t: Tables) -> None:
    for family, node in NODE.items():
        for text in ROUTES[family][:3]:
            if draw(st.integers(0, 2)):
                name, bits = text.split("/")
                answer = draw(
                    st.sampled_from(
                        [
                            Nat(0, 0, 0, 1, ZERO),
                            *(Nat(1, 0, ports, 2, packed(node)) for ports in (0, 2)),
                            Nat(1, 1, 1, 3, packed(node)),
                        ]
                    )
                )
                key = NatKey(NAT_KEY_BITS + int(bits), 7, family, masked(packed(name), int(bits)))
                t["sw_nat"][key] = answer


assert int(Fate.NOWHERE) == 0  # a zero action serves nobody
