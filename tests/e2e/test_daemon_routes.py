"""SDN routes with packets: whose packets obey them, where they lead, and how long they are there."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from samewire.hcn.errors import HcnCode
from tests.support.node import (
    NODE_IP,
    ROUTER_IP,
    SHORT_S,
    STALL_S,
    DaemonProcess,
    Json,
    NodeNet,
    bound_s,
    can_ping,
    in_namespace,
    ip,
    overlay,
)
from tests.support.two_nodes import run

pytestmark = pytest.mark.root

FAR, FAR_PREFIX = "10.77.0.1", "10.77.0.0/24"
SECOND_IP = "192.168.77.9"


@pytest.fixture
def second(net: NodeNet) -> str:
    """A second router on the uplink's wire, which has an address that the first knows nothing of."""
    name = net.namespace("s")
    line = [
        "link",
        "add",
        "link",
        "eth0",
        "name",
        "second",
        "netns",
        name,
        "type",
        "macvlan",
        "mode",
        "bridge",
    ]
    ip(*line, netns_name=net.router)
    for address, device in ((f"{SECOND_IP}/24", "second"), (f"{FAR}/32", "lo")):
        ip("address", "add", address, "dev", device, netns_name=name)
        ip("link", "set", device, "up", netns_name=name)
    return name


@pytest.fixture
def beside(net: NodeNet) -> str:
    """A neighbour of the node's on another interface than the uplink, which the node's own stack has a route to."""
    name = net.namespace("b")
    ip("link", "add", "side0", "netns", net.node, "type", "veth", "peer", "side0", "netns", name)
    for namespace, address in ((net.node, "10.88.0.1/24"), (name, "10.88.0.2/24")):
        ip("address", "add", address, "dev", "side0", netns_name=namespace)
        ip("link", "set", "side0", "up", netns_name=namespace)
    in_namespace(
        net.node, "sysctl", "-qw", "net.ipv4.conf.side0.forwarding=1"
    )  # as a node of Kubernetes has it
    ip("address", "add", f"{FAR}/32", "dev", "side0", netns_name=name)
    ip("route", "add", FAR_PREFIX, "via", "10.88.0.2", netns_name=net.node)
    ip("route", "add", "default", "via", "10.88.0.1", netns_name=name)
    return name


def id_of(node: DaemonProcess, name: str) -> str:
    """The endpoint of a container."""
    return next(str(item["ID"]) for item in node.endpoints() if item.get("ContainerId") == name)


def add(net: NodeNet, node: DaemonProcess, name: str, **conf: Any) -> str:
    pod = net.pod()
    node.add(name, pod, node.conf(**conf))
    return pod


def route_to(hop: str, **fields: Any) -> Json:
    return {"DestinationPrefix": FAR_PREFIX, "NextHop": hop, **fields}


def test_a_route_that_watches_endpoints(net: NodeNet, node: DaemonProcess, second: str) -> None:
    node.request("POST", "/v2/networks", overlay())
    one, beside_it = add(net, node, "one"), add(net, node, "beside-it")
    assert not can_ping(one, FAR, wait_s=SHORT_S)
    entry = route_to(SECOND_IP, AutomaticEndpointMonitor=True)
    wanted = {"HostComputeEndpoints": [id_of(node, "one")], "Routes": [entry]}
    route = node.request("POST", "/v2/routes", wanted)
    assert route["Routes"][0]["AutomaticEndpointMonitor"] is True
    assert can_ping(one, FAR)
    assert can_ping(beside_it, FAR), "an endpoint of its network that it does not name"
    two = add(net, node, "two")
    assert can_ping(two, FAR), "an endpoint that came later"
    node.delete("one", one, node.conf())
    left = node.request("GET", f"/v2/routes/{route['ID']}")
    assert "HostComputeEndpoints" not in left
    assert left["HostComputeNetwork"] == route["HostComputeNetwork"]
    assert can_ping(two, FAR)
    node.stop()
    node.start()
    assert can_ping(two, FAR)
    assert can_ping(add(net, node, "three"), FAR)
    node.request("DELETE", f"/v2/routes/{route['ID']}")
    assert not can_ping(two, FAR, wait_s=SHORT_S)
    assert node.differences() == []


