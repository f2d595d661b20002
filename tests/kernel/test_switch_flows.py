"""The life of unified flows: generations, reuse, ageing without a process, a full table, slots and pairs."""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from samewire.errors import KernelError
from samewire.hcn.policies import ACL, AclAction, AclDirection, OutBoundNAT, PortMapping
from samewire.hcn.schema import NetworkType
from samewire.kernel.bpf import BpfMap, SkbContext, UpdateFlag, mount_bpffs, unmount_bpffs
from samewire.vfp.address import parse_interface
from samewire.vfp.compile import compile_node
from samewire.vfp.constants import Counter, FlowFlag, Layer, Reason, TcpFlag
from samewire.vfp.simulate import checksum
from samewire.vfp.simulate.entries import partner_key
from samewire.vfp.tables import Count, Cursors, DropKey, Flow, FlowKey, Id
from tests.support.frames import fill, ip_packet, pseudo
from tests.support.lockstep import together
from tests.support.netlab import Lab, poll
from tests.support.node_rig import Node, Pod
from tests.support.switch_rig import now_tick
from tests.support.traffic import TIMEOUT_S, IcmpSocket, bound, echo_over, inject, tcp_pair
from tests.support.universe import packed
from tests.support.worlds import OUT, Underlay, bridged, node_address, overlay, own

pytestmark = [pytest.mark.root, pytest.mark.kernelcore]

FULL = (Layer.FLOW, Reason.FLOW_TABLE_FULL)
_REDIRECT = 7


def rule(action: AclAction, direction: AclDirection, *, ports: str = "", priority: int = 10) -> ACL:
    """An ACL about the far end's TCP ports (all when empty)."""
    return ACL(action=action, direction=direction, protocols="6", remote_ports=ports, priority=priority)


ALLOW_OUT, ALLOW_IN = rule(AclAction.ALLOW, AclDirection.OUT), rule(AclAction.ALLOW, AclDirection.IN)
BLOCK_OUT, BLOCK_IN = rule(AclAction.BLOCK, AclDirection.OUT), rule(AclAction.BLOCK, AclDirection.IN)


class World:
    """A node with a NAT network."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.underlay = Underlay(lab)
        self.node = self.underlay.node(11)
        network = self.node.network(own(NetworkType.NAT, 8))
        self.pods = [self.node.pod(network, f"10.8.0.{i}", f"fd08::{i}") for i in (10, 11)]
        self.numbers = count(100)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        yield World(lab)


def stays_silent(near: socket.socket, far: socket.socket, node: Node, *where: Any) -> None:
    """What ``near`` sends is dropped and counted there, and does not arrive."""
    before = node.drops().get(where, 0)
    near.send(b"after the change")
    poll("drop", lambda: node.drops().get(where, 0) > before)
    far.setblocking(False)
    with pytest.raises(BlockingIOError):
        far.recv(100)
    far.settimeout(TIMEOUT_S)


@pytest.mark.parametrize("direction", [AclDirection.OUT, AclDirection.IN])
def test_allow_to_block_cuts_a_connection(world: World, direction: AclDirection) -> None:
    """Also one that is up already; the other rules' change does not touch it."""
    node, (a, b) = world.node, world.pods
    out = direction is AclDirection.OUT
    judge, allow, block = (a, ALLOW_OUT, BLOCK_OUT) if out else (b, ALLOW_IN, BLOCK_IN)
    node.policies(judge, allow, OutBoundNAT())
    with tcp_pair(a.space, b.space, b.ip, 81) as (near, far):
        echo_over(near, far)
        redecided = node.counter(Counter.FLOW_REDECIDED)
        node.policies(judge, allow, rule(AclAction.BLOCK, direction, ports="9", priority=1), OutBoundNAT())
        echo_over(near, far)
        assert node.counter(Counter.FLOW_REDECIDED) > redecided
        redecided = node.counter(Counter.FLOW_REDECIDED)
        echo_over(near, far)
        assert node.counter(Counter.FLOW_REDECIDED) == redecided, "one decision a change"
        node.policies(judge, block, OutBoundNAT())
        stays_silent(near, far, node, judge.port, Layer.ACL_OUT if out else Layer.ACL_IN, Reason.BLOCKED)
        node.policies(judge, allow, OutBoundNAT())
        assert far.recv(100) == b"after the change"  # sent again by the kernel
    node.policies(judge)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("to", ["a pod", "outside, translated"])
def test_what_the_target_goes_on_sending_is_cut_too(world: World, to: str, family: int) -> None:
    """A download: without its flow, data that is sent again would be a connection of the server's, which is allowed."""
    node, (a, b), out = world.node, world.pods, world.underlay.out
    server, address = (b.space, b.address(family)) if to == "a pod" else (out, OUT[family])
    judge, allow, block, layer = (
        (b, ALLOW_IN, BLOCK_IN, Layer.ACL_IN) if to == "a pod" else (a, ALLOW_OUT, BLOCK_OUT, Layer.ACL_OUT)
    )
    node.policies(judge, allow)
    with tcp_pair(a.space, server, address, 86) as (near, far):
        echo_over(near, far)
        node.policies(judge, block)
        place = judge.port, layer, Reason.BLOCKED
        before = node.drops().get(place, 0)
        far.send(b"after the change")
        poll("it is sent again", lambda: node.drops().get(place, 0) > before + 1)
        near.setblocking(False)
        with pytest.raises(BlockingIOError):
            near.recv(100)
        near.settimeout(TIMEOUT_S)
        node.policies(judge, allow)
        assert near.recv(100) == b"after the change"
        echo_over(near, far)
    node.policies(judge)


