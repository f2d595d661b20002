"""A healthy node has no findings, and every ailment has one of its own."""

from __future__ import annotations

from collections import UserDict
from collections.abc import AsyncIterator, Callable, ItemsView
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from samewire.errors import KernelError
from samewire.hcn.client import AsyncHnsClient
from samewire.hcn.http import HttpServer, make_app
from samewire.hcn.policies import ACL, VLAN, VSID, AclAction, AclDirection, RemoteSubnetRoute, SetPolicy
from samewire.hcn.schema import Ipam, Network, NetworkType, ObjectState, Subnet
from samewire.hcn.service import HnsService
from samewire.hcn.store import Store
from samewire.node import toolview
from samewire.trace import doctor_service
from samewire.trace.doctor import examine
from samewire.trace.doctor_acl import sets
from samewire.trace.doctor_switch import remote_endpoints
from samewire.trace.snapshot import (
    BalancerInfo,
    Finding,
    Level,
    LinkInfo,
    Snapshot,
    SourceInfo,
    TunnelTraffic,
)
from samewire.vfp.address import parse_address, parse_interface
from samewire.vfp.compile import compile_sets
from samewire.vfp.compile.acl import compile_acl
from samewire.vfp.compile.builder import Builder
from samewire.vfp.constants import SCOPE_UPLINK, FlowFlag, PortFlag, Reason, TcpFlag
from samewire.vfp.model import HostBinding
from samewire.vfp.record import Record
from samewire.vfp.simulate.entries import tuple_of
from samewire.vfp.simulate.packet import Tuple
from samewire.vfp.simulate.state import make_key
from samewire.vfp.tables import (
    Action,
    Count,
    DropKey,
    Endpoint,
    EndpointKey,
    Flow,
    FlowKey,
    Id,
    Nexthop,
    Port,
    Vni,
)
from tests.support.hcn import FakeSwitch
from tests.support.tools import (
    CLIENT_ID,
    CLIENT_PORT,
    FACTS,
    HOST,
    INFOS,
    NETWORK,
    TUNNEL,
    UPLINK,
    WEB_PORT,
    compiled,
    probe,
    remote_subnet,
)
from tests.unit.test_trace_views import play

LINKS = (
    LinkInfo("eth0", UPLINK, "veth", 1500, True, False),
    LinkInfo("swvxlan0", TUNNEL, "vxlan", 65485, True, True),
    LinkInfo("samewire0", HOST, "veth", 1500, True, True),
)
HEALTHY = Snapshot(
    facts=FACTS,
    networks=(NETWORK,),
    endpoints=INFOS,
    tables=compiled(),
    differences=(),
    degraded={},
    live_namespaces=frozenset({"/run/netns/web", "/run/netns/client"}),
    links=LINKS,
    sysctls={"net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/samewire0/rp_filter": "2"},
    kernel_stats={"Udp.NoPorts": 3, "TcpExt.IPReversePathFilter": 0},
    flow_capacity=1000,
    ageing_ticks=(10, 14),
)
NOTHING = Action(0, 0, 0, 0, 0, bytes(16), bytes(16))


def facts(**changed: Any) -> Snapshot:
    return replace(HEALTHY, facts=replace(FACTS, **changed))


def network(*routes: RemoteSubnetRoute) -> Snapshot:
    return replace(HEALTHY, networks=(replace(NETWORK, policies=routes),))


def links(*changed: LinkInfo) -> Snapshot:
    names = {link.name for link in changed}
    return replace(HEALTHY, links=(*changed, *(link for link in LINKS if link.name not in names)))


def tables(table: str, rows: dict[Any, Any]) -> Snapshot:
    assert HEALTHY.tables is not None
    return replace(HEALTHY, tables={**HEALTHY.tables, table: {**HEALTHY.tables.get(table, {}), **rows}})


