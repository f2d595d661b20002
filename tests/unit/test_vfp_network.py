"""Nodes, networks and SDN routes as the switch sees them."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from samewire.errors import Exhausted, Invalid
from samewire.hcn.policies import (
    VSID,
    HostRoute,
    Policy,
    RemoteSubnetRoute,
    SDNRoute,
)
from samewire.hcn.schema import Ipam, Network, NetworkFlags, NetworkType, Route, RouteEntry, SdnRoute, Subnet
from samewire.vfp.address import (
    ZERO,
    Address,
    Prefix,
    address_text,
    parse_address,
    parse_interface,
    parse_mac,
    parse_prefix,
)
from samewire.vfp.compile import compile_node, compile_remote, compile_route
from samewire.vfp.compile.plan import gateway_mac, plan_network
from samewire.vfp.constants import (
    ROUTE_KEY_BITS,
    SCOPE_ANY,
    SCOPE_DIRECT,
    SCOPE_HOST,
    SCOPE_MAX,
    SCOPE_OUTSIDE,
    ConfigFlag,
    RouteFlag,
    RouteKind,
)
from samewire.vfp.model import LEAST_PATH_MTU, Compiled, Entries, HostBinding, NodeFacts
from samewire.vfp.model import HostRoute as KernelRoute
from samewire.vfp.numbers import MemoryNumbers
from samewire.vfp.tables import Config, Id, Nexthop, RouteKey, Vni
from samewire.vfp.tables import Route as RouteRecord
from tests.support.compiled import whole_network

FACTS = NodeFacts(
    name="node-1",
    uplink_ifindex=2,
    uplink_mac=b"\x02uplnk",
    uplink_mtu=1500,
    addresses=(parse_interface("192.168.1.10/24"), parse_interface("fd00:1::10/64")),
    gateways=(parse_address("192.168.1.1"), parse_address("fd00:1::1")),
    tunnel_ifindex=5,
    tunnel_mac=b"\x02tunnl",
    host_ifindex=6,
    host_mac=b"\x02host0",
    host_peer_ifindex=7,
    host_peer_mac=b"\x02host1",
)
ROUTER = "02-AA-00-00-00-02"


def network(
    kind: NetworkType,
    *prefixes: tuple[str, str],
    policies: tuple[Policy, ...] = (),
    vni: int = 0,
    flags: int = 0,
    routes: tuple[RouteEntry, ...] = (),
) -> Network:
    """A network with (prefix, gateway) subnets."""
    subnets = tuple(
        Subnet(
            ip_address_prefix=prefix,
            policies=(VSID(isolation_id=vni),) if vni else (),
            routes=(
                RouteEntry(next_hop=gateway, destination_prefix="::/0" if ":" in gateway else "0.0.0.0/0"),
                *routes,
            ),
        )
        for prefix, gateway in prefixes
    )
    ipams = (Ipam(subnets=subnets),)
    return Network(id="NET-1", name="n", type=kind, policies=policies, ipams=ipams, flags=flags)


def remote(prefix: str, provider: str, vni: int = 4096) -> RemoteSubnetRoute:
    return RemoteSubnetRoute(
        destination_prefix=prefix,
        isolation_id=vni,
        provider_address=provider,
        distributed_router_mac_address=ROUTER,
    )


OVERLAY = network(
    NetworkType.OVERLAY,
    ("10.244.1.0/24", "10.244.1.1"),
    ("fd00:244:1::/64", "fd00:244:1::1"),
    policies=(
        HostRoute(),
        remote("10.244.2.0/24", "192.168.1.11"),
        remote("fd00:244:2::/64", "192.168.1.11"),
    ),
    vni=4096,
)


def routes(entries: Entries, scope: int) -> dict[str, str]:
    """The routes of a scope in words."""
    hops = entries.get("sw_nexthops", {})
    found = {}
    for key, route in entries.get("sw_routes", {}).items():
        assert isinstance(key, RouteKey)
        assert isinstance(route, RouteRecord)
        if key.scope != scope:
            continue
        prefix = prefix_text(key)
        text = RouteKind(route.kind).name
        if route.kind == RouteKind.SCOPE:
            text += f" {route.scope}"
        if route.nexthop:
            hop = hops.get(Id(route.nexthop))
            text += f" {hop_text(hop)}" if isinstance(hop, Nexthop) else f" #{route.nexthop}"
        found[prefix] = text + (" -1" if route.flags & RouteFlag.DECREMENT else "")
    return found


def prefix_text(key: RouteKey) -> str:
    return str(Prefix(key.family, key.address, key.prefix_bits - ROUTE_KEY_BITS))


def hop_text(hop: Nexthop) -> str:
    return "on-link" if hop.address == ZERO else address_text(hop.family, hop.address)


def test_node() -> None:
    numbers = MemoryNumbers()
    compiled = compile_node(FACTS, numbers)
    assert routes(compiled.entries, 0) == {
        "0.0.0.0/0": "UPLINK 192.168.1.1",
        "::/0": "UPLINK fd00:1::1",
        "192.168.1.0/24": "UPLINK on-link",
        "fd00:1::/64": "UPLINK on-link",
        "192.168.1.10/32": "HOST",
        "fd00:1::10/128": "HOST",
    }
    assert compiled.binding == HostBinding(reserved_ports="49152-65535")
    config = compiled.entries["sw_config"][Id(0)]
    assert isinstance(config, Config)
    assert (config.uplink_ifindex, config.tunnel_mac, config.vxlan_port) == (2, b"\x02tunnl", 4789)
    assert config.idle_tcp_half_open == 56  # 60 s in ticks of 2^30 ns
    assert config.flags == 0


def test_node_flags_and_single_stack() -> None:
    facts = NodeFacts(
        name="n",
        uplink_ifindex=2,
        uplink_mac=bytes(6),
        uplink_mtu=9000,
        addresses=(parse_interface("192.168.1.10/32"),),
        csum_ipv6=True,
        events=True,
    )
    entries = compile_node(facts, MemoryNumbers()).entries
    assert routes(entries, 0) == {"192.168.1.10/32": "HOST"}
    config = entries["sw_config"][Id(0)]
    assert isinstance(config, Config)
    assert config.flags == ConfigFlag.CSUM_IPV6 | ConfigFlag.EVENTS
    (hop,) = entries["sw_nexthops"].values()
    assert isinstance(hop, Nexthop)
    assert (hop.mtu, hop.ifindex, hop.local) == (9000, 2, facts.address(4))


def test_the_mtu_of_a_way_out_is_not_that_of_the_link() -> None:
    facts = replace(FACTS, uplink_mtu=9000, path_mtus=dict.fromkeys(FACTS.gateways, 1500))
    hops = compile_node(facts, MemoryNumbers()).entries["sw_nexthops"].values()
    assert {(hop.address != ZERO, hop.mtu) for hop in hops if isinstance(hop, Nexthop)} == {
        (True, 1500),
        (False, 9000),
    }


def test_the_mtu_of_a_way_to_a_provider() -> None:
    """Beyond the gateway its route's counts, too; what a route says may be absurd."""
    near, far = parse_address("192.168.1.77"), parse_address("203.0.113.7")
    (gateway, *_) = FACTS.gateways

    def mtus(known: dict[Address, int]) -> tuple[int, int]:
        facts = replace(FACTS, uplink_mtu=1500, path_mtus=known, underlay=(parse_prefix("192.168.1.0/24"),))
        return facts.mtu_to(near), facts.mtu_to(far)

    assert mtus({gateway: 1400}) == (1500, 1400)
    assert mtus({gateway: 1400, far: 1300, near: 1350}) == (1350, 1300)
    assert mtus({gateway: 9000}) == (1500, 1500)
    assert mtus({gateway: 60}) == (1500, LEAST_PATH_MTU)


