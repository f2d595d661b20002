"""``samewire vfp`` against a daemon that answers by rote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from samewire.cli.main import cli
from samewire.cli.vfp_text import flow_fields, step_fields
from samewire.trace.flows import flow_rows
from samewire.trace.names import Names
from samewire.trace.probe import view_of
from samewire.trace.views import layer_row, port_rows
from samewire.vfp.render import entry_json
from samewire.vfp.rule_names import rule_number
from samewire.vfp.simulate.packet import parse
from samewire.vfp.tables import Config
from tests.support.tools import (
    CLIENT_ID,
    CLIENT_PORT,
    INFOS,
    INTERFACES,
    WEB_ID,
    WEB_PORT,
    StubDaemon,
    compiled,
    probe,
)
from tests.unit.test_trace_follow import DELIVERED
from tests.unit.test_trace_views import counted, play

NAMES = Names(INFOS, lambda ifindex: INTERFACES.get(ifindex, ""))
TABLES = play(compiled(), (probe("10.244.1.6", "93.184.216.34"), CLIENT_PORT))
TRACE = "POST /v2/switch/trace"
DROPPED = replace(
    DELIVERED,
    fate="dropped",
    endpoint=None,
    drop={"layer": "acl_in", "reason": "blocked", "rule": 2, "explanation": "E.", "remedy": "R."},
)


def plain(value: Any) -> Any:
    return json.loads(msgspec.json.encode(value))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[StubDaemon]:
    ports = plain(port_rows(TABLES, NAMES))
    by_id = {port["id"]: port for port in ports}
    with StubDaemon(tmp_path) as stub:
        stub.answers = {
            "GET /v2/switch/ports": (200, ports),
            "GET /v2/routes": (200, []),
            "GET /v2/switch/ports?endpoint=web-0": (200, [by_id[WEB_PORT]]),
            f"GET /v2/switch/layers?endpoint={WEB_ID}": (200, plain(layer_row(TABLES, NAMES, WEB_PORT))),
            f"GET /v2/switch/flows?endpoint={CLIENT_ID}": (
                200,
                plain(list(flow_rows(TABLES, NAMES, 110, CLIENT_PORT))),
            ),
            TRACE: (200, plain(DELIVERED)),
        }
        for table in ("sw_config", "sw_routes", "sw_nexthops", "sw_endpoints"):
            rows = [dict(entry_json(key, value)) for key, value in TABLES[table].items()]
            stub.answers[f"GET /v2/switch/tables?name={table}"] = (200, {table: rows})
        yield stub


def vfp(daemon: StubDaemon, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["--socket", daemon.socket, "vfp", *arguments])


def test_ports_with_their_endpoints(daemon: StubDaemon) -> None:
    said = vfp(daemon, "list-ports").stdout
    assert f"Port: {WEB_PORT}" in said
    assert f"  Endpoint: {WEB_ID}" in said
    assert "  Kind: uplink" in said


@pytest.mark.parametrize("port", ["web-0", str(WEB_PORT), INTERFACES[WEB_PORT]])
def test_layers_and_rules_of_a_port_by_any_name(daemon: StubDaemon, port: str) -> None:
    layers = vfp(daemon, "list-layers", "--port", port).stdout
    assert "Layer: ACL" in layers
    assert "ACL_IN (in, " in layers
    rules = json.loads(vfp(daemon, "list-rules", "--port", port, "--layer", "acl", "--json").stdout)
    assert {rule["layer"] for rule in rules} == {"ACL"}
    assert "  Action: " in vfp(daemon, "list-rules", "--port", port).stdout


def test_rules_of_an_object_without_naming_a_port(daemon: StubDaemon) -> None:
    row = plain(layer_row(TABLES, NAMES, WEB_PORT, None, WEB_ID))
    daemon.answers[f"GET /v2/switch/layers?endpoint={WEB_ID}&object={WEB_ID}"] = (200, row)
    rules = json.loads(vfp(daemon, "list-rules", "--object", WEB_ID, "--json").stdout)
    assert {rule["port"] for rule in rules} == {str(WEB_PORT)}
    assert f"  Port: {WEB_PORT}" in vfp(daemon, "list-rules", "--object", WEB_ID).stdout
    result = vfp(daemon, "list-rules")
    assert result.exit_code == 2
    assert "--port or --object" in result.stderr
    daemon.answers[f"GET /v2/switch/layers?endpoint={WEB_ID}&object=nothing"] = (200, {**row, "layers": []})
    answer = daemon.answers["GET /v2/switch/ports"]
    assert isinstance(answer, tuple)
    ports = answer[1]
    daemon.answers["GET /v2/switch/ports"] = (200, [port for port in ports if port["id"] == WEB_PORT])
    result = vfp(daemon, "list-rules", "--object", "nothing")
    assert result.exit_code == 3
    assert "rules of object 'nothing' not found" in result.stderr


def test_a_layer_or_group_that_is_not_there_is_named(daemon: StubDaemon) -> None:
    result = vfp(daemon, "list-rules", "--port", "web-0", "--layer", "SLB")
    assert result.exit_code == 3
    assert "layer 'SLB' not found: there are GUARD" in result.stderr


def test_rules_have_one_name_everywhere() -> None:
    ends = {"protocol": "tcp", "source": "10.0.0.1", "source_port": 1, "destination": "10.0.0.2"}
    flow = {"ends": {**ends, "destination_port": 2}, "translated": None, "state": "replied", "idle_s": 0}
    flow |= {"initiator": {"name": "a"}, "target": {"name": "b"}}
    shown = flow_fields({**flow, "rules": [rule_number(5, network=True), rule_number(3, 2)]})
    assert shown["  Rules"] == "network 5, 3.2"
    step = {"verdict": "pass", "matched": "", "ends": None}
    tier = {**step, "layer": "acl_in", "rule": rule_number(3, 2)}
    assert step_fields(tier)["  Rule"] == "3.2"
    assert step_fields({**step, "layer": "lb", "rule": 70_000})["  Rule"] == "70000"  # a service
    assert step_fields({**step, "layer": "route", "rule": 0})["  Rule"] == ""


def test_the_counters_of_flows(daemon: StubDaemon) -> None:
    counted = {"flow_inserts": 7, "redecided": 900, "entries": 0}
    daemon.answers["GET /v2/switch/flows?summary=1"] = (200, counted)
    assert json.loads(vfp(daemon, "get-flow-stats", "--json").stdout) == counted
    assert vfp(daemon, "get-flow-stats").stdout == "Flow inserts: 7\nRedecided: 900\nEntries: 0\n"


def test_flows_of_a_port(daemon: StubDaemon) -> None:
    said = vfp(daemon, "list-unified-flows", "--port", str(CLIENT_PORT)).stdout
    assert "Flow: tcp 10.244.1.6" in said or "Flow: udp 10.244.1.6" in said or "10.244.1.6" in said
    assert vfp(daemon, "list-unified-flows", "--port", "uplink").exit_code == 1


def test_what_a_flows_ends_have_sent_or_how_to_have_it_counted(daemon: StubDaemon) -> None:
    shown = vfp(daemon, "list-unified-flows", "--port", str(CLIENT_PORT))
    assert "Sent" not in shown.stdout
    assert "flow_counters = true" in shown.stderr
    (there,) = plain(list(flow_rows(counted(TABLES), NAMES, 110, CLIENT_PORT)))
    daemon.answers[f"GET /v2/switch/flows?endpoint={CLIENT_ID}"] = (200, [there])
    shown = vfp(daemon, "list-unified-flows", "--port", str(CLIENT_PORT))
    assert "  Sent: 5 packets, 500 bytes\n  Answered: 7 packets, 700 bytes\n" in shown.stdout
    assert not shown.stderr


def test_a_tuple_that_leaves_a_pod(daemon: StubDaemon) -> None:
    result = vfp(daemon, "process-tuples", "--port", str(CLIENT_PORT), "6 10.244.1.6 40000 10.244.1.5 80 1 1")
    assert result.exit_code == 0, result.output
    assert daemon.requests[-1] == (
        TRACE,
        {"from": CLIENT_ID, "to": "10.244.1.5", "protocol": "tcp", "source_port": 40000, "port": 80},
    )
    assert "  Fate: port" in result.stdout


def test_a_tuple_that_reaches_a_pod_from_another_or_from_outside(daemon: StubDaemon) -> None:
    vfp(daemon, "process-tuples", "--port", "web-0", "tcp 10.244.1.6 40000 10.244.1.5 80 in")
    assert daemon.requests[-1][1]["from"] == CLIENT_ID
    vfp(daemon, "process-tuples", "--port", "web-0", "udp 192.0.2.9 40000 10.244.1.5 53 2 0")
    body = daemon.requests[-1][1]
    ends = view_of(parse(bytearray.fromhex(body["frame"])))
    assert body["arrival"] == "uplink"
    assert (ends.protocol, ends.source, ends.destination_port) == ("udp", "192.0.2.9", 53)


BEHIND: Final = {"arrival": "tunnel", "vni": 4096, "tunnel_source": "192.168.1.11"}


@pytest.mark.parametrize(
    ("port", "source", "destination", "way"),
    [
        ("web-0", "10.244.2.9", "10.244.1.5", BEHIND),
        ("web-0", "fd00:244:2::9", "fd00:244:1::5", BEHIND),
        ("web-0", "10.244.1.1", "10.244.1.5", {"arrival": "host"}),
        ("web-0", "192.168.1.10", "10.244.1.5", {"arrival": "host"}),
        ("tunnel", "10.244.2.9", "10.244.1.5", BEHIND),
        ("host", "10.244.1.1", "10.244.1.5", {"arrival": "host"}),
        ("uplink", "192.0.2.9", "192.168.1.10", {"arrival": "uplink"}),
    ],
)
def test_a_tuple_comes_the_way_that_its_source_would(
    daemon: StubDaemon, port: str, source: str, destination: str, way: dict[str, Any]
) -> None:
    """With the MAC address of the device on which it arrives: other frames are none of the node's."""
    result = vfp(daemon, "process-tuples", "--port", port, f"tcp {source} 40000 {destination} 80 in")
    assert result.exit_code == 0, result.output
    body = dict(daemon.requests[-1][1])
    frame = bytes.fromhex(body.pop("frame"))
    assert body == way
    config = next(iter(TABLES["sw_config"].values()))
    assert isinstance(config, Config)
    macs = {"uplink": config.uplink_mac, "tunnel": config.tunnel_mac, "host": config.host_peer_mac}
    assert frame[:6] == macs[body["arrival"]]


