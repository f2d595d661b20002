"""ACLs and IP sets through the service, down to the kernel: what a change touches, and what it does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
import pytest_asyncio

from samewire.errors import KernelError, SamewireError
from samewire.hcn.codec import decode_modify, decode_object
from samewire.hcn.schema import Kind
from samewire.kernel import faults
from samewire.node.config import NodeConfig
from samewire.node.node import Node
from samewire.vfp.compile.acl_table import was_edited
from samewire.vfp.diff import Operation
from samewire.vfp.tables import Port
from tests.support.node import SHORT_S, NodeNet, can_ping, path_of

pytestmark = [pytest.mark.root]

TABLES = (
    "sw_acl_vectors", "sw_acl_rules", "sw_acl_any", "sw_acl_prefixes", "sw_acl_ports", "sw_acl_sets",
    "sw_set_classes", "sw_set_members", "sw_acl_spaces",
)  # fmt: skip


class Pods:
    """Two pods on a network with sets; the operations of each change are recorded."""

    def __init__(self, node: Node, net: NodeNet, monkeypatch: pytest.MonkeyPatch) -> None:
        self.node, self.net = node, net
        self.written: list[Operation] = []
        write = node.switch.kernel.tables.write

        def recorded(operations: Iterable[Operation]) -> None:
            items = list(operations)
            self.written += items
            write(items)

        monkeypatch.setattr(node.switch.kernel.tables, "write", recorded)

    async def start(self, *sets: dict[str, Any]) -> None:
        network = {
            "Name": "n",
            "Type": "Internal",
            "Ipams": [{"Subnets": [{"IpAddressPrefix": "10.50.0.0/24"}]}],
        }
        made = await self.node.service.create(Kind.NETWORK, decode_object(Kind.NETWORK, network))
        self.network = made.id
        self.endpoints: list[str] = []
        self.spaces = [self.net.pod() for _ in range(2)]
        for i, name in zip((10, 11), self.spaces, strict=True):
            space = await self.node.service.create(
                Kind.NAMESPACE, decode_object(Kind.NAMESPACE, {"NetnsPath": path_of(name)})
            )
            body = {"HostComputeNetwork": self.network, "IpConfigurations": [{"IpAddress": f"10.50.0.{i}"}]}
            made = await self.node.service.create(Kind.ENDPOINT, decode_object(Kind.ENDPOINT, body))
            self.endpoints.append(made.id)
            join = {"ResourceType": "Endpoint", "RequestType": "Add", "Settings": {"EndpointId": made.id}}
            await self.node.service.modify(Kind.NAMESPACE, space.id, decode_modify(Kind.NAMESPACE, join))
        if sets:
            await self.change(Kind.NETWORK, self.network, "Add", *sets)

    async def change(self, kind: Kind, object_id: str, how: str, *policies: dict[str, Any]) -> Counter[str]:
        """Modify policies; returns how many entries of each table were touched."""
        self.written.clear()
        body = {"ResourceType": "Policy", "RequestType": how, "Settings": {"Policies": list(policies)}}
        await self.node.service.modify(kind, object_id, decode_modify(kind, body))
        return Counter(operation.table for operation in self.written)

    def ports(self) -> list[Port]:
        rows = self.node.switch.kernel.tables.read(["sw_ports"])["sw_ports"]
        return [port for port in rows.values() if isinstance(port, Port)]

    def wanted_is_there(self) -> None:
        wanted, actual = self.node.switch.wanted.entries.tables(), self.node.switch.kernel.tables.read(TABLES)
        for table in TABLES:
            assert actual[table] == dict(wanted.get(table, {})), table


@pytest_asyncio.fixture
async def pods(node: Node, net: NodeNet, monkeypatch: pytest.MonkeyPatch) -> Pods:
    return Pods(node, net, monkeypatch)


def ip_set(name: str, values: Iterable[str]) -> dict[str, Any]:
    return {"Type": "SetPolicy", "Settings": {"Id": name, "Name": name, "Values": ",".join(values)}}


def acl(action: str, priority: int, **fields: str) -> dict[str, Any]:
    return {"Type": "ACL", "Settings": {"Action": action, "Direction": "In", "Priority": priority, **fields}}


@pytest.mark.asyncio
async def test_a_set_of_ten_thousand(pods: Pods) -> None:
    """A member more touches one entry and the sets' generation, and no port, whoever names the set."""
    members = [f"10.{i // 250}.{i % 250}.7" for i in range(10_000)]
    await pods.start(ip_set("big", members), ip_set("small", ["10.0.0.7"]))
    for endpoint in pods.endpoints:
        await pods.change(Kind.ENDPOINT, endpoint, "Update", acl("Allow", 1, LocalAddresses="big"))
    pods.wanted_is_there()
    touched = await pods.change(Kind.NETWORK, pods.network, "Update", ip_set("big", [*members, "192.0.2.1"]))
    assert touched == {"sw_set_members": 1, "sw_acl_spaces": 1}
    assert pods.written[-1].table == "sw_acl_spaces"
    touched = await pods.change(Kind.NETWORK, pods.network, "Update", ip_set("big", members))
    assert touched == {"sw_set_members": 1, "sw_acl_spaces": 1}
    assert [operation.table for operation in pods.written] == ["sw_set_members", "sw_acl_spaces"]
    assert not await pods.change(Kind.NETWORK, pods.network, "Update", ip_set("big", members))
    pods.wanted_is_there()


