"""Direct Server Return with real packets: the client's address stays, and replies do not pass the first node."""

from __future__ import annotations

import itertools
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP, UDPerror
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6
from scapy.layers.l2 import Ether

from samewire.hcn.policies import ACL, AclAction, AclDirection, OutBoundNAT
from samewire.vfp.address import mac_text, parse_address, parse_prefix
from samewire.vfp.compile.direct import DIRECT_VNI
from samewire.vfp.constants import (
    SCOPE_ANY,
    SCOPE_DIRECT,
    SCOPE_OUTSIDE,
    SCOPE_UPLINK,
    FlowFlag,
    Layer,
    Reason,
    RouteKind,
    ServiceFlag,
)
from samewire.vfp.diff import Put, Remove
from samewire.vfp.tables import DirectKey, Id, Nexthop, Port, Portmap, RouteKey, Vni
from tests.kernel.test_switch_flows import left
from tests.kernel.test_switch_services_icmp import careful
from tests.support.netlab import Lab, poll
from tests.support.node_rig import Node, Pod
from tests.support.services import Balancer, Target
from tests.support.traffic import (
    TIMEOUT_S,
    Seen,
    Sniffer,
    bound,
    echo_over,
    family_of,
    inject,
    stream,
    tcp,
    tcp_pair,
    too_long,
    udp,
)
from tests.support.worlds import FAR, FAR_MTU, OUT, Underlay, bridged, node_address, overlay

pytestmark = [pytest.mark.root]

FAMILIES = (4, 6)
VIP = {4: "192.168.9.200", 6: "fd09::c8"}
INTERNAL = 8080
NODE_PORT = 30081
GATEWAY = {4: "10.1.0.1", 6: "fd01::1"}
BEHIND = {4: "10.2.0.0/24", 6: "fd02::/64"}
VNI = 4096
EXCHANGES = ((6, tcp), (17, udp))
KINDS = ("overlay", "bridged")
OUT_ONLY = [
    ACL(action=AclAction.ALLOW, direction=AclDirection.OUT, priority=100),
    ACL(action=AclAction.BLOCK, direction=AclDirection.IN, priority=100),
]
_HOPS = itertools.count(60000)


class World:
    """Two nodes; the first balances, backends are on the second, in an overlay network and on an L2 bridge."""

    def __init__(self, lab: Lab, **options: Any) -> None:
        self.underlay = underlay = Underlay(lab)
        self.first, self.second = first, second = underlay.node(11), underlay.node(12, **options)
        near = first.network(overlay(first, 1, (second, 2, 4)))
        far = second.network(overlay(second, 2, (first, 1, 4)))
        self.client = first.pod(near, "10.1.0.10", "fd01::10")
        self.overlay = second.pod(far, "10.2.0.12", "fd02::12", policies=[OutBoundNAT()])
        self.bare = second.pod(far, "10.2.0.14", "fd02::14")
        self.masked = second.pod(far, "10.2.0.15", "fd02::15", policies=[OutBoundNAT()])
        wire = second.network(bridged())
        self.bridged = second.pod(wire, "192.168.9.120", "fd09::120")
        self.plain = second.pod(wire, "192.168.9.122", "fd09::122")
        self.ruled = second.pod(wire, "192.168.9.123", "fd09::123", policies=OUT_ONLY)
        for node in (first, second):
            node.apply([Put("sw_vnis", Id(DIRECT_VNI), Vni(SCOPE_DIRECT))])
        for host in (underlay.out, underlay.router):
            for family in FAMILIES:
                host.ip("route", "replace", VIP[family], "via", node_address(first, family))

    def port(self, pod: Pod) -> Port:
        """The pod's port, on the second node."""
        found = self.second.table("sw_ports")[Id(pod.port)]
        assert isinstance(found, Port)
        return found

    def target(self, pod: Pod, family: int) -> Target:
        """The pod as a backend that can be reached directly."""
        scope = self.port(pod).scope
        hop = Nexthop(
            kind=RouteKind.TUNNEL,
            family=4,
            mtu=1450,
            ifindex=0,
            vni=DIRECT_VNI if scope == SCOPE_UPLINK else VNI,
            address=parse_address(node_address(self.second, 4)).packed,
            local=parse_address(node_address(self.first, 4)).packed,
            mac=pod.mac,
        )
        number = next(_HOPS)
        self.first.apply([Put("sw_nexthops", Id(number), hop)])
        return Target(pod.address(family), INTERNAL, scope, number)

    def receive(self, pod: Pod, family: int, protocol: int, vip: str, port: int, keep: bool = False) -> None:
        """The second node's side: the pod answers for the VIP, or gets its packets as they are."""
        address = parse_address(vip).packed if vip else bytes(16)
        key = DirectKey(address, port, protocol, family, pod.mac)
        own = address if keep else parse_address(pod.address(family)).packed
        value = Portmap(pod.port, self.port(pod).scope, port if keep else INTERNAL, own)
        self.second.apply([Put("sw_direct", key, value)])


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        yield World(lab)


