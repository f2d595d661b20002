"""The VFP view of a small switch."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from samewire.errors import NotFound
from samewire.hcn.policies import (
    ACL,
    QOS,
    VSID,
    AclAction,
    AclDirection,
    HostRoute,
    NetworkACL,
    OutBoundNAT,
    Policy,
    PortMapping,
    RemoteSubnetRoute,
    SDNRoute,
    SetPolicy,
    TierAcl,
    TierAclRule,
)
from samewire.hcn.schema import Endpoint, Ipam, IpConfiguration, Network, NetworkType, RouteEntry, Subnet
from samewire.vfp.acl_names import AclNames, acl_names
from samewire.vfp.acl_view import AclIndex, AclRuleView
from samewire.vfp.address import NO_MAC, ZERO, parse_address, parse_interface
from samewire.vfp.compile import compile_endpoint, compile_node
from samewire.vfp.compile.acl import compile_acl
from samewire.vfp.compile.builder import Builder
from samewire.vfp.constants import (
    CHUNK_BACKENDS,
    COUNTED_NAT,
    COUNTED_PORTMAP,
    COUNTED_ROUTE,
    SCOPE_ANY,
    SCOPE_OUTSIDE,
    PortFlag,
    ServiceFlag,
)
from samewire.vfp.layers import GroupView, PortView, all_ports, port_layers
from samewire.vfp.layers_service import SHOWN, service_rules
from samewire.vfp.model import Entries, HostBinding, NodeFacts
from samewire.vfp.numbers import MemoryNumbers
from samewire.vfp.ownership import Ownership
from samewire.vfp.protocols import protocol_text
from samewire.vfp.record import Record
from samewire.vfp.rule_names import rule_number, rule_text
from samewire.vfp.tables import (
    Backend,
    BackendChunk,
    BackendChunkKey,
    BackendPlace,
    Count,
    FlowCount,
    Id,
    Port,
    Route,
    RuleCountKey,
    Service,
    ServiceCount,
    ServiceKey,
)
from tests.support.compiled import whole_network

FACTS = NodeFacts(
    name="node-1",
    uplink_ifindex=2,
    uplink_mac=bytes(6),
    uplink_mtu=1500,
    addresses=(parse_interface("192.168.1.10/24"),),
    gateways=(parse_address("192.168.1.1"),),
    tunnel_ifindex=5,
    host_ifindex=6,
    host_peer_ifindex=7,
)
NETWORK = Network(
    id="NET-1",
    type=NetworkType.OVERLAY,
    policies=(
        HostRoute(),
        RemoteSubnetRoute(
            destination_prefix="10.244.2.0/24",
            isolation_id=4096,
            provider_address="192.168.1.11",
            distributed_router_mac_address="02-AA-00-00-00-02",
        ),
    ),
    ipams=(
        Ipam(
            subnets=(
                Subnet(
                    ip_address_prefix="10.244.1.0/24",
                    policies=(VSID(isolation_id=4096),),
                    routes=(RouteEntry(next_hop="10.244.1.1", destination_prefix="0.0.0.0/0"),),
                ),
            )
        ),
    ),
)
POD = Endpoint(
    id="1A2B3C4D-0000-4000-8000-000000000001",
    mac_address="0E-2A-0A-F4-01-05",
    ip_configurations=(IpConfiguration(ip_address="10.244.1.5"),),
    policies=(
        OutBoundNAT(exceptions=("10.244.0.0/16",)),
        ACL(action=AclAction.ALLOW, direction=AclDirection.IN, protocols="6", local_ports="80", priority=100),
        ACL(
            action=AclAction.BLOCK,
            direction=AclDirection.IN,
            remote_addresses="10.0.0.0/8",
            remote_ports="1000-2000",
            priority=200,
        ),
        PortMapping(protocol=6, internal_port=80, external_port=8080),
        QOS(maximum_outgoing_bandwidth_in_bytes=1_000_000, maximum_incoming_bandwidth_in_bytes=1_000_000),
    ),
)


@pytest.fixture
def tables() -> Entries:
    numbers, ownership = MemoryNumbers(), Ownership()
    ownership.replace("node", compile_node(FACTS, numbers).entries)
    ownership.replace("network", whole_network(NETWORK, FACTS, numbers).entries)
    ownership.replace("pod", compile_endpoint(POD, NETWORK, FACTS, numbers, 42, 7).everything())
    return ownership.tables()


def group(view: PortView, name: str) -> GroupView:
    return next(group for layer in view.layers for group in layer.groups if group.name == name)


def rules(view: PortView, name: str) -> list[tuple[int, str, str]]:
    return [(rule.id, ", ".join(rule.conditions), rule.action) for rule in group(view, name).rules]


def test_pod(tables: Entries) -> None:
    view = port_layers(tables, 42)
    assert (view.kind, view.scope, view.generation) == ("pod", 1, 7)
    assert view.flags == ("cap_in", "cap_out")
    assert (view.mac, view.addresses) == ("0E-2A-0A-F4-01-05", ("10.244.1.5",))
    names = [layer.name for layer in view.layers]
    assert names == ["GUARD", "LB", "PORTMAP", "ACL", "ROUTE", "NAT", "QOS", "L2"]
    assert rules(view, "ACL_IN") == [
        (2, "protocol tcp, local port 80", "allow"),
        (3, "protocol any, remote 10.0.0.0/8, remote port 1000-2000", "block"),
        (0, "any", "block: no rule matched"),
    ]
    assert rules(view, "ACL_OUT") == [(0, "any", "allow: no rules")]
    assert rules(view, "NAT_OUT") == [
        (0, "destination 10.244.0.0/16", "pass: not translated"),
        (1, "destination 0.0.0.0/0", "snat to 192.168.1.10 on the uplink"),
    ]
    assert rules(view, "PORTMAP_IN") == [
        (
            0,
            "ipv4 tcp, destination any node address port 8080",
            "rewrite destination to 10.244.1.5 port 80, port 42",
        )
    ]
    assert rules(view, "QOS_OUT") == [(0, "any", "cap 1000000 bytes/s, burst 81920 bytes")]
    assert rules(view, "L2_IN")[0][2].endswith("deliver through the host end's queue")
    assert rules(view, "GUARD_OUT")[-1] == (0, "any", "drop: spoofed")


def test_an_endpoints_own_routes_are_a_group_beside_the_networks(tables: Entries) -> None:
    policy = SDNRoute(destination_prefix="10.96.0.0/12", next_hop="192.168.1.77")
    routed = msgspec.structs.replace(POD, policies=(*POD.policies, policy))
    compiled = compile_endpoint(routed, NETWORK, FACTS, MemoryNumbers(), 42, 7).everything()
    view = port_layers({**tables, **compiled}, 42)
    assert rules(view, "ROUTE_OWN") == [
        (0, "destination 10.96.0.0/12", "uplink via 192.168.1.77, mtu 1500, ttl - 1")
    ]
    assert [g.name for layer in view.layers if layer.name == "ROUTE" for g in layer.groups] == [
        "ROUTE_OWN",
        "ROUTE_OUT",
    ]
    assert [g.name for layer in port_layers(tables, 42).layers for g in layer.groups].count("ROUTE_OWN") == 0


def test_routes_longest_first(tables: Entries) -> None:
    assert [(text, action) for _, text, action in rules(port_layers(tables, 42), "ROUTE_OUT")] == [
        ("destination 10.244.1.1/32", "host"),
        ("destination 192.168.1.10/32", "host"),
        ("destination 192.168.1.255/32", "drop: blackhole"),
        ("destination 10.244.1.0/24", "local endpoint"),
        (
            "destination 10.244.2.0/24",
            "encap vxlan vni 4096 to 192.168.1.11, inner mac 02-AA-00-00-00-02, mtu 1450, ttl - 1",
        ),
        ("destination 192.168.1.0/24", "uplink via on-link, mtu 1500, ttl - 1"),
        ("destination 0.0.0.0/0", "uplink via 192.168.1.1, mtu 1500, ttl - 1"),
    ]


def test_special_ports(tables: Entries) -> None:
    assert [(view.id, view.kind) for view in all_ports(tables)] == [
        (42, "pod"),
        (2, "uplink"),
        (5, "tunnel"),
        (7, "host"),
    ]
    assert rules(port_layers(tables, 5), "DECAP_IN") == [
        (4096, "vni 4096", "decap, scope 1"),
        (16777215, "vni 16777215", "decap, direct"),
    ]
    assert rules(port_layers(tables, 7), "HOST_OUT") == [
        (0, "destination 10.244.1.0/24", "scope 1"),
        (0, "destination 10.244.2.0/24", "scope 1"),
    ]
    assert len(rules(port_layers(tables, 2), "PORTMAP_IN")) == 1


def test_unknown_port(tables: Entries) -> None:
    with pytest.raises(NotFound):
        port_layers(tables, 43)


def test_a_missing_nexthop_shows(tables: Entries) -> None:
    broken = {**tables, "sw_nexthops": {}}
    actions = [action for _, _, action in rules(port_layers(broken, 42), "ROUTE_OUT")]
    assert sum(action.startswith("drop: nexthop") for action in actions) == 3


@pytest.mark.parametrize(
    ("flag", "name", "action"),
    [
        (PortFlag.BLOCKED, "GUARD_OUT", "drop: port blocked"),
        (PortFlag.NO_GUARD, "GUARD_OUT", "pass: guard off"),
        (PortFlag.TRANSPARENT, "L2_IN", "deliver as it is"),
    ],
)
def test_port_flags(tables: Entries, flag: PortFlag, name: str, action: str) -> None:
    port = tables["sw_ports"][Id(42)]
    assert isinstance(port, Port)
    changed: Entries = {**tables, "sw_ports": {Id(42): msgspec.structs.replace(port, flags=int(flag))}}
    assert rules(port_layers(changed, 42), name) == [(0, "any", action)]


def test_views_are_json(tables: Entries) -> None:
    decoded = msgspec.json.decode(msgspec.json.encode(all_ports(tables)))
    assert decoded[0]["layers"][0]["name"] == "GUARD"


def test_protocol_text() -> None:
    assert [protocol_text(number) for number in (6, 256, 99)] == ["tcp", "any", "99"]


def _service(tables: Entries, number: int, scope: int, flags: int = 0, members: int = 2) -> None:
    places = tuple(BackendPlace(number * 100 + i if i < members else 0, i) for i in range(CHUNK_BACKENDS))
    for i in range(members):
        address = parse_address(f"10.244.1.{i + 1}").packed
        row = Backend(address, 8080, 4, int(i == 1), number, 0, 1)
        tables.setdefault("sw_backends", {})[Id(number * 100 + i)] = row  # type: ignore[attr-defined]
    vip = parse_address(f"10.96.{number >> 8}.{number & 255}").packed
    rows = (
        ("sw_backend_sets", BackendChunkKey(number, 0), BackendChunk(places)),
        ("sw_services", ServiceKey(vip, 80, 6, 4, scope), Service(number, number, 1, flags, 10, ZERO)),
    )
    for table, key, value in rows:
        tables.setdefault(table, {})[key] = value  # type: ignore[attr-defined]


def test_services_of_a_scope() -> None:
    tables: Entries = {}
    _service(tables, 1, SCOPE_ANY, int(ServiceFlag.DSR))
    _service(tables, 2, SCOPE_OUTSIDE, int(ServiceFlag.REJECT), members=0)
    _service(tables, 3, 7)
    (one,) = service_rules(tables, 5)
    assert one.id == 1
    assert one.conditions == ("ipv4 tcp", "destination 10.96.0.1 port 80")
    assert one.action == (
        "to one of 2: 10.244.1.1:8080, 10.244.1.2:8080 (draining); clients stay 10 s; direct server return"
    )
    assert [rule.id for rule in service_rules(tables, 7)] == [1, 3]
    (outside,) = service_rules(tables, SCOPE_OUTSIDE)
    assert (outside.id, outside.action) == (2, "refuse: no backends")


def test_many_services_are_counted() -> None:
    tables: Entries = {}
    for number in range(1, SHOWN + 2):
        _service(tables, number, SCOPE_ANY)
    (rule,) = service_rules(tables, 1)
    assert rule.action == f"{SHOWN + 1} services: samewire get services"


def test_rules_say_what_they_are_called_and_how_often_they_judged(tables: Entries) -> None:
    """And tiers' rules have a name that says which."""
    counts: dict[Record, Record] = {RuleCountKey(42, 2, 0): Count(7), RuleCountKey(42, 3, 1): Count(9)}
    counted: Entries = {**tables, "sw_rule_counts": counts}
    found = group(port_layers(counted, 42, names=AclNames({2: "web"})), "ACL_IN").rules
    assert [(rule.name, rule.policy, rule.judged) for rule in found] == [
        ("2", "web", 7),
        ("3", "", 0),
        ("", "", None),
    ]
    assert rule_text(rule_number(4, 2)) == "4.2"
    assert rule_text(rule_number(1, network=True)) == "network 1"