def port(**changed: Any) -> Snapshot:
    assert HEALTHY.tables is not None
    found = HEALTHY.tables["sw_ports"][Id(WEB_PORT)]
    assert isinstance(found, Port)
    return tables("sw_ports", {Id(WEB_PORT): replace(found, **changed)})


def drops(reason: Reason) -> Snapshot:
    return tables("sw_drops", {DropKey(1, 0, 1, reason, 1): Count(2), DropKey(2, 0, 1, reason, 1): Count(3)})


def flows(
    count: int,
    flags: int = FlowFlag.SECOND | FlowFlag.PAIR,
    low: int = 49152,
    protocol: int = 17,
    tcp: tuple[int, int] = (0, 0),
    sources: tuple[str, ...] = ("192.168.1.10",),
) -> Snapshot:
    """So many ports of the pool in use towards one service, by turns of these addresses; the pool has 100."""
    rows = {}
    for number in range(count):
        source = parse_address(sources[number % len(sources)]).packed
        remote = parse_address("8.8.8.8").packed
        key, direction = make_key(Tuple(source, remote, low + number, 53), SCOPE_UPLINK, 4, protocol)
        initiator = FlowFlag.INITIATOR if direction else 0
        rows[key] = Flow((NOTHING, NOTHING), (0, 0), (0, 0), (0, 0), 1, 0, 0, flags | initiator, tcp, 1)
    full = tables("sw_flows", rows)
    return replace(full, facts=replace(FACTS, nat_port_low=49152, nat_port_high=49251))


OPEN = (TcpFlag.DATA, TcpFlag.DATA)
HALF_CLOSED = (TcpFlag.DATA | TcpFlag.FIN, TcpFlag.DATA)
CLOSED = (TcpFlag.DATA | TcpFlag.FIN, TcpFlag.DATA | TcpFlag.FIN)
STREAM = FlowFlag.STREAM
ANSWERED = FlowFlag.SECOND | FlowFlag.PAIR | FlowFlag.REPLIED


def of_hundred(snapshot: Snapshot) -> Snapshot:
    """With a flow table that has place for a hundred."""
    return replace(snapshot, flow_capacity=100)


def remote(address: str, provider: str) -> Snapshot:
    hop = Nexthop(
        2, 4, 1450, 0, 4096, parse_address(provider).packed, parse_address("192.168.1.10").packed, bytes(6)
    )
    key = EndpointKey(parse_address(address).packed, 1, 4)
    with_hop = tables("sw_nexthops", {Id(77): hop})
    assert with_hop.tables is not None
    rows = {**with_hop.tables["sw_endpoints"], key: Endpoint(0, 77, bytes(6))}
    return replace(with_hop, tables={**with_hop.tables, "sw_endpoints": rows})


def in_vlan(number: int) -> Snapshot:
    """With one more network, which is a VLAN."""
    bridge = Network(name="cbr0", type=NetworkType.L2BRIDGE, policies=(VLAN(isolation_id=number),))
    return replace(HEALTHY, networks=(*HEALTHY.networks, bridge))


def test_healthy() -> None:
    assert examine(HEALTHY) == []
    assert examine(in_vlan(7)) == []
    assert examine(replace(in_vlan(7), facts=replace(FACTS, uplink_vlan=7))) == []
    assert examine(asking("10.96.0.10", API, DNS, replace(DNS, active=0))) == []
    outside = replace(API, vips=("192.0.2.80",), inside=False)
    for elsewhere in ("192.0.2.53", "9.9.9.9", "fd00:97::a"):
        assert examine(asking(elsewhere, API, outside)) == [], elsewhere


ERROR, WARNING = Level.ERROR, Level.WARNING
ISOLATED = replace(NETWORK, type=NetworkType.PRIVATE)


def asking(server: str, *found: BalancerInfo) -> Snapshot:
    """Two pods were given a name server."""
    return replace(HEALTHY, name_servers={server: 2}, balancers=found)


