"""A client that has called a service calls the backend itself, from the same port: both connections go on."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from samewire.hcn.policies import ACL, AclAction, AclDirection, OutBoundNAT
from samewire.trace.flows import flow_rows
from samewire.trace.names import Names
from samewire.vfp.constants import SCOPE_ANY, SCOPE_ASIDE, FlowFlag, Layer, Reason, TcpFlag
from samewire.vfp.tables import Flow, FlowKey, Id, Port
from tests.support.frames import fill, ip_packet, pseudo
from tests.support.netlab import Lab, poll
from tests.support.node_rig import Pod
from tests.support.services import Balancer, Target
from tests.support.traffic import TIMEOUT_S, bound, echo_over, family_of, inject
from tests.support.universe import packed
from tests.support.worlds import Underlay, overlay, unguarded

pytestmark = [pytest.mark.root, pytest.mark.kernelcore]

FAMILIES = (4, 6)
SERVERS = ("free", "ruled", "remote")
VIP = {4: "10.96.0.10", 6: "fd96::10"}
INTERNAL = 8080
RESET = b"\1\0\0\0\0\0\0\0"  # SO_LINGER: a RST at once, and no TIME_WAIT


class World:
    """Two nodes in an overlay network; a service on the first, whose backend is here (with rules or not) or there."""

    def __init__(self, lab: Lab) -> None:
        underlay = Underlay(lab)
        self.node = node = underlay.node(11)
        self.other = other = underlay.node(12)
        near = node.network(overlay(node, 1, (other, 2, 4)))
        far = other.network(overlay(other, 2, (node, 1, 4)))
        rule = ACL(action=AclAction.ALLOW, direction=AclDirection.IN, priority=10)
        self.client = node.pod(near, "10.1.0.10", "fd01::10", policies=[OutBoundNAT()])
        self.free = node.pod(near, "10.1.0.11", "fd01::11")
        self.ruled = node.pod(near, "10.1.0.12", "fd01::12", policies=[rule])
        self.remote = other.pod(far, "10.2.0.13", "fd02::13")
        self.forger = other.pod(far, "10.2.0.14", "fd02::14")
        port = node.table("sw_ports")[Id(self.client.port)]
        assert isinstance(port, Port)
        self.scope = port.scope
        self._last_port = 46000

    def port(self) -> int:
        """A client's port that nobody has had."""
        self._last_port += 1
        return self._last_port

    def service(self, pod: Pod, family: int, protocol: int) -> Balancer:
        """One of one backend, at the VIP."""
        made = Balancer(self.node, Target(pod.address(family), INTERNAL, self.scope), protocol=protocol)
        made.vip(VIP[family], 80, SCOPE_ANY)
        return made

    def connect(self, to: str, port: int, source: int) -> socket.socket:
        """The client's end of a connection from one of its ports."""
        made = self.client.space.socket(family_of(to), socket.SOCK_STREAM)
        made.settimeout(TIMEOUT_S)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("", source))
        try:
            made.connect((to, port))
        except OSError:
            made.close()
            raise
        return made

    def flows(self, port: int) -> dict[FlowKey, Flow]:
        """The entries that have a client's port."""
        return {
            key: flow
            for key, flow in self.node.table("sw_flows").items()
            if isinstance(key, FlowKey) and isinstance(flow, Flow) and port in key.port
        }

    def forget_served(self, port: int) -> None:
        """The pair that is in the way has aged."""
        for key, flow in self.flows(port).items():
            if flow.backend:
                self.node.map("sw_flows").delete(key.pack())


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        yield World(lab)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("which", SERVERS)
def test_one_socket_asks_both(world: World, stack: ExitStack, which: str, family: int) -> None:
    """Each answer comes from who was asked; the backend knows the second one by another port."""
    pod: Pod = getattr(world, which)
    at, own = (pod.address(family), INTERNAL), world.port()
    stack.callback(world.service(pod, family, 17).close)
    server = stack.enter_context(bound(pod.space, socket.SOCK_DGRAM, *at))
    client = stack.enter_context(
        bound(world.client.space, socket.SOCK_DGRAM, world.client.address(family), own)
    )
    seen: dict[tuple[str, int], set[tuple[str, int]]] = {}
    for to in [(VIP[family], 80), at] * 3 + [at, at, (VIP[family], 80)]:
        client.sendto(b"question", to)
        data, sender = server.recvfrom(100)
        assert data == b"question"
        server.sendto(b"answer", sender)
        data, replier = client.recvfrom(100)
        assert (data, replier[:2]) == (b"answer", to)
        seen.setdefault(to, set()).add(sender[:2])
    assert seen[VIP[family], 80] == {(world.client.address(family), own)}
    [(address, other)] = seen[at]
    assert address == world.client.address(family)
    assert other != own
    named = flow_rows({"sw_flows": world.node.table("sw_flows")}, Names((), lambda _: ""), 0)
    assert [row.scope for row in named if row.ends.source_port == own] == [world.scope] * 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("which", SERVERS)
