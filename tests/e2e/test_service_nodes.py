"""Services across two real nodes: pods elsewhere as backends, clients outside, direct server return."""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.support.crowd import crowds
from tests.support.node import NODE_IP, NODE_IP6, ROUTER_IP, STALL_S, DaemonProcess, Json, in_namespace, poll
from tests.support.service_cluster import ask, backends_of, held, names, server, service, slice_of
from tests.support.two_nodes import FAR, FAR6, FAR_IP, FAR_IP6, WEB, WEB6, World, in_pod, modify, run

pytestmark = pytest.mark.root

UDP = {"name": "udp", "port": 80, "protocol": "UDP", "nodePort": 30080}
PORTS = [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}]


class Cluster:
    """Two nodes that read the same manifests; the one backend is on the far node, the clients come to the near one."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        self.manifests = directory / "manifests"
        self.manifests.mkdir()
        self.world = World(stack, directory, manifests=str(self.manifests))
        stack.enter_context(server(self.world.remote, "remote", 8080))
        self.router = self.world.net.router

    def write(self, name: str, *objects: Json) -> None:
        """Put objects into a file, in one step."""
        temporary = self.manifests / f".{name}"
        temporary.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
        temporary.rename(self.manifests / f"{name}.json")

    def publish(self, **annotations: str) -> None:
        """The service, with its backend; wait until both nodes have it."""
        made = service("web", "10.96.0.10", type="NodePort", ports=PORTS)
        made["metadata"]["annotations"] = annotations
        self.write("web", made, slice_of("web", (FAR, "far")))
        for process in (self.world.near, self.world.far):
            poll("the service", partial(_has_backend, process))


def _has_backend(process: DaemonProcess) -> bool:
    found = process.request("GET", "/v2/services")
    return bool(found) and not found[0].get("error") and backends_of(found[0]) == {f"{FAR}:8080"}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(stack, tmp_path)


def test_a_backend_elsewhere(cluster: Cluster) -> None:
    cluster.publish()
    assert names(ask(cluster.world.client, "10.96.0.10", 80, times=3)) == {"remote"}
    assert names(ask(cluster.world.client, NODE_IP, 30080, times=3)) == {"remote"}
    answers = ask(cluster.router, NODE_IP, 30080, times=3)
    assert names(answers) == {"remote"}
    assert not any(answer.endswith(f" {ROUTER_IP}") for answer in answers), (
        "translated: replies come back this way"
    )


_LARGE = """
import socket, sys
with socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM) as peer:
    peer.settimeout(20)
    peer.sendto(bytes(4000), (sys.argv[1], 8080))
    print(peer.recv(200).decode())
