"""Ports, flows and drops as rows, and the endpoints that serve them."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from msgspec.structs import replace

from samewire.hcn.client import AsyncHnsClient
from samewire.hcn.errors import HcnError
from samewire.hcn.http import HttpServer, make_app
from samewire.hcn.schema import Route as HnsRoute
from samewire.hcn.schema import SdnRoute
from samewire.hcn.service import HnsService
from samewire.hcn.store import Store
from samewire.trace import view_service
from samewire.trace.flows import flow_rows
from samewire.trace.model import FlowRow
from samewire.trace.names import Names
from samewire.trace.rows import PackedRows
from samewire.trace.views import (
    Owners,
    drop_event,
    drop_rows,
    flow_summary,
    layer_row,
    port_rows,
    route_owners,
    with_proxies,
)
from samewire.vfp.address import ZERO, parse_address, parse_prefix
from samewire.vfp.constants import (
    ACL_IN,
    COUNTED_PORTMAP,
    COUNTED_ROUTE,
    OWN_ROUTE_KEY_BITS,
    SCOPE_ANY,
    Arrival,
    Counter,
    FlowFlag,
    Layer,
    Reason,
    RouteKind,
)
from samewire.vfp.model import Entries, ProxyRule
from samewire.vfp.record import Record
from samewire.vfp.simulate import Simulator
from samewire.vfp.simulate.packet import Tuple
from samewire.vfp.simulate.state import make_key
from samewire.vfp.tables import (
    Action,
    Config,
    Count,
    DropEvent,
    DropKey,
    Flow,
    FlowCount,
    FlowKey,
    Id,
    OwnRouteKey,
    Port,
    Route,
    RuleCountKey,
    Service,
    ServiceKey,
)
from tests.support.hcn import FakeSwitch
from tests.support.tools import (
    CLIENT_PORT,
    FACTS,
    INFOS,
    INTERFACES,
    NETWORK_ID,
    UPLINK,
    WEB_ID,
    WEB_PORT,
    FakeNode,
    compiled,
    probe,
)

NAMES = Names(INFOS, lambda ifindex: INTERFACES.get(ifindex, ""))
DROPS: dict[Record, Record] = {
    DropKey(WEB_PORT, 0, Layer.ACL_IN, Reason.BLOCKED, Arrival.POD): Count(7),
    DropKey(UPLINK, 0, Layer.FRAGMENT, Reason.FRAGMENT_UNKNOWN, Arrival.UPLINK): Count(9),
    DropKey(99, 4, 77, 88, 66): Count(7),
}
EVENT = DropEvent(
    123,
    DropKey(WEB_PORT, 2, Layer.ACL_IN, Reason.BLOCKED, Arrival.POD),
    parse_address("10.244.1.6").packed,
    parse_address("10.244.1.5").packed,
    40000,
    81,
    1,
    4,
    6,
)


@pytest.fixture
def tables() -> Entries:
    return compiled()


def play(tables: Entries, *frames: tuple[bytes, int]) -> Entries:
    simulator = Simulator(tables, 100)
    port_macs = {
        key.value: port.mac  # type: ignore[attr-defined]
        for key, port in tables["sw_ports"].items()
    }
    for frame, ifindex in frames:
        arrival = Arrival.POD if ifindex in port_macs else Arrival.UPLINK
        source = port_macs.get(ifindex, bytes(6))
        simulator.receive(frame[:6] + source + frame[12:], arrival, ifindex)
    flows: dict[Record, Record] = dict(simulator.flows.items())
    return {**tables, "sw_flows": flows}


def counted(tables: Entries) -> Entries:
    """With counters: the initiator of each flow has sent 5 packets of 100 bytes, and got 7."""
    (config,) = tables["sw_config"].values()
    assert isinstance(config, Config)
    slots = config.flow_slots
    counts: dict[Record, Record] = {Id(index): FlowCount(0, 0) for index in range(2 * slots)}
    flows: dict[Record, Record] = {}
    for slot, (key, flow) in enumerate(tables["sw_flows"].items(), start=1):
        assert isinstance(flow, Flow)
        flows[key] = replace(flow, slot=slot)
        initiator = flow.flags & FlowFlag.INITIATOR
        sent, got = Id(slot + slots * initiator), Id(slot + slots * (not initiator))
        if not flow.flags & FlowFlag.SECOND:
            counts[sent] = FlowCount(5, 500)
        if flow.flags & FlowFlag.SECOND or not flow.flags & FlowFlag.PAIR:
            counts[got] = FlowCount(7, 700)
    return {**tables, "sw_flows": flows, "sw_flow_counts": counts}


def rows(tables: Entries, port: int = 0) -> list[FlowRow]:
    return list(flow_rows(tables, NAMES, 110, port))


def test_ports(tables: Entries) -> None:
    found = port_rows(tables, NAMES)
    assert [(row.id, row.kind, row.interface) for row in found] == [
        (42, "pod", "sw00000000042"),
        (43, "pod", "sw00000000043"),
        (2, "uplink", "eth0"),
        (5, "tunnel", "swvxlan0"),
        (7, "host", "samewire1"),
    ]
    assert [row.endpoint.name if row.endpoint else "" for row in found[:3]] == [
        "shop/web-0",
        "shop/client",
        "",
    ]
    assert not any(row.layers for row in found)


def test_a_connection_within_the_network(tables: Entries) -> None:
    (row,) = rows(play(tables, (probe("10.244.1.6", "10.244.1.5"), CLIENT_PORT)))
    assert (row.ends.source, row.ends.source_port) == ("10.244.1.6", 40000)
    assert (row.ends.destination, row.ends.destination_port) == ("10.244.1.5", 80)
    assert row.translated is None
    assert (row.initiator.name, row.target.name) == ("shop/client", "shop/web-0")
    assert (row.state, row.entries, row.rules, row.arrival) == ("half-open", 1, (0, 1), "pod")
    assert row.idle_s == 10.7


def test_a_translated_connection_is_one_row(tables: Entries) -> None:
    there = play(tables, (probe("10.244.1.6", "93.184.216.34"), CLIENT_PORT))
    assert len(there["sw_flows"]) == 2
    (row,) = rows(there)
    assert row.translated is not None
    assert (row.translated.source, row.translated.destination) == ("192.168.1.10", "93.184.216.34")
    assert 49152 <= row.translated.source_port <= 65535
    assert (row.target.port, row.target.name, row.entries) == (0, "uplink", 2)


def test_a_host_port_from_outside(tables: Entries) -> None:
    (row,) = rows(play(tables, (probe("93.184.216.34", "192.168.1.10", 8080), UPLINK)))
    assert (row.initiator.name, row.target.name) == ("uplink", "shop/web-0")
    assert row.translated is not None
    assert (row.translated.destination, row.translated.destination_port) == ("10.244.1.5", 80)


def test_layers_say_what_they_judged_and_dropped(tables: Entries) -> None:
    counts: dict[Record, Record] = {
        RuleCountKey(WEB_PORT, 1, ACL_IN): Count(3),
        RuleCountKey(WEB_PORT, 4 << 24 | 6 << 16 | 8080, COUNTED_PORTMAP): Count(4),
    }
    there = {**tables, "sw_drops": DROPS, "sw_rule_counts": counts}
    row = layer_row(there, NAMES, WEB_PORT)
    layers = {layer.name: (layer.judged, layer.dropped) for layer in row.layers}
    assert (layers["ACL"], layers["PORTMAP"], layers["GUARD"]) == ((3, 7), (4, 0), (None, 0))
    assert row.dropped == 7
    assert {port.id: port.dropped for port in port_rows(there, NAMES)}[UPLINK] == 9
    shared: dict[Record, Record] = {RuleCountKey(CLIENT_PORT, 0, COUNTED_ROUTE + RouteKind.LOCAL): Count(5)}
    on: dict[Record, Record] = {Id(2 * FACTS.flow_slots - 1): FlowCount(0, 0)}
    row = layer_row({**tables, "sw_rule_counts": shared, "sw_flow_counts": on}, NAMES, CLIENT_PORT)
    route = next(layer for layer in row.layers if layer.name == "ROUTE")
    assert len([rule for rule in route.groups[0].rules if rule.judged == 5]) == 2
    assert route.judged == 5, "the subnets of both families have one counter"


@pytest.mark.parametrize(
    "frame",
    [
        (probe("10.244.1.6", "10.244.1.5"), CLIENT_PORT),
        (probe("10.244.1.6", "93.184.216.34"), CLIENT_PORT),
        (probe("93.184.216.34", "192.168.1.10", 8080), UPLINK),
    ],
    ids=["one entry", "SNAT", "host port"],
)
def test_what_both_ends_have_sent(tables: Entries, frame: tuple[bytes, int]) -> None:
    there = play(tables, frame)
    (row,) = rows(there)
    assert (row.initiator.packets, row.target.bytes) == (None, None), "the node does not count"
    assert rows({**there, "sw_flow_counts": {Id(0): FlowCount(0, 0)}}) == [row]
    (row,) = rows(counted(there))
    assert (row.initiator.packets, row.initiator.bytes) == (5, 500)
    assert (row.target.packets, row.target.bytes) == (7, 700)


def test_an_entry_whose_other_half_is_gone_shows_its_own_counts(tables: Entries) -> None:
    there = counted(play(tables, (probe("10.244.1.6", "93.184.216.34"), CLIENT_PORT)))
    for second, mine, theirs in ((False, 5, None), (True, None, 7)):
        left = {
            key: flow
            for key, flow in there["sw_flows"].items()
            if isinstance(flow, Flow) and bool(flow.flags & FlowFlag.SECOND) == second
        }
        (row,) = rows({**there, "sw_flows": left})
        assert (row.initiator.packets, row.target.packets) == (mine, theirs)


def test_of_one_port(tables: Entries) -> None:
    both = play(
        tables,
        (probe("10.244.1.6", "93.184.216.34"), CLIENT_PORT),
        (probe("93.184.216.34", "192.168.1.10", 8080), UPLINK),
    )
    assert len(rows(both)) == 2
    assert [row.target.name for row in rows(both, WEB_PORT)] == ["shop/web-0"]
    assert rows(both, 999) == []


def test_a_leftover_second_entry_shows(tables: Entries) -> None:
    there = play(tables, (probe("10.244.1.6", "93.184.216.34"), CLIENT_PORT))
    second = {key: flow for key, flow in there["sw_flows"].items() if flow.flags & 4}  # type: ignore[attr-defined]
    (row,) = rows({"sw_flows": second})
    assert (row.ends.source, row.translated) == ("192.168.1.10", None)


def state_of(protocol: int, flags: int, tcp: tuple[int, int]) -> str:
    ends = Tuple(parse_address("10.0.0.1").packed, parse_address("10.0.0.2").packed, 1, 2)
    key, _ = make_key(ends, 1, 4, protocol)
    nothing = Action(2, 0, 0, 0, 0, bytes(16), bytes(16))
    flow = Flow((nothing, nothing), (0, 0), (0, 0), (0, 0), 100, 0, 0, flags, tcp, 1)
    return rows({"sw_flows": {key: flow}})[0].state


@pytest.mark.parametrize(
    ("protocol", "flags", "tcp", "state"),
    [
        (6, 0, (1, 0), "half-open"),
        (6, 8, (1, 0), "half-open"),
        (6, 8, (9, 8), "established"),
        (6, 8, (10, 8), "established"),
        (6, 8, (10, 10), "closing"),
        (6, 8, (12, 0), "closing"),
        (6, 136, (9, 8), "denied"),
        (17, 0, (0, 0), "single"),
        (17, 8, (0, 0), "replied"),
        (6, 16, (1, 0), "host"),
    ],
)
def test_states(protocol: int, flags: int, tcp: tuple[int, int], state: str) -> None:
    assert state_of(protocol, flags, tcp) == state


def test_a_flow_seen_after_the_clock_was_read() -> None:
    key = FlowKey((bytes(16), bytes(16)), (1, 2), 0, 4, 17)
    nothing = Action(0, 0, 0, 0, 0, bytes(16), bytes(16))
    flow = Flow((nothing, nothing), (0, 0), (0, 0), (0, 0), 111, 0, 0, 0, (0, 0), 1)
    assert rows({"sw_flows": {key: flow}})[0].idle_s == 0


def test_summary() -> None:
    counters = {Counter.FLOW_INSERTS: 10, Counter.FLOWS_REMOVED: 4, Counter.FLOW_AGED: 3}
    tables: Entries = {"sw_counters": {Id(number): Count(value) for number, value in counters.items()}}
    found = flow_summary(tables)
    assert (found.flow_inserts, found.entries, found.aged, found.recycled) == (10, 6, 3, 0)
    assert flow_summary({}).entries == 0


def test_drops() -> None:
    first, second, third = drop_rows({"sw_drops": DROPS}, NAMES)
    assert (first.packets, first.interface, first.endpoint) == (9, "eth0", "")
    assert (second.endpoint, second.layer, second.reason, second.arrival) == (
        "shop/web-0",
        "acl_in",
        "blocked",
        "pod",
    )
    assert "ACL rule" in second.explanation
    assert (third.layer, third.reason, third.arrival, third.rule) == ("77", "88", "66", 4)
    assert [row.packets for row in drop_rows({"sw_drops": DROPS}, NAMES, WEB_PORT)] == [7]


# --- over HTTP ------------------------------------------------------------------------------------


@pytest.fixture
def node(tables: Entries) -> FakeNode:
    with_flow = play(tables, (probe("10.244.1.6", "93.184.216.34"), CLIENT_PORT))
    counters: dict[Record, Record] = {Id(Counter.FLOW_INSERTS): Count(2)}
    return FakeNode({**with_flow, "sw_drops": DROPS, "sw_counters": counters})


@pytest.fixture
async def server(node: FakeNode, tmp_path: Path) -> AsyncIterator[Path]:
    store = Store(tmp_path / "hns.db")
    path = tmp_path / "s.sock"
    server = HttpServer(make_app(HnsService(store, FakeSwitch()), view_service.routes(node)), path)
    await server.start()
    yield path
    await server.close()
    store.close()


async def fetch(server: Path, path: str) -> Any:
    return await AsyncHnsClient(server).get_json(f"/v2/switch/{path}")


def many(count: int) -> Entries:
    """So many connections, each seen a tick after the one before."""
    nothing = Action(0, 0, 0, 0, 0, ZERO, ZERO)
    flows: dict[Record, Record] = {}
    for number in range(count):
        ends = Tuple(parse_address("10.244.1.6").packed, parse_address("10.244.1.5").packed, number, 80)
        key, direction = make_key(ends, 1, 4, 6)
        flags = FlowFlag.INITIATOR if direction else 0
        flows[key] = Flow((nothing, nothing), (43, 42), (1, 1), (0, 0), number, 0, 0, flags, (0, 0), 1)
    return {"sw_flows": PackedRows.of(FlowKey, Flow, flows)}


def test_a_full_table_is_no_list_of_rows() -> None:
    """A hundred thousand connections would be a few hundred megabytes."""
    tables = many(10_000)
    tracemalloc.start()
    try:
        assert sum(1 for _ in flow_rows(tables, NAMES, 20_000)) == 10_000
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000


async def test_a_long_list_comes_in_parts(node: FakeNode, server: Path) -> None:
    node.content |= many(1201)
    found = await fetch(server, "flows")
    assert [flow["ends"]["source_port"] for flow in found] == list(range(1200, -1, -1))
    assert await fetch(server, "flows?limit=700") == found[:700]
    node.content |= many(500)
    assert len(await fetch(server, "flows")) == 500
    node.content |= many(0)
    assert await fetch(server, "flows") == []


async def test_endpoints_of_the_api(server: Path) -> None:
    assert [info["name"] for info in await fetch(server, "endpoints")] == ["shop/web-0", "shop/client", "far"]
    assert [info["id"] for info in await fetch(server, "endpoints?endpoint=web-0")] == [WEB_ID]
    assert [row["id"] for row in await fetch(server, "ports")] == [42, 43, 2, 5, 7]
    assert [row["id"] for row in await fetch(server, "ports?endpoint=10.244.1.6")] == [43]
    assert [row["id"] for row in await fetch(server, "ports?endpoint=tunnel")] == [5]
    assert len(await fetch(server, "flows")) == 1
    assert len(await fetch(server, "flows?endpoint=client")) == 1
    assert await fetch(server, "flows?endpoint=web-0") == []
    assert len(await fetch(server, "flows?limit=1")) == 1
    assert (await fetch(server, "flows?summary=1"))["flow_inserts"] == 2
    assert [row["packets"] for row in await fetch(server, "drops")] == [9, 7, 7]
    assert [row["packets"] for row in await fetch(server, "drops?endpoint=web-0")] == [7]
    assert [row["packets"] for row in await fetch(server, "drops?endpoint=uplink")] == [9]
    assert await fetch(server, "drops?endpoint=tunnel") == []


def test_what_a_pods_own_stack_does_is_its_first_layer(tables: Entries) -> None:
    rule = ProxyRule(
        name="network policy 2",
        outbound=True,
        family=4,
        protocol=17,
        port=5353,
        target=parse_address("10.0.0.9"),
        remote_ports=((53, 53),),
        except_remote=(parse_prefix("10.1.0.0/16"),),
    )
    row = layer_row(tables, NAMES, WEB_PORT)
    assert with_proxies(row, ()) == row
    layer = with_proxies(row, (rule,)).layers[0]
    assert [(group.name, len(group.rules)) for group in layer.groups] == [("PROXY_OUT", 1), ("PROXY_IN", 0)]
    (shown,) = layer.groups[0].rules
    assert shown.conditions == ("ipv4 udp", "destination port 53", "destination not 10.1.0.0/16")
    assert shown.action == "to the proxy at 10.0.0.9 port 5353"
    assert shown.object == NETWORK_ID
    assert with_proxies(row, (rule,), WEB_ID).layers[0].groups[0].rules == ()


async def test_layers_of_the_api(server: Path) -> None:
    row = await fetch(server, "layers?endpoint=shop/web-0")
    assert (row["id"], row["endpoint"]["id"]) == (42, WEB_ID)
    assert [layer["name"] for layer in row["layers"]][:3] == ["GUARD", "LB", "PORTMAP"]
    assert [layer["name"] for layer in (await fetch(server, "layers?endpoint=tunnel"))["layers"]] == ["DECAP"]


async def test_a_ports_many_rules_are_put_together_off_the_loop(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of the same node waits for nobody who looks at 200,000 rules."""
    on_loop = []

    def noting(*arguments: Any) -> Any:
        on_loop.append(asyncio._get_running_loop() is not None)
        return layer_row(*arguments)

    monkeypatch.setattr(view_service, "layer_row", noting)
    for name in ("shop/web-0", "tunnel"):
        await fetch(server, f"layers?endpoint={name}")
    assert on_loop == [False, False]


