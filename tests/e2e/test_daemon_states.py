"""The State of objects in both dialects, each where its situation arises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from samewire.kernel.netns import NetNamespace
from tests.support.node import (
    DaemonProcess,
    NodeNet,
    can_ping,
    ip,
    overlay,
    path_of,
    poll,
    remove_namespace,
)

pytestmark = pytest.mark.root

CREATED, ATTACHED, SHARING, DETACHED, DEGRADED, DESTROYED = 1, 2, 3, 4, 5, 6


def hns(node: DaemonProcess, method: str, path: str, body: Any = None) -> Any:
    answer = node.request(method, f"/v1{path}", body)
    assert answer["Success"], answer
    return answer.get("Output")


class Told:
    """What the daemon says of an object's state, by whichever way one asks."""

    def __init__(self, node: DaemonProcess) -> None:
        self.node = node

    def state(self, kind: str, object_id: str) -> int:
        path = f"/v2/{kind}/{object_id}"
        found = self.node.request("GET", path)["State"]
        flat = {"SchemaVersion": {"Major": 1, "Minor": 0}}
        said = [self.node.request("POST", f"{path}/query", query) for query in ({"Flags": 1}, flat)]
        states = [item["State"] for item in said if "State" in item]  # v1 has none for namespaces
        text = json.dumps({"State": found})
        states += [found] * (
            object_id in self.node.request("POST", f"/v2/{kind}/enumerate", {"Filter": text})
        )
        if kind != "namespaces":
            states.append(hns(self.node, "GET", f"/{kind}/{object_id}")["State"])
        assert set(states) == {found}
        assert len(states) == (2 if kind == "namespaces" else 4)
        return int(found)

    def wait(self, kind: str, object_id: str, wanted: int) -> None:
        path = f"/v2/{kind}/{object_id}"
        poll(f"state {wanted}", lambda: self.node.request("GET", path)["State"] == wanted)
        assert self.state(kind, object_id) == wanted


def made(node: DaemonProcess, pod: str) -> tuple[str, str, str]:
    """A network, an endpoint and a namespace; not attached."""
    network = node.request("POST", "/v2/networks", overlay())["ID"]
    endpoint = node.request("POST", "/v2/endpoints", {"HostComputeNetwork": network})["ID"]
    space = node.request("POST", "/v2/namespaces", {"NetnsPath": path_of(pod)})["ID"]
    return network, endpoint, space


def change(node: DaemonProcess, space: str, how: str, endpoint: str) -> None:
    body = {"ResourceType": "Endpoint", "RequestType": how, "Settings": {"EndpointId": endpoint}}
    node.request("POST", f"/v2/namespaces/{space}", body)


def test_from_creation_to_deletion(net: NodeNet, node: DaemonProcess) -> None:
    told = Told(node)
    network, endpoint, space = made(node, net.pod())
    for kind, object_id in (("networks", network), ("endpoints", endpoint), ("namespaces", space)):
        assert told.state(kind, object_id) == CREATED
    change(node, space, "Add", endpoint)
    assert told.state("endpoints", endpoint) == SHARING
    change(node, space, "Remove", endpoint)
    assert told.state("endpoints", endpoint) == DETACHED
    hns(node, "POST", f"/endpoints/{endpoint}/attach", {"SystemType": "Host"})
    assert told.state("endpoints", endpoint) == ATTACHED
    node.stop()
    node.start()
    assert told.state("endpoints", endpoint) == ATTACHED
    assert hns(node, "DELETE", f"/endpoints/{endpoint}")["State"] == DESTROYED
    assert hns(node, "DELETE", f"/networks/{network}")["State"] == DESTROYED
    assert node.endpoints() == []


def another(node: DaemonProcess, network: str, pod: str) -> str:
    """A pod of the network, by HCN; its address."""
    endpoint = node.request("POST", "/v2/endpoints", {"HostComputeNetwork": network})
    space = node.request("POST", "/v2/namespaces", {"NetnsPath": path_of(pod)})["ID"]
    change(node, space, "Add", endpoint["ID"])
    address: str = endpoint["IpConfigurations"][0]["IpAddress"]
    return address


