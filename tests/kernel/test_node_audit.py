"""Pods and others that change what is ours: what the audit makes of it, what it costs, and what it leaves."""

from __future__ import annotations

import asyncio
import errno
import socket
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace

from samewire.cni.backend import Address, AttachRequest, CheckRequest
from samewire.errors import Invalid, KernelError
from samewire.hcn.codec import decode_object
from samewire.hcn.policies import EncapOverhead, ProviderAddress, first
from samewire.hcn.schema import Kind, Network
from samewire.kernel import faults
from samewire.kernel.netns import NetNamespace
from samewire.kernel.rtnetlink import LinkMonitor, Netlink, Query, link_del
from samewire.node import links, sweep
from samewire.node.cni_backend import NodeBackend
from samewire.node.config import NodeConfig
from samewire.node.node import Node
from samewire.node.watch import Watcher
from samewire.vfp.model import PortLink
from samewire.vfp.tables import DropKey, RuleCountKey
from tests.support.node import (
    NODE_IP,
    STALL_S,
    NodeNet,
    in_namespace,
    ip,
    ip_json,
    overlay,
    path_of,
)
from tests.support.running import running
from tests.support.two_nodes import in_pod
from tests.support.waiting import until

pytestmark = pytest.mark.root


@pytest_asyncio.fixture
async def node(config: NodeConfig) -> AsyncIterator[Node]:
    async with running(config) as node:
        await make_networks(node)
        yield node


async def make_networks(node: Node) -> None:
    for wanted in (overlay(), overlay("dual", "10.245.0.0/24", 4097, "fd00:245::/64")):
        network = decode_object(Kind.NETWORK, wanted)
        assert isinstance(network, Network)
        await node.service.create_network(network)


def request(pod: str, number: int = 9, network: str = "pods") -> AttachRequest:
    addresses = [Address(f"10.24{4 + (network == 'dual')}.0.{number}", 24)]
    addresses += [Address(f"fd00:245::{number}", 64)] if network == "dual" else []
    return AttachRequest(network, f"c{number}", "eth0", path_of(pod), tuple(addresses))


def keys(node: Node, table: str) -> set[bytes]:
    return {key for key, _ in node.board.maps[table].items()}


def port_of(node: Node) -> int:
    ((_, state),) = node.switch.ports
    return state.ifindex


