"""Services across two real nodes: pods elsewhere as backends, clients outside, direct server return."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.node import NODE_IP, ROUTER_IP, DaemonProcess, Json, poll
from tests.support.service_cluster import ask, backends_of, names, server, service, slice_of
from tests.support.two_nodes import FAR, World

pytestmark = pytest.mark.root

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
            poll("the service", lambda process=process: _has_backend(process))  # type: ignore[misc]


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