@contextmanager
def _service(world: World, pod: Pod, family: int) -> Iterator[str]:
    """A node port of the first node's, TCP and UDP, with one backend that is reached directly; the node's address."""
    services = []
    for protocol, _ in EXCHANGES:
        target = world.target(pod, family)
        made = Balancer(
            world.first, target, protocol=protocol, flags=int(ServiceFlag.DSR), source=GATEWAY[family]
        )
        made.vip("", NODE_PORT, SCOPE_OUTSIDE, family=family)
        world.receive(pod, family, protocol, "", NODE_PORT)
        services.append(made)
    yield node_address(world.first, family)
    for made in services:
        made.close()


def _call(world: World, client: Pod, pod: Pod, family: int) -> Seen:
    with _service(world, pod, family) as to:
        return tcp(client.space, pod.space, to, NODE_PORT, at=(pod.address(family), INTERNAL))


@pytest.fixture
def own_addresses(world: World) -> Iterator[World]:
    """The second node's overlay pods are reached by their own addresses, too."""
    routes = [(BEHIND[family], node_address(world.second, family)) for family in FAMILIES]
    for prefix, via in routes:
        world.underlay.router.ip("route", "replace", prefix, "via", via)
    yield world
    for prefix, via in routes:
        world.underlay.router.ip("route", "del", prefix, "via", via)


def on_loopback(pod: Pod, vip: str) -> None:
    """Give a pod the VIP as an address, which it names to no neighbour: that the switch would not let out."""
    pod.space.set("ipv4", "conf", "all", "arp_announce", value=2)
    pod.space.ip("address", "replace", vip, "dev", "lo", *(["nodad"] if ":" in vip else []))
    # The kernel writes an IPv6 address's route a moment after sockets may have the address.
    poll("the address's route", lambda: "local" in pod.space.ip("route", "get", vip))


def _passed(node: Node, sniffer: Sniffer, vip: str) -> list[bytes]:
    """Frames on a node's uplink that come from the VIP."""
    packed = parse_address(vip).packed[: 4 if "." in vip else 16]
    at = slice(26, 30) if len(packed) == 4 else slice(22, 38)
    return [frame for frame in sniffer.frames() if frame[at] == packed]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["near", "far"])
