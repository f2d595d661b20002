"""A node that flannel and kube-proxy serve, to be taken over while its pods run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.cgroups import own_cgroup
from tests.support.flannel import (
    DEVICES,
    NAME,
    NODE_PORT,
    PORT,
    VIP,
    Echo,
    is_alive,
    two_flannel_nodes,
)
from tests.support.node import PREFIX, Json, daemon, in_namespace, ip_json, node_net, path_of
from tests.support.service_cluster import service, slice_of

pytestmark = pytest.mark.root


PORTS = [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": NODE_PORT, "targetPort": 8080}]


class Cluster:
    """A node to take over with two old pods, a far node with one, an outside host (the router), and a service of one
    pod on either node. ``kind``: of rules, or "host-gw": then the far node is the router, on the same link.
    """

    def __init__(self, stack: ExitStack, directory: Path, kind: str) -> None:
        self.directory = directory
        self.net = stack.enter_context(node_net())
        self.outside = self.net.router
        self.routed = kind == "host-gw"
        self.near, self.far = two_flannel_nodes(self.net, directory, routed=self.routed)
        self.near.files()
        self.echo = Echo(stack)
        self.addresses: dict[str, tuple[str, str]] = {}
        self.old = self.old_pod("old-1")
        self.second = self.old_pod("old-2")
        self.remote = self.net.pod()
        self.addresses[self.remote] = self.far.add(self.remote, "remote")
        for pod in (self.old, self.second, self.remote):
            self.echo.serve(pod)
        self.backends = (self.addresses[self.old][0], self.addresses[self.remote][0])
        self.near.rules(self.backends, "nft" if self.routed else kind)
        self.group = stack.enter_context(own_cgroup(f"{PREFIX}-takeover"))
        self.daemon = stack.enter_context(
            daemon(
                self.net,
                directory,
                vxlan_port=PORT,
                manifests=str(self._manifests()),
                proxy_network=NAME,
                healthz_listen="",
                host_cgroup=str(self.group),
            )
        )
        self.daemon.start()
        self.net_d = self.near.directory / "net.d"

    def old_pod(self, name: str) -> str:
        pod = self.net.pod()
        self.addresses[pod] = self.near.add(pod, name)
        return pod

    def new_pod(self, name: str) -> str:
        """As the runtime makes one: by the first configuration in the directory."""
        first = min(self.net_d.glob("*.conflist"))
        conflist = json.loads(first.read_text())
        conf = {"cniVersion": conflist["cniVersion"], "name": conflist["name"], **conflist["plugins"][0]}
        assert conf["type"] == "samewire-cni", first
        pod = self.net.pod()
        result = self.daemon.add(name, pod, conf)
        four, six = sorted((one["address"].partition("/")[0] for one in result["ips"]), key=len)
        self.addresses[pod] = four, six
        self.echo.serve(pod)
        return pod

    def takeover(self, *arguments: str, status: int = 0) -> str:
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def uninstall(self) -> str:
        """``samewire uninstall --purge``; what it says."""
        command = [
            *self.command_without_places()[:-3],
            "uninstall",
            "--config",
            str(self.daemon.config),
            "--purge",
        ]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def command(self, *arguments: str) -> list[str]:
        places = (
            *("--cni-conf-dir", str(self.net_d)),
            *("--cni-bin-dir", str(self.directory / "bin")),
            *("--subnet-file", str(self.near.directory / "subnet.env")),
        )
        return [*self.command_without_places(), *places, *arguments]

    def command_without_places(self) -> list[str]:
        """As on a node where CNI's directories are the usual ones, or those of the takeover before."""
        return [
            "nsenter",
            f"--net={path_of(self.net.node)}",
            sys.executable,
            "-m",
            "samewire.cli.main",
            "takeover",
            "--config",
            str(self.daemon.config),
        ]

    def reached(self, client: str, *servers: str) -> list[str]:
        """What of the servers' addresses the client does not reach."""
        return [
            f"{client} -> {address} ({server})"
            for server in servers
            for address in self.addresses[server]
            if self.echo.asks(client, address) != server
        ]

    def unserved(self, client: str, vip: str = VIP, port: int = 80) -> list[str]:
        """Which backend does not answer to the client for the service."""
        who = {self.echo.asks(client, vip, port) for _ in range(16)}
        return [f"{client} -> {vip}:{port}: {name or 'nobody'}" for name in who ^ {self.old, self.remote}]

    def links(self) -> set[str]:
        return {link["ifname"] for link in ip_json("link", netns_name=self.net.node)}

    def joins(self, name: str, number: int) -> None:
        """A Node as flanneld annotates it. The kernel of this node hears nothing of it."""
        data = json.dumps({"VNI": 1, "VtepMAC": f"02:00:00:00:00:{number:02x}"})
        words = {
            "backend-type": "host-gw" if self.routed else "vxlan",
            "backend-data": "null" if self.routed else data,
            "backend-v6-data": "null" if self.routed else data,
            "public-ip": f"192.168.78.{number}",
            "public-ipv6": f"fd78::{number}",
        }
        annotations = {f"flannel.alpha.coreos.com/{key}": value for key, value in words.items()}
        subnets = [f"10.244.{number}.0/24", f"fd00:244:0:{number}::/64"]
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"podCIDR": subnets[0], "podCIDRs": subnets},
        }
        new = self.directory / "node.new"
        new.write_text(json.dumps(node))
        new.rename(self.directory / "manifests" / f"{name}.json")

    def leaves(self, name: str) -> None:
        """The Node is deleted."""
        (self.directory / "manifests" / f"{name}.json").unlink()

    def remote_subnets(self) -> dict[str, str]:
        """The other nodes' addresses by prefix."""
        [network] = [one for one in self.daemon.request("GET", "/v2/networks") if one["Name"] == NAME]
        kind, key = ("SDNRoute", "NextHop") if self.routed else ("RemoteSubnetRoute", "ProviderAddress")
        return {
            policy["Settings"]["DestinationPrefix"]: policy["Settings"][key]
            for policy in network["Policies"]
            if policy["Type"] == kind and policy["Settings"].get(key)
        }

    def state(self) -> Json:
        """What a takeover changes of the old network."""
        routes = [
            *ip_json("-4", "route", netns_name=self.net.node),
            *ip_json("-6", "route", netns_name=self.net.node),
        ]
        own = [
            route for route in routes if route["dev"] in ("cni0", *DEVICES) and route["dst"] != "fe80::/64"
        ]
        words = ("dst", "dev", "gateway", "protocol", "prefsrc", "metric", "flags")
        return {
            "routes": sorted(str({word: route.get(word) for word in words}) for route in own),
            "rules": [
                line for line in self.near.saved().splitlines() if line.startswith(("-A", ":KUBE", ":FLA"))
            ],
            "files": sorted(path.name for path in self.net_d.iterdir()),
            "proxy": [
                in_namespace(self.net.node, "sysctl", "-n", f"net.{key}").stdout
                for key in (
                    "ipv4.conf.cni0.proxy_arp",
                    "ipv6.conf.cni0.proxy_ndp",
                    "ipv4.neigh.cni0.proxy_delay",
                )
            ],
            "addresses": sorted(
                (link["ifname"], one["local"])
                for link in ip_json("address", netns_name=self.net.node)
                if link["ifname"] in ("cni0", *DEVICES)
                for one in link["addr_info"]
                if one["scope"] == "global"
            ),
        }

    def _manifests(self) -> Path:
        manifests = self.directory / "manifests"
        manifests.mkdir()
        self.is_web(self.old, self.remote)
        return manifests

    def is_web(self, *pods: str) -> None:
        """The service's pods are these; kube-proxy hears nothing of it."""
        backends = [(self.addresses[pod][0], "far" if pod == self.remote else "node") for pod in pods]
        items = [service("web", VIP, type="NodePort", ports=PORTS), slice_of("web", *backends)]
        new = self.directory / "web.new"
        new.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        new.rename(self.directory / "manifests" / "web.json")


def broken(connections: list[socket.socket]) -> list[str]:
    """Those on which no echo comes back."""
    ends = [(one, f"{one.getsockname()[:2]} - {one.getpeername()[:2]}") for one in connections]
    return [words for one, words in ends if not is_alive(one)]


def killed_at_each_step(cluster: Cluster, *action: str) -> None:
    """One run after the other, each killed a step later than the one before."""
    steps = len(json.loads(cluster.takeover("--dry-run", "--json", *action))["steps"])
    for step in range(1, steps):
        run = subprocess.Popen(
            cluster.command(*action),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert run.stdout is not None
        with run, run.stdout as lines:
            for _ in range(step):
                lines.readline()
            run.send_signal(signal.SIGKILL)
