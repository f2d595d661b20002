"""The configurations in deploy/cni are good ones, and the guide speaks of every key and code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from samewire.cni.backend import NetworkInfo
from samewire.cni.conf import NetConf, decode_attachment, decode_conf, decode_value
from samewire.cni.dialects.flannel import delegate_value
from samewire.cni.dialects.names import ALIASES
from samewire.cni.environment import CniArgs
from samewire.cni.errors import CniCode
from samewire.cni.verbs import CniPlugin
from samewire.hcn.codec import decode_object
from samewire.hcn.normalise import check_network
from samewire.hcn.schema import Kind, Network
from samewire.ipam.ranges import decode_host_local
from tests.support.cni import FakeBackend, Runtime

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "deploy" / "cni").glob("10-samewire-*.conflist"))
FLANNEL = ROOT / "deploy" / "cni" / "10-flannel-win-bridge.conflist"
GUIDE = ROOT / "docs" / "guides" / "cni.md"


def ours(path: Path) -> tuple[dict[str, Any], NetConf]:
    """Return Samewire's plugin of a list, and what the runtime would send it."""
    listed = json.loads(path.read_text())
    (plugin,) = [item for item in listed["plugins"] if item["type"] == "samewire-cni"]
    conf = {"cniVersion": listed["cniVersion"], "name": listed["name"], **plugin}
    return plugin, decode_conf(json.dumps(conf).encode())


def test_there_are_examples_of_all_kinds() -> None:
    assert [path.stem.rpartition("-")[2] for path in EXAMPLES] == ["chained", "l2bridge", "nat", "overlay"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples(path: Path) -> None:
    plugin, conf = ours(path)
    wanted = decode_attachment(conf, CniArgs())
    assert decode_host_local(conf).sets
    assert set(plugin["capabilities"]) == {"portMappings", "bandwidth", "dns", "ips", "mac"}
    if wanted.network is not None:
        network = decode_object(Kind.NETWORK, {**wanted.network, "Name": conf.name})
        assert isinstance(network, Network)
        gateways = {subnet.gateway for subnet in check_network(network).subnets}
        ranges = [item for each in decode_host_local(conf).sets for item in each.ranges]
        assert {item.gateway for item in ranges} == gateways


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
async def test_a_pod_with_each_example(path: Path, tmp_path: Path) -> None:
    _, conf = ours(path)
    backend = FakeBackend()
    backend.networks[conf.name] = NetworkInfo()
    value = {**conf.value, "ipam": {**conf.value["ipam"], "dataDir": str(tmp_path)}}
    found = await Runtime(CniPlugin(backend), value).ok("ADD")
    assert found["ips"]


def test_the_example_of_another_plugin() -> None:
    listed = json.loads(FLANNEL.read_text())
    (plugin,) = listed["plugins"]
    env = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPMASQ=true\n"
    conf = decode_conf(json.dumps({"cniVersion": listed["cniVersion"], "name": "cbr0", **plugin}).encode())
    wanted = decode_value(delegate_value(conf, env))
    assert wanted.dialect is not None
    assert wanted.dialect.plugin == "win-bridge"
    assert decode_attachment(wanted, CniArgs()).policies


def test_the_guide_is_whole() -> None:
    text = GUIDE.read_text()
    for code in CniCode:
        if code not in (CniCode.UNKNOWN_CONTAINER, CniCode.UNSUPPORTED_FIELD):
            assert f"| {code.value} |" in text, code
    for key in (
        *(
            "mtu",
            "network",
            "policies",
            "ipMasq",
            "ipMasqNetwork",
            "isDefaultGateway",
            "dns",
            "ipam",
            "args.cni",
        ),
        *("runtimeConfig.portMappings", "runtimeConfig.bandwidth", "runtimeConfig.dns", "runtimeConfig.ips"),
        *("runtimeConfig.mac", "runtimeConfig.ipRanges", "SAMEWIRE_CNI_SOCKET", "SAMEWIRE_CNI_TIMEOUT_S"),
        *("optionalFlags", "endpointMacPrefix", "AdditionalArgs", "subnetFile", *ALIASES),
    ):
        assert f"`{key}`" in text, key
