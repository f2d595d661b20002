"""What operators of Windows nodes type to see objects (hnsdiag), at a daemon. The switch's part: test_vfp_walk.py."""

from __future__ import annotations

import json

import pytest

from tests.support.node import DaemonProcess, NodeNet, overlay
from tests.support.two_nodes import run

pytestmark = pytest.mark.root


def test_objects_are_listed_shown_and_deleted(net: NodeNet, node: DaemonProcess) -> None:
    def text(*arguments: str) -> str:
        done = run(node, "hns", *arguments)
        assert done.exit_code == 0, done.output
        return done.stdout

    node.request("POST", "/v2/networks", overlay())
    for name in ("one", "two"):
        node.add(name, net.pod(), node.conf())
    ids = [str(item["ID"]) for item in node.endpoints()]
    mapping = {"Protocol": 6, "InternalPort": 80, "ExternalPort": 80}
    balancer = {"HostComputeEndpoints": ids, "FrontendVIPs": ["10.96.0.10"], "PortMappings": [mapping]}
    made = node.request("POST", "/v2/loadbalancers", balancer)
    every = text("list")
    assert [object_id for object_id in (*ids, made["ID"]) if object_id not in every] == []
    assert [item["ID"] for item in json.loads(text("list", "endpoints", "--detail", "--json"))] == ids
    assert len(json.loads(text("list", "endpoints", "--json"))) == len(ids)
    assert json.loads(text("get", "network", "pods")) == node.request("GET", "/v2/networks")[0]
    text("delete", "loadbalancer", made["ID"])
    assert node.request("GET", "/v2/loadbalancers") == []
    assert run(node, "hns", "delete", "network", "nothing").exit_code != 0
    text("delete", "network", "pods")
    assert node.endpoints() == []
    assert node.differences() == []