def test_a_route_that_names_endpoints_is_theirs_alone(net: NodeNet, node: DaemonProcess, second: str) -> None:
    node.request("POST", "/v2/networks", overlay())
    pods = {name: add(net, node, name) for name in ("one", "two", "three")}

    def obeyed_by(*wanted: str) -> None:
        reached = [name for name, pod in pods.items() if can_ping(pod, FAR, wait_s=bound_s(name in wanted))]
        assert reached == list(wanted)

    named = {"HostComputeEndpoints": [id_of(node, "one"), id_of(node, "three")]}
    route = node.request("POST", "/v2/routes", {**named, "Routes": [route_to(SECOND_IP)]})
    obeyed_by("one", "three")
    assert node.differences() == []
    rules = json.loads(run(node, "vfp", "list-rules", "--object", route["ID"], "--json").stdout)
    assert [(rule["group"], rule["object"]) for rule in rules] == [("ROUTE_OWN", route["ID"])] * 2
    assert len({rule["port"] for rule in rules}) == 2
    node.stop(signal.SIGKILL)
    obeyed_by("one", "three")
    node.start()
    obeyed_by("one", "three")
    assert node.differences() == []
    pods["four"] = add(net, node, "four")
    obeyed_by("one", "three")
    node.request("DELETE", f"/v2/routes/{route['ID']}")
    obeyed_by()
    assert node.table("sw_own_routes") == []
    everybody = {"HostComputeNetwork": route["HostComputeNetwork"], "Routes": [route_to(SECOND_IP)]}
    node.request("POST", "/v2/routes", everybody)
    obeyed_by("one", "two", "three", "four")


def test_a_route_that_does_not_watch_keeps_its_endpoints(
    net: NodeNet, node: DaemonProcess, second: str
) -> None:
    node.request("POST", "/v2/networks", overlay())
    one, two = add(net, node, "one"), add(net, node, "two")
    reference = f"/endpoints/{id_of(node, 'one')}"
    policy = {"Type": "ROUTE", **route_to(SECOND_IP)}
    made = node.request("POST", "/v1/policylists", {"References": [reference], "Policies": [policy]})
    assert can_ping(one, FAR)
    assert not can_ping(two, FAR, wait_s=SHORT_S)
    refused = node.request("DELETE", f"/v1{reference}")
    assert refused["ErrorCode"] == HcnCode.ENTITY_HAS_REFERENCES
    assert can_ping(one, FAR)
    assert node.request("DELETE", f"/v1/policylists/{made['Output']['ID']}")["Success"]
    assert not can_ping(one, FAR, wait_s=SHORT_S)


@pytest.mark.parametrize("of", ["endpoint", "network"])
def test_the_way_of_sdn_route_policies(net: NodeNet, node: DaemonProcess, of: str, second: str) -> None:
    settings = route_to(SECOND_IP)
    policy = {"Type": "SDNRoute", "Settings": settings}
    network = node.request("POST", "/v2/networks", overlay())
    pod, other = add(net, node, "pod"), add(net, node, "other")
    path = f"/v2/networks/{network['ID']}" if of == "network" else f"/v2/endpoints/{id_of(node, 'pod')}"
    change = {"ResourceType": "Policy", "Settings": {"Policies": [policy]}}
    for how, works in (("Add", True), ("Remove", False)):
        node.request("POST", path, {**change, "RequestType": how})
        assert can_ping(pod, FAR, wait_s=bound_s(works)) is works
        assert can_ping(other, FAR, wait_s=bound_s(works and of == "network")) is (works and of == "network")
        assert node.differences() == []


def test_very_many_routes_of_an_endpoint_are_what_they_were_after_a_restart(
    net: NodeNet, node: DaemonProcess, second: str
) -> None:
    """Their set has the same name, nothing is written, and no flow is judged again; what is changed then is changed
    where it is.
    """
    node.request("POST", "/v2/networks", overlay())
    pod, other = add(net, node, "pod"), add(net, node, "other")
    path = f"/v2/endpoints/{id_of(node, 'pod')}"
    many = [{"DestinationPrefix": f"203.0.{number}.0/24", "NextHop": SECOND_IP} for number in range(70)]

    def change(how: str, *routes: Json) -> None:
        policies = [{"Type": "SDNRoute", "Settings": route} for route in routes]
        body = {"ResourceType": "Policy", "RequestType": how, "Settings": {"Policies": policies}}
        node.request("POST", path, body)

    def own() -> tuple[set[Any], int]:
        rows = node.table("sw_own_routes")
        return {(row["key"]["set_low"], row["key"]["set_high"]) for row in rows}, len(rows)

    change("Add", *many, route_to(SECOND_IP))
    assert can_ping(pod, FAR)
    names, _ = own()
    ports = node.table("sw_ports")
    for signal_ in (signal.SIGTERM, signal.SIGKILL):
        node.stop(signal_)
        assert can_ping(pod, FAR)
        node.start()
        assert node.differences() == []
        assert (own(), node.table("sw_ports")) == ((names, 71), ports)
    change("Remove", route_to(SECOND_IP), many[3])
    assert not can_ping(pod, FAR)
    assert own() == (names, 69)
    node.stop(signal.SIGKILL)
    node.start()
    assert own() == (names, 69)
    change("Add", route_to(SECOND_IP))
    assert own() == (names, 70)
    assert can_ping(pod, FAR)
    assert not can_ping(other, FAR)
    change("Reset")
    assert own() == (set(), 0)
    assert node.differences() == []


