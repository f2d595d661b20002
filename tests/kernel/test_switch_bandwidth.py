"""Bandwidth caps with real packets: TCP keeps to them in both directions, and nobody gets round them."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from samewire.hcn.policies import QOS
from samewire.vfp.constants import Layer, Reason
from tests.support.netlab import Lab, poll
from tests.support.traffic import bound, tcp_pair
from tests.support.worlds import OUT, Underlay, bridged, overlay

pytestmark = [pytest.mark.root]

RATE = 5_000_000  # bytes a second, 40 Mbit/s: little work for a busy machine
SECONDS = 1.5
ROUNDS = 8
FRAME = {4: 1514 / 1448, 6: 1514 / 1428}  # bytes on the wire for a byte of the stream
INNER_FRAME = 1464 / 1398  # the same of what the tunnel carries, over IPv4
PEERS = ("10.9.9.1", "10.9.9.2")
SHAPER = f"tc qdisc add dev eth0 root tbf rate {RATE * 8}bit burst 50000 latency 50ms".split()
EXCEEDED = (Layer.QOS, Reason.RATE)


class World:
    """A node with two capped pods on the underlay and one in an overlay; beside it a cable with the kernel's own
    shaper at both ends.
    """

    def __init__(self, lab: Lab) -> None:
        self.peers = lab.space("left"), lab.space("right")
        lab.join(self.peers[0], "eth0", self.peers[1], "eth0")
        for space, address in zip(self.peers, PEERS, strict=True):
            space.address("eth0", f"{address}/24")
            space.command(*SHAPER)
        self.underlay = Underlay(lab)
        self.node = self.underlay.node(11)
        network = self.node.network(bridged())
        cap = QOS(maximum_outgoing_bandwidth_in_bytes=RATE, maximum_incoming_bandwidth_in_bytes=RATE)
        self.pods = {
            family: self.node.pod(
                network, f"192.168.9.{100 + family}", f"fd09::{100 + family}", policies=[cap]
            )
            for family in (4, 6)
        }
        other = self.underlay.node(12)
        here = self.node.network(overlay(self.node, 1, (other, 2, 4)))
        there = other.network(overlay(other, 2, (self.node, 1, 4)))
        self.tunnelled = self.node.pod(here, "10.1.0.10", "fd01::10", policies=[cap])
        self.remote = other.pod(there, "10.2.0.10", "fd02::10")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        yield World(lab)


def saturate(pairs: list[tuple[socket.socket, socket.socket]], seconds: float) -> list[float]:
    """Send all one can on every (source, sink) at once; bytes a second that arrive on each."""
    chunk = bytes(1 << 16)
    sinks = {sink: i for i, (_, sink) in enumerate(pairs)}
    got = [0] * len(pairs)
    for source, sink in pairs:
        source.setblocking(False)
        sink.setblocking(False)
        _drain(sink)  # what a round before this one left
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        readable, writable, _ = select.select(list(sinks), [source for source, _ in pairs], [], 0.01)
        for source in writable:
            try:
                source.send(chunk)
            except BlockingIOError:
                continue
        for sink in readable:
            got[sinks[sink]] += len(sink.recv(1 << 18))
        if not readable:
            time.sleep(0.001)  # writable all the time: leave the machine to others
    return [count / passed for count in got]


@pytest.mark.parametrize("direction", ["out", "in"])
def test_tcp_keeps_to_the_cap(world: World, direction: str) -> None:
    """A stream of each IP version, of a pod each, and one through the tunnel: the bytes on the wire are within 5 % of
    the cap.

    No shaper gives back what it could not send while the machine stood still for longer than its burst lasts. So
    "not less" is measured against the kernel's own shaper at the same time, and one round of some has to show it;
    "not more" holds in each.
    """
    out = world.underlay.out
    short: list[list[float]] = []
    with ExitStack() as stack:
        pairs = [stack.enter_context(tcp_pair(*world.peers, PEERS[1], 5001))]
        for family, pod in world.pods.items():
            client, server, to = (
                (pod.space, out, OUT[family]) if direction == "out" else (out, pod.space, pod.address(family))
            )
            pairs.append(stack.enter_context(tcp_pair(client, server, to, 5001)))
        near, far = (world.tunnelled, world.remote)[:: 1 if direction == "out" else -1]
        pairs.append(stack.enter_context(tcp_pair(near.space, far.space, far.ip, 5001)))
        for _ in range(ROUNDS):
            rates = saturate(pairs, SECONDS)
            weights = (FRAME[4], *(FRAME[family] for family in world.pods), INNER_FRAME)
            peer, *shares = (rate * weight / RATE for rate, weight in zip(rates, weights, strict=True))
            assert max(shares) < 1.05, shares
            if min(shares) > 0.95 * min(peer, 1):
                break
            short.append([peer, *shares])
    assert len(short) < ROUNDS, short
    for pod in (*world.pods.values(), world.tunnelled):
        assert world.node.dropped(pod.port, *EXCEEDED) == 0, "the shaper leaves nothing to drop"


@pytest.mark.parametrize("family", [4, 6])
def test_a_pod_that_takes_its_shaper_off(world: World, family: int) -> None:
    """The switch's own bucket holds it, and counts."""
    node, pod = world.node, world.pods[family]
    pod.space.command("tc", "qdisc", "del", "dev", "eth0", "root")
    before = node.dropped(pod.port, *EXCEEDED)
    with (
        bound(world.underlay.out, socket.SOCK_DGRAM, OUT[family], 5003) as server,
        pod.space.socket(server.family, socket.SOCK_DGRAM) as client,
    ):
        server.setsockopt(socket.SOL_SOCKET, 33, 1 << 22)  # SO_RCVBUFFORCE
        server.setblocking(False)
        began, got = time.monotonic(), 0
        while (passed := time.monotonic() - began) < 0.5:
            for _ in range(50):
                client.sendto(bytes(1400), (OUT[family], 5003))
            got += _drain(server)
        poll("drops", lambda: node.dropped(pod.port, *EXCEEDED) > before)
        got += _drain(server)
    depth = pod.link.outgoing_burst_bytes + 65536
    assert got <= (RATE * passed + depth) * 1.05


def _drain(server: socket.socket) -> int:
    got = 0
    while True:
        try:
            got += len(server.recv(1 << 16))
        except BlockingIOError:
            return got
