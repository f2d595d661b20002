"""The daemon's configuration: what is accepted, and that every error names its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from samewire.errors import Invalid
from samewire.node.config import load_config, make_config


def test_defaults() -> None:
    config = make_config({"name": "a"})
    assert config.uplink == ""
    assert config.http_socket == Path("/run/samewire/samewire.sock")
    assert config.cni_socket == Path("/run/samewire/cni.sock")
    assert config.bpf_dir == Path("/run/samewire/bpf")
    assert config.nat_ports == (49152, 65535)
    assert config.metrics_address is None


@pytest.mark.parametrize(
    ("entries", "slots"), [(1024, 2048), (131072, 262144), (131073, 524288), (1500, 4096)]
)
def test_flow_slots_is_a_power_of_two_from_twice_the_flows(entries: int, slots: int) -> None:
    assert make_config({"name": "a", "flow_entries": entries}).flow_slots == slots


def test_json_and_toml_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"name": "a", "nat_ports": [50000, 60000], "run_dir": "/r"}')
    (tmp_path / "c.toml").write_text('name = "a"\nnat_ports = [50000, 60000]\nrun_dir = "/r"\n')
    assert load_config(tmp_path / "c.json") == load_config(tmp_path / "c.toml")


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:9100", ("127.0.0.1", 9100)), (":9100", ("", 9100)), ("[::1]:9100", ("::1", 9100))],
)
def test_metrics_address(text: str, address: tuple[str, int]) -> None:
    assert make_config({"name": "a", "metrics_listen": text}).metrics_address == address


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({}, "configuration"),
        ({"name": "no blanks"}, "name"),
        ({"name": "-a"}, "name"),
        ({"name": "a", "uplnk": "eth0"}, "configuration"),
        ({"name": "a", "uplink": "x" * 16}, "uplink"),
        ({"name": "a", "run_dir": "run"}, "run_dir"),
        ({"name": "a", "state_dir": 5}, "state_dir"),
        ({"name": "a", "vxlan_port": 0}, "vxlan_port"),
        ({"name": "a", "vxlan_port": "4789"}, "vxlan_port"),
        ({"name": "a", "nat_ports": [60000, 50000]}, "nat_ports"),
        ({"name": "a", "nat_ports": [4000, 50000]}, "nat_ports"),
        ({"name": "a", "nat_ports": [50000]}, "nat_ports"),
        ({"name": "a", "nat_ports": [50000, 70000]}, "nat_ports[1]"),
        ({"name": "a", "flow_entries": 10}, "flow_entries"),
        ({"name": "a", "host_cgroup": "unified/kubepods"}, "host_cgroup"),
        ({"name": "a", "metrics_listen": "9100"}, "metrics_listen"),
        ({"name": "a", "metrics_listen": "localhost:99999"}, "metrics_listen"),
        ({"name": "a", "audit_interval_s": 0}, "audit_interval_s"),
    ],
)
def test_errors_name_the_key(values: dict[str, Any], path: str) -> None:
    with pytest.raises(Invalid) as caught:
        make_config(values)
    assert caught.value.path == path


def test_unknown_keys_are_named() -> None:
    with pytest.raises(Invalid, match="uplnk"):
        make_config({"name": "a", "uplnk": "eth0"})


@pytest.mark.parametrize("text", ["{", "name = ", "\x00"])
def test_a_file_that_is_neither(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c"
    path.write_text(text)
    with pytest.raises(Invalid, match="JSON nor TOML"):
        load_config(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="cannot be read"):
        load_config(tmp_path / "none")


def test_a_bad_value_names_file_and_key(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('{"name": "a", "vxlan_port": 70000}')
    with pytest.raises(Invalid, match=r"c\.json: vxlan_port"):
        load_config(path)