async def test_what_is_noted_of_a_link_that_was_made_again_goes(
    net: NodeNet, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may delete the interface of its pod may do so all the time: the tables are not to fill up."""
    monkeypatch.setattr(sweep, "_DELAY_S", 0)
    await NodeBackend(node).attach(request(net.pod()))
    before = port_of(node)
    counts, drops = node.board.maps["sw_rule_counts"], node.board.maps["sw_drops"]
    count, drop = RuleCountKey(before, 1, 0).pack(), DropKey(before, 0, 8, 9, 1).pack()
    counts.update(count, (5).to_bytes(8, "little"))
    drops.update(drop, (5).to_bytes(8, "little"))
    node.netlink.request(link_del(before))
    await node.auditor.audit()
    assert port_of(node) != before
    await until(lambda: counts.lookup(count) is None and drops.lookup(drop) is None)


async def test_what_could_not_be_swept_goes_with_the_next(
    net: NodeNet, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "_DELAY_S", 0)
    failed = asyncio.Event()

    def inject(operation: str) -> None:
        if operation == "read sw_rule_counts" and not failed.is_set():
            failed.set()
            raise KernelError(operation, errno.EIO, "injected")

    await NodeBackend(node).attach(request(net.pod()))
    before = port_of(node)
    counts = node.board.maps["sw_rule_counts"]
    count = RuleCountKey(before, 1, 0).pack()
    counts.update(count, (5).to_bytes(8, "little"))
    monkeypatch.setattr(faults, "inject", inject)
    node.netlink.request(link_del(before))
    await node.auditor.audit()
    await until(failed.is_set)
    assert counts.lookup(count) is not None
    node.netlink.request(link_del(port_of(node)))
    await node.auditor.audit()
    await until(lambda: counts.lookup(count) is None)


async def test_a_check_looks_at_the_link_that_is_there_when_its_turn_comes(net: NodeNet, node: Node) -> None:
    """The audit made it again meanwhile."""
    backend, pod = NodeBackend(node), net.pod()
    wanted = request(pod)
    made = await backend.attach(wanted)
    node.netlink.request(link_del(port_of(node)))
    asked = CheckRequest("pods", "c9", "eth0", path_of(pod), made.host_interface, made.mac, made.mtu)
    endpoint = next(iter(node.store.state.endpoints()))
    async with node.switch.lock:
        checking = asyncio.ensure_future(backend.check(asked))
        await asyncio.sleep(0)
        await node.switch.reattach(endpoint, node.store.state)
    await checking


async def test_an_audit_lists_no_more_for_many_pods_than_for_one(
    net: NodeNet, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lists all interfaces is asked for once, not for each of them."""
    asked: Counter[str] = Counter()
    dump = Netlink.dump

    def counted(netlink: Netlink, query: Query[Any]) -> list[Any]:
        if netlink is node.netlink:
            asked[query.operation] += 1
        return dump(netlink, query)

    monkeypatch.setattr(Netlink, "dump", counted)
    backend = NodeBackend(node)
    await backend.attach(request(net.pod(), 7))
    for number in (8, 9):
        asked.clear()
        await backend.attach(request(net.pod(), number))
        await node.auditor.audit()
        assert (asked["list qdiscs"], asked["list interfaces"]) == (1, 1)


async def test_an_uplink_that_is_too_narrow_for_a_pod(net: NodeNet, config: NodeConfig) -> None:
    """It keeps the least that its interface can have, and the node from nothing; who comes then is refused."""
    overhead = EncapOverhead(overhead=1300)
    async with running(config) as node:
        await make_networks(node)
        backend = NodeBackend(node)
        await backend.attach(request(net.pod(), 6))
        await backend.attach(request(net.pod(), 7, "dual"))
        await backend.attach(replace(request(net.pod(), 8), policies=(overhead,)))
        ip("link", "set", "eth0", "mtu", "1320", netns_name=net.node)
        assert await node.refresh()
        assert node.uplink.mtu == 1320
        with pytest.raises(Invalid, match="leaves 20 of the uplink's 1320 bytes"):
            await backend.attach(replace(request(net.pod(), 9), policies=(overhead,)))
        before = {endpoint_id: state.link.mtu for endpoint_id, state in node.switch.ports}
        assert sorted(before.values()) == [68, 1270, 1280]
    async with running(config) as node:
        assert {endpoint_id: state.link.mtu for endpoint_id, state in node.switch.ports} == before
        assert await node.auditor.compare() == []


async def test_what_does_not_go_with_a_new_address_keeps_no_other_from_it(
    net: NodeNet, config: NodeConfig
) -> None:
    """A network stays as it was with its route by way of the node's last address, and services work as ever."""
    route = {"Type": "SDNRoute", "Settings": {"DestinationPrefix": "10.9.0.0/16", "NextHop": NODE_IP}}
    subnet = {"Subnets": [{"IpAddressPrefix": "10.88.0.0/24"}]}
    port = {"Protocol": 6, "InternalPort": 80, "ExternalPort": 80}
    service = {"FrontendVIPs": ["10.96.0.10"], "PortMappings": [port]}
    own = {"Name": "own", "Type": "Internal", "Ipams": [subnet], "Policies": [route]}
    async with running(config) as node:
        await make_networks(node)
        await node.service.create(Kind.NETWORK, decode_object(Kind.NETWORK, own))
        await node.service.create(Kind.LOADBALANCER, decode_object(Kind.LOADBALANCER, service))
        services = keys(node, "sw_services")
        assert services
        ip("address", "delete", f"{NODE_IP}/24", "dev", "eth0", netns_name=net.node)
        ip("address", "add", "192.168.77.50/24", "dev", "eth0", netns_name=net.node)
        assert await node.refresh()
        pods = node.store.state.network_by_name("pods")
        assert pods is not None
        assert first(pods.policies, ProviderAddress) == ProviderAddress(provider_address="192.168.77.50")
        assert keys(node, "sw_services") == services
        assert any(b"\x0a\x09\0\0" in key for key in keys(node, "sw_routes"))
    async with running(config) as node:
        assert keys(node, "sw_services") == services


def move(net: NodeNet, pod: str, how: str) -> None:
    """What becomes of a pod's interface behind the node's back."""
    if how == "renamed":
        ip("link", "set", "eth0", "down", netns_name=pod)
        ip("link", "set", "eth0", "name", "mine", netns_name=pod)
    elif how == "without IPv6":
        in_namespace(pod, "sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1")
    else:  # its file names another namespace now, in which somebody has an interface of that name
        other = net.pod()
        ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth1", netns_name=other)
        subprocess.run(["umount", "-l", path_of(pod)], check=True)
        subprocess.run(["mount", "--bind", path_of(other), path_of(pod)], check=True)


@pytest.mark.parametrize("how", ["renamed", "without IPv6", "elsewhere"])
async def test_a_pod_keeps_no_other_from_what_changes_for_all(net: NodeNet, node: Node, how: str) -> None:
    """One that has the right to may do with its interface what it likes; others have to follow the node's MTU."""
    backend, pods = NodeBackend(node), [net.pod(), net.pod()]
    for number, pod in enumerate(pods, 7):
        await backend.attach(request(pod, number, "dual"))
    before = mtu(pods[1])
    with NetNamespace(path_of(pods[0])):  # it lives on without its file
        move(net, pods[0], how)
        ip("link", "set", "eth0", "mtu", "1400", netns_name=net.node)
        assert await node.refresh()
    assert node.switch.node_facts.uplink_mtu == 1400
    assert mtu(pods[1]) == before - 100
    if how == "elsewhere":
        assert mtu(pods[0]) == 1500, "it is somebody else's"
    elif how == "without IPv6":
        assert mtu(pods[0]) == before - 100
        assert await node.auditor.compare() == []


async def test_whose_file_is_anothers_has_nothing_of_what_that_one_sends(net: NodeNet, node: Node) -> None:
    pod, count = net.pod(), 1000
    await NodeBackend(node).attach(request(pod))
    (endpoint,) = node.service.view.endpoints()

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as opened:
            opened.bind(("eth0", 0))
            for _ in range(count):
                opened.send(bytes(60))

    with NetNamespace(path_of(pod)):  # it lives on without its file
        move(net, pod, "elsewhere")
        for name in ("eth0", "eth1"):
            ip("link", "set", name, "up", netns_name=pod)
        in_pod(pod, send)
        assert (await node.service.endpoint_stats(endpoint.id)).packets_sent < count


def mtu(pod: str) -> int:
    (found,) = ip_json("link", "show", "eth0", netns_name=pod)
    return int(found["mtu"])


async def test_a_pod_that_cannot_be_read_keeps_the_audit_from_nothing_else(
    net: NodeNet, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in it may change faster than it can be read."""
    pods = [net.pod(), net.pod()]
    for number, pod in enumerate(pods, 7):
        await NodeBackend(node).attach(request(pod, number))
    restless, _ = [endpoint.id for endpoint in node.store.state.endpoints()]
    dump, where = Netlink.dump, node.switch.ports.get(restless)
    assert where is not None

    def dumped(netlink: Netlink, query: Query[Any]) -> list[Any]:
        if (
            netlink is not node.netlink
            and query.operation == "list addresses"
            and entered == [where.identity]
        ):
            raise KernelError(
                query.operation, errno.EAGAIN, "the table changed during every attempt to read it"
            )
        return dump(netlink, query)

    entered: list[object] = []
    differences = links.inside_differences

    def inside(link: PortLink, netns: NetNamespace) -> list[str]:
        entered[:] = [netns.identity]
        return differences(link, netns)

    monkeypatch.setattr(links, "inside_differences", inside)
    monkeypatch.setattr(Netlink, "dump", dumped)
    for pod in pods:
        ip("address", "flush", "dev", "eth0", netns_name=pod)
    ip("address", "flush", "dev", "samewire0", netns_name=net.node)
    report = await node.auditor.audit()
    (failed,) = report.failed
    assert restless in failed
    assert "changed during every attempt" in failed
    assert [(item.kind, item.subject) for item in await node.auditor.compare()] == [("pod", restless)]
    monkeypatch.undo()
    await node.auditor.audit()
    assert await node.auditor.compare() == []


async def test_audits_leave_time_for_others(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod that may delete its interface has one made again by the next audit, and may delete it again."""
    sleep, slept = asyncio.sleep, list[float]()

    async def noted(delay_s: float) -> None:
        slept.append(delay_s)
        await sleep(0)

    watcher = Watcher(LinkMonitor())
    watcher.listen(node)
    before = node.auditor.last
    monkeypatch.setattr(asyncio, "sleep", noted)
    watcher.run()
    try:
        node.switch.suspect.set()
        async with asyncio.timeout(STALL_S):
            while node.auditor.last is before:
                await sleep(0)
        await sleep(0)
        assert slept[-1] == min(4 * node.auditor.last.duration_s, 1)
    finally:
        monkeypatch.undo()
        await watcher.close()
        watcher.stop_listening()


async def test_routes_come_back_when_a_device_was_down_for_a_moment(net: NodeNet, node: Node) -> None:
    """Down and up again before it was heard of: the kernel says nothing of the routes that went."""
    dual = node.store.state.network_by_name("dual")  # of IPv6's routes it does
    assert dual is not None
    await node.service.delete(Kind.NETWORK, dual.id)
    watcher = Watcher(LinkMonitor())
    watcher.listen(node)
    watcher.run()
    try:
        assert await node.auditor.compare() == []
        for state in ("down", "up"):
            ip("link", "set", "samewire0", state, netns_name=net.node)
        assert await node.auditor.compare() != []
        await until(lambda: node.auditor.last.differences)
        assert await node.auditor.compare() == []
    finally:
        await watcher.close()
        watcher.stop_listening()
