"""Every kernel call of a change fails once: the change is made or it is not, and nothing stays behind."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec
import pytest

from samewire.cni.backend import Address, AttachRequest
from samewire.cni.result import Route
from samewire.errors import Conflict, KernelError, NotFound, SamewireError, Unavailable
from samewire.hcn.codec import decode_modify, decode_object, decode_policy
from samewire.hcn.plan import attach
from samewire.hcn.plan.attach import SystemType
from samewire.hcn.schema import Endpoint, Kind, Namespace, Network
from samewire.kernel import faults
from samewire.kernel.netns import NetNamespace
from samewire.kernel.rtnetlink import Link, Netlink, link_dump, link_set
from samewire.node.audit import AuditReport, is_leftover
from samewire.node.cni_backend import NodeBackend
from samewire.node.config import NodeConfig
from samewire.node.node import Node
from samewire.vfp.tables import Port
from tests.support.node import NODE_IP, ROUTER_IP, NodeNet, can_ping, in_namespace, ip, overlay, path_of
from tests.support.running import running

pytestmark = pytest.mark.root

Action = Callable[[], Awaitable[object]]


def request(pod: str, *, container: str = "c", shaped: bool = False, routed: bool = False) -> AttachRequest:
    acl = {
        "Type": "ACL",
        "Settings": {"Action": "Allow", "Direction": "In", "Protocols": "6", "Priority": 100},
    }
    qos = {"Type": "QOS", "Settings": {"MaximumIncomingBandwidthInBytes": 10**6}}
    mapping = {"Type": "PortMapping", "Settings": {"Protocol": 6, "InternalPort": 80, "ExternalPort": 8080}}
    nat: dict[str, Any] = {"Type": "OutBoundNAT", "Settings": {}}
    route = {"Type": "SDNRoute", "Settings": {"DestinationPrefix": "10.77.0.0/16"}}
    return AttachRequest(
        network="pods",
        container_id=container,
        interface_name="eth0",
        netns_path=path_of(pod),
        addresses=(Address("10.244.0.9", 24, "10.244.0.1"), Address("fd00:244::9", 64, "fd00:244::1")),
        routes=(Route("0.0.0.0/0", "10.244.0.1"), Route("::/0", "fd00:244::1")),
        policies=tuple(
            decode_policy(value, "$")
            for value in (acl, mapping, nat, *((qos,) if shaped else ()), *((route,) if routed else ()))
        ),
    )


async def create_network(node: Node, **more: Any) -> Network:
    wanted = decode_object(Kind.NETWORK, overlay(subnet6="fd00:244::/64", **more))
    assert isinstance(wanted, Network)
    return await node.service.create_network(wanted)


async def operations(action: Action) -> list[str]:
    """The words of every kernel operation of an action."""
    seen: list[str] = []
    faults.inject = seen.append
    try:
        await action()
    finally:
        faults.inject = None
    return seen


async def failing_at(number: int, action: Action) -> bool:
    """Run an action whose n-th operation fails, once. Whether it succeeded all the same."""
    left = number

    def inject(operation: str) -> None:
        nonlocal left
        if left == 0:
            left -= 1
            raise KernelError(operation, 5, "injected")
        left -= 1

    faults.inject = inject
    try:
        await action()
    except SamewireError as error:
        if "injected" not in str(error):
            raise
        return False
    else:
        return True
    finally:
        faults.inject = None


def generations(node: Node) -> list[int]:
    rows = node.switch.kernel.tables.read(["sw_ports"])["sw_ports"].values()
    return [row.generation for row in rows if isinstance(row, Port)]


def host_ends(node: Node) -> list[Link]:
    return [link for link in node.netlink.dump(link_dump()) if is_leftover(link)]


def filters(net: NodeNet) -> str:
    return in_namespace(net.node, "bridge", "fdb", "show", "dev", "eth0").stdout


def names_in(pod: str) -> list[str]:
    with NetNamespace(path_of(pod)) as netns, Netlink(netns.fd) as inside:
        return [link.name for link in inside.dump(link_dump())]


def numbers(node: Node) -> dict[str, dict[str, int]]:
    return {kind: node.store.numbers(kind) for kind in ("scope", "nexthop", "acl", "nat")}


async def test_what_is_known_of_a_network_follows_it_and_the_node(node: Node) -> None:
    made, backend = await create_network(node), NodeBackend(node)
    before = await backend.ensure_network("pods", None)
    assert before.subnets == ("10.244.0.0/24", "fd00:244::/64")
    node.netlink.request(link_set("eth0", mtu=1400))
    await node.refresh()
    assert (await backend.ensure_network("pods", None)).mtu == before.mtu - 100
    await node.service.delete(Kind.NETWORK, made.id)
    await create_network(node, subnet="10.245.0.0/24")
    assert (await backend.ensure_network("pods", None)).subnets == ("10.245.0.0/24", "fd00:244::/64")


async def test_add(net: NodeNet, node: Node) -> None:
    await create_network(node)
    backend, pod = NodeBackend(node), net.pod()
    before = {kind: set(keys) for kind, keys in numbers(node).items()}
    wanted = request(pod, shaped=True)
    steps = await operations(lambda: backend.attach(wanted))
    assert await node.auditor.compare() == []
    await backend.detach("c", "eth0")
    assert len(steps) > 15, steps
    tables = [number for number, step in enumerate(steps) if step.startswith("update sw_")]
    opening = [number for number, step in enumerate(steps) if step.startswith("change interface")]
    assert max(tables) < min(opening), "a pod is closed until its policies are in the kernel"
    for number, step in enumerate(steps):
        if await failing_at(number, lambda: backend.attach(wanted)):
            assert [endpoint.container_id for endpoint in node.store.state.endpoints()] == ["c"], step
            assert await node.auditor.compare() == [], step
            await backend.detach("c", "eth0")
        assert await node.auditor.compare() == [], step
        assert node.store.state.endpoints() == [], step
        assert node.store.state.namespaces() == [], step
        assert host_ends(node) == [], step
        assert names_in(pod) == ["lo"], step
        assert {kind: set(keys) for kind, keys in numbers(node).items()} == before, step
    await backend.attach(wanted)


async def test_del(net: NodeNet, node: Node) -> None:
    await create_network(node)
    backend, pod = NodeBackend(node), net.pod()
    wanted = request(pod)

    async def delete() -> None:
        await backend.detach("c", "eth0")

    await backend.attach(wanted)
    steps = await operations(delete)
    for number, step in enumerate(steps):
        await backend.attach(wanted)
        if not await failing_at(number, delete):
            assert not step.startswith("delete interface"), "that is tried twice"
            assert [endpoint.container_id for endpoint in node.store.state.endpoints()] == ["c"], step
            assert await node.auditor.compare() == [], step
            await delete()
        assert node.store.state.endpoints() == [], step
        assert host_ends(node) == [], step
        assert await node.auditor.compare() == [], step


@pytest.mark.parametrize("kind", ["L2Bridge", "NAT"])
async def test_add_and_del_without_a_tunnel(net: NodeNet, node: Node, kind: str) -> None:
    """The one has its own link address on the uplink, the other routes of the node's own."""
    subnet = {"Subnets": [{"IpAddressPrefix": "10.88.0.0/24"}]}
    mac = {"Type": "SourceMacAddress", "Settings": {"SourceMacAddress": "0E-2A-99-00-00-01"}}
    body = {"Name": "n", "Type": kind, "Ipams": [subnet], "Policies": [mac] if kind == "L2Bridge" else []}
    await node.service.create(Kind.NETWORK, decode_object(Kind.NETWORK, body))
    backend, pod = NodeBackend(node), net.pod()
    wanted = msgspec.structs.replace(
        request(pod, shaped=True),
        network="n",
        addresses=(Address("10.88.0.9", 24, "10.88.0.1"),),
        routes=(Route("0.0.0.0/0", "10.88.0.1"),),
    )

    async def add() -> None:
        await backend.attach(wanted)

    async def delete() -> None:
        await backend.detach("c", "eth0")

    before = filters(net)
    for number, step in enumerate(await operations(add)):
        await delete()
        if not await failing_at(number, add):
            assert (host_ends(node), names_in(pod)) == ([], ["lo"]), step
            await add()
        assert await node.auditor.compare() == [], step
    for number, step in enumerate(await operations(delete)):
        await add()
        if not await failing_at(number, delete):
            assert await node.auditor.compare() == [], step
            await delete()
        assert await node.auditor.compare() == [], step
        assert (host_ends(node), filters(net)) == ([], before), step


