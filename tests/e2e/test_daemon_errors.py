"""Every code of HNS, provoked over HTTP at a daemon on a real kernel; nothing is changed by what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from samewire.hcn.errors import HcnCode
from samewire.hcn.plan.network_changes import VFP_EXTENSION
from tests.support.node import DaemonProcess, Json, NodeNet, ip, node_net, overlay, path_of
from tests.support.node import daemon as daemon_process

pytestmark = pytest.mark.root

PAGE = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text(encoding="utf-8")
MISSING = "0A1B2C3D-0000-0000-0000-00000000000F"
NOBODY = 65534
REMOTE = 1

C = HcnCode
Case = tuple[HcnCode, str, str, Any]


class World:
    """Objects to stumble over; `ids` has them by name."""

    def __init__(self, net: NodeNet, node: DaemonProcess) -> None:
        self.net, self.node = net, node
        self.ids: dict[str, str] = {}
        self._networks()
        pods = self.ids["pods"]
        mapping = {"Protocol": 6, "InternalPort": 80, "ExternalPort": 8080}
        policies = [policy("PortMapping", **mapping), policy("QOS"), policy("InterfaceParameters", Mtu=1300)]
        self.make("endpoints", "one", HostComputeNetwork=pods, Policies=policies)
        self.make("endpoints", "two", HostComputeNetwork=pods)
        self.make("endpoints", "three", HostComputeNetwork=pods)
        far = [{"IpAddress": "10.244.9.7"}]
        self.make("endpoints", "far", HostComputeNetwork=pods, Flags=REMOTE, IpConfigurations=far)
        self.make("namespaces", "pod", NetnsPath=path_of(net.pod()))
        self.make("namespaces", "nowhere", NetnsPath="/run/netns/swnode-nothing")
        self.make("namespaces", "plain")
        self.make("namespaces", "host", Type="HostDefault")
        taken = net.pod()
        ip("link", "add", "eth0", "type", "veth", "peer", "eth9", netns_name=taken)
        self.make("namespaces", "taken", NetnsPath=path_of(taken))
        node.request("POST", f"/v2/namespaces/{self.ids['pod']}", member("Add", self.ids["one"]))
        route = {"DestinationPrefix": "10.96.0.0/12", "NeedEncap": True}
        self.make("routes", "route", HostComputeEndpoints=[self.ids["two"]], Routes=[route])

    def _networks(self) -> None:
        self.ids["pods"] = self.node.request("POST", "/v2/networks", overlay())["ID"]
        self.make("networks", "small", Type="Internal", Ipams=subnets("10.50.0.0/29"))
        for _ in range(6):
            self.node.request("POST", "/v2/endpoints", {"HostComputeNetwork": self.ids["small"]})
        sets = [policy("SetPolicy", Id="s", Name="s", PolicyType="IPSET", Values="10.0.0.1")]
        self.make("networks", "private", Type="Private", Ipams=subnets("10.60.0.0/24"), Policies=sets)

    def make(self, kind: str, name: str, **fields: Any) -> None:
        """Create an object."""
        self.ids[name] = self.node.request("POST", f"/v2/{kind}", {"Name": name, **fields})["ID"]

    def objects(self) -> list[Any]:
        """Everything there is."""
        kinds = ("networks", "endpoints", "namespaces", "routes", "loadbalancers")
        return [self.node.request("GET", f"/v2/{kind}") for kind in kinds]


def policy(kind: str, **settings: Any) -> Json:
    return {"Type": kind, "Settings": settings}


def subnets(prefix: str, **fields: Any) -> list[Json]:
    return [{"Subnets": [{"IpAddressPrefix": prefix, **fields}]}]


def request(kind: str, how: str, **settings: Any) -> Json:
    return {"ResourceType": kind, "RequestType": how, "Settings": settings}


def member(how: str, endpoint: str) -> Json:
    return request("Endpoint", how, EndpointId=endpoint)


def with_policy(how: str, kind: str, **settings: Any) -> Json:
    return request("Policy", how, Policies=[policy(kind, **settings)])


def of_networks(ids: dict[str, str]) -> Iterator[Case]:
    at, new = f"/v2/networks/{ids['pods']}", "/v2/networks"
    bridge = {"Name": "cbr0", "Type": "L2Bridge", "Ipams": subnets("10.9.1.0/24")}
    yield C.NETWORK_NOT_FOUND, "GET", f"/v2/networks/{MISSING}", None
    yield C.NETWORK_NOT_FOUND, "DELETE", f"/v1/networks/{MISSING}", None
    yield C.NETWORK_NOT_FOUND, "POST", "/v2/endpoints", {"HostComputeNetwork": MISSING}
    yield C.NETWORK_NOT_FOUND, "POST", "/v1/endpoints/", {"VirtualNetworkName": "nothing"}
    yield C.SUBNET_NOT_FOUND, "POST", at, request("IPSubnet", "Add", SubnetId=MISSING, IpSubnets=[])
    adapter = policy("NetAdapterName", NetworkAdapterName="eth9")
    yield C.ADAPTER_NOT_FOUND, "POST", new, {**bridge, "Policies": [adapter]}
    yield C.ADAPTER_NOT_FOUND, "POST", "/v1/networks/", {"Type": "L2Bridge", "NetworkAdapterName": "eth9"}
    loopback = policy("InterfaceConstraint", InterfaceIndex=1)
    yield C.ADAPTER_NOT_FOUND, "POST", new, {**bridge, "Policies": [loopback]}
    yield C.POLICY_NOT_FOUND, "POST", at, with_policy("Remove", "HostRoute", X=1)
    yield C.INVALID_NETWORK, "POST", new, {**overlay("other", "10.245.0.0/24")}
    yield C.INVALID_NETWORK_TYPE, "POST", new, {"Type": "Mirrored"}
    yield C.INVALID_NETWORK_TYPE, "POST", "/v1/networks/", {"Type": "Layered"}
    yield C.ICS_DISABLED, "POST", new, {"Type": "ICS"}
    yield C.NETWORK_ALREADY_EXISTS, "POST", new, overlay("pods", "10.245.0.0/24", 4097)
    yield C.POLICY_ALREADY_EXISTS, "POST", at, with_policy("Add", "HostRoute")
    yield C.REQUEST_UNSUPPORTED, "POST", at, request("Weather", "Add")
    yield (
        C.SHARED_SWITCH_MODIFICATION,
        "POST",
        at,
        request("Extension", "Update", Id=VFP_EXTENSION, IsEnabled=False),
    )
    yield C.SWITCH_EXTENSION_NOT_FOUND, "POST", at, request("Extension", "Update", Id=MISSING, IsEnabled=True)
    yield C.GUID_CONVERSION_FAILURE, "POST", new, {**bridge, "ID": "x"}
    yield C.INVALID_JSON, "POST", new, {**bridge, "Flags": {}}
    yield C.INVALID_PREFIX, "POST", new, {**bridge, "Ipams": subnets("10.9.1.7/24")}
    yield C.INVALID_SUBNET, "POST", new, {**bridge, "Ipams": subnets("10.244.0.0/25")}
    inside = [{"IpAddressPrefix": "10.99.0.0/28"}]
    yield C.INVALID_IP_SUBNET, "POST", new, {**bridge, "Ipams": subnets("10.9.1.0/24", IpSubnets=inside)}
    yield C.INVALID_POLICY, "POST", at, with_policy("Add", "SetPolicy", Id="x", Name="x", PolicyType="WORDS")
    block = {"LocalAddresses": "s", "Action": "Block", "Direction": "In"}
    yield C.POLICY_NOT_FOUND, "POST", at, with_policy("Add", "NetworkACL", **block)
    yield C.INVALID_NETWORK_TYPE, "POST", at, with_policy("Add", "VLAN", IsolationId=7)


def of_endpoints(ids: dict[str, str]) -> Iterator[Case]:
    at, new = f"/v2/endpoints/{ids['one']}", "/v2/endpoints"
    network = {"HostComputeNetwork": ids["pods"]}

    def asked(address: str) -> Json:
        return {**network, "IpConfigurations": [{"IpAddress": address}]}

    yield C.ENDPOINT_NOT_FOUND, "DELETE", f"/v2/endpoints/{MISSING}", None
    yield C.ENDPOINT_NOT_FOUND, "GET", f"/v1/endpoints/{MISSING}", None
    yield C.ENDPOINT_NOT_FOUND, "GET", f"/v1/endpointstats/{MISSING}", None
    yield C.PORT_NOT_FOUND, "POST", at, request("Port", "Add", PortId=MISSING)
    yield C.PORT_NOT_FOUND, "POST", f"/v1/endpoints/{ids['two']}/attach", {"SystemType": "VirtualMachine"}
    yield C.POLICY_NOT_FOUND, "POST", at, with_policy("Remove", "OutBoundNAT")
    yield C.INVALID_ENDPOINT, "POST", new, {**network, "HostComputeNamespace": ids["pod"]}
    yield C.INVALID_POLICY, "POST", at, with_policy("Add", "VLAN", IsolationId=9999)
    yield C.INVALID_POLICY_TYPE, "POST", at, with_policy("Add", "HostRoute")
    yield C.POLICY_ALREADY_EXISTS, "POST", at, with_policy("Add", "QOS")
    yield (
        C.INTERFACEPARAMETERS_ALREADY_APPLIED,
        "POST",
        at,
        with_policy("Add", "InterfaceParameters", Mtu=1400),
    )
    mapped = {"Protocol": 6, "InternalPort": 81, "ExternalPort": 8080}
    two = f"/v2/endpoints/{ids['two']}"
    yield C.PORT_ALREADY_EXISTS, "POST", two, with_policy("Add", "PortMapping", **mapped)
    yield (
        C.MAPPING_NOT_SUPPORTED,
        "POST",
        two,
        with_policy("Add", "PortMapping", **{**mapped, "Protocol": 1}),
    )
    yield (
        C.INVALID_INTERNAL_PORT,
        "POST",
        two,
        with_policy("Add", "PortMapping", Protocol=6, ExternalPort=8081),
    )
    far = f"/v2/endpoints/{ids['far']}"
    mapped["ExternalPort"] = 8090
    yield C.INVALID_REMOTE_ENDPOINT_OPERATION, "POST", far, with_policy("Add", "PortMapping", **mapped)
    yield C.INVALID_IP, "POST", new, asked("10.244.0.999")
    yield C.ADDR_INVALID_OR_RESERVED, "POST", new, asked("10.99.0.1")
    yield C.ADDR_INVALID_OR_RESERVED, "POST", new, asked("10.244.0.1")
    yield C.OBJECT_ALREADY_EXISTS, "POST", new, asked("10.244.0.2")
    yield C.E_OUTOFMEMORY, "POST", new, {"HostComputeNetwork": ids["small"]}
    yield C.ENTITY_HAS_REFERENCES, "DELETE", two, None
    yield C.ENDPOINT_NOT_ATTACHED, "POST", two, request("Port", "Remove")
    yield C.ENDPOINT_NOT_ATTACHED, "POST", f"/v1/endpoints/{ids['two']}/detach", {}
    attach = f"/v1/endpoints/{ids['two']}/attach"
    yield C.GCN_NETCOMPARTMENT_NOT_FOUND, "POST", attach, {"CompartmentId": 77}


def of_the_rest(ids: dict[str, str]) -> Iterator[Case]:
    spaces = {name: f"/v2/namespaces/{ids[name]}" for name in ("pod", "plain", "nowhere", "host", "taken")}
    yield C.ENDPOINT_NAMESPACE_ALREADY_EXISTS, "POST", spaces["pod"], member("Add", ids["one"])
    yield C.ENDPOINT_ALREADY_ATTACHED, "POST", spaces["plain"], member("Add", ids["one"])
    yield C.INVALID_REMOTE_ENDPOINT_OPERATION, "POST", spaces["plain"], member("Add", ids["far"])
    yield C.NAMESPACE_ATTACH_FAILED, "POST", spaces["nowhere"], member("Add", ids["three"])
    yield C.ENDPOINT_NOT_ATTACHED, "POST", spaces["plain"], member("Remove", ids["one"])
    yield C.ENTITY_HAS_REFERENCES, "DELETE", spaces["pod"], None
    yield C.GCN_DEFAULTNAMESPACE_EXISTS, "POST", "/v2/namespaces", {"Type": "HostDefault"}
    yield C.GCN_DEFAULTNAMESPACE_EXISTS, "POST", "/v1/namespaces/", {"IsDefault": True}
    yield C.OBJECT_ALREADY_EXISTS, "POST", spaces["taken"], member("Add", ids["three"])
    yield C.ERROR_NOT_FOUND, "POST", f"/v2/namespaces/{MISSING}/open", None
    yield C.ERROR_NOT_FOUND, "GET", f"/v1/namespaces/{MISSING}", None
    yield C.ERROR_NOT_FOUND, "DELETE", f"/v1/policylists/{MISSING}", None
    route = {"DestinationPrefix": "10.96.0.0/12"}
    far = {"HostComputeEndpoints": [ids["far"]], "Routes": [route]}
    yield C.ENDPOINT_NOT_LOCAL, "POST", "/v2/routes", far
    yield C.REQUEST_UNSUPPORTED, "POST", f"/v2/routes/{ids['route']}", request("Route", "Add")
    yield C.REQUEST_UNSUPPORTED, "POST", f"/v1/policylists/{ids['route']}", {}
    yield C.REQUEST_UNSUPPORTED, "GET", "/v1/weather", None
    elsewhere = {"References": ["/weather/1"], "Policies": [{"Type": "ROUTE", **route}]}
    yield C.INVALID_JSON_REFERENCE, "POST", "/v1/policylists/", elsewhere
    yield C.E_INVALIDARG, "POST", "/v2/endpoints/enumerate", {"Filter": '{"Colour": 1}'}
    yield C.RPC_SERVER_UNAVAILABLE, "GET", "/v2/services", None


NOT_HERE = frozenset(
    HcnCode[name]
    for line in PAGE.splitlines()
    if line.endswith("| their situation does not arise here |")
    for name in re.findall("`(.*?)`", line)
)
ELSEWHERE = frozenset({C.E_NOTIMPL, C.E_FAIL, C.E_ACCESSDENIED, C.MANAGER_STOPPED})
"""Provoked by tests of their own: below, and in tests/unit/test_hcn_http.py."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with node_net() as net, daemon_process(net, tmp_path_factory.mktemp("errors")) as node:
        yield World(net, node.start())


