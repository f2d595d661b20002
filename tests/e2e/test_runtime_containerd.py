"""containerd, through its CRI, with Debian's bridge plugin (the control) and with Samewire."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from tests.e2e.runtimes.containerd import DNS_SERVER, Container, Containerd, running_containerd
from tests.e2e.runtimes.node import ADDRESS, OUTSIDE, running_node, wait_for
from tests.e2e.runtimes.plugins import POOL, Bridge, Plugin, Samewire

pytestmark = pytest.mark.root

NODE_PORT = 8000
OUTSIDE_PORT = 8001


@pytest.fixture(scope="module", params=[Bridge, Samewire], ids=["bridge", "samewire-cni"])
def containerd(request: pytest.FixtureRequest) -> Iterator[Containerd]:
    """A containerd on a fresh node, with one HTTP server on the node and one outside."""
    plugin: type[Plugin] = request.param
    with running_node() as node:
        node.serve("node", NODE_PORT)
        node.serve("outside", OUTSIDE_PORT, outside=True)
        with running_containerd(node, plugin(node)) as running:
            yield running


@pytest.fixture(autouse=True)
def no_address_is_left(containerd: Containerd) -> Iterator[None]:
    """Every test gives back all it took."""
    yield
    assert containerd.plugin.addresses_in_use() == set()


def fetch(container: Container, host: str, port: int) -> str:
    """What the HTTP server at ``host`` says its name is, asked from a container; "" = no answer."""
    return container.execute("ask", host, str(port))[1]


def eventually_served(containerd: Containerd, host: str, port: int, name: str) -> None:
    """Wait until the node gets ``name`` from a server that is being started."""
    wait_for(lambda: containerd.node.fetch(host, port) == name, f"{name} answers at {host}:{port}")


def interface(container: Container) -> tuple[str, str]:
    """Address and MAC of eth0, as a container sees them."""
    words = container.output("ip", "-4", "-o", "address", "show", "eth0").split()
    mac = container.output("cat", "/sys/class/net/eth0/address")
    return words[words.index("inet") + 1].partition("/")[0], mac


def test_containers_of_a_pod_share_one_address_and_localhost(containerd: Containerd) -> None:
    with containerd.pod() as pod:
        web = pod.container("web", "serve", "web", "8080")
        api = pod.container("api", "serve", "api", "8081")
        address = pod.address
        assert address in POOL
        assert containerd.plugin.addresses_in_use() == {address}
        eventually_served(containerd, address, 8080, "web")
        eventually_served(containerd, address, 8081, "api")
        assert interface(web) == interface(api)
        assert interface(web)[0] == address
        assert fetch(web, "127.0.0.1", 8081) == "api"
        assert fetch(api, "127.0.0.1", 8080) == "web"
        assert fetch(api, address, 8080) == "web"
        assert f"nameserver {DNS_SERVER}" in web.output("cat", "/etc/resolv.conf")


def test_restart_of_one_container_keeps_the_pods_address(containerd: Containerd) -> None:
    with containerd.pod() as pod:
        web = pod.container("web", "serve", "first", "8080")
        api = pod.container("api", "serve", "api", "8081")
        address, before = pod.address, interface(api)
        eventually_served(containerd, address, 8080, "first")
        web.kill()
        assert fetch(api, "127.0.0.1", 8080) == ""
        web = pod.container("web", "serve", "second", "8080")
        eventually_served(containerd, address, 8080, "second")
        assert pod.address == address
        assert interface(web) == interface(api) == before
        assert fetch(api, "127.0.0.1", 8080) == "second"
        assert fetch(web, "127.0.0.1", 8081) == "api"


def test_stop_deletes_and_a_new_sandbox_reuses(containerd: Containerd) -> None:
    """More pods one after the other than there are addresses; some are stopped twice, as kubelet does."""
    seen = []
    for number in range(len(POOL) + 1):
        with containerd.pod() as pod:
            seen.append(pod.address)
            pod.container("web", "serve", f"pod-{number}", "8080")
            eventually_served(containerd, pod.address, 8080, f"pod-{number}")
            pod.stop()
            assert containerd.plugin.addresses_in_use() == set()
    assert containerd.node.fetch(seen[-1], 8080) == ""
    assert set(seen) == set(POOL)


def test_pods_node_and_outside_reach_one_another(containerd: Containerd) -> None:
    with containerd.pod() as one, containerd.pod() as two:
        client = one.container("client", "sleep", "1000000")
        two.container("web", "serve", "web", "8080")
        eventually_served(containerd, two.address, 8080, "web")
        assert one.address != two.address
        assert fetch(client, two.address, 8080) == "web"
        assert client.execute("ping", "-c", "1", "-W", "20", two.address)[0] == 0
        assert fetch(client, ADDRESS, NODE_PORT) == "node"
        assert fetch(client, OUTSIDE, OUTSIDE_PORT) == "outside"  # it has no route to pods: this is NATed
        assert client.execute("ping", "-c", "1", "-W", "20", OUTSIDE)[0] == 0


def test_host_port(containerd: Containerd) -> None:
    with containerd.pod(host_port=8088, container_port=8080) as pod:
        pod.container("web", "serve", "web", "8080")
        eventually_served(containerd, pod.address, 8080, "web")
        assert containerd.node.fetch(ADDRESS, 8088, outside=True) == "web"
        assert containerd.node.fetch(ADDRESS, 8088) == "web"
    assert containerd.node.fetch(ADDRESS, 8088, outside=True) == ""


def test_sandbox_that_cannot_have_an_address_fails_and_leaves_nothing(containerd: Containerd) -> None:
    with containerd.pod(), containerd.pod(), containerd.pod():
        assert containerd.plugin.addresses_in_use() == set(POOL)
        with pytest.raises(grpc.RpcError, match=r"(?i)no IP|exhaust|no .*addresses"), containerd.pod():
            pass
        assert containerd.plugin.addresses_in_use() == set(POOL)