def test_a_reply_on_a_stale_flow_judges_the_initiator(world: World) -> None:
    """The target may not open connections, nor may the initiator be called: what it answers is still welcome."""
    node, (a, b) = world.node, world.pods
    node.policies(b, ALLOW_IN)
    with tcp_pair(a.space, b.space, b.ip, 82) as (near, far):
        echo_over(near, far)
        node.policies(b, BLOCK_OUT, ALLOW_IN)
        node.policies(a, ALLOW_OUT, BLOCK_IN)
        far.send(b"first packet after the change")
        assert near.recv(100) == b"first packet after the change"
        node.policies(a, BLOCK_OUT, ALLOW_IN)
        stays_silent(far, near, node, a.port, Layer.ACL_OUT, Reason.BLOCKED)
    for pod in (a, b):
        node.policies(pod)


def test_policy_of_an_unjudged_connection(world: World) -> None:
    """A connection that needed no flow is judged as soon as there is a rule."""
    node, (a, b) = world.node, world.pods
    with tcp_pair(a.space, b.space, b.ip, 83) as (near, far):
        echo_over(near, far)
        node.policies(b, BLOCK_IN)
        stays_silent(near, far, node, b.port, Layer.ACL_IN, Reason.BLOCKED)
    node.policies(b)


def test_nat_that_is_added_and_taken_away(world: World) -> None:
    """A datagram socket: its flow is made anew with the address that the policy says now."""
    node, pod = world.node, world.pods[0]
    out = world.underlay.out
    network = node.network(overlay(node, 1))
    pod = node.pod(network, "10.1.0.77", "fd01::77", policies=[ALLOW_OUT])
    out.ip("route", "replace", "10.1.0.0/24", "via", node_address(node, 4))
    with bound(out, socket.SOCK_DGRAM, OUT[4], 84) as server:
        opened = pod.space.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with opened:
            opened.bind(("", 4444))

            def seen() -> str:
                opened.sendto(b"x", (OUT[4], 84))
                return str(server.recvfrom(10)[1][0])

            node.policies(pod)
            assert seen() == pod.ip
            node.policies(pod, OutBoundNAT())
            assert seen() == node_address(node, 4)
            node.policies(pod, OutBoundNAT(virtual_ip="192.168.9.99"))
            assert seen() == node_address(node, 4), "an established mapping stays"
    out.ip("route", "del", "10.1.0.0/24")


@pytest.mark.parametrize("family", [4, 6])
def test_an_address_that_the_node_has_lost(world: World, family: int) -> None:
    """Who goes on sending gets the new one: nothing would come to the old one any more."""
    with Lab() as lab:
        node, pod = small_node(lab, world.underlay, 30)
        out, new = world.underlay.out, {4: "192.168.9.33", 6: "fd09::33"}
        with (
            bound(out, socket.SOCK_DGRAM, OUT[family], 84) as server,
            bound(pod.space, socket.SOCK_DGRAM, pod.address(family), 4444) as client,
        ):

            def seen() -> str:
                client.sendto(b"x", (OUT[family], 84))
                sender = server.recvfrom(10)[1]
                server.sendto(b"y", sender)
                assert client.recv(10) == b"y"
                return str(sender[0])

            assert seen() == node_address(node, family)
            for old, other in zip(node.facts.addresses, new.values(), strict=True):
                node.space.ip("address", "del", str(old), "dev", "eth0")
                node.space.ip("address", "add", f"{other}/{old.bits}", "dev", "eth0")
            own_addresses = (f"{new[4]}/24", f"{new[6]}/64")
            node.facts = replace(node.facts, addresses=tuple(map(parse_interface, own_addresses)))
            node.apply(node.owned.replace("node", compile_node(node.facts, node.numbers).everything()))
            node.policies(pod, OutBoundNAT())
            assert seen() == new[family]


def pod_of(world: World, kind: NetworkType) -> Pod:
    """A pod of one type of network; all of them stay until the end."""
    if kind is NetworkType.NAT:
        return world.pods[0]
    node, number = world.node, next(world.numbers)
    if kind is NetworkType.L2BRIDGE:
        return node.pod(node.network(bridged()), f"192.168.9.{number}", f"fd09::{number}")
    return node.pod(node.network(overlay(node, 2)), f"10.2.0.{number}", f"fd02::{number}")


HOST_PORTS = [PortMapping(protocol=17, external_port=8085 + i, internal_port=85 + i) for i in range(2)]


