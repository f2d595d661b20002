"""What a Service becomes while clients are connected, as Kubernetes' own tests change it: with real connections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from tests.support.node import (
    NODE_IP,
    NODE_IP6,
    ROUTER_IP,
    SHORT_S,
    Json,
    NodeNet,
    in_namespace,
    ip,
    node_net,
    poll,
)
from tests.support.service_cluster import Cluster, Held, ask, held, names, service, service_cluster, slice_of

pytestmark = pytest.mark.root

VIP, OTHER_VIP, VIP6 = "10.96.0.10", "10.96.0.11", "fd96::10"
INGRESS = "203.0.113.9"
TCP = {"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}
UDP = {"name": "udp", "port": 80, "protocol": "UDP", "nodePort": 30080}
HEALTH_PORT = 31000
PROTOCOLS = ("tcp", "udp")


@pytest.fixture(scope="module")
def net() -> Iterator[NodeNet]:
    with node_net() as made:
        ip("route", "add", INGRESS, "via", NODE_IP, netns_name=made.router)
        yield made


@pytest.fixture(scope="module")
def cluster(net: NodeNet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with service_cluster(net, tmp_path_factory.mktemp("transitions")) as made:
        made.start()
        for name in ("one", "two"):
            made.pod(name, port=8080)
        yield made


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> str:
    return cluster.pod("client")


@pytest.fixture(autouse=True)
def clean(cluster: Cluster) -> Iterator[None]:
    """Every test begins without services, and leaves a switch in which everything is as wanted."""
    yield
    cluster.write("web")
    poll("no service", lambda: cluster.services() == [])
    assert cluster.node.differences() == []


def web(*vips: str, name: str = "web", **spec: object) -> Json:
    """A service with a node port, for both protocols; a load balancer has an ingress address, too."""
    made = service(name, *(vips or (VIP,)), **{"type": "NodePort", "ports": [TCP, UDP], **spec})
    if spec.get("type") == "LoadBalancer":
        made["status"] = {"loadBalancer": {"ingress": [{"ip": INGRESS}]}}
    return made


def behind(cluster: Cluster, *pods: str, of: str = "web", far: tuple[str, ...] = ()) -> Json:
    """Its endpoints; some claim to be on another node."""
    found = [(cluster.address(pod), "far" if pod in far else "node") for pod in pods]
    return slice_of(of, *found, family=4)


def affine(timeout_s: int) -> Json:
    return {
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": timeout_s}},
    }


def who(asker: str, address: str, port: int, protocol: str = "tcp", times: int = 1) -> set[str]:
    """Who answers new clients."""
    return names(ask(asker, address, port, protocol=protocol, times=times, wait_s=SHORT_S))


def one_answers(where: tuple[str, str, int], protocol: str) -> bool:
    """Whether new clients all get to the same endpoint."""
    return len(who(*where, protocol, 16)) == 1


def until(
    asker: str, address: str, port: int, wanted: set[str], protocol: str = "tcp", times: int = 1
) -> None:
    """Wait until these answer, and all of them."""
    times = 24 if len(wanted) > 1 else times
    poll(f"{wanted} at {address}", lambda: who(asker, address, port, protocol, times) == wanted)


def said(held_ones: list[Held]) -> list[str]:
    """What is answered on connections that stay."""
    return [one.ask() for one in held_ones]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_affinity_is_switched_on_and_off(cluster: Cluster, client: str, protocol: str) -> None:
    pieces = behind(cluster, "one", "two")
    asked = ((client, VIP, 80), (cluster.net.router, NODE_IP, 30080))
    cluster.write("web", web(), pieces)
    for where in asked:
        until(*where, {"one", "two"}, protocol)
    with ExitStack() as stack:
        stay = [stack.enter_context(held(*where, protocol)) for where in asked for _ in range(3)]
        before = said(stay)
        for _ in range(2):
            cluster.write("web", web(**affine(600)), pieces)
            for where in asked:
                poll("one of them", partial(one_answers, where, protocol))
            assert said(stay) == before
            cluster.write("web", web(), pieces)
            for where in asked:
                until(*where, {"one", "two"}, protocol)
            assert said(stay) == before


def test_affinity_does_not_lead_back(cluster: Cluster, client: str) -> None:
    """To an endpoint that was not ready for a while: its clients have another one since."""
    made = web(**affine(600))
    cluster.write("web", made, behind(cluster, "one"))
    asked = ((client, VIP, 80), (cluster.net.router, NODE_IP, 30080))
    for where in asked:
        until(*where, {"one"})
    pieces = behind(cluster, "one", "two")
    pieces["endpoints"][0]["conditions"] = {"ready": False, "serving": True, "terminating": True}
    with held(client, VIP, 80) as stays:
        assert stays.ask().startswith("one ")
        cluster.write("web", made, pieces)
        for where in asked:
            until(*where, {"two"})
        cluster.write("web", made, behind(cluster, "one", "two"))
        cluster.wait_for("both", web=[f"{cluster.address(pod)}:8080" for pod in ("one", "two")])
        for where in asked:
            assert names(ask(*where, times=8)) == {"two"}
        assert stays.ask().startswith("one ")


def test_two_services_swap_node_ports_and_addresses(cluster: Cluster, client: str) -> None:
    """In one update each: datagrams from ports that stay the same go where new ones go."""

    def swap(vips: tuple[str, str], node_ports: tuple[int, int]) -> None:
        items = []
        for name, pod, vip, number in zip(("web", "more"), ("one", "two"), vips, node_ports, strict=True):
            ports = [{**port, "nodePort": number} for port in (TCP, UDP)]
            items += [web(vip, name=name, ports=ports), behind(cluster, pod, of=name)]
        cluster.write("web", *items)

    router = cluster.net.router
    swap((VIP, OTHER_VIP), (30080, 30081))
    until(client, VIP, 80, {"one"}, "udp")
    until(router, NODE_IP, 30080, {"one"}, "udp")
    with held(client, VIP, 80, "udp") as inside, held(router, NODE_IP, 30080, "udp") as outside:
        assert [answer.split()[0] for answer in said([inside, outside])] == ["one", "one"]
        swap((VIP, OTHER_VIP), (30081, 30080))
        for protocol in PROTOCOLS:
            until(router, NODE_IP, 30080, {"two"}, protocol)
            until(router, NODE_IP, 30081, {"one"}, protocol)
        assert [answer.split()[0] for answer in said([inside, outside])] == ["one", "two"]
        swap((OTHER_VIP, VIP), (30081, 30080))
        for protocol in PROTOCOLS:
            until(client, VIP, 80, {"two"}, protocol)
            until(client, OTHER_VIP, 80, {"one"}, protocol)
        assert [answer.split()[0] for answer in said([inside, outside])] == ["two", "two"]
    assert not any(one.get("error") for one in cluster.services())


def test_policies_flip_while_clients_are_connected(cluster: Cluster, client: str) -> None:
    """With the health check's port, which comes, moves and goes; who is connected to an endpoint elsewhere stays."""
    router, pieces = cluster.net.router, behind(cluster, "one", "two", far=("two",))
    balanced = partial(web, type="LoadBalancer")
    local = {"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"}
    asked = ((router, INGRESS, 80), (router, NODE_IP, 30080), (client, VIP, 80))

    def answers(port: int, status: str) -> bool:
        command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://{NODE_IP}:{port}/"]
        return in_namespace(router, *command, check=False).stdout == status

    cluster.write("web", balanced(), pieces)
    for where in asked:
        until(*where, {"one", "two"})
    with ExitStack() as stack:
        stay = [stack.enter_context(held(*where)) for where in asked for _ in range(4)]
        before = said(stay)
        for port in (HEALTH_PORT, HEALTH_PORT + 1):
            cluster.write("web", balanced(**local, healthCheckNodePort=port), pieces)
            poll("the health check", partial(answers, port, "200"))
            for where in asked:
                until(*where, {"one"}, times=16)
            assert ask(router, INGRESS, 80) == [f"one {ROUTER_IP}"]
            assert names(ask(client, INGRESS, 80, times=24)) == {"one", "two"}
            assert said(stay) == before
        poll("the other port", partial(answers, HEALTH_PORT, "000"))
        cluster.write("web", balanced(), pieces)
        for where in asked:
            until(*where, {"one", "two"})
        poll("no health check", partial(answers, HEALTH_PORT + 1, "000"))
        assert said(stay) == before


