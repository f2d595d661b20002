"""Two nodes with real daemons in an overlay network: two pods on the first, one on the second."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
from click.testing import CliRunner, Result

from samewire.cli.main import cli
from samewire.kernel.netns import NetNamespace
from tests.support.node import (
    NODE_IP,
    DaemonProcess,
    Json,
    daemon,
    exchange,
    in_namespace,
    ip,
    node_net,
    overlay,
    path_of,
)

FAR_IP, FAR_ROUTER_IP = "192.168.78.2", "192.168.78.1"
FAR_IP6, FAR_ROUTER_IP6 = "fd78::2", "fd78::1"
CLIENT, WEB, FAR = "10.244.0.2", "10.244.0.3", "10.244.1.2"
CLIENT6, WEB6, FAR6 = "fd00:244::2", "fd00:244::3", "fd00:244:1::2"
NEAR_SUBNETS = ("10.244.0.0/24", "fd00:244::/64")
FAR_SUBNETS = ("10.244.1.0/24", "fd00:244:1::/64")


class FarNet(msgspec.Struct):
    """The second node, in a subnet of its own behind the router."""

    node: str


class World:
    """Two nodes with an overlay network: two pods on the first, one on the second. ``settings``: of both daemons."""

    def __init__(self, stack: ExitStack, directory: Path, **settings: Any) -> None:
        self.net = stack.enter_context(node_net())
        self.far_net = FarNet(self._second_node())
        for name in ("near", "far"):
            (directory / name).mkdir()
        self.near = stack.enter_context(daemon(self.net, directory / "near", name="near", **settings))
        far_net: Any = self.far_net
        self.far = stack.enter_context(daemon(far_net, directory / "far", name="far", **settings))
        for process in (self.near, self.far):
            process.start()
        self._networks()
        self.client, self.web = self.pod(self.near, "shop/client"), self.pod(self.near, "shop/web")
        self.remote = self.pod(self.far, "shop/remote", FAR_SUBNETS)
        self.peers = directory / "peers.json"
        self.peers.write_text(json.dumps({NODE_IP: self.socket(self.near), FAR_IP: self.socket(self.far)}))

    @staticmethod
    def socket(process: DaemonProcess) -> str:
        return str(process.run_dir / "samewire.sock")

    def _second_node(self) -> str:
        name, router = self.net.namespace("f"), self.net.router
        ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "eth1", "netns", router)
        for where, device, address, address6 in (
            (name, "eth0", f"{FAR_IP}/24", f"{FAR_IP6}/64"),
            (router, "eth1", f"{FAR_ROUTER_IP}/24", f"{FAR_ROUTER_IP6}/64"),
        ):
            ip("address", "add", address, "dev", device, netns_name=where)
            ip("address", "add", address6, "dev", device, "nodad", netns_name=where)
            ip("link", "set", device, "up", netns_name=where)
        ip("link", "set", "lo", "up", netns_name=name)
        ip("route", "add", "default", "via", FAR_ROUTER_IP, netns_name=name)
        ip("route", "add", "default", "via", FAR_ROUTER_IP6, netns_name=name)
        for key in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
            in_namespace(router, "sysctl", "-qw", f"net.{key}=1")
        return name

    def _networks(self) -> None:
        near, far = (
            process.request("POST", "/v2/networks", overlay(subnet=subnet, subnet6=subnet6))
            for process, (subnet, subnet6) in ((self.near, NEAR_SUBNETS), (self.far, FAR_SUBNETS))
        )
        for process, own, other, prefixes, address in (
            (self.near, near, far, FAR_SUBNETS, FAR_IP),
            (self.far, far, near, NEAR_SUBNETS, NODE_IP),
        ):
            mac = next(p["Settings"]["Address"] for p in other["Policies"] if p["Type"] == "DrMacAddress")
            routes = [
                {
                    "DestinationPrefix": prefix,
                    "IsolationId": 4096,
                    "ProviderAddress": address,
                    "DistributedRouterMacAddress": mac,
                }
                for prefix in prefixes
            ]
            policies = [{"Type": "RemoteSubnetRoute", "Settings": settings} for settings in routes]
            modify(process, "networks", own["ID"], policies)

    def pod(self, process: DaemonProcess, name: str, subnets: tuple[str, str] = NEAR_SUBNETS) -> str:
        pod = self.net.pod()
        space, _, short = name.partition("/")
        conf = process.conf("pods", *subnets)
        environment = f"IgnoreUnknown=1;K8S_POD_NAMESPACE={space};K8S_POD_NAME={short}"
        add(process, f"c-{short}", pod, conf, environment)
        return pod

    def endpoint_id(self, name: str) -> str:
        return next(str(e["ID"]) for e in self.near.endpoints() if e["Name"] == name)


def modify(process: DaemonProcess, kind: str, number: str, policies: list[Json], how: str = "Add") -> None:
    body = {"ResourceType": "Policy", "RequestType": how, "Settings": {"Policies": policies}}
    process.request("POST", f"/v2/{kind}/{number}", body)


def add(process: DaemonProcess, container: str, pod: str, conf: Json, arguments: str) -> None:
    """ADD as a kubelet's runtime does it, with the pod's name."""
    variables = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": container,
        "CNI_NETNS": path_of(pod),
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": arguments,
        "CNI_PATH": "/usr/lib/cni",
    }
    head = b"".join(f"{key}={value}\0".encode() for key, value in variables.items()) + b"\0"
    answer = exchange(process.run_dir / "cni.sock", head + json.dumps(conf).encode(), half_close=True)
    assert answer.startswith(b"0\n"), answer


def run(process: DaemonProcess, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["--socket", World.socket(process), *arguments])


def in_pod(pod: str, function: Any) -> Any:
    with NetNamespace(path_of(pod)) as netns:
        return netns.run(function)
