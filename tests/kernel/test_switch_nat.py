"""OutBoundNAT with real packets: whom it translates and how, the port pool, and who else uses its ports."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from msgspec.structs import replace

from samewire.hcn.policies import OutBoundNAT
from samewire.hcn.schema import NetworkType
from samewire.kernel.bpf import SkbContext
from samewire.vfp.constants import Counter, FlowFlag, Layer, Reason, TcpFlag
from samewire.vfp.diff import Put
from samewire.vfp.simulate.packet import parse
from samewire.vfp.tables import Config, Flow, FlowKey
from tests.support.frames import fill, ip_packet, pseudo
from tests.support.lockstep import together
from tests.support.netlab import Lab, poll
from tests.support.node_rig import Node, Pod
from tests.support.traffic import TIMEOUT_S, IcmpSocket, bound, echo_over, ping, tcp, tcp_pair, udp
from tests.support.universe import packed
from tests.support.worlds import FAR, OUT, Underlay, node_address, own

pytestmark = [pytest.mark.root]

FAMILIES = (4, 6)
POOL = (50000, 50003)
EXHAUSTED = (Layer.NAT, Reason.NAT_EXHAUSTED)
VIRTUAL = {4: "192.168.9.77", 6: "fd09::77"}


class World:
    """A node with a port pool of four, one with the usual, and a pod on each."""

    def __init__(self, lab: Lab) -> None:
        self.underlay = Underlay(lab)
        self.node = self.underlay.node(11)
        self.small = self.underlay.node(12, nat_ports=POOL)
        self.pods = {node: self._pods(node) for node in (self.node, self.small)}

    @staticmethod
    def _pods(node: Node) -> list[Pod]:
        network = node.network(own(NetworkType.NAT, 8))
        return [node.pod(network, f"10.8.0.{i}", f"fd08::{i}") for i in (10, 11)]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        yield World(lab)


@pytest.mark.parametrize("family", FAMILIES)
def test_exceptions_keep_the_pods_address(world: World, family: int) -> None:
    """Exception: the outside sees the pod itself (and has a way back to it)."""
    node, pod = world.node, world.pods[world.node][0]
    out = world.underlay.out
    node.policies(pod, OutBoundNAT(exceptions=(f"{OUT[4]}/32", f"{OUT[6]}/128")))
    prefix = "10.8.0.0/24" if family == 4 else "fd08::/64"
    out.ip("route", "replace", prefix, "via", node_address(node, family))
    # Not NATed and not on the underlay: the answer finds the pod through the node's own stack.
    node.space.set(
        *(("ipv4", "ip_forward") if family == 4 else ("ipv6", "conf", "all", "forwarding")), value=1
    )
    try:
        assert udp(pod.space, out, OUT[family], 70).client[0] == pod.address(family)
        assert udp(pod.space, world.underlay.far, FAR[family], 70).client[0] == node_address(node, family)
    finally:
        node.policies(pod)
        out.ip("route", "del", prefix)


@pytest.mark.parametrize("family", FAMILIES)
def test_destinations_and_virtual_ip(world: World, family: int) -> None:
    """With Destinations only those are translated; VirtualIP is the address used."""
    node, pod = world.node, world.pods[world.node][0]
    node.space.address("eth0", f"{VIRTUAL[family]}/{32 if family == 4 else 128}")
    destination = f"{OUT[family]}/{32 if family == 4 else 128}"
    node.policies(pod, OutBoundNAT(virtual_ip=VIRTUAL[family], destinations=(destination,)), OutBoundNAT())
    try:
        for exchange in (tcp, udp):
            assert exchange(pod.space, world.underlay.out, OUT[family], 71).client[0] == VIRTUAL[family]
            seen = exchange(pod.space, world.underlay.far, FAR[family], 71)
            assert seen.client[0] == node_address(node, family)
    finally:
        node.policies(pod)


@pytest.mark.parametrize("family", FAMILIES)
def test_echo_with_many_identifiers(world: World, family: int) -> None:
    """Two pods, the same identifiers at once: every reply comes to who asked."""
    pods = world.pods[world.node]
    with ExitStack() as stack:
        sockets = [stack.enter_context(IcmpSocket(pod.space, family)) for pod in pods]
        identifiers = [1, 2, 999, 50000, 50001, 65535]
        for identifier in identifiers:
            for sequence, opened in enumerate(sockets):
                opened.request(OUT[family], identifier, sequence + 1)
        for identifier in identifiers:
            for sequence, opened in enumerate(sockets):
                opened.reply(identifier, sequence + 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_explicit_binds_of_the_node_are_avoided(world: World, family: int) -> None:
    """The node holds three of the pool's four ports towards one remote end: the pod gets the fourth."""
    node, pod = world.small, world.pods[world.small][0]
    out = world.underlay.out
    with ExitStack() as stack:
        server = stack.enter_context(bound(out, socket.SOCK_DGRAM, OUT[family], 72 + family))
        held = []
        for port in range(POOL[0], POOL[1]):
            mine = stack.enter_context(
                bound(node.space, socket.SOCK_DGRAM, "::" if family == 6 else "", port)
            )
            mine.sendto(b"node", (OUT[family], 72 + family))
            server.recvfrom(100)
            held.append(mine)
        one = stack.enter_context(pod.space.socket(server.family, socket.SOCK_DGRAM))
        one.settimeout(TIMEOUT_S)
        one.sendto(b"pod", (OUT[family], 72 + family))
        data, sender = server.recvfrom(100)
        assert (data, sender[:2]) == (b"pod", (node_address(node, family), POOL[1]))
        # Both get what is theirs.
        server.sendto(b"to pod", sender)
        assert one.recvfrom(100)[0] == b"to pod"
        for mine in held:
            server.sendto(b"to node", (node_address(node, family), mine.getsockname()[1]))
            assert mine.recvfrom(100)[0] == b"to node"
        assert node.counter(Counter.HOST_FLOWS) >= 3