def test_the_reply_goes_directly(world: World, where: str, kind: str, family: int) -> None:
    pod: Pod = getattr(world, kind)
    client = world.underlay.out if where == "near" else world.underlay.far
    for protocol, exchange in EXCHANGES:
        target = world.target(pod, family)
        service = Balancer(world.first, target, protocol=protocol, flags=int(ServiceFlag.DSR))
        service.vip(VIP[family], 80, SCOPE_OUTSIDE)
        world.receive(pod, family, protocol, VIP[family], 80)
        with Sniffer(world.first.space, "eth0") as sniffer:
            seen = exchange(client, pod.space, VIP[family], 80, at=(pod.address(family), INTERNAL))
            assert not _passed(world.first, sniffer, VIP[family])
        assert seen.client[0] == (OUT if where == "near" else FAR)[family]
        assert seen.server == (VIP[family], 80)
        service.close()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_node_port(world: World, kind: str, family: int) -> None:
    """Any address of any node: the reply comes from the address that the client has used."""
    pod: Pod = getattr(world, kind)
    to = node_address(world.first, family)
    for protocol, exchange in EXCHANGES:
        service = Balancer(
            world.first, world.target(pod, family), protocol=protocol, flags=int(ServiceFlag.DSR)
        )
        service.vip("", 30080, SCOPE_OUTSIDE, family=family)
        world.receive(pod, family, protocol, "", 30080)
        seen = exchange(world.underlay.out, pod.space, to, 30080, at=(pod.address(family), INTERNAL))
        assert (seen.client[0], seen.server) == (OUT[family], (to, 30080))
        service.close()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_has_ended_is_soon_forgotten(kind: str, family: int) -> None:
    """The first node hears of the client's end alone. What is open stays, and what is half open goes on."""
    with Lab() as lab, ExitStack() as stack:
        world = World(lab)
        pod = getattr(world, kind)
        to = stack.enter_context(_service(world, pod, family))
        at = (pod.address(family), INTERNAL)
        out = world.underlay.out
        near, far = stack.enter_context(tcp_pair(out, pod.space, to, NODE_PORT, at=at))
        echo_over(near, far)
        world.first.start_ageing()
        assert left(world.first, ticks=3000) == 1
        near.shutdown(socket.SHUT_WR)
        assert far.recv(1) == b""
        assert left(world.first, ticks=100) == 0
        stream(far, near, bytes(100_000))
        far.close()
        assert near.recv(1) == b""


@pytest.mark.parametrize("kind", KINDS)
def test_a_backends_reset_is_not_seen(kind: str) -> None:
    """What it has ended would else stay for days on the first node, which sees no more of it than of a silent one."""
    with Lab() as lab, ExitStack() as stack:
        world = World(lab)
        pod = getattr(world, kind)
        to = stack.enter_context(_service(world, pod, 4))
        near, far = stack.enter_context(
            tcp_pair(world.underlay.out, pod.space, to, NODE_PORT, at=(pod.ip, INTERNAL))
        )
        echo_over(near, far)
        world.first.start_ageing()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        with pytest.raises(ConnectionResetError):
            near.recv(1)
        assert left(world.first, ticks=6900) == 1
        assert left(world.first, ticks=7000) == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_large_segments_fit_the_forward_path(world: World, kind: str, family: int) -> None:
    """The SYN-ACK's MSS is that of the tunnel, though it does not come by it."""
    pod: Pod = getattr(world, kind)
    service = Balancer(world.first, world.target(pod, family), flags=int(ServiceFlag.DSR))
    service.vip(VIP[family], 80, SCOPE_OUTSIDE)
    world.receive(pod, family, 6, VIP[family], 80)
    at = (pod.address(family), INTERNAL)
    with tcp_pair(world.underlay.out, pod.space, VIP[family], 80, at=at) as (near, far):
        echo_over(near, far, 500_000)
        overhead = 40 if family == 4 else 60
        assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 1450 - overhead
    service.close()