DNS = BalancerInfo("kube-system/kube-dns:dns", ("10.96.0.10", "fd00:96::a"), ((17, 53),))
API = BalancerInfo("default/kubernetes:https", ("10.96.0.1", "fd00:96::1"), ((6, 443),))
AILMENTS: list[tuple[str, Snapshot, Level, str, str]] = [
    ("no uplink", facts(uplink_ifindex=0), ERROR, "uplink", "no uplink"),
    (
        "an uplink that is not there",
        replace(facts(uplink_ifindex=0), configured_uplink="eth7"),
        ERROR,
        "uplink",
        "the NIC eth7 of the configuration is not here",
    ),
    (
        "services unknown",
        replace(HEALTHY, lost_sources=(SourceInfo("EndpointSlice", False, "403 Forbidden"),)),
        ERROR,
        "kubernetes",
        "not known at all, and no Service is written before all kinds are: 403 Forbidden",
    ),
    (
        "no API server",
        replace(HEALTHY, lost_sources=(SourceInfo("Service", True, "refused"),)),
        WARNING,
        "kubernetes",
        "changes do not arrive; what was known stays: refused",
    ),
    (
        "a name that no Node has",
        replace(HEALTHY, unknown_name="node-9"),
        ERROR,
        "kubernetes",
        "the cluster has no Node node-9: no endpoint of a Service counts as this node's",
    ),
    (
        "a network for Services that nobody makes",
        replace(HEALTHY, missing_network="cbr1"),
        WARNING,
        "service",
        "there is no network cbr1 on this node",
    ),
    (
        "a service that cannot be",
        replace(HEALTHY, failed_services={"shop/web": "port 80 is taken"}),
        ERROR,
        "service",
        "not in the switch: port 80 is taken",
    ),
    (
        "a load balancer that is not in the switch",
        replace(HEALTHY, balancers=(replace(API, present=False),)),
        ERROR,
        "balancer",
        "could not be compiled",
    ),
    (
        "backends where no pod is",
        replace(HEALTHY, balancers=(replace(API, lost=("10.244.1.9 port 80",)),)),
        WARNING,
        "balancer",
        "it names 1 backend of this node's pod subnets where no pod is: 10.244.1.9 port 80;",
    ),
    (
        "nobody behind the name server",
        asking("10.96.0.10", API, replace(DNS, active=0)),
        ERROR,
        "name-server",
        "2 endpoints ask this server for names, and no pod is behind its Service",
    ),
    (
        "no name server",
        asking("10.96.0.10", API),
        WARNING,
        "name-server",
        "no load balancer has this address",
    ),
    (
        "the same by IPv6",
        asking("fd00:96::a", API),
        WARNING,
        "name-server",
        "no load balancer has this address",
    ),
    (
        "not at its port",
        asking("10.96.0.10", replace(DNS, ports=((6, 53),))),
        WARNING,
        "name-server",
        "at UDP port 53",
    ),
    ("uplink down", links(replace(LINKS[0], up=False)), ERROR, "uplink", "the uplink is down"),
    ("uplink gone", replace(HEALTHY, links=LINKS[1:]), ERROR, "uplink", "the uplink is down"),
    (
        "APIPA",
        facts(addresses=(parse_interface("169.254.3.4/16"), *FACTS.addresses[1:])),
        ERROR,
        "management-address",
        "APIPA",
    ),
    (
        "no default route",
        facts(gateways=FACTS.gateways[:1]),
        WARNING,
        "default-route",
        "no IPv6 default route",
    ),
    (
        "no IPv6",
        facts(addresses=FACTS.addresses[:1]),
        WARNING,
        "families",
        "endpoints with IPv6 addresses: 2",
    ),
    (
        "a tag within a tag",
        replace(in_vlan(7), facts=replace(FACTS, uplink_vlan=8)),
        ERROR,
        "vlan",
        "the network's tag, VLAN 7, is within that one",
    ),
    (
        "a device beside the pods",
        replace(in_vlan(7), facts=replace(FACTS, vlans=(7, 9))),
        WARNING,
        "vlan",
        "a device of the node is in VLAN 7",
    ),
    (
        "one VNI for two networks",
        replace(HEALTHY, networks=(NETWORK, replace(NETWORK, id="2", name="other", policies=()))),
        ERROR,
        "vni",
        "VNI 4096 belongs to 2 networks",
    ),
    (
        "another VNI over there",
        network(remote_subnet("10.244.2.0/24", vni=4097)),
        WARNING,
        "vni",
        "the route says VNI 4097, the network's subnets 4096",
    ),
    (
        "overlapping pod subnets",
        network(remote_subnet("10.244.0.0/16")),
        ERROR,
        "remote-subnet",
        "covers the network's own subnet",
    ),
    (
        "a route to oneself",
        network(remote_subnet("10.244.2.0/24", "192.168.1.10")),
        ERROR,
        "remote-subnet",
        "leads to this node itself",
    ),
    (
        "two nodes with one router MAC",
        network(remote_subnet("10.244.2.0/24"), remote_subnet("10.244.3.0/24", "192.168.1.12")),
        ERROR,
        "router-mac",
        "192.168.1.11, 192.168.1.12 is also that of another node",
    ),
    (
        "our own router MAC",
        facts(tunnel_mac=bytes.fromhex("02bb00000002")),
        ERROR,
        "router-mac",
        "is also that of this node",
    ),
    ("tunnel gone", replace(HEALTHY, links=(LINKS[0], LINKS[2])), ERROR, "tunnel", "missing: pods cannot"),
    (
        "tunnel's port taken",
        links(replace(LINKS[1], up=False), LinkInfo("flannel.1", 30, "vxlan", 1450, True, False)),
        ERROR,
        "tunnel",
        "flannel.1 may hold UDP port 4789; 3 UDP datagrams came",
    ),
    (
        "tunnel's port taken, and no overlay yet",
        replace(links(replace(LINKS[1], up=False)), networks=()),
        ERROR,
        "tunnel",
        "down: no overlay network can be made",
    ),
    (
        "strict rp_filter towards the node",
        replace(HEALTHY, sysctls={"net/ipv4/conf/all/rp_filter": "1"}),
        ERROR,
        "rp-filter",
        "strict",
    ),
    (
        "strict rp_filter that bites",
        replace(
            HEALTHY,
            sysctls={**HEALTHY.sysctls, "net/ipv4/conf/eth0/rp_filter": "1"},
            kernel_stats={"TcpExt.IPReversePathFilter": 12},
        ),
        WARNING,
        "rp-filter",
        "has dropped 12 packets",
    ),
    ("NodePorts", facts(nat_port_low=32000), WARNING, "nat-range", "overlaps the NodePort range"),
    ("state", replace(HEALTHY, unkept="it was deleted"), ERROR, "state", "deleted"),
    ("trouble", replace(HEALTHY, trouble="its MTU is too small"), ERROR, "state", "MTU"),
    ("drift", replace(HEALTHY, differences=("table sw_ports: x",)), ERROR, "diff", "does not hold"),
    (
        "degraded endpoint",
        replace(HEALTHY, degraded={CLIENT_ID: "its veth cannot be made again"}),
        ERROR,
        "endpoint",
        "its veth cannot be made again",
    ),
    (
        "bad state",
        replace(HEALTHY, endpoints=(replace(INFOS[0], state=ObjectState.DEGRADED), *INFOS[1:])),
        ERROR,
        "endpoint",
        "its state is degraded",
    ),
    (
        "attached without port",
        replace(HEALTHY, endpoints=(replace(INFOS[0], port=0), *INFOS[1:])),
        ERROR,
        "endpoint",
        "attached and has no port",
    ),
    (
        "dead namespace",
        replace(HEALTHY, live_namespaces=frozenset({"/run/netns/web"})),
        WARNING,
        "namespace",
        "/run/netns/client is gone",
    ),
    ("blocked port", port(flags=int(PortFlag.BLOCKED)), ERROR, "port", "blocked"),
    (
        "unknown port",
        replace(HEALTHY, endpoints=(replace(INFOS[0], port=50), *INFOS[1:])),
        ERROR,
        "port",
        "does not know its port",
    ),
    (
        "remote endpoint elsewhere",
        remote("10.244.2.9", "192.168.1.12"),
        WARNING,
        "remote-endpoint",
        "behind 192.168.1.12, its subnet behind 192.168.1.11",
    ),
    (
        "remote endpoint here",
        remote("10.244.2.9", "192.168.1.10"),
        WARNING,
        "remote-endpoint",
        "behind this node itself",
    ),
    (
        "MTU above the tunnel's",
        port(mtu=1500),
        WARNING,
        "mtu",
        "MTU 1500, the way to other nodes carries 1450",
    ),
    ("MTU below IPv6's", port(mtu=1200), ERROR, "mtu", "IPv6 needs 1280"),
    (
        "tunnel shut",
        replace(HEALTHY, tunnel=TunnelTraffic(arrived=3, received=0, failed=0)),
        ERROR,
        "tunnel",
        "3 frames of other nodes came to this node's UDP port 4789",
    ),
    (
        "nothing gets out",
        replace(HEALTHY, tunnel=TunnelTraffic(arrived=0, received=0, failed=1)),
        WARNING,
        "tunnel",
        "1 frame to other nodes could not be sent",
    ),
    ("NAT pool filling", flows(85), WARNING, "nat-pool", "85 of 100 ports"),
    ("NAT pool full", flows(96), ERROR, "nat-pool", "96 of 100 ports"),
    ("NAT pool full of the node's", flows(96, FlowFlag.HOST), ERROR, "nat-pool", "96 of 100 ports"),
    ("NAT pool full of streams", flows(96, ANSWERED | STREAM), ERROR, "nat-pool", "96 of 100 ports"),
    ("NAT pool full of TCP", flows(96, protocol=6, tcp=OPEN), ERROR, "nat-pool", "96 of 100 ports"),
    (
        "NAT pool full of half ends",
        flows(96, protocol=6, tcp=HALF_CLOSED),
        ERROR,
        "nat-pool",
        "96 of 100 ports",
    ),
    ("flow table filling", of_hundred(flows(85, STREAM)), WARNING, "flow-table", "connections are dropped"),
    ("flow table full", of_hundred(flows(96, STREAM)), ERROR, "flow-table", "connections are dropped"),
    (
        "flow table full of connections",
        of_hundred(flows(96, FlowFlag.REPLIED, low=10000, protocol=6, tcp=OPEN)),
        ERROR,
        "flow-table",
        "connections are dropped",
    ),
    ("flow table full of questions", of_hundred(flows(100, 0)), WARNING, "flow-table", "100 of it with"),
    (
        "flow table full of what has ended",
        of_hundred(flows(100, FlowFlag.REPLIED, low=10000, protocol=6, tcp=CLOSED)),
        WARNING,
        "flow-table",
        "100 of it with",
    ),
    (
        "flow table full of handshakes",
        of_hundred(flows(100, FlowFlag.REPLIED, low=10000, protocol=6)),
        WARNING,
        "flow-table",
        "100 of it with",
    ),
    ("ageing stands", replace(HEALTHY, ageing_ticks=(7, 7)), ERROR, "ageing", "stands still"),
    ("internal drops", drops(Reason.INTERNAL), ERROR, "drops", "5 packets dropped"),
    ("unknown VNI", drops(Reason.UNKNOWN_VNI), WARNING, "drops", "5 packets dropped"),
    ("pool exhausted once", drops(Reason.NAT_EXHAUSTED), WARNING, "drops", "5 packets dropped"),
]