def test_two_connections_of_one_port(world: World, stack: ExitStack, which: str, family: int) -> None:
    """The second goes on whatever becomes of the first: ended, made again, forgotten."""
    pod: Pod = getattr(world, which)
    at, own = (pod.address(family), INTERNAL), world.port()
    stack.callback(world.service(pod, family, 6).close)
    listening = stack.enter_context(bound(pod.space, socket.SOCK_STREAM, *at))

    def call(to: str, port: int) -> tuple[socket.socket, socket.socket]:
        near = stack.enter_context(world.connect(to, port, own))
        far = stack.enter_context(listening.accept()[0])
        far.settimeout(TIMEOUT_S)
        return near, far

    served = call(VIP[family], 80)
    straight = call(*at)
    for _ in range(2):
        echo_over(*served, size=100_000)
        echo_over(*straight, size=100_000)
    served[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    served[0].close()
    echo_over(*straight)
    served = call(VIP[family], 80)
    echo_over(*served)
    echo_over(*straight)
    assert served[1].getpeername()[1] == own != straight[1].getpeername()[1]
    world.forget_served(own)
    echo_over(*straight, size=100_000)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_may_be_called_again(world: World, stack: ExitStack, family: int) -> None:
    """A connection that stood aside has ended, the one in its way has not."""
    at, own = (world.ruled.address(family), INTERNAL), world.port()
    stack.callback(world.service(world.ruled, family, 6).close)
    listening = stack.enter_context(bound(world.ruled.space, socket.SOCK_STREAM, *at))
    served = stack.enter_context(world.connect(VIP[family], 80, own)), listening.accept()[0]
    stack.enter_context(served[1])
    for _ in range(3):
        near = world.connect(*at, own)
        far, _ = listening.accept()
        with near, far:
            echo_over(near, far)
            [seen] = [flow.tcp[0] for key, flow in world.flows(own).items() if key.scope & SCOPE_ASIDE]
            assert seen == TcpFlag.SYN | TcpFlag.DATA  # of this one alone
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    echo_over(*served)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("which", SERVERS)
def test_errors_find_the_client(world: World, stack: ExitStack, which: str, family: int) -> None:
    pod: Pod = getattr(world, which)
    at, own = (pod.address(family), INTERNAL), world.port()
    stack.callback(world.service(pod, family, 17).close)
    with bound(pod.space, socket.SOCK_DGRAM, *at) as server:
        client = stack.enter_context(
            bound(world.client.space, socket.SOCK_DGRAM, world.client.address(family), own)
        )
        client.sendto(b"question", (VIP[family], 80))
        server.recvfrom(100)
    client.connect(at)
    client.send(b"nobody is there")
    with pytest.raises(OSError, match="refused") as refused:
        client.recv(100)
    assert refused.value.errno == errno.ECONNREFUSED


@pytest.mark.parametrize("family", FAMILIES)
def test_who_is_in_the_middle_of_one_does_not_begin(world: World, stack: ExitStack, family: int) -> None:
    """Of a connection that was there before its port was used for the service, the backend knows that port."""
    at, own = (world.free.address(family), INTERNAL), world.port()
    stack.callback(world.service(world.free, family, 6).close)
    listening = stack.enter_context(bound(world.free.space, socket.SOCK_STREAM, *at))
    straight = stack.enter_context(world.connect(*at, own)), stack.enter_context(listening.accept()[0])
    echo_over(*straight)
    served = (
        stack.enter_context(world.connect(VIP[family], 80, own)),
        stack.enter_context(listening.accept()[0]),
    )
    echo_over(*served)
    before = world.node.dropped(world.client.port, Layer.FLOW, Reason.MARTIAN)
    straight[0].send(b"x")
    assert world.node.dropped(world.client.port, Layer.FLOW, Reason.MARTIAN) > before
    assert all(flow.backend for flow in world.flows(own).values() if not flow.flags & FlowFlag.SECOND)
    echo_over(*served)


def _is_counted(world: World, kind: tuple[int, Layer, Reason], before: int) -> bool:
    return world.node.dropped(*kind) > before


@pytest.mark.parametrize("family", FAMILIES)
def test_nobody_else_sends_by_it(world: World, stack: ExitStack, family: int) -> None:
    """Neither while the other pair is in the way nor when it has gone."""
    at, own = (world.ruled.address(family), INTERNAL), world.port()
    stack.callback(world.service(world.ruled, family, 17).close)
    server = stack.enter_context(bound(world.ruled.space, socket.SOCK_DGRAM, *at))
    address = world.client.address(family)
    client = stack.enter_context(bound(world.client.space, socket.SOCK_DGRAM, address, own))
    for to in (VIP[family], 80), at:
        client.sendto(b"question", to)
        server.recvfrom(100)
    where, ends = world.node.facts.tunnel_ifindex, (packed(address), packed(at[0]))
    datagram = struct.pack("!HHHH", own, INTERNAL, 12, 0) + b"data"
    datagram = fill(datagram, 6, pseudo(family, *ends, 17, len(datagram)) + datagram)
    frame = world.forger.link.host_mac + world.forger.mac + (b"\x08\0" if family == 4 else b"\x86\xdd")
    frame += ip_packet(family, *ends, 17, datagram, 64, 0, 1)
    stack.enter_context(unguarded(world.other, world.forger))
    for layer, reason in (Layer.FLOW, Reason.MARTIAN), (Layer.DECAP, Reason.SPOOFED_IP):
        before = world.node.dropped(where, layer, reason)
        inject(world.forger.space, "eth0", frame)
        poll(reason.name, partial(_is_counted, world, (where, layer, reason), before))
        world.forget_served(own)