def test_overlay() -> None:
    numbers = MemoryNumbers()
    compiled = whole_network(OVERLAY, FACTS, numbers)
    scope = numbers.known["scope", "NET-1"]
    gateway = {family: numbers.known["nexthop", f"uplink/gateway/{family}"] for family in (4, 6)}
    onlink = {family: numbers.known["nexthop", f"uplink/onlink/{family}"] for family in (4, 6)}
    assert routes(compiled.entries, scope) == {
        "0.0.0.0/0": f"UPLINK #{gateway[4]} -1",
        "::/0": f"UPLINK #{gateway[6]} -1",
        "192.168.1.0/24": f"UPLINK #{onlink[4]} -1",
        "fd00:1::/64": f"UPLINK #{onlink[6]} -1",
        "192.168.1.10/32": "HOST",
        "192.168.1.255/32": "BLACKHOLE",
        "fd00:1::10/128": "HOST",
        "10.244.1.0/24": "LOCAL",
        "10.244.1.1/32": "HOST",
        "fd00:244:1::/64": "LOCAL",
        "fd00:244:1::1/128": "HOST",
        "10.244.2.0/24": "TUNNEL 192.168.1.11 -1",
        "fd00:244:2::/64": "TUNNEL 192.168.1.11 -1",
    }
    assert routes(compiled.entries, SCOPE_HOST) == dict.fromkeys(
        ("10.244.1.0/24", "10.244.2.0/24", "fd00:244:1::/64", "fd00:244:2::/64"), f"SCOPE {scope}"
    )
    assert compiled.entries["sw_vnis"] == {Id(4096): Vni(scope)}
    via4, via6 = parse_address("10.244.1.1"), parse_address("fd00:244:1::1")
    assert compiled.binding == HostBinding(
        addresses=(via4.host_prefix, via6.host_prefix),
        routes=(
            KernelRoute(parse_prefix("10.244.1.0/24"), via4),
            KernelRoute(parse_prefix("fd00:244:1::/64"), via6),
            KernelRoute(parse_prefix("10.244.2.0/24"), via4, mtu=1450),
            KernelRoute(parse_prefix("fd00:244:2::/64"), via6, mtu=1450),
        ),
    )