@pytest.mark.parametrize("kind", [NetworkType.NAT, NetworkType.OVERLAY, NetworkType.L2BRIDGE])
def test_a_host_port_that_is_taken_away(world: World, kind: NetworkType) -> None:
    """The pod's answers are dropped: they are not handed to the node, which would send them on as they are. What goes
    through another mapping goes on.
    """
    node, pod = world.node, pod_of(world, kind)
    out = world.underlay.out
    node.policies(pod, *HOST_PORTS)
    with (
        bound(pod.space, socket.SOCK_DGRAM, pod.ip, 85) as server,
        bound(pod.space, socket.SOCK_DGRAM, pod.ip, 86) as other_server,
        bound(out, socket.SOCK_DGRAM, OUT[4]) as client,
    ):
        client.sendto(b"x", (node_address(node, 4), 8085))
        _, sender = server.recvfrom(10)
        client.sendto(b"x", (node_address(node, 4), 8086))
        other_server.recvfrom(10)
        node.policies(pod, HOST_PORTS[1])
        before = node.dropped(pod.port, Layer.FLOW, Reason.NO_ENDPOINT)
        server.sendto(b"late", sender)
        poll("drop", lambda: node.dropped(pod.port, Layer.FLOW, Reason.NO_ENDPOINT) == before + 1)
        other_server.sendto(b"on", sender)
        assert client.recvfrom(10) == (b"on", (node_address(node, 4), 8086))
    node.policies(pod)


@pytest.mark.parametrize("kind", [NetworkType.NAT, NetworkType.OVERLAY, NetworkType.L2BRIDGE])
def test_a_host_port_that_is_moved(world: World, kind: NetworkType) -> None:
    """To another port of the pod: a datagram socket reaches that with its next one."""
    node, pod = world.node, pod_of(world, kind)
    node.policies(pod, HOST_PORTS[0])
    with (
        bound(pod.space, socket.SOCK_DGRAM, pod.ip, 85) as old,
        bound(pod.space, socket.SOCK_DGRAM, pod.ip, 86) as new,
        bound(world.underlay.out, socket.SOCK_DGRAM, OUT[4]) as client,
    ):
        client.sendto(b"x", (node_address(node, 4), 8085))
        assert old.recvfrom(10)[0] == b"x"
        node.policies(pod, replace(HOST_PORTS[0], internal_port=86))
        client.sendto(b"y", (node_address(node, 4), 8085))
        _, sender = new.recvfrom(10)
        new.sendto(b"z", sender)
        assert client.recvfrom(10) == (b"z", (node_address(node, 4), 8085))
    node.policies(pod)


@pytest.mark.parametrize("reset", [False, True])
def test_a_closed_tuple_is_used_again(world: World, reset: bool) -> None:
    """The same source port to the same server at once: a new connection, with a port of the pool again."""
    pod, out = world.pods[0], world.underlay.out
    seen = []
    for _ in range(3):
        with tcp_pair(pod.space, out, OUT[4], 86, source=45000 + reset) as (near, far):
            echo_over(near, far)
            seen.append(far.getpeername())
            if reset:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                far.close()  # the server closes first: its TIME_WAIT is not in the client's way
                assert near.recv(1) == b""
    assert {address for address, _ in seen} == {node_address(world.node, 4)}


def test_a_reset_that_nobody_obeys(world: World) -> None:
    """One that is out of the window, or forged, ends no connection: it is known to be alive when it goes on."""

    def is_reset() -> bool:
        echo_over(near, far)
        return any(flow.tcp[1] & TcpFlag.RST for key, flow in node.flow_table().items() if 88 in key.port)

    pod, node, out = world.pods[0], world.node, world.underlay.out
    with tcp_pair(pod.space, out, OUT[4], 88) as (near, far):
        addresses = socket.inet_aton(OUT[4]), socket.inet_aton(node_address(node, 4))
        reset = struct.pack("!HHIIBBHHH", 88, far.getpeername()[1], 1, 0, 0x50, 4, 0, 0, 0)
        total = checksum.whole(b"".join(addresses) + struct.pack("!HH", 6, len(reset)) + reset)
        with out.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as forged:
            forged.sendto(reset[:16] + total + reset[18:], (node_address(node, 4), 0))
        poll("it is seen", is_reset)
        poll("it is nothing", lambda: not is_reset())


def test_the_nodes_answered_connections_keep_their_port(world: World) -> None:
    """A TCP connection of the node on a pool port is known to be established."""
    node, out = world.node, world.underlay.out
    with tcp_pair(node.space, out, OUT[4], 87, source=50005) as (near, far):
        echo_over(near, far)
        flows = [
            flow
            for key, flow in node.flow_table().items()
            if flow.flags & FlowFlag.HOST and {50005, 87} <= set(key.port)
        ]
        assert [flow.flags & FlowFlag.REPLIED for flow in flows] == [FlowFlag.REPLIED]


def test_the_nodes_datagrams_keep_their_port(world: World) -> None:
    """From a pool port, unanswered (logs, statistics): while they go on, no pod is given the port."""
    node = world.node
    with bound(node.space, socket.SOCK_DGRAM, "", 50006) as sender:

        def flow() -> tuple[FlowKey, Flow]:
            sender.sendto(b"x", (OUT[4], 92))
            (found,) = [item for item in node.flow_table().items() if {50006, 92} <= set(item[0].port)]
            return found

        key, first = flow()
        older = replace(first, seen_tick=(first.seen_tick - 20) % 2**32)
        node.map("sw_flows").update(key.pack(), older.pack())
        assert flow()[1].seen_tick != older.seen_tick


# --- ageing, a full table, slots: nodes of their own, with short times and small tables ---------------------------


