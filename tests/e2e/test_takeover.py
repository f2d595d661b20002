"""A node of flannel and kube-proxy taken over with its pods running, given back, and cleared of what was replaced."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.flannel import (
    ADMIN_RULES,
    DEVICES,
    NAME,
    NODE_PORT,
    PORT,
    VIP,
    Echo,
    is_alive,
    two_flannel_nodes,
)
from tests.support.node import NODE_IP, Json, daemon, in_namespace, ip, ip_json, node_net, path_of, poll
from tests.support.service_cluster import service, slice_of

pytestmark = pytest.mark.root

PORTS = [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": NODE_PORT, "targetPort": 8080}]


class Cluster:
    """A node to take over with two old pods, a far node with one, an outside host (the router), and a service of one
    pod on either node.
    """

    def __init__(self, stack: ExitStack, directory: Path, kind: str) -> None:
        self.directory = directory
        self.net = stack.enter_context(node_net())
        self.outside = self.net.router
        self.near, self.far = two_flannel_nodes(self.net, directory)
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
        self.near.rules(self.backends, kind)
        self.daemon = stack.enter_context(
            daemon(
                self.net,
                directory,
                vxlan_port=PORT,
                manifests=str(self._manifests()),
                proxy_network=NAME,
                healthz_listen="",
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

    def command(self, *arguments: str) -> list[str]:
        node = (
            "nsenter",
            f"--net={path_of(self.net.node)}",
            sys.executable,
            "-m",
            "samewire.cli.main",
            "takeover",
        )
        places = (
            *("--config", str(self.daemon.config), "--cni-conf-dir", str(self.net_d)),
            *("--cni-bin-dir", str(self.directory / "bin")),
            *("--subnet-file", str(self.near.directory / "subnet.env")),
        )
        return [*node, *places, *arguments]

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
            "backend-type": "vxlan",
            "backend-data": data,
            "backend-v6-data": data,
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
        """The other nodes' provider addresses by prefix."""
        [network] = [one for one in self.daemon.request("GET", "/v2/networks") if one["Name"] == NAME]
        return {
            policy["Settings"]["DestinationPrefix"]: policy["Settings"]["ProviderAddress"]
            for policy in network["Policies"]
            if policy["Type"] == "RemoteSubnetRoute"
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
        items = [
            service("web", VIP, type="NodePort", ports=PORTS),
            slice_of("web", (self.backends[0], "node"), (self.backends[1], "far")),
        ]
        (manifests / "web.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        return manifests


def broken(connections: list[socket.socket]) -> list[str]:
    """Those on which no echo comes back."""
    ends = [(one, f"{one.getsockname()[:2]} - {one.getpeername()[:2]}") for one in connections]
    return [words for one, words in ends if not is_alive(one)]


@pytest.fixture
def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(stack, tmp_path, getattr(request, "param", "nft"))


@pytest.mark.parametrize(
    ("cluster", "kind"),
    [("nft", "nft"), ("legacy", "legacy"), ("nftables", "nft")],
    indirect=["cluster"],
    ids=["iptables-nft", "iptables-legacy", "nftables"],
)
def test_a_takeover_and_the_removal_of_what_it_replaced(cluster: Cluster, kind: str) -> None:
    old, second, remote = cluster.old, cluster.second, cluster.remote
    assert not cluster.reached(old, second, remote)
    assert not cluster.unserved(old)
    held = [
        cluster.echo.connect(client, address)[0]
        for client, server in ((old, remote), (remote, old), (old, second), (cluster.net.node, old))
        for address in cluster.addresses[server]
    ]
    held += [cluster.echo.connect(old, VIP, 80)[0] for _ in range(4)]

    cluster.takeover()
    assert not broken(held)
    new, other = cluster.new_pod("new-1"), cluster.new_pod("new-2")
    everybody = (old, second, remote, new, other)
    for client in (*everybody, cluster.net.node):
        assert not cluster.reached(client, *(server for server in everybody if server != client))
    for client in (old, second, new, other, cluster.net.node):
        assert not cluster.unserved(client)
    assert not cluster.unserved(cluster.outside, NODE_IP, NODE_PORT)
    assert cluster.echo.asks(cluster.far.name, cluster.addresses[new][0]) == new
    assert not broken(held)
    assert cluster.daemon.differences() == []

    # The daemon may go and come.
    cluster.daemon.stop(signal.SIGKILL)
    assert not cluster.reached(new, old, remote)
    cluster.daemon.start()
    assert not broken(held)
    assert not cluster.reached(remote, old, new)
    assert cluster.daemon.differences() == []

    # Repeated, it changes nothing; and nothing may be removed yet.
    before = cluster.state()
    cluster.takeover()
    assert cluster.state() == before
    refusal = cluster.takeover("--remove", status=1)
    assert "old-1" in refusal
    assert cluster.addresses[second][0] in refusal

    cluster.near.delete(old, "old-1")
    assert "old-1" not in cluster.takeover("--remove", status=1)
    cluster.near.delete(second, "old-2")
    cluster.takeover("--remove")
    rules = cluster.near.saved(kind)
    kept = ("KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "ADMIN")
    left = [line for line in rules.splitlines() if ("KUBE" in line or "FLANNEL" in line)]
    assert not [line for line in left if not any(name in line for name in kept)]
    assert all(rule in rules for rule in ADMIN_RULES)
    assert cluster.links().isdisjoint({"cni0", *DEVICES})
    tables = in_namespace(cluster.net.node, "nft", "list", "tables").stdout
    assert not [line for line in tables.splitlines() if "kube-proxy" in line or "flannel" in line]
    assert "inet admin" in tables
    assert "ip6 admin" in tables
    assert sorted(path.name for path in cluster.net_d.iterdir()) == [
        "00-samewire.conflist",
        "99-loopback.conf",
    ]
    for client in (new, other, remote, cluster.net.node):
        assert not cluster.reached(client, *(server for server in (new, other, remote) if server != client))
    assert cluster.daemon.differences() == []
    cluster.takeover("--remove")
    assert "has been removed" in cluster.takeover("--undo", status=1)


def test_the_way_back(cluster: Cluster) -> None:
    before = cluster.state()
    held = [
        cluster.echo.connect(client, address)[0]
        for client, server in ((cluster.old, cluster.remote), (cluster.remote, cluster.old))
        for address in cluster.addresses[server]
    ]
    cluster.takeover()
    new = cluster.new_pod("new-1")
    assert cluster.addresses[new][0] in cluster.takeover("--undo", status=1)
    conflist = json.loads((cluster.net_d / "00-samewire.conflist").read_text())
    conf = {"cniVersion": "1.1.0", "name": NAME, **conflist["plugins"][0]}
    cluster.daemon.delete("new-1", new, conf)
    cluster.takeover("--undo")
    assert cluster.state() == before
    assert not cluster.reached(cluster.old, cluster.second, cluster.remote)
    assert not cluster.reached(cluster.remote, cluster.old)
    assert not cluster.unserved(cluster.old)
    assert not broken(held)
    cluster.old_pod("old-3")  # flannel's plugin finds its bridge as it was
    cluster.takeover("--undo", status=3)
    cluster.takeover()  # and there again
    assert not cluster.reached(cluster.old, cluster.second, cluster.remote)


def test_the_way_back_without_the_daemon(cluster: Cluster) -> None:
    before = cluster.state()
    cluster.takeover()
    cluster.daemon.stop(signal.SIGKILL)
    cluster.takeover("--undo", status=4)  # its devices are there, and nobody to say what is on them
    uninstall = cluster.command()[: cluster.command().index("takeover")]
    subprocess.run(
        [*uninstall, "uninstall", "--config", str(cluster.daemon.config), "--purge"],
        check=True,
        capture_output=True,
    )
    cluster.takeover("--undo")
    assert cluster.state() == before
    assert not cluster.reached(cluster.old, cluster.second, cluster.remote)
    assert not cluster.reached(cluster.remote, cluster.old)


def test_a_dry_run_changes_nothing(cluster: Cluster) -> None:
    before = cluster.state(), sorted(cluster.directory.rglob("*"))
    shown = json.loads(cluster.takeover("--dry-run", "--json"))
    assert [remote["provider"] for remote in shown["found"]["remotes"]] == ["192.168.78.2", "fd78::2"]
    assert {guest["container"] for guest in shown["found"]["bridge"]["guests"]} == {"old-1", "old-2"}
    text = cluster.takeover("--dry-run")
    assert "hand UDP port 8472 over from flannel.1, flannel-v6.1 to swvxlan0" in text
    assert all(step["title"] in text for step in shown["steps"])
    assert (cluster.state(), sorted(cluster.directory.rglob("*"))) == before


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


@pytest.mark.slow
@pytest.mark.parametrize("action", [(), ("--undo",)])
def test_killed_at_any_step(cluster: Cluster, action: tuple[str, ...]) -> None:
    before = cluster.state()
    if action:
        cluster.takeover()
    killed_at_each_step(cluster, *action)
    assert not cluster.reached(cluster.old, cluster.second)
    cluster.takeover()
    assert not cluster.reached(cluster.old, cluster.second, cluster.remote)
    assert not cluster.reached(cluster.remote, cluster.old)
    cluster.takeover("--undo")
    assert cluster.state() == before


@pytest.mark.slow
def test_a_removal_that_is_killed_at_any_step(cluster: Cluster) -> None:
    cluster.takeover()
    new = cluster.new_pod("new-1")
    cluster.near.delete(cluster.old, "old-1")
    cluster.near.delete(cluster.second, "old-2")
    killed_at_each_step(cluster, "--remove")
    cluster.takeover("--remove")
    assert cluster.links().isdisjoint({"cni0", *DEVICES})
    assert "KUBE-SERVICES" not in cluster.near.saved()
    assert "SDNRoute" not in json.dumps(cluster.daemon.request("GET", "/v2/networks"))
    assert not cluster.reached(new, cluster.remote)
    assert not cluster.reached(cluster.remote, new)


def test_refusals(cluster: Cluster) -> None:
    config = json.loads(cluster.daemon.config.read_text())
    for change, words in (
        ({"vxlan_port": 4789}, "vxlan_port = 8472"),
        ({"proxy_mode": "off"}, "kube-proxy"),
        ({"proxy_network": ""}, 'proxy_network = "cbr0"'),
    ):
        cluster.daemon.config.write_text(json.dumps({**config, **change}))
        assert words in cluster.takeover(status=1)
    cluster.daemon.config.write_text(json.dumps(config))
    assert "takeover" in cluster.takeover("--remove", status=3)
    (cluster.net_d / "10-flannel.conflist").unlink()
    assert "CNI configuration" in cluster.takeover(status=3)


def test_what_comes_after_a_takeover(cluster: Cluster) -> None:
    """A node that joins and leaves, an old pod that ends as the runtime ends it, and flannel's file written again."""
    cluster.takeover()
    cluster.joins("later", 9)
    poll("the later node is known", lambda: cluster.remote_subnets().get("10.244.9.0/24") == "192.168.78.9")
    assert cluster.remote_subnets()["fd00:244:0:9::/64"] == "fd78::9"
    cluster.takeover()
    assert "10.244.9.0/24" in cluster.remote_subnets()

    conflist = json.loads((cluster.net_d / "00-samewire.conflist").read_text())
    conf = {"cniVersion": conflist["cniVersion"], "name": NAME, **conflist["plugins"][0]}
    for name, pod in (("old-1", cluster.old), ("old-2", cluster.second)):
        address = cluster.addresses[pod][0]
        assert (cluster.near.leases / NAME / address).exists()
        cluster.daemon.delete(name, pod, conf)
        assert not (cluster.near.leases / NAME / address).exists()
        ip("link", "delete", "eth0", netns_name=pod)  # as the end of its namespace does
    (cluster.net_d / "10-flannel.conflist").write_text(
        (cluster.net_d / "10-flannel.conflist.before-samewire").read_text()
    )
    cluster.takeover("--remove")
    assert {"10.244.2.0/24", "10.244.9.0/24"} <= cluster.remote_subnets().keys()
    assert cluster.daemon.differences() == []
    cluster.leaves("later")
    poll("the later node is gone", lambda: "10.244.9.0/24" not in cluster.remote_subnets())
    assert "10.244.2.0/24" in cluster.remote_subnets()
    assert sorted(path.name for path in cluster.net_d.iterdir()) == [
        "00-samewire.conflist",
        "99-loopback.conf",
    ]


def test_other_nodes_are_known_where_another_proxy_balances(cluster: Cluster) -> None:
    """``proxy_mode = "off"``: of the cluster only the Nodes are read."""
    cluster.takeover()
    cluster.joins("sooner", 8)
    poll("the sooner node is known", lambda: cluster.remote_subnets().get("10.244.8.0/24") == "192.168.78.8")
    cluster.daemon.stop()
    config = json.loads(cluster.daemon.config.read_text())
    cluster.daemon.config.write_text(json.dumps({**config, "proxy_mode": "off"}))
    cluster.leaves("sooner")
    cluster.joins("later", 9)
    cluster.daemon.start()
    poll("the later node is known", lambda: cluster.remote_subnets().get("10.244.9.0/24") == "192.168.78.9")
    poll("the sooner node is gone", lambda: "10.244.8.0/24" not in cluster.remote_subnets())
    assert list(cluster.daemon.request("GET", "/v2/health")["kubernetes"]) == ["Node"]
    cluster.leaves("later")
    poll("the later node is gone", lambda: "10.244.9.0/24" not in cluster.remote_subnets())


def test_nodes_that_are_not_flannels_vxlan_alone(cluster: Cluster) -> None:
    before = cluster.state()
    multus = cluster.net_d / "00-multus.conf"
    multus.write_text('{"cniVersion": "0.3.1", "name": "multus", "type": "multus"}')
    assert "00-multus.conf" in cluster.takeover("--dry-run", status=1)
    assert "00-multus.conf" in cluster.takeover(status=1)
    multus.unlink()
    ip("route", "add", "10.244.7.0/24", "via", "192.168.77.1", netns_name=cluster.net.node)
    assert "DirectRouting" in cluster.takeover(status=1)
    ip("route", "delete", "10.244.7.0/24", netns_name=cluster.net.node)
    assert cluster.state() == before
    assert "swvxlan0" in cluster.takeover("--dry-run")
