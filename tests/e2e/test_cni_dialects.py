"""Pods attached with the configurations of the Windows plugins and of flannel, called by their names: real packets."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from samewire.cli.node import install_cni
from tests.support.node import (
    NODE_IP,
    ROUTER_IP,
    DaemonProcess,
    Json,
    NodeNet,
    can_ping,
    ip,
    ip_json,
    overlay,
    path_of,
)
from tests.support.published_confs import IPAM, PUBLISHED

pytestmark = pytest.mark.root

NAMES = ("win-bridge", "win-overlay", "sdnbridge", "sdnoverlay", "azure-vnet", "flannel")
SUBNET = "10.244.1.0/24"
NAT: Json = {
    "name": "EndpointPolicy",
    "value": {"Type": "OutBoundNAT", "ExceptionList": ["10.244.0.0/16"]},
}
TIMEOUT_S = 30


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    options = [item for name in NAMES for item in ("--as", name)]
    found = CliRunner().invoke(install_cni, ["--bin-dir", str(tmp_path / "bin"), *options])
    assert found.exit_code == 0, found.output
    return tmp_path / "bin"


class Runtime:
    """Executes the plugin that a configuration names; the socket is in the configuration, not in the environment."""

    def __init__(self, node: DaemonProcess, bin_dir: Path) -> None:
        self._node = node
        self._bin_dir = bin_dir

    def __call__(self, verb: str, pod: str, conf: Json, status: int = 0) -> Any:
        env = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": pod,
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": path_of(pod),
            "CNI_PATH": str(self._bin_dir),
            "PATH": os.environ["PATH"],
        }
        value = {**conf, "samewireSocket": str(self._node.directory / "run" / "cni.sock")}
        done = subprocess.run(
            [str(self._bin_dir / conf["type"])],
            input=json.dumps(value).encode(),
            env=env,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert (done.returncode, done.stderr) == (status, b""), done.stdout
        return json.loads(done.stdout) if done.stdout else None


@pytest.fixture
def cni(node: DaemonProcess, bin_dir: Path) -> Runtime:
    return Runtime(node, bin_dir)


def bridge(name: str) -> Json:
    """An l2bridge network with a pod subnet of its own, as flannel's host-gw makes it."""
    routes = [{"NextHop": "10.244.1.1", "DestinationPrefix": "0.0.0.0/0"}]
    ipams = [{"Type": "Static", "Subnets": [{"IpAddressPrefix": SUBNET, "Routes": routes}]}]
    return {"Name": name, "Type": "L2Bridge", "SchemaVersion": {"Major": 2, "Minor": 0}, "Ipams": ipams}