async def test_network_create_and_delete(node: Node) -> None:
    async def delete(network: Network) -> None:
        await node.service.delete(Kind.NETWORK, network.id)

    steps = await operations(lambda: create_network(node))
    (made,) = node.store.state.networks()
    back = await operations(lambda: delete(made))
    for number, step in enumerate(steps):
        if await failing_at(number, lambda: create_network(node)):
            await delete(node.store.state.networks()[0])
        assert node.store.state.networks() == [], step
        assert await node.auditor.compare() == [], step
    for number, step in enumerate(back):
        network = await create_network(node)
        if not await failing_at(number, partial(delete, network)):
            assert node.store.state.networks() == [network], step
            assert await node.auditor.compare() == [], step
            await delete(network)
        assert await node.auditor.compare() == [], step


async def test_a_pod_of_a_long_name_is_attached(net: NodeNet, node: Node) -> None:
    """Kubernetes lets a namespace have 63 characters and a pod 253: more than an endpoint's name."""
    await create_network(node)
    asked = msgspec.structs.replace(request(net.pod()), pod_namespace="n" * 63, pod_name="p" * 253)
    await NodeBackend(node).attach(asked)
    (endpoint,) = node.store.state.endpoints()
    assert endpoint.name == f"{'n' * 63}/{'p' * 192}"


