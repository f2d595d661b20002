"""Which endpoints carry a service's traffic, with real connections: what kube-proxy's rules say, rule by rule."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.cgroups import own_cgroup
from tests.support.node import (
    NODE_IP,
    PREFIX,
    ROUTER_IP,
    SHORT_S,
    Json,
    NodeNet,
    ip,
    node_net,
    poll,
)
from tests.support.service_cluster import Cluster, ask, names, server, service, service_cluster
from tests.support.two_nodes import run

pytestmark = pytest.mark.root

VIP, OTHER_VIP = "10.96.0.10", "10.96.0.11"
INGRESS, EXTERNAL = "203.0.113.9", "203.0.113.10"
PORT = {"name": "http", "port": 80, "protocol": "TCP"}
READY, NOT_READY = {"ready": True}, {"ready": False, "serving": False}
LEAVING = {"ready": False, "serving": True, "terminating": True}


@pytest.fixture(scope="module")
def net() -> Iterator[NodeNet]:
    with node_net() as made:
        for address in (INGRESS, EXTERNAL):
            ip("route", "add", address, "via", NODE_IP, netns_name=made.router)
        yield made


@pytest.fixture(scope="module")
def group() -> Iterator[Path]:
    with own_cgroup(f"{PREFIX}-rules") as made:
        yield made


@pytest.fixture(scope="module")
def cluster(net: NodeNet, tmp_path_factory: pytest.TempPathFactory, group: Path) -> Iterator[Cluster]:
    with service_cluster(net, tmp_path_factory.mktemp("rules"), host_cgroup=str(group)) as made:
        made.start()
        for name in ("one", "two"):
            made.pod(name, port=8080)
        zone = {"topology.kubernetes.io/zone": "here"}
        made.write("node", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node", "labels": zone}})
        yield made


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> str:
    return cluster.pod("client")


def endpoint(
    cluster: Cluster, pod: str, conditions: Json = READY, node: str = "node", **more: object
) -> Json:
    """An endpoint that answers, whatever node it claims to be on."""
    return {"addresses": [cluster.address(pod)], "nodeName": node, "conditions": conditions, **more}


def slices(*endpoints: Json, ports: list[Json] | None = None, name: str = "web", of: str = "web") -> Json:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": of}},
        "addressType": "IPv4",
        "ports": ports or [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": list(endpoints),
    }


def write(cluster: Cluster, made: Json, *pieces: Json, backends: set[str]) -> None:
    """Make it so, and wait until the switch has these pods behind the first address, beside those that drain."""
    cluster.write("web", made, *pieces)
    wanted = {f"{cluster.address(pod)}:8080" for pod in backends}

    def so() -> bool:
        found = cluster.services()
        return (
            len(found) == 1
            and not found[0].get("error")
            and {
                f"{b['address']}:{b['port']}"
                for b in found[0]["addresses"][0].get("backends", ())
                if not b.get("draining")
            }
            == wanted
        )

    poll("the backends", so)


def web(**spec: object) -> Json:
    """A service with a node port and an external address, new to the switch."""
    ports = [{**PORT, "nodePort": 30080}]
    return service("web", VIP, type="NodePort", externalIPs=[EXTERNAL], ports=ports, **spec)


@pytest.fixture(autouse=True)
def clean(cluster: Cluster) -> Iterator[None]:
    """Every test begins without services: nothing drains from before."""
    yield
    cluster.write("web")
    poll("no service", lambda: cluster.services() == [])


@pytest.mark.parametrize(
    ("one", "two", "who"),
    [
        (READY, READY, {"one", "two"}),
        (READY, LEAVING, {"one"}),
        (LEAVING, NOT_READY, {"one"}),  # nobody is ready: who ends, and serves
        ({}, NOT_READY, {"one"}),  # unknown is ready
        ({"ready": True, "terminating": True}, NOT_READY, {"one"}),  # publishNotReadyAddresses
        (NOT_READY, NOT_READY, set()),
    ],
)
def test_conditions(cluster: Cluster, client: str, one: Json, two: Json, who: set[str]) -> None:
    """Under the policies Cluster and Local alike, where all endpoints are here."""
    for policy in ("Cluster", "Local"):
        made = web(externalTrafficPolicy=policy, internalTrafficPolicy=policy)
        pieces = slices(endpoint(cluster, "one", one), endpoint(cluster, "two", two))
        write(cluster, made, pieces, backends=who)
        expected = who or {"refused"}
        assert names(ask(client, VIP, 80, times=16)) == expected
        assert names(ask(cluster.net.router, NODE_IP, 30080, times=16)) == expected
        assert names(ask(cluster.net.router, EXTERNAL, 80, times=16)) == expected
        assert names(ask(client, EXTERNAL, 80, times=16)) == expected


def test_the_policy_local_falls_back_on_who_ends_here(cluster: Cluster, client: str) -> None:
    """There is one that is ready, elsewhere: clients outside get the one here that ends, those inside the other."""
    made = web(externalTrafficPolicy="Local")
    pieces = slices(endpoint(cluster, "one", LEAVING), endpoint(cluster, "two", node="far"))
    write(cluster, made, pieces, backends={"two"})
    assert set(ask(cluster.net.router, NODE_IP, 30080, times=8)) == {f"one {ROUTER_IP}"}
    assert names(ask(cluster.net.router, EXTERNAL, 80, times=8)) == {"one"}
    for address, port in ((VIP, 80), (NODE_IP, 30080), (EXTERNAL, 80)):
        assert names(ask(client, address, port, times=8)) == {"two"}


def test_the_policy_local_without_anybody_here(cluster: Cluster, client: str) -> None:
    """Silence for those outside, the others' endpoints for those inside."""
    made = web(externalTrafficPolicy="Local", internalTrafficPolicy="Local")
    write(cluster, made, slices(endpoint(cluster, "two", node="far")), backends=set())
    assert ask(cluster.net.router, EXTERNAL, 80, wait_s=SHORT_S) == ["timeout"]
    assert ask(client, VIP, 80, wait_s=SHORT_S) == ["timeout"]
    assert names(ask(client, EXTERNAL, 80)) == {"two"}