def test_tunnel_nexthop() -> None:
    numbers = MemoryNumbers()
    entries = whole_network(OVERLAY, FACTS, numbers).entries
    hop = entries["sw_nexthops"][Id(numbers.known["nexthop", "tunnel/NET-1/10.244.2.0/24"])]
    assert hop == Nexthop(
        kind=RouteKind.TUNNEL,
        family=4,
        mtu=1450,
        ifindex=5,
        vni=4096,
        address=parse_address("192.168.1.11").packed,
        local=parse_address("192.168.1.10").packed,
        mac=parse_mac(ROUTER),
    )


def test_the_networks_own_route_takes_the_place_of_a_remote_subnet_with_the_same_prefix() -> None:
    """Whatever comes first: the remote subnet is an owner of its own, and must not win by coming later."""
    prefix = "10.244.2.0/24"
    own = SDNRoute(destination_prefix=prefix)
    both = msgspec.structs.replace(OVERLAY, policies=(own, *OVERLAY.policies))
    numbers = MemoryNumbers()
    assert (
        routes(whole_network(both, FACTS, numbers).entries, numbers.known["scope", "NET-1"])[prefix] == "HOST"
    )
    remote_part = compile_remote(both, parse_prefix(prefix), FACTS, numbers)
    assert "sw_nexthops" not in remote_part.entries
    assert remote_part.binding.routes


def test_tunnel_over_ipv6_and_number_kept() -> None:
    numbers = MemoryNumbers()
    first = whole_network(OVERLAY, FACTS, numbers).entries
    moved = network(
        NetworkType.OVERLAY,
        ("10.244.1.0/24", "10.244.1.1"),
        policies=(remote("10.244.2.0/24", "fd00:1::11"),),
        vni=4096,
    )
    second = whole_network(moved, FACTS, numbers).entries
    number = Id(numbers.known["nexthop", "tunnel/NET-1/10.244.2.0/24"])
    before, after = first["sw_nexthops"][number], second["sw_nexthops"][number]
    assert isinstance(before, Nexthop)
    assert isinstance(after, Nexthop)
    assert (before.family, after.family, after.mtu) == (4, 6, 1430)
    assert after.local == parse_address("fd00:1::10").packed


def test_overlay_without_host_route_has_no_binding() -> None:
    numbers = MemoryNumbers()
    closed = network(NetworkType.OVERLAY, ("10.244.1.0/24", "10.244.1.1"), vni=4096)
    compiled = whole_network(closed, FACTS, numbers)
    assert compiled.binding == HostBinding()
    assert not routes(compiled.entries, SCOPE_HOST)
    assert "10.244.1.1/32" not in routes(compiled.entries, numbers.known["scope", "NET-1"])


def test_overlay_needs_a_vni() -> None:
    with pytest.raises(Invalid, match=r"\$\.Ipams\[0\]\.Subnets\[0\]\.Policies: .*VSID"):
        whole_network(network(NetworkType.OVERLAY, ("10.244.1.0/24", "10.244.1.1")), FACTS, MemoryNumbers())


@pytest.mark.parametrize("kind", [NetworkType.INTERNAL, NetworkType.PRIVATE])
def test_no_uplink(kind: NetworkType) -> None:
    numbers = MemoryNumbers()
    compiled = whole_network(network(kind, ("10.9.0.0/24", "10.9.0.1")), FACTS, numbers)
    expected = {"10.9.0.0/24": "LOCAL"}
    if kind is NetworkType.INTERNAL:
        expected |= {"10.9.0.1/32": "HOST", "192.168.1.10/32": "HOST", "fd00:1::10/128": "HOST"}
    assert routes(compiled.entries, numbers.known["scope", "NET-1"]) == expected
    assert bool(compiled.binding.addresses) == (kind is NetworkType.INTERNAL)


