"""VLANs through the daemon: by the API of both dialects and CNI, over restarts, and what the tools say of them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from samewire.kernel.netns import NetNamespace
from tests.support.node import DaemonProcess, Json, NodeNet, daemon, in_namespace, node_net, path_of
from tests.support.two_nodes import run
from tests.support.vlans import TagSniffer

pytestmark = pytest.mark.root

SUBNET, GATEWAY = "10.7.0.0/24", "10.7.0.1"


class World:
    """A node with the same subnet in two VLANs, and a pod in each."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        self.net: NodeNet = stack.enter_context(node_net())
        self.node: DaemonProcess = stack.enter_context(
            daemon(self.net, directory, audit_interval_s=1)
        ).start()
        self.pods = {vlan: self.pod(vlan) for vlan in (7, 8)}

    def pod(self, vlan: int) -> str:
        name = f"vlan{vlan}"
        if vlan == 7:
            self.node.request("POST", "/v2/networks", network(name, vlan))
        else:
            made = {
                "Name": name,
                "Type": "l2bridge",
                "Policies": [{"Type": "VLAN", "VLAN": vlan}],
                "Subnets": [{"AddressPrefix": SUBNET, "GatewayAddress": GATEWAY}],
            }
            assert self.node.request("POST", "/v1/networks/", made)["Success"]
        pod = self.net.pod()
        self.node.add(name, pod, conf(self.node, name))
        return pod


def network(name: str, vlan: int) -> Json:
    return {
        "Name": name,
        "Type": "L2Bridge",
        "SchemaVersion": {"Major": 2, "Minor": 0},
        "Ipams": [
            {
                "Type": "Static",
                "Subnets": [
                    {
                        "IpAddressPrefix": SUBNET,
                        "Routes": [{"NextHop": GATEWAY, "DestinationPrefix": "0.0.0.0/0"}],
                        "Policies": [{"Type": "VLAN", "Settings": {"IsolationId": vlan}}],
                    }
                ],
            }
        ],
    }


def conf(node: DaemonProcess, name: str, **more: Any) -> Json:
    return node.conf(name, SUBNET, policies=[], **more)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack, tmp_path_factory.mktemp("world"))


def tags_of_questions(world: World, pod: str, about: str) -> set[int | None]:
    """With which tags a pod's question for an address comes to the wire."""
    with NetNamespace(path_of(world.net.router)) as router, TagSniffer(router, "eth0") as sniffer:
        in_namespace(pod, "ping", "-c", "1", "-W", "0.3", about, check=False)
        target = bytes(map(int, about.split(".")))
        return {
            one.vlan
            for one in sniffer.tagged()
            if one.frame[12:14] == b"\x08\x06" and one.frame[38:42] == target
        }


def test_questions_have_their_vlans_tag(world: World) -> None:
    for vlan, pod in world.pods.items():
        assert tags_of_questions(world, pod, f"10.7.0.{vlan}0") == {vlan}


def test_the_tools_name_the_vlan(world: World) -> None:
    node = world.node
    ports = run(node, "vfp", "list-ports").stdout
    assert "VLAN: 7" in " ".join(ports.split())
    trace = run(node, "trace", "--from", "vlan7", "--to", "203.0.113.9:80")
    assert trace.exit_code == 0, trace.output
    assert "leaves node by eth0 in VLAN 7" in trace.stdout
    assert "the simulator agrees" in trace.stdout
    assert "7" in run(node, "get", "networks", "-o", "wide").stdout
    rules = run(node, "vfp", "list-rules", "--port", "uplink").stdout
    assert "vlan 7" in rules
    assert "vlan 8" in rules
    captured = run(node, "capture", "vlan7", "--seconds", "0.1")
    assert "VLAN 7 on the uplink" in captured.stderr
    doctor = run(node, "doctor")
    assert "vlan" not in doctor.output.lower(), doctor.output


def test_a_restart_changes_nothing(world: World) -> None:
    """Killed, and started again: the tables are what they were, and other networks may come and go beside."""
    node = world.node
    before = {name: node.table(name) for name in ("sw_vnis", "sw_routes", "sw_ports", "sw_nexthops")}
    node.stop(signal.SIGKILL)
    for vlan, pod in world.pods.items():
        assert tags_of_questions(world, pod, f"10.7.0.{vlan}1") == {vlan}
    node.start()
    assert node.differences() == []
    assert {name: node.table(name) for name in before} == before
    more = node.request("POST", "/v2/networks", {**network("more", 7), "Ipams": second_subnet()})
    node.request("DELETE", f"/v2/networks/{more['ID']}")
    assert {name: node.table(name) for name in before} == before
    for vlan, pod in world.pods.items():
        assert tags_of_questions(world, pod, f"10.7.0.{vlan}2") == {vlan}


def second_subnet() -> list[Json]:
    (ipam,) = network("", 7)["Ipams"]
    (subnet,) = ipam["Subnets"]
    route = {"NextHop": "10.70.0.1", "DestinationPrefix": "0.0.0.0/0"}
    return [{**ipam, "Subnets": [{**subnet, "IpAddressPrefix": "10.70.0.0/24", "Routes": [route]}]}]


def test_a_network_moves_into_another_vlan(world: World) -> None:
    """With its pods, which find their gateway anew; the daemon's audit finds nothing to repair."""
    node = world.node
    made = node.request("POST", "/v2/networks", {**network("moving", 9), "Ipams": second_subnet_of(9)})
    pod = world.net.pod()
    node.add("moving", pod, node.conf("moving", "10.90.0.0/24", policies=[]))
    assert tags_of_questions(world, pod, "10.90.0.1") == {9}
    policies = [{"Type": "VLAN", "Settings": {"IsolationId": 10}}]
    body = {"ResourceType": "Policy", "RequestType": "Add", "Settings": {"Policies": policies}}
    assert node.ask("POST", f"/v2/networks/{made['ID']}", body)[0] >= 400  # its subnet says 9
    (ipam,) = second_subnet_of(10)
    subnets = {"ResourceType": "Subnet", "RequestType": "Update", "Settings": {"Subnets": ipam["Subnets"]}}
    node.request("POST", f"/v2/networks/{made['ID']}", subnets)
    assert tags_of_questions(world, pod, "10.90.0.77") == {10}
    assert node.differences() == []
    node.delete("moving", pod, node.conf("moving", "10.90.0.0/24", policies=[]))
    node.request("DELETE", f"/v2/networks/{made['ID']}")
    assert node.differences() == []


def second_subnet_of(vlan: int) -> list[Json]:
    (ipam,) = network("", vlan)["Ipams"]
    (subnet,) = ipam["Subnets"]
    route = {"NextHop": "10.90.0.1", "DestinationPrefix": "0.0.0.0/0"}
    return [{**ipam, "Subnets": [{**subnet, "IpAddressPrefix": "10.90.0.0/24", "Routes": [route]}]}]