@pytest.mark.parametrize(
    ("hints", "who"),
    [
        (({"forZones": [{"name": "here"}]}, {"forZones": [{"name": "there"}]}), {"one"}),
        (({"forZones": [{"name": "here"}]}, {}), {"one", "two"}),  # somebody has none
        (({"forZones": [{"name": "x"}]}, {"forZones": [{"name": "y"}]}), {"one", "two"}),  # none for us
        (
            (
                {"forZones": [{"name": "here"}], "forNodes": [{"name": "far"}]},
                {"forZones": [{"name": "here"}], "forNodes": [{"name": "node"}]},
            ),
            {"two"},
        ),
        (
            (
                {"forZones": [{"name": "here"}], "forNodes": [{"name": "far"}]},
                {"forZones": [{"name": "there"}], "forNodes": [{"name": "further"}]},
            ),
            {"one"},  # no node's hint is for us: the zone's are
        ),
    ],
)
def test_hints(cluster: Cluster, client: str, hints: tuple[Json, Json], who: set[str]) -> None:
    """Of topology-aware routing, PreferSameZone and PreferSameNode: only the policy Cluster asks them."""
    pieces = slices(
        endpoint(cluster, "one", hints=hints[0]), endpoint(cluster, "two", hints=hints[1], node="far")
    )
    write(cluster, web(externalTrafficPolicy="Local"), pieces, backends=who)
    assert names(ask(client, VIP, 80, times=24)) == who
    assert names(ask(cluster.net.router, NODE_IP, 30080, times=8)) == {"one"}


def test_ports_by_name_and_number(cluster: Cluster, client: str) -> None:
    """A name that is another number in each pod, and more than one port."""
    alias = "nine"
    pod = cluster.pod(alias)
    with server(pod, alias, 9090), server(pod, "metrics", 9100):
        both = [{**PORT, "nodePort": 30080}, {**PORT, "name": "metrics", "port": 81}]
        pieces = (
            slices(endpoint(cluster, "one"), name="a"),
            slices(
                endpoint(cluster, alias),
                ports=[
                    {"name": "http", "port": 9090, "protocol": "TCP"},
                    {"name": "metrics", "port": 9100, "protocol": "TCP"},
                ],
                name="b",
            ),
        )
        cluster.write("web", service("web", VIP, type="NodePort", ports=both), *pieces)
        poll("both", lambda: names(ask(client, VIP, 80, times=16, wait_s=SHORT_S)) == {"one", alias})
        poll("the other", lambda: names(ask(client, VIP, 81, times=8, wait_s=SHORT_S)) == {"metrics"})
        assert names(ask(cluster.net.router, NODE_IP, 30080, times=16)) == {"one", alias}


def test_endpoints_that_two_slices_show(cluster: Cluster, client: str) -> None:
    """One is moving from one slice to the other: it is ready if either says so, and counts once."""
    pieces = (
        slices(endpoint(cluster, "one", NOT_READY), name="a"),
        slices(endpoint(cluster, "one"), endpoint(cluster, "two"), name="b"),
    )
    write(cluster, web(), *pieces, backends={"one", "two"})
    assert names(ask(client, VIP, 80, times=16)) == {"one", "two"}


