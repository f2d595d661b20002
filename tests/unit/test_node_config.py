"""The daemon's configuration: what is accepted, and that every error names its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from samewire.errors import Invalid
from samewire.node.config import load_config, make_config, require_host_cgroup


def test_defaults() -> None:
    config = make_config({"name": "a"})
    assert config.uplink == ""
    assert config.http_socket == Path("/run/samewire/samewire.sock")
    assert config.cni_socket == Path("/run/samewire/cni.sock")
    assert config.bpf_dir == Path("/run/samewire/bpf")
    assert config.nat_ports == (49152, 65535)
    assert config.metrics_address is None


def test_names_in_kubernetes_are_lower_case() -> None:
    """A host's need not be: kubelet registers it so."""
    assert make_config({"name": "Node-1"}).kubernetes_name == "node-1"
    assert make_config({"name": "a", "node_name": "Node-2.Example"}).kubernetes_name == "node-2.example"


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
        ({"name": "a", "kubeconfig": "/k", "manifests": "/m"}, "manifests"),
        ({"name": "a", "in_cluster": True, "manifests": "/m"}, "manifests"),
        ({"name": "a", "proxy_mode": "iptables"}, "proxy_mode"),
        ({"name": "a", "node_name": "-x"}, "node_name"),
        ({"name": "a", "node_port_range": [32767, 30000]}, "node_port_range"),
        ({"name": "a", "manifests": "/m", "node_port_range": [30000, 50000]}, "node_port_range"),
        ({"name": "a", "manifests": "/m", "node_port_range": [4000, 5000]}, "node_port_range"),
        ({"name": "a", "node_port_addresses": ["eth0"]}, "node_port_addresses"),
        ({"name": "a", "service_cidrs": []}, "service_cidrs"),
        ({"name": "a", "service_cidrs": ["10.96.0.1/12"]}, "service_cidrs"),
        ({"name": "a", "healthz_listen": "10256"}, "healthz_listen"),
    ],
)
def test_errors_name_the_key(values: dict[str, Any], path: str) -> None:
    with pytest.raises(Invalid) as caught:
        make_config(values)
    assert caught.value.path == path


def test_unknown_keys_are_named() -> None:
    with pytest.raises(Invalid, match=r"`uplnk`; did you mean `uplink`\?"):
        make_config({"name": "a", "uplnk": "eth0"})
    with pytest.raises(Invalid, match=r"unknown field `zzz`$"):
        make_config({"name": "a", "zzz": 1})


def test_choices_are_named() -> None:
    with pytest.raises(Invalid, match="'iptables'; there are kernel, userspace, off"):
        make_config({"name": "a", "proxy_mode": "iptables"})


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


def test_the_cgroup_has_to_be_one(tmp_path: Path) -> None:
    require_host_cgroup(make_config({"name": "a"}))
    for place in (tmp_path, tmp_path / "none"):  # a hybrid machine's /sys/fs/cgroup is a directory, too
        with pytest.raises(Invalid, match=f"^host_cgroup: {place} is no cgroup-v2 directory"):
            require_host_cgroup(make_config({"name": "a", "host_cgroup": str(place)}))
    (tmp_path / "cgroup.controllers").touch()
    require_host_cgroup(make_config({"name": "a", "host_cgroup": str(tmp_path)}))


def test_services_need_a_source() -> None:
    assert not make_config({"name": "a"}).balances
    assert make_config({"name": "a", "kubeconfig": "/k"}).balances
    off = {"name": "a", "kubeconfig": "/k", "proxy_mode": "off"}
    assert not make_config(off).balances
    assert not make_config(off).follows
    assert make_config({**off, "proxy_network": "cbr0"}).follows
    assert not make_config({"name": "a", "proxy_network": "cbr0"}).follows
    assert make_config({"name": "a", "manifests": "/m"}).follows
    config = make_config({"name": "a", "node_port_addresses": ["primary", "10.0.0.0/8", "fd00::/8"]})
    assert config.node_port_addresses == ("primary", "10.0.0.0/8", "fd00::/8")
    assert make_config({"name": "a"}).healthz_address == ("", 10256)
    assert make_config({"name": "a", "healthz_listen": ""}).healthz_address is None


def test_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('name = "a"\nmanifests = "/m"\n')
    assert load_config(file, {"proxy_mode": "off"}).proxy_mode == "off"
    assert load_config(file, {"manifests": "/other"}).manifests == "/other"