@pytest.mark.asyncio
async def test_a_thousand_rules(pods: Pods) -> None:
    """The same list again touches nothing; pods with one list share its table; what is gone leaves nothing."""
    await pods.start(ip_set("clients", ["10.50.0.10"]))
    rules = [
        acl(
            "Block" if i % 2 else "Allow",
            i + 1,
            RemoteAddresses=f"10.{i // 250}.{i % 250}.0/24",
            RemotePorts="80",
        )
        for i in range(1000)
    ]
    first, second = pods.endpoints
    await pods.change(Kind.ENDPOINT, first, "Update", *rules)
    pods.wanted_is_there()
    assert not await pods.change(Kind.ENDPOINT, first, "Update", *rules)
    assert await pods.change(Kind.ENDPOINT, second, "Update", *rules) == {"sw_ports": 1}
    await pods.change(Kind.ENDPOINT, second, "Update", *rules[1:], acl("Pass", 9, LocalAddresses="clients"))
    pods.wanted_is_there()
    for endpoint in pods.endpoints:
        await pods.change(Kind.ENDPOINT, endpoint, "Reset")
    await pods.change(Kind.NETWORK, pods.network, "Reset")
    assert not any(pods.node.switch.kernel.tables.read(TABLES).values())


@pytest.mark.asyncio
async def test_the_networks_rules(pods: Pods) -> None:
    await pods.start()
    rule = {"Type": "NetworkACL", "Settings": {"Action": "Block", "Direction": "In", "Protocols": "17"}}
    touched = await pods.change(Kind.NETWORK, pods.network, "Add", rule)
    assert touched["sw_ports"] == 2
    pods.wanted_is_there()
    assert [port.acl_words for port in pods.ports()] == [(1, 0), (1, 0)]
    touched = await pods.change(Kind.NETWORK, pods.network, "Remove", rule)
    assert touched["sw_ports"] == 2
    assert not any(pods.node.switch.kernel.tables.read(TABLES).values())


@pytest.mark.asyncio
async def test_a_change_that_fails_leaves_sets_as_they_were(pods: Pods) -> None:
    await pods.start(*(ip_set(f"s{i}", ["10.0.0.1"]) for i in range(256)))
    before = pods.node.switch.kernel.tables.read(TABLES)
    with pytest.raises(SamewireError, match="257 sets"):
        await pods.change(Kind.NETWORK, pods.network, "Add", ip_set("one-more", ["10.0.0.1"]))
    assert pods.node.switch.kernel.tables.read(TABLES) == before
    pods.wanted_is_there()


def long_list(count: int) -> list[dict[str, Any]]:
    return [
        acl("Allow", i + 1, RemoteAddresses=f"10.{i // 250}.{i % 250}.0/24", LocalPorts="80")
        for i in range(count)
    ]


