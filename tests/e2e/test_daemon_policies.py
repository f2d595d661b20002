"""Policies and flags of networks and endpoints at a whole daemon, each by what packets then do."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from samewire.kernel.bpf import unmount_bpffs
from tests.support.crowd import answering, crowds
from tests.support.node import (
    NODE_IP,
    ROUTER_IP,
    SHORT_S,
    DaemonProcess,
    Json,
    NodeNet,
    bound_s,
    can_ping,
    daemon,
    in_namespace,
    ip,
    ip_json,
    overlay,
    path_of,
    poll,
    remove_namespace,
)
from tests.support.tunnel_peer import Seen, tunnel_peer

pytestmark = pytest.mark.root

FAR = "10.244.9.7"
FAR_MAC = "02:11:0a:f4:09:07"


def policy(kind: str, **settings: Any) -> Json:
    return {"Type": kind, "Settings": settings}


def network(kind: str, subnet: str, gateway: str = "", *policies: Json, **fields: Any) -> Json:
    """A network without VNI."""
    routes = [{"NextHop": gateway, "DestinationPrefix": "0.0.0.0/0"}] if gateway else []
    subnets = [{"IpAddressPrefix": subnet, "Routes": routes, "Flags": fields.pop("SubnetFlags", 0)}]
    return {"Name": kind, "Type": kind, "Policies": list(policies), "Ipams": [{"Subnets": subnets}], **fields}


class Pods:
    """Pods made by the API alone."""

    def __init__(self, net: NodeNet, node: DaemonProcess) -> None:
        self.net, self.node = net, node

    def network(self, body: Json) -> str:
        """Create a network; its id."""
        return str(self.node.request("POST", "/v2/networks", body)["ID"])

    def add(
        self, network_id: str, *policies: Json, space: Json | None = None, **fields: Any
    ) -> tuple[str, Json]:
        """A pod's namespace and endpoint."""
        pod = self.net.pod()
        body = {"HostComputeNetwork": network_id, "Policies": list(policies), **fields}
        made = self.node.request("POST", "/v2/endpoints", body)
        where = self.node.request("POST", "/v2/namespaces", {"NetnsPath": path_of(pod), **(space or {})})
        settings = {"EndpointId": made["ID"]}
        change = {"ResourceType": "Endpoint", "RequestType": "Add", "Settings": settings}
        self.node.request("POST", f"/v2/namespaces/{where['ID']}", change)
        return pod, made

    def modify(self, network_id: str, how: str, *policies: Json) -> None:
        """Change a network's policies."""
        change = {"ResourceType": "Policy", "RequestType": how, "Settings": {"Policies": list(policies)}}
        self.node.request("POST", f"/v2/networks/{network_id}", change)


@pytest.fixture
def pods(net: NodeNet, node: DaemonProcess) -> Pods:
    return Pods(net, node)


def address_of(endpoint: Json) -> str:
    return str(endpoint["IpConfigurations"][0]["IpAddress"])


def interface(pod: str) -> Json:
    (found,) = ip_json("link", "show", "eth0", netns_name=pod)
    return found


def router_mac(node: DaemonProcess, network_id: str) -> str:
    """The DrMacAddress of a network, as on the wire."""
    policies = node.request("GET", f"/v2/networks/{network_id}")["Policies"]
    found = next(item["Settings"]["Address"] for item in policies if item["Type"] == "DrMacAddress")
    return str(found).lower().replace("-", ":")


# --- the overlay on the wire ----------------------------------------------------------------------