def udp_frame(pod: Pod, source: int, port: int, destination: str = OUT[4]) -> bytes:
    """A datagram of the pod, to the outside host when no other is named."""
    own_address, to = packed(pod.ip), packed(destination)
    datagram = source.to_bytes(2, "big") + port.to_bytes(2, "big") + b"\0\x0c\0\0data"
    datagram = fill(datagram, 6, pseudo(4, own_address, to, 17, len(datagram)) + datagram)
    body = ip_packet(4, own_address, to, 17, datagram, 64, 0, 1)
    return pod.link.host_mac + pod.mac + b"\x08\0" + body


def run(node: Node, pod: Pod, frame: bytes) -> int:
    """Run the pod's program on a frame; its verdict."""
    program = node.program("sw_ingress")
    return node.space.run(lambda: program.test_run(frame, SkbContext(ifindex=pod.port))).retval


def orphans(node: Node) -> list[FlowKey]:
    """Entries of pairs whose other half is missing."""
    flows = node.flow_table()
    return [
        key
        for key, flow in flows.items()
        if flow.flags & FlowFlag.PAIR and partner_key(key, flow) not in flows
    ]


def consistent(node: Node) -> bool:
    """Every entry has its slot, and every slot its entry; pairs are whole."""
    slots = {key for _, key in node.table("sw_flow_slots").items() if isinstance(key, FlowKey) and key.family}
    return slots == set(node.flow_table()) and not orphans(node)


_TIMES = ("tcp_half_open", "tcp_established", "tcp_closing", "udp_single", "udp_stream", "icmp", "other")
SHORT = {f"idle_{name}": 0 for name in _TIMES}


def small_node(lab: Lab, underlay: Underlay, number: int, **options: object) -> tuple[Node, Pod]:
    """A node with few flows, and a NATed pod, for as long as the lab."""
    node = underlay.node(number, lab=lab, **options)
    return node, node.pod(node.network(own(NetworkType.NAT, 8)), "10.8.0.10", "fd08::10")


def test_ageing_needs_no_process(world: World, tmp_path: Path) -> None:
    """Everything pinned, every descriptor closed: idle flows go, both halves, with their slots."""
    with Lab() as lab:
        node, pod = small_node(lab, world.underlay, 21, idle=SHORT)
        pins = tmp_path / "bpf"
        mount_bpffs(pins)
        lab.stack.callback(unmount_bpffs, pins)
        for name, found in node.object.maps.items():
            if name.startswith("sw_"):
                found.pin(pins / name)
        for source in range(1, 30):
            assert run(node, pod, udp_frame(pod, source, 53)) == _REDIRECT
        assert len(node.flow_table()) == 58
        node.start_ageing()
        node.object.close()
        with BpfMap.open_pinned(pins / "sw_flows") as flows:
            poll("ageing", lambda: not list(flows.items()))
        with BpfMap.open_pinned(pins / "sw_flow_slots") as slots:
            poll("free slots", lambda: not any(value[-2] for _, value in slots.items()))


def test_every_slot_is_looked_at(world: World) -> None:
    """Flows of one entry side by side: none goes because its other half has."""
    node = world.underlay.node(27, idle=SHORT)
    judged = ACL(action=AclAction.ALLOW, direction=AclDirection.OUT, protocols="17", priority=10)
    network = node.network(own(NetworkType.NAT, 8))
    pod = node.pod(network, "10.8.0.10", "fd08::10", policies=[judged])
    other = node.pod(network, "10.8.0.11", "fd08::11")
    for source in range(1, 50):
        assert run(node, pod, udp_frame(pod, source, 53, other.ip)) == _REDIRECT
    assert len(node.flow_table()) == 49
    node.start_ageing()
    poll("ageing", lambda: not node.flow_table())
    assert not node.occupied_slots()


def test_a_later_tick_is_no_age(world: World) -> None:
    """Another CPU has seen the flow in the next tick already: it is not idle for 2^32 ticks."""
    with Lab() as lab:
        node, pod = small_node(lab, world.underlay, 22, idle={"idle_udp_single": 100})
        assert run(node, pod, udp_frame(pod, 1, 53)) == _REDIRECT
        for key, flow in node.flow_table().items():
            node.map("sw_flows").update(key.pack(), replace(flow, seen_tick=now_tick() + 3).pack())
        node.start_ageing()
        poll("rounds", lambda: node.counter(Counter.AGEING_TICKS) >= 10)
        assert len(node.flow_table()) == 2


@pytest.mark.parametrize("closed", ["near", "far"])
def test_one_end_has_nothing_more_to_say(world: World, closed: str) -> None:
    """What the other sends later still gets there, within an hour: as where kube-proxy sets conntrack's times."""
    with Lab() as lab:
        node, pod = small_node(lab, world.underlay, 28)
        node.start_ageing()
        with tcp_pair(pod.space, world.underlay.out, OUT[4], 84) as ends:
            echo_over(*ends)
            first, last = ends if closed == "near" else ends[::-1]
            first.shutdown(socket.SHUT_WR)
            assert last.recv(1) == b""
            assert left(node, ticks=3000) == 2
            last.send(b"late")
            assert first.recv(100) == b"late"
            assert left(node, ticks=4000) == 0