def _answered_by(client: str, address: str, name: str) -> bool:
    return names(ask(client, address, 80, wait_s=SHORT_S)) == {name}


def test_an_ingress_address_that_is_not_for_us(cluster: Cluster, client: str) -> None:
    """ipMode Proxy: the packets go where they would go without any service. VIP: they are ours."""
    ports = [{**PORT, "nodePort": 30080}]
    made = service("web", VIP, type="LoadBalancer", ports=ports)
    for mode, answer in (("Proxy", "two"), ("VIP", "one")):
        made["status"] = {"loadBalancer": {"ingress": [{"ip": ROUTER_IP, "ipMode": mode}]}}
        write(cluster, made, slices(endpoint(cluster, "one")), backends={"one"})
        with server(cluster.net.router, "two", 80):
            poll(mode, partial(_answered_by, client, ROUTER_IP, answer))


def test_a_pod_reaches_itself_through_addresses_for_outside(cluster: Cluster) -> None:
    """Under the policy Local too; and source ranges hold for pods."""
    pod = cluster.pod("self", port=8080)
    ports = [{**PORT, "nodePort": 30080}]
    made = service("web", VIP, type="LoadBalancer", externalTrafficPolicy="Local", ports=ports)
    made["status"] = {"loadBalancer": {"ingress": [{"ip": INGRESS}]}}
    write(cluster, made, slices(endpoint(cluster, "self")), backends={"self"})
    for address, port in ((VIP, 80), (INGRESS, 80), (NODE_IP, 30080)):
        assert names(ask(pod, address, port)) == {"self"}
    made["spec"]["loadBalancerSourceRanges"] = ["192.0.2.0/24"]
    cluster.write("web", made, slices(endpoint(cluster, "self")))
    poll("the range", lambda: ask(pod, INGRESS, 80, wait_s=SHORT_S) == ["timeout"])
    assert names(ask(pod, VIP, 80)) == {"self"}


def test_an_external_address_that_is_the_nodes_own(cluster: Cluster, client: str) -> None:
    """As load balancers made of the nodes themselves have it: external and ingress address, and the node still answers
    on other ports.
    """
    ports = [{**PORT, "nodePort": 30080}]
    made = service("web", VIP, type="LoadBalancer", externalIPs=[NODE_IP], ports=ports)
    made["status"] = {"loadBalancer": {"ingress": [{"ip": NODE_IP}]}}
    write(cluster, made, slices(endpoint(cluster, "one")), backends={"one"})
    for asker in (client, cluster.net.router):
        assert names(ask(asker, NODE_IP, 80, times=4)) == {"one"}
        assert names(ask(asker, NODE_IP, 30080, times=4)) == {"one"}
        with server(cluster.net.node, "node", 8081):
            assert names(ask(asker, NODE_IP, 8081)) == {"node"}


def test_endpoints_outside_the_cluster(cluster: Cluster, client: str) -> None:
    """As those of the API server's own Service: nobody's pods, on no node."""
    api = {"addresses": [ROUTER_IP], "conditions": READY}
    cluster.write("web", web(), slices(api))
    with server(cluster.net.router, "api", 8080):
        poll("the endpoint", lambda: names(ask(client, VIP, 80, wait_s=SHORT_S)) == {"api"})
        assert names(ask(client, NODE_IP, 30080, times=4)) == {"api"}
        assert names(ask(client, VIP, 80, times=4)) == {"api"}


def test_a_process_of_the_node_is_an_endpoint(cluster: Cluster, client: str) -> None:
    """Of a pod in the node's own network, under the policy Local: clients outside are seen as they are."""
    own = {"addresses": [NODE_IP], "nodeName": "node", "conditions": READY}
    cluster.write("web", web(externalTrafficPolicy="Local"), slices(own))
    with server(cluster.net.node, "node", 8080):
        poll("the endpoint", lambda: names(ask(client, VIP, 80, wait_s=SHORT_S)) == {"node"})
        assert ask(cluster.net.router, NODE_IP, 30080, times=4) == [f"node {ROUTER_IP}"] * 4
        assert names(ask(client, NODE_IP, 30080)) == {"node"}