@pytest.mark.parametrize(
    ("snapshot", "level", "check", "text"),
    [ailment[1:] for ailment in AILMENTS],
    ids=[ailment[0] for ailment in AILMENTS],
)
def test_ailments(snapshot: Snapshot, level: Level, check: str, text: str) -> None:
    found = examine(snapshot)
    assert {(finding.level, finding.check) for finding in found} == {(level, check)}, found
    assert any(text in finding.message for finding in found), found
    for finding in found:
        assert finding.object
        assert finding.remedy.strip()


def test_a_remote_endpoint_is_named_by_its_address_and_network() -> None:
    """Of several remote endpoints, one of which has the same address in another network."""
    far = INFOS[-1]
    other = replace(NETWORK, id="other", ipams=(Ipam(subnets=(overlay_subnet("10.244.1.0/24", 4097),)),))
    snapshot = remote("10.244.2.9", "192.168.1.12")
    assert snapshot.tables is not None
    scope = snapshot.tables["sw_vnis"][Id(4096)]
    assert isinstance(scope, Vni)
    vnis = {**snapshot.tables["sw_vnis"], Id(4097): Vni(scope.scope + 1)}
    strangers = (
        replace(far, id="twin", name="twin", network_id="other"),
        replace(far, id="near", name="near", addresses=("10.244.2.90",)),
    )
    both = replace(
        snapshot,
        networks=(other, NETWORK),
        endpoints=(*strangers, *INFOS),
        tables={**snapshot.tables, "sw_vnis": vnis},
    )
    named = [one.object for one in remote_endpoints(both)]
    assert named == ["far (10.244.2.9)"]
    assert [one.object for one in remote_endpoints(replace(both, endpoints=strangers))] == ["10.244.2.9"]


