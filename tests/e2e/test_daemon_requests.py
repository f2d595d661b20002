"""What strangers may send, to a whole daemon with a pod: nothing crashes it, what is refused changes nothing, the
kernel is always as the objects say, and after deleting everything it is as it was.
"""

from __future__ import annotations

import json
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from tests.property.test_hcn_requests import ENDPOINT, NETWORK, REFUSALS, SPACE, SUBNET, requests
from tests.support.node import (
    STALL_S,
    DaemonProcess,
    Json,
    NodeNet,
    daemon,
    exchange,
    in_namespace,
    ip_json,
    overlay,
    path_of,
    poll,
)

pytestmark = pytest.mark.root

KINDS = ("loadbalancers", "routes", "networks", "namespaces")
SYSCTLS = ("net.ipv4.ip_local_reserved_ports", "net.ipv4.conf.all.forwarding", "net.ipv6.conf.all.forwarding")


@pytest.fixture
def node(net: NodeNet, tmp_path: Path) -> Iterator[DaemonProcess]:
    """A daemon, started with the number of files that processes usually have."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with daemon(net, tmp_path, audit_interval_s=3600) as process:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
        try:
            process.spawn()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        poll("the daemon serves", lambda: process.run_dir.joinpath("cni.sock").exists())
        yield process


class World:
    """A daemon with an overlay network and a pod in it."""

    def __init__(self, net: NodeNet, node: DaemonProcess) -> None:
        self.net = net
        self.node = node
        self.pod = net.pod()

    def clear(self) -> None:
        """Delete every object."""
        for kind in KINDS:
            for value in self.node.request("GET", f"/v2/{kind}"):
                self.node.request("DELETE", f"/v2/{kind}/{value['ID']}")

    def populate(self) -> None:
        """Put back what the requests are about."""
        self.clear()
        network = overlay("vxlan0", "10.244.1.0/24")
        network["ID"], network["Ipams"][0]["Subnets"][0]["ID"] = NETWORK, SUBNET
        members = {"Id": "set", "Values": "10.0.0.1"}
        network["Policies"].append({"Type": "SetPolicy", "Settings": members})
        self.node.request("POST", "/v2/networks", network)
        self.node.request("POST", "/v2/namespaces", {"ID": SPACE, "NetnsPath": path_of(self.pod)})
        address = {"IpAddress": "10.244.1.8"}
        endpoint = {"ID": ENDPOINT, "HostComputeNetwork": NETWORK, "IpConfigurations": [address]}
        self.node.request("POST", "/v2/endpoints", endpoint)
        join = {"ResourceType": "Endpoint", "RequestType": "Add", "Settings": {"EndpointId": ENDPOINT}}
        self.node.request("POST", f"/v2/namespaces/{SPACE}", join)

    def objects(self) -> dict[str, list[Json]]:
        """All objects."""
        return {kind: self.node.request("GET", f"/v2/{kind}") for kind in (*KINDS, "endpoints")}

    def is_worn(self) -> bool:
        """Whether the network or the pod is gone, or there is too much beside them."""
        objects = self.objects()
        attached = any(item["ID"] == ENDPOINT and item["State"] == 3 for item in objects["endpoints"])
        return not attached or sum(map(len, objects.values())) > 60

    def kernel(self) -> dict[str, Any]:
        """Everything that objects leave in the kernel."""
        name = self.net.node
        routes = [
            route
            for family in ("-4", "-6")
            for route in ip_json(family, "route", "show", "table", "all", netns_name=name)
        ]
        rules = [rule for family in ("-4", "-6") for rule in ip_json(family, "rule", netns_name=name)]
        links = ip_json("address", netns_name=name)
        return {
            "links": sorted((link["ifname"], *sorted(link["flags"])) for link in links),
            "addresses": sorted(item["local"] for link in links for item in link["addr_info"]),
            "routes": sorted(json.dumps(route, sort_keys=True) for route in routes),
            "rules": rules,
            "neighbours": ip_json("neighbour", "show", "nud", "permanent", netns_name=name),
            "sysctls": in_namespace(name, "sysctl", *SYSCTLS).stdout,
            "pod": [link["ifname"] for link in ip_json("link", netns_name=self.pod)],
            "tables": self.node.request("GET", "/v2/switch/tables"),
        }

    def send(self, method: str, path: str, body: bytes) -> tuple[bool, Any]:
        """One request; whether it was refused, and the answer."""
        head = f"{method} {path.replace(' ', '%20')} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        sent = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        top, _, text = exchange(self.node.run_dir / "samewire.sock", sent, half_close=False).partition(
            b"\r\n\r\n"
        )
        answer: Any = json.loads(text) if text else None
        return int(top.split()[1]) >= 400 or (path.startswith("/v1") and not answer["Success"]), answer


@pytest.mark.slow
def test_any_requests_leave_the_kernel_as_the_objects_say(net: NodeNet, node: DaemonProcess) -> None:
    world = World(net, node)
    before = world.kernel()
    world.populate()

    @settings(max_examples=250)
    @given(requests)
    def answered(request: tuple[str, str, bytes]) -> None:
        objects = world.objects()
        refused, answer = world.send(*request)
        if refused:
            assert answer["ErrorCode"] in REFUSALS, answer
            assert answer["Error"]
            assert world.objects() == objects
        else:
            assert node.differences() == []
        if world.is_worn():
            world.populate()

    answered()
    world.clear()
    assert world.kernel() == before
    assert "by a bug" not in node.log.read_text()


def test_a_thousand_clients_at_once(net: NodeNet, node: DaemonProcess) -> None:
    def connected() -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(
            str(node.run_dir / "samewire.sock")
        )  # waits for room: with a timeout, a full queue is an error
        client.settimeout(20)
        return client

    clients = [connected() for _ in range(1100)]
    try:
        for client in clients[:500]:  # say half of something, and no more
            client.sendall(b"POST /v2/networks HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        for client in clients[500:]:
            client.sendall(b"GET /v2/networks HTTP/1.1\r\nHost: x\r\n\r\n")
        assert {client.recv(4096)[:12] for client in clients[500:]} == {b"HTTP/1.1 200"}
        assert node.request("POST", "/v2/networks", overlay())["Name"] == "pods"
        node.add("pod", net.pod(), node.conf())  # a container runtime is served, too
    finally:
        for client in clients:
            client.close()
    files = Path(f"/proc/{node.pid}/fd")
    poll("the connections are closed", lambda: len(list(files.iterdir())) < 500)


def test_what_is_no_request_is_not_logged(net: NodeNet, tmp_path: Path) -> None:
    """Whoever reaches a port may say anything, and could fill the disk: each of these was a traceback of ten lines."""
    with daemon(net, tmp_path, metrics_listen=":9100") as node:
        node.start()
        before = node.log.stat().st_size
        for said in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
        ):
            with net.inside(), socket.create_connection(("127.0.0.1", 9100), STALL_S) as peer:
                peer.sendall(said)
                assert b" 400 Bad Request" in peer.recv(1000)
        node.stop()
        lines = node.log.read_bytes()[before:].splitlines()
        assert [json.loads(line)["event"] for line in lines] == ["stopping; the data path stays"]
