"""Load balancers in the kernel's tables, by the real node: restarts, faults, the audit, and what others' changes do."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace

from samewire.cni.backend import Address, AttachRequest
from samewire.cni.result import Route
from samewire.errors import Invalid, KernelError, SamewireError
from samewire.hcn.codec import decode_modify, decode_object
from samewire.hcn.errors import StoreError
from samewire.hcn.loadbalancers import LoadBalancer, LoadBalancerFlags, PortMappingFlags
from samewire.hcn.plan.context import Context
from samewire.hcn.schema import Endpoint, EndpointFlags, IpConfiguration, Kind, Network
from samewire.hcn.switch import Change
from samewire.kernel import faults
from samewire.node import balancers
from samewire.node.balancers import Balancers
from samewire.node.cni_backend import NodeBackend
from samewire.node.config import NodeConfig
from samewire.node.node import Node
from samewire.node.stats import all_drops
from samewire.vfp.compile.balanced import TABLES
from samewire.vfp.compile.loadbalancer import compile_load_balancer
from samewire.vfp.constants import Arrival, Layer, Reason
from samewire.vfp.tables import Backend, Count, DropKey
from tests.support.balancers import VIP, backend, balancer
from tests.support.node import NodeNet, in_namespace, overlay, path_of

pytestmark = pytest.mark.root

OWNER = "proxy"
Start = Callable[[], Awaitable[Node]]


@pytest_asyncio.fixture
async def start(config: NodeConfig) -> AsyncIterator[Start]:
    running: list[Node] = []

    async def begin() -> Node:
        for node in running:
            await node.close()
        running[:] = [await Node.start(config, lambda _: None)]
        return running[0]

    yield begin
    faults.inject = None
    for node in running:
        await node.close()


@pytest_asyncio.fixture
async def node(start: Start) -> Node:
    made = await start()
    network = decode_object(Kind.NETWORK, overlay())
    assert isinstance(network, Network)
    await made.service.create_network(network)
    return made


def guid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012X}"


def numbered(count: int, *addresses: str) -> list[LoadBalancer]:
    return [
        balancer(*map(backend, addresses), id=guid(i), frontend_vips=(f"10.96.{i >> 8}.{i & 255}",))
        for i in range(1, count + 1)
    ]


def actual(node: Node) -> dict[str, dict[bytes, bytes]]:
    """What the kernel has."""
    return {table: dict(node.board.maps[table].items()) for table in TABLES}


def backends(node: Node) -> dict[str, bytes]:
    """The keys of the backends that the kernel has, by address."""
    rows = actual(node)["sw_backends"].items()
    return {".".join(map(str, Backend.unpack(row).address[:4])): key for key, row in rows}


async def attach(node: Node, pod: str, address: str, container: str = "c") -> None:
    await NodeBackend(node).attach(
        AttachRequest(
            network="pods",
            container_id=container,
            interface_name="eth0",
            netns_path=path_of(pod),
            addresses=(Address(address, 24, "10.244.0.1"),),
            routes=(Route("0.0.0.0/0", "10.244.0.1"),),
            policies=(),
        )
    )


async def change(node: Node, *values: LoadBalancer, delete: tuple[str, ...] = ()) -> None:
    assert await node.service.change_load_balancers(OWNER, values, delete) == {}
    assert actual(node) == node.switch.balancers.rows


async def test_a_batch_comes_changes_and_goes(node: Node) -> None:
    values = numbered(300, "192.168.1.5", "192.168.1.6")
    await change(node, *values)
    assert {table: len(rows) for table, rows in actual(node).items()} == {
        "sw_backends": 600,
        "sw_backend_sets": 300,
        "sw_source_ranges": 0,
        "sw_services": 300,
        "sw_direct": 0,
    }
    before = actual(node)
    await change(node, replace(values[7], backends=(backend("192.168.1.5"), backend("192.168.1.7"))))
    after = actual(node)
    differ = {
        table: sum(after[table].get(key) != before[table].get(key) for key in after[table] | before[table])
        for table in TABLES
    }
    assert differ == dict.fromkeys(TABLES, 0) | {"sw_backends": 2, "sw_backend_sets": 1}
    await change(node, delete=tuple(value.id for value in values))
    assert not any(actual(node).values())
    assert len(node.switch.balancers) == 0


async def test_vips_change_hands(node: Node) -> None:
    one, two = numbered(2, "192.168.1.5")
    await change(node, one, two)
    await change(
        node, replace(one, frontend_vips=two.frontend_vips), replace(two, frontend_vips=one.frontend_vips)
    )


async def test_a_restart_writes_nothing(node: Node, start: Start) -> None:
    await change(node, *numbered(50, "192.168.1.5", "192.168.1.6"))
    before = actual(node)
    written: list[str] = []
    faults.inject = lambda operation: written.append(operation) if "update sw_" in operation else None
    again = await start()
    faults.inject = None
    assert not [operation for operation in written if any(f" {table}" in operation for table in TABLES)]
    assert actual(again) == before == again.switch.balancers.rows
    assert again.auditor.last.differences == ()
    await change(again, *numbered(50, "192.168.1.5", "192.168.1.7"))
    kept = {key for key, row in before["sw_backends"].items() if row[3] == 5}
    assert kept == {key for key, row in actual(again)["sw_backends"].items() if row[3] == 5}
    assert not actual(again)["sw_backends"].keys() & (before["sw_backends"].keys() - kept)


async def test_new_maps_are_filled_under_the_old_numbers(node: Node) -> None:
    await change(node, *numbered(40, "192.168.1.5", "192.168.1.6"))
    before = actual(node)
    for table in TABLES:
        node.board.maps[table].delete_batch(before[table])

    def failed(load_balancer_id: str, error: SamewireError) -> None:
        raise AssertionError(f"{load_balancer_id}: {error}")

    fresh = Balancers(node.switch.kernel.tables, node.switch.numbers, lambda _: None)
    fresh.restore(node.service.view, node.switch.node_facts, lambda table: dict(before[table]), failed)
    assert actual(node) == fresh.rows == before


async def test_one_that_cannot_be_restored_leaves_nothing(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its VIP is another's, by whatever way it came into the store: its backends are nobody's."""
    (one,) = numbered(1, "192.168.1.5", "192.168.1.6")
    await change(node, one)
    before = actual(node)
    other = replace(one, id=guid(2), backends=(backend("192.168.1.7"),))
    monkeypatch.setattr(type(node.service.view), "load_balancers", lambda _: [one, other])
    fresh = Balancers(node.switch.kernel.tables, node.switch.numbers, lambda _: None)
    failed: list[str] = []
    fresh.restore(
        node.service.view, node.switch.node_facts, lambda _: None, lambda which, _: failed.append(which)
    )
    assert failed == [other.id]
    assert fresh.rows == actual(node) == before


