"""A takeover of a node whose state others change meanwhile, and one whose daemon ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from samewire.node.runlock import lock_file
from tests.support.flannel import DEVICES, NAME
from tests.support.node import ROUTER_IP, ROUTER_IP6, in_namespace, ip_json
from tests.support.takeover import Cluster

pytestmark = pytest.mark.root

ASIDE = "10-flannel.conflist.before-samewire"


@pytest.fixture
def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(stack, tmp_path, getattr(request, "param", "nft"))


def without_places(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command without the options for CNI's directories."""
    line = [*cluster.command_without_places(), *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_the_places_are_those_of_the_takeover(cluster: Cluster) -> None:
    """k3s has its own: where they were left out, `--remove` saw no old pods and cut them off."""
    before = cluster.state()
    cluster.takeover()
    done = without_places(cluster, "--remove")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "old-1" in done.stderr
    assert not cluster.reached(cluster.old, cluster.second, cluster.remote)
    done = without_places(cluster, "--undo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert cluster.state() == before


def test_the_configuration_that_was_put_aside_has_gone(cluster: Cluster) -> None:
    before = cluster.state()
    text = (cluster.net_d / "10-flannel.conflist").read_text()
    cluster.takeover()
    (cluster.net_d / ASIDE).unlink()
    assert "old-1" in cluster.takeover("--remove", status=1)
    assert not cluster.reached(cluster.old, cluster.second, cluster.remote)
    cluster.takeover("--undo")
    assert cluster.state() == before
    assert (cluster.net_d / "10-flannel.conflist").read_text() == text

    # Old pods that have ended leave the bridge behind: it goes without that file, too.
    cluster.takeover()
    (cluster.net_d / ASIDE).unlink()
    cluster.near.delete(cluster.old, "old-1")
    cluster.near.delete(cluster.second, "old-2")
    cluster.takeover("--remove")
    assert cluster.links().isdisjoint({"cni0", *DEVICES})


def test_files_that_are_no_configurations(cluster: Cluster) -> None:
    """Behind flannel's no runtime reads any; and an address may be free again while it is looked at."""
    (cluster.net_d / "00-directory.conflist").mkdir()
    (cluster.net_d / "20-broken.conf").write_text("{")
    (cluster.net_d / "20-null.conflist").write_text('{"name": "n", "plugins": null}')
    (cluster.net_d / "20-bytes.conf").write_bytes(b"\xff")
    (cluster.net_d / "20-nowhere.conflist").symlink_to(cluster.net_d / "nowhere")
    (cluster.near.leases / NAME / "10.244.1.77").symlink_to(cluster.net_d / "nowhere")
    before = cluster.state()
    cluster.takeover()
    cluster.takeover("--undo")
    assert cluster.state() == before
    (cluster.net_d / "05-broken.conf").symlink_to(cluster.net_d / "nowhere")
    assert "05-broken.conf" in cluster.takeover(status=4)
    (cluster.net_d / "05-broken.conf").unlink()
    (cluster.net_d / "05-null.conflist").write_text('{"name": "n", "plugins": null}')
    assert "05-null.conflist: is no CNI configuration" in cluster.takeover(status=1)


def test_chains_in_tables_that_iptables_cannot_read(cluster: Cluster) -> None:
    """An administrator's rule by nft hides the whole table from iptables-nft-save."""
    node = cluster.net.node
    for table, chain, words in (
        ("filter", "INPUT", "ct state established accept"),
        ("nat", "OUTPUT", "masquerade"),
    ):
        hook = "POSTROUTING" if table == "nat" else chain
        in_namespace(node, "nft", "add", "rule", "ip", table, hook, words)
    assert "KUBE-SERVICES" not in cluster.near.saved()
    config = json.loads(cluster.daemon.config.read_text())
    cluster.daemon.config.write_text(json.dumps({**config, "proxy_mode": "off"}))
    assert "kube-proxy's rules are here" in cluster.takeover(status=1)
    cluster.daemon.config.write_text(json.dumps(config))
    cluster.takeover()
    cluster.near.delete(cluster.old, "old-1")
    cluster.near.delete(cluster.second, "old-2")
    refusal = cluster.takeover("--remove", status=1)
    assert "iptables-nft -t filter" in refusal
    assert "iptables-nft -t nat" in refusal
    assert "cni0" in cluster.links()
    for table, chain in (("filter", "INPUT"), ("nat", "POSTROUTING")):
        listed = in_namespace(node, "nft", "-j", "-a", "list", "chain", "ip", table, chain).stdout
        handle = [item["rule"]["handle"] for item in json.loads(listed)["nftables"] if "rule" in item][-1]
        in_namespace(node, "nft", "delete", "rule", "ip", table, chain, "handle", str(handle))
    assert "KUBE-SERVICES" in cluster.near.saved()
    cluster.takeover("--remove")
    assert "KUBE-SERVICES" not in in_namespace(node, "nft", "list", "ruleset").stdout


def test_two_at_once(cluster: Cluster) -> None:
    """The second would write down what the first has half changed."""
    before = cluster.state()
    with lock_file(cluster.daemon.run_dir / "takeover.lock", "the test"):
        for action in ((), ("--undo",), ("--remove",)):
            assert f"in use by the process {os.getpid()}" in cluster.takeover(*action, status=1)
        cluster.takeover("--dry-run")
    assert cluster.state() == before
    cluster.takeover()


def test_the_daemon_ends_while_the_port_changes_hands(cluster: Cluster) -> None:
    """Nobody would say whether there is a network: flannel's tunnel goes on, until the next run."""
    run = subprocess.Popen(
        cluster.command(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert run.stdout is not None
    with run, run.stdout as lines:
        for line in lines:
            if b"hand UDP port" in line:
                cluster.daemon.stop(signal.SIGKILL)
    assert run.returncode == 4
    links = ip_json("link", netns_name=cluster.net.node)
    assert {link["ifname"] for link in links if "UP" in link["flags"]} >= set(DEVICES)
    assert not cluster.reached(cluster.old, cluster.second, cluster.remote)
    assert not cluster.reached(cluster.remote, cluster.old)
    cluster.daemon.start()
    cluster.takeover()
    assert not cluster.reached(cluster.old, cluster.second, cluster.remote)
    assert not cluster.reached(cluster.remote, cluster.old, cluster.second)


def test_services_of_the_nodes_own_processes_are_not_taken_away(cluster: Cluster) -> None:
    """Without ``host_cgroup`` kube-proxy's rules are all that they have."""
    config = json.loads(cluster.daemon.config.read_text())
    del config["host_cgroup"]
    cluster.daemon.stop()
    cluster.daemon.config.write_text(json.dumps(config))
    cluster.daemon.start()
    cluster.takeover()
    cluster.near.delete(cluster.old, "old-1")
    cluster.near.delete(cluster.second, "old-2")
    assert "host_cgroup" in cluster.takeover("--remove", status=1)
    assert "KUBE-SERVICES" in cluster.near.saved()


@pytest.mark.parametrize("cluster", ["nftables"], indirect=True)
def test_old_pods_reach_the_world_without_flanneld(cluster: Cluster) -> None:
    """flanneld removes its rules when it ends, and does not come up again while Samewire has its port."""
    cluster.echo.serve(cluster.outside)

    def reached() -> set[str]:
        return {
            cluster.echo.asks(pod, address)
            for pod in (cluster.old, cluster.second)
            for address in (ROUTER_IP, ROUTER_IP6)
        }

    before, tables = cluster.state(), in_namespace(cluster.net.node, "nft", "list", "tables").stdout
    assert reached() == {cluster.outside}
    cluster.takeover()
    for family, name in (("ip", "flannel-ipv4"), ("ip6", "flannel-ipv6")):
        in_namespace(cluster.net.node, "nft", "delete", "table", family, name)
    assert reached() == {cluster.outside}
    assert not cluster.reached(cluster.old, cluster.second, cluster.remote)
    new = cluster.new_pod("new-1")
    assert not cluster.reached(cluster.old, new)
    assert cluster.addresses[new][0] in cluster.takeover("--undo", status=1)
    conflist = json.loads((cluster.net_d / "00-samewire.conflist").read_text())
    cluster.daemon.delete("new-1", new, {"cniVersion": "1.1.0", "name": NAME, **conflist["plugins"][0]})
    cluster.takeover()
    cluster.takeover("--undo")
    assert cluster.state() == before
    left = in_namespace(cluster.net.node, "nft", "list", "tables").stdout
    assert left.splitlines() == [line for line in tables.splitlines() if "flannel" not in line]