def test_nat_network_is_bound_unless_told_not_to() -> None:
    plain = network(NetworkType.NAT, ("172.20.0.0/24", "172.20.0.1"))
    closed = network(NetworkType.NAT, ("172.20.0.0/24", "172.20.0.1"), flags=NetworkFlags.DISABLE_HOST_PORT)
    assert whole_network(plain, FACTS, MemoryNumbers()).binding.addresses
    assert whole_network(closed, FACTS, MemoryNumbers()).binding == HostBinding()


@pytest.mark.parametrize("kind", [NetworkType.L2BRIDGE, NetworkType.TRANSPARENT, NetworkType.L2TUNNEL])
def test_bridged_on_the_underlay(kind: NetworkType) -> None:
    numbers = MemoryNumbers()
    compiled = whole_network(network(kind, ("192.168.1.0/24", "192.168.1.1")), FACTS, numbers)
    assert compiled.entries == {}
    assert compiled.binding == HostBinding()
    assert ("scope", "NET-1") not in numbers.known


def test_bridged_with_a_subnet_of_its_own() -> None:
    own = network(
        NetworkType.L2BRIDGE,
        ("10.244.1.0/24", "10.244.1.1"),
        routes=(RouteEntry(next_hop="192.168.1.11", destination_prefix="10.244.2.0/24"),),
    )
    compiled = whole_network(own, FACTS, MemoryNumbers())
    assert routes(compiled.entries, 0) == {
        "10.244.1.0/24": "LOCAL",
        "10.244.1.1/32": "HOST",
        "10.244.2.0/24": "UPLINK 192.168.1.11",
    }
    assert routes(compiled.entries, SCOPE_HOST) == {"10.244.1.0/24": "SCOPE 0"}
    assert compiled.binding.addresses == (parse_prefix("10.244.1.1/32"),)


def test_mtu() -> None:
    def mtu(net: Network, facts: NodeFacts = FACTS) -> int:
        return plan_network(net, facts).mtu

    only6 = NodeFacts(
        name="n",
        uplink_ifindex=2,
        uplink_mac=bytes(6),
        uplink_mtu=1500,
        addresses=(parse_interface("fd00:1::10/64"),),
    )
    assert mtu(OVERLAY) == 1450
    assert mtu(OVERLAY, only6) == 1430
    assert mtu(network(NetworkType.L2BRIDGE, ("192.168.1.0/24", "192.168.1.1"))) == 1500


def test_gateway_mac_is_stable_and_local() -> None:
    mac = gateway_mac("5A9C9A1B-0000-4000-8000-000000000001")
    assert mac[:3] == b"\x02SW"
    assert mac == gateway_mac("5a9c9a1b-0000-4000-8000-000000000001")
    assert mac != gateway_mac("5A9C9A1B-0000-4000-8000-000000000002")


@pytest.mark.parametrize("number", [SCOPE_MAX + 1, SCOPE_DIRECT, SCOPE_ANY, SCOPE_OUTSIDE, SCOPE_HOST])
def test_scopes_are_bounded(number: int) -> None:
    """What is no network's scope does not become one."""

    class Full(MemoryNumbers):
        def number(self, kind: str, key: str) -> int:
            return number

    with pytest.raises(Exhausted, match="network scopes"):
        whole_network(OVERLAY, FACTS, Full())


@pytest.mark.parametrize(
    ("next_hop", "expected"),
    [
        ("", "HOST"),
        ("0.0.0.0", "HOST"),
        ("192.168.1.10", "HOST"),  # the node
        ("10.244.1.1", "HOST"),  # held by samewire0
        ("10.244.2.7", "TUNNEL #2 -1"),  # a pod behind a remote subnet
        ("192.168.1.11", "TUNNEL #2 -1"),  # its provider address
        ("192.168.1.77", "UPLINK 192.168.1.77 -1"),
    ],
)
def test_sdn_route(next_hop: str, expected: str) -> None:
    numbers = MemoryNumbers()
    numbers.number("nexthop", "something else")
    numbers.number("nexthop", "tunnel/NET-1/10.244.2.0/24")
    route = Route(
        id="R", network_id="NET-1", routes=(SdnRoute(destination_prefix="10.96.0.0/12", next_hop=next_hop),)
    )
    compiled = compile_route(route, OVERLAY, FACTS, numbers)
    assert routes(compiled.entries, numbers.known["scope", "NET-1"]) == {"10.96.0.0/12": expected}


