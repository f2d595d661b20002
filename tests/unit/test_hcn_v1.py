"""HNS v1: paths, verbs and envelope; objects and policies in its shape, both ways; attachments."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from samewire.hcn.errors import HcnCode
from samewire.hcn.policies import PortMapping, ProviderAddress, SDNRoute
from samewire.hcn.query import render
from samewire.hcn.schema import Endpoint, Kind, Namespace, Network, Resource, ResourceData, ResourceType
from samewire.hcn.service import HnsService
from samewire.hcn.store import Store
from samewire.hcn.v1.calls import V1Calls
from samewire.hcn.v1.http import envelope
from samewire.hcn.v1.read import is_v1, to_v2
from tests.support.hcn import FACTS, FakeSwitch, bridge, overlay

MISSING = "0A1B2C3D-0000-0000-0000-00000000000F"
Hns = Callable[..., Coroutine[Any, Any, Any]]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[HnsService]:
    store = Store(tmp_path / "hns.db")
    yield HnsService(store, FakeSwitch(replace(FACTS, uplink_vlan=7)))
    store.close()


@pytest.fixture
def answer(service: HnsService) -> Hns:
    calls = V1Calls(service)

    async def call(method: str, path: str, body: Any = None) -> Any:
        return await envelope(calls, method, path, b"" if body is None else json.dumps(body).encode())

    return call


@pytest.fixture
def hns(answer: Hns) -> Hns:
    async def call(method: str, path: str, body: Any = None) -> Any:
        reply = await answer(method, path, body)
        assert reply["Success"], reply
        return reply.get("Output")

    return call


def l2bridge(**fields: Any) -> dict[str, Any]:
    subnet = {"AddressPrefix": "10.1.0.0/24", "GatewayAddress": "10.1.0.1"}
    return {"Name": "cbr0", "Type": "l2bridge", "Subnets": [subnet], **fields}


async def test_a_network_in_the_shape_of_v1(hns: Hns, service: HnsService) -> None:
    sent = l2bridge(
        NetworkAdapterName="eth0",
        SourceMac="00-15-5D-01-02-03",
        DNSSuffix="a.example,b.example",
        DNSServerList="10.0.0.1,10.0.0.2",
        MacPools=[{"StartMacAddress": "00-15-5D-52-C0-00", "EndMacAddress": "00-15-5D-52-CF-FF"}],
        Policies=[{"Type": "VLAN", "VLAN": 7}],
        Novelty={"x": 1},
    )
    made = await hns("POST", "/networks/", sent)
    assert made["Type"] == "L2Bridge"
    assert made["ManagementIP"] == "192.168.1.10"
    assert made["Version"] >> 32 == 15
    for name in ("NetworkAdapterName", "SourceMac", "DNSSuffix", "DNSServerList", "MacPools", "Novelty"):
        assert made[name] == sent[name]
    assert {"Type": "VLAN", "VLAN": 7} in made["Policies"]
    assert made["Subnets"][0]["AddressPrefix"] == "10.1.0.0/24"
    assert made["Subnets"][0]["GatewayAddress"] == "10.1.0.1"
    assert await hns("GET", "/networks/") == [made] == [await hns("get", f"/NETWORKS/{made['ID'].lower()}")]
    network = service.get(Kind.NETWORK, made["ID"])
    assert isinstance(network, Network)
    assert network.subnets[0].gateway == "10.1.0.1"
    await hns("DELETE", f"/networks/{made['ID']}")
    assert (await hns("POST", "/networks", made))["ID"] == made["ID"]


async def test_docker_leaves_the_subnet_to_the_service(hns: Hns) -> None:
    made = await hns(
        "POST", "/networks/", {"Type": "nat", "Name": "nat", "Subnets": [{"AddressPrefix": "0.0.0.0/0"}]}
    )
    (subnet,) = made["Subnets"]
    assert subnet["AddressPrefix"] == "172.16.0.0/20"


async def test_the_isolation_of_an_overlay_is_its_subnets(hns: Hns) -> None:
    subnet = {"AddressPrefix": "10.244.1.0/24", "GatewayAddress": "10.244.1.1"}
    sent = {
        "Name": "vxlan0",
        "Type": "Overlay",
        "Subnets": [subnet],
        "Policies": [{"Type": "VSID", "VSID": 4096}],
    }
    made = await hns("POST", "/networks/", sent)
    assert made["Subnets"][0]["Policies"] == [{"Type": "VSID", "VSID": 4096}]
    assert made["DrMacAddress"] == "0E-2A-C0-A8-01-0A"


async def test_an_endpoint_in_the_shape_of_v1(hns: Hns, service: HnsService) -> None:
    network = await hns("POST", "/networks/", l2bridge())
    policies: list[dict[str, Any]] = [
        {"Type": "OutBoundNAT", "VIP": "192.168.1.10", "ExceptionList": ["10.0.0.0/8"]},
        {"Type": "ROUTE", "DestinationPrefix": "11.0.0.0/8", "NeedEncap": True},
        {
            "Type": "NAT",
            "Protocol": "TCP",
            "InternalPort": 80,
            "ExternalPort": 8080,
            "ExternalPortReserved": True,
        },
        {"Type": "PA", "PA": "192.168.1.10"},
        {"Type": "QOS", "MaximumOutgoingBandwidthInBytes": 1000},
        {
            "Type": "ACL",
            "Protocol": 6,
            "Action": "Allow",
            "Direction": "In",
            "LocalPort": 80,
            "Priority": 100,
        },
        {
            "Type": "PROXY",
            "Destination": "10.1.0.9:15001",
            "ExceptionList": ["10.1.0.9"],
            "OutboundNat": True,
        },
        {"Type": "L2Driver"},
    ]
    sent = {
        "Name": "pod",
        "VirtualNetworkName": "cbr0",
        "IPAddress": "10.1.0.5",
        "GatewayAddress": "10.1.0.2",
        "DNSSuffix": "svc.example",
        "DNSServerList": "10.0.0.1",
        "DNSDomain": "example",
        "EncapOverhead": 50,
        "EnableLowMetric": True,
        "EnableInternalDNS": True,
        "Policies": policies,
    }
    made = await hns("POST", "/endpoints/", sent)
    assert (made["VirtualNetwork"], made["State"], made["PrefixLength"]) == (network["ID"], 1, 24)
    for name in ("IPAddress", "GatewayAddress", "DNSSuffix", "DNSServerList", "DNSDomain", "EncapOverhead"):
        assert made[name] == sent[name]
    assert made["EnableLowMetric"]
    assert made["EnableInternalDNS"]
    back = {policy["Type"]: policy for policy in made["Policies"]}
    for policy in policies:
        assert back[policy["Type"]].items() >= policy.items()
    assert back["ACL"]["Protocols"] == "6"
    endpoint = service.get(Kind.ENDPOINT, made["ID"])
    assert isinstance(endpoint, Endpoint)
    assert PortMapping(protocol=6, internal_port=80, external_port=8080, flags=4) in endpoint.policies
    assert SDNRoute(destination_prefix="11.0.0.0/8", need_encap=True) in endpoint.policies
    assert ProviderAddress(provider_address="192.168.1.10") in endpoint.policies
    updated = await hns(
        "POST", f"/endpoints/{made['ID']}", {**made, "Policies": [{"Type": "PA", "PA": "192.168.1.10"}]}
    )
    assert [policy["Type"] for policy in updated["Policies"]] == ["PA"]
    assert (await hns("GET", f"/endpoints/{made['ID']}/detailed"))["Name"] == "pod"
    stats = await hns("GET", f"/endpointstats/{made['ID']}")
    assert (stats["BytesSent"], stats["EndpointId"]) == (36, made["ID"])
    addresses = await hns("GET", "/endpointaddresses")
    assert addresses == [{"EndpointId": made["ID"], "VirtualNetwork": network["ID"], "IPAddress": "10.1.0.5"}]
    await hns("DELETE", f"/endpoints/{made['ID']}")
    assert await hns("GET", "/endpoints/") == []


async def test_containers_share_an_endpoint(hns: Hns, answer: Hns, service: HnsService) -> None:
    network = await hns("POST", "/networks/", l2bridge())
    endpoint = await hns("POST", "/endpoints/", {"VirtualNetwork": network["ID"]})
    path = f"/endpoints/{endpoint['ID']}"
    for container in ("pause", "work"):
        shown = await hns("POST", f"{path}/attach", {"ContainerId": container, "SystemType": "Container"})
    assert (shown["State"], shown["SharedContainers"]) == (3, ["pause", "work"])
    value = service.get(Kind.ENDPOINT, endpoint["ID"])
    assert render(service.view, value, detailed=True)["Health"]["Extra"] == {
        "SharedContainers": ["pause", "work"]
    }
    assert "Health" not in render(service.view, value)
    again = await answer("POST", f"{path}/attach", {"ContainerId": "PAUSE"})
    assert again["Error"] == "This endpoint is already attached to the switch."
    assert again["ErrorCode"] == HcnCode.ENDPOINT_ALREADY_ATTACHED
    assert (await hns("POST", f"{path}/detach", {"ContainerId": "work"}))["State"] == 3
    assert (await hns("POST", f"{path}/detach", {"ContainerId": "pause"}))["State"] == 4
    refused = await answer("POST", f"{path}/detach")
    assert refused["ErrorCode"] == HcnCode.ENDPOINT_NOT_ATTACHED
    assert (await hns("POST", f"{path}/attach", {"ContainerId": "new"}))["State"] == 3


async def test_who_listens_hears_of_containers(hns: Hns, service: HnsService) -> None:
    network = await hns("POST", "/networks/", l2bridge())
    endpoint = await hns("POST", "/endpoints/", {"VirtualNetwork": network["ID"]})
    events = service.notifications.listen(10)
    assert await anext(events) is None
    steps = ("attach", "one", 9), ("attach", "two", 0), ("detach", "one", 0), ("detach", "two", 16)
    for action, container, _ in steps:
        await hns("POST", f"/endpoints/{endpoint['ID']}/{action}", {"ContainerId": container})
    told = [await anext(events) for _, _, number in steps if number]
    await events.aclose()
    assert [event.type for event in told if event] == [number for _, _, number in steps if number]
    assert all(event and event.data["Data"]["EndpointId"] == endpoint["ID"] for event in told)


async def test_there_are_no_virtual_machines(hns: Hns, answer: Hns) -> None:
    network = await hns("POST", "/networks/", l2bridge())
    endpoint = await hns("POST", "/endpoints/", {"VirtualNetwork": network["ID"]})
    request = {"SystemType": "VirtualMachine", "VirtualNicName": "vm--nic"}
    attached = await answer("POST", f"/endpoints/{endpoint['ID']}/attach", request)
    assert attached["ErrorCode"] == HcnCode.PORT_NOT_FOUND


async def test_the_node_itself_is_compartment_1(hns: Hns, answer: Hns, service: HnsService) -> None:
    network = await hns("POST", "/networks/", l2bridge())
    endpoint = await hns("POST", "/endpoints/", {"VirtualNetwork": network["ID"], "IPAddress": "10.1.0.2"})
    path = f"/endpoints/{endpoint['ID']}"
    shown = await hns("POST", f"{path}/attach", {"SystemType": "Host", "CompartmentId": 1})
    assert shown["Namespace"]["CompartmentId"] == 1
    assert shown["Namespace"]["IsDefault"]
    assert shown["State"] == 2  # no pod: agents that filter by 3 leave it alone
    again = await answer("POST", f"{path}/attach", {"CompartmentId": 1})
    assert again["Error"] == "This endpoint is already attached to the switch."
    assert (await hns("POST", f"{path}/detach"))["State"] == 4
    assert service.view.namespaces() == []


async def test_a_compartment_is_a_namespace_and_a_container_is_looked_for(
    hns: Hns, answer: Hns, service: HnsService
) -> None:
    network = await hns("POST", "/networks/", l2bridge())
    ids = [(await hns("POST", "/endpoints/", {"VirtualNetwork": network["ID"]}))["ID"] for _ in range(2)]
    member = Resource(type=ResourceType.CONTAINER, data=ResourceData(resource_id="c1"))
    namespace = await service.create_namespace(Namespace(netns_path="/run/netns/a", resources=(member,)))
    await hns("POST", f"/endpoints/{ids[0]}/attach", {"CompartmentId": namespace.compartment_id})
    await hns("POST", f"/endpoints/{ids[1]}/attach", {"ContainerId": "C1"})
    found = [(item.id, item.interface_name) for item in service.view.endpoints_of_namespace(namespace.id)]
    assert found == [(ids[0], "eth0"), (ids[1], "eth1")]
    refused = await answer("POST", f"/endpoints/{ids[0]}/attach", {"CompartmentId": 99})
    assert refused["ErrorCode"] == HcnCode.GCN_NETCOMPARTMENT_NOT_FOUND


async def test_namespaces(hns: Hns, answer: Hns) -> None:
    network = await hns("POST", "/networks/", l2bridge())
    endpoint = await hns("POST", "/endpoints/", {"VirtualNetwork": network["ID"]})
    made = await hns("POST", "/namespaces/", {"IsDefault": False})
    resource = {"Type": "Endpoint", "Data": {"Id": endpoint["ID"]}}
    shown = await hns("POST", f"/namespaces/{made['ID']}/addresource", resource)
    assert shown["ResourceList"] == [resource]
    assert (await hns("GET", f"/endpoints/{endpoint['ID']}"))["Namespace"]["ID"] == made["ID"]
    busy = await answer("DELETE", f"/namespaces/{made['ID']}")
    assert busy["ErrorCode"] == HcnCode.ENTITY_HAS_REFERENCES
    await hns("POST", f"/namespaces/{made['ID']}/removeresource", resource)
    await hns("DELETE", f"/namespaces/{made['ID']}")
    missing = await answer("GET", f"/namespaces/{made['ID']}")
    assert missing == {"Success": False, "Error": "Element not found.", "ErrorCode": 0x80070490}


async def test_policy_lists_are_load_balancers_and_routes(hns: Hns, answer: Hns, service: HnsService) -> None:
    network = await hns("POST", "/networks/", l2bridge())
    endpoint = await hns("POST", "/endpoints/", {"VirtualNetwork": network["ID"]})
    references = [f"/endpoints/{endpoint['ID']}"]
    elb = {
        "Type": "ELB",
        "Protocol": 6,
        "InternalPort": 8080,
        "ExternalPort": 80,
        "SourceVIP": "",
        "VIPs": ["10.96.0.10"],
        "ILB": True,
        "IsDSR": False,
    }
    route = {"Type": "ROUTE", "DestinationPrefix": "11.0.0.0/8", "NeedEncap": True}
    one = await hns("POST", "/policylists/", {"References": references, "Policies": [elb]})
    two = await hns("POST", "/policylists/", {"References": references, "Policies": [route]})
    assert (one["References"], one["Policies"]) == (references, [elb])
    assert two["Policies"][0].items() >= route.items()
    assert await hns("GET", "/policylists/") == [one, two]
    assert await hns("GET", f"/policylists/{two['ID']}") == two
    assert len(service.view.all(Kind.LOADBALANCER)) == len(service.view.routes()) == 1
    for made in (one, two):
        await hns("DELETE", f"/policylists/{made['ID']}")
    assert await hns("GET", "/policylists/") == []
    plain = {"Type": "ELB", "InternalPort": 80, "ExternalPort": 8090, "VIPs": [""]}  # of hns.psm1
    three = await hns("POST", "/policylists", {"References": references, "Policies": [plain]})
    assert (three["Policies"][0]["Protocol"], three["Policies"][0]["VIPs"]) == (6, [])
    mixed = await answer("POST", "/policylists/", {"References": references, "Policies": [elb, route]})
    assert mixed["ErrorCode"] == HcnCode.INVALID_POLICY
    wrong = await answer("POST", "/policylists/", {"References": ["/pods/1"], "Policies": [elb]})
    assert wrong["ErrorCode"] == HcnCode.INVALID_JSON_REFERENCE


async def test_an_update_is_made_whole_or_not_at_all(hns: Hns, answer: Hns) -> None:
    network = await hns("POST", "/networks/", l2bridge(Policies=[{"Type": "Custom", "Colour": 1}]))
    path = f"/networks/{network['ID']}"
    wrong = {"Policies": [{"Type": "Custom", "Colour": 2}], "DNSServerList": "no address"}
    assert (await answer("POST", path, wrong))["ErrorCode"] == HcnCode.INVALID_IP
    assert await hns("GET", path) == network
    changed = await hns("POST", path, {**wrong, "DNSServerList": "10.0.0.10"})
    assert {"Type": "Custom", "Colour": 2} in changed["Policies"]
    assert changed["DNSServerList"] == "10.0.0.10"


async def test_an_empty_list_of_policies_takes_them_away(hns: Hns) -> None:
    network = await hns("POST", "/networks/", l2bridge())
    endpoint = await hns(
        "POST",
        "/endpoints/",
        {"VirtualNetwork": network["ID"], "EncapOverhead": 50, "Policies": [{"Type": "OutBoundNAT"}]},
    )
    path = f"/endpoints/{endpoint['ID']}"
    assert await hns("POST", path, {"Name": "x"}) == endpoint  # says nothing of policies
    changed = await hns("POST", path, {"Policies": []})
    assert "Policies" not in changed
    assert changed["EncapOverhead"] == 50  # a field of v1, none of its policies
    assert (await hns("POST", path, {"Policies": [], "EncapOverhead": 60}))["EncapOverhead"] == 60


async def test_the_rest(hns: Hns, answer: Hns) -> None:
    assert await hns("GET", "/globals/version") == {"Major": 15, "Minor": 4}
    for path in ("/activities", "/plugins", "/portpools"):
        assert await hns("GET", path) == []
    macs = {"MacAddressList": [{"MacAddress": "00-15-5D-00-00-01"}]}
    assert await hns("POST", "/accelnet/", {"MacAddressList": [{"MacAddress": "00:15:5d:00:00:01"}]}) == macs
    assert await hns("GET", "/accelnet/") == macs
    await hns("DELETE", "/accelnet/")
    assert await hns("GET", "/accelnet/") == {"MacAddressList": []}


async def test_switch_extensions(hns: Hns, answer: Hns) -> None:
    network = await hns("POST", "/networks/", l2bridge())
    path, vfp = f"/networks/{network['ID']}", network["Extensions"][0]
    assert await hns("POST", path, {"Extensions": [vfp]}) == network
    off = await answer("POST", path, {"Extensions": [{**vfp, "IsEnabled": False}]})
    assert off["ErrorCode"] == HcnCode.SHARED_SWITCH_MODIFICATION
    other = await answer("POST", path, {"Extensions": [{"Id": MISSING, "IsEnabled": True}]})
    assert other["ErrorCode"] == HcnCode.SWITCH_EXTENSION_NOT_FOUND


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("GET", "", None, HcnCode.REQUEST_UNSUPPORTED),
        ("PUT", "/networks/", {}, HcnCode.REQUEST_UNSUPPORTED),
        ("POST", "/policylists/" + MISSING, {}, HcnCode.REQUEST_UNSUPPORTED),
        ("GET", f"/networks/{MISSING}", None, HcnCode.NETWORK_NOT_FOUND),
        ("DELETE", f"/endpoints/{MISSING}", None, HcnCode.ENDPOINT_NOT_FOUND),
        ("GET", "/networks/x", None, HcnCode.GUID_CONVERSION_FAILURE),
        ("POST", "/networks/", None, HcnCode.INVALID_JSON),
        ("POST", "/networks/", [], HcnCode.INVALID_JSON),
        ("POST", "/networks/", {"Type": "Mirrored"}, HcnCode.INVALID_NETWORK_TYPE),
        ("POST", "/endpoints/", {"VirtualNetworkName": "none"}, HcnCode.NETWORK_NOT_FOUND),
        ("POST", "/endpoints/", {"IPAddress": 5.5}, HcnCode.NETWORK_NOT_FOUND),
        ("POST", f"/endpoints/{MISSING}/attach", {"CompartmentId": -1}, HcnCode.INVALID_JSON),
        ("POST", "/accelnet", {"MacAddressList": [{"MacAddress": "x"}]}, HcnCode.INVALID_JSON),
    ],
)
async def test_refusals(answer: Hns, method: str, path: str, body: Any, code: HcnCode) -> None:
    reply = await answer(method, path, body)
    assert not reply["Success"]
    assert HcnCode(reply["ErrorCode"]) is code
    assert reply["Error"]


def test_which_shape_it_is() -> None:
    assert is_v1(Kind.NETWORK, l2bridge())
    assert is_v1(Kind.NETWORK, {"schemaversion": {"major": 1}})
    assert not is_v1(Kind.NETWORK, {**l2bridge(), "SchemaVersion": {"Major": 2}})
    assert not is_v1(Kind.NETWORK, {"Name": "x", "Ipams": []})
    assert is_v1(Kind.ENDPOINT, {"virtualnetwork": "x"})
    assert not is_v1(Kind.ROUTE, {"IPAddress": "x"})
    assert is_v1(Kind.ROUTE, {"References": []})


async def test_text_with_not_found_for_azure(answer: Hns) -> None:
    assert "endpoint was not found" in (await answer("GET", f"/endpoints/{MISSING}"))["Error"]


async def test_v1_and_v2_are_two_views_of_one_object(hns: Hns, service: HnsService) -> None:
    one = await service.create_network(overlay())
    two = await service.create_network(bridge())
    shown = await hns("GET", "/networks/")
    assert [item["ID"] for item in shown] == [one.id, two.id]
    again = to_v2(Kind.NETWORK, shown[0], service.view)
    assert again["Ipams"][0]["Subnets"][0]["IpAddressPrefix"] == "10.244.1.0/24"