def test_the_backend_itself_is_the_client(own_addresses: World) -> None:
    """With an address that nobody translates: it is answered by way of the node that it has called."""
    world = own_addresses
    for pod, family in itertools.product((world.bare, world.bridged), FAMILIES):
        seen = _call(world, pod, pod, family)
        first = node_address(world.first, family)
        lent = GATEWAY[family] if pod is world.bare else first
        assert (seen.client[0], seen.server) == (lent, (first, NODE_PORT))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pod_beside_the_backend_with_an_address_of_its_own(own_addresses: World, family: int) -> None:
    """It is known by the tunnel that its address is behind."""
    seen = _call(own_addresses, own_addresses.bare, own_addresses.overlay, family)
    assert seen.client[0] == GATEWAY[family]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("client", "kind"),
    [(client, kind) for client in ("plain", "ruled", "masked") for kind in KINDS] + [("bare", "bridged")],
)
def test_a_pod_beside_the_backend_that_the_first_node_does_not_know(
    world: World, client: str, kind: str, family: int
) -> None:
    """It gets the answer as if that had come by the uplink: through its rules, and with its translation undone."""
    pod: Pod = getattr(world, kind)
    near: Pod = getattr(world, client)
    at = (pod.address(family), INTERNAL)
    own = {"masked": node_address(world.second, family)}.get(client, near.address(family))
    known = (client, family) == ("masked", 4)  # by the end of the tunnel
    with _service(world, pod, family) as to:
        for _, exchange in EXCHANGES:
            for _ in range(2):
                seen = exchange(near.space, pod.space, to, NODE_PORT, at=at)
                assert seen.server == (to, NODE_PORT)
                assert (seen.client[0] == own) != known
        with tcp_pair(near.space, pod.space, to, NODE_PORT, at=at) as (one, other):
            echo_over(one, other, 200_000)


def test_rules_hold_for_what_comes_round(world: World) -> None:
    """An answer to what the pod has never asked is none."""
    pod, near = world.overlay, world.ruled
    with _service(world, pod, 4) as to, bound(near.space, socket.SOCK_DGRAM, near.ip, 5353) as listening:
        with bound(pod.space, socket.SOCK_DGRAM, pod.ip, INTERNAL) as far:
            mac = mac_text(world.first.facts.uplink_mac).replace("-", ":")
            packet = IP(src=near.ip, dst=to) / UDP(sport=5353, dport=NODE_PORT) / b"forged"
            inject(world.underlay.out, "eth0", bytes(Ether(dst=mac) / packet))
            data, sender = far.recvfrom(100)
            assert sender == (near.ip, 5353)
            before = world.second.dropped(near.port, Layer.ACL_IN, Reason.BLOCKED)
            far.sendto(data, sender)
            poll("a drop", lambda: world.second.dropped(near.port, Layer.ACL_IN, Reason.BLOCKED) > before)
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.recv(100)


@pytest.mark.parametrize(("kind", "family"), [("overlay", 4), ("bridged", 4), ("overlay", 6), ("bridged", 6)])
def test_a_process_of_the_backends_node(world: World, kind: str, family: int) -> None:
    """IPv4, as the tunnel: translated. IPv6: the first node does not know whose address it is, the second answers."""
    pod: Pod = getattr(world, kind)
    at = (pod.address(family), INTERNAL)
    with _service(world, pod, family) as to:
        seen = tcp(world.second.space, pod.space, to, NODE_PORT, at=at)
        if family == 6:
            assert seen.client[0] == node_address(world.second, 6)
        with tcp_pair(world.second.space, pod.space, to, NODE_PORT, at=at) as (near, far):
            echo_over(near, far, 100_000)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_comes_round_is_dropped_and_counted(own_addresses: World, family: int) -> None:
    """The first node does not know where the client is: nothing goes a second time through the tunnel."""
    world = own_addresses
    port = world.first.table("sw_ports")[Id(world.client.port)]
    assert isinstance(port, Port)
    prefix = parse_prefix(BEHIND[family])
    key = RouteKey(32 + prefix.bits, port.scope, family, prefix.packed)
    known = world.first.table("sw_routes")[key]
    world.first.apply([Remove("sw_routes", key)])
    dropped = (world.second.facts.tunnel_ifindex, Layer.DECAP, Reason.SPOOFED_IP)
    before = world.second.drops().get(dropped, 0)
    try:
        with (
            Sniffer(world.second.space, "eth0") as sniffer,
            _service(world, world.overlay, family) as to,
            world.bare.space.socket(family_of(to), socket.SOCK_DGRAM) as near,
        ):
            near.connect((to, NODE_PORT))
            near.send(b"round")
            poll("a drop", lambda: world.second.drops().get(dropped, 0) == before + 1)
            assert sum(b"round" in frame for frame in sniffer.frames()) == 2, "out, and in through the tunnel"
    finally:
        world.first.apply([Put("sw_routes", key, known)])