async def test_counts_go_with_their_service(node: Node) -> None:
    await change(node, *numbered(2, "192.168.1.5"))
    counts = node.board.maps["sw_service_counts"]
    ids = [node.switch.balancers.services_of(guid(i))[0].to_bytes(4, "little") for i in (1, 2)]
    for key in (*ids, (10**6).to_bytes(4, "little")):
        counts.update(key, bytes(counts.value_size))
    await change(node, delete=(guid(1),))
    assert ids[0] not in dict(counts.items())
    report = await node.auditor.audit()
    assert set(dict(counts.items())) == {ids[1]}
    assert report.differences == ()


async def test_drops_of_a_service_that_is_gone_lose_its_name(node: Node) -> None:
    """Else each would leave a kind of drop for good, and the table of kinds fill up; no sum goes down."""
    await change(node, *numbered(2, "192.168.1.5"))
    drops = node.board.maps["sw_drops"]
    kept, gone = (node.switch.balancers.services_of(guid(i))[0] for i in (1, 2))
    port = node.switch.node_facts.uplink_ifindex
    kind = DropKey(port, 0, Layer.LB, Reason.NO_BACKEND, Arrival.UPLINK)
    route = DropKey(port, 0, Layer.ROUTE, Reason.NO_ROUTE, Arrival.UPLINK)
    blocked = DropKey(port, gone, Layer.ACL_IN, Reason.BLOCKED, Arrival.UPLINK)
    counted = {
        replace(kind, rule=kept): 1,
        kind: 2,
        replace(kind, rule=gone): 4,
        blocked: 8,
        replace(route, rule=gone): 16,
    }
    for key, packets in counted.items():
        drops.update(key.pack(), Count(packets).pack())
    before = dict(all_drops(drops))
    await change(node, delete=(guid(2),))
    await node.auditor.audit()
    after = dict(all_drops(drops))
    assert after.keys() == {replace(kind, rule=kept), kind, blocked, route}
    assert after[kind] == before[kind] + before[replace(kind, rule=gone)]
    assert after[route] == before[replace(route, rule=gone)]
    assert sum(after.values()) == sum(before.values())


