"""Two nodes and their zones: which backends clients of each node reach, by real packets through both families.

The nodes derive the EndpointSlices, hints included, from the Pods and Nodes that they are shown.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.support.crowd import Crowds, crowds
from tests.support.node import NODE_IP, NODE_IP6, DaemonProcess, Json, poll
from tests.support.service_cluster import backends_of, names, server, service
from tests.support.two_nodes import FAR, FAR6, FAR_IP, FAR_IP6, FAR_SUBNETS, WEB, WEB6, World

pytestmark = pytest.mark.root

VIPS: Final = ("10.96.0.10", "fd00:96::10")
NODE_PORT: Final = 30080
TIMES: Final = 20  # so often that neither of two backends is missed by chance
BACKENDS: Final = {"web": ("near", WEB, WEB6), "remote": ("far", FAR, FAR6)}
BOTH: Final = frozenset(BACKENDS)


class Cluster:
    """A backend on each node, and a client beside it; the nodes read the same manifests."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        self._manifests = directory / "manifests"
        self._manifests.mkdir()
        self.world = world = World(stack, directory, manifests=str(self._manifests))
        guest = world.pod(world.far, "shop/guest", FAR_SUBNETS)
        self.client, far, self._outside = (
            stack.enter_context(crowds(space)) for space in (world.client, guest, world.net.router)
        )
        self._sources = itertools.count(10_000)
        self._nodes: dict[str, tuple[DaemonProcess, Crowds, tuple[str, str]]] = {
            "near": (world.near, self.client, (NODE_IP, NODE_IP6)),
            "far": (world.far, far, (FAR_IP, FAR_IP6)),
        }
        for name, pod in (("web", world.web), ("remote", world.remote)):
            stack.enter_context(server(pod, name, 8080))

    def publish(self, distribution: str, zones: dict[str, str], *pods: str) -> None:
        """A Service with the ready ones of these pods, and the zones of the nodes; all in one step."""
        more = {"trafficDistribution": distribution} if distribution else {}
        ports = [
            {
                "name": protocol.lower(),
                "port": 80,
                "targetPort": 8080,
                "protocol": protocol,
                "nodePort": NODE_PORT,
            }
            for protocol in ("TCP", "UDP")
        ]
        made = service("web", *VIPS, type="NodePort", ports=ports, selector={"app": "web"}, **more)
        items = [made, *(_node(name, zones.get(name, "")) for name in self._nodes), *map(_pod, pods)]
        temporary = self._manifests / ".all"
        temporary.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        temporary.rename(self._manifests / "all.json")

    def reach(self, near: frozenset[str] | set[str], far: frozenset[str] | set[str]) -> None:
        """Who comes to a node, its pods and clients of its NodePort outside, gets to these backends and all of them."""
        for name, wanted in (("near", near), ("far", far)):
            process, client, addresses = self._nodes[name]
            poll(f"{name} balances over {set(wanted)}", partial(_balances, process, wanted))
            for host in VIPS:
                self._ask(client, host, 80, wanted)
            for host in addresses:
                self._ask(self._outside, host, NODE_PORT, wanted)

    def _ask(self, client: Crowds, host: str, port: int, wanted: frozenset[str] | set[str]) -> None:
        """New connections, and datagrams from ports that have sent none before: a flow stays with its backend."""
        with client.open(TIMES, host, port) as connections:
            assert names(connections.first) == wanted, (host, "tcp")
        found = set()
        for _ in range(TIMES):
            with client.open(1, host, port, "udp", source=next(self._sources)) as sender:
                found |= names(sender.first)
        assert found == wanted, (host, "udp")


def _balances(process: DaemonProcess, wanted: frozenset[str] | set[str]) -> bool:
    found = process.request("GET", "/v2/services")
    new = {backend for one in found for backend in backends_of(one) if not backend.endswith("!")}
    return new == {f"{address}:8080" for name in wanted for address in BACKENDS[name][1:]}


def _node(name: str, zone: str) -> Json:
    labels = {"topology.kubernetes.io/zone": zone} if zone else {}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}


def _pod(name: str) -> Json:
    node, *addresses = BACKENDS[name]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": "default", "name": name, "uid": f"uid-{name}", "labels": {"app": "web"}},
        "spec": {"nodeName": node, "containers": [{"name": "c"}]},
        "status": {
            "phase": "Running",
            "podIPs": [{"ip": address} for address in addresses],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(stack, tmp_path_factory.mktemp("topology"))


APART, TOGETHER = {"near": "a", "far": "b"}, {"near": "a", "far": "a"}


@pytest.mark.parametrize(
    ("distribution", "zones", "near", "far"),
    [
        ("", APART, BOTH, BOTH),
        ("PreferClose", APART, {"web"}, {"remote"}),
        ("PreferSameZone", APART, {"web"}, {"remote"}),
        ("PreferSameNode", APART, {"web"}, {"remote"}),
        ("PreferClose", TOGETHER, BOTH, BOTH),
        ("PreferSameZone", TOGETHER, BOTH, BOTH),
        ("PreferSameNode", TOGETHER, {"web"}, {"remote"}),
        ("PreferClose", {"far": "b"}, BOTH, BOTH),  # a backend of no zone has no hint, so none counts
        ("PreferSameNode", {}, {"web"}, {"remote"}),
    ],
)
def test_who_is_near(
    cluster: Cluster, distribution: str, zones: dict[str, str], near: frozenset[str], far: frozenset[str]
) -> None:
    cluster.publish(distribution, zones, *BACKENDS)
    cluster.reach(near, far)


@pytest.mark.parametrize("distribution", ["PreferClose", "PreferSameZone", "PreferSameNode"])
@pytest.mark.parametrize(("pod", "zones"), [("web", APART), ("remote", APART), ("web", TOGETHER)])
def test_hints_that_do_not_cover_the_zone_or_node(
    cluster: Cluster, distribution: str, zones: dict[str, str], pod: str
) -> None:
    """Nobody is near: whoever there is serves all, of the zone first."""
    cluster.publish(distribution, zones, pod)
    cluster.reach({pod}, {pod})


def test_connections_stay_where_they_are_when_zones_and_hints_change(cluster: Cluster) -> None:
    """Only new ones follow: by the Service's wish, by a node that changes its zone, by the near backend that goes."""
    cluster.publish("", APART, *BACKENDS)
    cluster.reach(BOTH, BOTH)
    with ExitStack() as stack:
        client = cluster.client
        held = [stack.enter_context(client.open(30, vip, 80)) for vip in VIPS]
        senders = [stack.enter_context(client.open(30, vip, 80, "udp")) for vip in VIPS]
        assert all(names(crowd.first) == BOTH for crowd in (*held, *senders))
        for distribution, zones, near, far in (
            ("PreferClose", APART, {"web"}, {"remote"}),
            ("PreferClose", TOGETHER, BOTH, BOTH),
            ("PreferSameNode", TOGETHER, {"web"}, {"remote"}),
        ):
            cluster.publish(distribution, zones, *BACKENDS)
            cluster.reach(near, far)
            assert [crowd.ask() for crowd in (*held, *senders)] == [c.first for c in (*held, *senders)]
        cluster.publish("PreferClose", APART, "remote")
        cluster.reach({"remote"}, {"remote"})
        for crowd in held:
            now = ["ECONNRESET" if one.startswith("web ") else one for one in crowd.first]
            assert crowd.ask() == now
        for crowd in senders:
            assert names(crowd.ask()) == {"remote"}