def test_a_removed_backend_ends_its_connection(world: World) -> None:
    pod = world.bridged
    target = world.target(pod, 4)
    service = Balancer(world.first, target, flags=int(ServiceFlag.DSR))
    service.vip(VIP[4], 80, SCOPE_OUTSIDE)
    world.receive(pod, 4, 6, VIP[4], 80)
    with tcp_pair(world.underlay.out, pod.space, VIP[4], 80, at=(pod.ip, INTERNAL)) as (near, far):
        echo_over(near, far)
        flow = next(flow for flow in world.first.flow_table().values() if flow.service == service.number)
        assert flow.flags & FlowFlag.DIRECT
        assert flow.flags & FlowFlag.REPLIED  # it lives as long as any established connection
        service.remove(target)
        near.sendall(b"anybody?")
        with pytest.raises(ConnectionResetError):
            near.recv(10)
    service.close()


def test_datagrams_to_another_endpoint_of_the_same_node(world: World) -> None:
    """The first node chooses anew: the second's flow is for the other endpoint at once."""
    network = world.bridged.network
    pods = [world.bridged, world.second.pod(network, "192.168.9.121", "fd09::121")]
    targets = [world.target(pod, 4) for pod in pods]
    service = Balancer(world.first, targets[0], protocol=17, flags=int(ServiceFlag.DSR))
    service.vip(VIP[4], 80, SCOPE_OUTSIDE)
    for pod in pods:
        world.receive(pod, 4, 17, VIP[4], 80)
    with world.underlay.out.socket(socket.AF_INET, socket.SOCK_DGRAM) as near:
        near.settimeout(TIMEOUT_S)
        near.bind((OUT[4], 47000))
        for pod, target in zip(pods, targets, strict=True):
            with pod.space.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
                server.settimeout(TIMEOUT_S)
                server.bind((pod.ip, INTERNAL))
                for _ in range(2):
                    near.sendto(b"x", (VIP[4], 80))
                    data, sender = server.recvfrom(10)
                    assert (data, sender) == (b"x", (OUT[4], 47000))
                    server.sendto(b"y", sender)
                    assert near.recvfrom(10) == (b"y", (VIP[4], 80))
            if target == targets[0]:
                service.remove(target)
                service.add(targets[1])
    service.close()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_preserved_destination(world: World, kind: str, family: int) -> None:
    """PreserveDIP: the pod has the VIP on its loopback, and sees it as the destination."""
    pod: Pod = getattr(world, kind)
    on_loopback(pod, VIP[family])
    for protocol, exchange in EXCHANGES:
        service = Balancer(
            world.first, world.target(pod, family), protocol=protocol, flags=int(ServiceFlag.PRESERVE)
        )
        service.vip(VIP[family], 81, SCOPE_OUTSIDE)
        world.receive(pod, family, protocol, VIP[family], 81, keep=True)
        seen = exchange(world.underlay.out, pod.space, VIP[family], 81)
        assert seen.client[0] == OUT[family]
        service.close()
    pod.space.ip("address", "del", VIP[family], "dev", "lo")


