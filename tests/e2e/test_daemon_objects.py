"""HNS v1 against a whole daemon: what flannel's host-gw says on Windows, and what the kernel then has."""

from __future__ import annotations

from typing import Any

import pytest

from samewire.node.resolver import node_dns
from tests.support.node import (
    NODE_IP,
    SHORT_S,
    DaemonProcess,
    NodeNet,
    can_ping,
    ip_json,
    overlay,
    path_of,
)

pytestmark = pytest.mark.root


def hns(node: DaemonProcess, method: str, path: str, body: Any = None) -> Any:
    """HNSCall, as a shim carries it."""
    answer = node.request(method, f"/v1{path}", body)
    assert answer["Success"], answer
    return answer.get("Output")


def on_samewire0(net: NodeNet) -> set[str]:
    (link,) = ip_json("address", "show", "dev", "samewire0", netns_name=net.node)
    return {
        f"{entry['local']}/{entry['prefixlen']}" for entry in link["addr_info"] if entry["scope"] == "global"
    }


def test_flannels_endpoint_for_the_node(net: NodeNet, node: DaemonProcess) -> None:
    subnet = {"AddressPrefix": "10.9.1.0/24", "GatewayAddress": "10.9.1.1"}
    network = hns(node, "POST", "/networks/", {"Name": "cbr0", "Type": "L2Bridge", "Subnets": [subnet]})
    assert network["ManagementIP"] == NODE_IP
    wanted = {"Name": "cbr0_ep", "VirtualNetwork": network["ID"], "IPAddress": "10.9.1.2"}
    endpoint = hns(node, "POST", "/endpoints/", wanted)
    path = f"/endpoints/{endpoint['ID']}"
    assert on_samewire0(net) == {"10.9.1.1/32"}
    assert hns(node, "POST", f"{path}/attach", {"SystemType": "Host", "CompartmentId": 1})["State"] == 2
    assert on_samewire0(net) == {"10.9.1.1/32", "10.9.1.2/32"}
    assert node.differences() == []
    pod = net.pod()
    space = node.request("POST", "/v2/namespaces", {"NetnsPath": path_of(pod)})
    wanted = {"VirtualNetwork": network["ID"], "IPAddress": "10.9.1.5", "GatewayAddress": "10.9.1.2"}
    member = hns(node, "POST", "/endpoints/", wanted)
    hns(node, "POST", f"/endpoints/{member['ID']}/attach", {"CompartmentId": space["NamespaceId"]})
    assert [route["gateway"] for route in ip_json("route", "show", "default", netns_name=pod)] == ["10.9.1.2"]
    assert can_ping(pod, "10.9.1.2")
    assert can_ping(pod, NODE_IP)
    assert can_ping(net.node, "10.9.1.5")
    node.stop()
    node.start()
    assert on_samewire0(net) == {"10.9.1.1/32", "10.9.1.2/32"}
    assert can_ping(pod, "10.9.1.2")
    hns(node, "POST", f"{path}/detach")
    assert on_samewire0(net) == {"10.9.1.1/32"}
    assert not can_ping(pod, "10.9.1.2", wait_s=SHORT_S)
    hns(node, "DELETE", f"/networks/{network['ID']}")
    assert on_samewire0(net) == set()
    assert node.differences() == []


def test_pods_of_a_network_with_automatic_dns_have_the_nodes_servers(
    net: NodeNet, node: DaemonProcess
) -> None:
    made = node.request("POST", "/v2/networks", {**overlay(), "Policies": [{"Type": "AutomaticDNS"}]})
    assert "StoredOnly" not in made.get("Health", {}).get("Extra", {})
    result = node.add("pod", net.pod(), node.conf(policies=[]))
    assert tuple(result["dns"].get("nameservers", ())) == node_dns().server_list
