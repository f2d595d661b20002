"""Port mappings that name no port of the node: the way Docker publishes ports on Windows."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from samewire.hcn.errors import HcnCode
from samewire.hcn.plan.mapped_ports import FIRST_PORT, LAST_PORT
from tests.support.crowd import answering
from tests.support.node import NODE_IP, DaemonProcess, NodeNet, in_namespace, path_of

pytestmark = pytest.mark.root

_ASK = (
    "import socket, sys\n"
    "kind = socket.SOCK_STREAM if sys.argv[3] == 'TCP' else socket.SOCK_DGRAM\n"
    "with socket.socket(socket.AF_INET, kind) as one:\n"
    "    one.settimeout(20); one.connect((sys.argv[1], int(sys.argv[2])))\n"
    "    one.sendall(b'hello'); print(one.recv(100).decode())\n"
)


def ask(namespace: str, port: int, protocol: str = "TCP") -> str:
    """Who answers at a port of the node; nobody when empty."""
    command = [sys.executable, "-c", _ASK, NODE_IP, str(port), protocol]
    return in_namespace(namespace, *command, check=False).stdout.strip()


def hns(node: DaemonProcess, method: str, path: str, body: Any = None) -> Any:
    answer = node.request(method, f"/v1{path}", body)
    assert answer["Success"], answer
    return answer.get("Output")


@contextmanager
def listening(net: NodeNet, address: str, port: int) -> Iterator[None]:
    """A server of the node's own."""
    with net.inside():
        server = socket.create_server((address, port))
    with server:
        yield


class Docker:
    """Containers on a NAT network, as Docker's driver for Windows makes them."""

    def __init__(self, net: NodeNet, node: DaemonProcess) -> None:
        self.net, self.node = net, node
        subnets = [{"AddressPrefix": "10.50.0.0/24", "GatewayAddress": "10.50.0.1"}]
        made = hns(node, "POST", "/networks/", {"Name": "nat", "Type": "NAT", "Subnets": subnets})
        self.network = made["ID"]

    def wanted(self, *policies: Any) -> Any:
        return {"VirtualNetwork": self.network, "Policies": list(policies)}

    def run(self, *policies: Any) -> tuple[str, str, list[int]]:
        """A container; its namespace, endpoint and ports of the node, which the answer tells."""
        pod = self.net.pod()
        made = hns(self.node, "POST", "/endpoints/", self.wanted(*policies))
        space = self.node.request("POST", "/v2/namespaces", {"NetnsPath": path_of(pod)})
        where = {"ContainerId": "c", "CompartmentId": space["NamespaceId"]}
        hns(self.node, "POST", f"/endpoints/{made['ID']}/attach", where)
        return pod, made["ID"], [policy["ExternalPort"] for policy in made["Policies"]]


def published(protocol: str = "TCP", port: int = 0) -> Any:
    """What Docker says for ``-p 7000``."""
    return {
        "Type": "NAT",
        "Protocol": protocol,
        "InternalPort": 7000,
        "ExternalPort": port,
        "ExternalPortReserved": True,
    }


def test_ports_that_the_service_chooses(net: NodeNet, node: DaemonProcess) -> None:
    docker = Docker(net, node)
    with listening(net, "0.0.0.0", FIRST_PORT), listening(net, "127.0.0.1", FIRST_PORT + 1):
        in_namespace(
            net.node, "sysctl", "-qw", f"net.ipv4.ip_local_reserved_ports=49152-65535,{FIRST_PORT + 2}"
        )
        pod, endpoint, (tcp, udp) = docker.run(published(), published("UDP"))
    assert (tcp, udp) == (FIRST_PORT + 3, FIRST_PORT + 4), "what the node's own use is not given away"
    other, _, (second,) = docker.run(published())
    path = f"/endpoints/{endpoint}"
    with answering(pod, "one", 7000), answering(other, "two", 7000):
        for _ in range(2):
            assert ask(net.router, tcp) == "one 10.50.0.2"
            assert ask(net.router, udp, "UDP") == "one 10.50.0.2"
            assert ask(net.router, second) == "two 10.50.0.3"
            shown = [policy["ExternalPort"] for policy in hns(node, "GET", path)["Policies"]]
            (v2,) = [item for item in node.endpoints() if item["ID"] == endpoint]
            assert shown == [policy["Settings"]["ExternalPort"] for policy in v2["Policies"]] == [tcp, udp]
            assert node.differences() == []
            node.stop()
            node.start()
        hns(node, "POST", path, {"Policies": [published("UDP"), published()]})
        assert ask(net.router, tcp) == "one 10.50.0.2", "who says the same again keeps what he has"
        hns(node, "DELETE", path)
        assert ask(net.router, tcp) == ""
    reserved = in_namespace(net.node, "cat", "/proc/sys/net/ipv4/ip_local_reserved_ports").stdout.strip()
    assert reserved.split(",")[:-1] == [str(FIRST_PORT + 2), str(second)]


def test_a_port_of_sctp_is_chosen_where_the_kernel_may_have_none(net: NodeNet, node: DaemonProcess) -> None:
    _, _, chosen = Docker(net, node).run(published("132"), published())
    assert chosen == [FIRST_PORT, FIRST_PORT + 1]
    assert node.differences() == []


def test_no_port_is_left(net: NodeNet, node: DaemonProcess) -> None:
    in_namespace(net.node, "sysctl", "-qw", f"net.ipv4.ip_local_reserved_ports={FIRST_PORT + 1}-{LAST_PORT}")
    docker = Docker(net, node)
    _, endpoint, (port,) = docker.run(published())
    assert port == FIRST_PORT
    answer = node.request("POST", "/v1/endpoints/", docker.wanted(published()))
    assert answer["ErrorCode"] == HcnCode.E_OUTOFMEMORY
    assert "name an ExternalPort" in answer["Error"]
    assert len(node.endpoints()) == 1
    hns(node, "DELETE", f"/endpoints/{endpoint}")
    assert docker.run(published())[2] == [FIRST_PORT]
    assert node.differences() == []