async def test_tables_of_the_api(server: Path) -> None:
    found = await fetch(server, "tables")
    assert "sw_flows" not in found
    assert found["sw_ports"][0]["key"] == {"value": 42}
    assert list(await fetch(server, "tables?name=sw_flows")) == ["sw_flows"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("layers", "layers of which port"),
        ("layers?endpoint=nobody", "endpoint 'nobody' not found"),
        ("layers?endpoint=far", "far is on another node"),
        ("ports?endpoint=nobody", "not found"),
        ("flows?endpoint=nobody", "not found"),
        ("flows?limit=x", "limit: expected a number of flows"),
        ("flows?limit=0", "limit: expected a number of flows"),
        ("flows?colour=red", "colour: is no parameter of /v2/switch/flows"),
        ("ports?limit=1", "limit: is no parameter of /v2/switch/ports"),
        ("drops?endpoint=nobody", "not found"),
        ("endpoints?endpoint=nobody", "not found"),
        ("tables?name=sw_nothing", "table 'sw_nothing' not found"),
    ],
)
async def test_refusals(server: Path, path: str, message: str) -> None:
    with pytest.raises(HcnError, match=message):
        await fetch(server, path)


async def test_a_node_without_a_tunnel(server: Path, node: FakeNode) -> None:
    (key, config) = next(iter(node.content["sw_config"].items()))
    node.content["sw_config"] = {key: replace(config, tunnel_ifindex=0)}
    with pytest.raises(HcnError, match="port 'tunnel' not found"):
        await fetch(server, "layers?endpoint=tunnel")
    with pytest.raises(HcnError, match="port 'tunnel' not found"):
        await fetch(server, "drops?endpoint=tunnel")


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not come")