def test_a_source_that_no_other_node_has_comes_by_no_tunnel(daemon: StubDaemon) -> None:
    result = vfp(daemon, "process-tuples", "--port", "tunnel", "tcp 192.0.2.9 1 10.244.1.5 80 out")
    assert (result.exit_code, daemon.requests[-1][0] == TRACE) == (1, False)
    assert "192.0.2.9 is behind no other node" in result.stderr


def test_of_tenants_with_the_same_addresses_the_ports_own_is_meant(daemon: StubDaemon) -> None:
    ports = plain(port_rows(TABLES, NAMES))
    own = next(port for port in ports if port["id"] == CLIENT_PORT)
    twin = {**own, "id": 99, "scope": 7, "endpoint": {**own["endpoint"], "id": "TWIN"}}
    daemon.answers["GET /v2/switch/ports"] = (200, [twin, *ports])
    vfp(daemon, "process-tuples", "--port", "web-0", "tcp 10.244.1.6 40000 10.244.1.5 80 in")
    assert daemon.requests[-1][1]["from"] == CLIENT_ID


@pytest.mark.parametrize("way", ["out", "in"])
def test_the_owner_of_an_address_is_found_however_it_is_written(daemon: StubDaemon, way: str) -> None:
    ports = plain(port_rows(TABLES, NAMES))
    for port in ports:
        port["addresses"] = ["fd00:244:1::6"] if port["id"] == CLIENT_PORT else []
    daemon.answers["GET /v2/switch/ports"] = (200, ports)
    asked = str(CLIENT_PORT) if way == "out" else "web-0"
    result = vfp(daemon, "process-tuples", "--port", asked, f"tcp FD00:244:1:0::06 1 fd00:244:1::5 80 {way}")
    assert result.exit_code == 0, result.output
    assert daemon.requests[-1][1]["from"] == CLIENT_ID