"""


@pytest.mark.parametrize("address", [FAR, FAR6])
def test_the_nodes_first_large_datagram_arrives(cluster: Cluster, address: str) -> None:
    """Nothing is lost to find out how long a packet may be: the route says it."""
    answer = in_namespace(cluster.world.net.node, sys.executable, "-c", _LARGE, address).stdout
    assert answer.startswith("remote ")


def test_both_nodes_leave_a_removed_backend_at_once(cluster: Cluster) -> None:
    """Datagrams from one port, and connections, of pods of both nodes and through the ports of both."""
    world = cluster.world
    made = service("web", "10.96.0.10", type="NodePort", ports=[*PORTS, UDP])
    both = [(WEB, "near"), (FAR, "far")]
    with ExitStack() as stack:
        stack.enter_context(server(world.web, "web", 8080))
        inside = [stack.enter_context(crowds(pod)) for pod in (world.client, world.remote)]
        outside = stack.enter_context(crowds(cluster.router))
        cluster.write("web", made, slice_of("web", *both))
        _wait_for(world, WEB, FAR)
        connections, senders = (
            [
                stack.enter_context(client.open(30, host, port, protocol))
                for client, host, port in (
                    *((client, "10.96.0.10", 80) for client in inside),
                    *((outside, host, 30080) for host in (NODE_IP, FAR_IP)),
                )
            ]
            for protocol in ("tcp", "udp")
        )
        assert all(names(crowd.first) == {"web", "remote"} for crowd in (*connections, *senders))
        cluster.write("web", made, slice_of("web", both[1]))
        _wait_for(world, FAR)
        for crowd in senders:
            for before, after in zip(crowd.first, crowd.ask(), strict=True):
                assert after.startswith("remote ")
                assert after == before or before.startswith("web ")
        for crowd in connections:
            for before, after in zip(crowd.first, crowd.ask(), strict=True):
                assert after == ("ECONNRESET" if before.startswith("web ") else before)


def _wait_for(world: World, *addresses: str) -> None:
    """Both nodes have a service with just these backends."""
    wanted = {f"{address}:8080" for address in addresses}
    for process in (world.near, world.far):
        poll("the backends", partial(_has_just, process, wanted))


def _has_just(process: DaemonProcess, backends: set[str]) -> bool:
    return [backends_of(found) for found in process.request("GET", "/v2/services")] == [backends]


def test_what_the_tools_say(cluster: Cluster) -> None:
    """Of a connection that has two entries in the flow table, and of one that is only traced."""
    cluster.publish()
    near = cluster.world.near
    with held(cluster.router, NODE_IP, 30080) as connection:
        assert connection.ask().startswith("remote ")
        (found,) = near.request("GET", "/v2/services?counts=1")
        assert found["tally"] == {"flows": 1, "connections": 1, "refused": 0, "ended": 0}
        assert 0 < found["latency_s"] < 10
        assert abs(time.time() - found["changed_s"]) < 60
        shown = run(near, "get", "services", "-o", "wide").output.split()
    assert {"default/web", f"{FAR}:8080", "FLOWS", "DROPS", "CHANGED", "LATENCY"} <= set(shown)
    traced = run(near, "trace", "--from", "shop/client", "--to", "10.96.0.10:80")
    assert f"default/web:http: backend {FAR}:8080, chosen by the connection's hash" in traced.output
    assert "BUG" not in traced.output, "the simulator and the switch agree"
    cluster.write("web", service("web", "10.96.0.10", type="NodePort", ports=PORTS))
    poll("no backends", lambda: "reject" in _trace(near) or "no_backend" in _trace(near))
    assert "default/web:http: " in _trace(near)


def _trace(process: DaemonProcess) -> str:
    return run(process, "trace", "--from", "shop/client", "--to", "10.96.0.10:80").output


VIP6 = "fd00:96::10"
REFUSED = {"Connection refused"}


def _place(cluster: Cluster, *backends: tuple[str, str]) -> None:
    """The service has this one backend in both families, or none; daemons that run know."""
    pieces = [
        slice_of("web", *((pair[side], "node") for pair in backends), family=family)
        for side, family in ((0, 4), (1, 6))
    ]
    cluster.write("endpoints", *pieces)
    wanted = {f"{address}:8080" for pair in backends for address in pair}
    for process in (cluster.world.near, cluster.world.far):
        if process.running:
            poll("the endpoints", partial(_has, process, wanted))


def _has(process: DaemonProcess, wanted: set[str]) -> bool:
    found = process.request("GET", "/v2/services")
    return bool(found) and not found[0].get("error") and backends_of(found[0]) == wanted


def test_datagrams_from_one_port_while_the_backend_goes_and_comes(cluster: Cluster) -> None:
    """Senders that never change their port, in both families, at both nodes: one backend, none, one again, here or
    there; with the daemons killed meanwhile, who find at their start what has changed.
    """
    world, near, far = cluster.world, (WEB, WEB6), (FAR, FAR6)
    made = service("web", "10.96.0.10", VIP6, type="NodePort", ports=[UDP | {"targetPort": 8080}])
    cluster.write("web", made)
    _place(cluster, far)
    with ExitStack() as stack:
        stack.enter_context(server(world.web, "web", 8080))
        senders = [
            stack.enter_context(held(space, address, port, "udp"))
            for space, address, port in (
                (world.client, "10.96.0.10", 80),
                (world.client, VIP6, 80),
                (world.remote, "10.96.0.10", 80),
                (cluster.router, NODE_IP, 30080),
                (cluster.router, NODE_IP6, 30080),
                (cluster.router, FAR_IP, 30080),
                (cluster.router, FAR_IP6, 30080),
            )
        ]

        def answers() -> set[str]:
            found = [sender.ask() for sender in senders]
            return {text if text in REFUSED else text.split()[0] for text in found}

        assert answers() == {"remote"}
        for backends, wanted in (((), REFUSED), ((near,), {"web"}), ((far,), {"remote"})):
            _place(cluster, *backends)
            assert answers() == wanted
        daemons = world.near, world.far
        for backends, wanted in (((near,), {"web"}), ((), REFUSED), ((far,), {"remote"})):
            before = answers()
            for process in daemons:
                process.stop(signal.SIGKILL)
            _place(cluster, *backends)
            assert answers() == before, "nothing is purged without a daemon"
            for process in daemons:
                process.start()
            _place(cluster, *backends)
            assert answers() == wanted


@pytest.mark.parametrize("six", [False, True])
def test_services_while_the_backends_node_is_unknown(cluster: Cluster, six: bool) -> None:
    """What clients outside and pods send meanwhile goes the default route's way. They are not kept there afterwards,
    and connections are not reset.
    """
    world, family = cluster.world, socket.AF_INET6 if six else socket.AF_INET
    ports = [{**PORTS[0], "targetPort": 8080}, UDP | {"targetPort": 8080}]
    cluster.write("web", service("web", "10.96.0.10", VIP6, type="NodePort", ports=ports))
    _place(cluster, (FAR, FAR6))
    addresses = (
        (cluster.router, (NODE_IP, NODE_IP6)[six], 30080),
        (world.client, ("10.96.0.10", VIP6)[six], 80),
    )
    with ExitStack() as stack:
        clients = []
        for space, host, port in addresses:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                client = stack.enter_context(in_pod(space, partial(socket.socket, family, kind)))
                client.settimeout(STALL_S)
                client.connect((host, port))
                assert answers(client)
                client.settimeout(0.1)
                clients.append(client)
        network = world.near.request("GET", "/v2/networks")[0]
        routes = [policy for policy in network["Policies"] if policy["Type"] == "RemoteSubnetRoute"]
        modify(world.near, "networks", network["ID"], routes, "Remove")
        heard = [answers(client) for client in clients]  # each of them has asked
        assert not any(heard)
        modify(world.near, "networks", network["ID"], routes)
        for client in clients:
            poll("it is answered again", partial(answers, client))


def answers(client: socket.socket) -> bool:
    """Whether a question is answered."""
    try:
        client.send(b"?")
        return client.recv(100).startswith(b"remote ")
    except OSError:
        return False