def cases(world: World) -> list[Case]:
    return [*of_networks(world.ids), *of_endpoints(world.ids), *of_the_rest(world.ids)]


def test_each_code_where_its_situation_arises(world: World) -> None:
    before = world.objects()
    wrong = []
    for code, method, path, body in cases(world):
        status, answer = world.node.ask(method, path, body)
        said = answer.get("ErrorCode") if isinstance(answer, dict) else None
        name = HcnCode(said).name if said else said
        if (
            said != code
            or answer["Success"]
            or len(answer["Error"]) < 12
            or (status < 400) != ("/v1/" in path)
        ):
            wrong.append(f"{code.name}: {method} {path} {body}: {status} {name} {answer}")
    assert wrong == []
    assert world.objects() == before
    assert world.node.differences() == []


def test_every_code_of_the_table_is_provoked_or_said_not_to_arise(world: World) -> None:
    provoked = {code for code, *_ in cases(world)} | ELSEWHERE
    assert provoked & NOT_HERE == set()
    assert set(HcnCode) - provoked == NOT_HERE


def test_texts_name_the_field(world: World) -> None:
    named = [
        world.node.ask(method, path, body)[1]["Error"].startswith("$")
        for code, method, path, body in cases(world)
        if code in (C.INVALID_POLICY, C.INVALID_IP, C.INVALID_PREFIX, C.INVALID_JSON, C.INVALID_INTERNAL_PORT)
    ]
    assert len(named) >= 5
    assert all(named)