def test_a_pod_whose_network_namespace_has_gone_is_degraded(net: NodeNet, node: DaemonProcess) -> None:
    told = Told(node)
    pod = net.pod()
    network, endpoint, space = made(node, pod)
    change(node, space, "Add", endpoint)
    working = another(node, network, net.pod())
    remove_namespace(pod)
    told.wait("endpoints", endpoint, DEGRADED)
    assert told.state("namespaces", space) == DEGRADED
    assert told.state("networks", network) == CREATED
    for degraded in (f"/v2/endpoints/{endpoint}", f"/v2/namespaces/{space}"):
        assert "namespace" in node.request("GET", degraded)["Health"]["Data"]["Error"]
    listed = {item["ID"]: item["State"] for item in node.endpoints()}
    assert sorted(listed.values()) == [SHARING, DEGRADED], "whoever filters by 3 gets the pods that work"
    assert can_ping(net.node, working)
    assert [item["subject"] for item in node.differences()] == [endpoint]
    findings = node.request("GET", "/v2/doctor")["findings"]
    said = [item["check"] for item in findings if endpoint in str(item)]
    assert said == ["endpoint", "namespace"], "nobody promises a repair"
    node.stop()
    node.start()
    assert told.state("endpoints", endpoint) == DEGRADED, "a restart does not make it whole"
    change(node, space, "Remove", endpoint)
    assert told.state("endpoints", endpoint) == DETACHED
    fresh = net.pod()
    again = node.request("POST", "/v2/namespaces", {"NetnsPath": path_of(fresh)})["ID"]
    change(node, again, "Add", endpoint)
    assert told.state("endpoints", endpoint) == SHARING
    assert can_ping(fresh, working)
    assert node.differences() == []


def test_a_pod_whose_namespaces_file_is_something_else_keeps_nobody_from_working(
    net: NodeNet, node: DaemonProcess
) -> None:
    told = Told(node)
    pod = net.pod()
    network, endpoint, space = made(node, pod)
    change(node, space, "Add", endpoint)
    working = another(node, network, net.pod())
    with NetNamespace(path_of(pod)):  # the pod lives on, and so does its link
        remove_namespace(pod)
        Path(path_of(pod)).write_text("no namespace")
        try:
            node.stop()
            node.start()
            assert told.state("endpoints", endpoint) == DEGRADED
            assert node.request("GET", "/v2/health")["problems"] == [
                f"endpoint {endpoint}: {path_of(pod)}: is not a network namespace file"
            ]
            assert [item["subject"] for item in node.differences()] == [endpoint]
            assert can_ping(net.node, working)
            change(node, space, "Remove", endpoint)
            assert told.state("endpoints", endpoint) == DETACHED
            assert node.differences() == []
        finally:
            Path(path_of(pod)).unlink()


def test_networks_without_their_uplink_are_degraded(net: NodeNet, node: DaemonProcess) -> None:
    told = Told(node)
    network, endpoint, space = made(node, net.pod())
    nat = node.request("POST", "/v2/networks", {"Name": "nat", "Type": "NAT"})["ID"]
    policies = [{"Type": "VLAN", "Settings": {"IsolationId": 7}}]
    tagged = node.request("POST", "/v2/networks", {"Name": "vlan", "Type": "L2Bridge", "Policies": policies})[
        "ID"
    ]
    change(node, space, "Add", endpoint)
    ip("link", "set", "eth0", "name", "away", netns_name=net.node)
    told.wait("networks", network, DEGRADED)
    told.wait("networks", tagged, DEGRADED)
    assert "uplink" in node.request("GET", f"/v2/networks/{network}")["Health"]["Data"]["Error"]
    assert told.state("networks", nat) == CREATED
    assert told.state("endpoints", endpoint) == SHARING, "pods of the node still reach each other"
    ip("link", "set", "away", "name", "eth0", netns_name=net.node)
    told.wait("networks", network, CREATED)
    told.wait("networks", tagged, CREATED)