async def test_new_policies(net: NodeNet, node: Node) -> None:
    await create_network(node)
    backend, pod = NodeBackend(node), net.pod()
    await backend.attach(request(pod))
    (endpoint,) = node.store.state.endpoints()
    qos = {"Type": "QOS", "Settings": {"MaximumIncomingBandwidthInBytes": 10**6}}
    mtu = {"Type": "InterfaceParameters", "Settings": {"Mtu": 1300}}
    texts = [{"Policies": [qos, mtu]}, {"Policies": []}]
    changes = [
        decode_modify(
            Kind.ENDPOINT, {"ResourceType": "Policy", "RequestType": "Update", "Settings": settings}
        )
        for settings in texts
    ]

    async def modify(which: int) -> None:
        await node.service.modify(Kind.ENDPOINT, endpoint.id, changes[which])

    for which in (0, 1):
        await modify(1 - which)
        steps = await operations(partial(modify, which))
        assert steps
        for number, step in enumerate(steps):
            await modify(1 - which)
            before = node.store.state.endpoint(endpoint.id)
            if not await failing_at(number, partial(modify, which)):
                assert node.store.state.endpoint(endpoint.id) == before, step
            assert await node.auditor.compare() == [], (which, step)


async def test_routes_and_remote_subnets(net: NodeNet, node: Node) -> None:
    network = await create_network(node)
    await NodeBackend(node).attach(request(net.pod()))
    (endpoint,) = node.store.state.endpoints()
    entry = {"DestinationPrefix": "10.78.0.0/16", "NextHop": ROUTER_IP, "NeedEncap": True}
    route = {"HostComputeEndpoints": [endpoint.id], "Routes": [entry]}
    remote = {
        "Type": "RemoteSubnetRoute",
        "Settings": {
            "DestinationPrefix": "10.244.9.0/24",
            "IsolationId": 4096,
            "ProviderAddress": "192.168.77.9",
            "DistributedRouterMacAddress": "02-11-22-33-44-55",
        },
    }

    async def make_route() -> None:
        await node.service.create(Kind.ROUTE, decode_object(Kind.ROUTE, route))

    async def remove_route() -> None:
        await node.service.delete(Kind.ROUTE, node.store.state.routes()[0].id)

    async def modify(how: str) -> None:
        change = {"ResourceType": "Policy", "RequestType": how, "Settings": {"Policies": [remote]}}
        await node.service.modify(Kind.NETWORK, network.id, decode_modify(Kind.NETWORK, change))

    for make, remove in (make_route, remove_route), (partial(modify, "Add"), partial(modify, "Remove")):
        for there, back in ((make, remove), (remove, make)):
            steps = await operations(there)
            assert steps
            for number, step in enumerate(steps):
                await back()
                if not await failing_at(number, there):
                    assert await node.auditor.compare() == [], step
                    await there()
                assert await node.auditor.compare() == [], step