@contextmanager
def _preserved(world: World, pod: Pod, family: int) -> Iterator[str]:
    """UDP to the VIP, port 84, is the pod's as it is; the VIP."""
    vip = VIP[family]
    on_loopback(pod, vip)
    service = Balancer(world.first, world.target(pod, family), protocol=17, flags=int(ServiceFlag.PRESERVE))
    service.vip(vip, 84, SCOPE_OUTSIDE)
    world.receive(pod, family, 17, vip, 84, keep=True)
    yield vip
    service.close()
    pod.space.ip("address", "del", vip, "dev", "lo")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_answers_in_pieces_from_a_preserved_destination(world: World, kind: str, family: int) -> None:
    """Later fragments have no ports, and come from the VIP all the same."""
    pod: Pod = getattr(world, kind)
    with (
        _preserved(world, pod, family) as vip,
        bound(pod.space, socket.SOCK_DGRAM, vip, 84) as far,
        bound(world.underlay.out, socket.SOCK_DGRAM, OUT[family]) as near,
    ):
        near.sendto(b"more, please", (vip, 84))
        _, sender = far.recvfrom(100)
        far.sendto(bytes(5000), sender)
        assert near.recv(10000) == bytes(5000)
        spoofed = world.second.dropped(pod.port, Layer.GUARD, Reason.SPOOFED_IP)
        far.sendto(bytes(3000), (OUT[family], sender[1] ^ 1))  # who has asked nothing
        poll(
            "drops",
            lambda: world.second.dropped(pod.port, Layer.GUARD, Reason.SPOOFED_IP) == spoofed + 3,
        )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_preserved_destination_that_does_not_listen(world: World, kind: str, family: int) -> None:
    """Its errors come from the VIP, about what has come to it; about anything else they are spoofed."""
    pod: Pod = getattr(world, kind)
    with (
        _preserved(world, pod, family) as vip,
        world.underlay.out.socket(family_of(vip), socket.SOCK_DGRAM) as near,
        Sniffer(pod.space, "eth0") as sniffer,
    ):
        near.settimeout(TIMEOUT_S)
        near.connect((vip, 84))
        near.send(b"anybody there?")
        with pytest.raises(ConnectionRefusedError):
            near.recv(10)
        ip, icmp = (IPv6, ICMPv6DestUnreach) if family == 6 else (IP, ICMP)
        frames = [Ether(frame) for frame in sniffer.frames()]
        error = next(frame for frame in frames if icmp in frame and frame[ip].src == vip)
        spoofed = world.second.dropped(pod.port, Layer.GUARD, Reason.SPOOFED_IP)
        error[icmp].payload[UDPerror].sport ^= 1
        inject(pod.space, "eth0", bytes(error))
        error[icmp].payload[UDPerror].sport ^= 1
        error[ip].dst = FAR[family]
        inject(pod.space, "eth0", bytes(error))
        poll(
            "drops",
            lambda: world.second.dropped(pod.port, Layer.GUARD, Reason.SPOOFED_IP) == spoofed + 2,
        )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_errors_and_fragments(world: World, kind: str, family: int) -> None:
    """A router tells the first node that an answer was too long, and the endpoint hears of it; it speaks up, too."""
    pod: Pod = getattr(world, kind)
    at, far = (pod.address(family), INTERNAL), world.underlay.far
    size = FAR_MTU - (28 if family == 4 else 48) + 1
    with _service(world, pod, family) as to:
        with careful(pod.space, at[0]) as server, bound(far, socket.SOCK_DGRAM, FAR[family]) as near:
            server.bind(at)
            near.sendto(b"x", (to, NODE_PORT))
            server.connect(server.recvfrom(10)[1])
            server.send(bytes(size))
            poll("path MTU", lambda: too_long(server, size))
        with careful(world.underlay.out, to) as near:
            near.connect((to, NODE_PORT))
            near.send(b"anybody there?")
            with pytest.raises(ConnectionRefusedError):
                near.recv(10)
            poll("the tunnel's MTU", lambda: too_long(near, 1450))
        udp(world.underlay.out, pod.space, to, NODE_PORT, at=at, size=5000)


