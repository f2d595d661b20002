"""Load balancers as clients of HNS make them, kube-proxy's winkernel mode first: every field of theirs by what packets
then do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.cgroups import own_cgroup
from tests.support.crowd import answering, crowds
from tests.support.node import NODE_IP, NODE_IP6, PREFIX, ROUTER_IP, SHORT_S, Json, ip, poll
from tests.support.service_cluster import ask, names, server
from tests.support.two_nodes import CLIENT, FAR, FAR_IP, WEB, World

pytestmark = pytest.mark.root

VIP, SOURCE_VIP = "203.0.113.9", "10.244.0.77"
ILB, LOCAL_ROUTED, USE_MUX, PRESERVE, EXTERNAL = 1, 2, 4, 8, 16
V2: Json = {"SchemaVersion": {"Major": 2, "Minor": 0}}


class Node:
    """The near node, and who asks it."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        self.group = stack.enter_context(own_cgroup(f"{PREFIX}-objects"))
        self.world = world = World(stack, directory, host_cgroup=str(self.group))
        ip("route", "add", VIP, "via", NODE_IP, netns_name=world.net.router)
        for pod, name in ((world.web, "web"), (world.remote, "remote")):
            stack.enter_context(server(pod, name, 8080))
        self.web = world.endpoint_id("shop/web")
        self.network = world.near.request("GET", "/v2/networks")[0]
        # As winkernel makes them: a remote endpoint of each backend elsewhere and of the VIP, one for the source VIP.
        provider = [{"Type": "ProviderAddress", "Settings": {"ProviderAddress": FAR_IP}}]
        self.far = self.endpoint(FAR, Flags=1, MacAddress="02-11-0A-F4-01-02", Policies=provider)
        self.vip = self.endpoint(VIP, Flags=1, MacAddress="02-11-CB-00-71-09", Policies=provider)
        self.source = self.endpoint(SOURCE_VIP, Name="sourceVip")

    def endpoint(self, address: str, **fields: Any) -> str:
        """A new endpoint's id."""
        found = [{"IpAddress": address}]
        body = {**V2, "HostComputeNetwork": self.network["ID"], "IpConfigurations": found, **fields}
        return str(self.world.near.request("POST", "/v2/endpoints", body)["ID"])

    @contextmanager
    def balancer(
        self, *members: str, vips: tuple[str, ...] = (VIP,), port: int = 80, flags: int = 0, **more: Any
    ) -> Iterator[str]:
        """A load balancer's id; deleted afterwards."""
        mapping = {"Protocol": 6, "InternalPort": 8080, "ExternalPort": port, "Flags": flags}
        mapping["DistributionType"] = more.pop("distribution", 0)
        body = {
            **V2,
            "HostComputeEndpoints": members,
            "FrontendVIPs": vips,
            "PortMappings": [mapping],
            **more,
        }
        made = self.world.near.request("POST", "/v2/loadbalancers", body)["ID"]
        try:
            yield made
        finally:
            self.world.near.request("DELETE", f"/v2/loadbalancers/{made}")

    def modify(self, balancer: str, how: str, endpoint: str) -> None:
        """Add or remove a member."""
        body = {"ResourceType": "Endpoint", "RequestType": how, "Settings": {"EndpointId": endpoint}}
        self.world.near.request("POST", f"/v2/loadbalancers/{balancer}", body)

    def told(self, host: str = VIP, port: int = 80) -> dict[str, set[str]]:
        """Who answers a pod, the node, and a client outside."""
        world = self.world
        return {
            "pod": names(ask(world.client, host, port, wait_s=SHORT_S)),
            "node": names(ask(world.net.node, host, port, wait_s=SHORT_S, group=self.group)),
            "outside": names(ask(world.net.router, host, port, wait_s=SHORT_S)),
        }


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with ExitStack() as stack:
        yield Node(stack, tmp_path_factory.mktemp("objects"))


@pytest.mark.parametrize("flags", [0, ILB, LOCAL_ROUTED, USE_MUX, EXTERNAL, EXTERNAL | LOCAL_ROUTED])
def test_who_reaches_an_address(node: Node, flags: int) -> None:
    """Clients outside do with the flags UseMux or VipExternalIP; to others the packet is no service's."""
    with node.balancer(node.web, flags=flags):
        told = node.told()
        assert told["pod"] == told["node"] == {"web"}
        assert (told["outside"] == {"web"}) == bool(flags & (USE_MUX | EXTERNAL))


