"""Real connections through services: every kind of address, client and policy, and what churn does to them."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.crowd import crowds
from tests.support.node import (
    NODE_IP,
    NODE_IP6,
    ROUTER_IP,
    ROUTER_IP6,
    SHORT_S,
    NodeNet,
    ip,
    node_net,
    poll,
)
from tests.support.sctp import Arrived, RawSctp
from tests.support.service_cluster import Cluster, ask, held, names, service, service_cluster

pytestmark = pytest.mark.root

VIPS = ("10.96.0.10", "fd96::10")
GATEWAYS = ("10.244.0.1", "fd44::1")
# What a connected UDP socket is told that has been ended: by send(), or by recv().
TOLD = {"EDESTADDRREQ", "ENOTCONN", "ECONNABORTED"}
EXTERNAL = ("203.0.113.9", "2001:db8:99::9")
OTHER = {4: "203.0.113.10", 6: "2001:db8:99::10"}
PORTS = [
    {"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080},
    {"name": "udp", "port": 80, "protocol": "UDP", "nodePort": 30080},
]


@pytest.fixture
def net() -> Iterator[NodeNet]:
    with node_net() as made:
        for address, via in ((EXTERNAL[0], NODE_IP), (EXTERNAL[1], NODE_IP6)):
            ip("route", "add", address, "via", via, netns_name=made.router)
        yield made


@pytest.fixture
def cluster(net: NodeNet, tmp_path: Path, group: Path) -> Iterator[Cluster]:
    with service_cluster(net, tmp_path, host_cgroup=str(group)) as made:
        made.start()
        yield made


def node_port(**spec: object) -> dict[str, object]:
    """A service with every kind of address."""
    return service(
        "web",
        *VIPS,
        type="NodePort",
        externalIPs=list(EXTERNAL),
        ports=PORTS,
        ipFamilyPolicy="PreferDualStack",
        **spec,
    )


def test_from_everywhere_to_every_address(cluster: Cluster, group: Path) -> None:
    cluster.pod("one", port=8080)
    cluster.pod("two", port=8080)
    client = cluster.pod("client")
    cluster.write("web", node_port(), *cluster.slices("web", "one", "two"))
    cluster.wait_for_pods("web", "one", "two")
    outside, node = cluster.net.router, cluster.net.node
    both = {"one", "two"}
    for protocol in ("tcp", "udp"):
        for vip, node_ip, external in zip(VIPS, (NODE_IP, NODE_IP6), EXTERNAL, strict=True):
            asked: dict[str, Any] = {"protocol": protocol, "times": 24}
            assert names(ask(client, vip, 80, **asked)) == both
            assert names(ask(client, node_ip, 30080, **asked)) == both
            assert names(ask(client, external, 80, **asked)) == both
            assert names(ask(outside, node_ip, 30080, **asked)) == both
            assert names(ask(outside, external, 80, **asked)) == both
            assert names(ask(node, vip, 80, group=group, **asked)) == both
            assert names(ask(node, node_ip, 30080, group=group, **asked)) == both
        for gateway in GATEWAYS:  # the node's own addresses, too: of samewire0
            asked = {"protocol": protocol, "times": 24}
            assert names(ask(client, gateway, 30080, **asked)) == both
            assert names(ask(node, gateway, 30080, group=group, **asked)) == both
        assert names(ask(node, "127.0.0.1", 30080, group=group, protocol=protocol, times=24)) == both
        # a control group that holds pods too, as /sys/fs/cgroup does: their loopback is their own
        assert ask(client, "127.0.0.1", 30080, group=group, protocol=protocol) == ["refused"]
        assert names(ask(client, VIPS[0], 80, group=group, protocol=protocol, times=24)) == both
    (answer,) = ask(outside, NODE_IP, 30080)
    assert answer.endswith(f" {ROUTER_IP}"), "a backend here sees the client itself"
    (found,) = cluster.services()
    assert found["tally"]["connections"] > 0
    assert cluster.node.differences() == []


@pytest.mark.parametrize("family", [4, 6])
def test_sctp(cluster: Cluster, family: int) -> None:
    """For the node's own processes, too, whose sockets no hook translates: by the uplink, and to itself by lo."""
    server, client = cluster.pod("one"), cluster.pod("client")
    ports = [{"name": "sctp", "port": 80, "protocol": "SCTP", "nodePort": 30080}]
    pieces = cluster.slices("web", "one")
    for piece in pieces:
        piece["ports"] = [{"name": "sctp", "port": 8080, "protocol": "SCTP"}]
    cluster.write(
        "web", service("web", *VIPS, type="NodePort", externalIPs=list(EXTERNAL), ports=ports), *pieces
    )
    cluster.wait_for_pods("web", "one")
    six = family == 6
    node_port, own, router = (NODE_IP, NODE_IP6)[six], cluster.address("client", family), cluster.net.router
    with RawSctp(server, family) as there:
        for near, to, port, seen in (
            (client, VIPS[six], 80, own),
            (client, node_port, 30080, own),
            (server, VIPS[six], 80, GATEWAYS[six]),
            (router, node_port, 30080, (ROUTER_IP, ROUTER_IP6)[six]),
            (router, EXTERNAL[six], 80, (ROUTER_IP, ROUTER_IP6)[six]),
            (cluster.net.node, VIPS[six], 80, node_port),
            (cluster.net.node, EXTERNAL[six], 80, node_port),
            (cluster.net.node, node_port, 30080, node_port),
            (cluster.net.node, GATEWAYS[six], 30080, GATEWAYS[six]),
            *([] if six else [(cluster.net.node, "127.0.0.1", 30080, GATEWAYS[0])]),
        ):
            with RawSctp(near, family) as here:
                here.send(40000, to, port, b"question")
                asked = there.receive(8080)
                assert (asked.source[0], asked.body) == (seen, b"question")
                there.send(8080, *asked.source, b"answer")
                assert here.receive(40000) == Arrived((to, port), 40000, b"answer")