def judged(view: PortView, name: str) -> list[int | None]:
    return [rule.judged for rule in group(view, name).rules]


def test_rules_of_every_layer_say_how_often_they_decided(tables: Entries) -> None:
    """NAT where it translated, host ports at the pod and at the uplink, services of all ports, routes where asked."""
    hop = next(
        route.nexthop
        for route in tables["sw_routes"].values()
        if isinstance(route, Route) and route.kind == 2
    )
    counts: dict[Record, Record] = {
        RuleCountKey(42, 1, COUNTED_NAT): Count(3),
        RuleCountKey(42, 4 << 24 | 6 << 16 | 8080, COUNTED_PORTMAP): Count(4),
        RuleCountKey(42, hop, COUNTED_ROUTE + 2): Count(5),
    }
    counted: dict[str, Mapping[Record, Record]] = {**tables, "sw_rule_counts": counts}
    _service(counted, 9, SCOPE_ANY)
    counted["sw_service_counts"] = {Id(9): ServiceCount(6, 1, 2)}
    view = port_layers(counted, 42)
    assert judged(view, "NAT_OUT") == [None, 3]
    assert judged(view, "PORTMAP_IN") == judged(port_layers(counted, 2), "PORTMAP_IN") == [4]
    assert judged(view, "LB_OUT") == [7]
    assert set(judged(view, "ROUTE_OUT")) == {None}
    assert set(judged(view, "GUARD_OUT")) == {None}
    slots = FACTS.flow_slots
    counted["sw_flow_counts"] = {Id(2 * slots - 1): FlowCount(0, 0)}
    routes = {rule.conditions[0]: rule.judged for rule in group(port_layers(counted, 42), "ROUTE_OUT").rules}
    assert routes["destination 10.244.2.0/24"] == 5
    assert set(routes.values()) == {0, 5}
    assert set(judged(port_layers(counted, 2), "ROUTE_IN")) == {None}