def overlay_subnet(prefix: str, vni: int) -> Subnet:
    return Subnet(ip_address_prefix=prefix, policies=(VSID(isolation_id=vni),))


@pytest.mark.parametrize(
    "snapshot",
    [
        drops(Reason.BLOCKED),
        drops(Reason.MULTICAST),
        flows(79),
        flows(96, FlowFlag.PAIR),
        flows(96, sources=("192.168.1.10", "192.168.1.77")),
        flows(96, low=10000),
        replace(HEALTHY, tunnel=TunnelTraffic(arrived=3, received=1, failed=0)),
        replace(HEALTHY, tunnel=TunnelTraffic(arrived=0, received=0, failed=0)),
        flows(96, protocol=6, tcp=CLOSED),
        flows(96, protocol=6, tcp=(TcpFlag.DATA | TcpFlag.RST, TcpFlag.DATA)),
        port(mtu=1450),
        remote("10.244.2.9", "192.168.1.11"),
        remote("10.99.0.1", "192.168.1.12"),
        network(remote_subnet("10.244.2.0/24"), remote_subnet("fd00:244:2::/64", "fd00:1::11")),
        replace(HEALTHY, networks=(), links=LINKS[:1]),
        replace(HEALTHY, sysctls={**HEALTHY.sysctls, "net/ipv4/conf/eth0/rp_filter": "1"}),
        replace(HEALTHY, sysctls={**HEALTHY.sysctls, "net/ipv4/conf/samewire0/rp_filter": "?"}),
    ],
)
def test_what_is_no_ailment(snapshot: Snapshot) -> None:
    assert examine(snapshot) == []