def test_a_pod_reaches_itself_through_its_service(cluster: Cluster) -> None:
    pod = cluster.pod("one", port=8080)
    cluster.write("web", node_port(), *cluster.slices("web", "one"))
    cluster.wait_for_pods("web", "one")
    for vip, node_ip in zip(VIPS, (NODE_IP, NODE_IP6), strict=True):
        for protocol in ("tcp", "udp"):
            assert names(ask(pod, vip, 80, protocol=protocol, times=3)) == {"one"}
            assert names(ask(pod, node_ip, 30080, protocol=protocol, times=3)) == {"one"}


def test_each_of_many_pods_reaches_itself_and_the_others(cluster: Cluster) -> None:
    """Every one of their connections is answered, whoever of them gets it: not one in so many fails."""
    pods = {name: cluster.pod(name, port=8080) for name in ("one", "two", "three")}
    cluster.write("web", node_port(), *cluster.slices("web", *pods))
    cluster.wait_for_pods("web", *pods)
    for pod, protocol, (host, port) in itertools.product(
        pods.values(), ("tcp", "udp"), ((VIPS[0], 80), (VIPS[1], 80), (NODE_IP, 30080), (NODE_IP6, 30080))
    ):
        assert names(ask(pod, host, port, protocol=protocol, times=40)) == set(pods)


def test_node_ports_at_an_address_that_comes_later(net: NodeNet, tmp_path: Path) -> None:
    late = "198.51.100.7"
    with service_cluster(net, tmp_path, node_port_addresses=["198.51.100.0/24"]) as cluster:
        cluster.start()
        cluster.pod("one", port=8080)
        cluster.write("web", node_port(), *cluster.slices("web", "one"))
        cluster.wait_for_pods("web", "one")
        assert ask(net.router, NODE_IP, 30080) == ["refused"]  # by the node: nobody listens
        ip("route", "add", late, "via", NODE_IP, netns_name=net.router)
        ip("address", "add", f"{late}/32", "dev", "eth0", netns_name=net.node)
        poll("the node port", lambda: names(ask(net.router, late, 30080, wait_s=SHORT_S)) == {"one"})
        ip("address", "del", f"{late}/32", "dev", "eth0", netns_name=net.node)
        poll("it goes", lambda: late not in json.dumps(cluster.services()))


def test_no_endpoints_are_refused_at_once(cluster: Cluster, group: Path) -> None:
    client = cluster.pod("client")
    cluster.write("web", node_port())
    cluster.wait_for("the service", web=[])
    for vip, node_ip in zip(VIPS, (NODE_IP, NODE_IP6), strict=True):
        for protocol in ("tcp", "udp"):
            assert ask(client, vip, 80, protocol=protocol) == ["refused"]
            assert ask(cluster.net.router, node_ip, 30080, protocol=protocol) == ["refused"]
            assert ask(cluster.net.node, vip, 80, protocol=protocol, group=group) == ["refused"]


