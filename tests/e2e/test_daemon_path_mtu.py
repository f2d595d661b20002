"""A link between two nodes that is smaller than their NICs: who sends through the tunnel is told, as by any router."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from samewire.kernel.netns import NetNamespace
from tests.support.node import ROUTER_IP, in_namespace, ip, path_of, poll
from tests.support.traffic import TIMEOUT_S, stream
from tests.support.two_nodes import FAR, FAR6, FAR_IP, World

pytestmark = [pytest.mark.root]

BETWEEN, OUTWARD = 1400, 1300
WIDE, NARROW = 1450, 1350
TARGETS = {4: FAR, 6: FAR6}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        found = World(stack, tmp_path_factory.mktemp("nodes"), audit_interval_s=1)
        ip("link", "set", "eth1", "mtu", str(BETWEEN), netns_name=found.net.router)
        yield found


def socket_in(name: str, family: int, kind: int) -> socket.socket:
    with NetNamespace(path_of(name)) as netns:
        opened = netns.run(lambda: socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, kind))
    opened.settimeout(TIMEOUT_S)
    return opened


def limits(world: World) -> set[int]:
    """What the first node takes for the longest packets to the other."""
    return {
        hop["value"]["mtu"] for hop in world.near.table("sw_nexthops") if hop["value"]["kind"] == "tunnel"
    }


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("who", ["pod", "node"])
def test_streams_pass(world: World, who: str, family: int) -> None:
    """And when the kernel has forgotten, so have we: the way may be wider by now."""
    ip("route", "flush", "cache", netns_name=world.net.node)
    poll("nothing is known", lambda: limits(world) == {WIDE})
    client = world.client if who == "pod" else world.net.node
    with (
        socket_in(world.remote, family, socket.SOCK_STREAM) as listening,
        socket_in(client, family, socket.SOCK_STREAM) as near,
    ):
        listening.bind((TARGETS[family], 0))
        listening.listen()
        near.connect(listening.getsockname()[:2])
        far, _ = listening.accept()
        with far:
            far.settimeout(TIMEOUT_S)
            stream(near, far, os.urandom(200_000))
    assert limits(world) == {NARROW}
    assert not world.near.differences()


def test_a_default_route_with_an_mtu(world: World) -> None:
    """As the kernel forwards, so do we: a NIC for large frames often has a way out for usual ones only."""

    def told() -> bool:
        ping = ("ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", str(OUTWARD - 27), FAR_IP)
        return f"mtu = {OUTWARD}" in in_namespace(world.client, *ping, check=False).stdout

    node = world.net.node
    ip("route", "replace", "default", "via", ROUTER_IP, "mtu", str(OUTWARD), netns_name=node)
    poll("pods are told", told)
    assert limits(world) == {OUTWARD - 50}, "what is in the tunnel goes there, too"
    ip("route", "replace", "default", "via", ROUTER_IP, netns_name=node)