@pytest.mark.parametrize(
    ("target", "found"), [(TcpFlag.DATA, ["nat-pool"]), (TcpFlag.DATA | TcpFlag.FIN, [])]
)
def test_each_entry_of_a_pair_has_seen_one_end(target: int, found: list[str]) -> None:
    """Of a connection through NAT; the pool has one port."""
    played = play(compiled(), (probe("10.244.1.6", "93.184.216.34"), CLIENT_PORT))
    rows = {}
    for key, flow in played["sw_flows"].items():
        assert isinstance(flow, Flow)
        second = bool(flow.flags & FlowFlag.SECOND)
        rows[key] = replace(flow, tcp=(0, target) if second else (TcpFlag.DATA | TcpFlag.FIN, 0))
        if isinstance(key, FlowKey) and second:
            ends = tuple_of(key, flow.flags & FlowFlag.INITIATOR)
    assert len(rows) == 2
    used = replace(FACTS, nat_port_low=ends.source_port, nat_port_high=ends.source_port)
    snapshot = replace(HEALTHY, tables={**played, "sw_flows": rows}, facts=used)
    assert [finding.check for finding in examine(snapshot)] == found


@pytest.mark.parametrize(("provider", "found"), [("192.168.1.11", 0), ("fd00:1::11", 2)])
def test_tunnels_need_an_address_of_their_family(provider: str, found: int) -> None:
    """The node has lost its IPv6 address: pods that go to other nodes by IPv4 do not mind, whatever they speak."""
    routes = (remote_subnet("10.244.2.0/24", provider), remote_subnet("fd00:244:2::/64", provider))
    lost = replace(network(*routes), facts=replace(FACTS, addresses=FACTS.addresses[:1]))
    errors = [finding for finding in examine(lost) if finding.level is ERROR]
    assert [finding.check for finding in errors] == (["remote-subnet"] if found else [])
    assert all(f"{found} routes to other nodes by IPv6" in finding.message for finding in errors)


