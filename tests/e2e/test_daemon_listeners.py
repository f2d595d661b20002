"""IPv6 pods of the underlay behind a switch with MLD snooping (RFC 4541): who does not say that it listens to
neighbour solicitations for an address gets none, and is found by nobody.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.node import (
    ROUTER_IP6,
    DaemonProcess,
    Json,
    NodeNet,
    can_ping,
    daemon,
    in_namespace,
    ip,
    ip_json,
    node_net,
    poll,
)

pytestmark = pytest.mark.root

POD, GROUP = "fd77::100", "ff02::1:ff00:100"
OTHERS = "fd77::200"


@pytest.fixture
def net() -> Iterator[NodeNet]:
    """The router's interface is a port of a switch that looks who listens; the router is on the switch itself."""
    with node_net() as made:
        name, switch = made.router, ("mcast_snooping", "1", "mcast_querier", "1")
        delay = (
            "mcast_query_response_interval",
            "10",
        )  # of a second's hundredths: then it goes by what it knows
        ip("link", "add", "br0", "type", "bridge", *switch, *delay, netns_name=name)
        ip("address", "flush", "dev", "eth0", netns_name=name)
        ip("link", "set", "eth0", "master", "br0", netns_name=name)
        ip("address", "add", f"{ROUTER_IP6}/64", "dev", "br0", "nodad", netns_name=name)
        ip("link", "set", "br0", "up", netns_name=name)
        yield made


@pytest.fixture
def node(net: NodeNet, tmp_path: Path) -> Iterator[DaemonProcess]:
    with daemon(net, tmp_path) as process:
        yield process.start()


def pod_of(net: NodeNet, node: DaemonProcess, kind: str) -> tuple[str, Json]:
    """A pod that has nothing to say; it and its configuration."""
    subnet = {
        "IpAddressPrefix": "fd77::/64",
        "Routes": [{"NextHop": ROUTER_IP6, "DestinationPrefix": "::/0"}],
    }
    node.request("POST", "/v2/networks", {"Name": kind, "Type": kind, "Ipams": [{"Subnets": [subnet]}]})
    pod, conf = net.pod(), node.conf(kind, policies=[], capabilities={"ips": True})
    conf["runtimeConfig"] = {"ips": [f"{POD}/64"]}
    del conf["ipam"]
    node.add("pod", pod, conf)
    return pod, conf


def heard(net: NodeNet) -> bool:
    """Whether the switch has heard of a listener on the node's port."""
    return f"port eth0 grp {GROUP}" in in_namespace(net.router, "bridge", "mdb", "show").stdout


def listened_to(net: NodeNet) -> set[str]:
    """The addresses for whose solicitations the node listens on others' behalf."""
    return {entry["dst"] for entry in ip_json("neigh", "show", "proxy", netns_name=net.node)}


@pytest.mark.parametrize("kind", ["L2Bridge", "Transparent"])
def test_a_pod_is_found(net: NodeNet, node: DaemonProcess, kind: str) -> None:
    """By who has never heard of it; what others listen to stays."""
    ip("neigh", "add", "proxy", OTHERS, "dev", "eth0", netns_name=net.node)
    pod, conf = pod_of(net, node, kind)
    poll("the switch has heard of it", lambda: heard(net))
    ip("neigh", "flush", "all", netns_name=net.router)
    assert can_ping(net.router, POD, count=3)
    node.stop(signal.SIGKILL)
    assert listened_to(net) == {POD, OTHERS}
    node.start()
    assert node.differences() == []
    node.delete("pod", pod, conf)
    assert listened_to(net) == {OTHERS}
    assert node.differences() == []


def test_it_is_found_again(net: NodeNet, node: DaemonProcess) -> None:
    """An interface that was set down has forgotten it, also where all else is as it was."""
    in_namespace(net.node, "sysctl", "-q", "-w", "net.ipv6.conf.eth0.keep_addr_on_down=1")
    pod_of(net, node, "L2Bridge")
    poll("the switch has heard of it", lambda: heard(net))
    ip("link", "set", "eth0", "down", netns_name=net.node)
    ip("link", "set", "eth0", "up", netns_name=net.node)
    poll("it listens again", lambda: listened_to(net) == {POD})


def test_uninstalled(net: NodeNet, node: DaemonProcess) -> None:
    ip("neigh", "add", "proxy", OTHERS, "dev", "eth0", netns_name=net.node)
    pod_of(net, node, "L2Bridge")
    assert listened_to(net) == {POD, OTHERS}
    node.stop()
    code = "from samewire.cli.node import uninstall; uninstall()"
    in_namespace(net.node, sys.executable, "-c", code, "--config", str(node.config), "--purge")
    assert listened_to(net) == {OTHERS}
