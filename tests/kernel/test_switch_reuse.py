"""An address that a pod had is another's: its first packet with the ports of an old flow reaches whom it is for."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from samewire.hcn.policies import ACL, AclAction, AclDirection, OutBoundNAT, Policy
from samewire.hcn.schema import NetworkType
from tests.support.netlab import Lab
from tests.support.node_rig import Node, Pod
from tests.support.traffic import bound
from tests.support.worlds import OUT, Underlay, bridged, overlay, own

pytestmark = [pytest.mark.root, pytest.mark.kernelcore]

PORT, SHORT_S = 5060, 5.0
JUDGED = ACL(action=AclAction.ALLOW, direction=AclDirection.IN, priority=10)


class World:
    """Two nodes with an overlay network; the first one has two others."""

    def __init__(self, lab: Lab) -> None:
        self.underlay = Underlay(lab)
        self.near, self.far = self.underlay.node(11), self.underlay.node(12)
        self.near_network = self.near.network(overlay(self.near, 1, (self.far, 2, 4)))
        self.far_network = self.far.network(overlay(self.far, 2, (self.near, 1, 4)))
        nat, bridge = self.near.network(own(NetworkType.NAT, 8)), self.near.network(bridged())
        self.kinds = {
            "overlay": (self.near_network, "10.1.0", "fd01:"),
            "nat": (nat, "10.8.0", "fd08:"),
            "l2bridge": (bridge, "192.168.9", "fd09:"),
        }
        self.number = 30

    def next(self) -> int:
        """The last part of addresses that nobody has had."""
        self.number += 1
        return self.number


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        yield World(lab)


def delete(node: Node, pod: Pod) -> None:
    """As the daemon does it, which sweeps flows only later."""
    node.apply(node.owned.replace(("endpoint", pod.endpoint.id), {}))
    node.space.ip("link", "del", pod.link.host_name)


def with_gateways(pod: Pod) -> Pod:
    """Its address is of none of its network's subnets."""
    pod.space.ip("route", "replace", "default", "via", "10.1.0.1", "dev", "eth0", "onlink")
    pod.space.ip("-6", "route", "replace", "default", "via", "fd01::1", "dev", "eth0", "onlink")
    return pod


def say(pod: Pod, family: int, server: socket.socket, to: str) -> None:
    """One datagram, which arrives."""
    with bound(pod.space, socket.SOCK_DGRAM, pod.address(family), PORT) as client:
        client.sendto(b"new", (to, PORT))
    server.settimeout(SHORT_S)
    assert server.recvfrom(100)[0] == b"new"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("kind", "to"),
    [(kind, to) for kind in ("overlay", "nat", "l2bridge") for to in ("pod", "out")]
    + [("overlay", "remote")],
)
def test_another_pod_of_the_node(world: World, kind: str, to: str, family: int) -> None:
    node, number, other = world.near, world.next(), world.next()
    network, prefix, prefix6 = world.kinds[kind]
    addresses = f"{prefix}.{number}", f"{prefix6}:{number}"
    policies: tuple[Policy, ...] = (OutBoundNAT(),) if kind != "l2bridge" else ()
    first = node.pod(network, *addresses, policies=policies)
    space, at = world.underlay.out, OUT[family]
    if to == "pod":
        target = node.pod(network, f"{prefix}.{other}", f"{prefix6}:{other}", policies=policies)
        space, at = target.space, target.address(family)
    elif to == "remote":
        target = world.far.pod(world.far_network, f"10.2.0.{other}", f"fd02::{other}")
        space, at = target.space, target.address(family)
    with bound(space, socket.SOCK_DGRAM, at, PORT) as server:
        say(first, family, server, at)
        delete(node, first)
        say(node.pod(network, *addresses, policies=policies), family, server, at)


@pytest.mark.parametrize("family", [4, 6])
def test_from_another_node_to_here(world: World, family: int) -> None:
    """A client behind the tunnel has gone; a pod here has its address, and asks the same pod of ours."""
    number = world.next()
    addresses = f"10.2.0.{number}", f"fd02::{number}"
    server = world.near.pod(world.near_network, f"10.1.0.{number}", f"fd01::{number}", policies=(JUDGED,))
    first = world.far.pod(world.far_network, *addresses)
    with bound(server.space, socket.SOCK_DGRAM, at := server.address(family), PORT) as listening:
        say(first, family, listening, at)
        delete(world.far, first)
        say(with_gateways(world.near.pod(world.near_network, *addresses)), family, listening, at)


@pytest.mark.parametrize("family", [4, 6])
def test_from_here_to_another_node(world: World, family: int) -> None:
    number = world.next()
    addresses = f"10.2.0.{number}", f"fd02::{number}"
    server = world.near.pod(world.near_network, f"10.1.0.{number}", f"fd01::{number}", policies=(JUDGED,))
    first = with_gateways(world.near.pod(world.near_network, *addresses))
    with bound(server.space, socket.SOCK_DGRAM, at := server.address(family), PORT) as listening:
        say(first, family, listening, at)
        delete(world.near, first)
        say(world.far.pod(world.far_network, *addresses), family, listening, at)