async def test_an_audit_goes_on_the_next_time(net: NodeNet, node: Node) -> None:
    await create_network(node)
    pod = net.pod()
    await NodeBackend(node).attach(request(pod))

    def damage() -> None:
        for name in ("sw_ports", "sw_endpoints", "sw_routes", "sw_acl_rules", "sw_nat", "sw_nexthops"):
            found = node.board.maps[name]
            found.delete_batch([key for key, _ in found.items()])
        ip("address", "flush", "dev", "samewire0", netns_name=net.node)
        ip("address", "flush", "dev", "eth0", netns_name=pod)
        ip("link", "set", "eth0", "mtu", "1300", netns_name=pod)

    reports: list[AuditReport] = []

    async def audit() -> None:
        reports.append(await node.auditor.audit())

    damage()
    steps = await operations(audit)
    assert await node.auditor.compare() == []
    for number, step in enumerate(steps):
        damage()
        await failing_at(number, audit)
        assert reports[-1].failed, step
        assert (await node.auditor.audit()).failed == (), step
        assert await node.auditor.compare() == [], step
        assert [endpoint.container_id for endpoint in node.store.state.endpoints()] == ["c"], step


async def test_a_start_that_fails_leaves_all_to_the_next(net: NodeNet, config: NodeConfig) -> None:
    """Over existing pins, once for each kind of operation."""
    pod = net.pod()

    async def start() -> None:
        async with running(config):
            pass

    async with running(config) as node:
        await create_network(node)
        await NodeBackend(node).attach(request(pod, shaped=True))
        ends = [link.ifindex for link in host_ends(node)]
    steps = await operations(start)
    kinds = {re.sub(r" /\S+/| sw_\w+", "", step): number for number, step in enumerate(steps)}
    assert len(kinds) > 5, kinds
    opened = len(os.listdir("/proc/self/fd"))
    for step, number in kinds.items():
        await failing_at(number, start)
        assert len(os.listdir("/proc/self/fd")) == opened, step
        async with running(config) as node:
            assert await node.auditor.compare() == [], step
            assert [link.ifindex for link in host_ends(node)] == ends, step
    assert can_ping(pod, NODE_IP)


async def test_lo_that_cannot_be_set_keeps_no_node_down(net: NodeNet, config: NodeConfig) -> None:
    """Not by the start, as it undoes no change: the audit tries again."""
    mapping = {"Type": "PortMapping", "Settings": {"Protocol": 132, "InternalPort": 80, "ExternalPort": 8080}}
    asked = msgspec.structs.replace(request(net.pod()), policies=(decode_policy(mapping, "$"),))
    async with running(config) as node:
        await create_network(node)
        await NodeBackend(node).attach(asked)
    in_namespace(net.node, "sysctl", "-q", "-w", "net.ipv4.conf.lo.accept_local=0")

    def refuse(operation: str) -> None:
        if operation.startswith("write /proc/sys/net/ipv4/conf/lo/"):
            raise KernelError(operation, 30, "injected")

    faults.inject = refuse
    async with running(config) as node:
        assert [found.subject for found in await node.auditor.compare()] == ["lo"]
        faults.inject = None
        assert (await node.auditor.audit()).failed == ()
        assert await node.auditor.compare() == []