@pytest.mark.parametrize("port", [4789, 8472])
def test_tunnels_on_the_wire(net: NodeNet, tmp_path: Path, port: int) -> None:
    """VSID, VxlanPort, DrMacAddress, ProviderAddress of a remote endpoint, RemoteSubnetRoute."""
    with daemon(net, tmp_path, vxlan_port=port) as node, tunnel_peer(net, net.router, port) as peer:
        pods = Pods(net, node.start())
        vxlan = pods.network({**overlay(vni=5000), "Policies": [policy("VxlanPort", Port=port)]})
        pod, endpoint = pods.add(vxlan)
        assert not can_ping(pod, FAR, wait_s=SHORT_S)
        assert peer.seen == []
        far = {
            "HostComputeNetwork": vxlan,
            "Flags": 1,
            "MacAddress": FAR_MAC,
            "IpConfigurations": [{"IpAddress": FAR}],
            "Policies": [policy("ProviderAddress", ProviderAddress=ROUTER_IP)],
        }
        remote = node.request("POST", "/v2/endpoints", far)
        assert can_ping(pod, FAR)
        own = router_mac(node, vxlan)
        assert peer.seen == [Seen(5000, own, FAR_MAC, address_of(endpoint), FAR)]
        node.request("DELETE", f"/v2/endpoints/{remote['ID']}")
        assert not can_ping(pod, FAR, wait_s=SHORT_S)
        route = policy(
            "RemoteSubnetRoute",
            DestinationPrefix="10.244.9.0/24",
            IsolationId=5000,
            ProviderAddress=ROUTER_IP,
            DistributedRouterMacAddress="00-15-5D-00-00-09",
        )
        pods.modify(vxlan, "Add", route)
        assert can_ping(pod, FAR)
        assert peer.seen[1:] == [Seen(5000, own, "00:15:5d:00:00:09", address_of(endpoint), FAR)]
        pods.modify(vxlan, "Remove", route)
        assert not can_ping(pod, FAR, wait_s=SHORT_S)
        assert node.differences() == []


def test_a_local_endpoint_takes_the_address_of_a_remote_one(net: NodeNet, node: DaemonProcess) -> None:
    pods = Pods(net, node)
    vxlan = pods.network(overlay())
    moving = [{"IpAddress": "10.244.0.77"}]
    provider = policy("ProviderAddress", ProviderAddress=ROUTER_IP)
    body = {"HostComputeNetwork": vxlan, "Flags": 1, "IpConfigurations": moving, "Policies": [provider]}
    with tunnel_peer(net, net.router) as peer:
        remote = node.request("POST", "/v2/endpoints", body)
        pod, _ = pods.add(vxlan)
        assert can_ping(pod, "10.244.0.77")
        assert len(peer.seen) == 1
        pods.add(vxlan, IpConfigurations=moving)
        assert node.ask("GET", f"/v2/endpoints/{remote['ID']}")[0] == 404
        assert can_ping(pod, "10.244.0.77")
        assert len(peer.seen) == 1
        assert node.differences() == []


@pytest.mark.parametrize("flags", [0, 1024])
def test_host_route_and_disable_host_port(pods: Pods, flags: int) -> None:
    """The node takes part in an overlay by HostRoute, in others unless DisableHostPort says no."""
    net, node = pods.net, pods.node
    vxlan = pods.network({**overlay(), "Policies": [], "Flags": flags})
    nat = pods.network(network("NAT", "10.50.0.0/24", "10.50.0.1", Flags=flags))
    there, others = ([pods.add(name) for name in (vxlan, nat)] for _ in range(2))
    for (pod, endpoint), (other, _), inside in zip(there, others, (False, not flags), strict=True):
        assert can_ping(other, address_of(endpoint))
        assert can_ping(net.node, address_of(endpoint), wait_s=bound_s(inside)) is inside
        if flags:
            assert not can_ping(pod, NODE_IP, wait_s=SHORT_S)
    pods.modify(vxlan, "Add", policy("HostRoute"))
    assert can_ping(net.node, address_of(there[0][1]), wait_s=bound_s(not flags)) is not bool(flags)
    assert node.differences() == []


# --- interfaces -----------------------------------------------------------------------------------