def test_local_policies(cluster: Cluster, group: Path) -> None:
    cluster.pod("one", port=8080)
    client = cluster.pod("client")
    spec = {"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"}
    cluster.write("web", node_port(**spec), *cluster.slices("web", "one"))
    cluster.wait_for_pods("web", "one")
    assert ask(cluster.net.router, NODE_IP, 30080) == [f"one {ROUTER_IP}"]  # the client's own address
    assert ask(cluster.net.router, NODE_IP6, 30080) == [f"one {ROUTER_IP6}"]
    assert names(ask(client, VIPS[0], 80)) == {"one"}
    far = {"addresses": ["10.244.9.9"], "nodeName": "far", "conditions": {"ready": True}}
    pieces = cluster.slices("web")
    pieces[0]["endpoints"] = [far]
    cluster.write("web", node_port(**spec), pieces[0])
    cluster.wait_for("no endpoint here", web=["10.244.9.9:8080"])
    # nobody here: not refused, but dropped, so that a load balancer looks elsewhere
    assert ask(cluster.net.router, NODE_IP, 30080, wait_s=SHORT_S) == ["timeout"]
    assert ask(client, VIPS[0], 80, wait_s=SHORT_S) == ["timeout"]


def test_affinity(cluster: Cluster) -> None:
    cluster.pod("one", port=8080)
    cluster.pod("two", port=8080)
    client = cluster.pod("client")
    config = {"clientIP": {"timeoutSeconds": 600}}
    cluster.write(
        "web",
        node_port(sessionAffinity="ClientIP", sessionAffinityConfig=config),
        *cluster.slices("web", "one", "two"),
    )
    cluster.wait_for_pods("web", "one", "two")
    assert len(names(ask(client, VIPS[0], 80, times=16))) == 1
    assert len(names(ask(cluster.net.router, NODE_IP, 30080, times=16))) == 1


@pytest.mark.parametrize("who", ["outside", "pod", "node", "node's process by IPv6"])
def test_source_ranges_by_client(cluster: Cluster, group: Path, who: str) -> None:
    """Of a load balancer's addresses; a client is known by its own address, the node by that on the underlay."""
    family = 6 if "IPv6" in who else 4
    asker = {"outside": cluster.net.router, "pod": cluster.pod("client")}.get(who, cluster.net.node)
    procs = group if who.startswith("node") else None
    own = {"outside": ROUTER_IP, "pod": cluster.address("client"), "node": NODE_IP}.get(who, NODE_IP6)
    everybody = {"outside": f"{ROUTER_IP}/32", "pod": "10.244.0.0/24", "node": f"{NODE_IP}/32"}
    others = ["2001:db8:7::/64"] if family == 6 else [r for name, r in everybody.items() if name != who]
    cluster.pod("one", port=8080)
    spec = {"type": "LoadBalancer", "ipFamilyPolicy": "PreferDualStack", "externalIPs": [OTHER[family]]}
    status = {"loadBalancer": {"ingress": [{"ip": address} for address in EXTERNAL]}}
    pieces = cluster.slices("web", "one")
    to = EXTERNAL[family == 6]
    allowed = f"{own}/{128 if family == 6 else 32}"

    def answer_is(expected: list[str]) -> bool:
        return sorted(names(ask(asker, to, 80, group=procs, wait_s=SHORT_S))) == expected

    refused = ["Operation"] if procs else ["timeout"]  # "not permitted", at once
    for ranges, wanted in ((others, refused), ([*others, allowed], ["one"])):
        made = service("web", *VIPS, ports=PORTS, loadBalancerSourceRanges=ranges, **spec)
        cluster.write("web", {**made, "status": status}, *pieces)
        cluster.wait_for("the service", web=[f"{cluster.address('one', f)}:8080" for f in (4, 6)])
        poll(f"{who}: {wanted}", partial(answer_is, wanted))
        for address, port in ((VIPS[family == 6], 80), (OTHER[family], 80)):
            if who != "outside":
                assert names(ask(asker, address, port, group=procs)) == {"one"}, "no ingress address"
        assert names(ask(asker, NODE_IP6 if family == 6 else NODE_IP, 30080, group=procs)) == {"one"}


