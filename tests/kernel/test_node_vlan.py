"""A VLAN policy where the uplink is a VLAN's interface: the kernel's tag is on the wire, and no other can be. On a
kernel without such interfaces the tag is the switch's own (test_switch_vlans.py), and any will do.
"""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from samewire.hcn.codec import decode_modify, decode_object
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.schema import Kind
from samewire.node.config import NodeConfig
from samewire.node.node import Node
from tests.support.node import NodeNet, can_ping, in_namespace, ip, ip_json, path_of

pytestmark = [pytest.mark.root, pytest.mark.kernelcore]

TAG, ROUTER, NODE_ADDRESS, POD = 7, "192.168.78.1", "192.168.78.2", "192.168.78.100"


@pytest.fixture
def uplink(net: NodeNet) -> str:
    """The uplink's name: a VLAN's interface if the kernel has such."""
    add = ("link", "add", "link", "eth0", "name", "eth0.7", "type", "vlan", "id", str(TAG))
    if in_namespace(net.node, "ip", *add, check=False).returncode:
        return "eth0"
    ip(*add, netns_name=net.router)
    for namespace, address in ((net.node, NODE_ADDRESS), (net.router, ROUTER)):
        ip("address", "add", f"{address}/24", "dev", "eth0.7", netns_name=namespace)
        ip("link", "set", "eth0.7", "up", netns_name=namespace)
    return "eth0.7"


@pytest.fixture
def config(config: NodeConfig, uplink: str) -> NodeConfig:
    return replace(config, uplink=uplink)


def vlan(tag: int) -> dict[str, Any]:
    return {"Type": "VLAN", "Settings": {"IsolationId": tag}}


async def create(node: Node, kind: Kind, **body: Any) -> str:
    return (await node.service.create(kind, decode_object(kind, body))).id


def bridge(tag: int) -> dict[str, Any]:
    route = {"NextHop": ROUTER, "DestinationPrefix": "0.0.0.0/0"}
    subnet = {"IpAddressPrefix": "192.168.78.0/24", "Routes": [route], "Policies": [vlan(tag)]}
    return {"Type": "L2Bridge", "Policies": [vlan(tag)], "Ipams": [{"Subnets": [subnet]}]}


async def test_the_tag_is_on_the_wire(net: NodeNet, node: Node, uplink: str) -> None:
    if uplink == "eth0":
        for tag in (TAG, TAG + 1):
            await create(node, Kind.NETWORK, **bridge(tag))
        return
    with pytest.raises(HcnError, match="VLAN") as caught:
        await create(node, Kind.NETWORK, **bridge(TAG + 1))
    assert caught.value.code is HcnCode.REQUEST_UNSUPPORTED
    network = await create(node, Kind.NETWORK, **bridge(TAG))
    wanted = {
        "HostComputeNetwork": network,
        "IpConfigurations": [{"IpAddress": POD}],
        "Policies": [vlan(TAG)],
    }
    endpoint = await create(node, Kind.ENDPOINT, **wanted)
    pod = net.pod()
    space = await create(node, Kind.NAMESPACE, NetnsPath=path_of(pod))
    member = {"ResourceType": "Endpoint", "RequestType": "Add", "Settings": {"EndpointId": endpoint}}
    await node.service.modify(Kind.NAMESPACE, space, decode_modify(Kind.NAMESPACE, member))
    assert can_ping(pod, ROUTER)
    assert can_ping(net.router, POD)
    seen = ip_json("neigh", "show", POD, netns_name=net.router)
    assert [entry["dev"] for entry in seen] == ["eth0.7"], "only tagged frames get there"