@pytest.mark.asyncio
async def test_one_rule_among_a_thousand(pods: Pods) -> None:
    """What is written is the rule's own, and the port's new generation; a list that others have is left to them."""
    await pods.start()
    first, second = pods.endpoints
    await pods.change(Kind.ENDPOINT, first, "Add", *long_list(1000))
    one = acl("Block", 500, RemoteAddresses="192.0.2.0/24", LocalPorts="443")
    touched = await pods.change(Kind.ENDPOINT, first, "Add", one)
    own = {"sw_acl_rules": 1, "sw_acl_prefixes": 1, "sw_acl_ports": 3, "sw_acl_vectors": 1, "sw_ports": 1}
    assert touched == own
    assert pods.written[-1].table == "sw_ports"
    pods.wanted_is_there()
    await pods.change(Kind.ENDPOINT, second, "Add", *long_list(1000))
    assert len({port.acl_table[0] for port in pods.ports()}) == 2  # the edited one keeps its name
    assert await pods.change(Kind.ENDPOINT, first, "Remove", one) == own
    assert pods.written[-1].table == "sw_ports"
    pods.wanted_is_there()
    await pods.change(Kind.ENDPOINT, second, "Update", *long_list(1000)[1:])
    await pods.change(Kind.ENDPOINT, second, "Update", *long_list(1000))
    pods.wanted_is_there()
    for endpoint in pods.endpoints:
        await pods.change(Kind.ENDPOINT, endpoint, "Reset")
    assert not any(pods.node.switch.kernel.tables.read(TABLES).values())


def tier(order: int, *rules: dict[str, Any]) -> dict[str, Any]:
    made = [
        {"TierAclRuleAction" if key == "Action" else key: rule["Settings"][key] for key in rule["Settings"]}
        for rule in rules
    ]
    for rule in made:
        del rule["Direction"]
    return {"Type": "TierAcl", "Settings": {"Direction": "In", "Order": order, "TierAclRules": made}}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "one",
    [
        acl("Block", 500),
        acl("Block", 0, RemoteAddresses="192.0.2.0/24", LocalPorts="443"),
        acl("Block", 5000, RemoteAddresses="192.0.2.0/24", LocalPorts="443"),
        tier(1, acl("Pass", 1, RemoteAddresses="192.0.2.0/24"), acl("Block", 2, LocalPorts="443")),
    ],
    ids=["for anything", "before all others", "behind all others", "a tier"],
)
async def test_one_policy_among_a_thousand_of_another_kind(pods: Pods, one: dict[str, Any]) -> None:
    """What is written grows neither with the prefixes and ports of other rules nor with their number, from the first
    such policy on.
    """
    await pods.start()
    endpoint = pods.endpoints[0]
    await pods.change(Kind.ENDPOINT, endpoint, "Add", *long_list(1000))
    for how in ("Add", "Remove", "Add", "Remove"):
        touched = await pods.change(Kind.ENDPOINT, endpoint, how, one)
        assert touched["sw_acl_rules"] == (2 if one["Type"] == "TierAcl" else 1)
        assert touched.total() < 24, touched
        assert pods.written[-1].table == "sw_ports"
        pods.wanted_is_there()


@pytest.mark.asyncio
async def test_an_edit_is_written_once(pods: Pods) -> None:
    """And not with what else changes about the endpoint, nor for another one that gets the same list."""
    await pods.start()
    first, second = pods.endpoints
    other = acl("Block", 51, RemoteAddresses="192.0.2.0/24", LocalPorts="80")
    await pods.change(Kind.ENDPOINT, first, "Add", *long_list(100))
    await pods.change(Kind.ENDPOINT, first, "Update", *long_list(50), other, *long_list(100)[51:])
    exception = {"Type": "OutBoundNAT", "Settings": {"Exceptions": ["192.0.2.0/24"]}}
    touched = await pods.change(Kind.ENDPOINT, first, "Add", exception)
    assert not touched.keys() & set(TABLES)
    await pods.change(Kind.ENDPOINT, first, "Update", *long_list(100))
    assert await pods.change(Kind.ENDPOINT, second, "Update", *long_list(100)) == {"sw_ports": 1}
    assert len({port.acl_table for port in pods.ports()}) == 1
    pods.wanted_is_there()


@pytest.mark.asyncio
async def test_an_edit_that_fails_is_taken_back(pods: Pods) -> None:
    """Whatever was written by then; what was judged meanwhile is judged again."""
    await pods.start()
    endpoint = pods.endpoints[0]
    await pods.change(Kind.ENDPOINT, endpoint, "Add", *long_list(100))
    before = pods.node.switch.kernel.tables.read(TABLES)
    (generation,) = {port.generation for port in pods.ports() if port.acl_words[0]}
    seen = 0

    def fail(what: str) -> None:
        nonlocal seen
        seen += 1
        if seen == 4:
            raise KernelError(what, 5, "injected")

    rules = long_list(100)
    rules[50] = acl("Block", 51, RemoteAddresses="10.0.50.0/24", LocalPorts="80")
    faults.inject = fail
    try:
        with pytest.raises(SamewireError, match="injected"):
            await pods.change(Kind.ENDPOINT, endpoint, "Update", *rules)
    finally:
        faults.inject = None
    pods.wanted_is_there()
    assert pods.node.switch.kernel.tables.read(TABLES) == before
    assert all(port.generation > generation for port in pods.ports() if port.acl_words[0])
    await pods.change(Kind.ENDPOINT, endpoint, "Update", *rules)
    pods.wanted_is_there()