def deny(node: Node, pod: Pod, near: socket.socket) -> None:
    """An ACL cuts the pod's connection, and a packet of it has met that."""
    node.policies(pod, BLOCK_OUT, OutBoundNAT())
    near.send(b"denied")
    poll("a denied packet", partial(_is_denied, node))


def _is_denied(node: Node) -> bool:
    return any(flow.flags & FlowFlag.DENIED for flow in node.flow_table().values())


def test_a_denied_connection_is_forgotten(world: World) -> None:
    """Its slots and its port of the pool are free two hours after its last packet, not five days."""
    with Lab() as lab, ExitStack() as stack:
        node, pod = small_node(lab, world.underlay, 35)
        node.start_ageing()
        near, far = stack.enter_context(tcp_pair(pod.space, world.underlay.out, OUT[4], 84))
        echo_over(near, far)
        deny(node, pod, near)
        assert left(node, ticks=6900) == 2
        assert left(node, ticks=7000) == 0
        assert not node.occupied_slots()


def test_a_connection_that_is_allowed_again(world: World) -> None:
    """It is as it was before: kept for days."""
    with Lab() as lab, ExitStack() as stack:
        node, pod = small_node(lab, world.underlay, 36)
        node.start_ageing()
        near, far = stack.enter_context(tcp_pair(pod.space, world.underlay.out, OUT[4], 84))
        echo_over(near, far)
        deny(node, pod, near)
        node.policies(pod, OutBoundNAT())
        assert far.recv(100) == b"denied"
        assert left(node, ticks=7000) == 2
        echo_over(near, far)


def test_what_is_denied_is_not_noted(world: World) -> None:
    """A FIN that is dropped has ended nothing: the flow stays while it is sent again, and may get there later."""
    with Lab() as lab, ExitStack() as stack:
        node, pod = small_node(lab, world.underlay, 37)
        near, far = stack.enter_context(tcp_pair(pod.space, world.underlay.out, OUT[4], 84))
        echo_over(near, far)
        deny(node, pod, near)
        near.shutdown(socket.SHUT_WR)
        far.shutdown(socket.SHUT_WR)
        long_ago = (now_tick() - 6000) % 2**32
        for key, flow in node.flow_table().items():
            node.map("sw_flows").update(key.pack(), replace(flow, seen_tick=long_ago).pack())
        poll("that it is sent again", partial(_is_seen_after, node, long_ago))
        assert not any(tcp & TcpFlag.FIN for flow in node.flow_table().values() for tcp in flow.tcp)
        node.policies(pod, OutBoundNAT())
        assert far.recv(100) == b"denied"
        assert far.recv(1) == near.recv(1) == b""


def _is_seen_after(node: Node, tick: int) -> bool:
    """All flows had that tick."""
    return any(flow.seen_tick != tick for flow in node.flow_table().values())


def test_a_denied_handshake_is_soon_forgotten(world: World) -> None:
    """As any that nobody has ended."""
    with Lab() as lab:
        node, pod = small_node(lab, world.underlay, 38)
        node.start_ageing()
        with pod.space.socket(socket.AF_INET, socket.SOCK_STREAM) as opened:
            opened.setblocking(False)
            with pytest.raises(BlockingIOError):
                opened.connect(("192.168.9.99", 80))  # nobody there
            node.policies(pod, BLOCK_OUT, OutBoundNAT())
            poll("a denied packet", partial(_is_denied, node))
            assert left(node, ticks=100) == 0


def test_a_connection_that_has_ended_before(world: World) -> None:
    """A late packet that an ACL has denied does not keep it for longer."""
    with Lab() as lab, ExitStack() as stack:
        node, pod = small_node(lab, world.underlay, 39)
        node.start_ageing()
        near, far = stack.enter_context(tcp_pair(pod.space, world.underlay.out, OUT[4], 84))
        echo_over(near, far)
        near.shutdown(socket.SHUT_WR)
        assert far.recv(1) == b""
        for key, flow in node.flow_table().items():
            node.map("sw_flows").update(key.pack(), replace(flow, flags=flow.flags | FlowFlag.DENIED).pack())
        assert left(node, ticks=3000) == 2
        far.shutdown(socket.SHUT_WR)
        assert near.recv(1) == b""
        assert left(node, ticks=100) == 0


def left(node: Node, ticks: int) -> int:
    """How many entries the timer leaves when nothing has been seen of any for so long."""

    def aged() -> bool:
        seen = (now_tick() - ticks) % 2**32
        for key, flow in node.flow_table().items():
            older = replace(flow, seen_tick=seen)
            try:
                node.map("sw_flows").update(key.pack(), older.pack(), UpdateFlag.EXIST)
            except KernelError as error:
                # ENOENT: it has made room for another meanwhile
                if error.errno != errno.ENOENT:
                    raise
        rounds = node.counter(Counter.AGEING_TICKS)
        poll("rounds", lambda: node.counter(Counter.AGEING_TICKS) >= rounds + 10)
        return all(flow.seen_tick == seen for flow in node.flow_table().values())

    poll("no late acknowledgement", aged)
    return len(node.flow_table())


