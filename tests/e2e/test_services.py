"""Services of a daemon that reads manifests: what becomes of them in HNS, in the switch, and at the health ports."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.node import (
    NODE_IP,
    NODE_IP6,
    DaemonProcess,
    Json,
    NodeNet,
    daemon,
    in_namespace,
    overlay,
    poll,
)
from tests.support.service_cluster import Cluster, ask, names, service, service_cluster, slice_of
from tests.support.two_nodes import run

pytestmark = pytest.mark.root

HEALTH_PORT = 31999


@pytest.fixture
def cluster(net: NodeNet, tmp_path: Path) -> Iterator[Cluster]:
    with service_cluster(net, tmp_path) as made:
        yield made


def http_get(namespace: str, url: str) -> tuple[int, str]:
    """Status and body."""
    done = in_namespace(
        namespace, "curl", "-s", "-g", "--max-time", "20", "-o", "-", "-w", "\n%{http_code}", url, check=False
    )
    body, _, status = done.stdout.rpartition("\n")
    return int(status or 0), body


def test_services_of_manifests_are_in_the_switch(cluster: Cluster) -> None:
    cluster.write(
        "web", service("web", "10.96.0.10"), slice_of("web", ("10.244.7.1", "far"), ("10.244.7.2", "far"))
    )
    node = cluster.node.start()
    cluster.wait_for("the service", web=["10.244.7.1:8080", "10.244.7.2:8080"])
    assert len(node.table("sw_services")) == 1
    assert len(node.table("sw_backends")) == 2
    (lb,) = node.request("GET", "/v2/loadbalancers")
    assert (lb["Owner"], lb["ServiceName"]) == ("samewire-proxy", "default/web:http")
    cluster.write(
        "web", service("web", "10.96.0.10"), slice_of("web", ("10.244.7.2", "far"), ("10.244.7.3", "far"))
    )
    cluster.wait_for("the change", web=["10.244.7.2:8080", "10.244.7.3:8080"])
    assert node.differences() == []
    (cluster.directory / "web.json").unlink()
    poll("the service is gone", lambda: not node.table("sw_services") and not node.table("sw_backends"))
    assert cluster.services() == []


def test_a_crash_and_a_restart_change_nothing(cluster: Cluster) -> None:
    cluster.write("web", service("web", "10.96.0.10"), slice_of("web", ("10.244.7.1", "far")))
    cluster.write("gone", service("gone", "10.96.0.11"), slice_of("gone", ("10.244.7.9", "far")))
    node = cluster.node.start()
    cluster.wait_for("both", web=["10.244.7.1:8080"], gone=["10.244.7.9:8080"])
    before = node.table("sw_services"), node.table("sw_backends")
    node.stop(signal.SIGKILL)
    node.start()
    cluster.wait_for("both again", web=["10.244.7.1:8080"], gone=["10.244.7.9:8080"])
    assert (node.table("sw_services"), node.table("sw_backends")) == before
    node.stop(signal.SIGKILL)
    (cluster.directory / "gone.json").unlink()
    node.start()
    poll("what nobody wants is gone", lambda: len(node.table("sw_services")) == 1)
    assert node.table("sw_backends") == [row for row in before[1] if row in node.table("sw_backends")]


def test_a_restart_while_a_manifest_cannot_be_read(cluster: Cluster) -> None:
    """What it said before stays in the switch; the other services change as ever."""
    cluster.start()
    client, _ = cluster.pod("client"), cluster.pod("web", port=8080)
    address = cluster.address("web")
    for name, vip in (("web", "10.96.0.10"), ("other", "10.96.0.11")):
        cluster.write(name, service(name, vip), slice_of(name, (address, "node")))
    cluster.wait_for("both", web=[f"{address}:8080"], other=[f"{address}:8080"])
    node = cluster.node
    node.stop(signal.SIGKILL)
    (cluster.directory / "web.json").write_text("{")
    cluster.write("other", service("other", "10.96.0.11"), slice_of("other", (address, "node"), port=8081))
    node.start()
    cluster.wait_for("the change", other=[f"{address}:8081"])
    assert names(ask(client, "10.96.0.10", 80)) == {"web"}
    (cluster.directory / "web.json").unlink()
    poll("the service is gone", lambda: len(node.table("sw_services")) == 1)
    assert node.differences() == []


def test_a_service_with_an_error_stops_no_other(cluster: Cluster) -> None:
    node = cluster.node.start()
    cluster.write(
        "a", service("a", "10.96.0.10", externalIPs=["192.0.2.9"]), slice_of("a", ("10.244.7.1", "far"))
    )
    cluster.wait_for("the first", a=["10.244.7.1:8080"])
    cluster.write(
        "b", service("b", "10.96.0.11", externalIPs=["192.0.2.9"]), slice_of("b", ("10.244.7.2", "far"))
    )
    cluster.write("c", service("c", "10.96.0.12"), slice_of("c", ("10.244.7.3", "far")))
    cluster.wait_for("the third", c=["10.244.7.3:8080"])
    found = {value["name"]: value.get("error", "") for value in cluster.services()}
    assert (found["a"], found["c"]) == ("", "")
    assert "80" in found["b"]
    done = run(node, "doctor", "--json")
    (finding,) = [one for one in json.loads(done.output)["findings"] if one["level"] == "error"]
    assert (finding["check"], finding["object"]) == ("service", "default/b")
    assert found["b"] in finding["message"]
    (cluster.directory / "a.json").unlink()
    cluster.wait_for("the second", b=["10.244.7.2:8080"])
    assert node.differences() == []


def test_health_ports(cluster: Cluster, net: NodeNet) -> None:
    node = cluster.node.start()
    spec: Json = {
        "type": "LoadBalancer",
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": HEALTH_PORT,
    }
    cluster.write("web", service("web", "10.96.0.10", **spec), slice_of("web", ("10.244.7.1", "far")))
    cluster.wait_for("the service", web=["10.244.7.1:8080"])
    poll("its health port", lambda: http_get(net.node, f"http://127.0.0.1:{HEALTH_PORT}/")[0] != 0)
    status, body = http_get(net.router, f"http://{NODE_IP}:{HEALTH_PORT}/")
    assert status == 503
    assert json.loads(body) == {
        "service": {"namespace": "default", "name": "web"},
        "localEndpoints": 0,
        "serviceProxyHealthy": True,
    }
    request_pod(node, net, "10.244.0.7")
    cluster.write("web", service("web", "10.96.0.10", **spec), slice_of("web", ("10.244.0.7", "node")))
    poll(
        "a ready endpoint here",
        lambda: http_get(net.router, f"http://[{NODE_IP6}]:{HEALTH_PORT}/")[0] == 200,
    )
    assert http_get(net.router, f"http://{NODE_IP}:10256/healthz")[0] == 200
    tainted = {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}
    cluster.write("node", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"}, "spec": tainted})
    poll("not fit for more", lambda: http_get(net.node, "http://127.0.0.1:10256/healthz")[0] == 503)
    assert http_get(net.node, "http://127.0.0.1:10256/livez")[0] == 200
    (cluster.directory / "web.json").unlink()
    poll("the port is closed", lambda: http_get(net.node, f"http://127.0.0.1:{HEALTH_PORT}/")[0] == 0)


def test_health_ports_that_clash(cluster: Cluster, net: NodeNet) -> None:
    """With a process of the node, which had it first; and with what a Service had before that has gone."""
    node = cluster.node.start()

    def health(port: int) -> Json:
        return {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": port}

    def write(name: str, vip: str, port: int) -> None:
        pieces = slice_of(name, ("10.244.7.1", "far"))
        cluster.write(name, service(name, vip, **health(port)), pieces)
        cluster.wait_for("the service", **{name: ["10.244.7.1:8080"]})

    def served(port: int) -> str:
        status, body = http_get(net.node, f"http://127.0.0.1:{port}/")
        return str(json.loads(body)["service"]["name"]) if status == 503 else ""

    with net.inside():
        listener = socket.create_server(("", HEALTH_PORT))
    with listener:
        write("first", "10.96.0.11", HEALTH_PORT)
        write("second", "10.96.0.12", HEALTH_PORT + 1)
        poll("the other one", lambda: served(HEALTH_PORT + 1) == "second")
        poll("it is logged", lambda: "a health port cannot be opened" in node.tail())
    poll("the port is free", lambda: served(HEALTH_PORT) == "first")
    (cluster.directory / "second.json").unlink()
    write("third", "10.96.0.13", HEALTH_PORT + 1)
    poll("the port has passed on", lambda: served(HEALTH_PORT + 1) == "third")
    (cluster.directory / "first.json").unlink()
    write("third", "10.96.0.13", HEALTH_PORT)
    poll("nobody", lambda: http_get(net.node, f"http://127.0.0.1:{HEALTH_PORT + 1}/")[0] == 0)
    poll("this one, too", lambda: served(HEALTH_PORT) == "third")


def request_pod(node: DaemonProcess, net: NodeNet, address: str) -> str:
    """A pod of the overlay network with that address; its namespace."""
    if not node.request("GET", "/v2/networks"):
        node.request("POST", "/v2/networks", overlay())
    pod = net.pod()
    (network,) = node.request("GET", "/v2/networks")
    space = node.request(
        "POST", "/v2/namespaces", {"NetnsPath": f"/run/netns/{pod}", "SchemaVersion": {"Major": 2}}
    )
    endpoint = {
        "HostComputeNetwork": network["ID"],
        "IpConfigurations": [{"IpAddress": address}],
        "SchemaVersion": {"Major": 2},
    }
    made = node.request("POST", "/v2/endpoints", endpoint)
    attach = {"ResourceType": "Endpoint", "RequestType": "Add", "Settings": {"EndpointId": made["ID"]}}
    node.request("POST", f"/v2/namespaces/{space['ID']}", attach)
    return pod


def test_metrics_and_the_reserved_ports(cluster: Cluster, net: NodeNet) -> None:
    cluster.write("web", service("web", "10.96.0.10"), slice_of("web", ("10.244.7.1", "far")))
    node = cluster.node.start()
    cluster.wait_for("the service", web=["10.244.7.1:8080"])
    text = node.request("GET", "/v2/metrics")
    assert "kubeproxy_sync_proxy_rules_duration_seconds_bucket" in text
    assert "kubeproxy_network_programming_duration_seconds_count" in text
    assert "samewire_services 1.0" in text
    reserved = in_namespace(net.node, "sysctl", "-n", "net.ipv4.ip_local_reserved_ports").stdout
    assert reserved.strip() == "30000-32767,49152-65535"


def test_get_services(cluster: Cluster) -> None:
    cluster.write("web", service("web", "10.96.0.10"), slice_of("web", ("10.244.7.1", "far")))
    node = cluster.node.start()
    cluster.wait_for("the service", web=["10.244.7.1:8080"])
    (value,) = cluster.services()
    assert value["changed_s"] > 0
    assert 0 < value["latency_s"] < 20
    assert value["tally"] == {"flows": 0, "connections": 0, "refused": 0, "ended": 0}
    assert node.ask("GET", "/v2/services?name=nobody")[0] == 404
    assert node.request("GET", "/v2/services?name=default/web")[0]["name"] == "web"
    shown = run(node, "get", "services", "default/web", "-o", "wide")
    assert shown.exit_code == 0, shown.output
    assert "10.244.7.1:8080" in shown.output


def test_a_backend_whose_pod_is_gone(cluster: Cluster) -> None:
    """Its slice still lists it: the switch has left it out, and `get services` says so."""
    node = cluster.node
    cluster.start()
    pod, address = cluster.pod("one"), cluster.address("one")
    cluster.write(
        "web", service("web", "10.96.0.10"), slice_of("web", (address, "node"), ("10.244.7.1", "far"))
    )
    cluster.wait_for("the service", web=[f"{address}:8080", "10.244.7.1:8080"])
    assert "missing" not in run(node, "get", "services", "-o", "wide").output
    cluster.remove("one", pod)
    assert f"{address}:8080 (missing), 10.244.7.1:8080" in run(node, "get", "services", "-o", "wide").output
    (value,) = cluster.services()
    (found,) = [one for one in value["addresses"][0]["backends"] if one.get("missing")]
    assert found == {"address": address, "port": 8080, "local": True, "missing": True}
    findings = json.loads(run(node, "doctor", "--json").output)["findings"]
    (finding,) = [one for one in findings if one["check"] == "balancer"]
    assert (finding["object"], finding["level"]) == ("default/web:http", "warning")
    assert f"{address} port 8080" in finding["message"]


def test_a_name_that_is_no_nodes(cluster: Cluster) -> None:
    """Nothing is local then: it is said, until there is such a Node."""
    node = cluster.node.start()

    def said() -> bool:
        return "no Node node" in str(node.request("GET", "/v2/health")["problems"])

    assert not said(), "of a cluster without Nodes nothing is known"
    cluster.write("other", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "other"}})
    poll("it is said", said)
    assert "the cluster has no Node node" in run(node, "doctor").output
    cluster.write("own", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"}})
    poll("there is one", lambda: not said())


def test_a_daemon_without_a_source_has_no_services(net: NodeNet, tmp_path: Path) -> None:
    with daemon(net, tmp_path) as node:
        node.start()
        assert node.ask("GET", "/v2/services")[0] == 503


def test_a_network_that_is_not_there(net: NodeNet, tmp_path: Path) -> None:
    """Services wait for it, and it may never come: its name may be misspelt."""
    with service_cluster(net, tmp_path, proxy_network="cbr0") as cluster:
        node = cluster.node.start()
        assert "there is no network cbr0 on this node" in run(node, "doctor").output
        node.request("POST", "/v2/networks", overlay("cbr0"))
        assert "cbr0" not in run(node, "doctor").output