def test_isolated_networks_need_no_way_out() -> None:
    lone = replace(facts(addresses=FACTS.addresses[:1]), networks=(ISOLATED,))
    assert not [finding for finding in examine(lone) if finding.check == "families"]


def test_a_node_without_addresses() -> None:
    checks = [finding.check for finding in examine(facts(addresses=(), gateways=()))]
    assert checks == ["management-address"]


@pytest.mark.parametrize(
    ("field", "what"),
    [
        ("tables", "the switch's tables"),
        ("differences", "the difference between wanted and kernel"),
        ("live_namespaces", "network namespaces"),
        ("links", "network devices"),
        ("kernel_stats", "the kernel's counters"),
        ("ageing_ticks", "the ageing timer"),
    ],
)
def test_what_could_not_be_read_is_a_finding(field: str, what: str) -> None:
    (finding,) = examine(replace(HEALTHY, **{field: None}))
    assert (finding.level, finding.check, finding.object) == (ERROR, "readable", what)


def with_rules(*rules: ACL) -> Snapshot:
    """The web pod has rules, and its network two sets, of which one holds the pod."""
    here = SetPolicy(set_id="here", values="10.244.1.0/24")
    network = replace(NETWORK, policies=(here, SetPolicy(set_id="clients", values="10.9.0.0/16")))
    builder = Builder()
    references = compile_acl(builder, network.id, network.policies, rules)
    tables = {
        **compiled(),
        **builder.compiled(HostBinding()).everything(),
        **compile_sets(network, 1).entries,
    }
    port = tables["sw_ports"][Id(WEB_PORT)]
    assert isinstance(port, Port)
    changed = replace(
        port,
        acl_table=(references[0].table, references[1].table),
        acl_words=(references[0].words, references[1].words),
        acl_shape=(references[0].shape, references[1].shape),
        acl_space=references[0].space or references[1].space,
    )
    return replace(HEALTHY, tables={**tables, "sw_ports": {**tables["sw_ports"], Id(WEB_PORT): changed}})


def rule(direction: AclDirection, **fields: Any) -> ACL:
    return ACL(action=AclAction.ALLOW, direction=direction, **fields)