def test_the_size_of_packets(pods: Pods) -> None:
    nat = pods.network(network("NAT", "10.50.0.0/24", "10.50.0.1"))
    cases: tuple[tuple[list[Json], int], ...] = (
        ([], 1500),
        ([policy("InterfaceParameters", Mtu=1300)], 1300),
        ([policy("EncapOverhead", Overhead=60)], 1440),
    )
    for policies, mtu in cases:
        pod, _ = pods.add(nat, *policies)
        assert interface(pod)["mtu"] == mtu
        for size, fits in ((mtu - 28, True), (mtu - 27, False)):
            asked = ("ping", "-n", "-c1", "-W1", "-Mdo", f"-s{size}", NODE_IP)
            assert (in_namespace(pod, *asked, check=False).returncode == 0) is fits


def test_macs_of_the_pool_are_those_of_the_interfaces(pods: Pods) -> None:
    ranges = [{"StartMacAddress": "00-15-5D-52-C0-00", "EndMacAddress": "00-15-5D-52-C0-01"}]
    nat = pods.network(network("NAT", "10.50.0.0/24", "10.50.0.1", MacPool={"Ranges": ranges}))
    for last in ("00", "01"):
        assert interface(pods.add(nat)[0])["address"] == f"00:15:5d:52:c0:{last}"
    assert pods.node.ask("POST", "/v2/endpoints", {"HostComputeNetwork": nat})[0] == 507


def test_a_port_is_found_by_its_name(pods: Pods) -> None:
    nat = pods.network(network("NAT", "10.50.0.0/24", "10.50.0.1"))
    _, endpoint = pods.add(nat, policy("PortName", Name="front-door"))
    pods.add(nat)
    (found,) = pods.node.request("GET", "/v2/switch/ports?endpoint=front-door")
    assert found["endpoint"]["id"] == endpoint["ID"]
    (named,) = [item for item in pods.node.request("GET", "/v2/switch/endpoints") if item["port_name"]]
    assert named["port_name"] == "front-door"


def test_an_endpoint_at_the_gateways_address(pods: Pods) -> None:
    """DoNotReserveGatewayAddress, as for a router in a pod."""
    body = network("Internal", "10.50.0.0/24", "10.50.0.9", SubnetFlags=1)
    internal = pods.network(body)
    pods.add(internal, IpConfigurations=[{"IpAddress": "10.50.0.9"}])
    pod, _ = pods.add(internal)
    assert can_ping(pod, "10.50.0.9")


@pytest.mark.parametrize("flags", [0, 1])
def test_local_routed_vip_changes_nothing(pods: Pods, flags: int) -> None:
    nat = pods.network(network("NAT", "10.50.0.0/24", "10.50.0.1"))
    mapping = policy("PortMapping", Protocol=17, InternalPort=7000, ExternalPort=8080, Flags=flags)
    pod, endpoint = pods.add(nat, mapping)
    with answering(pod, "pod", 7000):
        code = (
            "import socket; one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); one.settimeout(20);"
            f"one.sendto(b'x', ('{NODE_IP}', 8080)); print(one.recv(99).decode())"
        )
        said = in_namespace(pods.net.router, sys.executable, "-c", code).stdout.split()
    assert said == ["pod", address_of(endpoint)]


def test_connections_end_with_their_host_port(pods: Pods) -> None:
    """At the client's next packet, and those of the other one go on."""
    pod, endpoint = pods.add(pods.network(network("NAT", "10.50.0.0/24", "10.50.0.1")))
    mappings = [
        policy("PortMapping", Protocol=6, InternalPort=7000, ExternalPort=port) for port in (8080, 8081)
    ]

    def change(how: str, *policies: Json) -> None:
        body = {"ResourceType": "Policy", "RequestType": how, "Settings": {"Policies": list(policies)}}
        pods.node.request("POST", f"/v2/endpoints/{endpoint['ID']}", body)

    change("Add", *mappings)
    with (
        answering(pod, "pod", 7000),
        crowds(pods.net.router) as clients,
        clients.open(3, NODE_IP, 8080) as first,
        clients.open(3, NODE_IP, 8081) as second,
    ):
        assert {*first.first, *second.first} == {f"pod {address_of(endpoint)}"}
        change("Remove", mappings[0])
        assert set(first.ask()) == {"ECONNRESET"}
        second.expect()


# --- the uplink -----------------------------------------------------------------------------------