async def test_a_full_table_of_drops_is_emptied_of_services_that_are_gone(node: Node) -> None:
    """It is full of them when nothing else has room: what is joined must not need a place that is not there."""
    await change(node, *numbered(1, "192.168.1.5"))
    drops = node.board.maps["sw_drops"]
    gone = node.switch.balancers.services_of(guid(1))[0]
    port = node.switch.node_facts.uplink_ifindex
    named = [
        DropKey(port, gone, Layer.LB, Reason.NO_BACKEND, Arrival.UPLINK),
        DropKey(port, gone, Layer.ROUTE, Reason.NO_ROUTE, Arrival.UPLINK),
    ]
    others = [DropKey(port, rule, Layer.ACL_IN, Reason.BLOCKED, 0) for rule in range(drops.shape[3])]
    with pytest.raises(KernelError):
        drops.update_batch((key.pack(), Count(1).pack()) for key in (*named, *others))
    before = dict(all_drops(drops))
    await change(node, delete=(guid(1),))
    report = await node.auditor.audit()
    assert report.failed == ()
    after = dict(all_drops(drops))
    for key in named:
        assert key not in after
        assert after[replace(key, rule=0)] == before[key]


async def test_numbers_are_never_used_twice(node: Node, start: Start) -> None:
    await change(node, *numbered(5, "192.168.1.5"))
    before = set(actual(node)["sw_backends"])
    await change(node, delete=tuple(guid(i) for i in range(1, 6)))
    again = await start()
    await change(again, *numbered(5, "192.168.1.5"))
    assert not before & set(actual(again)["sw_backends"])