async def test_watching_drops(server: Path, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_service, "_HANG_UP_S", 0.02)
    url = "http://x/v2/switch/drops?watch=1&endpoint=web-0"
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(server))) as session,
        session.get(url) as response,
    ):
        await until(lambda: node.listeners == 1)
        node.events.put_nowait(replace(EVENT, drop=replace(EVENT.drop, port=UPLINK)))
        node.events.put_nowait(EVENT)
        line = json.loads(await response.content.readline())
    assert line["time_ns"] == 123
    assert line["ends"] == {
        "protocol": "tcp",
        "source": "10.244.1.6",
        "source_port": 40000,
        "destination": "10.244.1.5",
        "destination_port": 81,
    }
    assert (line["drop"]["endpoint"], line["drop"]["rule"], line["drop"]["packets"]) == ("shop/web-0", 2, 1)
    await until(lambda: node.listeners == 0)  # it hung up, and nobody listens for it any more


def test_a_question_for_a_neighbour_is_arp() -> None:
    asked = replace(EVENT, protocol=0, source_port=0, destination_port=0)
    assert drop_event(NAMES, asked).ends.protocol == "arp"
    assert drop_event(NAMES, replace(asked, family=6)).ends.protocol == "0"


async def test_a_watch_ends_with_the_daemon(
    server: Path, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ends() -> AsyncIterator[DropEvent]:
        yield EVENT

    monkeypatch.setattr(node, "drop_events", ends)
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(server))) as session,
        session.get("http://x/v2/switch/drops?watch=1") as response,
    ):
        assert len((await response.read()).splitlines()) == 1