def test_long_lived_flows_do_not_block_new_ones(world: World) -> None:
    """Half of the table was made in one go and stays; round and round, new flows find a place."""
    with Lab() as lab:
        node, pod = small_node(lab, world.underlay, 23, flows=128, nat_ports=(50000, 51000))
        for source in range(1, 51):
            assert run(node, pod, udp_frame(pod, source, 53)) == _REDIRECT
        stay = set(node.flow_table())
        assert len(stay) == 100
        for source in range(1000, 1600):
            assert run(node, pod, udp_frame(pod, source, 54)) == _REDIRECT
            for key, flow in node.flow_table().items():
                if key not in stay:
                    node.map("sw_flows").delete(key.pack())
                    node.map("sw_flow_slots").update(Id(flow.slot).pack(), bytes(FlowKey.size))
        assert not node.dropped(pod.port, *FULL)


def test_a_full_table(world: World) -> None:
    """Half-open connections make room for new ones; established ones stay; without room it is a counted drop."""
    with Lab() as lab:
        node, pod = small_node(lab, world.underlay, 24, flows=64, nat_ports=(50000, 50999))
        out = world.underlay.out
        with ExitStack() as stack:
            established = [stack.enter_context(tcp_pair(pod.space, out, OUT[4], 88)) for _ in range(10)]
            for near, far in established:
                echo_over(near, far)
            half_open = [
                stack.enter_context(pod.space.socket(socket.AF_INET, socket.SOCK_STREAM)) for _ in range(30)
            ]
            for opened in half_open:
                opened.setblocking(False)
                with pytest.raises(BlockingIOError):
                    opened.connect(("192.168.9.99", 80))  # nobody there
            poll("full", lambda: node.counter(Counter.FLOW_RECYCLED) > 0)
            # A new connection takes the place of one of those.
            new = stack.enter_context(tcp_pair(pod.space, out, OUT[4], 88))
            echo_over(*new)
            assert not node.dropped(pod.port, *FULL)
            for near, far in established:
                echo_over(near, far)
            # Datagrams that go on are not recycled: the table fills up for good.
            dropped = node.dropped(pod.port, *FULL)
            server = stack.enter_context(bound(out, socket.SOCK_DGRAM, OUT[4], 89))

            def is_full() -> bool:
                return node.dropped(pod.port, *FULL) > dropped

            for _ in range(60):
                opened = stack.enter_context(pod.space.socket(socket.AF_INET, socket.SOCK_DGRAM))
                opened.sendto(b"x", (OUT[4], 89))
                poll("an arrival or a drop", lambda: is_full() or bool(select.select([server], [], [], 0)[0]))
                if is_full():
                    break
                sender = server.recvfrom(10)[1]
                _answered(opened, server, sender)
                _let_age(node, sender[1])
                _answered(opened, server, sender)
            assert is_full()
            for near, far in [*established, new]:
                echo_over(near, far)
        assert len(node.flow_table()) <= 64
        assert consistent(node)


def test_who_makes_the_most_flows_loses_the_most(world: World) -> None:
    """A pod that opens flows as fast as it can leaves room for others: they get in, at once, and what lasts stays."""
    with Lab() as lab:
        node, pod = small_node(lab, world.underlay, 32, flows=1024, nat_ports=(50000, 59999))
        out = world.underlay.out
        with ExitStack() as stack:
            held = [stack.enter_context(tcp_pair(pod.space, out, OUT[4], 88)) for _ in range(10)]
            for source in range(1, 4001):
                # Young ones all of them, in one block of slots, with three times as many free ones behind it.
                assert run(node, pod, udp_frame(pod, source, 53)) == _REDIRECT
            assert not node.dropped(pod.port, *FULL)
            assert node.counter(Counter.FLOW_RECYCLED) > 3000
            for near, far in held:
                echo_over(near, far)
        assert consistent(node)


def _single(node: Node, pod: Pod, sources: range) -> None:
    """Flows that nobody has answered; each finds its place."""
    for source in sources:
        assert run(node, pod, udp_frame(pod, source, 53)) == _REDIRECT, source


def test_a_search_for_room_comes_past_free_slots(world: World) -> None:
    """Those of flows that have aged, say: thousands of them are one block, and the search would begin there."""
    with Lab() as lab:
        node, pod = small_node(lab, world.underlay, 43, flows=8192, nat_ports=(40000, 59999))
        _single(node, pod, range(1, 4097))
        used = sorted(flow.slot for flow in node.flow_table().values())
        free, last = max((after - before, before) for before, after in pairwise([-1, *used, node.slots]))
        assert free > 4096
        node.map("sw_cursors").update(Id(0).pack(), Cursors(recycle=last + 1, age=0).pack())
        _single(node, pod, range(4097, 4196))
        assert node.counter(Counter.FLOW_RECYCLED) > 0
        assert not node.dropped(pod.port, *FULL)
        assert consistent(node)


def test_a_search_for_room_comes_past_what_is_kept(world: World) -> None:
    """More flows that go on stand in one block than a search looks at."""
    with Lab() as lab:
        node, pod = small_node(lab, world.underlay, 44, flows=2048, nat_ports=(40000, 59999))
        _single(node, pod, range(1, 201))
        kept = node.flow_table()
        for key, flow in kept.items():
            node.map("sw_flows").update(key.pack(), replace(flow, flags=flow.flags | FlowFlag.STREAM).pack())
        _single(node, pod, range(201, 1200))
        assert not node.dropped(pod.port, *FULL)
        assert node.flow_table().keys() >= kept.keys()
        assert consistent(node)


