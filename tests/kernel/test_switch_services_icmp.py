"""ICMP errors, path MTU and fragments of connections through services: real packets between real sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from samewire.vfp.constants import SCOPE_ANY, SCOPE_OUTSIDE, SCOPE_UPLINK, ServiceFlag
from tests.kernel.test_switch_icmp import is_error
from tests.kernel.test_switch_services import FAMILIES, INTERNAL, LOOPBACK, SOURCE_VIP, VIP, World
from tests.support.cgroups import within
from tests.support.netlab import Lab, Space, poll
from tests.support.services import Balancer, Target
from tests.support.traffic import TIMEOUT_S, Sniffer, family_of, tcp, too_long, udp
from tests.support.universe import packed
from tests.support.verify import Headers, quoted, verified
from tests.support.worlds import FAR, FAR_MTU, ROUTER, node_address

pytestmark = [pytest.mark.root]

UNREACHABLE = {4: (3, 3), 6: (1, 4)}
TOO_BIG = {4: (3, 4), 6: (2, 0)}
NODE_PORT = 30090
BEYOND = {4: "203.0.114.5", 6: "2001:db8:1::5"}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        made = World(lab)
        for pod in (made.client, made.local, made.remote):
            pod.space.command("ethtool", "-K", "eth0", "tx", "off")
        yield made


@contextmanager
def adding_up_nothing(space: Space, device: str) -> Iterator[None]:
    """A device that leaves checksums to the kernel."""
    space.command("ethtool", "-K", device, "tx", "off")
    yield
    space.command("ethtool", "-K", device, "tx", "on")


def service(world: World, target: Target, family: int, protocol: int = 17) -> Balancer:
    """One backend at the VIP and at a node port."""
    made = Balancer(world.node, target, protocol=protocol, source=SOURCE_VIP[family])
    made.vip(VIP[family], 80, SCOPE_ANY)
    made.vip("", NODE_PORT, SCOPE_OUTSIDE, SCOPE_ANY, family=family)
    return made


def refused(space: Space, to: str, port: int, ifname: str = "eth0") -> tuple[Headers, Headers] | None:
    """A datagram to a backend that does not listen: the client's socket hears of it. The error, and what it quotes."""
    family = 6 if ":" in to else 4
    with (
        Sniffer(space, ifname, outgoing=False) as sniffer,
        space.socket(family_of(to), socket.SOCK_DGRAM) as opened,
    ):
        opened.settimeout(TIMEOUT_S)
        opened.connect((to, port))
        opened.send(b"anybody there?")
        with pytest.raises(ConnectionRefusedError):
            opened.recv(10)
        if ifname == "lo":
            return None
        error = verified(sniffer.wait(is_error(family, lambda *kind: kind == UNREACHABLE[family])))
        return error, quoted(error)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("server", ["local", "remote", "client"])
def test_a_backend_that_does_not_listen(world: World, server: str, family: int) -> None:
    """The error comes from the VIP about the VIP, to pods, to clients outside and to the node."""
    balancer = service(world, world.target(getattr(world, server), family), family)
    to = node_address(world.node, family)
    for space, address, port in (
        (world.client.space, VIP[family], 80),
        (world.client.space, to, NODE_PORT),
        (world.underlay.out, to, NODE_PORT),
    ):
        found = refused(space, address, port)
        assert found is not None
        error, inner = found
        size = len(error.source)
        assert error.source == inner.destination == packed(address)[:size], (server, address)
        assert inner.source == error.destination
        assert inner.ports[1] == port
    with within(world.group):
        for address, port in ((VIP[family], 80), (to, NODE_PORT), (LOOPBACK[family], NODE_PORT)):
            refused(world.node.space, address, port, "lo")
    balancer.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_process_of_the_node_that_does_not_listen(world: World, family: int) -> None:
    """The node's own stack says so, about its own address and port: the client must see those that it has called."""
    to = node_address(world.node, family)
    balancer = service(world, Target(to, 7999, SCOPE_UPLINK), family)
    for space, address, port in ((world.client.space, VIP[family], 80), (world.underlay.out, to, NODE_PORT)):
        found = refused(space, address, port)
        assert found is not None
        error, inner = found
        size = len(error.source)
        assert error.source == inner.destination == packed(address)[:size], address
        assert inner.source == error.destination
        assert inner.ports[1] == port
    balancer.close()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [5, 500])
def test_a_node_whose_nic_adds_up_nothing(world: World, size: int, family: int) -> None:
    """The datagram has come without a checksum, as between machines of one host; what is quoted of it stays."""
    to = node_address(world.node, family)
    nothing = Balancer(world.node, protocol=17, flags=int(ServiceFlag.REJECT))
    nothing.vip("", NODE_PORT, SCOPE_OUTSIDE, family=family)
    out = world.underlay.out
    with (
        adding_up_nothing(world.node.space, "eth0"),
        Sniffer(out, "eth0", outgoing=False) as sniffer,
        out.socket(family_of(to), socket.SOCK_DGRAM) as opened,
    ):
        opened.settimeout(TIMEOUT_S)
        opened.connect((to, NODE_PORT))
        opened.send(bytes(size))
        with pytest.raises(ConnectionRefusedError):
            opened.recv(10)
        verified(sniffer.wait(is_error(family, lambda *kind: kind == UNREACHABLE[family])))
    nothing.close()