def with_own_route(tables: Entries) -> Entries:
    """The port of the web server has a route of its own."""
    port = tables["sw_ports"][Id(WEB_PORT)]
    assert isinstance(port, Port)
    key = OwnRouteKey(OWN_ROUTE_KEY_BITS + 8, 1, 0, 4, parse_address("10.0.0.0").packed)
    ports: dict[Record, Record] = {**tables["sw_ports"], Id(WEB_PORT): replace(port, route_set=1)}
    own: dict[Record, Record] = {key: Route(RouteKind.HOST, 0, 0, 0, 8)}
    return {**tables, "sw_ports": ports, "sw_own_routes": own}


def test_rules_name_the_object_that_made_them() -> None:
    row = layer_row(compiled(), NAMES, WEB_PORT)
    made_by = {
        layer.name: {rule.object for group in layer.groups for rule in group.rules} for layer in row.layers
    }
    assert made_by["ACL"] == {WEB_ID}
    assert made_by["ROUTE"] == {INFOS[0].network_id}
    routed = layer_row(with_own_route(compiled()), NAMES, WEB_PORT)
    assert {
        group.name: {rule.object for rule in group.rules}
        for layer in routed.layers
        for group in layer.groups
        if layer.name == "ROUTE"
    } == {"ROUTE_OWN": {WEB_ID}, "ROUTE_OUT": {INFOS[0].network_id}}
    routes = layer_row(compiled(), NAMES, WEB_PORT, None, INFOS[0].network_id).layers
    assert {layer.name for layer in routes if any(group.rules for group in layer.groups)} == {"ROUTE"}