def test_source_ranges_are_for_new_connections(cluster: Cluster, client: str) -> None:
    pieces, router = behind(cluster, "one"), cluster.net.router
    cluster.write("web", web(type="LoadBalancer"), pieces)
    until(router, INGRESS, 80, {"one"})
    with ExitStack() as stack:
        stay = [
            stack.enter_context(held(asker, INGRESS, 80, p)) for asker in (router, client) for p in PROTOCOLS
        ]
        before = said(stay)
        cluster.write("web", web(type="LoadBalancer", loadBalancerSourceRanges=["192.0.2.0/24"]), pieces)
        for asker in (router, client):
            until(asker, INGRESS, 80, {"timeout"})
        assert said(stay) == before


def test_families_come_go_and_change_places(cluster: Cluster, client: str) -> None:
    """IPv6 alone, then both in either order: connections by IPv6 know nothing of it."""
    six = slice_of("web", (cluster.address("two", 6), "node"), family=6)
    both = [behind(cluster, "one"), six]
    asked = ((client, VIP6, 80), (cluster.net.router, NODE_IP6, 30080))
    cluster.write("web", web(VIP6), *both)
    for where in asked:
        until(*where, {"two"})
    assert ask(cluster.net.router, NODE_IP, 30080) == ["refused"]
    with ExitStack() as stack:
        stay = [stack.enter_context(held(*where, protocol)) for where in asked for protocol in PROTOCOLS]
        before = said(stay)
        for vips in ((VIP6, VIP), (VIP, VIP6), (VIP6, VIP)):
            cluster.write("web", web(*vips), *both)
            until(client, VIP, 80, {"one"})
            until(cluster.net.router, NODE_IP, 30080, {"one"})
            assert said(stay) == before
        cluster.write("web", web(VIP6), *both)
        poll("no IPv4", lambda: who(cluster.net.router, NODE_IP, 30080) == {"refused"})
        assert said(stay) == before