def test_a_search_for_room_takes_no_half_of_what_is_being_made(world: World) -> None:
    """A second entry whose first another CPU is just about to insert, all around it what may go."""
    with Lab() as lab:
        node, pod = small_node(lab, world.underlay, 45, flows=64, nat_ports=(40000, 59999))
        _single(node, pod, range(1, 2))
        ((first, flow),) = [item for item in node.flow_table().items() if not item[1].flags & FlowFlag.SECOND]
        _forget(node, first, flow)
        ((second, held),) = node.flow_table().items()
        young = replace(held, seen_tick=now_tick() + 60)  # however long this takes
        node.map("sw_flows").update(second.pack(), young.pack())
        _single(node, pod, range(2, 400))
        assert node.counter(Counter.FLOW_RECYCLED) > 300
        assert second in node.flow_table()


@pytest.mark.parametrize("family", [4, 6])
def test_answered_pings_keep_nobody_out(world: World, family: int) -> None:
    """Nor are they connections because somebody has answered them once."""
    with Lab() as lab, ExitStack() as stack:
        node, pod = small_node(lab, world.underlay, 40 + family, flows=64, nat_ports=(50000, 50999))
        out = world.underlay.out
        held = stack.enter_context(tcp_pair(pod.space, out, OUT[family], 88))
        echo_over(*held)
        pinger = stack.enter_context(IcmpSocket(pod.space, family))
        for identifier in range(1, 101):
            pinger.request(OUT[family], identifier)
            pinger.reply(identifier)
        echo_over(*stack.enter_context(tcp_pair(pod.space, out, OUT[family], 89)))
        echo_over(*held)
        assert not node.dropped(pod.port, *FULL)


def test_handshakes_that_nobody_ends(world: World) -> None:
    """SYNs from addresses where nobody is: that the pod answers them makes them no connections to be kept for days."""
    with Lab() as lab, ExitStack() as stack:
        node, pod = small_node(lab, world.underlay, 33, flows=16, nat_ports=(50000, 50999))
        node.policies(pod, PortMapping(protocol=6, external_port=8200, internal_port=91))
        stack.enter_context(bound(pod.space, socket.SOCK_STREAM, pod.ip, 91))

        def is_answered(source: int) -> bool:
            """It is asked again until it is: answers that are sent again may take the place that it had."""
            inject(world.underlay.out, "eth0", _syn_from_nobody(node, source, 8200))
            return any(
                source in key.port and flow.flags & FlowFlag.REPLIED
                for key, flow in node.flow_table().items()
            )

        for source in range(1000, 1030):
            poll("an answer", partial(is_answered, source))
        assert not node.dropped(node.facts.uplink_ifindex, *FULL)
        assert node.flow_table()
        node.start_ageing()
        assert left(node, ticks=100) == 0
        assert not node.occupied_slots()


def test_a_drop_of_a_kind_for_which_there_is_no_room(world: World) -> None:
    """It is counted, if not by its kind; kinds that are known go on."""
    with Lab() as lab:
        node, pod = small_node(lab, world.underlay, 34)
        drops = node.map("sw_drops")
        martian, spoofed = (udp_frame(pod, 1, 53, to) for to in ("127.0.0.1", OUT[4]))
        spoofed = spoofed[:6] + bytes.fromhex("020000000001") + spoofed[12:]
        run(node, pod, martian)
        kinds = [DropKey(10**6 + number, 0, 1, 1, 1).pack() for number in range(drops.max_entries)]
        drops.update_batch((key, Count(1).pack()) for key in kinds[: drops.max_entries - len(node.drops())])
        for _ in range(3):
            run(node, pod, martian)
            run(node, pod, spoofed)
        assert node.dropped(pod.port, Layer.GUARD, Reason.MARTIAN) == 4
        assert node.dropped(pod.port, Layer.GUARD, Reason.SPOOFED_MAC) == 0
        assert node.counter(Counter.DROPS_UNNAMED) == 3


def _syn_from_nobody(node: Node, source: int, port: int) -> bytes:
    """As the wire brings it: a SYN to the node."""
    client, to = packed("192.168.9.77"), packed(node_address(node, 4))
    segment = struct.pack("!HHIIBBHHH", source, port, 1, 0, 0x50, 2, 1000, 0, 0)
    segment = fill(segment, 16, pseudo(4, client, to, 6, len(segment)) + segment)
    body = ip_packet(4, client, to, 6, segment, 64, 0, 1)
    return node.facts.uplink_mac + bytes.fromhex("020000000077") + b"\x08\0" + body


def _answered(client: socket.socket, server: socket.socket, sender: tuple[str, int]) -> None:
    """The client gets a datagram."""
    server.sendto(b"y", sender)
    assert client.recv(10) == b"y"


def _let_age(node: Node, port: int) -> None:
    """As if the flows of a port had not been used for some ticks."""
    for key, flow in node.flow_table().items():
        if port in key.port:
            older = replace(flow, seen_tick=(flow.seen_tick - 3) % 2**32)
            node.map("sw_flows").update(key.pack(), older.pack())