def test_a_network_that_names_its_adapter(pods: Pods) -> None:
    (uplink,) = ip_json("link", "show", "eth0", netns_name=pods.net.node)
    named = [
        policy("NetAdapterName", NetworkAdapterName="eth0"),
        policy("InterfaceConstraint", InterfaceAlias="eth0", InterfaceIndex=uplink["ifindex"]),
    ]
    bridge = pods.network(network("L2Tunnel", "192.168.77.0/24", ROUTER_IP, *named))
    pod, _ = pods.add(
        bridge,
        policy("InterfaceConstraint", InterfaceAlias="eth0"),
        IpConfigurations=[{"IpAddress": "192.168.77.100"}],
    )
    assert can_ping(pod, ROUTER_IP)
    assert can_ping(pods.net.router, "192.168.77.100")


# --- changes, by packets ---------------------------------------------------------------------------


def acl(action: str, priority: int, **fields: Any) -> Json:
    return policy("ACL", Action=action, Direction="In", Priority=priority, **fields)


def test_what_each_request_means(pods: Pods) -> None:
    """Add appends, Remove takes one, Update replaces, Refresh changes nothing, Reset empties; v1 replaces by POST."""
    nat = pods.network(network("NAT", "10.50.0.0/24", "10.50.0.1"))
    (client, _), (server, endpoint) = pods.add(nat), pods.add(nat)
    target = address_of(endpoint)
    everything, no_http, no_echo = (
        acl("Allow", 900),
        acl("Block", 100, Protocols="6", LocalPorts="7000-7001"),
        acl("Block", 200, Protocols="1", RemoteAddresses="10.50.0.0/24"),
    )
    flat = [
        {
            "Type": "ACL",
            "Protocol": 6,
            "Action": "Block",
            "Direction": "In",
            "LocalPort": 7000,
            "Priority": 100,
        },
        {"Type": "ACL", "Action": "Allow", "Direction": "In", "Priority": 900},
    ]
    set_policy = policy("SetPolicy", Id="near", Name="near", PolicyType="IPSET", Values="10.50.0.0/24")
    named = acl("Block", 50, Protocols="6", LocalAddresses="near")  # of the source, as agents write it
    steps: list[tuple[str, str, list[Json], bool, bool]] = [
        ("endpoints", "Add", [everything], True, True),
        ("endpoints", "Add", [no_http], False, True),
        ("endpoints", "Add", [no_echo], False, False),
        ("endpoints", "Refresh", [], False, False),
        ("endpoints", "Remove", [no_http], True, False),
        ("endpoints", "Update", [everything, no_http], False, True),
        ("endpoints", "Reset", [], True, True),
        ("v1", "POST", flat, False, True),
        ("v1", "POST", flat[1:], True, True),
        ("networks", "Add", [set_policy], True, True),
        ("endpoints", "Add", [named], False, True),
        (
            "networks",
            "Update",
            [policy("SetPolicy", **{**set_policy["Settings"], "Values": "10.66.0.0/16"})],
            True,
            True,
        ),
        ("networks", "Add", [policy("NetworkACL", **no_echo["Settings"])], True, False),
        ("networks", "Remove", [policy("NetworkACL", **no_echo["Settings"])], True, True),
    ]
    with answering(server, "server", 7000):
        for where, how, policies, http, echo in steps:
            if where == "v1":
                body = {"Policies": policies}
                assert pods.node.request("POST", f"/v1/endpoints/{endpoint['ID']}", body)["Success"]
            else:
                change = {"ResourceType": "Policy", "RequestType": how, "Settings": {"Policies": policies}}
                path = endpoint["ID"] if where == "endpoints" else nat
                pods.node.request("POST", f"/v2/{where}/{path}", change)
            assert connects(client, target, bound_s(http)) is http, (where, how, policies)
            assert can_ping(client, target, wait_s=bound_s(echo)) is echo, (
                where,
                how,
                policies,
            )
    assert pods.node.differences() == []


_CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 7000), float(sys.argv[2])).close()"


