"""After a change of one object the switch has what it would have if everything were compiled anew: what others' changes
mean for an object is not forgotten, and a restart changes nothing.
"""

from __future__ import annotations

from typing import Any, Final

import pytest

from samewire.hcn.codec import decode_modify, decode_object
from samewire.hcn.schema import Kind
from samewire.node.node import Node
from tests.support.afresh import unlike_afresh
from tests.support.balancers import VIP
from tests.support.node import NodeNet, overlay, path_of

pytestmark = pytest.mark.root

PEER: Final = "192.168.77.12"
FAR: Final = "10.77.0.0/16"
DIRECT: Final = {"ProviderAddress": PEER, "MacAddress": "0E-2A-0A-4D-00-05"}
MAPPING: Final = {"Protocol": 6, "InternalPort": 80, "ExternalPort": 80}


def policy(kind: str, **settings: Any) -> dict[str, Any]:
    return {"Type": kind, "Settings": settings}


def remote_subnet(prefix: str) -> dict[str, Any]:
    return policy(
        "RemoteSubnetRoute",
        DestinationPrefix=prefix,
        IsolationId=4096,
        ProviderAddress=PEER,
        DistributedRouterMacAddress="00-15-5D-00-00-03",
    )


def bridge(name: str, prefix: str, *policies: dict[str, Any]) -> dict[str, Any]:
    gateway = prefix.rpartition(".")[0] + ".1"
    subnet = {
        "IpAddressPrefix": prefix,
        "Routes": [{"NextHop": gateway, "DestinationPrefix": "0.0.0.0/0"}],
    }
    return {"Name": name, "Type": "L2Bridge", "Policies": list(policies), "Ipams": [{"Subnets": [subnet]}]}


async def create(node: Node, kind: Kind, body: dict[str, Any]) -> str:
    made = await node.service.create(kind, decode_object(kind, body))
    assert unlike_afresh(node) == []
    return made.id


async def add(node: Node, network: str, *policies: dict[str, Any], how: str = "Add") -> None:
    change = {"ResourceType": "Policy", "RequestType": how, "Settings": {"Policies": list(policies)}}
    await node.service.modify(Kind.NETWORK, network, decode_modify(Kind.NETWORK, change))
    assert unlike_afresh(node) == []


async def test_backends_on_the_underlay_are_reached_by_dsr_as_soon_as_a_network_there_has_it(
    node: Node,
) -> None:
    await create(
        node,
        Kind.LOADBALANCER,
        {
            "FrontendVIPs": [VIP],
            "PortMappings": [MAPPING],
            "Flags": 1,
            "Backends": [{"IpAddress": "10.77.0.5", **DIRECT}],
        },
    )
    network = await create(node, Kind.NETWORK, bridge("cbr0", "10.9.1.0/24"))
    assert node.switch.wanted.entries.tables().get("sw_nexthops")
    await node.service.delete(Kind.NETWORK, network)
    assert unlike_afresh(node) == []


@pytest.mark.parametrize("own", [False, True])
async def test_backends_that_an_sdn_route_takes_out_of_a_subnet(node: Node, own: bool) -> None:
    network = await create(node, Kind.NETWORK, overlay())
    await add(node, network, remote_subnet("10.77.0.0/16"))
    balancer = {
        "FrontendVIPs": [VIP],
        "PortMappings": [MAPPING],
        "Backends": [{"IpAddress": "10.77.0.5"}, {"IpAddress": "10.244.0.5", "Flags": 1}],
    }
    await create(node, Kind.LOADBALANCER, {**balancer, **({"HostComputeNetwork": network} if own else {})})
    routes = [
        policy("SDNRoute", DestinationPrefix=prefix, NeedEncap=True)
        for prefix in ("10.77.0.0/24", "10.244.0.5/32")
    ]
    await add(node, network, *routes)
    await add(node, network, *routes, how="Remove")


@pytest.mark.parametrize("policies_first", [True, False])
async def test_a_route_object_goes_before_policies_of_its_network(node: Node, policies_first: bool) -> None:
    network = await create(node, Kind.NETWORK, overlay())
    await add(node, network, remote_subnet("10.78.0.0/16"))
    policies = (policy("SDNRoute", DestinationPrefix=FAR, NextHop="192.168.77.9"), remote_subnet(FAR))
    if policies_first:
        await add(node, network, *policies)
    entry = {"DestinationPrefix": FAR, "NextHop": "10.78.0.1"}
    route = await create(node, Kind.ROUTE, {"HostComputeNetwork": network, "Routes": [entry]})
    if not policies_first:
        await add(node, network, *policies)
    await add(node, network, policies[1], how="Remove")
    await add(node, network, remote_subnet(FAR))
    await node.service.delete(Kind.ROUTE, route)
    assert unlike_afresh(node) == []


async def test_of_two_networks_in_one_scope_always_the_same_ones_route_counts(node: Node) -> None:
    networks = [
        await create(node, Kind.NETWORK, bridge(name, prefix))
        for name, prefix in (("one", "10.9.1.0/24"), ("two", "10.9.2.0/24"))
    ]
    for network, hop in zip(reversed(networks), ("192.168.77.8", "192.168.77.9"), strict=True):
        await add(node, network, policy("SDNRoute", DestinationPrefix=FAR, NextHop=hop))
    for network, hop in zip(networks, ("192.168.77.6", "192.168.77.7"), strict=True):
        await add(node, network, policy("SDNRoute", DestinationPrefix=FAR, NextHop=hop), how="Update")


async def test_the_nodes_way_to_pods_on_the_underlay_stays_when_another_network_goes(
    node: Node, net: NodeNet
) -> None:
    """The last address of samewire0 takes all routes of that device with it."""
    other = await create(node, Kind.NETWORK, bridge("other", "10.9.1.0/24"))
    network = await create(node, Kind.NETWORK, bridge("lan", "192.168.77.0/24"))
    space = await create(node, Kind.NAMESPACE, {"NetnsPath": path_of(net.pod())})
    wanted = {"HostComputeNetwork": network, "IpConfigurations": [{"IpAddress": "192.168.77.50"}]}
    pod = await create(node, Kind.ENDPOINT, wanted)
    change = {"ResourceType": "Endpoint", "RequestType": "Add", "Settings": {"EndpointId": pod}}
    await node.service.modify(Kind.NAMESPACE, space, decode_modify(Kind.NAMESPACE, change))
    assert await node.auditor.compare() == []
    await node.service.delete(Kind.NETWORK, other)
    assert await node.auditor.compare() == []


async def test_a_hop_that_one_owner_leaves_to_another_keeps_its_number(node: Node) -> None:
    """A remote subnet to which the network has a route is the network's own, and then a thing of its own."""
    network = await create(node, Kind.NETWORK, overlay())
    route = policy("SDNRoute", DestinationPrefix=FAR, NextHop=PEER)
    await add(node, network, route, remote_subnet(FAR))
    await add(node, network, route, how="Remove")
    await add(node, network, policy("AutomaticDNS"))
