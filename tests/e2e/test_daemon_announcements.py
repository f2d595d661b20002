"""Addresses that come to this node from another one: the wire is told, and answers are not sent where the pod was."""

from __future__ import annotations

from contextlib import ExitStack
from ipaddress import ip_address

import pytest

from samewire.kernel.netns import NetNamespace
from tests.support.node import (
    ROUTER_IP,
    ROUTER_IP6,
    DaemonProcess,
    Json,
    NodeNet,
    can_ping,
    ip,
    ip_json,
    overlay,
    path_of,
    poll,
)
from tests.support.traffic import Sniffer
from tests.support.vlans import TagSniffer

pytestmark = pytest.mark.root

POD_IP, POD_IP6 = "192.168.77.100", "fd77::100"
ELSEWHERE = "02:00:00:00:00:99"


def network(kind: str, *policies: Json) -> Json:
    """On the underlay's own subnets."""
    subnets = [
        {
            "IpAddressPrefix": prefix,
            "Routes": [{"NextHop": via, "DestinationPrefix": everything}],
            "Policies": list(policies),
        }
        for prefix, via, everything in (
            ("192.168.77.0/24", ROUTER_IP, "0.0.0.0/0"),
            ("fd77::/64", ROUTER_IP6, "::/0"),
        )
    ]
    return {"Name": kind, "Type": kind, "Ipams": [{"Subnets": subnets}]}


def conf(node: DaemonProcess, kind: str) -> Json:
    """Without IPAM: HNS takes the addresses asked for."""
    made = node.conf(kind, policies=[], capabilities={"ips": True})
    made["runtimeConfig"] = {"ips": [f"{POD_IP}/24", f"{POD_IP6}/64"]}
    del made["ipam"]
    return made


@pytest.fixture(autouse=True)
def router_listens(net: NodeNet) -> None:
    """The kernel takes no multicast before it has got to the carrier of the router's interface."""
    route = "multicast ff00::/8 dev eth0"
    poll("it does", lambda: route in ip("-6", "route", "show", "table", "local", netns_name=net.router))


def mac_of(namespace: str) -> str:
    (link,) = ip_json("link", "show", "eth0", netns_name=namespace)
    return str(link["address"])


def known_to(router: str) -> set[str]:
    """The MACs under which a router knows the pod."""
    return {
        entry.get("lladdr", "")
        for address in (POD_IP, POD_IP6)
        for entry in ip_json("neighbour", "show", address, netns_name=router)
    }


@pytest.mark.parametrize("kind", ["L2Bridge", "Transparent"])
def test_a_pod_with_an_address_that_another_node_had(net: NodeNet, node: DaemonProcess, kind: str) -> None:
    """The router has just talked to the old one, and would go on doing so for half a minute."""
    node.request("POST", "/v2/networks", network(kind))
    for address in (POD_IP, POD_IP6):
        entry = (address, "lladdr", ELSEWHERE, "dev", "eth0", "nud", "reachable")
        ip("neighbour", "replace", *entry, netns_name=net.router)
    pod = net.pod()
    node.add("pod", pod, conf(node, kind))
    known = mac_of(net.node if kind == "L2Bridge" else pod)
    poll("the router knows", lambda: known_to(net.router) == {known})
    assert can_ping(net.router, POD_IP)
    assert can_ping(net.router, POD_IP6)


def test_the_nodes_mac_changes(net: NodeNet, node: DaemonProcess) -> None:
    """By which all its L2Bridge pods are known."""
    node.request("POST", "/v2/networks", network("L2Bridge"))
    node.add("pod", net.pod(), conf(node, "L2Bridge"))
    assert can_ping(net.router, POD_IP)
    assert can_ping(net.router, POD_IP6)
    assert known_to(net.router) == {mac_of(net.node)}
    ip("link", "set", "eth0", "address", "02:00:00:00:00:42", netns_name=net.node)
    poll("the router knows", lambda: known_to(net.router) == {"02:00:00:00:00:42"})


def test_in_a_vlan(net: NodeNet, node: DaemonProcess) -> None:
    tag = {"Type": "VLAN", "Settings": {"IsolationId": 7}}
    node.request("POST", "/v2/networks", network("L2Bridge", tag))
    with ExitStack() as stack:
        router = stack.enter_context(NetNamespace(path_of(net.router)))
        sniffer = stack.enter_context(TagSniffer(router, "eth0"))
        node.add("pod", net.pod(), conf(node, "L2Bridge"))
        assert sniffer.wait_tagged(lambda one: announces(one.frame, POD_IP)).vlan == 7
        assert sniffer.wait_tagged(lambda one: announces(one.frame, POD_IP6)).vlan == 7


def announces(frame: bytes, address: str) -> bool:
    """Whether it says of an address where that is."""
    packed = ip_address(address).packed
    if len(packed) == 4:
        return frame[12:14] == b"\x08\x06" and frame[28:32] == frame[38:42] == packed
    return frame[12:14] == b"\x86\xdd" and frame[54] == 136 and frame[22:38] == frame[62:78] == packed


def test_nothing_is_said_at_a_restart(net: NodeNet, node: DaemonProcess) -> None:
    """Nor of what is not on the wire."""
    node.request("POST", "/v2/networks", network("L2Bridge"))
    node.request("POST", "/v2/networks", overlay())
    node.add("pod", net.pod(), conf(node, "L2Bridge"))
    with ExitStack() as stack:
        router = stack.enter_context(NetNamespace(path_of(net.router)))
        sniffer = stack.enter_context(Sniffer(router, "eth0", outgoing=False))
        node.add("tunnelled", net.pod(), node.conf())
        node.stop()
        node.start()
        more = conf(node, "L2Bridge")
        more["runtimeConfig"] = {"ips": ["192.168.77.101/24"]}
        node.add("last", net.pod(), more)
        while not announces(frame := sniffer.wait(lambda _: True), "192.168.77.101"):
            assert not any(announces(frame, each) for each in (POD_IP, POD_IP6, "10.244.0.2"))