async def test_what_could_not_be_compiled_at_the_start_is_not_forgotten(
    node: Node, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is reported as long as it fails, and made as soon as it does not."""
    one, two = numbered(2, "192.168.1.5")
    await change(node, one, two)
    compile_it = compile_load_balancer

    def fails(value: LoadBalancer, *more: Any) -> Any:
        if value.id == two.id:
            raise Invalid("$", "not today")
        return compile_it(value, *more)

    monkeypatch.setattr(balancers, "compile_load_balancer", fails)
    again = await start()
    assert len(again.switch.balancers) == 1
    assert any("not today" in text for text in again.auditor.last.failed)
    assert len(await again.auditor.compare()) == 1
    monkeypatch.setattr(balancers, "compile_load_balancer", compile_it)
    report = await again.auditor.audit()
    assert (report.failed, report.repaired) == ((), 1)
    assert actual(again) == again.switch.balancers.rows
    assert len(again.switch.balancers) == 2
    assert (await again.auditor.audit()).differences == ()


async def test_the_audit_puts_things_right(node: Node) -> None:
    values = [
        replace(value, service_name=f"default/web{i}") for i, value in enumerate(numbered(3, "192.168.1.5"))
    ]
    await change(node, *values)
    maps, wanted = node.board.maps, actual(node)
    gone = next(iter(wanted["sw_backends"]))
    maps["sw_backends"].delete(gone)
    ours = next(iter(wanted["sw_services"]))
    maps["sw_services"].update(ours, bytes(len(wanted["sw_services"][ours])))
    alien = (10**6).to_bytes(4, "little")
    maps["sw_backends"].update(alien, wanted["sw_backends"][gone])
    found = await node.auditor.compare()
    assert sorted(item.subject for item in found) == ["sw_backends", "sw_backends", "sw_services"]
    texts = " ".join(item.text for item in found)
    assert texts.count("of load balancer default/web") == 2
    assert actual(node) != wanted
    report = await node.auditor.audit()
    assert (len(report.differences), report.repaired, report.failed) == (3, 3, ())
    assert actual(node) == wanted
    assert (await node.auditor.audit()).differences == ()


async def test_changes_do_not_wait_for_the_whole_audit(node: Node) -> None:
    """Who wants the switch gets it after a few hundred entries."""
    await change(node, *numbered(3000, "192.168.1.5"))
    entries = sum(map(len, actual(node).values()))
    audit = asyncio.ensure_future(node.auditor.audit())
    turns = 0
    while not audit.done():
        async with node.switch.lock:
            turns += 1
        await asyncio.sleep(0)
    assert audit.result().differences == ()
    assert turns > entries / 256


async def test_what_a_crash_left_goes(node: Node, start: Start) -> None:
    await change(node, *numbered(2, "192.168.1.5"))
    wanted = actual(node)
    alien = (10**6).to_bytes(4, "little")
    row = next(iter(wanted["sw_backends"].values()))
    node.board.maps["sw_backends"].update(alien, row)
    again = await start()
    assert actual(again) == wanted
    await change(again, *numbered(2, "192.168.1.5", "192.168.1.6"))
    assert max(int.from_bytes(key, "little") for key in actual(again)["sw_backends"]) > 10**6


@pytest.mark.parametrize("count", [1, 40])
async def test_every_kernel_call_fails_once(node: Node, count: int) -> None:
    values = numbered(count, "192.168.1.5", "192.168.1.6")
    changed = numbered(count, "192.168.1.6", "192.168.1.7", "192.168.1.8")
    outside = (replace(values[0].port_mappings[0], flags=PortMappingFlags.VIP_EXTERNAL_IP),)
    changed[0] = replace(changed[0], port_mappings=outside, source_ranges=("192.0.2.0/24",))
    await change(node, *values)
    before = node.service.view.load_balancers()
    for number in range(200):
        left = number
        met = False

        def inject(operation: str) -> None:
            nonlocal left, met
            met = met or left == 0
            left -= 1
            if left == -1:
                raise KernelError(operation, 5, "injected")

        faults.inject = inject
        try:
            # One change, as the API makes it: what fails is taken back.
            await node.service._change(lambda context: _changes(node, changed))
        except SamewireError as error:
            if "injected" not in str(error):
                raise
        finally:
            faults.inject = None
        if not met:
            break
        assert node.service.view.load_balancers() == before
        assert actual(node) == node.switch.balancers.rows
    else:
        raise AssertionError("it never came through")
    assert number > 3
    assert actual(node) == node.switch.balancers.rows
    assert [value.frontend_vips for value in node.service.view.load_balancers()] == [
        value.frontend_vips for value in changed
    ]


def _changes(node: Node, values: list[LoadBalancer]) -> list[Change]:
    view = node.service.view
    return [
        Change(Kind.LOADBALANCER, value.id, view.load_balancer(value.id), replace(value, owner=OWNER))
        for value in values
    ]


async def test_a_fault_costs_a_batch_no_more_than_its_object(node: Node) -> None:
    values = numbered(3, "192.168.1.5")
    failed = False

    def inject(operation: str) -> None:
        nonlocal failed
        if operation.startswith("update sw_services") and not failed:
            failed = True
            raise KernelError(operation, 7, "injected")

    faults.inject = inject
    await change(node, *values)
    assert failed


async def test_a_pod_that_goes_is_a_backend_no_more(node: Node, net: NodeNet) -> None:
    await attach(node, net.pod(), "10.244.0.9")
    (endpoint,) = node.service.view.endpoints()
    by_address = replace(balancer(backend("10.244.0.9"), backend("192.168.1.5")), id=guid(1))
    await change(node, by_address)
    by_name = await node.service.create_load_balancer(
        balancer(id="", endpoint_ids=(endpoint.id,), frontend_vips=("10.96.0.11",))
    )
    ids = backends(node)
    assert set(ids) == {"10.244.0.9", "192.168.1.5"}
    assert len(actual(node)["sw_backends"]) == 3
    await node.service.delete_attached_endpoint(endpoint.id)
    assert backends(node) == {"192.168.1.5": ids["192.168.1.5"]}
    assert node.service.view.load_balancer(by_name.id) == replace(by_name, endpoint_ids=())
    # Another pod gets the address before the proxy has heard of anything.
    await attach(node, net.pod(), "10.244.0.9", "d")
    assert set(backends(node)) == {"10.244.0.9", "192.168.1.5"}
    assert backends(node)["10.244.0.9"] not in ids.values()
    assert actual(node) == node.switch.balancers.rows


async def test_a_pod_that_comes_for_a_remote_endpoint_is_the_backend(node: Node, net: NodeNet) -> None:
    """Its controller knew the address before the pod was there, and writes nothing again."""
    service, (network,) = node.service, node.service.view.networks()
    far = await service.create_endpoint(
        Endpoint(
            network_id=network.id,
            flags=EndpointFlags.REMOTE_ENDPOINT,
            ip_configurations=(IpConfiguration(ip_address="10.244.0.9"),),
        )
    )
    made = await service.create_load_balancer(balancer(id="", endpoint_ids=(far.id,)))
    before = backends(node)
    client, server = net.pod(), net.pod()
    await attach(node, client, "10.244.0.5")
    await attach(node, server, "10.244.0.9", "d")
    near = service.view.endpoint_by_ip(network.id, "10.244.0.9")
    assert near is not None
    assert not near.is_remote
    assert service.view.load_balancer(made.id) == replace(made, endpoint_ids=(near.id,))
    assert set(backends(node)) == {"10.244.0.9"}
    assert backends(node) != before  # what went elsewhere is not the new pod's business
    with served(server, "d"):
        assert ask(client, VIP) == "d"
    assert actual(node) == node.switch.balancers.rows


async def test_backends_follow_the_subnets_of_other_nodes(node: Node) -> None:
    await change(node, *numbered(3, "10.244.7.5", "192.168.1.5"))
    scopes = {Backend.unpack(row).scope for row in actual(node)["sw_backends"].values()}
    assert scopes == {0}
    before = backends(node)
    (network,) = node.service.view.networks()
    route = {
        "Type": "RemoteSubnetRoute",
        "Settings": {
            "DestinationPrefix": "10.244.7.0/24",
            "IsolationId": 4096,
            "ProviderAddress": "192.168.77.3",
            "DistributedRouterMacAddress": "0E-2A-00-00-00-07",
        },
    }
    written: list[str] = []
    faults.inject = written.append
    for request, scope in (("Add", 1), ("Remove", 0)):
        written.clear()
        body = {"ResourceType": "Policy", "RequestType": request, "Settings": {"Policies": [route]}}
        await node.service.modify(Kind.NETWORK, network.id, decode_modify(Kind.NETWORK, body))
        rows = [Backend.unpack(row) for row in actual(node)["sw_backends"].values()]
        assert {row.scope for row in rows if row.address[:2] == b"\x0a\xf4"} == {scope}
        told = [text for text in written if text.startswith(("update sw_backends", "update sw_changes"))]
        at = max(i for i, text in enumerate(told) if text.startswith("update sw_backends"))
        assert told[at + 1 :], "packets may have met them in their old network by then"
        assert actual(node) == node.switch.balancers.rows
    assert backends(node)["192.168.1.5"] == before["192.168.1.5"]


async def test_the_receiving_side_of_dsr_follows_the_port(node: Node, net: NodeNet) -> None:
    await attach(node, net.pod(), "10.244.0.9")
    (endpoint,) = node.service.view.endpoints()
    await change(
        node,
        balancer(
            backend("10.244.0.9"),
            backend("10.244.9.9", provider_address="192.168.77.3", mac_address="0E-2A-0A-F4-09-09"),
            id=guid(1),
            flags=LoadBalancerFlags.ENABLE_DIRECT_SERVER_RETURN,
        ),
    )
    assert len(actual(node)["sw_direct"]) == 1
    (row,) = actual(node)["sw_direct"].values()
    state = node.switch.ports.get(endpoint.id)
    assert state is not None
    assert int.from_bytes(row[:4], "little") == state.ifindex
    await node.service.delete_attached_endpoint(endpoint.id)
    assert actual(node)["sw_direct"] == {}


async def test_hops_of_dsr_come_and_go(node: Node, start: Start) -> None:
    (network,) = node.service.view.networks()
    route = {
        "Type": "RemoteSubnetRoute",
        "Settings": {
            "DestinationPrefix": "10.244.7.0/24",
            "IsolationId": 4096,
            "ProviderAddress": "192.168.77.3",
            "DistributedRouterMacAddress": "0E-2A-00-00-00-07",
        },
    }
    body = {"ResourceType": "Policy", "RequestType": "Add", "Settings": {"Policies": [route]}}
    await node.service.modify(Kind.NETWORK, network.id, decode_modify(Kind.NETWORK, body))
    hops = set(node.board.maps["sw_nexthops"].items())
    far = backend("10.244.7.9", provider_address="192.168.77.3", mac_address="0E-2A-0A-F4-07-09")
    value = balancer(far, id=guid(1), flags=LoadBalancerFlags.ENABLE_DIRECT_SERVER_RETURN)
    await change(node, value)
    ((number, _),) = set(node.board.maps["sw_nexthops"].items()) - hops
    (row,) = actual(node)["sw_backends"].values()
    assert Backend.unpack(row).direct.to_bytes(4, "little") == number
    again = await start()
    assert again.auditor.last.differences == ()
    await change(again, delete=(value.id,))
    assert set(again.board.maps["sw_nexthops"].items()) == hops


async def test_a_vip_for_one_network_goes_with_it(node: Node) -> None:
    (network,) = node.service.view.networks()
    await change(node, balancer(backend("192.168.1.5"), id=guid(1), network_id=network.id))
    assert {key[20:22] for key in actual(node)["sw_services"]} == {b"\x01\0", b"\xff\xff"}
    await node.service.delete(Kind.NETWORK, network.id)
    assert not any(actual(node).values())
    assert node.service.view.load_balancers() == []


_SERVER = (
    "import socket, sys\n"
    "listener = socket.create_server(('', 8080))\n"
    "print('ready', flush=True)\n"
    "while True: listener.accept()[0].sendall(sys.argv[1].encode())\n"
)


@contextmanager
def served(pod: str, name: str) -> Iterator[None]:
    """A server in a pod that says its name."""
    line = ["nsenter", f"--net={path_of(pod)}", sys.executable, "-c", _SERVER, name]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            process.kill()


def ask(pod: str, address: str) -> str:
    """Who answers at port 80; "" when the connection is refused."""
    code = (
        "import socket, sys\n"
        "try: peer = socket.create_connection((sys.argv[1], 80), 20)\n"
        "except ConnectionRefusedError: sys.exit()\n"
        "print(peer.recv(100).decode())\n"
    )
    return in_namespace(pod, sys.executable, "-c", code, address).stdout.strip()


async def test_pods_reach_the_pods_behind_a_vip(node: Node, net: NodeNet) -> None:
    client, one, two = net.pod(), net.pod(), net.pod()
    for pod, address in ((client, "10.244.0.5"), (one, "10.244.0.6"), (two, "10.244.0.7")):
        await attach(node, pod, address, address)
    names = {e.addresses[0]: e.id for e in node.service.view.endpoints()}
    with served(one, "one"), served(two, "two"):
        made = await node.service.create_load_balancer(
            balancer(id="", endpoint_ids=(names["10.244.0.6"], names["10.244.0.7"]))
        )
        assert {ask(client, VIP) for _ in range(20)} == {"one", "two"}
        await node.service.delete_attached_endpoint(names["10.244.0.6"])
        assert {ask(client, VIP) for _ in range(5)} == {"two"}
        await node.service.delete_attached_endpoint(names["10.244.0.7"])
        assert ask(client, VIP) == ""
    await node.service.delete(Kind.LOADBALANCER, made.id)


def one_of_very_many() -> tuple[LoadBalancer, list[LoadBalancer]]:
    """A load balancer with 100 backends, and what becomes of it: one more, one less, one instead of another."""
    many = [backend(f"192.168.2.{number}") for number in range(1, 101)]
    more = [*many, backend("192.168.3.1")]
    less = [*more[:40], *more[41:]]
    instead = [*less[:5], backend("192.168.3.2"), *less[6:]]
    made = balancer(id=guid(1), frontend_vips=("10.96.0.1",))
    return replace(made, backends=tuple(many)), [
        replace(made, backends=tuple(which)) for which in (more, less, instead, instead[:96])
    ]


async def test_one_member_of_very_many_is_written_alone(
    node: Node, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are not compiled; they keep their ids, and their places as far as there are so many. After a restart,
    too.
    """
    value, history = one_of_very_many()
    await change(node, value)
    monkeypatch.setattr(balancers, "compile_load_balancer", None)
    for following in history:
        before, ids = actual(node), backends(node)
        await change(node, following)
        named = {item.ip_address for item in following.backends}
        assert backends(node).keys() == named
        assert {name: key for name, key in backends(node).items() if name in ids} == {
            name: key for name, key in ids.items() if name in named
        }
        now = actual(node)
        moved = [
            key for key, row in now["sw_backend_sets"].items() if before["sw_backend_sets"].get(key) != row
        ]
        assert len(moved) <= 4
    monkeypatch.setattr(balancers, "compile_load_balancer", compile_load_balancer)
    last = actual(node)
    again = await start()
    assert actual(again) == last == again.switch.balancers.rows
    monkeypatch.setattr(balancers, "compile_load_balancer", None)
    await change(again, history[0])
    assert backends(again).keys() == {item.ip_address for item in history[0].backends}


def _to(node: Node, value: LoadBalancer, _: Context) -> list[Change]:
    return _changes(node, [value])


async def test_what_could_not_be_taken_back_is_no_base_for_the_next_change(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the store nor the kernel takes anything for a while: the kernel has members that the object has not."""
    value, (*_, instead, _) = one_of_very_many()
    await change(node, value)

    def refuse(_: object) -> None:
        faults.inject = fail
        raise StoreError("samewire.db", "disk full")

    def fail(operation: str) -> None:
        raise KernelError(operation, 5, "injected")

    with monkeypatch.context() as patched:
        patched.setattr(node.store, "commit", refuse)
        with pytest.raises(StoreError):
            await node.service._change(partial(_to, node, instead))
    faults.inject = None
    await change(node, replace(value, backends=(*value.backends, backend("192.168.3.9"))))
    assert backends(node).keys() == {*(item.ip_address for item in value.backends), "192.168.3.9"}


async def test_every_kernel_call_of_a_member_fails_once(node: Node) -> None:
    value, history = one_of_very_many()
    await change(node, value)
    for following in history:
        before, view = actual(node), node.service.view.load_balancers()
        for number in range(50):
            left = number

            def inject(operation: str) -> None:
                nonlocal left
                left -= 1
                if left == -1:
                    raise KernelError(operation, 5, "injected")

            node.switch.balancers._doubted.clear()  # each is the first that fails
            faults.inject = inject
            try:
                await node.service._change(partial(_to, node, following))
            except SamewireError:
                assert node.service.view.load_balancers() == view
                assert actual(node) == before == node.switch.balancers.rows
                continue
            finally:
                faults.inject = None
            break
        assert number > 1
        assert actual(node) == node.switch.balancers.rows != before
