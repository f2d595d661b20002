"""What Kubernetes' own end-to-end tests of Services ask of a proxy, where no other test here does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.node import SHORT_S, Json, NodeNet, in_namespace, node_net, path_of, poll
from tests.support.service_cluster import (
    Cluster,
    ask,
    held,
    names,
    service,
    service_cluster,
    slice_of,
)

pytestmark = pytest.mark.root

VIP = "10.96.0.10"
TCP = {"name": "http", "port": 80, "protocol": "TCP"}
UDP = {"name": "udp", "port": 80, "protocol": "UDP"}
PROXY_NAME, HEADLESS = "service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"

_STRAY = """
import json, socket, sys, time
from scapy.all import IP, TCP, raw
listener = socket.create_server(("", 9000))
seen = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
seen.setblocking(False)
stray = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
print("ready", flush=True)
peer, (client, port) = listener.accept()
here = peer.getsockname()[0]
for number in (12345, 2**31, 2**32 - 5):
    segment = IP(src=here, dst=client) / TCP(sport=9000, dport=port, seq=number, ack=number, flags="PA") / b"stray"
    stray.sendto(raw(segment), (client, 0))
peer.settimeout(20)
peer.sendall(b"after")
heard = peer.recv(100).decode()  # what the stray segments led to has come before this
flags = []
try:
    while True:
        packet, (source, _) = seen.recvfrom(2000)
        if source == client:
            flags.append(str(TCP(packet[20:]).flags))
except BlockingIOError:
    print(json.dumps({"heard": heard, "flags": flags}))
"""

_STEADY = """
import socket, sys
with socket.create_connection((sys.argv[1], 80), 20) as peer:
    print(peer.recv(100).decode())
    peer.sendall(b"steady")
    peer.recv(1)
"""


@pytest.fixture(scope="module")
def net() -> Iterator[NodeNet]:
    with node_net() as made:
        yield made


@pytest.fixture(scope="module")
def cluster(net: NodeNet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with service_cluster(net, tmp_path_factory.mktemp("conformance")) as made:
        made.start()
        for name in ("one", "two"):
            made.pod(name, port=8080)
        yield made


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> str:
    return cluster.pod("client")


def publish(cluster: Cluster, made: Json, *pods: str, labels: Json | None = None, **conditions: bool) -> None:
    """A service with these pods behind it; ``labels``: of both objects."""
    piece = slice_of("web", *((cluster.address(pod), "node") for pod in pods), family=4, **conditions)
    for item in (made, piece):
        item["metadata"].setdefault("labels", {}).update(labels or {})
    cluster.write("web", made, piece)


def until_answered(client: str, who: str, protocol: str = "tcp") -> None:
    """Wait until this one answers."""
    poll(f"{who} answers", lambda: names(ask(client, VIP, 80, protocol=protocol, wait_s=SHORT_S)) == {who})


def test_segments_outside_the_window_reset_nothing(cluster: Cluster, client: str) -> None:
    """Kubernetes issue 74839: a late segment of the backend must not reach the client untranslated."""
    backend = cluster.pod("stray")
    cluster.write("web", service("web", VIP), slice_of("web", (cluster.address("stray"), "node"), port=9000))
    cluster.wait_for("the backend", web=[f"{cluster.address('stray')}:9000"])
    command = ["nsenter", f"--net={path_of(backend)}", sys.executable, "-c", _STRAY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert in_namespace(client, sys.executable, "-c", _STEADY, VIP).stdout == "after\n"
        told = json.loads(process.communicate(timeout=20)[0])
    assert told["heard"] == "steady"
    assert not any("R" in flags for flags in told["flags"])


def test_the_type_of_a_service_changes(cluster: Cluster, client: str) -> None:
    publish(cluster, service("web", VIP), "one")
    until_answered(client, "one")
    name = service("web", "", type="ExternalName", externalName="example.com")
    publish(cluster, name, "one")
    poll("it is gone", lambda: cluster.services() == [])
    assert names(ask(client, VIP, 80, wait_s=SHORT_S)) != {"one"}
    publish(cluster, service("web", VIP, type="NodePort", ports=[{**TCP, "nodePort": 30080}]), "one")
    until_answered(client, "one")


@pytest.mark.parametrize("label", [PROXY_NAME, HEADLESS])
def test_labels_that_come_and_go(cluster: Cluster, client: str, label: str) -> None:
    publish(cluster, service("web", VIP), "one")
    until_answered(client, "one")
    publish(cluster, service("web", VIP), "one", labels={label: "other"})
    poll("it is gone", lambda: cluster.services() == [])
    assert names(ask(client, VIP, 80, wait_s=SHORT_S)) != {"one"}
    publish(cluster, service("web", VIP), "one")
    until_answered(client, "one")


def test_one_port_for_both_protocols(cluster: Cluster, client: str) -> None:
    publish(cluster, service("web", VIP, ports=[TCP]), "one")
    until_answered(client, "one")
    assert names(ask(client, VIP, 80, protocol="udp", wait_s=SHORT_S)) != {"one"}
    publish(cluster, service("web", VIP, ports=[TCP, UDP]), "one")
    until_answered(client, "one", protocol="udp")
    until_answered(client, "one")
    publish(cluster, service("web", VIP, ports=[UDP]), "one")
    poll("TCP is gone", lambda: names(ask(client, VIP, 80, wait_s=SHORT_S)) != {"one"})
    until_answered(client, "one", protocol="udp")


def test_datagrams_from_one_port_while_endpoints_become_ready_and_go(cluster: Cluster, client: str) -> None:
    """Without an endpoint, with one that is not ready yet, with it ready, with another one."""
    made = service("web", VIP, ports=[UDP])
    publish(cluster, made)
    cluster.wait_for("the service", web=[])
    with held(client, VIP, 80, "udp") as sender:
        assert sender.ask() == "Connection refused"
        publish(cluster, made, "one", ready=False, serving=False)
        assert sender.ask() == "Connection refused"
        publish(cluster, made, "one")
        poll("the first answers", lambda: sender.ask().startswith("one "))
        publish(cluster, made, "two")
        poll("the second answers", lambda: sender.ask().startswith("two "))