def _ask(node: Node, pod: Pod, server: socket.socket, stack: ExitStack, *, again: bool) -> None:
    """A question to port 89 from a new socket, and its answer; again: and another one later."""
    opened = stack.enter_context(pod.space.socket(socket.AF_INET, socket.SOCK_DGRAM))
    opened.settimeout(TIMEOUT_S)
    for later in range(1 + again):
        opened.sendto(b"x", (OUT[4], 89))
        sender = server.recvfrom(10)[1]
        if later:
            _let_age(node, sender[1])
        _answered(opened, server, sender)


def test_answered_questions_make_room(world: World) -> None:
    """DNS: each look-up has a port of its own and is over with its answer; the table need not hold them all."""
    with Lab() as lab, ExitStack() as stack:
        node, pod = small_node(lab, world.underlay, 28, flows=16, nat_ports=(50000, 50999))
        server = stack.enter_context(bound(world.underlay.out, socket.SOCK_DGRAM, OUT[4], 89))
        _ask(node, pod, server, stack, again=True)
        (stream,) = [key for key, flow in node.flow_table().items() if flow.flags & FlowFlag.STREAM]
        for _ in range(60):
            _ask(node, pod, server, stack, again=False)
            _let_age(node, 89)
        assert node.counter(Counter.FLOW_RECYCLED) > 0
        assert not node.dropped(pod.port, *FULL)
        assert stream in node.flow_table()
        assert consistent(node)


def test_answered_questions_are_soon_forgotten(world: World) -> None:
    """What goes on after its answer is kept for as long as a stream."""
    with Lab() as lab, ExitStack() as stack:
        node, pod = small_node(lab, world.underlay, 29, idle={"idle_udp_single": 1, "idle_udp_stream": 1000})
        server = stack.enter_context(bound(world.underlay.out, socket.SOCK_DGRAM, OUT[4], 89))
        _ask(node, pod, server, stack, again=True)
        streams = set(node.flow_table())
        for _ in range(5):
            _ask(node, pod, server, stack, again=False)
        assert len(node.flow_table()) == 12
        _let_age(node, 89)
        node.start_ageing()
        poll("ageing", lambda: set(node.flow_table()) == streams)
        rounds = node.counter(Counter.AGEING_TICKS)
        poll("rounds", lambda: node.counter(Counter.AGEING_TICKS) >= rounds + 10)
        assert set(node.flow_table()) == streams


def test_nothing_leaks_in_a_churn(world: World) -> None:
    """Two CPUs make the same and different flows while the timer removes them: slots and entries agree."""
    with Lab() as lab:
        node, pod = small_node(lab, world.underlay, 25, flows=256, nat_ports=(50000, 50999), idle=SHORT)
        node.start_ageing()
        frames = [
            [udp_frame(pod, 1000 + i // 2 + 5000 * (i % 2) * who, 53) for i in range(3000)] for who in (0, 1)
        ]
        # By the pod's interface: a test run of 6.1 lets the timer in between, which never comes to a packet.
        with (
            pod.space.socket(socket.AF_PACKET, socket.SOCK_RAW) as one,
            pod.space.socket(socket.AF_PACKET, socket.SOCK_RAW) as other,
        ):
            wires = (one, other)
            for wire in wires:
                wire.bind(("eth0", 0))
            together(lambda who, i: wires[who].send(frames[who][i]), 3000)
        poll("consistency", lambda: consistent(node))
        poll("an empty table", lambda: not node.flow_table())
        assert not node.occupied_slots()
        made, gone = node.counter(Counter.FLOW_INSERTS), node.counter(Counter.FLOWS_REMOVED)
        assert made == gone > 0


@pytest.mark.parametrize("age", [0, 10])
def test_a_second_entry_without_a_first(world: World, age: int) -> None:
    """A young one is another CPU's, about to be completed, and is left alone; an old one is a leftover."""
    node, pod = world.node, world.pods[1]
    out, port = world.underlay.out, 8190 + age
    node.policies(pod, PortMapping(protocol=17, external_port=port, internal_port=91))
    with (
        bound(pod.space, socket.SOCK_DGRAM, pod.ip, 91) as server,
        bound(out, socket.SOCK_DGRAM, OUT[4]) as client,
    ):
        client.sendto(b"one", (node_address(node, 4), port))
        assert server.recvfrom(10)[1] == client.getsockname()
        source = client.getsockname()[1]
        mine = {key: flow for key, flow in node.flow_table().items() if source in key.port}
        (first,) = [key for key, flow in mine.items() if not flow.flags & FlowFlag.SECOND]
        (second,) = [key for key, flow in mine.items() if flow.flags & FlowFlag.SECOND]
        _forget(node, first, mine[first])
        held = replace(mine[second], seen_tick=now_tick() - age)
        node.map("sw_flows").update(second.pack(), held.pack())
        client.sendto(b"two", (node_address(node, 4), port))
        sender = server.recvfrom(10)[1]
        assert (sender == client.getsockname()) == bool(age), "moved to a port of the pool unless it is old"
        server.sendto(b"back", sender)
        assert client.recvfrom(10) == (b"back", (node_address(node, 4), port))
    node.policies(pod)


def _forget(node: Node, key: FlowKey, flow: Flow) -> None:
    node.map("sw_flows").delete(key.pack())
    node.map("sw_flow_slots").update(Id(flow.slot).pack(), bytes(FlowKey.size))