def test_a_route_that_only_endpoints_obey_adds_nothing_to_the_network() -> None:
    entry = SdnRoute(destination_prefix="10.96.0.0/12", next_hop="192.168.1.77")
    named = Route(id="R", network_id="NET-1", routes=(entry,), endpoint_ids=("POD",))
    assert named.is_of_endpoints
    assert compile_route(named, OVERLAY, FACTS, MemoryNumbers()) == Compiled({})
    wrong = replace(named, routes=(replace(entry, next_hop="fd00::1"),))
    with pytest.raises(Invalid, match="not of the family"):
        compile_route(wrong, OVERLAY, FACTS, MemoryNumbers())
    watching = replace(named, routes=(replace(entry, automatic_endpoint_monitor=True),))
    assert not watching.is_of_endpoints
    assert compile_route(watching, OVERLAY, FACTS, MemoryNumbers()).entries["sw_routes"]


def test_sdn_route_to_an_unbound_gateway_is_the_default_gateway() -> None:
    numbers = MemoryNumbers()
    closed = network(NetworkType.OVERLAY, ("10.244.1.0/24", "10.244.1.1"), vni=4096)
    route = Route(routes=(SdnRoute(destination_prefix="10.0.0.0/8", next_hop="10.244.1.1"),))
    compiled = compile_route(route, closed, FACTS, numbers)
    gateway = numbers.known["nexthop", "uplink/gateway/4"]
    assert routes(compiled.entries, numbers.known["scope", "NET-1"]) == {
        "10.0.0.0/8": f"UPLINK #{gateway} -1"
    }


def test_sdn_route_policies_of_a_network() -> None:
    bridged = network(
        NetworkType.L2BRIDGE,
        ("192.168.1.0/24", "192.168.1.1"),
        policies=(SDNRoute(destination_prefix="10.96.0.0/12", need_encap=True),),
    )
    compiled = whole_network(bridged, FACTS, MemoryNumbers())
    assert routes(compiled.entries, 0) == {"10.96.0.0/12": "HOST"}
    assert compiled.binding.forwards  # what the node gets is not all for itself


def test_a_node_that_only_gets_what_is_for_itself_does_not_forward() -> None:
    pods = network(NetworkType.OVERLAY, ("10.244.1.0/24", "10.244.1.1"), vni=4096, policies=(HostRoute(),))
    assert not whole_network(pods, FACTS, MemoryNumbers()).binding.forwards


@pytest.mark.parametrize(
    ("kind", "destination", "next_hop", "path"),
    [
        (NetworkType.INTERNAL, "10.0.0.0/8", "192.168.1.77", "$.Routes[0].NextHop"),
        (NetworkType.PRIVATE, "10.0.0.0/8", "", "$.Routes[0].NextHop"),
        (NetworkType.NAT, "10.0.0.0/8", "fd00:1::5", "$.Routes[0].NextHop"),
        (NetworkType.NAT, "10.0.0.0/8", "nonsense", "$.Routes[0].NextHop"),
        (NetworkType.NAT, "nonsense", "", "$.Routes[0].DestinationPrefix"),
    ],
)
def test_sdn_route_invalid(kind: NetworkType, destination: str, next_hop: str, path: str) -> None:
    route = Route(routes=(SdnRoute(destination_prefix=destination, next_hop=next_hop),))
    with pytest.raises(Invalid) as caught:
        compile_route(route, network(kind, ("10.9.0.0/24", "10.9.0.1")), FACTS, MemoryNumbers())
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("policy", "path"),
    [
        (remote("10.244.2.0/24", "0.0.0.0"), "$.Policies[0].Settings.ProviderAddress"),
        (remote("10.244.2.0/24", "x"), "$.Policies[0].Settings.ProviderAddress"),
        (remote("x", "192.168.1.11"), "$.Policies[0].Settings.DestinationPrefix"),
    ],
)
def test_remote_subnet_invalid(policy: RemoteSubnetRoute, path: str) -> None:
    net = network(NetworkType.OVERLAY, ("10.244.1.0/24", "10.244.1.1"), policies=(policy,), vni=4096)
    with pytest.raises(Invalid) as caught:
        whole_network(net, FACTS, MemoryNumbers())
    assert caught.value.path == path
