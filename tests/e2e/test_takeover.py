"""A node of flannel and kube-proxy taken over with its pods running, given back, and cleared of what was replaced."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.cgroups import within
from tests.support.flannel import (
    ADMIN_RULES,
    DEVICES,
    NAME,
    NODE_PORT,
    VIP,
)
from tests.support.node import NODE_IP, ROUTER_IP, in_namespace, ip, poll
from tests.support.takeover import Cluster, broken, killed_at_each_step

pytestmark = pytest.mark.root


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
    assert "old-1" not in in_namespace(cluster.net.node, "nft", "list", "ruleset").stdout
    assert "samewire-takeover" not in tables
    assert "inet admin" in tables
    assert "ip6 admin" in tables
    assert sorted(path.name for path in cluster.net_d.iterdir()) == [
        "00-samewire.conflist",
        "99-loopback.conf",
    ]
    for client in (new, other, remote, cluster.net.node):
        assert not cluster.reached(client, *(server for server in (new, other, remote) if server != client))
    cluster.is_web(cluster.remote)
    with within(cluster.group):
        poll("the node's own service", lambda: cluster.echo.asks(cluster.net.node, VIP, 80) == remote)
    assert cluster.daemon.differences() == []
    cluster.takeover("--remove")
    assert "has been removed" in cluster.takeover("--undo", status=1)
    cluster.daemon.stop()
    assert "--undo" not in cluster.uninstall()
    assert not cluster.daemon.state_dir.exists()


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
    assert "samewire takeover --undo" in cluster.uninstall()
    assert not cluster.reached(cluster.net.node, cluster.old, cluster.second)
    cluster.takeover("--undo")
    assert cluster.state() == before
    assert not cluster.reached(cluster.old, cluster.second, cluster.remote)
    assert not cluster.reached(cluster.remote, cluster.old)


def test_the_way_back_after_a_reboot(cluster: Cluster) -> None:
    """All of flannel's that was in the kernel is gone, and so are the pods; flannel brings it again."""
    before = sorted(path.name for path in cluster.net_d.iterdir())
    cluster.takeover()
    cluster.daemon.stop()
    for pod in (cluster.old, cluster.second):
        ip("link", "delete", "eth0", netns_name=pod)
    for device in ("cni0", *DEVICES):
        ip("link", "delete", device, netns_name=cluster.net.node)
    cluster.daemon.start()
    cluster.takeover("--undo")
    assert sorted(path.name for path in cluster.net_d.iterdir()) == before
    assert cluster.daemon.request("GET", "/v2/networks") == []
    cluster.takeover("--undo", status=3)


def everything(cluster: Cluster) -> object:
    """The node's rules, devices, addresses, routes, neighbours and networks, and all files."""
    listings = (
        *(("nft", "-s", "-a", "list", "ruleset"), ("ip", "address"), ("bridge", "fdb")),
        *(("ip", family, "route") for family in ("-4", "-6")),
        ("ip", "-6", "neigh", "show", "proxy"),
        ("cat", "/proc/net/ip_tables_names"),
    )
    places = (
        cluster.near.directory,
        cluster.directory / "bin",
        cluster.directory / "state" / "takeover.json",
    )
    files = [path for place in places for path in (place, *place.rglob("*")) if path.is_file()]
    return (
        cluster.state(),
        [in_namespace(cluster.net.node, *words, check=False).stdout for words in listings],
        sorted(cluster.directory.rglob("*")),
        {path: path.read_bytes() for path in files},
        cluster.daemon.request("GET", "/v2/networks"),
    )


def test_a_dry_run_changes_nothing(cluster: Cluster) -> None:
    before = everything(cluster)
    shown = json.loads(cluster.takeover("--dry-run", "--json"))
    assert [remote["provider"] for remote in shown["found"]["remotes"]] == ["192.168.78.2", "fd78::2"]
    assert {guest["container"] for guest in shown["found"]["bridge"]["guests"]} == {"old-1", "old-2"}
    text = cluster.takeover("--dry-run")
    assert "hand UDP port 8472 over from flannel.1, flannel-v6.1 to swvxlan0" in text
    assert all(step["title"] in text for step in shown["steps"])
    assert everything(cluster) == before

    cluster.takeover()
    cluster.near.delete(cluster.old, "old-1")
    cluster.near.delete(cluster.second, "old-2")
    own = "ip", "route", "show", "dev", "cni0"
    poll("the bridge is down", lambda: "linkdown" in in_namespace(cluster.net.node, *own).stdout)
    before = everything(cluster)
    for action in ((), ("--undo",), ("--remove",)):
        cluster.takeover("--dry-run", *action)
    assert everything(cluster) == before


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
        ({"vxlan_port": 4789}, "\nvxlan_port = 8472"),  # on a line of its own, which can be copied
        ({"proxy_mode": "off"}, "\nkubeconfig = "),
        ({"proxy_network": ""}, '\nproxy_network = "cbr0"'),
    ):
        cluster.daemon.config.write_text(json.dumps({**config, **change}))
        assert words in cluster.takeover(status=1)
    cluster.daemon.config.write_text(json.dumps(config))
    assert "takeover" in cluster.takeover("--remove", status=3)
    (cluster.net_d / "10-flannel.conflist").unlink()
    assert "CNI configuration" in cluster.takeover(status=3)
    left = cluster.takeover("--dry-run", status=3)  # what was left behind is named all the same
    assert "iptables-nft nat: 10 chains, 4 rules" in left
    assert "flannel.1: VNI 1, UDP 8472, up" in left


def test_a_default_route_by_another_nic(cluster: Cluster) -> None:
    """``--iface`` of flannel's: Samewire would send to other nodes from an address that they do not know."""
    node, router = cluster.net.node, cluster.net.router
    ip("link", "add", "eth1", "netns", node, "type", "veth", "peer", "eth8", "netns", router)
    for where, device, address in ((node, "eth1", "10.0.2.15"), (router, "eth8", "10.0.2.2")):
        ip("address", "add", f"{address}/24", "dev", device, netns_name=where)
        ip("link", "set", device, "up", netns_name=where)
    ip("route", "add", "192.168.78.0/24", "via", ROUTER_IP, netns_name=node)
    ip("route", "replace", "default", "via", "10.0.2.2", netns_name=node)
    before = cluster.state()
    config = json.loads(cluster.daemon.config.read_text())
    for uplink in ("", "eth0"):
        cluster.daemon.stop()
        cluster.daemon.config.write_text(json.dumps({**config, "uplink": uplink}))
        cluster.daemon.start()
        if not uplink:
            assert 'uplink = "eth0"' in cluster.takeover(status=1)
            assert cluster.state() == before
    cluster.takeover()
    assert not cluster.reached(cluster.old, cluster.second, cluster.remote)


def test_a_node_without_the_tools(cluster: Cluster) -> None:
    """kube-proxy's and flanneld's images bring their own iptables: what cannot be read is not taken for nothing."""
    tools = cluster.directory / "tools"
    tools.mkdir()
    for name in ("ip", "bridge", "nft", "nsenter"):
        (tools / name).symlink_to(shutil.which(name) or "")

    def refused() -> str:
        env = {**os.environ, "PATH": str(tools)}
        done = subprocess.run(cluster.command(), capture_output=True, text=True, env=env, check=False)
        assert done.returncode == 4, done.stdout + done.stderr
        return done.stderr

    before = cluster.state()
    assert "iptables-nft-save" in refused()
    (tools / "nft").unlink()
    assert "nft" in refused()
    assert cluster.state() == before


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