def test_need_encap_is_the_way_through_the_nodes_own_stack(
    net: NodeNet, node: DaemonProcess, beside: str
) -> None:
    node.request("POST", "/v2/networks", overlay())
    nat = {"Type": "OutBoundNAT", "Settings": {"Exceptions": ["10.0.0.0/8"]}}
    through = {"Type": "SDNRoute", "Settings": {"DestinationPrefix": FAR_PREFIX, "NeedEncap": True}}
    plain, routed = (
        [{"name": "EndpointPolicy", "value": policy} for policy in policies]
        for policies in ([nat], [nat, through])
    )
    without = add(net, node, "plain", policies=plain)
    assert can_ping(add(net, node, "routed", policies=routed), FAR)
    assert not can_ping(without, FAR, wait_s=SHORT_S)


def test_remote_endpoints_of_a_bridge_leave_the_way_to_their_addresses_as_it_is(
    net: NodeNet, node: DaemonProcess, second: str
) -> None:
    subnet = {
        "IpAddressPrefix": "10.9.1.0/24",
        "Routes": [{"DestinationPrefix": "0.0.0.0/0", "NextHop": "10.9.1.1"}],
    }
    policies = [{"Type": "SDNRoute", "Settings": route_to(SECOND_IP)}]
    wanted = {"Name": "cbr0", "Type": "L2Bridge", "Ipams": [{"Subnets": [subnet]}], "Policies": policies}
    network = node.request("POST", "/v2/networks", wanted)["ID"]
    pod = net.pod()
    node.add("pod", pod, node.conf("cbr0", "10.9.1.0/24", policies=[]))
    in_namespace(second, "sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1")  # a router, no proxy
    ip("route", "add", "10.9.1.0/24", "via", NODE_IP, netns_name=second)
    targets = (FAR, SECOND_IP, NODE_IP)
    assert all(can_ping(pod, target) for target in targets)
    for address in targets:  # as kube-proxy has them: backends of Services
        given = {"HostComputeNetwork": network, "Flags": 1, "IpConfigurations": [{"IpAddress": address}]}
        node.request("POST", "/v2/endpoints", given)
    assert all(can_ping(pod, target) for target in targets)


@pytest.mark.parametrize("kind", ["policy", "route"])
def test_what_goes_on_follows_the_routes_of_its_network(
    net: NodeNet, node: DaemonProcess, second: str, kind: str
) -> None:
    network = node.request("POST", "/v2/networks", overlay())["ID"]
    pod = add(net, node, "pod")

    def arrives(wait_s: float = STALL_S) -> bool:
        """Of one exchange: all echoes have the same identifier."""
        line = ("ping", "-n", "-e", "77", "-c", "1", "-W", str(wait_s), FAR)
        return in_namespace(pod, *line, check=False).returncode == 0

    def change(how: str, hop: str) -> None:
        policy = {"Type": "SDNRoute", "Settings": route_to(hop)}
        given = {"ResourceType": "Policy", "RequestType": how, "Settings": {"Policies": [policy]}}
        node.request("POST", f"/v2/networks/{network}", given)

    assert not arrives(SHORT_S)
    if kind == "policy":
        change("Add", SECOND_IP)
        assert arrives()
        change("Update", ROUTER_IP)
        assert not arrives(SHORT_S)
        change("Update", SECOND_IP)
        assert arrives()
        change("Remove", SECOND_IP)
    else:
        wanted = {"HostComputeNetwork": network, "Routes": [route_to(SECOND_IP)]}
        route = node.request("POST", "/v2/routes", wanted)["ID"]
        assert arrives()
        node.request("DELETE", f"/v2/routes/{route}")
    assert not arrives(SHORT_S)
    assert node.differences() == []
