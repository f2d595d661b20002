"""Pods with more interfaces than one, as Multus and podman make them, and what other plugins do to their routes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.node import DaemonProcess, Json, NodeNet, daemon, ip, ip_json, overlay, poll

pytestmark = pytest.mark.root

ONE = overlay("one", "10.244.0.0/24", 4096, "fd00:244::/64")
TWO = overlay("two", "10.245.0.0/24", 4097, "fd00:245::/64")


def conf(name: str) -> Json:
    return {"cniVersion": "1.1.0", "name": name, "type": "samewire-cni"}


def defaults(pod: str) -> list[list[str]]:
    """The interfaces of the default routes of each IP version, the one that is used first."""
    found = [ip_json(family, "route", "show", "default", netns_name=pod) for family in ("-4", "-6")]
    ordered = [sorted(routes, key=lambda route: route.get("metric", 0)) for routes in found]
    return [[route["dev"] for route in routes] for routes in ordered]


def test_interfaces_do_not_take_one_anothers_default_route(net: NodeNet, tmp_path: Path) -> None:
    """Nor does the daemon when it looks after them: the pod would change its address every so often."""
    pod = net.pod()
    results = {}
    with daemon(net, tmp_path, audit_interval_s=1) as node:
        node.start()
        for name, interface, network in (("one", "eth0", ONE), ("two", "net1", TWO)):
            node.request("POST", "/v2/networks", network)
            status, results[name] = node.cni("ADD", "pod", pod, conf(name), interface=interface)
            assert status == 0, results
        assert defaults(pod) == [["eth0", "net1"]] * 2
        assert node.differences() == []
        for name, interface in (("one", "eth0"), ("two", "net1")):
            checked = {**conf(name), "prevResult": results[name]}
            assert node.cni("CHECK", "pod", pod, checked, interface=interface) == (0, {})
        ip("link", "set", "eth0", "down", netns_name=pod)
        assert defaults(pod) == [["net1"]] * 2
        poll("eth0 is whole again", lambda: node.differences() == [])
        assert defaults(pod) == [["eth0", "net1"]] * 2
        node.delete("pod", pod, conf("one"))
        assert defaults(pod) == [["net1"]] * 2


def test_the_default_route_of_another_plugin_stays(net: NodeNet, node: DaemonProcess) -> None:
    pod = net.pod()
    ip("link", "add", "eth0", "up", "type", "veth", "peer", "peer0", netns_name=pod)
    ip("address", "add", "192.0.2.7/24", "dev", "eth0", netns_name=pod)
    ip("route", "add", "default", "via", "192.0.2.1", "dev", "eth0", netns_name=pod)
    node.request("POST", "/v2/networks", ONE)
    status, result = node.cni("ADD", "pod", pod, conf("one"), interface="net1")
    assert status == 0, result
    assert defaults(pod) == [["eth0", "net1"], ["net1"]]
    assert node.differences() == []


def test_a_wrong_gateway_is_mended(net: NodeNet, tmp_path: Path) -> None:
    pod = net.pod()
    with daemon(net, tmp_path, audit_interval_s=1) as node:
        node.start()
        node.request("POST", "/v2/networks", ONE)
        node.add("pod", pod, conf("one"))
        ip("route", "replace", "default", "via", "10.244.0.9", netns_name=pod)
        poll("it is whole again", lambda: node.differences() == [])
    (default,) = ip_json("route", "show", "default", netns_name=pod)
    assert default["gateway"] == "10.244.0.1"


def test_routes_that_a_later_plugin_has_moved_are_there(net: NodeNet, node: DaemonProcess) -> None:
    """As sbr does, which puts them in a table of their own; back in the main one they would go before others."""
    pod = net.pod()
    node.request("POST", "/v2/networks", ONE)
    status, result = node.cni("ADD", "pod", pod, conf("one"))
    assert status == 0, result
    checked = {**conf("one"), "prevResult": result}
    ip("route", "add", "default", "via", "10.244.0.1", "table", "100", netns_name=pod)
    ip("route", "delete", "default", "table", "main", netns_name=pod)
    assert node.cni("CHECK", "pod", pod, checked) == (0, {})
    assert node.differences() == []
    ip("route", "delete", "default", "table", "100", netns_name=pod)
    assert node.cni("CHECK", "pod", pod, checked)[0] == 1
    assert [found["text"] for found in node.differences()] == ["route to 0.0.0.0/0 is missing"]
