"""Configurations of the Windows plugins: policies, names, gateways, results, idempotence; flannel's delegation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from samewire.cni.backend import NetworkInfo
from samewire.cni.errors import CniCode
from samewire.cni.verbs import CniPlugin
from samewire.hcn.codec import encode_policy
from samewire.hcn.policies import policy_type
from tests.support.cni import FakeBackend, Runtime, variables

BRIDGE = NetworkInfo(("10.244.1.0/24",), ("10.244.1.1",), 1500, type="L2Bridge", management_ip="192.168.1.5")
OVERLAY = NetworkInfo(("10.132.0.0/24",), ("10.132.0.1",), 1450, type="Overlay", management_ip="10.0.133.170")
HOST_LOCAL = {"type": "host-local", "subnet": "10.244.1.0/24"}
EXCEPTIONS = ["192.168.0.0/16", "11.0.0.0/8"]
NAMESPACE = {"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart"}
Conf = dict[str, Any]

WIN_BRIDGE_1: Conf = {
    "name": "cbr0",
    "type": "win-bridge",
    "dns": {"nameservers": ["11.0.0.10"], "search": ["svc.cluster.local"]},
    "policies": [
        {"name": "EndpointPolicy", "value": {"Type": "OutBoundNAT", "ExceptionList": EXCEPTIONS}},
        {
            "name": "EndpointPolicy",
            "value": {"Type": "ROUTE", "DestinationPrefix": "11.0.0.0/8", "NeedEncap": True},
        },
    ],
    "loopbackDSR": True,
}
WIN_BRIDGE_2: Conf = {
    "name": "cbr0",
    "type": "flannel",
    "delegate": {
        "apiVersion": 2,
        "type": "win-bridge",
        "policies": [
            {
                "name": "EndpointPolicy",
                "value": {"Type": "OutBoundNAT", "Settings": {"Exceptions": EXCEPTIONS}},
            },
            {
                "name": "EndpointPolicy",
                "value": {
                    "Type": "SDNRoute",
                    "Settings": {"DestinationPrefix": "11.0.0.0/8", "NeedEncap": True},
                },
            },
        ],
        "loopbackDSR": True,
    },
}
WIN_OVERLAY: Conf = {
    "cniVersion": "0.2.0",
    "name": "OVNKubernetesHybridOverlayNetwork",
    "type": "win-overlay",
    "ipam": {"type": "host-local", "subnet": "10.132.0.0/24"},
    "apiVersion": 2,
    "capabilities": {"portMappings": True, "dns": True},
    "policies": [
        {
            "name": "EndpointPolicy",
            "value": {"Type": "ProviderAddress", "Settings": {"ProviderAddress": "10.0.133.170"}},
        }
    ],
}
SDN_FLANNEL_OVERLAY: Conf = {
    "cniVersion": "0.2.0",
    "name": "vxlan0",
    "type": "flannel",
    "delegate": {
        "type": "win-overlay",
        "dns": {"Nameservers": ["11.0.0.10"], "Search": ["svc.cluster.local"]},
        "Policies": [
            {"Name": "EndpointPolicy", "Value": {"Type": "OutBoundNAT", "ExceptionList": EXCEPTIONS}}
        ],
    },
}
SDNOVERLAY: Conf = {
    "name": "flannel.4096",
    "cniVersion": "0.3.0",
    "type": "flannel",
    "capabilities": {"portMappings": True, "dns": True},
    "delegate": {
        "type": "sdnoverlay",
        "AdditionalArgs": [
            {
                "Name": "EndpointPolicy",
                "Value": {
                    "Type": "SDNROUTE",
                    "Settings": {"DestinationPrefix": "10.96.0.0/12", "NeedEncap": True},
                },
            }
        ],
    },
}
AZURE: Conf = {
    "cniVersion": "0.3.0",
    "name": "azure",
    "adapterName": "",
    "type": "azure-vnet",
    "capabilities": {"portMappings": True, "dns": True},
    "ipam": {"type": "azure-vnet-ipam"},
    "dns": {"Nameservers": ["10.0.0.10", "168.63.129.16"], "Search": ["svc.cluster.local"]},
    "AdditionalArgs": [
        {
            "Name": "EndpointPolicy",
            "Value": {"Type": "OutBoundNAT", "ExceptionList": ["10.240.0.0/16", "10.0.0.0/8"]},
        },
        {
            "Name": "EndpointPolicy",
            "Value": {"Type": "ROUTE", "DestinationPrefix": "10.0.0.0/8", "NeedEncap": True},
        },
    ],
}


@pytest.fixture
def backend() -> FakeBackend:
    found = FakeBackend()
    found.networks = {
        "cbr0": BRIDGE,
        "OVNKubernetesHybridOverlayNetwork": OVERLAY,
        "vxlan0": OVERLAY,
        "flannel.4096": OVERLAY,
        "azure": BRIDGE,
    }
    return found


class Node:
    """A plugin whose address manager and flannel write to a directory of the test."""

    def __init__(self, backend: FakeBackend, directory: Path) -> None:
        self.backend = backend
        self.plugin = CniPlugin(backend)
        self.directory = directory
        self.subnet_file = directory / "subnet.env"

    def flannel(self, subnet: str = "10.244.1.1/24", masquerade: str = "true") -> None:
        """Write what flanneld writes."""
        self.subnet_file.write_text(
            f"FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={subnet}\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ={masquerade}\n"
        )

    def runtime(self, conf: Conf, **more: Any) -> Runtime:
        """The configuration, with nothing changed but the places of files."""
        value = {**conf, **more}
        data = str(self.directory / "ipam")
        if value["type"] == "flannel":
            value |= {"subnetFile": str(self.subnet_file), "dataDir": str(self.directory / "flannel")}
            value["delegate"] = {**value["delegate"], "ipam": {"dataDir": data}}
        elif "ipam" in value:
            value["ipam"] = {**value["ipam"], "dataDir": data}
        return Runtime(self.plugin, value)

    def taken(self) -> list[str]:
        """The addresses in use."""
        return sorted(path.name for path in self.directory.glob("ipam/*/*.*") if "last" not in path.name)


@pytest.fixture
def node(backend: FakeBackend, tmp_path: Path) -> Node:
    return Node(backend, tmp_path)


def policies(backend: FakeBackend, key: tuple[str, str] = ("pod1", "eth0")) -> list[tuple[str, Any]]:
    found = [encode_policy(policy) for policy in backend.attachments[key].policies]
    return [(item["Type"], item["Settings"]) for item in found]


async def test_win_bridge(node: Node, backend: FakeBackend) -> None:
    runtime = node.runtime(WIN_BRIDGE_1, ipam=HOST_LOCAL, cniVersion="0.3.1", ipMasqNetwork="10.244.0.0/16")
    assert await runtime.ok("ADD") == {
        "cniVersion": "0.3.1",
        "interfaces": [{"name": "pod1_cbr0", "mac": "0E-2A-0A-01-00-02"}],
        "ips": [{"version": "4", "address": "10.244.1.3/24", "gateway": "10.244.1.2"}],
        "dns": {"nameservers": ["11.0.0.10"], "search": ["svc.cluster.local"]},
    }
    made = backend.attachments["pod1", "eth0"]
    assert made.endpoint_name == "pod1_cbr0"
    assert [(route.dst, route.gw) for route in made.routes] == [("0.0.0.0/0", "10.244.1.2")]
    kinds = policies(backend)
    assert [kind for kind, _ in kinds] == ["OutBoundNAT", "SDNRoute", "OutBoundNAT", "OutBoundNAT"]
    assert kinds[0][1]["Exceptions"] == EXCEPTIONS
    assert (kinds[1][1]["DestinationPrefix"], kinds[1][1]["NeedEncap"]) == ("11.0.0.0/8", True)
    assert kinds[2][1]["Exceptions"] == ["10.244.0.0/16"]
    assert kinds[3][1]["Destinations"] == ["10.244.1.3"]


async def test_an_exception_that_is_listed_is_not_added(node: Node, backend: FakeBackend) -> None:
    await node.runtime(WIN_BRIDGE_1, ipam=HOST_LOCAL, ipMasqNetwork="11.0.0.0/8", loopbackDSR=False).ok("ADD")
    assert [kind for kind, _ in policies(backend)] == ["OutBoundNAT", "SDNRoute"]


async def test_win_bridge_without_ipam(node: Node) -> None:
    found = await node.runtime(WIN_BRIDGE_1, cniVersion="1.0.0").ok("ADD")
    assert found["ips"] == [{"address": "10.1.0.77/24", "gateway": "10.1.0.1"}]


async def test_flannel_and_the_longest_container_id(node: Node) -> None:
    node.flannel()
    runtime = node.runtime(WIN_BRIDGE_2)
    await runtime.ok("ADD", 255 * "a")
    await runtime.ok("DEL", 255 * "a")
    assert list((node.directory / "flannel").iterdir()) == []


async def test_flannel_and_win_bridge(node: Node, backend: FakeBackend) -> None:
    node.flannel()
    runtime = node.runtime(WIN_BRIDGE_2)
    found = await runtime.ok("ADD")
    assert found == {"cniVersion": "0.2.0", "ip4": {"ip": "10.244.1.3/24", "gateway": "10.244.1.2"}}
    assert [kind for kind, _ in policies(backend)] == [
        "OutBoundNAT",
        "SDNRoute",
        "OutBoundNAT",
        "OutBoundNAT",
    ]
    assert policies(backend)[2][1]["Exceptions"] == ["10.244.0.0/16"]
    node.subnet_file.unlink()  # DEL does not need it
    await runtime.ok("DEL")
    assert (backend.attachments, node.taken()) == ({}, [])
    assert list((node.directory / "flannel").iterdir()) == []
    await runtime.ok("DEL")
    await runtime.ok("DEL", 256 * "a")  # no file can have that name
    assert (await runtime.error("ADD"))["code"] == CniCode.TRY_AGAIN


SIX = "FLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=fd00:244:0:1::1/64\n"
DUAL = {"enableDualStack": True}


@pytest.mark.parametrize(
    ("delegate", "addresses"),
    [
        ({"type": "win-bridge"}, ["10.244.1.3"]),
        ({"type": "sdnbridge"}, ["10.244.1.2"]),
        ({"type": "sdnbridge", "optionalFlags": DUAL}, ["10.244.1.2", "fd00:244:0:1::2"]),
        ({"type": "samewire-cni"}, ["10.244.1.2", "fd00:244:0:1::2"]),
    ],
)
async def test_flannel_with_both_families(
    node: Node, backend: FakeBackend, delegate: Conf, addresses: list[str]
) -> None:
    node.flannel()
    node.subnet_file.write_text(node.subnet_file.read_text() + SIX)
    await node.runtime({**WIN_BRIDGE_2, "delegate": delegate}, cniVersion="1.0.0").ok("ADD")
    made = backend.attachments["pod1", "eth0"]
    assert [item.ip for item in made.addresses] == addresses
    nat = [item for kind, item in policies(backend) if kind == "OutBoundNAT"]
    if delegate["type"] == "samewire-cni":
        assert {text for item in nat for text in item["Exceptions"]} >= {"10.244.0.0/16", "fd00:244::/48"}


async def test_flannel_with_ipv6_alone(node: Node, backend: FakeBackend) -> None:
    node.subnet_file.write_text(SIX)
    runtime = node.runtime({**WIN_BRIDGE_2, "delegate": {"type": "samewire-cni"}}, cniVersion="1.0.0")
    await runtime.ok("ADD")
    assert [item.ip for item in backend.attachments["pod1", "eth0"].addresses] == ["fd00:244:0:1::2"]
    refused = await node.runtime(WIN_BRIDGE_2).error("ADD", "pod2")
    assert "FLANNEL_NETWORK" in refused["details"]


async def test_flannel_check_and_gc(node: Node, backend: FakeBackend) -> None:
    node.flannel()
    runtime = node.runtime(WIN_BRIDGE_2, cniVersion="1.1.0")
    result = await runtime.ok("ADD")
    await runtime.ok("ADD", "pod2")
    await runtime.ok("CHECK", prevResult=result)
    assert [item.cidr for item in backend.checked[-1].addresses] == ["10.244.1.3/24"]
    valid = [{"containerID": "pod2", "ifname": "eth0"}]
    gc: Any = {"cni.dev/valid-attachments": valid}
    await runtime.ok("GC", **gc)
    assert list(backend.attachments) == [("pod2", "eth0")]
    assert node.taken() == ["10.244.1.4"]
    assert [path.name for path in (node.directory / "flannel").iterdir()] == ["pod2"]
    gc = {"cni.dev/valid-attachments": None, "cni.dev/attachments": None}  # as libcni says "none"
    await runtime.ok("GC", **gc)
    assert (backend.attachments, node.taken()) == ({}, [])
    await runtime.ok("STATUS")
    node.subnet_file.unlink()
    assert (await runtime.error("STATUS"))["code"] == CniCode.NOT_AVAILABLE


async def test_win_overlay(node: Node, backend: FakeBackend) -> None:
    found = await node.runtime(WIN_OVERLAY).ok("ADD")
    assert found == {"cniVersion": "0.2.0", "ip4": {"ip": "10.132.0.2/24", "gateway": "10.132.0.1"}}
    assert policies(backend) == [("ProviderAddress", {"ProviderAddress": "10.0.133.170"})]
    assert backend.attachments["pod1", "eth0"].mac == "0e:2a:0a:84:00:02"


async def test_win_overlay_masquerades_and_maps_ports(node: Node, backend: FakeBackend) -> None:
    mappings = [
        {"hostPort": 8080, "containerPort": 80, "protocol": "TCP"},
        {"hostPort": 5353, "containerPort": 53, "protocol": "17"},
        {"hostPort": 1, "containerPort": 1, "protocol": "icmpv4"},
        {"hostPort": 70000, "containerPort": 1, "protocol": "tcp"},
    ]
    conf = {**WIN_OVERLAY, "ipMasq": True, "policies": [], "endpointMacPrefix": "0A-58"}
    await node.runtime(conf, runtimeConfig={"portMappings": mappings}).ok("ADD")
    found = policies(backend)
    assert [kind for kind, _ in found] == ["PortMapping", "PortMapping", "OutBoundNAT", "ProviderAddress"]
    ports = [(item["Protocol"], item["ExternalPort"], item["InternalPort"]) for _, item in found[:2]]
    assert ports == [(6, 8080, 80), (17, 5353, 53)]
    assert found[2][1]["Exceptions"] == ["10.132.0.0/24"]
    assert found[3][1] == {"ProviderAddress": "10.0.133.170"}
    assert backend.attachments["pod1", "eth0"].mac == "0a:58:0a:84:00:02"


async def test_flannel_and_win_overlay_with_keys_in_other_cases(node: Node, backend: FakeBackend) -> None:
    node.flannel("10.132.0.1/24", masquerade="false")
    found = await node.runtime(SDN_FLANNEL_OVERLAY).ok("ADD")
    assert found == {
        "cniVersion": "0.2.0",
        "ip4": {"ip": "10.132.0.2/24", "gateway": "10.132.0.1"},
        "dns": {"nameservers": ["11.0.0.10"], "search": ["svc.cluster.local"]},
    }
    assert [kind for kind, _ in policies(backend)] == ["OutBoundNAT", "ProviderAddress"]


async def test_flannel_and_sdnoverlay(node: Node, backend: FakeBackend) -> None:
    node.flannel("10.132.0.1/24")
    runtime = node.runtime(SDNOVERLAY)
    found = await runtime.ok("ADD", runtimeConfig={"dns": {"servers": ["10.96.0.10"]}})
    assert found["interfaces"] == [{"name": "pod1_flannel.4096", "mac": "0E-2A-0A-01-00-02"}]
    assert found["dns"] == {"nameservers": ["10.96.0.10"]}
    ((kind, settings),) = policies(backend)
    assert (kind, settings["DestinationPrefix"], settings["NeedEncap"]) == ("SDNRoute", "10.96.0.0/12", True)


async def test_sdnbridge(node: Node, backend: FakeBackend) -> None:
    backend.networks.clear()
    conf = {
        "cniVersion": "0.3.0",
        "name": "bridge0",
        "type": "sdnbridge",
        "dns": {"nameservers": ["10.96.0.10"], "search": ["svc.cluster.local", "example.com"]},
        "ipam": {"type": "host-local", "subnet": "10.1.0.0/24", "routes": [{"GW": "10.1.0.2"}]},
        "optionalFlags": {
            "localRoutedPortMapping": True,
            "allowAclPortMapping": True,
            "gatewayFromAdditionalRoutes": True,
            "enableDualStack": False,
            "loopbackDSR": True,
        },
    }
    backend.networks["bridge0"] = NetworkInfo(("10.1.0.0/24",), ("10.1.0.1",), 1500, type="L2Bridge")
    runtime = node.runtime(conf, runtimeConfig={"portMappings": [{"hostPort": 8080, "containerPort": 80}]})
    found = await runtime.ok("ADD", env=NAMESPACE)
    assert found["ips"] == [{"version": "4", "address": "10.1.0.3/24", "gateway": "10.1.0.2"}]
    assert found["dns"]["search"] == ["shop.svc.cluster.local", "example.com"]
    rules = dict(policies(backend))
    assert (rules["ACL"]["LocalPorts"], rules["ACL"]["Priority"], rules["ACL"]["Direction"]) == (
        "80",
        1000,
        "In",
    )
    assert rules["OutBoundNAT"]["Destinations"] == ["10.1.0.3"]


async def test_sdnbridge_makes_its_network(node: Node, backend: FakeBackend) -> None:
    conf = {"cniVersion": "1.0.0", "name": "new", "type": "sdnbridge", "ipam": HOST_LOCAL}
    await node.runtime(conf).error("ADD")  # that of the fake is an overlay
    (made,) = backend.created
    assert (made["Type"], made["Ipams"][0]["Subnets"][0]["IpAddressPrefix"]) == ("L2Bridge", "10.244.1.0/24")
    assert node.taken() == []


async def test_azure(node: Node, backend: FakeBackend, tmp_path: Path) -> None:
    manager = tmp_path / "azure-vnet-ipam"
    versions = {"cniVersion": "0.3.0", "supportedVersions": ["0.3.0"]}
    ip = {"version": "4", "address": "10.244.1.9/24", "gateway": "10.244.1.1"}
    answer = {"cniVersion": "0.3.0", "ips": [ip]}
    manager.write_text(
        "#!/bin/sh\n"
        f"if [ $CNI_COMMAND = VERSION ]; then echo '{json.dumps(versions)}'; else echo '{json.dumps(answer)}'; fi\n"
    )
    manager.chmod(0o755)
    runtime = node.runtime(AZURE)
    env = {**NAMESPACE, "CNI_PATH": str(tmp_path)}
    found = await runtime.ok("ADD", "1a2b3c4d5e6f", env=env)
    assert found["interfaces"] == [{"name": "eth0", "mac": "0E-2A-0A-01-00-02"}]
    assert found["ips"] == [{"version": "4", "address": "10.244.1.9/24", "gateway": "10.244.1.1"}]
    assert found["dns"]["search"] == ["shop.svc.cluster.local"]
    made = backend.attachments["1a2b3c4d5e6f", "eth0"]
    assert made.endpoint_name == "1a2b3c4d-eth0"
    assert [policy_type(policy) for policy in made.policies] == ["OutBoundNAT", "SDNRoute"]


async def test_azure_makes_its_network_of_what_ipam_gives(node: Node, backend: FakeBackend) -> None:
    backend.networks.clear()
    backend.networks["net"] = BRIDGE
    conf = {**AZURE, "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.1.0/24"}]]}}
    await node.runtime(conf).error("ADD")
    (made,) = backend.created
    subnet = made["Ipams"][0]["Subnets"][0]
    assert (made["Flags"], subnet["IpAddressPrefix"], subnet["Routes"][0]["NextHop"]) == (
        8,
        "10.244.1.0/24",
        "10.244.1.1",
    )


async def test_add_again_is_answered_with_what_is_there(node: Node, backend: FakeBackend) -> None:
    runtime = node.runtime(WIN_BRIDGE_1, ipam=HOST_LOCAL, cniVersion="1.0.0")
    first = await runtime.ok("ADD")
    assert await runtime.ok("ADD") == first
    assert node.taken() == ["10.244.1.3"]
    assert backend.calls.count("attach") == 1


async def test_an_endpoint_of_another_network_is_replaced(node: Node, backend: FakeBackend) -> None:
    await node.runtime(WIN_OVERLAY).ok("ADD")
    await node.runtime(WIN_BRIDGE_1, ipam=HOST_LOCAL).ok("ADD")
    assert backend.attachments["pod1", "eth0"].network == "cbr0"


async def test_a_container_in_anothers_namespace(node: Node, backend: FakeBackend) -> None:
    runtime = node.runtime(WIN_BRIDGE_1, ipam=HOST_LOCAL, cniVersion="1.0.0")
    shared = {"CNI_NETNS": "container:pod1"}
    assert (await runtime.error("ADD", "work", env=shared))["code"] == CniCode.INVALID_ENVIRONMENT
    first = await runtime.ok("ADD")
    assert await runtime.ok("ADD", "work", env=shared) == first
    await runtime.ok("DEL", "work", env=shared)
    assert list(backend.attachments) == [("pod1", "eth0")]


async def test_a_namespace_by_its_id(node: Node, backend: FakeBackend) -> None:
    runtime = node.runtime(WIN_BRIDGE_1, ipam=HOST_LOCAL)
    known = {"CNI_NETNS": "ABCDEF01-2345-6789-abcd-ef0123456789"}
    await runtime.ok("ADD", env=known)
    assert backend.attachments["pod1", "eth0"].netns_path == "/run/netns/ABCDEF01"
    await runtime.ok("DEL", env=known)
    assert backend.attachments == {}


async def test_check(node: Node, backend: FakeBackend) -> None:
    runtime = node.runtime(WIN_BRIDGE_1, ipam=HOST_LOCAL, cniVersion="1.0.0")
    result = await runtime.ok("ADD")
    await runtime.ok("CHECK", prevResult=result)
    checked = backend.checked[-1]
    assert (checked.mac, [item.cidr for item in checked.addresses]) == (
        "0e:2a:0a:01:00:02",
        ["10.244.1.3/24"],
    )
    other = {**result, "interfaces": [{"name": "other_cbr0"}]}
    assert (await runtime.error("CHECK", prevResult=other))["code"] == CniCode.CHECK_FAILED
    no_mac = {**result, "interfaces": [{**result["interfaces"][0], "mac": "none"}]}
    assert (await runtime.error("CHECK", prevResult=no_mac))["code"] == CniCode.CHECK_FAILED


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"endpointMacPrefix": "0e:2a"}, "endpointMacPrefix"),
        ({"endpointMacPrefix": "01-00"}, "endpointMacPrefix"),
        ({"apiVersion": 3}, "apiVersion"),
        ({"ipMasq": "yes"}, "ipMasq"),
        ({"loopbackDSR": 1}, "loopbackDSR"),
        ({"policies": [{"name": "EndpointPolicy", "value": {"Type": "ACL"}}]}, "policies[0]"),
        ({"name": "cbr0"}, "name"),
        ({"ipam": {"type": "azure-cns"}}, "ipam.type"),
    ],
)
async def test_an_error_names_its_key(node: Node, change: Conf, key: str) -> None:
    found = await node.runtime({**WIN_OVERLAY, **change}).error("ADD")
    assert found["code"] == CniCode.INVALID_CONFIG
    assert key in found["msg"]
    assert node.taken() == []


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"delegate": {"type": "bridge"}}, "delegate.type"),
        ({"delegate": {"name": "x"}}, "delegate.name"),
        ({"delegate": 1}, "delegate"),
    ],
)
async def test_an_error_of_flannels_names_its_key(node: Node, change: Conf, key: str) -> None:
    node.flannel()
    value = {**WIN_BRIDGE_2, **change, "subnetFile": str(node.subnet_file)}
    found = await Runtime(node.plugin, value).error("ADD")
    assert (found["code"], found["msg"].startswith(key)) == (CniCode.INVALID_CONFIG, True)


async def test_entries_that_are_no_policies_are_passed_over(node: Node, backend: FakeBackend) -> None:
    listed = [
        {"name": "EndpointPolicy", "value": "?"},
        {"name": "Other", "value": {"Type": "ACL"}},
        {"name": "EndpointPolicy", "value": {}},
    ]
    await node.runtime(WIN_OVERLAY, policies=listed).ok("ADD")
    assert [kind for kind, _ in policies(backend)] == ["ProviderAddress"]


async def test_the_name_of_the_client_counts(node: Node) -> None:
    conf = {**WIN_BRIDGE_1, "type": "samewire-cni", "ipam": HOST_LOCAL, "cniVersion": "1.0.0"}
    del conf["policies"]
    data = json.dumps({**conf, "ipam": {**HOST_LOCAL, "dataDir": str(node.directory / "ipam")}}).encode()
    env = variables("ADD", CNI_SAMEWIRE_PLUGIN="win-bridge")
    reply = await node.plugin.handle(env, data)
    assert json.loads(reply.output)["interfaces"][0]["name"] == "pod1_cbr0"