@pytest.mark.parametrize("family", FAMILIES)
def test_echo_identifiers_of_the_node_are_avoided(world: World, family: int) -> None:
    node, pod = world.small, world.pods[world.small][0]
    with IcmpSocket(node.space, family) as mine, IcmpSocket(pod.space, family) as theirs:
        for identifier in range(POOL[0], POOL[1]):
            mine.request(FAR[family], identifier)
            mine.reply(identifier)
        theirs.request(FAR[family], 7)
        theirs.reply(7)
        for identifier in range(POOL[0], POOL[1]):
            mine.request(FAR[family], identifier, 2)
            mine.reply(identifier, 2)
    flows = [flow for key, flow in node.flow_table().items() if key.protocol in (1, 58)]
    assert sum(1 for flow in flows if flow.flags & FlowFlag.SECOND) >= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_full_pool_is_a_counted_drop_and_recovers(world: World, family: int) -> None:
    node, pod = world.small, world.pods[world.small][1]
    out, port = world.underlay.out, 80 + family
    with bound(out, socket.SOCK_DGRAM, OUT[family], port) as server, ExitStack() as stack:
        senders = [stack.enter_context(pod.space.socket(server.family, socket.SOCK_DGRAM)) for _ in range(5)]
        before = node.dropped(pod.port, *EXHAUSTED)
        for one in senders:
            one.sendto(b"x", (OUT[family], port))
        ports = {server.recvfrom(10)[1][1] for _ in range(4)}
        assert ports == set(range(POOL[0], POOL[1] + 1))
        poll("the drop", lambda: node.dropped(pod.port, *EXHAUSTED) == before + 1)
        # The same port to another remote end is free.
        senders[4].sendto(b"y", (FAR[family], port))
        # Now, and not before: what has no answer is forgotten within two seconds.
        ((key, config),) = node.table("sw_config").items()
        assert isinstance(config, Config)
        stack.callback(node.apply, [Put("sw_config", key, config)])
        node.apply([Put("sw_config", key, replace(config, idle_udp_single=0))])
        node.start_ageing()

        def recovered() -> bool:
            senders[4].sendto(b"late", (OUT[family], port))
            server.setblocking(False)
            try:
                return server.recvfrom(10)[0] == b"late"
            except BlockingIOError:
                return False

        poll("a port", recovered)
    assert node.counter(Counter.FLOW_AGED) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_connections_that_have_ended_make_room(world: World, family: int) -> None:
    """Many short ones to one remote end: where no port is free, one that only waits to be forgotten will do."""
    node, pods, out = world.small, world.pods[world.small], world.underlay.out
    before = sum(node.dropped(pod.port, *EXHAUSTED) for pod in pods)

    with tcp_pair(pods[0].space, out, OUT[family], 7400) as lasting:
        lasts = set(node.flow_table())

        def over() -> dict[FlowKey, Flow] | None:
            flows = {key: flow for key, flow in node.flow_table().items() if 7400 in key.port}
            short = {key: flow for key, flow in flows.items() if key not in lasts}
            ended = all((flow.tcp[0] | flow.tcp[1]) & TcpFlag.FIN for flow in short.values())
            return short if ended else None

        for i in range(3 * (POOL[1] - POOL[0] + 1)):
            with tcp_pair(pods[i % 2].space, out, OUT[family], 7400) as pair:
                echo_over(*pair)
            poll("both ends closed", lambda: over() is not None)
            for key, flow in (over() or {}).items():
                aged = replace(flow, seen_tick=flow.seen_tick - 2)
                node.map("sw_flows").update(key.pack(), aged.pack())
        echo_over(*lasting)
    assert sum(node.dropped(pod.port, *EXHAUSTED) for pod in pods) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_questions_that_were_answered_make_room(world: World, family: int) -> None:
    """Look-ups at one resolver, a socket each: who waits, or goes on, keeps the port; who had the answer does not."""
    node, pod, out, port = world.small, world.pods[world.small][0], world.underlay.out, 7500 + family

    def age(ticks: int) -> None:
        for key, flow in node.flow_table().items():
            if port in key.port:
                aged = replace(flow, seen_tick=flow.seen_tick - ticks)
                node.map("sw_flows").update(key.pack(), aged.pack())

    with bound(out, socket.SOCK_DGRAM, OUT[family], port) as server, ExitStack() as stack:

        def ask(sender: socket.socket) -> int:
            sender.sendto(b"?", (OUT[family], port))
            return int(server.recvfrom(10)[1][1])

        def answer(sender: socket.socket, to: int) -> None:
            server.sendto(b"!", (node_address(node, family), to))
            assert sender.recvfrom(10)[0] == b"!"

        senders = [stack.enter_context(pod.space.socket(server.family, socket.SOCK_DGRAM)) for _ in range(6)]
        for sender in senders:
            sender.settimeout(TIMEOUT_S)
        waiting, stream, once, again, young, old = senders
        ports = {sender: ask(sender) for sender in (waiting, stream, once, again)}
        for sender in (stream, once, again):
            answer(sender, ports[sender])
        age(2)
        answer(stream, ports[stream])
        before = node.dropped(pod.port, *EXHAUSTED)
        young.sendto(b"?", (OUT[family], port))
        poll("the drop", lambda: node.dropped(pod.port, *EXHAUSTED) == before + 1)
        age(6)
        assert {ask(old), ask(young)} == {ports[once], ports[again]}
        for sender in (waiting, stream):
            answer(sender, ports[sender])
        once.sendto(b"?", (OUT[family], port))
        poll("the drop", lambda: node.dropped(pod.port, *EXHAUSTED) == before + 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_pings_that_were_answered_make_room(world: World, family: int) -> None:
    node, pod = world.small, world.pods[world.small][1]
    before = node.dropped(pod.port, *EXHAUSTED)
    with IcmpSocket(pod.space, family) as opened:
        for identifier in range(3 * (POOL[1] - POOL[0] + 1)):
            opened.request(OUT[family], identifier)
            opened.reply(identifier)
            for key, flow in node.flow_table().items():
                if key.protocol in (1, 58):
                    aged = replace(flow, seen_tick=flow.seen_tick - 4)
                    node.map("sw_flows").update(key.pack(), aged.pack())
    assert node.dropped(pod.port, *EXHAUSTED) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_pings_whose_identifier_is_zero(world: World, family: int) -> None:
    """`ping -e 0`: an identifier like any other, and both pods that use it get their own answers."""
    with ExitStack() as stack:
        for pod in world.pods[world.node]:
            opened = stack.enter_context(IcmpSocket(pod.space, family))
            opened.request(OUT[family], 0)
            assert opened.reply(0).source == OUT[family]


def test_protocols_without_ports_share_an_address_once(world: World) -> None:
    """GRE has nothing to tell connections apart by: the first pod has it, the second is a counted drop."""
    node, (a, b) = world.node, world.pods[world.node]
    with (
        world.underlay.out.socket(socket.AF_INET, socket.SOCK_RAW, 47) as server,
        a.space.socket(socket.AF_INET, socket.SOCK_RAW, 47) as one,
        b.space.socket(socket.AF_INET, socket.SOCK_RAW, 47) as two,
    ):
        for opened in (server, one, two):
            opened.settimeout(TIMEOUT_S)
        one.sendto(b"gre!", (OUT[4], 0))
        data, sender = server.recvfrom(100)
        assert (data[20:], sender[0]) == (b"gre!", node_address(node, 4))
        two.sendto(b"gre!", (OUT[4], 0))
        poll("drop", lambda: node.dropped(b.port, Layer.NAT, Reason.NAT_PROTOCOL) == 1)
        server.sendto(b"back", sender)
        assert one.recvfrom(100)[0][20:] == b"back"


def _syn(pod: Pod, family: int, source: int, port: int) -> bytes:
    own_address, to = packed(pod.address(family)), packed(OUT[family])
    segment = source.to_bytes(2, "big") + port.to_bytes(2, "big") + bytes(8) + b"\x50\x02" + bytes(6)
    segment = fill(segment, 16, pseudo(family, own_address, to, 6, len(segment)) + segment)
    frame = pod.link.host_mac + pod.mac + (b"\x08\0" if family == 4 else b"\x86\xdd")
    return frame + ip_packet(family, own_address, to, 6, segment, 64, 0, 1)


def _translated(node: Node, pod: Pod, frame: bytes) -> int:
    """The source port that the pod's program gives a frame, 0 when it drops it."""
    program = node.program("sw_ingress")
    result = node.space.run(lambda: program.test_run(frame, SkbContext(ifindex=pod.port)))
    return parse(bytearray(result.data)).tuple.source_port if result.retval == 7 else 0


@pytest.mark.parametrize("family", FAMILIES)
def test_two_cpus_create_the_same_flow(world: World, family: int) -> None:
    """Both get the same port, and nothing is left of the loser's attempt."""
    node, pod = world.node, world.pods[world.node][0]
    count, port = 100, 90 + family
    frames = [_syn(pod, family, 20000 + i, port) for i in range(count)]
    results = together(lambda who, i: _translated(node, pod, frames[i]), count)
    assert all(one == other != 0 for one, other in results)
    assert len({one for one, _ in results}) == count
    made = [key for key in node.flow_table() if port in key.port and key.family == family]
    assert len(made) == 2 * count
    assert node.occupied_slots() == len(node.flow_table())


@pytest.mark.parametrize("family", FAMILIES)
def test_two_cpus_want_the_same_nat_port(world: World, family: int) -> None:
    """Different connections to one remote end from two CPUs, until the pool is nearly used up: no port twice."""
    node, pods = world.node, world.pods[world.node]
    count, port = 60, 100 + family
    frames = [[_syn(pod, family, 30000 + i, port) for i in range(count)] for pod in pods]
    before = sum(node.dropped(pod.port, *EXHAUSTED) for pod in pods)
    results = together(lambda who, i: _translated(node, pods[who], frames[who][i]), count)
    ports = [one for pair in results for one in pair]
    failed = ports.count(0)
    assert len(set(ports) - {0}) == 2 * count - failed
    assert sum(node.dropped(pod.port, *EXHAUSTED) for pod in pods) == before + failed


def _question(pod: Pod, family: int, source: int, port: int) -> bytes:
    own_address, to = packed(pod.address(family)), packed(OUT[family])
    datagram = source.to_bytes(2, "big") + port.to_bytes(2, "big") + b"\0\x0a\0\0?\0"
    datagram = fill(datagram, 6, pseudo(family, own_address, to, 17, len(datagram)) + datagram)
    frame = pod.link.host_mac + pod.mac + (b"\x08\0" if family == 4 else b"\x86\xdd")
    return frame + ip_packet(family, own_address, to, 17, datagram, 64, 0, 1)


@pytest.mark.parametrize("same", [True, False], ids=["one-flow", "two-flows"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_cpus_take_the_port_of_an_answered_question(world: World, family: int, same: bool) -> None:
    """From a full pool, from two CPUs at once: a port has one holder, who hears the answers to it."""
    node, pod = world.small, world.pods[world.small][0]
    size, port = POOL[1] - POOL[0] + 1, 7600 + 2 * family + same

    def entries(second: int) -> dict[FlowKey, Flow]:
        found = {key: flow for key, flow in node.flow_table().items() if port in key.port}
        return {key: flow for key, flow in found.items() if flow.flags & FlowFlag.SECOND == second}

    def answered(key: FlowKey, flow: Flow) -> None:
        over = replace(flow, flags=flow.flags | FlowFlag.REPLIED, seen_tick=flow.seen_tick - 10)
        node.map("sw_flows").update(key.pack(), over.pack())

    def at_once(frames: list[list[bytes]]) -> list[tuple[int, int]]:
        return together(lambda who, i: _translated(node, pod, frames[who][i]), size)

    for turn in range(100):
        first = 1000 + turn * 100
        for i in range(8 * size):
            _translated(node, pod, _question(pod, family, first + i, port))
        for kind in (0, FlowFlag.SECOND):
            for key, flow in entries(kind).items():
                answered(key, flow)
        frames = [
            [_question(pod, family, first + 50 + i + who * (not same) * size, port) for i in range(size)]
            for who in range(2)
        ]
        results = at_once(frames)
        assert not same or all(one == other or not one * other for one, other in results)
        held = [number for pair in results for number in (set(pair) if same else pair) if number]
        assert len(held) == len(set(held)), "a port was given twice"
        assert len(entries(0)) == len(entries(FlowFlag.SECOND)), "half of a pair is missing"


@pytest.mark.parametrize("family", FAMILIES)
def test_no_packet_is_lost_when_two_cpus_begin(world: World, family: int) -> None:
    """Real datagrams of one new connection from two CPUs at once: both arrive, from one port."""
    pod, count = world.pods[world.node][0], 50
    port = 110 + family
    any_address = "::" if family == 6 else ""
    with ExitStack() as stack:
        server = stack.enter_context(bound(world.underlay.out, socket.SOCK_DGRAM, OUT[family], port))
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        senders: list[list[socket.socket]] = [[], []]
        for i in range(count):
            for mine in senders:
                one = stack.enter_context(pod.space.socket(server.family, socket.SOCK_DGRAM))
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                one.bind((any_address, 21000 + i))
                mine.append(one)

        def send(who: int, i: int) -> int:
            return senders[who][i].sendto(i.to_bytes(4, "big"), (OUT[family], port))

        together(send, count)
        seen: dict[bytes, list[int]] = {}
        for _ in range(2 * count):
            data, sender = server.recvfrom(10)
            seen.setdefault(data, []).append(sender[1])
    assert len(seen) == count
    assert all(len(ports) == 2 and ports[0] == ports[1] for ports in seen.values())
    assert ping(pod.space, OUT[family]).source == OUT[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_endpoint_uses_no_more_ports_of_the_pool_than_it_may(world: World, family: int) -> None:
    """MaxPortPoolUsage: so many at a time to one remote end, the same ones to others; nobody else is bound by it."""
    node, (capped, free) = world.node, world.pods[world.node]
    out, ports = world.underlay.out, (210 + family, 220 + family)
    node.policies(capped, OutBoundNAT(max_port_pool_usage=3))
    node.policies(free, OutBoundNAT())
    before, others = (node.dropped(pod.port, *EXHAUSTED) for pod in (capped, free))

    def used(pod: Pod, port: int, expected: int) -> set[int]:
        with bound(out, socket.SOCK_DGRAM, OUT[family], port) as server, ExitStack() as stack:
            for _ in range(5):
                sender = stack.enter_context(pod.space.socket(server.family, socket.SOCK_DGRAM))
                sender.sendto(b"x", (OUT[family], port))
            return {server.recvfrom(10)[1][1] for _ in range(expected)}

    try:
        mine = used(capped, ports[0], 3)
        assert max(mine) - min(mine) == 2
        poll("the drops", lambda: node.dropped(capped.port, *EXHAUSTED) == before + 2)
        assert used(capped, ports[1], 3) == mine
        assert len(used(free, ports[0], 5)) == 5
        assert node.dropped(free.port, *EXHAUSTED) == others
    finally:
        node.policies(capped)
        node.policies(free)
