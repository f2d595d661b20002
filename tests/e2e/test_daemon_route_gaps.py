"""Connections while there is no way for a moment: what is sent then is lost and counted, the connection is not."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.node import (
    NODE_IP,
    NODE_IP6,
    ROUTER_IP,
    ROUTER_IP6,
    STALL_S,
    DaemonProcess,
    NodeNet,
    ip,
    overlay,
    poll,
)
from tests.support.two_nodes import CLIENT, CLIENT6, FAR, FAR6, World, in_pod, modify, run

pytestmark = pytest.mark.root

LAST = b"!"
SUBNETS = ("10.244.0.0/24", "fd00:244::/64")
BEYOND = {socket.AF_INET: "10.77.0.1", socket.AF_INET6: "fd10:77::1"}
FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
HOST_PORTS = [
    {
        "Type": "PortMapping",
        "Settings": {"Protocol": 6, "InternalPort": 80, "ExternalPort": 8080, "Flags": flags},
    }
    for flags in (0, 2)
]


@pytest.fixture
def pod(net: NodeNet, node: DaemonProcess) -> str:
    """A pod that reaches the world as the node, and has a host port."""
    node.request("POST", "/v2/networks", overlay(subnet6=SUBNETS[1]))
    for address in BEYOND.values():
        ip("address", "add", address, "dev", "lo", netns_name=net.router)
    name = net.pod()
    nat = {"Type": "OutBoundNAT", "Settings": {"Exceptions": ["10.244.0.0/16", "fd00:244::/32"]}}
    node.add("pod", name, node.conf("pods", *SUBNETS, policies=[]))
    modify(node, "endpoints", node.endpoints()[0]["ID"], [nat, *HOST_PORTS], "Update")
    return name


def drops(node: DaemonProcess, reason: str) -> int:
    """Packets dropped for a reason."""
    found = json.loads(run(node, "get", "drops", "-o", "json").stdout)
    return sum(row["packets"] for row in found if row["reason"] == reason)


@contextmanager
def no_default_route(net: NodeNet) -> Iterator[None]:
    """The node has none meanwhile."""
    for family in ("-4", "-6"):
        ip(family, "route", "del", "default", netns_name=net.node)
    yield
    for gateway in (ROUTER_IP, ROUTER_IP6):
        ip("route", "add", "default", "via", gateway, netns_name=net.node)


def connected(
    stack: ExitStack,
    client: str,
    server: str,
    listening: tuple[str, int],
    to: tuple[str, int],
    source: str = "",
) -> tuple[socket.socket, socket.socket]:
    """A connection: the client's end, the server's."""
    family = socket.AF_INET6 if ":" in to[0] else socket.AF_INET
    listener = stack.enter_context(in_pod(server, lambda: socket.create_server(listening, family=family)))
    near = stack.enter_context(
        in_pod(client, lambda: socket.create_connection(to, STALL_S, (source, 0) if source else None))
    )
    far = stack.enter_context(listener.accept()[0])
    for end in (near, far):
        end.settimeout(STALL_S)
    return near, far


def lose(node: DaemonProcess, *ends: socket.socket) -> None:
    """Send until a packet is dropped for want of a route, by each end in turn; the first one ends with ``LAST``."""
    before = drops(node, "no_route")

    def is_lost() -> bool:
        for end in ends[::-1]:
            end.send(b".")
        return drops(node, "no_route") > before

    poll("it is dropped", is_lost)
    ends[0].send(LAST)


def hears(end: socket.socket) -> bool:
    """Whether all has come."""
    while data := end.recv(1000):
        if data.endswith(LAST):
            return True
    return False


@FAMILIES
def test_a_translated_connection_outlives_the_default_route(
    net: NodeNet, node: DaemonProcess, pod: str, family: int
) -> None:
    """Its far end goes on sending too: without the flow, the node's own stack would reset it."""
    there = BEYOND[socket.AddressFamily(family)]
    with ExitStack() as stack:
        near, far = connected(stack, pod, net.router, (there, 7000), (there, 7000))
        with no_default_route(net):
            lose(node, near)
            lose(node, far)
        assert hears(far)
        assert hears(near)
    assert node.differences() == []


@FAMILIES
def test_who_only_listens_hears_the_rest(net: NodeNet, node: DaemonProcess, pod: str, family: int) -> None:
    """A download through a host port: its question found no way back, and now the client has nothing more to say."""
    here = NODE_IP if family == socket.AF_INET else NODE_IP6
    there = BEYOND[socket.AddressFamily(family)]
    with ExitStack() as stack:
        near, far = connected(stack, net.router, pod, ("", 80), (here, 8080), there)
        with no_default_route(net):
            lose(node, far, near)
        assert hears(near)
    assert node.differences() == []


@pytest.mark.parametrize(("client", "remote"), [(CLIENT, FAR), (CLIENT6, FAR6)])
def test_datagrams_of_a_node_that_was_unknown_for_a_moment(tmp_path: Path, client: str, remote: str) -> None:
    """What they were answered by the uplink meanwhile does not keep them out when their subnet is known again."""
    family = socket.AF_INET6 if ":" in client else socket.AF_INET
    with ExitStack() as stack:
        world = World(stack, tmp_path)
        asking, answering = (
            stack.enter_context(in_pod(name, lambda: socket.socket(family, socket.SOCK_DGRAM)))
            for name in (world.remote, world.client)
        )
        asking.bind((remote, 5300))
        answering.bind((client, 53))
        network = world.near.request("GET", "/v2/networks")[0]
        routes = [policy for policy in network["Policies"] if policy["Type"] == "RemoteSubnetRoute"]
        modify(world.near, "networks", network["ID"], routes, "Remove")
        asking.sendto(b"?", (client, 53))
        answering.settimeout(STALL_S)
        answering.sendto(*answering.recvfrom(10))
        modify(world.near, "networks", network["ID"], routes)
        answering.settimeout(0.1)
        poll("its questions arrive", lambda: arrives(lambda: asking.sendto(b"?", (client, 53)), answering))


def arrives(send: Callable[[], object], receiver: socket.socket) -> bool:
    """Whether a datagram is there when another one has been sent."""
    send()
    try:
        return bool(receiver.recv(10))
    except TimeoutError:
        return False