@pytest.mark.parametrize("family", FAMILIES)
def test_preserved_destination_here(world: World, family: int) -> None:
    """A local backend, for a client outside; and the pod may not speak for the VIP otherwise."""
    pod = world.client
    on_loopback(pod, VIP[family])
    port = world.first.table("sw_ports")[Id(pod.port)]
    assert isinstance(port, Port)
    service = Balancer(
        world.first, Target(pod.address(family), 82, port.scope), flags=int(ServiceFlag.PRESERVE)
    )
    service.vip(VIP[family], 82, SCOPE_OUTSIDE, SCOPE_ANY)
    seen = tcp(world.underlay.out, pod.space, VIP[family], 82)
    assert (seen.client[0], seen.server) == (OUT[family], (VIP[family], 82))
    with pod.space.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_STREAM) as near:
        near.settimeout(0.3)
        near.bind((VIP[family], 0))
        with pytest.raises(TimeoutError):
            near.connect((OUT[family], 80))
    service.close()
    pod.space.ip("address", "del", VIP[family], "dev", "lo")


ROUTED = {4: "198.51.100.200", 6: "2001:db8:5::200"}


@pytest.mark.parametrize("family", FAMILIES)
def test_preserved_destination_for_a_pod_of_the_first_node(world: World, family: int) -> None:
    """It is answered by the tunnel that its packets come by."""
    pod, near, vip = world.overlay, world.client, ROUTED[family]
    on_loopback(pod, vip)
    try:
        for protocol, exchange in EXCHANGES:
            service = Balancer(
                world.first, world.target(pod, family), protocol=protocol, flags=int(ServiceFlag.PRESERVE)
            )
            service.vip(vip, 83, SCOPE_ANY)
            world.receive(pod, family, protocol, vip, 83, keep=True)
            seen = exchange(near.space, pod.space, vip, 83)
            assert (seen.client[0], seen.server) == (near.address(family), (vip, 83))
            service.close()
    finally:
        pod.space.ip("address", "del", vip, "dev", "lo")


def _preserving(world: World, pod: Pod, family: int, protocol: int, port: int) -> Balancer:
    """A service at the routed address that keeps it as the destination, and has an address to lend."""
    service = Balancer(
        world.first,
        world.target(pod, family),
        protocol=protocol,
        flags=int(ServiceFlag.PRESERVE),
        source=GATEWAY[family],
    )
    service.vip(ROUTED[family], port, SCOPE_OUTSIDE)
    world.receive(pod, family, protocol, ROUTED[family], port, keep=True)
    return service


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("client", ["plain", "ruled", "masked"])
@pytest.mark.parametrize("kind", KINDS)
def test_preserved_destination_beside_the_client(world: World, kind: str, client: str, family: int) -> None:
    """The answer's addresses are those of what the client has sent: it comes round once, and not for ever."""
    pod: Pod = getattr(world, kind)
    near: Pod = getattr(world, client)
    vip = ROUTED[family]
    world.underlay.router.ip("route", "replace", vip, "via", node_address(world.first, family))
    on_loopback(pod, vip)
    try:
        for protocol, exchange in EXCHANGES:
            service = _preserving(world, pod, family, protocol, 81)
            seen = exchange(near.space, pod.space, vip, 81)
            assert seen.server == (vip, 81)
            service.close()
    finally:
        pod.space.ip("address", "del", vip, "dev", "lo")
        world.underlay.router.ip("route", "del", vip)