@pytest.mark.parametrize(("host", "family"), [(NODE_IP, 0), (NODE_IP6, 2)])
@pytest.mark.parametrize("flags", [LOCAL_ROUTED | EXTERNAL, ILB])
def test_who_reaches_a_node_port(node: Node, host: str, family: int, flags: int) -> None:
    """No VIPs: every address of the node, of the family that the load balancer's flag 2 says; ILB: nobody outside."""
    with node.balancer(node.web, vips=(), port=30080, flags=flags, Flags=family):
        expected = {"web"} if flags & EXTERNAL else {"refused"}
        assert node.told(host, 30080) == {"pod": {"web"}, "node": {"web"}, "outside": expected}
        other = NODE_IP if family else NODE_IP6
        assert node.told(other, 30080)["pod"] == {"refused"}


def test_the_source_vip(node: Node) -> None:
    """A backend elsewhere sees it in a client's stead; one here, and one that a pod asks, sees the client."""
    outside, pod = node.world.net.router, node.world.client
    with node.balancer(node.far, flags=EXTERNAL, SourceVIP=SOURCE_VIP):
        assert ask(outside, VIP, 80) == [f"remote {SOURCE_VIP}"]
        assert ask(pod, VIP, 80) == [f"remote {CLIENT}"]
    with node.balancer(node.web, flags=EXTERNAL, SourceVIP=SOURCE_VIP):
        assert ask(outside, VIP, 80) == [f"web {ROUTER_IP}"]


@pytest.mark.parametrize("distribution", [0, 1, 2])
def test_distribution_types(node: Node, distribution: int) -> None:
    """By tuple connections spread, by the client's address (and protocol) they do not."""
    with node.balancer(node.web, node.far, distribution=distribution):
        found = names(ask(node.world.client, VIP, 80, times=24))
        assert len(found) == (1 if distribution else 2)


def test_a_preserved_destination(node: Node) -> None:
    """DSR as winkernel asks for it: the pod has the VIP on its loopback, and gets what has come there as it is."""
    world = node.world
    ip("address", "add", f"{VIP}/32", "dev", "lo", netns_name=world.web)
    try:
        with answering(world.web, "own", 8081), answering(world.web, "kept", 81):
            for flags, seen in ((EXTERNAL, f"own {WEB}"), (EXTERNAL | USE_MUX | PRESERVE, f"kept {VIP}")):
                mapping = {"Protocol": 6, "InternalPort": 8081, "ExternalPort": 81, "Flags": flags}
                with node.balancer(node.web, Flags=1, PortMappings=[mapping]):
                    assert ask(world.net.router, VIP, 81) == [seen]
    finally:
        ip("address", "del", f"{VIP}/32", "dev", "lo", netns_name=world.web)


def test_members_come_and_go(node: Node) -> None:
    """One that goes ends what it had, and nothing else."""
    with node.balancer(node.web) as made, crowds(node.world.client) as clients:
        first = clients.open(12, VIP, 80, "tcp")
        assert names(first.first) == {"web"}
        node.modify(made, "Add", node.far)
        second = clients.open(24, VIP, 80, "tcp")
        assert names(second.first) == {"web", "remote"}
        assert first.ask() == first.first
        node.modify(made, "Remove", node.web)
        assert set(first.ask()) == {"ECONNRESET"}
        expected = [one if one.startswith("remote ") else "ECONNRESET" for one in second.first]
        assert second.ask() == expected
        asked = partial(ask, node.world.client, VIP, 80, times=8)
        poll("nobody else", lambda: names(asked()) == {"remote"})


def test_the_node_is_an_endpoint(node: Node) -> None:
    """As forwardHealthCheckVip has it: probes of an ingress address reach the node's own endpoint."""
    near = node.world.near
    host = near.request("POST", "/v2/namespaces", {**V2, "Type": "HostDefault"})["ID"]
    root = node.endpoint("10.244.0.99", Name="cbr0_ep")
    body = {"ResourceType": "Endpoint", "RequestType": "Add", "Settings": {"EndpointId": root}}
    near.request("POST", f"/v2/namespaces/{host}", body)
    mapping = {"Protocol": 6, "InternalPort": 31999, "ExternalPort": 31999, "Flags": EXTERNAL}
    with server(node.world.net.node, "health", 31999), node.balancer(root, PortMappings=[mapping]):
        assert names(ask(node.world.net.router, VIP, 31999)) == {"health"}
