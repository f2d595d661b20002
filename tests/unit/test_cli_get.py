"""``samewire get``, ``diff`` and ``doctor`` against a daemon that answers by rote."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from click.testing import CliRunner, Result

from samewire.cli.main import cli
from samewire.cli.stream import json_lines
from samewire.errors import Unavailable
from samewire.hcn.codec import encode
from samewire.trace.flows import flow_rows
from samewire.trace.names import Names
from samewire.trace.views import drop_event, drop_rows, layer_row, port_rows
from samewire.vfp.rule_names import rule_number
from tests.support.tools import (
    CLIENT,
    CLIENT_ID,
    CLIENT_PORT,
    INFOS,
    INTERFACES,
    NETWORK,
    NETWORK_ID,
    WEB,
    WEB_ID,
    WEB_PORT,
    StubDaemon,
    compiled,
    probe,
)
from tests.unit.test_trace_views import DROPS, EVENT, play

NAMES = Names(INFOS, lambda ifindex: INTERFACES.get(ifindex, ""))
TABLES = play(compiled(), (probe("10.244.1.6", "93.184.216.34"), CLIENT_PORT))
SPACE_ID = "9A000000-0000-4000-8000-000000000001"
ROUTE_ID = "50000000-0000-4000-8000-000000000001"


def plain(value: Any) -> Any:
    return msgspec.to_builtins(value)


def endpoint(index: int) -> dict[str, Any]:
    value = encode((WEB, CLIENT)[index])
    return {**value, "Name": INFOS[index].name, "HostComputeNetwork": NETWORK_ID, "State": 3}


ENDPOINTS = [
    endpoint(0),
    endpoint(1),
    {
        "ID": INFOS[2].id,
        "Name": "far",
        "Flags": 1,
        "IpConfigurations": [{"IpAddress": "10.244.2.9"}],
        "State": 1,
    },
]
SPACE = {
    "ID": SPACE_ID,
    "NetnsPath": "/run/netns/web",
    "NamespaceId": 2,
    "Type": "Guest",
    "Owner": "samewire:attach",
    "Resources": [{"Type": "Endpoint", "Data": {"Id": WEB_ID}}, {"Type": "Container", "Data": {"Id": "c"}}],
}
ROUTE = {
    "ID": ROUTE_ID,
    "HostComputeNetwork": NETWORK_ID,
    "HostComputeEndpoints": [WEB_ID],
    "Routes": [{"DestinationPrefix": "10.96.0.0/12", "NextHop": "10.244.1.1"}],
}

BALANCER = {
    "ID": "0F1E2D3C-0000-4000-8000-00000000000B",
    "Name": "web",
    "Owner": "samewire-proxy",
    "HostComputeNetwork": NETWORK_ID,
    "FrontendVIPs": ["10.96.0.10"],
    "PortMappings": [
        {"Protocol": 6, "InternalPort": 8080, "ExternalPort": 80},
        {"Protocol": 17, "ExternalPort": 53},
    ],
    "HostComputeEndpoints": [WEB_ID],
    "Backends": [{"IpAddress": "10.244.2.5", "Port": 8080}],
    "ServiceName": "shop/web:http",
}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[StubDaemon]:
    with StubDaemon(tmp_path) as stub:
        stub.answers = {
            "GET /v2/networks": (200, [encode(NETWORK)]),
            "GET /v2/endpoints": (200, ENDPOINTS),
            "GET /v2/namespaces": (200, [SPACE]),
            "GET /v2/loadbalancers": (200, [BALANCER]),
            "GET /v2/routes": (200, [ROUTE, {**ROUTE, "ID": "X", "HostComputeEndpoints": []}]),
            "GET /v2/switch/endpoints": (200, plain(INFOS)),
            "GET /v2/switch/endpoints?endpoint=web-0": (200, plain(INFOS[:1])),
            "GET /v2/switch/ports": (200, plain(port_rows(TABLES, NAMES))),
            "GET /v2/switch/ports?endpoint=web-0": (200, plain(port_rows(TABLES, NAMES)[:1])),
            "GET /v2/switch/layers?endpoint=web-0": (200, plain(layer_row(TABLES, NAMES, WEB_PORT))),
            "GET /v2/switch/flows": (200, plain(list(flow_rows(TABLES, NAMES, 110)))),
            "GET /v2/switch/flows?endpoint=client": (
                200,
                plain(list(flow_rows(TABLES, NAMES, 110, CLIENT_PORT))),
            ),
            "GET /v2/switch/drops": (200, plain(drop_rows({"sw_drops": DROPS}, NAMES))),
            "GET /v2/switch/drops?endpoint=web-0": (200, []),
        }
        yield stub


def get(daemon: StubDaemon, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["--socket", daemon.socket, "get", *arguments])


def lines(result: Result) -> list[list[str]]:
    """The cells of a table."""
    assert result.exit_code == 0, result.output
    return [re.split(r" {3,}", line.strip()) for line in result.stdout.splitlines()]


def test_networks(daemon: StubDaemon) -> None:
    assert lines(get(daemon, "networks")) == [
        ["NAME", "TYPE", "SUBNETS", "VNI"],
        ["pods", "Overlay", "10.244.1.0/24,fd00:244:1::/64", "4096"],
    ]
    wide = lines(get(daemon, "networks", "-o", "wide"))
    assert wide[1][4:] == [
        "-",
        "10.244.1.1,fd00:244:1::1",
        "10.244.2.0/24@192.168.1.11,fd00:244:2::/64@192.168.1.11",
        "HostRoute,RemoteSubnetRoute×2",
        NETWORK_ID,
    ]


def test_endpoints(daemon: StubDaemon) -> None:
    assert lines(get(daemon, "endpoints")) == [
        ["NAME", "ADDRESSES", "NETWORK", "STATE", "PORT", "POLICIES"],
        ["shop/web-0", "10.244.1.5,fd00:244:1::5", "pods", "attached", "sw00000000042", "ACL,PortMapping"],
        ["shop/client", "10.244.1.6,fd00:244:1::6", "pods", "attached", "sw00000000043", "OutBoundNAT"],
        ["far", "10.244.2.9", "pods", "remote", "-", "-"],
    ]
    assert WEB_ID in get(daemon, "endpoints", "-o", "wide").stdout


def test_an_endpoint_without_a_name_goes_by_its_id(daemon: StubDaemon) -> None:
    """As drops, flows and doctor name it: a runtime that is not Kubernetes' says no pod's name."""
    daemon.answers["GET /v2/endpoints"] = (200, [{**ENDPOINTS[0], "Name": ""}])
    assert lines(get(daemon, "endpoints"))[1][0] == WEB_ID


def test_one_endpoint_by_any_name(daemon: StubDaemon) -> None:
    assert len(lines(get(daemon, "endpoints", "web-0"))) == 2
    assert json.loads(get(daemon, "endpoints", "web-0", "-o", "json").stdout) == ENDPOINTS[0]


def test_namespaces(daemon: StubDaemon) -> None:
    assert lines(get(daemon, "namespaces")) == [
        ["ID", "NETNS", "ENDPOINTS"],
        [SPACE_ID, "/run/netns/web", "shop/web-0"],
    ]
    assert len(lines(get(daemon, "namespaces", "/run/netns/web"))) == 2


def test_routes(daemon: StubDaemon) -> None:
    assert lines(get(daemon, "routes")) == [
        ["ID", "NETWORK", "DESTINATIONS", "ENDPOINTS"],
        [ROUTE_ID, "pods", "10.96.0.0/12", "1"],
        ["X", "pods", "10.96.0.0/12", "all"],
    ]


def test_load_balancers(daemon: StubDaemon) -> None:
    assert lines(get(daemon, "loadbalancers")) == [
        ["NAME", "VIPS", "PORTS", "BACKENDS", "NETWORK", "OWNER"],
        ["shop/web:http", "10.96.0.10", "80>8080/tcp,53/udp", "2", "pods", "samewire-proxy"],
    ]
    assert json.loads(get(daemon, "loadbalancers", "shop/web:http", "-o", "json").stdout) == BALANCER
    left = {"IpAddress": "10.244.2.6", "Port": 8080, "Flags": 3}
    draining = {**BALANCER, "DrainingEndpoints": [WEB_ID], "Backends": [*BALANCER["Backends"], left]}
    daemon.answers["GET /v2/loadbalancers"] = (200, [draining])
    assert lines(get(daemon, "loadbalancers"))[1][3] == "1, 2 draining"


def test_ports(daemon: StubDaemon) -> None:
    assert lines(get(daemon, "ports"))[1:4] == [
        ["42", "sw00000000042", "pod", "shop/web-0", "10.244.1.5,fd00:244:1::5", "-"],
        ["43", "sw00000000043", "pod", "shop/client", "10.244.1.6,fd00:244:1::6", "-"],
        ["2", "eth0", "uplink", "-", "-", "-"],
    ]
    assert len(lines(get(daemon, "ports", "--endpoint", "web-0"))) == 2
    assert WEB_ID in get(daemon, "ports", "web-0", "-o", "wide").stdout


def test_layers(daemon: StubDaemon) -> None:
    found = lines(get(daemon, "layers", "web-0"))
    assert found[0] == ["LAYER", "GROUP", "RULE", "CONDITIONS", "ACTION", "JUDGED"]
    assert any(row[0] == "LB" for row in found)
    assert ["ACL", "ACL_IN", "1", "protocol tcp, local port 80", "allow", "0"] in found
    assert any(row[:2] == ["ROUTE", "ROUTE_OUT"] and "vni 4096" in row[-2] for row in found)


def test_flows(daemon: StubDaemon) -> None:
    (row,) = lines(get(daemon, "flows"))[1:]
    assert row[:3] == ["tcp", "10.244.1.6:40000", "93.184.216.34:80"]
    assert re.fullmatch(r"192\.168\.1\.10:\d+ > 93\.184\.216\.34:80", row[3])
    assert row[4:] == ["shop/client", "uplink", "half-open", "11s"]
    assert len(lines(get(daemon, "flows", "--endpoint", "client"))) == 2
    assert lines(get(daemon, "flows", "client", "-o", "wide"))[1][-4:] == ["0/0", "1", "pod", "2"]


def test_drops(daemon: StubDaemon) -> None:
    assert lines(get(daemon, "drops"))[:3] == [
        ["PACKETS", "PORT", "ENDPOINT", "LAYER", "REASON", "RULE", "ARRIVAL"],
        ["9", "eth0", "-", "fragment", "fragment_unknown", "-", "uplink"],
        ["7", "sw00000000042", "shop/web-0", "acl_in", "blocked", "-", "pod"],
    ]
    assert "An ACL rule says Block" in get(daemon, "drops", "-o", "wide").stdout


def test_rules_are_called_what_lists_of_rules_call_them(daemon: StubDaemon) -> None:
    names = {2: "2", rule_number(3, 2): "3.2", rule_number(1, network=True): "network 1"}
    drop = next(row for row in plain(drop_rows({"sw_drops": DROPS}, NAMES)) if row["layer"] == "acl_in")
    flow = plain(list(flow_rows(TABLES, NAMES, 110)))[0]
    for number, name in names.items():
        daemon.answers["GET /v2/switch/drops"] = (200, [{**drop, "rule": number}])
        assert lines(get(daemon, "drops"))[1][5] == name
        daemon.answers["GET /v2/switch/flows"] = (200, [{**flow, "rules": [0, number]}])
        assert lines(get(daemon, "flows", "-o", "wide"))[1][-4] == f"0/{name}"


def test_nothing_to_show(daemon: StubDaemon) -> None:
    result = get(daemon, "drops", "web-0")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "none\n")
    assert json.loads(get(daemon, "drops", "web-0", "-o", "json").stdout) == []


@pytest.mark.parametrize(
    "kind", ["networks", "endpoints", "namespaces", "routes", "loadbalancers", "ports", "flows", "drops"]
)
def test_json_and_yaml_are_the_answer(daemon: StubDaemon, kind: str) -> None:
    hcn = kind in ("networks", "endpoints", "namespaces", "routes", "loadbalancers")
    answer = daemon.answers[f"GET /v2/{kind}" if hcn else f"GET /v2/switch/{kind}"]
    assert isinstance(answer, tuple)
    wanted = json.loads(json.dumps(answer[1]))
    assert json.loads(get(daemon, kind, "-o", "json").stdout) == wanted
    assert yaml.safe_load(get(daemon, kind, "-o", "yaml").stdout) == wanted


def test_a_kind_in_the_singular(daemon: StubDaemon) -> None:
    assert get(daemon, "Network").stdout == get(daemon, "networks").stdout


@pytest.mark.parametrize("name", ["pods", "PODS", NETWORK_ID, NETWORK_ID.lower()])
def test_by_name_and_id(daemon: StubDaemon, name: str) -> None:
    assert json.loads(get(daemon, "networks", name, "-o", "json").stdout)["ID"] == NETWORK_ID


@pytest.mark.parametrize(
    "kind", ["networks", "endpoints", "namespaces", "routes", "loadbalancers", "ports", "layers", "flows"]
)
def test_what_does_not_exist(daemon: StubDaemon, kind: str) -> None:
    result = get(daemon, kind, "nobody")
    assert (result.exit_code, result.stdout) == (3, "")
    assert len(result.stderr.splitlines()) == 1


def test_a_name_that_two_have(daemon: StubDaemon) -> None:
    daemon.answers["GET /v2/routes"] = (200, [{**ROUTE, "Name": "r"}, {**ROUTE, "ID": "X", "Name": "r"}])
    result = get(daemon, "routes", "r")
    assert result.exit_code == 1
    assert result.stderr == f"Error: 2 of them are called r: {ROUTE_ID}, X\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["networks", "--endpoint", "x"],
        ["flows", "x", "--endpoint", "y"],
        ["flows", "--watch"],
        ["layers"],
        ["networks", "-o", "xml"],
    ],
)
def test_wrong_usage(daemon: StubDaemon, arguments: list[str]) -> None:
    result = get(daemon, *arguments)
    assert result.exit_code == 2
    assert daemon.requests == []


def test_watching(daemon: StubDaemon) -> None:
    event = plain(drop_event(NAMES, EVENT))
    daemon.answers["GET /v2/switch/drops?watch=1"] = (200, (json.dumps(event) + "\n").encode() * 2)
    found = get(daemon, "drops", "--watch").stdout.splitlines()
    assert len(found) == 2
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d  shop/web-0  acl_in: blocked rule 2  tcp 10\.244\.1\.6:40000 > 10\.244\.1\.5:81",
        found[0],
    )
    assert get(daemon, "drops", "--watch", "-o", "wide").stdout.splitlines()[0].endswith("allows this.")
    documents = list(yaml.safe_load_all(get(daemon, "drops", "--watch", "-o", "yaml").stdout))
    assert documents == [event, event]


def test_watching_a_daemon_that_stands_still(tmp_path: Path) -> None:
    """It takes the connection, and says nothing: no drops are something else."""
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "s"))
        silent.listen()
        with pytest.raises(Unavailable, match="timed out"):
            next(json_lines(str(tmp_path / "s"), "/v2/switch/drops?watch=1", timeout_s=0.05))


def test_watching_an_endpoint_that_does_not_exist(daemon: StubDaemon) -> None:
    answer = (404, {"Success": False, "Error": "endpoint 'x' not found", "ErrorCode": 0x80070490})
    daemon.answers["GET /v2/switch/drops?endpoint=x&watch=1"] = answer
    result = get(daemon, "drops", "x", "--watch")
    assert (result.exit_code, result.stderr) == (3, "Error: endpoint 'x' not found\n")


# --- services -------------------------------------------------------------------------------------

SERVICE = {
    "namespace": "shop",
    "name": "web",
    "type": "NodePort",
    "addresses": [
        {
            "id": "L1",
            "address": "10.96.0.10",
            "port": 80,
            "protocol": "TCP",
            "backends": [
                {"address": "10.244.1.5", "port": 8080, "local": True},
                {"address": "fd44::5", "port": 8080, "draining": True},
                *({"address": f"10.244.2.{number}", "port": 8080} for number in range(1, 6)),
            ],
        },
        {
            "id": "L3",
            "address": "10.96.0.10",
            "port": 9090,
            "protocol": "TCP",
            "backends": [{"address": "10.244.1.5", "port": 9090, "local": True}],
        },
        {"id": "L2", "address": "", "port": 30080, "protocol": "TCP"},
    ],
    "changed_s": 1.0,
    "latency_s": 0.0123,
    "tally": {"flows": 3, "connections": 7, "refused": 1, "ended": 1},
}


def test_services(daemon: StubDaemon) -> None:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["--socket", daemon.socket, "get", "services", *arguments])

    failing = {"namespace": "shop", "name": "bad", "type": "ClusterIP", "error": "the port is taken"}
    daemon.answers["GET /v2/services?counts=1"] = (200, [SERVICE, failing])
    daemon.answers["GET /v2/health"] = (200, {"kubernetes": {"Service": {"connected": True}}})
    lines = [re.split(r"  +", line) for line in run().output.splitlines()]
    assert lines[1] == ["shop/web", "NodePort", "10.96.0.10", "80/TCP, 9090/TCP, :30080/TCP", "7", "-"]
    assert lines[2][-1] == "the port is taken"
    wide = run("-o", "wide").output.splitlines()
    assert "10.244.1.5:8080, [fd44::5]:8080 (draining)" in wide[1]
    assert "2 more" in wide[1]
    assert re.search(r" 3 +7 +2 +\d+d ago +12\.3 ms", wide[1])
    assert re.search(
        r" 0 +0 +0 +- +- +the port is taken", wide[2]
    )  # not "never": it may be of an earlier start
    daemon.answers["GET /v2/services?counts=1&name=shop/web"] = (200, [SERVICE])
    assert json.loads(run("shop/web", "-o", "json").output)[0]["name"] == "web"


def test_what_services_are_made_of_and_nobody_tells(daemon: StubDaemon) -> None:
    kinds = {
        "Service": {"synced": True, "connected": True, "error": ""},
        "EndpointSlice": {"synced": False, "connected": False, "error": "403 Forbidden"},
        "Node": {"synced": True, "connected": False, "error": "refused"},
    }
    daemon.answers["GET /v2/health"] = (200, {"kubernetes": kinds})
    daemon.answers["GET /v2/services?counts=1"] = (200, [])
    result = get(daemon, "services")
    assert result.stderr.splitlines() == [
        "EndpointSlices are not known: 403 Forbidden",
        "Nodes are as last known: refused",
        "none",
    ]


# --- diff and doctor ------------------------------------------------------------------------------


def test_diff(daemon: StubDaemon) -> None:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["--socket", daemon.socket, "diff", *arguments])

    daemon.answers["GET /v2/switch/diff"] = (200, {"healthy": True, "differences": []})
    assert (run().exit_code, run().output) == (0, "")
    found = {"kind": "table", "subject": "sw_ports 42", "text": "is missing"}
    daemon.answers["GET /v2/switch/diff"] = (200, {"healthy": False, "differences": [found]})
    assert (run().exit_code, run().output) == (1, "table sw_ports 42: is missing\n")
    assert json.loads(run("--json").output)["differences"] == [found]
    assert run("--json").exit_code == 1


def test_doctor(daemon: StubDaemon) -> None:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["--socket", daemon.socket, "doctor", *arguments])

    daemon.answers["GET /v2/doctor"] = (200, {"healthy": True, "findings": []})
    assert (run().exit_code, run().output) == (0, "healthy: every check passed\n")
    warning = {
        "level": "warning",
        "check": "mtu",
        "object": "shop/web-0",
        "message": "it is too large",
        "remedy": "Make it smaller.",
    }
    daemon.answers["GET /v2/doctor"] = (200, {"healthy": True, "findings": [warning]})
    assert run().exit_code == 0
    assert run().output.splitlines() == [
        "warning mtu: shop/web-0: it is too large",
        "    Make it smaller.",
        "healthy, with 1 warning",
    ]
    daemon.answers["GET /v2/doctor"] = (200, {"healthy": False, "findings": [{**warning, "level": "error"}]})
    assert run().exit_code == 1
    assert json.loads(run("--json").output)["findings"][0]["level"] == "error"


def test_endpoints_are_those_of_the_fixture() -> None:
    assert [value["ID"] for value in ENDPOINTS] == [WEB_ID, CLIENT_ID, INFOS[2].id]