def flannel_files(directory: Path, subnet: str = "10.244.1.1/24") -> Json:
    """What flanneld has written, and the keys that say where."""
    file = directory / "subnet.env"
    file.write_text(
        f"FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={subnet}\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    )
    return {"subnetFile": str(file), "dataDir": str(directory / "flannel")}


def pods(net: NodeNet, cni: Runtime, conf: Json) -> tuple[tuple[str, str], tuple[str, str]]:
    """Two pods with their addresses, each answered again with the same."""
    found = []
    for pod in (net.pod(), net.pod()):
        result = cni("ADD", pod, conf)
        assert cni("ADD", pod, conf) == result
        if conf.get("cniVersion") not in (None, "0.2.0", "0.3.0"):
            cni("CHECK", pod, {**conf, "prevResult": result})
        (own,) = ip_json("-4", "address", "show", "eth0", netns_name=pod)[0]["addr_info"]
        found.append((pod, str(own["local"])))
    return found[0], found[1]


def assert_connected(net: NodeNet, first: tuple[str, str], second: tuple[str, str]) -> None:
    """The first echo of a new pod, and the first to it, come back."""
    for source, target in (
        (first[0], second[1]),
        (first[0], NODE_IP),
        (net.node, first[1]),
        (second[0], ROUTER_IP),
    ):
        assert can_ping(source, target), f"{source} to {target}"


def assert_removed(node: DaemonProcess, cni: Runtime, conf: Json, *names: str) -> None:
    for pod in names:
        cni("DEL", pod, conf)
        assert ip_json("link", "show", "type", "veth", netns_name=pod) == []
        cni("DEL", pod, conf)
    assert node.endpoints() == []
    assert node.differences() == []


def test_win_bridge(net: NodeNet, node: DaemonProcess, cni: Runtime) -> None:
    node.request("POST", "/v2/networks", bridge("cbr0"))
    conf = {
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "type": "win-bridge",
        "ipam": {"type": "host-local", "subnet": SUBNET, "dataDir": str(node.directory / "ipam")},
        "policies": [NAT],
        "ipMasqNetwork": "10.244.0.0/16",
        "loopbackDSR": True,
    }
    first, second = pods(net, cni, conf)
    assert first[1] == "10.244.1.3"
    (default,) = ip_json("route", "show", "default", netns_name=first[0])
    assert default["gateway"] == "10.244.1.2"
    assert {item["Name"] for item in node.endpoints()} == {f"{pod}_cbr0" for pod, _ in (first, second)}
    assert_connected(net, first, second)
    assert_removed(node, cni, conf, first[0], second[0])


def test_flannel_with_win_overlay(net: NodeNet, node: DaemonProcess, cni: Runtime) -> None:
    node.request("POST", "/v2/networks", overlay("vxlan0", SUBNET))
    delegate = {
        "type": "win-overlay",
        "dns": {"Nameservers": ["11.0.0.10"], "Search": ["svc.cluster.local"]},
        "Policies": [{"Name": "EndpointPolicy", "Value": NAT["value"]}],
        "ipam": {"dataDir": str(node.directory / "ipam")},
    }
    files = flannel_files(node.directory)
    conf = {"cniVersion": "0.2.0", "name": "vxlan0", "type": "flannel", "delegate": delegate, **files}
    first, second = pods(net, cni, conf)
    kinds = {item["Type"] for item in node.endpoints()[0]["Policies"]}
    assert {"OutBoundNAT", "ProviderAddress"} <= kinds
    (link,) = ip_json("link", "show", "eth0", netns_name=first[0])
    assert link["address"] == "0e:2a:0a:f4:01:02"
    assert_connected(net, first, second)
    (node.directory / "subnet.env").unlink()
    assert_removed(node, cni, conf, first[0], second[0])


def test_sdnoverlay_by_flannel(net: NodeNet, node: DaemonProcess, cni: Runtime) -> None:
    node.request("POST", "/v2/networks", overlay("flannel.4096", SUBNET))
    route = {"Type": "SDNROUTE", "Settings": {"DestinationPrefix": "10.96.0.0/12", "NeedEncap": True}}
    delegate = {
        "type": "sdnoverlay",
        "AdditionalArgs": [
            {"Name": "EndpointPolicy", "Value": route},
            {"Name": "EndpointPolicy", "Value": NAT["value"]},
        ],
        "ipam": {"dataDir": str(node.directory / "ipam")},
    }
    files = flannel_files(node.directory)
    conf = {"cniVersion": "0.3.0", "name": "flannel.4096", "type": "flannel", "delegate": delegate, **files}
    first, second = pods(net, cni, conf)
    assert_connected(net, first, second)
    assert_removed(node, cni, conf, first[0], second[0])


@pytest.mark.parametrize("kind", ["sdnbridge", "azure-vnet"])
def test_plugins_that_make_their_network(net: NodeNet, node: DaemonProcess, cni: Runtime, kind: str) -> None:
    conf = {
        "cniVersion": "1.0.0",
        "name": "azure",
        "type": kind,
        "ipam": {"type": "host-local", "subnet": SUBNET, "dataDir": str(node.directory / "ipam")},
        "dns": {"Nameservers": ["10.0.0.10"], "Search": ["svc.cluster.local"]},
        "AdditionalArgs": [{"Name": "EndpointPolicy", "Value": NAT["value"]}],
    }
    first, second = pods(net, cni, conf)
    (made,) = node.request("GET", "/v2/networks")
    assert (made["Name"], made["Type"]) == ("azure", "L2Bridge")
    assert_connected(net, first, second)
    assert_removed(node, cni, conf, first[0], second[0])


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_others_have_published(
    net: NodeNet, node: DaemonProcess, cni: Runtime, bin_dir: Path, name: str
) -> None:
    """Nothing is changed but where files are; what the plugins lack (CHECK, GC) comes with a newer cniVersion."""
    (bin_dir / "azure-vnet-ipam").write_text(IPAM)
    (bin_dir / "azure-vnet-ipam").chmod(0o755)
    ip("route", "add", "10.0.0.0/8", "via", NODE_IP, netns_name=net.router)  # of what is not to be translated
    found = PUBLISHED[name]
    conf, data = found.conf, {"dataDir": str(node.directory / "ipam")}
    if conf["type"] == "flannel":
        conf |= flannel_files(node.directory)
        conf["delegate"]["ipam"] = data
    elif "ipam" in conf:
        conf["ipam"] |= data
    if found.network_type == "L2Bridge":
        node.request("POST", "/v2/networks", bridge(conf["name"]))
    elif found.network_type:
        node.request("POST", "/v2/networks", overlay(conf["name"], found.subnet))
    first, second = pods(net, cni, conf)
    types = {policy["Type"] for item in node.endpoints() for policy in item["Policies"]}
    assert types & {"OutBoundNAT", "SDNRoute", "ProviderAddress"}
    assert_connected(net, first, second)
    newer = {**conf, "cniVersion": "1.1.0"}
    result = cni("ADD", first[0], newer)
    cni("CHECK", first[0], {**newer, "prevResult": result})
    wrong = {**result, "ips": [{"address": "10.99.0.9/24"}]}
    assert cni("CHECK", first[0], {**newer, "prevResult": wrong}, status=1)["msg"]
    kept = [{"containerID": first[0], "ifname": "eth0"}]
    cni("GC", "", {**newer, "cni.dev/valid-attachments": kept})
    assert [item["ContainerId"] for item in node.endpoints()] == [first[0]]
    assert can_ping(first[0], NODE_IP)
    assert_removed(node, cni, conf, first[0], second[0])


def test_a_network_of_another_type(net: NodeNet, node: DaemonProcess, cni: Runtime) -> None:
    node.request("POST", "/v2/networks", overlay("cbr0", SUBNET))
    conf = {"cniVersion": "1.0.0", "name": "cbr0", "type": "win-bridge"}
    found = cni("ADD", net.pod(), conf, status=1)
    assert (found["code"], found["msg"]) == (
        7,
        "name: network cbr0 has type Overlay; win-bridge needs L2Bridge or L2Tunnel",
    )
    assert node.endpoints() == []


def test_installing_leaves_other_plugins_alone(tmp_path: Path) -> None:
    (tmp_path / "flannel").write_text("another's")
    found = CliRunner().invoke(install_cni, ["--bin-dir", str(tmp_path), "--as", "flannel"])
    assert found.exit_code == 1
    assert (tmp_path / "flannel").read_text() == "another's"
    for _ in range(2):
        done = CliRunner().invoke(install_cni, ["--bin-dir", str(tmp_path), "--as", "flannel", "--replace"])
        assert done.exit_code == 0, done.output
        assert os.readlink(tmp_path / "flannel") == "samewire-cni"
