"""User mode with a real daemon and relay: the answers of the switch, and what the end of either process leaves."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.node import NODE_IP, ROUTER_IP, SHORT_S, NodeNet, ip, poll
from tests.support.proxy import pid_behind
from tests.support.service_cluster import Cluster, ask, held, names, service, service_cluster

pytestmark = pytest.mark.root

VIPS = ("10.96.0.10", "fd96::10")
PORTS = [
    {"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080},
    {"name": "udp", "port": 80, "protocol": "UDP", "nodePort": 30080},
]


@pytest.fixture
def cluster(net: NodeNet, tmp_path: Path, group: Path) -> Iterator[Cluster]:
    with service_cluster(net, tmp_path, host_cgroup=str(group), proxy_mode="userspace") as made:
        made.start()
        yield made


def relay_pid(cluster: Cluster) -> int:
    """The process that listens at the relay's socket."""
    return pid_behind(cluster.node.run_dir / "relay.sock")


def put(cluster: Cluster, *pods: str) -> None:
    made = service("web", *VIPS, type="NodePort", ports=PORTS, ipFamilyPolicy="PreferDualStack")
    cluster.write("web", made, *cluster.slices("web", *pods))


def test_answers_are_those_of_the_switch(cluster: Cluster, group: Path) -> None:
    for name in ("one", "two"):
        cluster.pod(name, port=8080)
    client, both = cluster.pod("client"), {"one", "two"}
    put(cluster, "one", "two")
    poll("the service", lambda: names(ask(client, VIPS[1], 80, times=8, wait_s=SHORT_S)) == both)
    for protocol in ("tcp", "udp"):
        asked: dict[str, Any] = {"protocol": protocol, "times": 24}
        for vip in VIPS:
            assert names(ask(client, vip, 80, **asked)) == both
            assert names(ask(cluster.net.node, vip, 80, group=group, **asked)) == both
        assert names(ask(client, NODE_IP, 30080, **asked)) == both
        assert names(ask(cluster.net.router, NODE_IP, 30080, **asked)) == both
    cluster.wait_for_pods("web", "one", "two")  # by their own addresses, not the relay's
    put(cluster)
    poll("nobody", lambda: names(ask(client, VIPS[0], 80, wait_s=SHORT_S)) == {"refused"})


def test_rules_hold_as_in_the_switch(cluster: Cluster) -> None:
    """Affinity, source ranges, hints, and who ends where nobody is ready."""
    for name in ("one", "two"):
        cluster.pod(name, port=8080)
    client, outside, ingress = cluster.pod("client"), cluster.net.router, "203.0.113.9"
    ip("route", "add", ingress, "via", NODE_IP, netns_name=outside)
    made = service("web", *VIPS, type="LoadBalancer", ports=PORTS, sessionAffinity="ClientIP")
    made["status"] = {"loadBalancer": {"ingress": [{"ip": ingress}]}}
    pieces = cluster.slices("web", "one", "two")

    def asked(who: str, address: str, port: int = 80, times: int = 1) -> set[str]:
        return names(ask(who, address, port, times=times, wait_s=SHORT_S))

    made["spec"]["loadBalancerSourceRanges"] = ["192.0.2.0/24"]
    cluster.write("web", made, *pieces)
    poll("the service", lambda: len(asked(outside, NODE_IP, 30080)) == 1)
    assert asked(outside, ingress) == {"timeout"}
    assert len(asked(client, VIPS[0], times=16)) == len(asked(client, VIPS[1], times=16)) == 1
    made["spec"]["loadBalancerSourceRanges"].append(f"{ROUTER_IP}/32")
    cluster.write("web", made, *pieces)
    poll("the range", lambda: asked(outside, ingress) < {"one", "two"})
    assert len(asked(outside, ingress, times=16)) == 1
    made["spec"].update(sessionAffinity="None", trafficDistribution="PreferSameNode")
    for piece in pieces:
        for end, node in zip(piece["endpoints"], ("node", "far"), strict=True):
            end["hints"] = {"forNodes": [{"name": node}]}
    cluster.write("web", made, *pieces)
    poll("the hints", lambda: asked(client, VIPS[0], times=16) == {"one"})
    for piece in pieces:
        first, second = piece["endpoints"]
        first["conditions"] = {"ready": False, "serving": False, "terminating": True}
        second["conditions"] = {"ready": False, "serving": True, "terminating": True}
    cluster.write("web", made, *pieces)
    poll("the one that ends", lambda: asked(client, VIPS[0], times=16) == {"two"})
    assert asked(outside, NODE_IP, 30080, times=8) == {"two"}


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_the_last_endpoint_is_not_ready_for_a_while(cluster: Cluster, protocol: str) -> None:
    """Its connections go on, whatever the policy; who comes now is refused, or hears nothing."""
    cluster.pod("one", port=8080)
    client, outside = cluster.pod("client"), cluster.net.router
    made = service("web", *VIPS, type="NodePort", ports=PORTS, externalTrafficPolicy="Local")

    def say(ready: bool) -> None:
        cluster.write("web", made, *cluster.slices("web", "one", ready=ready, serving=True))

    def answers(namespace: str, address: str, port: int) -> set[str]:
        return names(ask(namespace, address, port, protocol=protocol, wait_s=SHORT_S))

    say(True)
    poll("the service", lambda: answers(outside, NODE_IP, 30080) == answers(client, VIPS[0], 80) == {"one"})
    with held(client, VIPS[0], 80, protocol) as inside, held(outside, NODE_IP, 30080, protocol) as without:
        stay = (inside, without)
        assert all(one.ask().startswith("one ") for one in stay)
        say(False)
        poll("nobody new", lambda: answers(client, VIPS[0], 80) == {"refused"})
        assert answers(outside, NODE_IP, 30080) != {"one"}
        assert all(one.ask().startswith("one ") for one in stay)
        say(True)
        poll(
            "it is back", lambda: answers(client, VIPS[0], 80) == answers(outside, NODE_IP, 30080) == {"one"}
        )
        assert all(one.ask().startswith("one ") for one in stay)