async def test_a_store_that_cannot_be_written_leaves_no_pod(
    net: NodeNet, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    from samewire.hcn.errors import StoreError

    await create_network(node)
    backend, pod = NodeBackend(node), net.pod()

    def refuse(changes: object) -> None:
        raise StoreError("samewire.db", "disk full")

    with monkeypatch.context() as patched:
        patched.setattr(node.store, "commit", refuse)
        with pytest.raises(StoreError):
            await backend.attach(request(pod))
    assert names_in(pod) == ["lo"]
    assert host_ends(node) == []
    assert await node.auditor.compare() == []


async def test_the_audit_repairs_what_tables_lost(net: NodeNet, node: Node) -> None:
    await create_network(node)
    backend, pod = NodeBackend(node), net.pod()
    await backend.attach(request(pod))
    for name in ("sw_ports", "sw_endpoints", "sw_routes", "sw_acl_rules", "sw_nat", "sw_portmaps", "sw_vnis"):
        found = node.board.maps[name]
        found.delete_batch([key for key, _ in found.items()])
        assert {item.subject for item in await node.auditor.compare()} == {name}
        report = await node.auditor.audit()
        assert report.failed == ()
        assert await node.auditor.compare() == []


async def test_flows_are_judged_again_after_what_judged_them_was_repaired(net: NodeNet, node: Node) -> None:
    """As after a crash between the first row of a change and the port's new generation."""
    await create_network(node)
    await NodeBackend(node).attach(request(net.pod()))

    tables = (("sw_endpoints", False), ("sw_routes", True), ("sw_acl_rules", True), ("sw_ports", True))
    for name, judges in tables:
        before, found = generations(node), node.board.maps[name]
        found.delete_batch([key for key, _ in found.items()])
        assert (await node.auditor.audit()).failed == ()
        after = generations(node)
        assert [new > old for new, old in zip(after, before, strict=True)] == [judges] * len(before)
    assert await node.auditor.compare() == []


@pytest.mark.parametrize(
    ("name", "judges"),
    [
        ("sw_endpoints", False),
        ("sw_routes", True),
        ("sw_acl_rules", True),
        ("sw_own_routes", True),
        ("sw_portmaps", True),
    ],
)
async def test_flows_are_judged_again_by_a_start_that_finds_less(
    net: NodeNet, config: NodeConfig, name: str, judges: bool
) -> None:
    """As after a crash between the removal of a row and the port's new generation: the object still has it."""
    async with running(config) as node:
        await create_network(node)
        await NodeBackend(node).attach(request(net.pod(), routed=True))
        before, found = generations(node), node.board.maps[name]
        found.delete_batch([key for key, _ in found.items()])
    async with running(config) as node:
        assert await node.auditor.compare() == []
        after = generations(node)
        assert [new > old for new, old in zip(after, before, strict=True)] == [judges]
    async with running(config) as node:
        assert generations(node) == after, "a start that finds all has nothing judged again"


async def test_a_read_that_fails_is_not_an_empty_table(net: NodeNet, node: Node) -> None:
    await create_network(node)
    await NodeBackend(node).attach(request(net.pod()))
    ends = [link.ifindex for link in host_ends(node)]

    def inject(operation: str) -> None:
        if operation.startswith(("read sw_", "walk sw_", "update", "delete")):
            raise KernelError(operation, 5, "injected")

    faults.inject = inject
    report = await node.auditor.audit()
    faults.inject = None
    assert report.failed
    assert [link.ifindex for link in host_ends(node)] == ends
    assert await node.auditor.compare() == []


async def test_a_port_opens_when_the_program_is_attached(net: NodeNet, node: Node) -> None:
    """A thread attaches it, and the kernel may be long about that."""
    await create_network(node)
    written, opened = threading.Event(), threading.Event()
    early = []

    def inject(operation: str) -> None:
        if operation.startswith("update sw_changes"):
            written.set()
        elif operation.startswith("change interface"):
            opened.set()
        elif operation.startswith("attach sw_ingress"):
            assert written.wait(10)
            early.append(opened.wait(0.2))

    faults.inject = inject
    await NodeBackend(node).attach(request(net.pod()))
    faults.inject = None
    assert early == [False]
    assert opened.is_set()
    assert await node.auditor.compare() == []


async def test_an_attached_endpoint_cannot_be_attached_twice(net: NodeNet, node: Node) -> None:
    await create_network(node)
    backend, pod = NodeBackend(node), net.pod()
    await backend.attach(request(pod))
    with pytest.raises(SamewireError, match="already"):
        await backend.attach(request(pod))
    with pytest.raises(SamewireError, match="own"):
        await backend.attach(
            AttachRequest(
                network="pods",
                container_id="d",
                interface_name="eth1",
                netns_path=path_of(net.node),
                addresses=(Address("10.244.0.10", 24, "10.244.0.1"),),
            )
        )
    assert len(node.store.state.endpoints()) == 1
    assert isinstance(node.store.state.endpoints()[0], Endpoint)


async def test_endpoints_whose_ids_begin_alike_do_not_take_one_anothers_interface(
    net: NodeNet, node: Node
) -> None:
    """The first digits name it, and callers choose ids: 1, 2, 3 with leading zeros, for one."""
    network = await create_network(node)

    async def attach_one(number: int) -> None:
        space = await node.service.create_namespace(Namespace(netns_path=path_of(net.pod())))
        wanted = Endpoint(id=f"00000000-0000-0000-0000-{number:012}", network_id=network.id)
        pod = await node.service.create_endpoint(wanted)
        add = {"ResourceType": "Endpoint", "RequestType": "Add", "Settings": {"EndpointId": pod.id}}
        await node.service.modify(Kind.NAMESPACE, space.id, decode_modify(Kind.NAMESPACE, add))

    await attach_one(1)
    before = host_ends(node)
    with pytest.raises(Conflict, match="begins with the same 11 digits"):
        await attach_one(2)
    assert [link.ifindex for link in host_ends(node)] == [link.ifindex for link in before]
    assert await node.auditor.compare() == []


async def test_an_add_behind_the_deletion_of_its_network_finds_none(net: NodeNet, node: Node) -> None:
    network = await create_network(node)
    backend, pod = NodeBackend(node), net.pod()
    async with node.service._lock:  # both have to wait, the deletion first
        deletion = asyncio.create_task(node.service.delete(Kind.NETWORK, network.id))
        addition = asyncio.create_task(backend.attach(request(pod)))
        for _ in range(3):
            await asyncio.sleep(0)
    await deletion
    with pytest.raises(NotFound, match="network 'pods' not found"):
        await addition
    assert host_ends(node) == []
    assert names_in(pod) == ["lo"]


@pytest.mark.parametrize("deletion_fails", [False, True])
async def test_an_add_before_the_deletion_of_its_network_leaves_nothing(
    net: NodeNet, node: Node, deletion_fails: bool
) -> None:
    """Its address is given back: a deletion that is taken back must not bring the pod back with it."""
    network = await create_network(node)
    backend, pod = NodeBackend(node), net.pod()

    def inject(operation: str) -> None:
        if deletion_fails and operation.startswith("delete interface"):
            raise KernelError(operation, 5, "injected")

    async with node.service._lock:  # both have to wait, the addition first
        addition = asyncio.create_task(backend.attach(request(pod)))
        await asyncio.sleep(0)
        deletion = asyncio.create_task(node.service.delete(Kind.NETWORK, network.id))
        await asyncio.sleep(0)
    faults.inject = inject
    try:
        await asyncio.gather(deletion, return_exceptions=True)
    finally:
        faults.inject = None
    with pytest.raises(Unavailable, match="removed as soon as it was made"):
        await addition
    assert node.store.state.endpoints() == []
    assert host_ends(node) == []
    assert await node.auditor.compare() == []


async def test_an_add_beside_the_del_of_who_had_the_interface_before(net: NodeNet, node: Node) -> None:
    """The port has gone already, the object has not: two have it removed."""
    await create_network(node)
    backend, pod = NodeBackend(node), net.pod()
    await backend.attach(request(pod))
    deletion = asyncio.create_task(backend.detach("c", "eth0"))
    addition = asyncio.create_task(backend.attach(request(pod, container="d")))
    await asyncio.gather(deletion, addition)
    assert [endpoint.container_id for endpoint in node.store.state.endpoints()] == ["d"]
    assert await node.auditor.compare() == []


async def test_what_the_node_is_now_is_taken_over_at_the_second_try(node: Node) -> None:
    """The watcher tries again what failed: what is half done must not pass for done."""
    await create_network(node)
    node.netlink.request(link_set("eth0", mtu=1400))
    steps = await operations(node.refresh)
    assert len(steps) > 5, steps
    for number, step in enumerate(steps):
        mtu = 1410 + number
        node.netlink.request(link_set("eth0", mtu=mtu))
        if not await failing_at(number, node.refresh):
            assert await node.refresh(), step
        assert node.switch.node_facts.uplink_mtu == mtu, step
        assert not await node.refresh(), step
        assert await node.auditor.compare() == [], step


async def test_reports_of_drops_that_could_not_be_asked_for_do_not_come_later(node: Node) -> None:
    assert not await failing_at(0, lambda: node.report_drops(True))
    node.netlink.request(link_set("eth0", mtu=1400))
    assert await node.refresh()
    assert not node.switch.node_facts.events


async def test_routes_that_go_with_the_last_address_of_the_node_are_there_after_a_failure(node: Node) -> None:
    bridge = {"Name": "lan", "Type": "L2Bridge", "Ipams": [{"Subnets": [{"IpAddressPrefix": "10.1.0.0/24"}]}]}
    network = await node.service.create(Kind.NETWORK, decode_object(Kind.NETWORK, bridge))
    made = await node.service.create(
        Kind.ENDPOINT, decode_object(Kind.ENDPOINT, {"HostComputeNetwork": network.id})
    )
    node_itself = attach.AttachRequest(system_type=SystemType.HOST)
    await node.service.attach(made.id, node_itself)
    steps = await operations(lambda: node.service.detach(made.id, attach.AttachRequest()))
    assert "set route 10.1.0.0/24" in steps
    for number, step in enumerate(steps):
        await node.service.attach(made.id, node_itself)
        if not await failing_at(number, lambda: node.service.detach(made.id, attach.AttachRequest())):
            assert await node.auditor.compare() == [], step
            await node.service.detach(made.id, attach.AttachRequest())
        assert await node.auditor.compare() == [], step