def test_a_fault_of_a_policy_is_where_the_request_has_it(world: World) -> None:
    asked = [
        (body, world.node.ask(method, path, body)[1]["Error"])
        for _, method, path, body in cases(world)
        if isinstance(body, dict) and body.get("ResourceType") == "Policy"
    ]
    assert len(asked) >= 8
    assert [(body, said) for body, said in asked if not said.startswith("$.Settings.Policies[0]")] == []


def test_who_may_not(world: World) -> None:
    """The socket's mode keeps others out; who opened it to them meets the daemon's own look at who asks."""
    path = world.node.run_dir / "samewire.sock"
    code = (
        "import os, socket, sys\n"
        "one = socket.socket(socket.AF_UNIX)\n"
        "os.chdir(os.path.dirname(sys.argv[1]))\n"
        "os.setuid(int(sys.argv[2]))\n"
        "one.connect(os.path.basename(sys.argv[1]))\n"
        "one.sendall(b'GET /v2/networks HTTP/1.0\\r\\n\\r\\n')\n"
        "print(one.makefile().read().splitlines()[-1])\n"
    )
    command = [sys.executable, "-c", code, str(path), str(NOBODY)]
    assert subprocess.run(command, check=False, capture_output=True).returncode
    path.chmod(0o666)
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    finally:
        path.chmod(0o600)
    assert json.loads(done.stdout)["ErrorCode"] == C.E_ACCESSDENIED


