"""podman with CNI networks: Debian's bridge plugin (the control), and Samewire on a NAT and an overlay network."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.runtimes.node import ADDRESS, OUTSIDE, running_node, wait_for
from tests.e2e.runtimes.plugins import POOL, Bridge, Plugin, SamewireNamed, SamewireNat
from tests.e2e.runtimes.podman import Podman

pytestmark = pytest.mark.root

NODE_PORT = 8000
OUTSIDE_PORT = 8001


@pytest.fixture(
    scope="module",
    params=[Bridge, SamewireNat, SamewireNamed],
    ids=["bridge", "samewire-cni", "samewire-cni-named-socket"],
)
def podman(request: pytest.FixtureRequest) -> Iterator[Podman]:
    """podman on a fresh node, with one HTTP server on the node and one outside."""
    plugin: type[Plugin] = request.param
    with running_node() as node:
        node.serve("node", NODE_PORT)
        node.serve("outside", OUTSIDE_PORT, outside=True)
        yield Podman(node, plugin(node))


def test_containers_reach_one_another_the_node_and_the_outside(podman: Podman) -> None:
    with (
        podman.container("one", "sleep", "1000000") as one,
        podman.container("two", "serve", "two", "8080") as two,
    ):
        addresses = {podman.address(one), podman.address(two)}
        assert len(addresses) == 2
        assert addresses <= set(POOL)
        assert podman.plugin.addresses_in_use() == addresses
        assert podman.address(one) in podman.execute(one, "ip", "-4", "-o", "address", "show", "eth0")
        target = podman.address(two)
        wait_for(lambda: podman.node.fetch(target, 8080) == "two", "the node reaches the container")
        assert podman.execute(one, "ask", target, "8080") == "two"
        assert podman.execute(one, "ask", ADDRESS, str(NODE_PORT)) == "node"
        assert podman.execute(one, "ask", OUTSIDE, str(OUTSIDE_PORT)) == "outside"
        podman.execute(one, "ping", "-c", "1", "-W", "20", OUTSIDE)
    assert podman.plugin.addresses_in_use() == set()


def test_published_port(podman: Podman) -> None:
    with podman.container("web", "serve", "web", "8080", publish="8088:8080") as web:
        address = podman.address(web)
        wait_for(lambda: podman.node.fetch(address, 8080) == "web", "the node reaches the container")
        assert podman.node.fetch(ADDRESS, 8088, outside=True) == "web"
        assert podman.node.fetch(ADDRESS, 8088) == "web"
    assert podman.node.fetch(ADDRESS, 8088, outside=True) == ""
    assert podman.plugin.addresses_in_use() == set()


def test_a_container_that_ends_gives_its_address_back(podman: Podman) -> None:
    """podman then calls DEL from a process of its own, before anybody removes the container."""
    with podman.container("short", "sleep", "0"):
        wait_for(lambda: podman.plugin.addresses_in_use() == set(), "the address is free again")