def test_source_ranges(cluster: Cluster) -> None:
    cluster.pod("one", port=8080)
    spec = {"type": "LoadBalancer", "loadBalancerSourceRanges": ["192.0.2.0/24"]}
    status = {"loadBalancer": {"ingress": [{"ip": EXTERNAL[0]}]}}
    made = {**service("web", VIPS[0], ports=PORTS, **spec), "status": status}
    cluster.write("web", made, cluster.slices("web", "one")[0])
    cluster.wait_for("the service", web=[f"{cluster.address('one')}:8080"])
    assert ask(cluster.net.router, EXTERNAL[0], 80, wait_s=SHORT_S) == ["timeout"]
    assert names(ask(cluster.net.router, NODE_IP, 30080)) == {"one"}, "only for the load balancer's address"
    made["spec"]["loadBalancerSourceRanges"] = ["192.0.2.0/24", f"{ROUTER_IP}/32"]
    cluster.write("web", made, cluster.slices("web", "one")[0])
    poll("the range", lambda: names(ask(cluster.net.router, EXTERNAL[0], 80, wait_s=SHORT_S)) == {"one"})


def test_churn_moves_nothing_that_need_not_move(cluster: Cluster) -> None:
    cluster.pod("one", port=8080)
    cluster.pod("two", port=8080)
    client = cluster.pod("client")
    cluster.write("web", node_port(), *cluster.slices("web", "one"))
    cluster.wait_for_pods("web", "one")
    with held(client, VIPS[0], 80) as stays, held(client, VIPS[0], 80, "udp") as moves:
        before = stays.ask()
        assert before.startswith("one ")
        assert moves.ask().startswith("one ")
        cluster.write("web", node_port(), *cluster.slices("web", "one", "two"))
        cluster.wait_for_pods("web", "one", "two")
        assert stays.ask() == before
        assert moves.ask().startswith("one ")
        # not ready any more: connections go on, datagrams go elsewhere, new connections too
        one = cluster.slices("web", "one", ready=False, serving=False)
        two = cluster.slices("web", "two")
        for piece, other in zip(two, one, strict=True):
            piece["endpoints"] += other["endpoints"]
        cluster.write("web", node_port(), *two)
        poll("the first drains", lambda: names(ask(client, VIPS[0], 80, times=8, wait_s=SHORT_S)) == {"two"})
        assert stays.ask() == before
        poll("datagrams have moved", lambda: moves.ask().startswith("two "))
        cluster.node.stop(signal.SIGKILL)
        assert stays.ask() == before
        assert names(ask(client, VIPS[0], 80, times=4)) == {"two"}
        cluster.node.start()
        poll("the daemon knows its services", lambda: bool(cluster.services()))
        assert stays.ask() == before
        cluster.write("web", node_port(), *cluster.slices("web", "two"))
        cluster.wait_for_pods("web", "two")
        assert not stays.ask().startswith("two "), "it ends with its backend"


def test_a_pod_that_goes_takes_its_connections_along_and_no_others(cluster: Cluster) -> None:
    one = cluster.pod("one", port=8080)
    cluster.pod("two", port=8080)
    client = cluster.pod("client")
    cluster.write("web", node_port(), *cluster.slices("web", "two"))
    cluster.wait_for_pods("web", "two")
    with held(client, VIPS[1], 80) as stays:
        before = stays.ask()
        cluster.write("web", node_port(), *cluster.slices("web", "one", "two"))
        cluster.wait_for_pods("web", "one", "two")
        cluster.remove("one", one)  # before Kubernetes has heard of it
        cluster.write("web", node_port(), *cluster.slices("web", "two"))
        cluster.wait_for_pods("web", "two")
        assert stays.ask() == before
        assert names(ask(client, VIPS[1], 80, times=8)) == {"two"}


def test_connected_sockets_of_the_node_end_with_their_backend(cluster: Cluster, group: Path) -> None:
    """IPv4, IPv6, and IPv4 on an IPv6 socket: those of the backend that goes are told, the others notice nothing."""
    cluster.pod("one", port=8080)
    cluster.pod("two", port=8080)
    cluster.write("web", node_port(), *cluster.slices("web", "one", "two"))
    cluster.wait_for_pods("web", "one", "two")
    with crowds(cluster.net.node, group) as clients:
        targets = [*((vip, 80) for vip in (*VIPS, f"::ffff:{VIPS[0]}")), (NODE_IP6, 30080), ("::1", 30080)]
        held = [clients.open(20, host, port, "udp") for host, port in targets]
        assert all(names(crowd.first) == {"one", "two"} for crowd in held)
        cluster.write("web", node_port(), *cluster.slices("web", "two"))
        cluster.wait_for_pods("web", "two")
        for crowd in held:
            for before, after in zip(crowd.first, crowd.ask(), strict=True):
                assert after == before if before.startswith("two ") else after in TOLD
            assert names(crowd.mend()) == {"two"}
