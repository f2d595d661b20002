"""What operators of Windows nodes type (hnsdiag, vfpctrl), at a daemon with pods that talk, in text and JSON."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.crowd import answering
from tests.support.node import DaemonProcess, Json, NodeNet, overlay
from tests.support.two_nodes import run

pytestmark = pytest.mark.root

PORT = 7000


class World:
    """A client and a server; a connection between them that goes by the server's load balancer."""

    def __init__(self, net: NodeNet, node: DaemonProcess) -> None:
        self.net, self.node = net, node
        node.request("POST", "/v2/networks", overlay())
        acl = {
            "Type": "ACL",
            "Settings": {"Id": "http", "Action": "Allow", "Direction": "In", "LocalPorts": "7000"},
        }
        policies = [{"name": "EndpointPolicy", "value": acl}]
        self.server, self.client = net.pod(), net.pod()
        node.add("server", self.server, node.conf(policies=policies))
        node.add("client", self.client, node.conf(policies=[]))
        self.ids = {item["ContainerId"]: str(item["ID"]) for item in node.endpoints()}
        mapping = {"Protocol": 6, "InternalPort": PORT, "ExternalPort": 80}
        balancer = {
            "HostComputeEndpoints": [self.ids["server"]],
            "FrontendVIPs": ["10.96.0.10"],
            "PortMappings": [mapping],
        }
        self.balancer = str(node.request("POST", "/v2/loadbalancers", balancer)["ID"])

    def text(self, *arguments: str) -> str:
        """What a command prints."""
        done = run(self.node, *arguments)
        assert done.exit_code == 0, done.output
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """The same with ``--json``."""
        return json.loads(self.text(*arguments, "--json"))


@pytest.fixture
def world(net: NodeNet, node: DaemonProcess) -> World:
    return World(net, node)


@pytest.fixture
def connection(world: World) -> Iterator[socket.socket]:
    with answering(world.server, "server", PORT):
        with world.net.inside(world.client):
            opened = socket.create_connection(("10.96.0.10", 80), 5)
        with opened:
            opened.sendall(b"hello")
            assert opened.recv(100)
            yield opened


def test_hns(world: World) -> None:
    every = world.text("hns", "list")
    for object_id in (*world.ids.values(), world.balancer):
        assert object_id in every
    assert len(world.json("hns", "list", "endpoints")) == 2
    assert json.loads(world.text("hns", "get", "network", "pods"))["Type"] == "Overlay"
    world.text("hns", "delete", "loadbalancer", world.balancer)
    assert world.node.request("GET", "/v2/loadbalancers") == []
    assert run(world.node, "hns", "delete", "network", "nothing").exit_code != 0
    world.text("hns", "delete", "network", "pods")
    assert world.node.endpoints() == []


def test_vfp(world: World, connection: socket.socket) -> None:
    source = connection.getsockname()
    server = world.ids["server"]
    (port,) = [
        item for item in world.json("vfp", "list-ports") if (item["endpoint"] or {}).get("id") == server
    ]
    assert f"Endpoint: {server}" in world.text("vfp", "list-ports")
    name = str(port["id"])
    layers = [layer["name"] for layer in _layers(world.json("vfp", "list-layers", "--port", name))]
    assert "ACL" in layers
    assert all(f"Layer: {layer}" in world.text("vfp", "list-layers", "--port", name) for layer in layers)
    rules = world.json("vfp", "list-rules", "--port", name, "--layer", "ACL")
    (counted,) = [rule for rule in rules if rule["policy"] == "http"]
    assert "http" in world.text("vfp", "list-rules", "--port", name)
    assert (counted["judged"], counted["object"]) == (1, server), "the connection's first packet"
    assert world.json("vfp", "list-rules", "--object", server), "from an endpoint to its rules"
    made = world.json("vfp", "list-rules", "--object", world.balancer)
    assert {rule["object"] for rule in made} == {world.balancer}, "from a load balancer, and back"
    (flow,) = world.json("vfp", "list-unified-flows", "--port", name)
    assert flow["ends"]["destination"] == "10.96.0.10"
    assert flow["ends"]["source_port"] == source[1]
    assert flow["translated"]["destination_port"] == PORT
    assert flow["state"] == "established"
    assert "10.96.0.10" in world.text("vfp", "list-unified-flows", "--port", name)
    assert world.json("vfp", "get-flow-stats")["flow_inserts"] >= 1
    own = world.ids["client"]
    new = f"6 {source[0]} 40000 10.96.0.10 80 1 1"
    walked = world.json("vfp", "process-tuples", "--port", own, new)
    assert "Fate: port" in world.text("vfp", "process-tuples", "--port", own, new)
    assert json.dumps(walked).count('"fate": "port"') == 1
    steps = world.json("vfp", "match-tuple", "--port", own, "--layer", "ACL", new)
    assert [step["layer"] for step in steps][-1] == "acl_in"
    blocked = run(
        world.node, "vfp", "process-tuples", "--port", own, f"6 {source[0]} 1 {port['addresses'][0]} 81 1 1"
    )
    assert blocked.exit_code == 1
    assert "Dropped: acl_in" in blocked.stdout


def _layers(answer: Any) -> list[Json]:
    found: list[Json] = answer if isinstance(answer, list) else answer["layers"]
    return found