def test_nobody_outside_speaks_for_the_backend(world: World) -> None:
    """What comes by the uplink under the key of an answer that comes round is not sent round again."""
    pod, near, second = world.bridged, world.plain, world.second
    with (
        _service(world, pod, 4) as to,
        bound(pod.space, socket.SOCK_DGRAM, pod.ip, INTERNAL) as far,
        near.space.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking,
    ):
        asking.settimeout(TIMEOUT_S)
        asking.connect((to, NODE_PORT))
        asking.send(b"x")
        _, sender = far.recvfrom(10)
        key = (second.facts.uplink_ifindex, Layer.FLOW, Reason.MARTIAN)
        before = second.dropped(*key)
        mac = mac_text(second.facts.uplink_mac).replace("-", ":")
        packet = IP(src=pod.ip, dst=sender[0]) / UDP(sport=INTERNAL, dport=sender[1]) / b"forged"
        inject(world.underlay.out, "eth0", bytes(Ether(dst=mac) / packet))
        poll("a drop", lambda: second.dropped(*key) > before)
        far.sendto(b"y", sender)
        assert asking.recv(10) == b"y"


def _third_node(world: World) -> Pod:
    """A pod of a third node. The underlay knows the way to its address, too."""
    first, second, third = world.first, world.second, world.underlay.node(13)
    first.network(overlay(first, 1, (second, 2, 4), (third, 3, 4)))
    second.network(overlay(second, 2, (first, 1, 4), (third, 3, 4)))
    for family, behind in ((4, "10.3.0.0/24"), (6, "fd03::/64")):
        world.underlay.router.ip("route", "replace", behind, "via", node_address(third, family))
    network = third.network(overlay(third, 3, (first, 1, 4), (second, 2, 4)))
    return third.pod(network, "10.3.0.16", "fd03::16")


def test_preserved_destination_for_a_pod_of_a_third_node() -> None:
    """The answer to its own address would go through the tunnel to its node, and it waits for it on the underlay. So
    it gets another, and the answer comes to whom it has called.
    """
    with Lab() as lab:
        world = World(lab)
        client, pod = _third_node(world), world.overlay
        for family, (protocol, exchange) in itertools.product(FAMILIES, EXCHANGES):
            vip = ROUTED[family]
            world.underlay.router.ip("route", "replace", vip, "via", node_address(world.first, family))
            on_loopback(pod, vip)
            _preserving(world, pod, family, protocol, 84)
            seen = exchange(client.space, pod.space, vip, 84)
            assert (seen.client[0], seen.server) == (GATEWAY[family], (vip, 84))
            pod.space.ip("address", "del", vip, "dev", "lo")


def test_a_pod_of_a_third_node_with_an_address_of_its_own() -> None:
    """It waits for the answer on the underlay; the backend's node would send it through the tunnel."""
    with Lab() as lab:
        world = World(lab)
        client, first = _third_node(world), world.first
        for family in FAMILIES:
            seen = _call(world, client, world.overlay, family)
            assert (seen.client[0], seen.server) == (
                GATEWAY[family],
                (node_address(first, family), NODE_PORT),
            )


def test_another_port_is_not_the_same_one() -> None:
    """The ports that such a client may be given are the pool's, and its own may be one of those."""
    with Lab() as lab:
        world = World(lab, nat_ports=(50000, 50001))
        pod, near, vip = world.bridged, world.plain, ROUTED[4]
        world.underlay.router.ip("route", "replace", vip, "via", node_address(world.first, 4))
        on_loopback(pod, vip)
        service = Balancer(
            world.first, world.target(pod, 4), flags=int(ServiceFlag.PRESERVE), protocol=17, source=GATEWAY[4]
        )
        service.vip(vip, 81, SCOPE_OUTSIDE)
        world.receive(pod, 4, 17, vip, 81, keep=True)
        with bound(pod.space, socket.SOCK_DGRAM, vip, 81) as far:
            for port, other in ((50000, 50001), (50001, 50000)):
                with bound(near.space, socket.SOCK_DGRAM, near.ip, port) as asking:
                    asking.sendto(b"x", (vip, 81))
                    _, sender = far.recvfrom(10)
                    assert sender == (near.ip, other)
                    far.sendto(b"y", sender)
                    assert asking.recvfrom(10) == (b"y", (vip, 81))
                world.second.map("sw_flows").delete_batch([key.pack() for key in world.second.flow_table()])
        service.close()
