"""``samewire hns`` against a daemon that answers by rote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from samewire.cli.main import cli
from tests.support.tools import StubDaemon

NETWORK: dict[str, Any] = {
    "ID": "0E57AB1E-0000-4000-8000-000000000001",
    "Name": "pods",
    "Type": "Overlay",
    "Ipams": [{"Type": "Static", "Subnets": [{"IpAddressPrefix": "10.244.1.0/24"}]}],
}
BALANCER: dict[str, Any] = {
    "ID": "0E57AB1E-0000-4000-8000-000000000002",
    "FrontendVIPs": ["10.96.0.10"],
    "PortMappings": [{"Protocol": 17, "ExternalPort": 53, "InternalPort": 5353}],
    "HostComputeEndpoints": ["A", "B"],
}
TWINS = [{"ID": f"1A2B3C4D-0000-4000-8000-00000000000{n}", "Name": "twin", "Flags": 1} for n in (1, 2)]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[StubDaemon]:
    with StubDaemon(tmp_path) as stub:
        stub.answers = {
            "GET /v2/networks": (200, [NETWORK]),
            "GET /v2/endpoints": (200, TWINS),
            "GET /v2/namespaces": (200, []),
            "GET /v2/loadbalancers": (200, [BALANCER, {**BALANCER, "HostComputeEndpoints": ["A"]}]),
            "GET /v2/routes": (200, []),
        }
        yield stub


def hns(daemon: StubDaemon, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["--socket", daemon.socket, "hns", *arguments])


def test_everything_has_a_line(daemon: StubDaemon) -> None:
    said = hns(daemon, "list").stdout
    assert "networks (1)" in said
    assert "Overlay 10.244.1.0/24" in said
    assert "10.96.0.10 17:53->5353 (2 backends)" in said
    assert "10.96.0.10 17:53->5353 (1 backend)" in said
    assert "namespaces (0)" in said


@pytest.mark.parametrize("kind", ["networks", "network", "NETWORKS"])
def test_one_kind_in_any_number(daemon: StubDaemon, kind: str) -> None:
    assert json.loads(hns(daemon, "list", kind, "--json").stdout) == [NETWORK]
    assert '"Type": "Overlay"' in hns(daemon, "list", kind, "--detail").stdout


@pytest.mark.parametrize("name", ["pods", "{0e57ab1e-0000-4000-8000-000000000001}", NETWORK["ID"]])
def test_one_object_by_name_or_id(daemon: StubDaemon, name: str) -> None:
    assert json.loads(hns(daemon, "get", "network", name).stdout) == NETWORK


def test_what_is_not_there_or_not_unique(daemon: StubDaemon) -> None:
    assert hns(daemon, "get", "network", "nothing").exit_code == 3
    result = hns(daemon, "get", "endpoint", "twin")
    assert result.exit_code == 1
    assert str(TWINS[1]["ID"]) in result.stderr
    assert hns(daemon, "list", "switches").exit_code == 2


def test_nothing_is_deleted_when_a_name_is_wrong(daemon: StubDaemon) -> None:
    assert hns(daemon, "delete", "network", "pods", "nothing").exit_code == 3
    assert all(asked.startswith("GET") for asked, _ in daemon.requests)