def careful(space: Space, address: str) -> socket.socket:
    """A UDP socket that never fragments."""
    opened = space.socket(family_of(address), socket.SOCK_DGRAM)
    v6 = ":" in address
    opened.setsockopt(socket.IPPROTO_IPV6 if v6 else socket.IPPROTO_IP, 23 if v6 else 10, 2)
    opened.settimeout(TIMEOUT_S)
    return opened


def learn(space: Space, address: str, port: int) -> None:
    """Who sends in pieces learns the tunnel's size like others: the first datagram is lost."""
    with careful(space, address) as opened:
        opened.connect((address, port))
        poll("path MTU", lambda: too_long(opened, 1450))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_smaller_link_before_the_backend(world: World, family: int) -> None:
    """A router's "too big" is about the VIP when it comes to the client."""
    balancer = service(world, Target(FAR[family], INTERNAL, SCOPE_UPLINK), family)
    size = FAR_MTU - (28 if family == 4 else 48) + 1
    space = world.client.space
    with careful(space, VIP[family]) as opened, Sniffer(space, "eth0") as sniffer:
        opened.connect((VIP[family], 80))
        opened.send(bytes(size))
        error = verified(sniffer.wait(is_error(family, lambda *kind: kind == TOO_BIG[family])))
        inner = quoted(error)
        assert error.source == packed(ROUTER[family])[: len(error.source)]
        assert inner.destination == packed(VIP[family])[: len(error.source)]
        poll("path MTU", lambda: too_long(opened, size))
    balancer.close()
    balancer = service(world, Target(FAR[family], INTERNAL, SCOPE_UPLINK), family, protocol=6)
    tcp(space, world.underlay.far, VIP[family], 80, at=(FAR[family], INTERNAL), size=200_000)
    balancer.close()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("server", ["local", "remote"])
def test_a_smaller_link_before_the_client(world: World, server: str, family: int) -> None:
    """A router's "too big" about answers comes to the node, and gets to the backend's socket."""
    pod = getattr(world, server)
    target = world.target(pod, family)
    balancer = service(world, target, family)
    size = FAR_MTU - (28 if family == 4 else 48) + 1
    to = node_address(world.node, family)
    with (
        world.underlay.far.socket(family_of(to), socket.SOCK_DGRAM) as near,
        careful(pod.space, target.address) as far,
    ):
        far.bind((target.address, target.port))
        near.settimeout(TIMEOUT_S)
        near.sendto(b"x", (to, NODE_PORT))
        _, client = far.recvfrom(10)
        far.connect(client)
        assert too_long(far, 2000)
        far.send(bytes(size))
        poll("path MTU", lambda: too_long(far, size))
    balancer.close()


@pytest.fixture(scope="module")
def beyond(world: World) -> Space:
    """A host behind the router as well, on another link."""
    router, space = world.underlay.router, world.underlay.lab.space("beyond")
    world.underlay.lab.join(router, "eth2", space, "eth0")
    router.address("eth2", "203.0.114.1/24", "2001:db8:1::1/64")
    space.address("eth0", f"{BEYOND[4]}/24", f"{BEYOND[6]}/64")
    for gateway in ("203.0.114.1", "2001:db8:1::1"):
        space.ip("route", "add", "default", "via", gateway)
    return space


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("smaller", ["client", "backend"])
def test_a_router_that_is_on_both_ways(world: World, beyond: Space, smaller: str, family: int) -> None:
    """Its own address is no source for what the node sends it: the error comes from whom the packets come from."""
    for version in ("-4", "-6"):
        beyond.ip(version, "route", "flush", "cache")
    ends = {"client": (world.underlay.far, FAR), "backend": (beyond, BEYOND)}
    if smaller == "backend":
        ends = {"client": ends["backend"], "backend": ends["client"]}
    client, (server, at) = ends["client"][0], ends["backend"]
    balancer = service(world, Target(at[family], INTERNAL, SCOPE_UPLINK), family)
    size = FAR_MTU - (28 if family == 4 else 48) + 1
    own = node_address(world.node, family)
    with careful(client, own) as near, careful(server, own) as far, Sniffer(beyond, "eth0") as sniffer:
        far.bind((at[family], INTERNAL))
        near.connect((own, NODE_PORT))
        near.send(b"x")
        _, sender = far.recvfrom(10)
        far.connect(sender)
        large = far if smaller == "client" else near
        large.send(bytes(size))
        error = verified(sniffer.wait(is_error(family, lambda *kind: kind == TOO_BIG[family])))
        assert error.source == packed(own)[: len(error.source)]
        poll("path MTU", lambda: too_long(large, size))
    balancer.close()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("server", ["local", "remote", "client"])
def test_fragments(world: World, server: str, family: int) -> None:
    """Datagrams larger than any link, there and back."""
    pod = getattr(world, server)
    target = world.target(pod, family)
    balancer = service(world, target, family)
    at, to = (target.address, target.port), node_address(world.node, family)
    for space, address, port in (
        (world.client.space, VIP[family], 80),
        (world.client.space, to, NODE_PORT),
        (world.underlay.out, to, NODE_PORT),
    ):
        if server == "remote" and space is world.underlay.out:
            learn(space, address, port)
        assert udp(space, pod.space, address, port, at=at, size=5000).server == (address, port)
    with within(world.group):
        if server == "remote":
            learn(world.node.space, target.address, target.port)
        for address, port in ((VIP[family], 80), (to, NODE_PORT), (LOOPBACK[family], NODE_PORT)):
            assert udp(world.node.space, pod.space, address, port, at=at, size=5000).server == (address, port)
    balancer.close()
