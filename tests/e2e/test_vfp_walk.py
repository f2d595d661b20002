"""`samewire vfp` on a real node: rules of every kind count, objects lead to rules and back, tuples go where it says."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import msgspec
import pytest

from tests.support.node import NODE_IP, ROUTER_IP, Json, poll
from tests.support.two_nodes import CLIENT, FAR, WEB, World, in_pod, modify, run

pytestmark = pytest.mark.root

VIP: Final = "10.96.0.20"
HOST_PORT: Final = 8088
SERVER_PORT: Final = 8080
ACLS: Final = [
    {
        "Type": "ACL",
        "Settings": {
            "Action": "Allow", "Direction": "In", "Protocols": "6", "LocalPorts": str(SERVER_PORT),
            "Priority": 100, "Id": "to-the-server",
        },
    },
    {"Type": "ACL", "Settings": {"Action": "Block", "Direction": "In", "Priority": 200, "Id": "nothing-else"}},
]  # fmt: skip
MAPPING: Final = {
    "Type": "PortMapping",
    "Settings": {"Protocol": 6, "InternalPort": SERVER_PORT, "ExternalPort": HOST_PORT},
}


class Node(msgspec.Struct):
    """The first node of a world, with ids of what the tests look at."""

    world: World
    client: str
    web: str
    balancer: str

    def vfp(self, *arguments: str, status: int = 0) -> Any:
        """What a command answers in JSON."""
        result = run(self.world.near, "vfp", *arguments, "--json")
        assert result.exit_code == status, result.output
        return json.loads(result.stdout)

    def text(self, *arguments: str) -> list[dict[str, str]]:
        """What a command answers in text: its blocks, field by field."""
        result = run(self.world.near, "vfp", *arguments)
        assert result.exit_code == 0, result.output
        blocks = [block.splitlines() for block in result.stdout.split("\n\n")]
        pairs = [[line.strip().partition(":") for line in block] for block in blocks]
        return [{name: value.strip() for name, _, value in block} for block in pairs]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with ExitStack() as stack:
        world = World(stack, tmp_path_factory.mktemp("world"), flow_counters=True)
        client, web = world.endpoint_id("shop/client"), world.endpoint_id("shop/web")
        modify(world.near, "endpoints", web, [*ACLS, MAPPING])
        made = world.near.request(
            "POST",
            "/v2/loadbalancers",
            {
                "HostComputeEndpoints": [web],
                "FrontendVIPs": [VIP],
                "PortMappings": [{"Protocol": 6, "InternalPort": SERVER_PORT, "ExternalPort": 80}],
            },
        )
        yield Node(world, client, web, made["ID"])


def listening(space: str) -> socket.socket:
    def opened() -> socket.socket:
        made = socket.create_server(("", SERVER_PORT))
        made.settimeout(10)
        return made

    found: socket.socket = in_pod(space, opened)
    return found


class Talk(msgspec.Struct, frozen=True):
    """A connection as its server has it: who it is from, and to which address."""

    source: tuple[str, int]
    destination: tuple[str, int]


@contextmanager
def talk(client: str, server: str, to: str, port: int, source: int = 0) -> Iterator[Talk]:
    """An open connection that has carried a word in both directions."""

    def connect() -> socket.socket:
        return socket.create_connection((to, port), 10, ("0.0.0.0", source))

    with listening(server) as listener, in_pod(client, connect) as near:
        far, seen = listener.accept()
        with far:
            near.sendall(b"word")
            assert far.recv(10) == b"word"
            far.sendall(b"answer")
            assert near.recv(10) == b"answer"
            yield Talk(seen, far.getsockname())


def judged(node: Node, port: str, layer: str, **wanted: str) -> int:
    """The count of the one rule of a layer that has these texts in its fields."""
    (rule,) = [
        rule
        for rule in node.vfp("list-rules", "--port", port, "--layer", layer)
        if all(text in json.dumps(rule[name]) for name, text in wanted.items())
    ]
    assert isinstance(rule["judged"], int), rule
    return rule["judged"]


@pytest.mark.parametrize(
    ("where", "layer", "rule"),
    [
        ("client", "LB", {"conditions": f"destination {VIP} port 80"}),
        ("web", "ACL", {"policy": "to-the-server"}),
        ("client", "NAT", {"conditions": "0.0.0.0/0"}),
        ("web", "PORTMAP", {"conditions": f"port {HOST_PORT}"}),
        ("uplink", "PORTMAP", {"conditions": f"port {HOST_PORT}"}),
        ("client", "ROUTE", {"conditions": "10.244.1.0/24"}),
        ("client", "ROUTE", {"conditions": "192.168.77.0/24"}),
    ],
)
def test_a_rule_of_every_kind_counts_connections(
    node: Node, where: str, layer: str, rule: dict[str, str]
) -> None:
    """One each, whatever goes through it afterwards; the layer counts them, too."""
    world = node.world
    client, server, to, port = {
        "LB": (world.client, world.web, VIP, 80),
        "ACL": (world.client, world.web, WEB, SERVER_PORT),
        "NAT": (world.client, world.net.router, ROUTER_IP, SERVER_PORT),
        "PORTMAP": (world.net.router, world.web, NODE_IP, HOST_PORT),
        "ROUTE": (world.client, world.remote, FAR, SERVER_PORT)
        if "10.244.1.0/24" in rule.values()
        else (world.client, world.net.router, ROUTER_IP, SERVER_PORT),
    }[layer]
    before = judged(node, where, layer, **rule)
    of_layer = next(found for found in node.vfp("list-layers", "--port", where) if found["name"] == layer)
    for _ in range(3):
        with talk(client, server, to, port):
            pass
    assert judged(node, where, layer, **rule) - before >= 3
    again = next(found for found in node.vfp("list-layers", "--port", where) if found["name"] == layer)
    assert again["judged"] - of_layer["judged"] >= 3
    shown = node.text("list-rules", "--port", where, "--layer", layer)
    assert f"{judged(node, where, layer, **rule)} connections" in {block["Judged"] for block in shown}


def test_what_does_not_count_says_so(node: Node) -> None:
    for port, layer in (
        ("web", "GUARD"),
        ("web", "L2"),
        ("tunnel", "DECAP"),
        ("uplink", "ROUTE"),
        ("host", "ROUTE"),
    ):
        assert {rule["judged"] for rule in node.vfp("list-rules", "--port", port, "--layer", layer)} == {None}
        assert {block["Judged"] for block in node.text("list-rules", "--port", port, "--layer", layer)} == {
            "not counted"
        }


def test_from_an_endpoint_to_its_rules_and_back(node: Node) -> None:
    rules = node.vfp("list-rules", "--object", node.web)
    assert {rule["layer"] for rule in rules} >= {"ACL", "PORTMAP"}
    assert {rule["object"] for rule in rules} == {node.web}
    (number,) = {rule["port"] for rule in rules}
    (port,) = [port for port in node.vfp("list-ports") if str(port["id"]) == number]
    assert port["endpoint"]["id"] == node.web
    stored = json.loads(run(node.world.near, "hns", "get", "endpoints", rules[0]["object"]).stdout)
    named = {rule["policy"] for rule in rules if rule["policy"]}
    assert named == {policy["Settings"].get("Id") for policy in stored["Policies"] if policy["Type"] == "ACL"}
    # The same in words.
    blocks = node.text("list-rules", "--object", node.web)
    assert {(block["Port"], block["Object"]) for block in blocks} == {(number, node.web)}
    assert {block["Policy"] for block in blocks if "Policy" in block} == named
    (said,) = [block for block in node.text("list-ports") if block["Port"] == number]
    assert said["Endpoint"] == node.web


def test_from_a_load_balancer_to_its_rules_and_back(node: Node) -> None:
    rules = node.vfp("list-rules", "--object", node.balancer)
    assert {rule["layer"] for rule in rules} == {"LB"}
    assert {rule["object"] for rule in rules} == {node.balancer}
    assert all(f"destination {VIP} port 80" in rule["conditions"] for rule in rules)
    assert all(f"{WEB}:{SERVER_PORT}" in rule["action"] for rule in rules), "its endpoint"
    stored = json.loads(run(node.world.near, "hns", "get", "loadbalancers", rules[0]["object"]).stdout)
    assert (stored["FrontendVIPs"], stored["HostComputeEndpoints"]) == ([VIP], [node.web])
    at_a_pod = [
        rule for rule in node.vfp("list-rules", "--port", "client", "--layer", "LB") if rule["object"]
    ]
    assert node.balancer in {rule["object"] for rule in at_a_pod}
    blocks = node.text("list-rules", "--object", node.balancer)
    assert {block["Object"] for block in blocks} == {node.balancer}
    assert {block["Port"] for block in blocks} == {rule["port"] for rule in rules}


def test_a_flow_leads_to_its_ends_and_the_rules_that_let_it_in(node: Node) -> None:
    with talk(node.world.client, node.world.web, VIP, 80) as seen:
        (flow,) = [
            flow
            for flow in node.vfp("list-unified-flows", "--port", "web")
            if flow["ends"]["source_port"] == seen.source[1] and flow["ends"]["destination"] == VIP
        ]
        ports = {port["id"]: port["endpoint"]["id"] for port in node.vfp("list-ports") if port["endpoint"]}
        assert (ports[flow["initiator"]["port"]], ports[flow["target"]["port"]]) == (node.client, node.web)
        (rule,) = [
            rule
            for rule in node.vfp("list-rules", "--port", str(flow["target"]["port"]), "--group", "ACL_IN")
            if rule["id"] == flow["rules"][1]
        ]
        assert rule["policy"] == "to-the-server"
        assert flow["initiator"]["packets"] >= 3 <= flow["target"]["packets"] + 1
        assert flow["initiator"]["bytes"] > 4 * 20 + 4
        (block,) = [
            block
            for block in node.text("list-unified-flows", "--port", "web")
            if f" {seen.source[1]} {VIP} 80" in block["Flow"]
        ]
        assert (block["From"], block["To"], block["Rules"]) == ("shop/client", "shop/web", rule["name"])
        assert block["Sent"].endswith(" bytes")
        wide = run(node.world.near, "get", "flows", "web", "-o", "wide")
        assert "PACKETS" in wide.stdout
        assert "flow_counters" not in wide.stderr


REACHED: Final = {
    "one node": (WEB, SERVER_PORT, "web", "port"),
    "service": (VIP, 80, "web", "port"),
    "other node": (FAR, SERVER_PORT, "remote", "tunnel"),
    "outside": (ROUTER_IP, SERVER_PORT, "router", "uplink"),
}


@pytest.mark.parametrize("name", REACHED)
def test_a_tuple_is_said_to_go_where_it_goes(node: Node, name: str) -> None:
    """The server sees what process-tuples has said, to the port; the rule that match-tuple names has judged it."""
    to, port, who, fate = REACHED[name]
    world, source = node.world, 42000 + list(REACHED).index(name)
    server = world.net.router if who == "router" else getattr(world, who)
    packet = f"tcp {CLIENT} {source} {to} {port} out 1"
    (said,) = node.vfp("process-tuples", "--port", "client", packet)
    assert (said["fate"], said["disagreement"], said["established"]) == (fate, "", False)
    matched = node.vfp(
        "match-tuple", "--port", "client", "--layer", "ACL_IN", packet, status=0 if who == "web" else 1
    )
    before = {
        rule["id"]: rule["judged"] for rule in node.vfp("list-rules", "--port", "web", "--group", "ACL_IN")
    }
    with talk(world.client, server, to, port, source) as seen:
        assert seen.source == (said["sent"]["source"], said["sent"]["source_port"])
        assert seen.destination == (said["sent"]["destination"], said["sent"]["destination_port"])
        (later,) = node.vfp("process-tuples", "--port", "client", f"tcp {CLIENT} {source} {to} {port} out 0")
        # Between pods whose packets nobody judges or translates there is no flow.
        assert later["established"] == (name != "other node")
        assert later["sent"] == said["sent"]
    for step in matched:
        assert "to-the-server" in step["matched"]
        after = {
            rule["id"]: rule["judged"]
            for rule in node.vfp("list-rules", "--port", "web", "--group", "ACL_IN")
        }
        assert after[step["rule"]] == before[step["rule"]] + 1


def test_a_port_that_a_service_has_not_is_told_from_those_that_it_has(node: Node) -> None:
    (wrong,) = node.vfp("process-tuples", "--port", "client", f"tcp {CLIENT} 42200 {VIP} 81 out 1")
    assert wrong["notes"] == [
        f"{VIP} is a service's address, at other ports: load balancer {node.balancer} 80/tcp"
    ]
    (right,) = node.vfp("process-tuples", "--port", "client", f"tcp {CLIENT} 42200 {VIP} 80 out 1")
    assert not right["notes"]


GATEWAY: Final = "10.244.0.1"
CAME: Final = {
    "other node": ("remote", FAR, WEB, SERVER_PORT, "tunnel"),
    "the node": ("node", GATEWAY, WEB, SERVER_PORT, "host"),
    "outside": ("router", ROUTER_IP, NODE_IP, HOST_PORT, "uplink"),
}


@pytest.mark.parametrize("name", CAME)
def test_a_tuple_that_reaches_a_pod_is_said_to_come_as_it_comes(node: Node, name: str) -> None:
    """From wherever it is: by its way, past the same rules, and the server sees what has been said."""
    who, address, to, port, arrival = CAME[name]
    world, source = node.world, 43000 + list(CAME).index(name)
    client = world.remote if who == "remote" else getattr(world.net, who)
    packet = f"tcp {address} {source} {to} {port} in 1"
    (said,) = node.vfp("process-tuples", "--port", "web", packet)
    assert (said["arrival"], said["fate"], said["endpoint"]["id"]) == (arrival, "port", node.web)
    with talk(client, world.web, to, port, source) as seen:
        assert seen.source == (said["sent"]["source"], said["sent"]["source_port"])
        assert seen.destination == (said["sent"]["destination"], said["sent"]["destination_port"])
    # The node itself is let in; who comes from elsewhere by rule or not at all.
    matched = node.vfp(
        *("match-tuple", "--port", "web", "--layer", "ACL_IN", packet), status=1 if who == "node" else 0
    )
    assert ["to-the-server" in step["matched"] for step in matched] == ([] if who == "node" else [True])
    if who == "remote":
        (blocked,) = node.vfp("process-tuples", "--port", "web", f"tcp {address} 1 {to} 81 in", status=1)
        assert (blocked["drop"]["layer"], blocked["drop"]["reason"]) == ("acl_in", "blocked")


@pytest.mark.parametrize(
    ("to", "port", "layer", "reason"),
    [(WEB, 81, "acl_in", "blocked"), ("10.244.0.99", 80, "route", "no_endpoint")],
)
def test_a_tuple_that_is_said_to_be_dropped_is_dropped(
    node: Node, to: str, port: int, layer: str, reason: str
) -> None:
    """There, for that reason, by that rule; and the port of whom it is charged to says so."""
    packet = f"tcp {CLIENT} 42100 {to} {port} out 1"
    (said,) = node.vfp("process-tuples", "--port", "client", packet, status=1)
    assert (said["drop"]["layer"], said["drop"]["reason"]) == (layer, reason)

    def drops() -> list[Json]:
        found: list[Json] = json.loads(run(node.world.near, "get", "drops", "-o", "json").stdout)
        return [
            row for row in found if all(row[key] == said["drop"][key] for key in ("layer", "reason", "rule"))
        ]

    before = sum(row["packets"] for row in drops())
    dropped = sum(found["dropped"] for found in node.vfp("list-ports"))

    def knock() -> socket.socket:
        opened = socket.socket()
        opened.setblocking(False)
        opened.bind(("", 42100))
        opened.connect_ex((to, port))
        return opened

    with in_pod(node.world.client, knock):
        poll("the drop", lambda: sum(row["packets"] for row in drops()) > before)
    assert sum(found["dropped"] for found in node.vfp("list-ports")) > dropped
    owner = "web" if layer == "acl_in" else "client"
    layers = {found["name"]: found["dropped"] for found in node.vfp("list-layers", "--port", owner)}
    assert layers[layer.partition("_")[0].upper()] > 0
