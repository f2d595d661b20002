"""Direct server return between two real nodes, for a client outside behind a router, and what hinders it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.support.capture import captured
from tests.support.node import (
    NODE_IP,
    NODE_IP6,
    ROUTER_IP,
    ROUTER_IP6,
    SHORT_S,
    DaemonProcess,
    Json,
    in_namespace,
    ip,
    poll,
)
from tests.support.service_cluster import Held, ask, backends_of, held, names, server, service, slice_of
from tests.support.two_nodes import FAR, FAR6, FAR_IP, FAR_IP6, FAR_ROUTER_IP, FAR_ROUTER_IP6, World, add

pytestmark = pytest.mark.root

FAMILIES = (4, 6)
NODE = {4: NODE_IP, 6: NODE_IP6}
CLIENT = {4: "192.168.79.2", 6: "fd79::2"}
CLIENT_ROUTER = {4: "192.168.79.1", 6: "fd79::1"}
POD = {
    "overlay": {4: FAR, 6: FAR6},
    "bridged": {4: "192.168.78.100", 6: "fd78::100"},
    "process": {4: FAR_IP, 6: FAR_IP6},
}
NODE_PORT = 30080


class Cluster:
    """Two nodes that read the same manifests; the backends are on the far one, the client calls the near one."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        self.manifests = directory / "manifests"
        self.manifests.mkdir()
        self.world = world = World(stack, directory, manifests=str(self.manifests), dsr=True)
        self.router = world.net.router
        self.client = world.net.namespace("c")
        ip("link", "add", "eth0", "netns", self.client, "type", "veth", "peer", "eth2", "netns", self.router)
        for where, device, addresses in ((self.client, "eth0", CLIENT), (self.router, "eth2", CLIENT_ROUTER)):
            ip("address", "add", f"{addresses[4]}/24", "dev", device, netns_name=where)
            ip("address", "add", f"{addresses[6]}/64", "dev", device, "nodad", netns_name=where)
            ip("link", "set", device, "up", netns_name=where)
        for family in FAMILIES:
            ip("route", "add", "default", "via", CLIENT_ROUTER[family], netns_name=self.client)
        ip("route", "add", f"{FAR6}/128", "via", FAR_IP6, netns_name=self.router)
        self.filter(0)
        bridge(world.near, ("192.168.77.0/24", ROUTER_IP), ("fd77::/64", ROUTER_IP6))
        bridge(world.far, ("192.168.78.0/24", FAR_ROUTER_IP), ("fd78::/64", FAR_ROUTER_IP6))
        self.bridged = world.net.pod()
        add(world.far, "c-bridged", self.bridged, bridged_conf(world.far), "")
        for pod in (world.remote, self.bridged):
            stack.enter_context(server(pod, "remote", 8080))
        self.annotate(FAR_IP)

    def annotate(self, text: str) -> None:
        """Where the far node's tunnels end."""
        annotations = {"samewire.io/dsr-provider-address": text}
        self.write(
            "node",
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": "far", "annotations": annotations},
                "status": {
                    "addresses": [{"type": "InternalIP", "address": address} for address in (FAR_IP, FAR_IP6)]
                },
            },
        )

    def filter(self, how: int) -> None:
        """Reverse path filtering of the router."""
        for device in ("all", "eth0", "eth1", "eth2"):
            in_namespace(self.router, "sysctl", "-qw", f"net.ipv4.conf.{device}.rp_filter={how}")

    def write(self, name: str, *objects: Json) -> None:
        """Put objects into a file, in one step."""
        temporary = self.manifests / f".{name}"
        temporary.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
        temporary.rename(self.manifests / f"{name}.json")

    def publish(self, kind: str, dsr: str = "") -> None:
        """The service with the pod of a kind of network; wait until both nodes have it. DSR is the nodes' default."""
        ports = [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": NODE_PORT}]
        made = service("web", "10.96.0.10", "fd96::10", type="NodePort", ports=ports)
        made["metadata"]["annotations"] = {"samewire.io/dsr": dsr} if dsr else {}
        addresses = POD[kind]
        self.write("web", made, *(slice_of("web", (addresses[family], "far")) for family in FAMILIES))
        for process in (self.world.near, self.world.far):
            poll("the service", partial(_is_so, process, addresses, dsr))


def _is_so(process: DaemonProcess, addresses: dict[int, str], dsr: str) -> bool:
    found = process.request("GET", "/v2/services")
    wanted = {f"{addresses[family]}:8080" for family in FAMILIES}
    ports = [one for one in found[0].get("addresses", ()) if one["port"] == NODE_PORT] if found else []
    return (
        len(ports) == len(FAMILIES)
        and not found[0].get("error")
        and backends_of(found[0]) == wanted
        and {one.get("dsr", False) for one in ports} == {dsr != "false"}
    )


def bridge(process: DaemonProcess, *subnets: tuple[str, str]) -> None:
    """Create an L2Bridge network on the node's own subnets."""
    wanted = [
        {
            "IpAddressPrefix": prefix,
            "Routes": [{"NextHop": via, "DestinationPrefix": "::/0" if ":" in via else "0.0.0.0/0"}],
        }
        for prefix, via in subnets
    ]
    body = {
        "Name": "bridged",
        "Type": "L2Bridge",
        "SchemaVersion": {"Major": 2},
        "Ipams": [{"Subnets": wanted}],
    }
    process.request("POST", "/v2/networks", body)


def bridged_conf(process: DaemonProcess) -> Json:
    """For a pod on the far node's own subnets."""
    conf = process.conf("bridged", policies=[])
    conf["ipam"]["ranges"] = [
        [{"subnet": "192.168.78.0/24", "rangeStart": POD["bridged"][4], "gateway": FAR_ROUTER_IP}],
        [{"subnet": "fd78::/64", "rangeStart": POD["bridged"][6], "gateway": FAR_ROUTER_IP6}],
    ]
    conf["ipam"]["routes"] = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    return conf


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(stack, tmp_path_factory.mktemp("dsr"))


@pytest.mark.parametrize(("kind", "dsr"), [("overlay", ""), ("overlay", "true"), ("bridged", "")])
def test_replies_do_not_pass_the_near_node(cluster: Cluster, tmp_path: Path, kind: str, dsr: str) -> None:
    """By the node's default, and of a service that asks for it."""
    cluster.publish(kind, dsr)
    for family in FAMILIES:
        by_near, by_far = tmp_path / f"near{family}", tmp_path / f"far{family}"
        reply = f"tcp and src host {NODE[family]} and src port {NODE_PORT}"
        with (
            captured(cluster.router, "eth0", reply, by_near),
            captured(cluster.router, "eth1", reply, by_far),
        ):
            answers = ask(cluster.client, NODE[family], NODE_PORT, times=3)
            assert answers == [f"remote {CLIENT[family]}"] * 3, "the pod sees the client"
            poll("replies straight from the far node", lambda: NODE[family] in by_far.read_text())  # noqa: B023
        assert NODE[family] not in by_near.read_text(), "none comes by way of the near node"


@pytest.mark.parametrize("kind", ["overlay", "bridged"])
@pytest.mark.parametrize("tunnels", [FAR_IP, f"{FAR_IP},{FAR_IP6}"], ids=["IPv4", "both"])
def test_clients_on_the_backends_node(cluster: Cluster, tunnels: str, kind: str) -> None:
    """A process of the node, and pods: behind its address by IPv4, by their own in IPv6, on the underlay. They reach
    the pod beside them, or themselves, through the other node, whether that knows where they are or not.
    """
    cluster.annotate(tunnels)
    cluster.publish(kind)
    poll("the tunnels", lambda: _providers(cluster.world.near) == set(tunnels.split(",")))
    clients = (cluster.world.far_net.node, cluster.world.remote, cluster.bridged)
    for client, family in itertools.product(clients, FAMILIES):
        assert names(ask(client, NODE[family], NODE_PORT, times=3)) == {"remote"}, (client, family)
    for family in FAMILIES:
        assert ask(cluster.client, NODE[family], NODE_PORT) == [f"remote {CLIENT[family]}"]


@pytest.mark.parametrize("kind", ["overlay", "bridged"])
def test_a_node_that_does_not_announce_dsr(cluster: Cluster, kind: str) -> None:
    """Its pods see the near node, and answer by it."""
    cluster.annotate("")
    cluster.publish(kind, "true")
    try:
        poll("no tunnels", lambda: _providers(cluster.world.near) == set())
        for family in FAMILIES:
            answers = ask(cluster.client, NODE[family], NODE_PORT, times=3)
            assert names(answers) == {"remote"}
            assert not any(CLIENT[family] in answer for answer in answers)
    finally:
        cluster.annotate(FAR_IP)
        poll("the tunnel", lambda: _providers(cluster.world.near) == {FAR_IP})


@pytest.mark.parametrize("kind", ["overlay", "bridged"])
def test_connections_go_on_when_dsr_goes_and_comes(cluster: Cluster, kind: str) -> None:
    """Each is answered as it was before; new ones as it is said now."""
    cluster.publish(kind)
    with ExitStack() as stack:
        stay: list[Held] = []
        before: list[str] = []
        for dsr in ("true", "false", "true"):
            cluster.publish(kind, dsr)
            assert [one.ask() for one in stay] == before
            for family in FAMILIES:
                new = stack.enter_context(held(cluster.client, NODE[family], NODE_PORT))
                before.append(new.ask())
                assert before[-1].endswith(f" {CLIENT[family]}") == (dsr == "true")
                stay.append(new)


def _providers(process: DaemonProcess) -> set[str]:
    found = process.request("GET", "/v2/loadbalancers")
    return {one["ProviderAddress"] for lb in found for one in lb["Backends"] if one.get("ProviderAddress")}


def test_a_process_of_the_far_node(cluster: Cluster) -> None:
    """A pod with hostNetwork is an endpoint, too; no network has its address."""
    with server(cluster.world.far_net.node, "process", 8080):
        cluster.publish("process")
        for family in FAMILIES:
            assert names(ask(cluster.client, NODE[family], NODE_PORT, times=3)) == {"process"}


def test_a_strict_router_and_the_doctor(cluster: Cluster) -> None:
    cluster.publish("overlay")
    cluster.filter(1)
    try:
        assert ask(cluster.client, NODE_IP, NODE_PORT, wait_s=SHORT_S) == ["timeout"]
        for process, said in ((cluster.world.near, FAR_IP), (cluster.world.far, "lost on the way")):
            poll("the doctor's finding", partial(_finds, process))
            (finding,) = _findings(process)
            assert (finding["object"], finding["check"]) == (f"{NODE_IP} port {NODE_PORT}", "direct-return")
            assert CLIENT[4] in finding["message"]
            assert said in finding["message"]
            assert "rp_filter" in finding["remedy"]
        cluster.publish("overlay", "false")
        answers = ask(cluster.client, NODE_IP, NODE_PORT, times=3)
        assert names(answers) == {"remote"}
        assert not any(CLIENT[4] in answer for answer in answers), (
            "translated: replies come back as they went"
        )
    finally:
        cluster.filter(0)


def _finds(process: DaemonProcess) -> bool:
    return bool(_findings(process))


def _findings(process: DaemonProcess) -> list[Json]:
    found = process.request("GET", "/v2/doctor")["findings"]
    return [finding for finding in found if finding["check"] == "direct-return"]