def test_an_endpoint_for_the_policy_local_alone_keeps_what_it_has(cluster: Cluster) -> None:
    """It ends, and only clients outside still come to it, for there is one elsewhere: who was there inside stays."""
    for name in ("one", "two"):
        cluster.pod(name, port=8080)
    client, outside = cluster.pod("client"), cluster.net.router
    made = service("web", *VIPS, type="NodePort", ports=PORTS, externalTrafficPolicy="Local")
    cluster.write("web", made, *cluster.slices("web", "one"))
    cluster.wait_for_pods("web", "one")
    leaving = cluster.slices("web", "one", ready=False, serving=True, terminating=True)
    for piece, other in zip(leaving, cluster.slices("web", "two"), strict=True):
        piece["endpoints"] += [{**end, "nodeName": "far"} for end in other["endpoints"]]
    with ExitStack() as stack:
        stay = [
            stack.enter_context(held(client, address, port, protocol))
            for protocol in ("tcp", "udp")
            for address, port in ((VIPS[0], 80), (VIPS[1], 80), (NODE_IP, 30080))
        ]
        assert all(one.ask().startswith("one ") for one in stay)
        cluster.write("web", made, *leaving)
        poll("who comes now", lambda: names(ask(client, NODE_IP, 30080, times=4, wait_s=SHORT_S)) == {"two"})
        assert names(ask(outside, NODE_IP, 30080, times=4)) == {"one"}
        assert [one.ask().split()[0] for one in stay] == ["one"] * len(stay)


def test_the_clients_of_a_service_that_goes_are_told(cluster: Cluster) -> None:
    """Its connections are reset, whether a daemon was there when it went or finds out at its start."""
    cluster.pod("one", port=8080)
    client, outside = cluster.pod("client"), cluster.net.router
    clients = ((client, VIPS[0], 80), (client, VIPS[1], 80), (outside, NODE_IP, 30080))
    for crash in (False, True):
        put(cluster, "one")
        cluster.wait_for_pods("web", "one")
        with ExitStack() as stack:
            connections = [stack.enter_context(held(*where)) for where in clients]
            assert all(one.ask().startswith("one ") for one in connections)
            if crash:
                cluster.node.stop(signal.SIGKILL)
            cluster.write("web")
            if crash:
                cluster.node.start()
            poll("it is gone", lambda: cluster.node.request("GET", "/v2/loadbalancers") == [])
            assert [one.ask() for one in connections] == ["Connection reset by peer"] * len(clients)


