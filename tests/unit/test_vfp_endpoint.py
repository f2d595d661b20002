"""Endpoints: ports, addresses, host ports, caps, links."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from samewire.errors import Invalid
from samewire.hcn.policies import (
    ACL,
    QOS,
    VSID,
    AclAction,
    AclDirection,
    EncapOverhead,
    InterfaceParameters,
    L4Proxy,
    NatFlags,
    OutBoundNAT,
    Policy,
    PortMapping,
    PortName,
    ProviderAddress,
    RemoteSubnetRoute,
    SDNRoute,
)
from samewire.hcn.schema import (
    Endpoint,
    EndpointFlags,
    Ipam,
    IpConfiguration,
    Network,
    NetworkType,
    RouteEntry,
    SdnRoute,
    Subnet,
)
from samewire.hcn.schema import Route as RouteObject
from samewire.vfp.address import ZERO, address_text, parse_address, parse_interface, parse_mac, parse_prefix
from samewire.vfp.compile import compile_endpoint, compile_link
from samewire.vfp.compile.link import check_overhead
from samewire.vfp.compile.plan import gateway_mac
from samewire.vfp.constants import (
    NAT_KEY_BITS,
    OWN_ROUTE_KEY_BITS,
    ROUTE_KEY_BITS,
    SCOPE_HOST,
    PortFlag,
    RouteFlag,
    RouteKind,
)
from samewire.vfp.model import (
    LINK_ALIAS,
    LINK_GROUP,
    Compiled,
    HostBinding,
    HostRoute,
    LinkNeighbour,
    LinkRoute,
    NodeFacts,
    PortLink,
)
from samewire.vfp.numbers import MemoryNumbers
from samewire.vfp.tables import (
    AclRuleKey,
    Bucket,
    EndpointKey,
    Id,
    NatKey,
    Nexthop,
    OwnRouteKey,
    Port,
    Portmap,
    PortmapKey,
    Route,
    RouteKey,
)
from samewire.vfp.tables import Endpoint as EndpointRecord

FACTS = NodeFacts(
    name="node-1",
    uplink_ifindex=2,
    uplink_mac=b"\x02uplnk",
    uplink_mtu=1500,
    addresses=(parse_interface("192.168.1.10/24"), parse_interface("fd00:1::10/64")),
    gateways=(parse_address("192.168.1.1"),),
    tunnel_ifindex=5,
)
MAC = "0E-2A-0A-F4-01-05"
POD_ID = "1A2B3C4D-5E6F-4A7B-8C9D-0123456789AB"


def subnet(prefix: str, gateway: str, vni: int = 0) -> Subnet:
    default = RouteEntry(next_hop=gateway, destination_prefix="::/0" if ":" in gateway else "0.0.0.0/0")
    policies = (VSID(isolation_id=vni),) if vni else ()
    return Subnet(ip_address_prefix=prefix, policies=policies, routes=(default,) if gateway else ())


def network(kind: NetworkType, *subnets: Subnet, policies: tuple[Policy, ...] = ()) -> Network:
    return Network(id="NET-1", type=kind, ipams=(Ipam(subnets=subnets),), policies=policies)


OVERLAY = network(
    NetworkType.OVERLAY,
    subnet("10.244.1.0/24", "10.244.1.1", 4096),
    subnet("fd00:244:1::/64", "fd00:244:1::1", 4096),
    policies=(
        RemoteSubnetRoute(
            destination_prefix="10.244.2.0/24",
            isolation_id=4096,
            provider_address="192.168.1.11",
            distributed_router_mac_address="02-AA-00-00-00-02",
        ),
    ),
)
BRIDGE = network(
    NetworkType.L2BRIDGE, subnet("192.168.1.0/24", "192.168.1.1"), subnet("fd00:1::/64", "fd00:1::1")
)


def pod(*addresses: str, policies: tuple[Policy, ...] = (), **fields: Any) -> Endpoint:
    configurations = tuple(IpConfiguration(ip_address=address) for address in addresses)
    return Endpoint(
        id=POD_ID,
        network_id="NET-1",
        mac_address=MAC,
        ip_configurations=configurations,
        policies=policies,
        **fields,
    )


def compiled(
    endpoint: Endpoint, net: Network = OVERLAY, numbers: MemoryNumbers | None = None
) -> tuple[Compiled, Port]:
    result = compile_endpoint(endpoint, net, FACTS, numbers or MemoryNumbers(), 42, 7)
    port = result.entries["sw_ports"][Id(42)]
    assert isinstance(port, Port)
    return result, port


def test_port_and_addresses() -> None:
    result, port = compiled(pod("10.244.1.5", "fd00:244:1::5"))
    four, six = parse_address("10.244.1.5").packed, parse_address("fd00:244:1::5").packed
    assert port == Port(
        generation=7,
        scope=1,
        flags=0,
        mac=parse_mac(MAC),
        gateway_mac=gateway_mac("NET-1"),
        address=(four, six),
        gateway=(parse_address("10.244.1.1").packed, parse_address("fd00:244:1::1").packed),
        nat_set=0,
        acl_table=(0, 0),
        acl_space=0,
        route_set=0,
        acl_words=(0, 0),
        acl_shape=(0, 0),
        mtu=1450,
    )
    assert result.entries["sw_endpoints"] == {
        EndpointKey(four, 1, 4): EndpointRecord(42, 0, parse_mac(MAC)),
        EndpointKey(six, 1, 6): EndpointRecord(42, 0, parse_mac(MAC)),
    }
    assert set(result.entries) == {"sw_ports", "sw_endpoints"}
    assert result.binding == HostBinding()


def test_own_default_route_names_the_gateway() -> None:
    own = RouteEntry(next_hop="10.244.1.2", destination_prefix="0.0.0.0/0")
    _, port = compiled(pod("10.244.1.5", routes=(own,)))
    assert port.gateway == (parse_address("10.244.1.2").packed, ZERO)


def test_acl_nat_and_routes_are_in() -> None:
    policies = (
        OutBoundNAT(exceptions=("10.244.0.0/16",)),
        ACL(action=AclAction.ALLOW, direction=AclDirection.IN, local_ports="80", protocols="6"),
        SDNRoute(destination_prefix="10.96.0.0/12", need_encap=True),
    )
    numbers = MemoryNumbers()
    result, port = compiled(pod("10.244.1.5", policies=policies), numbers=numbers)
    assert (port.acl_words, port.acl_space) == ((1, 0), 0)
    assert port.nat_set == 1
    assert [key.table for key in result.everything()["sw_acl_rules"] if isinstance(key, AclRuleKey)] == [
        port.acl_table[0]
    ]
    assert len(result.entries["sw_nat"]) == 2
    own = result.entries["sw_own_routes"]
    assert list(own.values()) == [Route(RouteKind.HOST, 0, 0, 0, 12)]
    assert [key.set for key in own if isinstance(key, OwnRouteKey)] == [port.route_set]
    assert "sw_routes" not in result.entries
    again, _ = compiled(pod("10.244.1.5", policies=policies), numbers=numbers)
    assert (again.everything(), again.binding) == (result.everything(), result.binding)


def test_explicit_nat_is_flagged() -> None:
    _, port = compiled(pod("10.244.1.5", policies=(OutBoundNAT(destinations=("10.244.1.5/32",)),)))
    assert port.flags == PortFlag.NAT_EXPLICIT


def test_a_proxy_that_shall_see_the_node_is_translated_to() -> None:
    proxy = L4Proxy(destination="10.244.9.9:3128", outbound_nat=True)
    for of_endpoint, of_network in (((proxy,), ()), ((), (proxy,))):
        net = msgspec.structs.replace(OVERLAY, policies=(*OVERLAY.policies, *of_network))
        result, port = compiled(pod("10.244.1.5", policies=of_endpoint), net)
        (key,) = result.entries["sw_nat"]
        assert isinstance(key, NatKey)
        assert (key.address, key.prefix_bits) == (parse_address("10.244.9.9").packed, NAT_KEY_BITS + 32)
        assert port.flags == PortFlag.NAT_EXPLICIT
    plain = msgspec.structs.replace(proxy, outbound_nat=False)
    assert compiled(pod("10.244.1.5", policies=(plain,)))[1].nat_set == 0


def test_nat_network_translates_by_default() -> None:
    net = network(NetworkType.NAT, subnet("172.20.0.0/24", "172.20.0.1"))
    numbers = MemoryNumbers()
    _, bare = compiled(pod("172.20.0.5"), net, numbers)
    _, own = compiled(pod("172.20.0.5", policies=(OutBoundNAT(exceptions=("10.0.0.0/8",)),)), net, numbers)
    assert (bare.nat_set, own.nat_set) == (1, 2)


def test_transparent_endpoint() -> None:
    net = network(NetworkType.TRANSPARENT, subnet("192.168.1.0/24", "192.168.1.1"))
    result, port = compiled(pod("192.168.1.50", "fd00:1::50"), net)
    assert port.flags == PortFlag.TRANSPARENT
    assert port.scope == 0
    assert result.binding.nic_filters == (parse_mac(MAC), b"\x33\x33\xff\x00\x00\x50")
    link = compile_link(pod("192.168.1.50"), net, FACTS, "/run/netns/p")
    assert link.neighbours == ()


def test_bridged_endpoint_on_the_underlay() -> None:
    result, port = compiled(pod("192.168.1.50", "fd00:1::abcd:ef01"), BRIDGE)
    four, six = parse_address("192.168.1.50"), parse_address("fd00:1::abcd:ef01")
    assert (port.scope, port.mtu) == (0, 1500)
    assert result.entries["sw_routes"] == {
        RouteKey(ROUTE_KEY_BITS + 32, 0, 4, four.packed): Route(RouteKind.LOCAL, 0, 0, 0, 32),
        RouteKey(ROUTE_KEY_BITS + 128, 0, 6, six.packed): Route(RouteKind.LOCAL, 0, 0, 0, 128),
        RouteKey(ROUTE_KEY_BITS + 32, SCOPE_HOST, 4, four.packed): Route(RouteKind.SCOPE, 0, 0, 0, 32),
        RouteKey(ROUTE_KEY_BITS + 128, SCOPE_HOST, 6, six.packed): Route(RouteKind.SCOPE, 0, 0, 0, 128),
    }
    assert result.binding == HostBinding(
        routes=(
            HostRoute(four.host_prefix, parse_address("192.168.1.10")),
            HostRoute(six.host_prefix, parse_address("fd00:1::10")),
        ),
        nic_filters=(b"\x33\x33\xff\xcd\xef\x01",),
        listens=(six.packed,),
    )


def test_bridged_endpoint_with_a_subnet_of_its_own_leaves_the_host_to_the_network() -> None:
    net = network(NetworkType.L2BRIDGE, subnet("10.244.1.0/24", "10.244.1.1"))
    result, _ = compiled(pod("10.244.1.5"), net)
    assert result.binding == HostBinding()
    assert [key.scope for key in result.entries["sw_routes"] if isinstance(key, RouteKey)] == [0]


@pytest.mark.parametrize(
    ("mapping", "key", "address"),
    [
        (PortMapping(protocol=6, internal_port=80, external_port=8080), (ZERO, 4), "10.244.1.5"),
        (
            PortMapping(protocol=6, internal_port=80, external_port=8080, flags=NatFlags.IPV6),
            (ZERO, 6),
            "fd00:244:1::5",
        ),
        (
            PortMapping(protocol=6, internal_port=80, external_port=8080, vip="192.168.1.10"),
            (parse_address("192.168.1.10").packed, 4),
            "10.244.1.5",
        ),
        (PortMapping(protocol=6, internal_port=80, external_port=8080, vip="::"), (ZERO, 6), "fd00:244:1::5"),
    ],
)
def test_portmap(mapping: PortMapping, key: tuple[bytes, int], address: str) -> None:
    result, _ = compiled(pod("10.244.1.5", "fd00:244:1::5", policies=(mapping,)))
    assert result.entries["sw_portmaps"] == {
        PortmapKey(key[0], 8080, 6, key[1]): Portmap(42, 1, 80, parse_address(address).packed)
    }


@pytest.mark.parametrize(
    ("mapping", "path"),
    [
        (PortMapping(protocol=6, internal_port=0, external_port=80), "$.Policies[0].Settings"),
        (PortMapping(protocol=256, internal_port=80, external_port=80), "$.Policies[0].Settings.Protocol"),
        (PortMapping(protocol=6, internal_port=80, external_port=80, vip="::"), "$.Policies[0].Settings"),
        (PortMapping(protocol=6, internal_port=80, external_port=80, vip="x"), "$.Policies[0].Settings.VIP"),
    ],
)
def test_portmap_invalid(mapping: PortMapping, path: str) -> None:
    with pytest.raises(Invalid) as caught:
        compiled(pod("10.244.1.5", policies=(mapping,)))
    assert caught.value.path == path


def test_caps() -> None:
    qos = QOS(maximum_outgoing_bandwidth_in_bytes=12_500_000, maximum_incoming_bandwidth_in_bytes=1_000_000)
    endpoint = pod("10.244.1.5", policies=(qos,))
    result, port = compiled(endpoint)
    assert port.flags == PortFlag.CAP_IN | PortFlag.CAP_OUT
    assert result.entries["sw_buckets"] == {Id(42): Bucket(12_500_000, 125_000 + 65536, 0)}
    link = compile_link(endpoint, OVERLAY, FACTS, "")
    assert (link.rate_bytes_per_s, link.burst_bytes) == (1_000_000, 16384)
    assert (link.outgoing_rate_bytes_per_s, link.outgoing_burst_bytes) == (12_500_000, 125_000)


def test_cap_with_its_own_burst() -> None:
    qos = QOS(maximum_outgoing_bandwidth_in_bytes=1000, maximum_outgoing_burst_in_bytes=1_000_000)
    result, port = compiled(pod("10.244.1.5", policies=(qos,)))
    assert result.entries["sw_buckets"] == {Id(42): Bucket(1000, 1_000_000 + 65536, 0)}
    assert port.flags == PortFlag.CAP_OUT


@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        ((), 1450),
        ((InterfaceParameters(mtu=1400),), 1400),
        ((InterfaceParameters(mtu=9000),), 1450),
        ((EncapOverhead(overhead=100),), 1400),
        ((EncapOverhead(overhead=100), InterfaceParameters(mtu=1300)), 1300),
        ((EncapOverhead(overhead=100), EncapOverhead(overhead=200)), 1400),
    ],
)
def test_mtu(policies: tuple[Policy, ...], expected: int) -> None:
    endpoint = pod("10.244.1.5", policies=policies)
    assert compiled(endpoint)[1].mtu == expected
    assert compile_link(endpoint, OVERLAY, FACTS, "").mtu == expected


@pytest.mark.parametrize("overhead", [1433, 1500, 65535])
def test_an_overhead_that_leaves_no_mtu(overhead: int) -> None:
    """Less than the kernel gives to any interface, or less than nothing."""
    endpoint = pod("10.244.1.5", policies=(PortName(name="x"), EncapOverhead(overhead=overhead)))
    with pytest.raises(Invalid, match=r"\$\.Policies\[1\]\.Settings\.Overhead: leaves"):
        check_overhead(endpoint, FACTS)
    assert compile_link(endpoint, OVERLAY, FACTS, "").mtu == compiled(endpoint)[1].mtu == 68
    most = pod("10.244.1.5", policies=(EncapOverhead(overhead=1432),))
    check_overhead(most, FACTS)
    assert compile_link(most, OVERLAY, FACTS, "").mtu == 68


@pytest.mark.parametrize(("uplink", "expected"), [(1400, 1350), (1300, 1280), (60, 1280)])
def test_an_interface_keeps_what_ipv6_needs(uplink: int, expected: int) -> None:
    facts = msgspec.structs.replace(FACTS, uplink_mtu=uplink)
    assert compile_link(pod("10.244.1.5", "fd00:244:1::5"), OVERLAY, facts, "").mtu == expected


def test_link() -> None:
    link = compile_link(pod("10.244.1.5", "fd00:244:1::5"), OVERLAY, FACTS, "/run/netns/p")
    mac = gateway_mac("NET-1")
    four, six = parse_address("10.244.1.1"), parse_address("fd00:244:1::1")
    assert link == PortLink(
        endpoint_id=POD_ID,
        host_name="sw1a2b3c4d5e6",
        host_mac=mac,
        netns_path="/run/netns/p",
        interface_name="eth0",
        mac=parse_mac(MAC),
        mtu=1450,
        addresses=(parse_interface("10.244.1.5/24"), parse_interface("fd00:244:1::5/64")),
        routes=(LinkRoute(parse_prefix("0.0.0.0/0"), four), LinkRoute(parse_prefix("::/0"), six)),
        neighbours=(LinkNeighbour(four, mac), LinkNeighbour(six, mac)),
        group=LINK_GROUP,
        alias=LINK_ALIAS,
    )


def test_link_routes_of_the_endpoint() -> None:
    routes = (
        RouteEntry(next_hop="10.244.1.2", destination_prefix="10.96.0.0/12", metric=5),
        RouteEntry(destination_prefix="169.254.0.0/16"),
        RouteEntry(next_hop="fd00::1", destination_prefix="fd00:96::/64"),  # it has no IPv6 address
    )
    link = compile_link(pod("10.244.1.5", routes=routes, interface_name="net1"), OVERLAY, FACTS, "")
    assert link.interface_name == "net1"
    assert link.routes == (
        LinkRoute(parse_prefix("10.96.0.0/12"), parse_address("10.244.1.2"), 5),
        LinkRoute(parse_prefix("169.254.0.0/16")),
        LinkRoute(parse_prefix("0.0.0.0/0"), parse_address("10.244.1.1"), 2049),
    )
    assert [neighbour.address for neighbour in link.neighbours] == [
        parse_address("10.244.1.2"),
        parse_address("10.244.1.1"),
    ]


@pytest.mark.parametrize(
    ("name", "flags", "expected"),
    [
        ("", 0, {"0.0.0.0/0": 0}),
        ("eth0", EndpointFlags.ENABLE_LOW_INTERFACE_METRIC, {"0.0.0.0/0": 0}),
        ("eth1", 0, {"0.0.0.0/0": 2049}),
        ("eth12", 0, {"0.0.0.0/0": 2060}),
        ("net1", 0, {"0.0.0.0/0": 2049}),
        ("storage", 0, {"0.0.0.0/0": 2049}),
        ("eth1", EndpointFlags.ENABLE_LOW_INTERFACE_METRIC, {"0.0.0.0/1": 0, "128.0.0.0/1": 0}),
    ],
)
def test_which_interface_has_the_way_out(name: str, flags: int, expected: dict[str, int]) -> None:
    link = compile_link(pod("10.244.1.5", interface_name=name, flags=flags), OVERLAY, FACTS, "")
    assert {str(route.destination): route.metric for route in link.routes} == expected
    assert {route.gateway for route in link.routes} == {parse_address("10.244.1.1")}


def test_dummy_route_means_no_default_route() -> None:
    dummy = RouteEntry(next_hop="0.0.0.0", destination_prefix="0.0.0.0/0")
    link = compile_link(pod("10.244.1.5", routes=(dummy,)), OVERLAY, FACTS, "")
    assert link.routes == ()
    assert compiled(pod("10.244.1.5", routes=(dummy,)))[1].gateway[0] == parse_address("10.244.1.1").packed


def test_prefix_length_given_or_a_host() -> None:
    given = Endpoint(
        id=POD_ID,
        mac_address=MAC,
        ip_configurations=(IpConfiguration(ip_address="10.244.1.5", prefix_length=26),),
    )
    assert compile_link(given, OVERLAY, FACTS, "").addresses == (parse_interface("10.244.1.5/26"),)
    assert compile_link(pod("1.2.3.4"), OVERLAY, FACTS, "").addresses == (parse_interface("1.2.3.4/32"),)


@pytest.mark.parametrize(
    ("endpoint", "path"),
    [
        (pod("10.244.1.5", "10.244.1.6"), "$.IpConfigurations[1].IpAddress"),
        (pod("x"), "$.IpConfigurations[0].IpAddress"),
        (Endpoint(id=POD_ID, mac_address="00-11"), "$.MacAddress"),
    ],
)
def test_invalid(endpoint: Endpoint, path: str) -> None:
    with pytest.raises(Invalid) as caught:
        compiled(endpoint)
    assert caught.value.path == path


REMOTE: dict[str, Any] = {"flags": int(EndpointFlags.REMOTE_ENDPOINT)}


def test_remote_behind_a_remote_subnet() -> None:
    numbers = MemoryNumbers()
    result = compile_endpoint(pod("10.244.2.9", **REMOTE), OVERLAY, FACTS, numbers, 0, 0)
    number = numbers.known["nexthop", "tunnel/NET-1/10.244.2.0/24"]
    key = EndpointKey(parse_address("10.244.2.9").packed, 1, 4)
    assert result.entries == {"sw_endpoints": {key: EndpointRecord(0, number, parse_mac(MAC))}}


@pytest.mark.parametrize(
    ("provider", "router"), [("192.168.1.11", "02-AA-00-00-00-02"), ("192.168.1.12", MAC)]
)
def test_remote_behind_its_provider(provider: str, router: str) -> None:
    numbers = MemoryNumbers()
    endpoint = pod("10.244.9.9", policies=(ProviderAddress(provider_address=provider),), **REMOTE)
    result = compile_endpoint(endpoint, OVERLAY, FACTS, numbers, 0, 0)
    number = numbers.known["nexthop", f"endpoint/{POD_ID}"]
    hop = result.entries["sw_nexthops"][Id(number)]
    assert isinstance(hop, Nexthop)
    assert (hop.kind, hop.vni, hop.mtu) == (RouteKind.TUNNEL, 4096, 1450)
    assert (hop.address, hop.mac) == (parse_address(provider).packed, parse_mac(router))
    assert list(result.entries["sw_endpoints"].values()) == [EndpointRecord(0, number, parse_mac(MAC))]


@pytest.mark.parametrize("policies", [(), (ProviderAddress(provider_address="192.168.1.10"),)])
def test_remote_without_a_way(policies: tuple[Policy, ...]) -> None:
    endpoint = pod("10.96.0.10", policies=policies, **REMOTE)
    assert compile_endpoint(endpoint, OVERLAY, FACTS, MemoryNumbers(), 0, 0).entries == {}


def test_remote_on_a_bridge_is_on_the_underlay() -> None:
    numbers = MemoryNumbers()
    result = compile_endpoint(pod("192.168.1.60", **REMOTE), BRIDGE, FACTS, numbers, 0, 0)
    number = numbers.known["nexthop", "uplink/onlink/4"]
    packed = parse_address("192.168.1.60").packed
    assert result.entries == {
        "sw_endpoints": {EndpointKey(packed, 0, 4): EndpointRecord(0, number, parse_mac(MAC))},
        "sw_routes": {RouteKey(ROUTE_KEY_BITS + 32, 0, 4, packed): Route(RouteKind.UPLINK, 0, 0, number, 32)},
    }
    assert not result.binding.routes
    assert not any(row.flags & RouteFlag.DECREMENT for row in result.entries["sw_routes"].values())  # type: ignore[attr-defined]


@pytest.mark.parametrize("address", ["10.9.2.5", "fd09:2::5", "192.168.1.10"])
def test_remote_on_a_bridge_behind_a_router_or_the_node_itself_has_no_way_of_its_own(address: str) -> None:
    assert compile_endpoint(pod(address, **REMOTE), BRIDGE, FACTS, MemoryNumbers(), 0, 0).entries == {}


def own_routes(result: Compiled) -> dict[str, RouteKind]:
    """An endpoint's own routes, and where they lead."""
    found = {}
    for key, route in result.entries.get("sw_own_routes", {}).items():
        assert isinstance(key, OwnRouteKey)
        assert isinstance(route, Route)
        assert key.prefix_bits == OWN_ROUTE_KEY_BITS + route.bits
        found[f"{address_text(key.family, key.address)}/{route.bits}"] = RouteKind(route.kind)
    return found