def test_what_is_not_balanced(cluster: Cluster) -> None:
    """Headless, by name, and another proxy's."""
    headless = service("headless", "None")
    external = {**service("away", ""), "spec": {"type": "ExternalName", "externalName": "example.org"}}
    meshed = service("meshed", OTHER_VIP)
    meshed["metadata"]["labels"] = {"service.kubernetes.io/service-proxy-name": "mesh"}
    pieces = [slices(endpoint(cluster, "one"), name=name, of=name) for name in ("headless", "away", "meshed")]
    write(cluster, web(), slices(endpoint(cluster, "one")), backends={"one"})
    cluster.write("web", headless, external, meshed, web(), slices(endpoint(cluster, "two")), *pieces)
    poll("the edit", lambda: cluster.address("two") in str(cluster.services()))
    assert [found["name"] for found in cluster.services()] == ["web"]


def test_two_services_that_claim_one_address(cluster: Cluster, client: str) -> None:
    """The first keeps it, the second is told; when the first goes, the second gets it at once."""
    first, second = (
        service(name, vip, externalIPs=[EXTERNAL], ports=[PORT])
        for name, vip in (("web", VIP), ("later", OTHER_VIP))
    )
    one = slices(endpoint(cluster, "one"))
    two = slices(endpoint(cluster, "two"), name="later", of="later")
    write(cluster, first, one, backends={"one"})
    cluster.write("web", first, one, second, two)
    poll("the error", lambda: any(found.get("error") for found in cluster.services()))
    assert names(ask(client, EXTERNAL, 80, times=8)) == {"one"}
    assert names(ask(client, OTHER_VIP, 80, times=8)) == {"two"}
    cluster.write("web", second, two)
    poll("the address", lambda: names(ask(client, EXTERNAL, 80, wait_s=SHORT_S)) == {"two"})


def test_affinity_survives_the_daemon(cluster: Cluster, client: str) -> None:
    """A client that comes back after a crash and a change gets the backend that it had."""
    affinity = {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}}}
    write(cluster, web(**affinity), slices(endpoint(cluster, "one")), backends={"one"})
    assert names(ask(client, VIP, 80)) == {"one"}
    cluster.node.stop(signal.SIGKILL)
    pieces = slices(endpoint(cluster, "one"), endpoint(cluster, "two"))
    cluster.write("web", web(**affinity), pieces)
    cluster.node.start()
    write(cluster, web(**affinity), pieces, backends={"one", "two"})
    assert names(ask(client, VIP, 80, times=16)) == {"one"}
    write(cluster, web(**affinity), slices(endpoint(cluster, "two")), backends={"two"})
    assert names(ask(client, VIP, 80, times=4)) == {"two"}


def test_affinity_holds_nobody_at_an_endpoint_for_the_policy_local_alone(
    cluster: Cluster, client: str, group: Path
) -> None:
    """The last one here ends, and still serves clients outside; those inside leave it for one that is ready."""
    affinity = {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}}}
    made, outside = web(externalTrafficPolicy="Local", **affinity), cluster.net.router
    write(cluster, made, slices(endpoint(cluster, "one")), backends={"one"})
    inside = partial(ask, client, EXTERNAL, 80), partial(ask, cluster.net.node, EXTERNAL, 80, group=group)
    for asked in (*inside, partial(ask, outside, EXTERNAL, 80)):
        assert names(asked()) == {"one"}
    write(
        cluster,
        made,
        slices(endpoint(cluster, "one", LEAVING), endpoint(cluster, "two", node="far")),
        backends={"two"},
    )
    traced = run(cluster.node, "trace", "--from", "client", "--to", f"{EXTERNAL}:80").output
    assert f"backend {cluster.address('two')}:8080, chosen by" in traced
    assert "BUG" not in traced, "the simulator and the switch agree"
    for asked in inside:
        assert names(asked(times=4)) == {"two"}
    assert names(ask(outside, EXTERNAL, 80, times=4)) == {"one"}
    write(
        cluster,
        made,
        slices(endpoint(cluster, "one"), endpoint(cluster, "two", node="far")),
        backends={"one", "two"},
    )
    for asked in inside:
        assert names(asked(times=4)) == {"two"}, "they are remembered there"


def test_affinity_ends_with_its_time(cluster: Cluster, client: str) -> None:
    """As in the conformance tests of Kubernetes: after the timeout another backend answers, sooner or later."""
    affinity = {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 1}}}
    pieces = slices(endpoint(cluster, "one"), endpoint(cluster, "two"))
    write(cluster, web(**affinity), pieces, backends={"one", "two"})
    seen: set[str] = set()
    for _ in range(20):
        seen |= names(ask(client, VIP, 80))
        if len(seen) > 1:
            break
        time.sleep(2.5)  # its time, and a tick
    assert seen == {"one", "two"}
