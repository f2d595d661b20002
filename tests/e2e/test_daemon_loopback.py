"""lo, which is looked at while an SCTP port of the node's is an endpoint's: who gets what the node sends to itself."""

from __future__ import annotations

import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from samewire.kernel.bpf import BpfLink
from samewire.kernel.features import has_tcx
from samewire.kernel.rtnetlink import Netlink, clsact_del
from samewire.vfp.constants import LOOPBACK
from tests.support.node import NODE_IP, DaemonProcess, NodeNet, daemon, in_namespace, overlay, poll
from tests.support.sctp import WAIT_S, RawSctp
from tests.support.two_nodes import in_pod

pytestmark = pytest.mark.root

PORT, HOST_PORT = 3868, 13868


@pytest.fixture
def node(net: NodeNet, tmp_path: Path) -> Iterator[DaemonProcess]:
    """A running daemon that audits each second, with an overlay network."""
    with daemon(net, tmp_path, audit_interval_s=1) as process:
        process.start()
        process.request("POST", "/v2/networks", overlay())
        yield process


def conf_of(node: DaemonProcess, host_port: int = HOST_PORT) -> dict[str, Any]:
    mapping = {"hostPort": host_port, "containerPort": PORT, "protocol": "sctp"}
    return node.conf(capabilities={"portMappings": True}, runtimeConfig={"portMappings": [mapping]})


def heard(net: NodeNet, pod: str) -> str:
    """Who gets a packet from the node to its own port."""
    with RawSctp(net.node, 4) as here, RawSctp(pod, 4) as there:
        here.send(40000, NODE_IP, HOST_PORT, b"question")
        ready = select.select([here, there], [], [], WAIT_S)[0]
        if there in ready:
            assert there.receive(PORT).source[0] == NODE_IP
            return "pod"
        assert here in ready
        assert here.receive(HOST_PORT).body == b"question"
        return "node"


def take_off(net: NodeNet, node: DaemonProcess) -> None:
    """As somebody else might."""
    if has_tcx():
        with BpfLink.open_pinned(node.run_dir / "bpf" / "links" / "sw_lo_out") as link:
            link.detach()
        return

    def remove() -> None:
        with Netlink() as netlink:
            netlink.request(clsact_del(LOOPBACK))

    in_pod(net.node, remove)


def settings(net: NodeNet) -> list[str]:
    """Of lo: accept_local, route_localnet, rp_filter."""
    names = [f"net.ipv4.conf.lo.{name}" for name in ("accept_local", "route_localnet", "rp_filter")]
    return in_namespace(net.node, "sysctl", "-n", *names).stdout.split()


def test_as_long_as_a_port_is_an_endpoints(net: NodeNet, node: DaemonProcess) -> None:
    """The settings of lo are then what they were, whatever that is."""
    pod, conf = net.pod(), conf_of(node)
    in_namespace(net.node, "sysctl", "-w", "net.ipv4.conf.lo.accept_local=1")
    before = settings(net)
    node.add("other", net.pod(), node.conf())
    assert heard(net, pod) == "node"
    node.add("pod", pod, conf)
    assert heard(net, pod) == "pod"
    assert settings(net) == ["1", "1", "2"]
    node.delete("pod", pod, conf)
    assert heard(net, pod) == "node"
    assert settings(net) == before
    assert node.differences() == []


def test_a_port_that_was_an_endpoints(net: NodeNet, node: DaemonProcess) -> None:
    """The node has it back, while lo is looked at for another's: also where a packet has the ports of a flow."""
    pod, conf = net.pod(), conf_of(node)
    node.add("other", net.pod(), conf_of(node, HOST_PORT + 1))
    node.add("pod", pod, conf)
    assert heard(net, pod) == "pod"
    node.delete("pod", pod, conf)
    assert heard(net, pod) == "node"


def test_it_comes_back(net: NodeNet, node: DaemonProcess) -> None:
    pod = net.pod()
    node.add("pod", pod, conf_of(node))
    take_off(net, node)
    poll("it is back", lambda: heard(net, pod) == "pod")
    poll("nothing differs", lambda: node.differences() == [])
    poll("it is said", lambda: "the uplink's second program does not run" in node.log.read_text())
    in_namespace(net.node, "sysctl", "-w", "net.ipv4.conf.lo.accept_local=0")
    poll("it is set again", lambda: settings(net) == ["1", "1", "2"])
    poll("it is said", lambda: "does not take what the node is to be answered" in node.log.read_text())


def test_without_and_after_the_daemon(net: NodeNet, node: DaemonProcess) -> None:
    """Killed, it goes on; the next one takes it over, and off when nobody has such a port any more."""
    pod, conf = net.pod(), conf_of(node)
    before = settings(net)
    node.add("pod", pod, conf)
    node.stop(signal.SIGKILL)
    assert heard(net, pod) == "pod"
    node.start()
    assert heard(net, pod) == "pod"
    assert node.differences() == []
    node.delete("pod", pod, conf)
    assert heard(net, pod) == "node"
    assert settings(net) == before


def test_uninstalled(net: NodeNet, node: DaemonProcess) -> None:
    pod, before = net.pod(), settings(net)
    node.add("pod", pod, conf_of(node))
    node.stop()
    state_dir = node.state_dir
    for left in (node.run_dir / "lo.json.new", state_dir / "node.json.new", state_dir / "samewire.db.new"):
        left.touch()  # of one that was killed right then
    code = "from samewire.cli.node import uninstall; uninstall()"
    in_namespace(net.node, sys.executable, "-c", code, "--config", str(node.config), "--purge")
    assert heard(net, pod) == "node"
    assert settings(net) == before
    assert not node.run_dir.exists()
    assert not state_dir.exists()