async def ruled(pods: Pods) -> tuple[str, str, list[dict[str, Any]]]:
    """A client, the endpoint beside it with a long list that lets in echo requests, and that list."""
    await pods.start()
    rules = [*long_list(300), acl("Allow", 900, Protocols="1", RemoteAddresses="10.50.0.0/24")]
    await pods.change(Kind.ENDPOINT, pods.endpoints[1], "Add", *rules)
    return pods.spaces[0], pods.endpoints[1], rules


@pytest.mark.asyncio
async def test_packets_obey_an_edit(pods: Pods) -> None:
    """One rule among hundreds, added, replaced and taken away: the next packet is judged by it."""
    client, endpoint, rules = await ruled(pods)
    assert can_ping(client, "10.50.0.11")
    for blocked in ("10.50.0.10", "10.50.0.8/29"):
        rule = acl("Block", 400, Protocols="1", RemoteAddresses=blocked)
        touched = await pods.change(Kind.ENDPOINT, endpoint, "Add", rule)
        assert touched.total() < 20
        assert not can_ping(client, "10.50.0.11", wait_s=SHORT_S)
        other = acl("Block", 400, Protocols="1", RemoteAddresses="10.50.0.12")
        touched = await pods.change(Kind.ENDPOINT, endpoint, "Update", *rules, other)
        assert touched.total() < 20
        assert can_ping(client, "10.50.0.11")
        await pods.change(Kind.ENDPOINT, endpoint, "Remove", other)
    pods.wanted_is_there()


@pytest.mark.asyncio
async def test_packets_obey_a_tier_that_comes_and_goes(pods: Pods) -> None:
    """Before a long list, replaced by another one, and two of them."""
    client, endpoint, rules = await ruled(pods)
    ping = {"Protocols": "1", "RemoteAddresses": "10.50.0.10"}
    block, go_on = tier(1, acl("Block", 1, **ping)), tier(2, acl("Pass", 1, **ping))
    for _ in range(2):
        assert can_ping(client, "10.50.0.11")
        assert (await pods.change(Kind.ENDPOINT, endpoint, "Add", block)).total() < 20
        assert not can_ping(client, "10.50.0.11", wait_s=SHORT_S)
        assert (await pods.change(Kind.ENDPOINT, endpoint, "Update", *rules, go_on)).total() < 20
        assert can_ping(client, "10.50.0.11")
        assert (await pods.change(Kind.ENDPOINT, endpoint, "Add", block)).total() < 20
        assert not can_ping(client, "10.50.0.11", wait_s=SHORT_S)
        await pods.change(Kind.ENDPOINT, endpoint, "Update", *rules)
    pods.wanted_is_there()


@pytest.mark.asyncio
async def test_an_edited_table_over_a_restart(
    config: NodeConfig, net: NodeNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was edited gets the name of its content; another that has what it was made of is not mistaken for it."""
    one = acl("Block", 50, RemoteAddresses="192.0.2.0/24", LocalPorts="443")
    node = await Node.start(config, lambda _: None)
    pods = Pods(node, net, monkeypatch)
    await pods.start()
    first, second = pods.endpoints
    await pods.change(Kind.ENDPOINT, first, "Add", *long_list(100))
    await pods.change(Kind.ENDPOINT, first, "Add", one)
    await pods.change(Kind.ENDPOINT, second, "Add", *long_list(100))
    edited = {port.acl_table[0] for port in pods.ports() if was_edited(port, 0)}
    others = {port.acl_table[0] for port in pods.ports()} - edited
    assert (len(edited), len(others)) == (1, 1)
    await node.close()
    pods.node = await Node.start(config, lambda _: None)
    pods.wanted_is_there()
    after = {port.acl_table[0] for port in pods.ports()}
    assert not any(was_edited(port, 0) for port in pods.ports())
    assert len(after) == 2
    assert not after & edited
    await pods.change(Kind.ENDPOINT, first, "Remove", one)
    pods.wanted_is_there()
    await pods.node.close()