def test_the_rules_of_a_route_object_are_its_own() -> None:
    """Whether it names endpoints or is its network's; of two to one prefix those of the one that counts."""
    entry = SdnRoute(destination_prefix="10.1.2.3/8", next_hop="10.244.1.9")
    first, last = (HnsRoute(id=name, endpoint_ids=(WEB_ID,), routes=(entry,)) for name in ("FIRST", "LAST"))
    tables, owners = with_own_route(compiled()), Owners({}, route_owners([first, last]))
    [rule] = [
        (layer.name, group.name, rule.object)
        for layer in layer_row(tables, NAMES, WEB_PORT, owners, "LAST").layers
        for group in layer.groups
        for rule in group.rules
    ]
    assert rule == ("ROUTE", "ROUTE_OWN", "LAST")
    assert route_owners([replace(first, endpoint_ids=())]) == {
        ("ROUTE_OUT", "destination 10.0.0.0/8"): "FIRST"
    }


def test_a_load_balancers_rules_are_found_among_too_many() -> None:
    key = ServiceKey(parse_address("10.96.0.0").packed, 80, 6, 4, SCOPE_ANY)
    value = Service(0, 0, 0, 0, 0, ZERO)
    services: dict[Record, Record] = {
        replace(key, port=port): replace(value, service=port) for port in range(1, 200)
    }
    tables: Entries = {**compiled(), "sw_services": services}
    owners = Owners({port: f"LB-{port}" for port in range(1, 200)})
    row = layer_row(tables, NAMES, WEB_PORT, owners, "LB-7")
    [rule] = [rule for layer in row.layers for group in layer.groups for rule in group.rules]
    assert (rule.id, rule.object) == (7, "LB-7")
