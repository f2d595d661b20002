"""hostPorts as a runtime asks for them, on each type of network: from outside, from the node, from the pod itself."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.node import (
    NODE_IP,
    NODE_IP6,
    ROUTER_IP,
    ROUTER_IP6,
    DaemonProcess,
    Json,
    NodeNet,
    daemon,
    overlay,
)
from tests.support.service_cluster import ask, server

pytestmark = pytest.mark.root

HOST_PORT = 8080
SUBNETS = (("10.244.0.0/24", "10.244.0.1"), ("fd44::/64", "fd44::1"))
UNDERLAY = (("192.168.77.0/24", ROUTER_IP), ("fd77::/64", ROUTER_IP6))
BRIDGED = ("L2Bridge", "L2Tunnel", "Transparent")
OF_THE_NODE = (NODE_IP, NODE_IP6, "127.0.0.1", "::1")


@pytest.fixture
def node(net: NodeNet, tmp_path: Path, group: Path) -> Iterator[DaemonProcess]:
    with daemon(net, tmp_path, host_cgroup=str(group)) as process:
        yield process.start()


def network(kind: str) -> Json:
    """A network of both families; its name is "pods"."""
    if kind == "Overlay":
        return overlay(subnet6=SUBNETS[1][0])
    subnets = [
        {
            "IpAddressPrefix": prefix,
            "Routes": [{"NextHop": gateway, "DestinationPrefix": "::/0" if ":" in gateway else "0.0.0.0/0"}],
        }
        for prefix, gateway in (UNDERLAY if kind in BRIDGED else SUBNETS)
    ]
    return {"Name": "pods", "Type": kind, "SchemaVersion": {"Major": 2}, "Ipams": [{"Subnets": subnets}]}


def conf_of(node: DaemonProcess, kind: str) -> Json:
    """A pod in it, with one port of the node for TCP and UDP."""
    subnets = UNDERLAY if kind in BRIDGED else SUBNETS
    mappings = [
        {"hostPort": HOST_PORT, "containerPort": 80, "protocol": protocol} for protocol in ("tcp", "udp")
    ]
    conf = node.conf("pods", *(prefix for prefix, _ in subnets), policies=[])
    for (item,), (prefix, gateway) in zip(conf["ipam"]["ranges"], subnets, strict=True):
        item.update(rangeStart=prefix.partition("/")[0].removesuffix("0") + "100", gateway=gateway)
    return {
        **conf,
        "capabilities": {"portMappings": True},
        "runtimeConfig": {"portMappings": mappings},
    }


@pytest.mark.parametrize("kind", [*BRIDGED, "Overlay", "NAT", "Internal", "Private"])
def test_a_host_port(net: NodeNet, node: DaemonProcess, group: Path, kind: str) -> None:
    """TCP and UDP of both families, with the daemon and without it. Of a Private network it is for clients outside."""
    node.request("POST", "/v2/networks", network(kind))
    pod, conf = net.pod(), conf_of(node, kind)
    node.add("pod", pod, conf)

    def answers(protocol: str) -> dict[str, list[str]]:
        """By who asks for what."""
        found = {
            f"outside {host}": ask(net.router, host, HOST_PORT, protocol=protocol) for host in OF_THE_NODE[:2]
        }
        for host in OF_THE_NODE:
            found[f"node {host}"] = ask(net.node, host, HOST_PORT, protocol=protocol, group=group)
        if kind != "Private":
            for host in OF_THE_NODE[:2]:
                found[f"pod {host}"] = ask(pod, host, HOST_PORT, protocol=protocol)
        return found

    with server(pod, "pod", 80):
        for protocol in ("tcp", "udp"):
            found = answers(protocol)
            assert [found.pop(f"outside {host}") for host in OF_THE_NODE[:2]] == [
                [f"pod {ROUTER_IP}"],
                [f"pod {ROUTER_IP6}"],
            ]
            wanted = "refused" if kind == "Private" else "pod"
            assert {who: [one.split()[0] for one in said] for who, said in found.items()} == {
                who: [wanted] for who in found
            }
        before = [answers(protocol) for protocol in ("tcp", "udp")]
        node.stop(signal.SIGKILL)
        assert [answers(protocol) for protocol in ("tcp", "udp")] == before
        node.start()
        assert node.differences() == []
        node.delete("pod", pod, conf)
    for host in OF_THE_NODE[:2]:
        assert ask(net.router, host, HOST_PORT) == ["refused"]