def test_a_dropped_tuple_is_a_failure(daemon: StubDaemon) -> None:
    daemon.answers[TRACE] = (200, plain(DROPPED))
    result = vfp(daemon, "process-tuples", "--port", str(CLIENT_PORT), "icmp 10.244.1.6 0 10.244.1.5 0")
    assert result.exit_code == 1
    assert "  Dropped: acl_in: blocked. E." in result.stdout


def test_a_rule_of_one_layer(daemon: StubDaemon) -> None:
    steps = [
        {"layer": layer, "verdict": "pass", "rule": 1, "matched": "", "ends": None}
        for layer in ("route", "acl_out", "acl_in")
    ]
    daemon.answers[TRACE] = (200, {**plain(DELIVERED), "steps": steps})
    result = vfp(
        daemon,
        *("match-tuple", "--port", str(CLIENT_PORT), "--layer", "ACL", "--json"),
        "tcp 10.244.1.6 1 10.244.1.5 80",
    )
    assert json.loads(result.stdout) == steps[1:]
    nowhere = vfp(
        daemon,
        *("match-tuple", "--port", str(CLIENT_PORT), "--layer", "nat"),
        "tcp 10.244.1.6 1 10.244.1.5 80",
    )
    assert nowhere.exit_code == 1
    mistyped = vfp(
        daemon,
        *("match-tuple", "--port", str(CLIENT_PORT), "--layer", "nothing"),
        "tcp 10.244.1.6 1 10.244.1.5 80",
    )
    assert mistyped.exit_code == 2
    assert "'nothing' is none of PARSE, GUARD, " in mistyped.stderr


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", 2),
        ("tcp 10.244.1.6 1", 2),
        ("gre 10.244.1.6 1 10.244.1.5 80", 2),
        ("tcp 10.244.1.6 x 10.244.1.5 80", 2),
        ("tcp 10.244.1.6 1 10.244.1.5 80 sideways", 2),
        ("tcp 10.244.1.6 1 10.244.1.5 80 out syn", 2),
        ("tcp 10.244.1.99 1 10.244.1.5 80", 1),
        ("tcp nowhere 1 10.244.1.5 80 in", 2),
        ("tcp 10.244.1.6 1 nowhere 80", 2),
        ("tcp 10.244.1.6 1 fd00::5 80", 2),
    ],
)
def test_a_tuple_that_is_none_says_what_is_wrong(daemon: StubDaemon, text: str, status: int) -> None:
    result = vfp(daemon, "process-tuples", "--port", str(CLIENT_PORT), text)
    assert result.exit_code == status
    assert "tuple" in result.stderr.lower()
    assert all(asked != TRACE for asked, _ in daemon.requests)
