"""What VLAN and NeighborDiscovery policies of networks on the underlay become."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from samewire.errors import Invalid
from samewire.hcn.policies import VLAN, NeighborDiscovery, OutBoundNAT, Policy, SDNRoute
from samewire.hcn.schema import Endpoint, IpConfiguration, Network, NetworkType
from samewire.vfp.address import ZERO, parse_address
from samewire.vfp.compile import compile_endpoint, compile_link, compile_network, compile_node
from samewire.vfp.constants import VLAN as TAG
from samewire.vfp.constants import VLAN_ID, VLAN_NODE, NeighbourFlag, PortFlag, RouteKind
from samewire.vfp.model import HostBinding, NodeFacts
from samewire.vfp.numbers import MemoryNumbers
from samewire.vfp.tables import Id, Neighbour, Nexthop, Port, Route, RouteKey, Vni
from tests.unit.test_vfp_network import FACTS, network

SUBNET = ("10.7.0.0/24", "10.7.0.1")
LAN = ("192.168.1.0/24", "192.168.1.1")


def vlan(number: int, *policies: Policy, subnet: tuple[str, str] = SUBNET) -> Network:
    made = network(NetworkType.L2BRIDGE, subnet, policies=(VLAN(isolation_id=number), *policies))
    return replace(made, id=f"VLAN-{number}")


def pod(*policies: Policy) -> Endpoint:
    return Endpoint(
        id="0A1B2C3D-0000-0000-0000-000000000001",
        mac_address="0E-2A-0A-07-00-0A",
        ip_configurations=(IpConfiguration(ip_address="10.7.0.10"),),
        policies=policies,
    )


def test_a_vlan_is_a_scope_with_one_way_out() -> None:
    """The same for all networks of the VLAN, another one for another VLAN; the node has no part in it."""
    numbers = MemoryNumbers()
    made = [compile_network(vlan(number), FACTS, numbers) for number in (7, 8)]
    again = compile_network(replace(vlan(7), id="OTHER"), FACTS, numbers)
    assert again == made[0]
    scopes = []
    for number, compiled in zip((7, 8), made, strict=True):
        assert compiled.binding == HostBinding()
        scope = compiled.entries["sw_vnis"][Id(TAG | number)]
        assert isinstance(scope, Vni)
        assert scope.scope > 0
        scopes.append(scope.scope)
        assert Id(VLAN_NODE | VLAN_ID) in compiled.entries["sw_vnis"]
        ((hop_id, hop),) = compiled.entries["sw_nexthops"].items()
        assert isinstance(hop_id, Id)
        assert isinstance(hop, Nexthop)
        assert (hop.kind, hop.vni, hop.ifindex, hop.mtu) == (RouteKind.UPLINK, number, 2, 1500)
        routes = {
            (key.family, key.prefix_bits - 32): value
            for key, value in compiled.entries["sw_routes"].items()
            if isinstance(key, RouteKey)
        }
        way_out = Route(RouteKind.UPLINK, 0, scope.scope, hop_id.value, 0)
        assert routes == {(4, 0): way_out, (6, 0): way_out}
    assert scopes[0] != scopes[1]


def test_a_pod_in_a_vlan() -> None:
    numbers = MemoryNumbers()
    scope = compile_network(vlan(7), FACTS, numbers).entries["sw_vnis"][Id(TAG | 7)]
    assert isinstance(scope, Vni)
    nat = OutBoundNAT(virtual_ip="10.7.0.200")
    compiled = compile_endpoint(pod(nat), vlan(7), FACTS, numbers, 9, 1)
    port = compiled.entries["sw_ports"][Id(9)]
    assert isinstance(port, Port)
    assert port.flags & PortFlag.TAGGED
    assert port.scope == scope.scope
    assert compiled.binding == HostBinding()
    ((key, found),) = compiled.entries["sw_neighbours"].items()
    assert isinstance(key, RouteKey)
    assert key.scope == scope.scope
    assert found == Neighbour(FACTS.uplink_mac, 0, parse_address("10.7.0.200").packed)
    # It finds its gateway itself.
    assert compile_link(pod(), vlan(7), FACTS, "pod").neighbours == ()
    plain = replace(vlan(7), policies=())
    assert len(compile_link(pod(), plain, FACTS, "pod").neighbours) == 1


def test_the_uplinks_own_vlan_is_no_tag() -> None:
    facts = replace(FACTS, uplink_vlan=7)
    assert compile_network(vlan(7), facts, MemoryNumbers()) == compile_network(
        replace(vlan(7), policies=()), facts, MemoryNumbers()
    )


def test_the_nodes_own_vlans_are_known() -> None:
    entries = compile_node(replace(FACTS, vlans=(9, 10)), MemoryNumbers()).entries["sw_vnis"]
    assert {key.value for key in entries if isinstance(key, Id) and key.value & VLAN_NODE} == {
        VLAN_NODE | 9,
        VLAN_NODE | 10,
    }


def test_a_route_by_another_router_of_the_vlan_is_refused() -> None:
    """The endpoint's own routes know its MAC; the switch does not."""
    by_gateway = SDNRoute(destination_prefix="10.50.0.0/16", next_hop="10.7.0.1")
    assert compile_network(vlan(7, by_gateway), FACTS, MemoryNumbers())
    by_another = SDNRoute(destination_prefix="10.50.0.0/16", next_hop="10.7.0.9")
    with pytest.raises(Invalid, match=r"NextHop: in VLAN 7 endpoints find routers .* themselves"):
        compile_network(vlan(7, by_another), FACTS, MemoryNumbers())


@pytest.mark.parametrize(
    ("facts", "made", "prefix", "flags"),
    [
        (FACTS, network(NetworkType.L2BRIDGE, LAN), "192.168.1.0/24", NeighbourFlag.PODS),
        (FACTS, network(NetworkType.L2BRIDGE, LAN), "192.168.0.0/16", NeighbourFlag.PODS),
        (FACTS, network(NetworkType.L2BRIDGE, LAN), "192.168.1.0/28", 0),
        (FACTS, network(NetworkType.L2BRIDGE, LAN), "10.99.0.0/16", 0),
        (FACTS, network(NetworkType.L2BRIDGE, LAN), "::/0", NeighbourFlag.PODS),
        (replace(FACTS, addresses=()), network(NetworkType.L2BRIDGE, LAN), "0.0.0.0/0", NeighbourFlag.PODS),
        (FACTS, vlan(7), "10.7.0.0/24", NeighbourFlag.PODS),
        (FACTS, vlan(7), "10.7.0.0/25", 0),
        (FACTS, vlan(7), "192.168.1.0/24", 0),
    ],
)
def test_who_is_answered_for_a_prefix(facts: NodeFacts, made: Network, prefix: str, flags: int) -> None:
    """The wire is not where all of its own addresses are in it."""
    policy = NeighborDiscovery(
        target_ip_prefix=prefix,
        sender_ip_address="::1" if ":" in prefix else "1.1.1.1",
        sender_mac_address="02-77-00-00-00-01",
    )
    found = compile_network(replace(made, policies=(*made.policies, policy)), facts, MemoryNumbers())
    ((_, entry),) = found.entries["sw_neighbours"].items()
    assert isinstance(entry, Neighbour)
    assert entry.flags == flags
    assert entry.sender != ZERO