def connects(pod: str, target: str, wait_s: float) -> bool:
    """Whether a connection to port 7000 comes about in time."""
    command = [sys.executable, "-c", _CONNECT, target, str(wait_s)]
    return in_namespace(pod, *command, check=False).returncode == 0


# --- namespaces and reboots -----------------------------------------------------------------------


def test_namespaces_of_every_type(pods: Pods) -> None:
    """HostDefault is the node itself: see test_daemon_objects.py."""
    nat = pods.network(network("NAT", "10.50.0.0/24", "10.50.0.1"))
    made = [
        pods.add(nat, space=space)
        for space in ({}, *({"Type": kind} for kind in ("Host", "Guest", "GuestDefault")))
    ]
    for pod, endpoint in made:
        assert can_ping(pod, NODE_IP)
        assert can_ping(made[0][0], address_of(endpoint))
        space = pods.node.request("GET", f"/v2/endpoints/{endpoint['ID']}")["HostComputeNamespace"]
        found = pods.node.request("GET", f"/v2/namespaces/{space}")
        assert found["Resources"] == [{"Type": "Endpoint", "Data": {"Id": endpoint["ID"]}}]
        flat = {"SchemaVersion": {"Major": 1, "Minor": 0}}
        flat = pods.node.request("POST", f"/v2/namespaces/{space}/query", flat)
        assert flat["ResourceList"] == found["Resources"]
        assert flat["CompartmentId"] == found["NamespaceId"] > 1


@pytest.mark.parametrize("count", [2, 65])
def test_the_name_of_a_policy_that_has_gone_is_not_given_again_after_a_restart(
    pods: Pods, count: int
) -> None:
    """Drops, counters and traces go by these names."""
    nat = pods.network(network("NAT", "10.50.0.0/24", "10.50.0.1"))
    path = f"/v2/endpoints/{pods.add(nat)[1]['ID']}"
    rules = [acl("Allow", 100 + number) for number in range(count + 1)]

    def names() -> list[int]:
        extra = pods.node.request("POST", f"{path}/query", {"Flags": 1})["Health"].get("Extra", {})
        return list(extra.get("PolicyNumbers", ()))

    def change(how: str, *policies: Json) -> None:
        settings = {"Policies": list(policies)}
        body = {"ResourceType": "Policy", "RequestType": how, "Settings": settings}
        pods.node.request("POST", path, body)

    change("Add", *rules[:count])
    change("Remove", rules[count - 1])
    pods.node.stop()
    pods.node.start()
    change("Add", rules[count])
    assert names() == [*range(1, count), count + 1]


def test_a_reboot(net: NodeNet, node: DaemonProcess) -> None:
    """Namespaces and the kernel's tables are gone, and the boot is another one; the database is there."""
    pods = Pods(net, node)
    lasting = pods.network(network("NAT", "10.50.0.0/24", "10.50.0.1"))
    passing = pods.network({**overlay(), "Flags": 8})
    unattached = node.request("POST", "/v2/endpoints", {"HostComputeNetwork": lasting})["ID"]
    for name in (lasting, passing):
        pod, _ = pods.add(name)
        assert can_ping(net.node, address_of(node.endpoints()[-1]))
        remove_namespace(pod)
    node.request("POST", "/v2/endpoints", {"HostComputeNetwork": passing})
    node.stop()
    unmount_bpffs(node.run_dir / "bpf")
    for name in ("samewire0", "swvxlan0"):
        ip("link", "delete", name, netns_name=net.node)
    with sqlite3.connect(node.state_dir / "samewire.db") as database:
        database.execute("UPDATE objects SET boot_id = 'the one before'")
    database.close()
    node.start()
    assert [item["ID"] for item in node.request("GET", "/v2/networks")] == [lasting]
    assert [item["ID"] for item in node.endpoints()] == [unattached], "what had no pod needs none"
    assert node.request("GET", "/v2/namespaces") == []
    poll("nothing is left", lambda: node.differences() == [])
    pod, _ = Pods(net, node).add(lasting)
    assert can_ping(pod, NODE_IP)