def test_names_of_rules_and_sets() -> None:
    rule = TierAclRule(rule_id="one", tier_acl_rule_action=AclAction.PASS, local_addresses="red")
    policies = (
        ACL(rule_id="mine", action=AclAction.ALLOW, direction=AclDirection.IN),
        TierAcl(direction=AclDirection.IN, tier_acl_rules=(rule, msgspec.structs.replace(rule, rule_id=""))),
    )
    network = Network(
        id="NET",
        type=NetworkType.OVERLAY,
        policies=(
            SetPolicy(set_id="red", values="10.0.0.1"),
            NetworkACL(action=AclAction.BLOCK, direction=AclDirection.IN, rule_id="all"),
        ),
    )
    names = acl_names(Endpoint(id="POD", network_id="NET", policies=policies), network)
    assert {rule_text(number): name for number, name in names.policies.items()} == {
        "network 2": "all",
        "1": "mine",
        "2.1": "one",
    }
    assert list(names.sets.values()) == ["red"]
    (first, *_) = incoming_rules(network.policies, policies, names.sets)
    assert (first.conditions, first.action) == (("protocol any", "remote set red"), "pass to the next tier")


@pytest.mark.parametrize("beside", [1, 70], ids=["short", "long"])
def test_what_a_rule_leaves_open_beside_those_that_do_not(beside: int) -> None:
    """In a long list what takes any answer stands by itself."""
    rule = ACL(action=AclAction.ALLOW, direction=AclDirection.IN)
    narrow = [
        msgspec.structs.replace(
            rule,
            protocols="6",
            local_ports=str(port),
            remote_addresses="0.0.0.0/0" if port == 80 else f"10.1.{port}.0/24",
            remote_ports="1000-1001",
        )
        for port in range(80, 80 + beside)
    ]
    wide = msgspec.structs.replace(rule, action=AclAction.BLOCK, local_addresses="10.0.0.1")
    found = {rule.conditions for rule in incoming_rules((), (*narrow, wide))}
    assert len(found) == beside + 1
    assert found >= {
        ("protocol any", "local 10.0.0.1/32"),
        ("protocol tcp", "remote 0.0.0.0/0", "remote port 1000-1001", "local port 80"),
    }


def incoming_rules(
    network: tuple[Policy, ...], policies: tuple[Policy, ...], set_names: Mapping[int, str] | None = None
) -> list[AclRuleView]:
    """The rules towards a pod, as they are read from the tables."""
    builder = Builder()
    incoming, _ = compile_acl(builder, "NET", network, policies)
    port = Port(
        1, 1, 0, NO_MAC, NO_MAC, (ZERO, ZERO), (ZERO, ZERO), 0, (incoming.table, 0), incoming.space, 0,
        (incoming.words, 0), (incoming.shape, 0), 1500,
    )  # fmt: skip
    return list(AclIndex(builder.compiled(HostBinding()).everything()).rules(port, 0, set_names))
