"""A node of flannel with the backend host-gw, taken over with its pods running, given back, and cleared of the rest."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.flannel import NAME, NODE_PORT
from tests.support.node import NODE_IP, ROUTER_IP, ROUTER_IP6, ip, ip_json, poll
from tests.support.takeover import Cluster, broken, killed_at_each_step

pytestmark = pytest.mark.root

FAR = {"10.244.2.0/24": ROUTER_IP, "fd00:244:0:2::/64": ROUTER_IP6}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(stack, tmp_path, "host-gw")


def hops(cluster: Cluster) -> dict[str, str]:
    """The node's own routes to the other nodes' pods."""
    return {
        route["dst"]: route["gateway"]
        for family in ("-4", "-6")
        for route in ip_json(family, "route", netns_name=cluster.net.node)
        if route["dst"] in FAR
    }


def test_a_takeover_and_the_removal_of_what_it_replaced(cluster: Cluster) -> None:
    """Old and new pods, the other node and its pods, reach each other; flannel's routes stay the node's own."""
    old, second, remote = cluster.old, cluster.second, cluster.remote
    held = [
        cluster.echo.connect(client, address)[0]
        for client, server in ((old, remote), (remote, old), (old, second), (cluster.net.node, old))
        for address in cluster.addresses[server]
    ]
    cluster.takeover()
    assert cluster.remote_subnets() == FAR == hops(cluster)
    new, other = cluster.new_pod("new-1"), cluster.new_pod("new-2")
    everybody = (old, second, remote, new, other)
    for client in (*everybody, cluster.net.node, cluster.far.name):
        assert not cluster.reached(client, *(server for server in everybody if server != client))
    for client in (old, second, new, other, cluster.net.node):
        assert not cluster.unserved(client)
    assert not cluster.unserved(cluster.outside, NODE_IP, NODE_PORT)
    assert cluster.echo.asks(remote, cluster.addresses[new][0]) == new
    assert not broken(held)
    assert cluster.daemon.differences() == []
    before = cluster.state()
    cluster.takeover()
    assert cluster.state() == before

    assert "old-1" in cluster.takeover("--remove", status=1)
    cluster.near.delete(old, "old-1")
    cluster.near.delete(second, "old-2")
    cluster.takeover("--remove")
    rules = cluster.near.saved()
    assert "KUBE-SERVICES" not in rules
    assert "FLANNEL-POSTRTG" in rules, "flanneld goes on"
    assert "cni0" not in cluster.links()
    assert hops(cluster) == FAR
    assert (cluster.near.directory / "subnet.env").exists()
    for client in (new, other, remote, cluster.net.node):
        assert not cluster.reached(client, *(server for server in (new, other, remote) if server != client))
    assert cluster.remote_subnets() == FAR
    assert cluster.daemon.differences() == []
    cluster.takeover("--remove")
    assert "has been removed" in cluster.takeover("--undo", status=1)


def test_the_way_back(cluster: Cluster) -> None:
    before = cluster.state()
    held = [cluster.echo.connect(cluster.old, address)[0] for address in cluster.addresses[cluster.remote]]
    cluster.takeover()
    cluster.takeover("--undo")
    assert cluster.state() == before
    assert not cluster.reached(cluster.old, cluster.second, cluster.remote)
    assert not cluster.reached(cluster.remote, cluster.old)
    assert not broken(held)
    cluster.old_pod("old-3")


def test_the_way_back_without_the_daemon(cluster: Cluster) -> None:
    """Nothing of the old pods' is Samewire's here: they go on while there is no Samewire any more."""
    before = cluster.state()
    held = [
        cluster.echo.connect(client, address)[0]
        for client in (cluster.net.node, cluster.remote)
        for address in cluster.addresses[cluster.old]
    ]
    cluster.takeover()
    cluster.daemon.stop(signal.SIGKILL)
    cluster.uninstall()
    assert not broken(held)
    for client in (cluster.net.node, cluster.remote):
        assert not cluster.reached(client, cluster.old, cluster.second)
    cluster.takeover("--undo")
    assert cluster.state() == before


def test_a_dry_run_lists_what_is_there(cluster: Cluster) -> None:
    before = cluster.state(), sorted(cluster.directory.rglob("*"))
    shown = json.loads(cluster.takeover("--dry-run", "--json"))
    assert {hop["prefix"]: hop["via"] for hop in shown["found"]["hops"]} == FAR
    assert {guest["container"] for guest in shown["found"]["bridge"]["guests"]} == {"old-1", "old-2"}
    text = cluster.takeover("--dry-run")
    assert f"HNS network {NAME}: routed, 2 subnets of other nodes" in text
    assert "UDP port" not in text
    assert (cluster.state(), sorted(cluster.directory.rglob("*"))) == before


def test_other_nodes_join_and_leave(cluster: Cluster) -> None:
    """By their annotations; what the node itself needs for that, flanneld writes."""
    cluster.takeover()
    cluster.joins("later", 9)
    poll("the later node is known", lambda: cluster.remote_subnets().get("10.244.9.0/24") == "192.168.78.9")
    assert cluster.remote_subnets()["fd00:244:0:9::/64"] == "fd78::9"
    cluster.leaves("later")
    poll("the later node is gone", lambda: cluster.remote_subnets() == FAR)
    ip("route", "replace", "10.244.9.0/24", "via", ROUTER_IP, netns_name=cluster.net.node)
    cluster.takeover()
    assert cluster.remote_subnets()["10.244.9.0/24"] == ROUTER_IP, "repeated, it reads flanneld's routes"


@pytest.mark.slow
@pytest.mark.parametrize("action", [(), ("--undo",)])
def test_killed_at_any_step(cluster: Cluster, action: tuple[str, ...]) -> None:
    before = cluster.state()
    if action:
        cluster.takeover()
    killed_at_each_step(cluster, *action)
    cluster.takeover()
    assert not cluster.reached(cluster.old, cluster.second, cluster.remote)
    assert not cluster.reached(cluster.remote, cluster.old)
    cluster.takeover("--undo")
    assert cluster.state() == before