@pytest.mark.parametrize(
    ("direction", "own", "other"),
    [
        (AclDirection.IN, "remote_addresses", "local_addresses"),
        (AclDirection.OUT, "local_addresses", "remote_addresses"),
    ],
)
def test_a_rule_whose_sets_are_in_the_wrong_field(direction: AclDirection, own: str, other: str) -> None:
    right = (rule(direction, **{own: "here", other: "clients"}), rule(direction, **{other: "clients"}))
    assert examine(with_rules(*right)) == []
    (finding,) = examine(with_rules(*right, rule(direction, **{own: "clients"})))
    assert (finding.level, finding.check, finding.object) == (WARNING, "acl", "shop/web-0")
    assert finding.message.startswith(f"rule 3 ({direction.value}) asks in ")


class Read(UserDict[Record, Record]):
    """A table that counts how often all of it is asked for."""

    times = 0

    def items(self) -> ItemsView[Record, Record]:
        self.times += 1
        return super().items()


def test_rules_are_gone_through_once_and_not_for_each_pod() -> None:
    one = with_rules(rule(AclDirection.IN, remote_addresses="clients"))
    assert one.tables is not None
    counting = {name: Read(one.tables[name]) for name in ("sw_acl_rules", "sw_acl_sets")}
    ports = {Id(9000 + number): one.tables["sw_ports"][Id(WEB_PORT)] for number in range(50)}
    (web,) = (info for info in one.endpoints if info.port == WEB_PORT)
    pods = tuple(replace(web, port=port.value) for port in ports)
    found = list(sets(replace(one, endpoints=pods, tables={**one.tables, **counting, "sw_ports": ports})))
    assert len(found) == len(pods)
    assert [table.times for table in counting.values()] == [1, 1]


def test_errors_come_first() -> None:
    both = replace(drops(Reason.UNKNOWN_VNI), ageing_ticks=(7, 7), live_namespaces=frozenset())
    assert [finding.level for finding in examine(both)] == [ERROR, WARNING, WARNING, WARNING]


# --- over HTTP ------------------------------------------------------------------------------------


class Provider:
    """Hands out a snapshot."""

    def __init__(self) -> None:
        self.current = HEALTHY

    async def snapshot(self) -> Snapshot:
        return self.current


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[Provider, Callable[[], Any]]]:
    store, provider = Store(tmp_path / "hns.db"), Provider()
    path = tmp_path / "s.sock"
    server = HttpServer(make_app(HnsService(store, FakeSwitch()), doctor_service.routes(provider)), path)
    await server.start()
    client = AsyncHnsClient(path)
    yield provider, lambda: client.get_json("/v2/doctor")
    await server.close()
    store.close()


async def test_over_http(served: tuple[Provider, Callable[[], Any]]) -> None:
    provider, ask = served
    assert await ask() == {"healthy": True, "findings": []}
    provider.current = drops(Reason.UNKNOWN_VNI)
    warned = await ask()
    assert warned["healthy"] is True
    assert warned["findings"][0]["level"] == "warning"
    provider.current = replace(HEALTHY, ageing_ticks=(7, 7))
    sick = await ask()
    assert sick["healthy"] is False
    assert set(sick["findings"][0]) == set(Finding.__struct_fields__)


def test_networks_by_id_when_they_have_no_name() -> None:
    nameless: Network = replace(NETWORK, name="")
    (finding,) = examine(replace(HEALTHY, networks=(nameless,), links=(LINKS[0], LINKS[2])))
    assert NETWORK.id in finding.message


@pytest.mark.parametrize(
    ("read", "found"),
    [([7, 8], (7, 8)), ([7, 7, 7, 8], (7, 8)), ([7] * 20, (7, 7)), ([None], None), ([7, None], None)],
)
async def test_a_timer_that_is_late_does_not_stand_still(
    read: list[int | None], found: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU that runs it may be given no time for a while."""
    monkeypatch.setattr(toolview, "_AGEING_LOOK_S", 0)
    left = iter(read)

    def tick() -> int:
        value = next(left)
        if value is None:
            raise KernelError("read sw_counters", 5)
        return value

    assert await toolview.ticks_of(tick) == found