def test_what_the_kernel_refuses(net: NodeNet, unstarted: DaemonProcess) -> None:
    node = unstarted.start({"SAMEWIRE_TEST_FAULT": "create veth|ENOSPC|2"})
    network = node.request("POST", "/v2/networks", overlay())["ID"]
    endpoint = node.request("POST", "/v2/endpoints", {"HostComputeNetwork": network})["ID"]
    space = node.request("POST", "/v2/namespaces", {"NetnsPath": path_of(net.pod())})["ID"]
    status, answer = node.ask("POST", f"/v2/namespaces/{space}", member("Add", endpoint))
    assert (status, answer["ErrorCode"]) == (500, C.E_FAIL)
    assert "ENOSPC" in answer["Error"]
    assert node.request("GET", f"/v2/endpoints/{endpoint}")["State"] == 1
    assert node.differences() == []
    node.request("POST", f"/v2/namespaces/{space}", member("Add", endpoint))


def test_what_this_node_lacks(net: NodeNet, unstarted: DaemonProcess, tmp_path: Path) -> None:
    (tmp_path / "libnftables.so.1").touch()
    node = unstarted.start({"LD_LIBRARY_PATH": f"{tmp_path}:{os.environ.get('LD_LIBRARY_PATH', '')}"})
    network = node.request("POST", "/v2/networks", overlay())["ID"]
    body = {"HostComputeNetwork": network, "Policies": [policy("L4WFPPROXY", OutboundProxyPort="15001")]}
    endpoint = node.request("POST", "/v2/endpoints", body)["ID"]
    space = node.request("POST", "/v2/namespaces", {"NetnsPath": path_of(net.pod())})["ID"]
    status, answer = node.ask("POST", f"/v2/namespaces/{space}", member("Add", endpoint))
    assert (status, answer["ErrorCode"]) == (501, C.E_NOTIMPL)
    assert "libnftables" in answer["Error"]
    assert node.differences() == []