def test_the_daemon_and_the_relay_end(cluster: Cluster) -> None:
    """Without the daemon all goes on; without the relay its connections end, and new ones work at once."""
    cluster.pod("one", port=8080)
    client = cluster.pod("client")
    put(cluster, "one")
    poll("the service", lambda: names(ask(client, VIPS[0], 80, wait_s=SHORT_S)) == {"one"})
    with held(client, VIPS[0], 80) as stays:
        assert stays.ask().startswith("one ")
        cluster.node.stop(signal.SIGKILL)
        assert stays.ask().startswith("one ")
        assert names(ask(client, VIPS[0], 80)) == {"one"}
        cluster.node.start()
        poll("the daemon knows its services", lambda: bool(cluster.services()))
        assert stays.ask().startswith("one ")
        os.kill(relay_pid(cluster), signal.SIGKILL)
        poll("another relay", lambda: names(ask(client, VIPS[0], 80, wait_s=SHORT_S)) == {"one"})
        assert not stays.ask().startswith("one ")
    assert names(ask(client, VIPS[0], 80, protocol="udp")) == {"one"}


def test_the_node_gets_another_address(cluster: Cluster) -> None:
    cluster.pod("one", port=8080)
    client = cluster.pod("client")
    put(cluster, "one")
    poll("the service", lambda: names(ask(client, VIPS[0], 80, wait_s=SHORT_S)) == {"one"})
    prefix = NODE_IP.rpartition(".")[0]
    ip("address", "add", f"{prefix}.77/24", "dev", "eth0", netns_name=cluster.net.node)
    ip("address", "del", f"{NODE_IP}/24", "dev", "eth0", netns_name=cluster.net.node)
    ip("address", "replace", f"{prefix}.77/24", "dev", "eth0", netns_name=cluster.net.node)
    poll("the new address", lambda: names(ask(client, VIPS[0], 80, wait_s=SHORT_S)) == {"one"})


def test_a_node_that_changes_its_mode(net: NodeNet, tmp_path: Path, group: Path) -> None:
    """Connections from before go on in user mode. In kernel mode nobody is without answers before all is known."""
    with service_cluster(net, tmp_path, host_cgroup=str(group)) as cluster:
        cluster.start()
        for name in ("one", "two"):
            cluster.pod(name, port=8080)
        client = cluster.pod("client")
        put(cluster, "one", "two")
        cluster.wait_for_pods("web", "one", "two")
        with ExitStack() as stack:
            stay = [
                stack.enter_context(held(*asker, protocol))
                for asker in ((client, VIPS[0], 80), (client, VIPS[1], 80), (net.router, NODE_IP, 30080))
                for protocol in ("tcp", "udp")
            ]
            before = [one.ask() for one in stay]
            _restart(cluster, "userspace")
            poll("the relay", lambda: _seen(cluster, client) != cluster.address("client"))
            cluster.wait_for_pods("web", "one", "two")
            assert [one.ask() for one in stay] == before
            put(cluster, "two")
            cluster.wait_for_pods("web", "two")
            after = [one.ask() for one in stay]
            assert names(after[1::2]) == {"two"}, "datagrams go elsewhere"
            for was, now in zip(before[::2], after[::2], strict=True):
                assert now == was if was.startswith("two ") else not now.startswith("two ")
        relay, away = relay_pid(cluster), tmp_path / "away"
        cluster.directory.rename(away)
        _restart(cluster, "kernel")
        (answer,) = ask(client, VIPS[0], 80)
        assert answer.startswith("two "), "what is to be is not known yet: the relay goes on"
        away.rename(cluster.directory)
        poll("the switch", lambda: _seen(cluster, client) == cluster.address("client"))
        poll("no relay", lambda: not Path(f"/proc/{relay}").exists())


def _restart(cluster: Cluster, mode: str) -> None:
    cluster.node.stop()
    settings = json.loads(cluster.node.config.read_text())
    cluster.node.config.write_text(json.dumps({**settings, "proxy_mode": mode}))
    cluster.node.start()


def _seen(cluster: Cluster, client: str) -> str:
    """As whom the backends see a pod."""
    (answer,) = ask(client, VIPS[0], 80, wait_s=SHORT_S)
    return answer.split()[-1]