def test_own_routes_are_of_policies_and_of_routes_that_name_the_endpoint() -> None:
    policies = (
        SDNRoute(destination_prefix="10.96.0.0/12", need_encap=True),
        SDNRoute(destination_prefix="10.98.0.0/16", next_hop="192.168.1.77"),
    )
    named = RouteObject(
        routes=(
            SdnRoute(destination_prefix="10.96.0.0/12", next_hop="10.244.2.7"),
            SdnRoute(destination_prefix="2001:db8::/32", need_encap=True),
        )
    )
    numbers = MemoryNumbers()

    def compile_with(*routes: RouteObject) -> tuple[Compiled, int]:
        result = compile_endpoint(
            pod("10.244.1.5", policies=policies), OVERLAY, FACTS, numbers, 42, 7, routes=routes
        )
        port = result.entries["sw_ports"][Id(42)]
        assert isinstance(port, Port)
        assert {key.set for key in result.entries["sw_own_routes"] if isinstance(key, OwnRouteKey)} == {
            port.route_set
        }
        return result, port.route_set

    alone, first = compile_with()
    assert own_routes(alone) == {"10.96.0.0/12": RouteKind.HOST, "10.98.0.0/16": RouteKind.UPLINK}
    both, second = compile_with(named)
    assert own_routes(both) == {
        "10.96.0.0/12": RouteKind.TUNNEL,  # the last of two
        "10.98.0.0/16": RouteKind.UPLINK,
        "2001:db8::/32": RouteKind.HOST,
    }
    assert first != second
    assert compile_with()[1] == first
    assert alone.binding.forwards
