"""Modify requests beyond the ordinary: sets and who names them, replacing, ranges, extensions, ports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from samewire.errors import NotFound
from samewire.hcn.codec import decode_modify, decode_object
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.plan.network_changes import VFP_EXTENSION
from samewire.hcn.policies import (
    ACL,
    AclAction,
    AclDirection,
    HostRoute,
    OtherPolicy,
    ProviderAddress,
    RemoteSubnetRoute,
    SetPolicy,
    SetType,
    TierAcl,
    TierAclRule,
    policy_type,
    select,
)
from samewire.hcn.schema import (
    Endpoint,
    IpConfiguration,
    Kind,
    Namespace,
    Network,
    NetworkType,
    Object,
    Subnet,
)
from samewire.hcn.service import HnsService
from tests.support.hcn import FakeSwitch, at, bridge, overlay

FLAT = SetPolicy(set_id="web", values="10.0.0.1")


async def modify(
    service: HnsService, value: Object, how: str, settings: Any, resource: str = "Policy"
) -> Any:
    kind = Kind.NETWORK if isinstance(value, Network) else Kind.ENDPOINT
    request = {"ResourceType": resource, "RequestType": how, "Settings": settings}
    return await service.modify(kind, value.id, decode_modify(kind, request))


async def refused(
    service: HnsService, value: Object, how: str, settings: Any, resource: str = "Policy"
) -> HcnError:
    before = service.view.all(Kind.NETWORK) + service.view.all(Kind.ENDPOINT)
    with pytest.raises(HcnError) as caught:
        await modify(service, value, how, settings, resource)
    assert service.view.all(Kind.NETWORK) + service.view.all(Kind.ENDPOINT) == before
    return caught.value


def a_set(name: str, values: str = "", nested: bool = False) -> dict[str, Any]:
    kind = "NESTEDIPSET" if nested else "IPSET"
    return {"Type": "SetPolicy", "Settings": {"Id": name, "Name": name, "PolicyType": kind, "Values": values}}


def naming(*names: str) -> dict[str, Any]:
    settings = {"Action": "Allow", "Direction": "In", "RemoteAddresses": ",".join(names), "Priority": 222}
    return {"Type": "ACL", "Settings": settings}


def policies(*items: dict[str, Any]) -> dict[str, Any]:
    return {"Policies": list(items)}


def route(prefix: str, address: str = "192.168.1.12") -> dict[str, Any]:
    settings = {
        "DestinationPrefix": prefix,
        "IsolationId": 4096,
        "ProviderAddress": address,
        "DistributedRouterMacAddress": "00-15-5D-00-00-03",
    }
    return {"Type": "RemoteSubnetRoute", "Settings": settings}


async def test_a_set_is_there_before_and_after_what_names_it(service: HnsService) -> None:
    network = await service.create_network(overlay())
    pod = await service.create_endpoint(Endpoint(network_id=network.id))
    unknown = await refused(service, pod, "Add", policies(naming("10.0.0.0/8", "web")))
    assert unknown.code is HcnCode.POLICY_NOT_FOUND
    assert "'web'" in unknown.message
    await modify(service, network, "Add", policies(a_set("web", "10.0.0.1")))
    await modify(service, network, "Add", policies(a_set("all", "web", nested=True)))
    pod = await modify(service, pod, "Update", policies(naming("10.0.0.0/8", "all")))
    for name in ("web", "all"):
        error = await refused(service, network, "Remove", policies(a_set(name)))
        assert error.code is HcnCode.ENTITY_HAS_REFERENCES
    await modify(service, pod, "Update", policies({}))
    await modify(service, network, "Remove", policies(a_set("all"), a_set("web", "10.9.9.9")))
    assert select(service.view.networks()[0].policies, SetPolicy) == []


async def test_tiers_name_sets_too(service: HnsService) -> None:
    network = await service.create_network(bridge(policies=(FLAT,)))
    rule = TierAclRule(tier_acl_rule_action=AclAction.PASS, local_addresses="web")
    tier = TierAcl(direction=AclDirection.IN, tier_acl_rules=(rule,))
    await service.create_endpoint(Endpoint(network_id=network.id, policies=(tier,)))
    error = await refused(service, network, "Reset", {})
    assert error.code is HcnCode.ENTITY_HAS_REFERENCES


async def test_a_failed_creation_leaves_nothing(service: HnsService, switch: FakeSwitch) -> None:
    nested = SetPolicy(set_id="all", policy_type=SetType.NESTEDIPSET, values="web")
    with pytest.raises(HcnError) as caught:
        await service.create_network(bridge(policies=(nested,)))
    assert caught.value.code is HcnCode.POLICY_NOT_FOUND
    network = await service.create_network(bridge())
    acl = ACL(action=AclAction.ALLOW, direction=AclDirection.IN, local_addresses="web")
    with pytest.raises(HcnError):
        await service.create_endpoint(Endpoint(network_id=network.id, policies=(acl,)))
    assert service.view.endpoints() == []
    assert len(switch.calls) == 1


async def test_update_of_a_network_replaces_namesakes(service: HnsService) -> None:
    network = await service.create_network(overlay(policies=(HostRoute(), FLAT)))
    routes = policies(route("10.244.2.0/24"), route("10.244.3.0/24"))
    network = await modify(service, network, "Add", routes)
    changed = policies(a_set("web", "10.0.0.2"), a_set("db"), route("10.244.2.0/24", "192.168.1.99"))
    network = await modify(service, network, "Update", changed)
    assert [item.values for item in select(network.policies, SetPolicy)] == ["10.0.0.2", ""]
    peers = [item.provider_address for item in select(network.policies, RemoteSubnetRoute)]
    assert peers == ["192.168.1.99", "192.168.1.12"]
    assert HostRoute() in network.policies
    assert await modify(service, network, "Refresh", {}) == network
    network = await modify(service, network, "Reset", {})
    assert {policy_type(policy) for policy in network.policies} == {"DrMacAddress", "ProviderAddress"}


async def test_update_of_a_network_replaces_all_of_a_type_that_may_be_repeated(service: HnsService) -> None:
    network = await service.create_network(bridge())
    rules = [{**naming("10.0.0.1"), "Type": "NetworkACL"}, {**naming("10.0.0.2"), "Type": "NetworkACL"}]
    network = await modify(service, network, "Add", policies(*rules))
    network = await modify(service, network, "Update", policies({**naming("10.0.0.3"), "Type": "NetworkACL"}))
    assert [item.remote_addresses for item in network.policies if hasattr(item, "remote_addresses")] == [
        "10.0.0.3"
    ]


async def test_the_nodes_address_is_known_in_any_spelling(service: HnsService) -> None:
    network = await service.create_network(bridge())
    mine = {"Type": "ProviderAddress", "Settings": {"ProviderAddress": "FD00:1:0::0010"}}
    network = await modify(service, network, "Update", policies(mine))
    assert network.policies == (ProviderAddress(provider_address="fd00:1::10"),)


async def test_update_leaves_policies_of_other_unknown_types_alone(service: HnsService) -> None:
    network = await service.create_network(bridge())
    unknown = [{"Type": kind, "Settings": {"X": 1}} for kind in ("One", "Two", "one")]
    network = await modify(service, network, "Add", policies(*unknown))
    network = await modify(service, network, "Update", policies({"Type": "ONE", "Settings": {"X": 2}}))
    named = [(item.type_name, item.settings_json) for item in select(network.policies, OtherPolicy)]
    assert named == [("ONE", '{"X":2}'), ("Two", '{"X":1}')]


async def test_subnets_are_replaced_as_a_whole(service: HnsService) -> None:
    network = await service.create_network(bridge())
    (old,) = network.subnets
    pod = await service.create_endpoint(Endpoint(network_id=network.id))
    gateway = [{"DestinationPrefix": "0.0.0.0/0", "NextHop": "10.1.0.254"}]
    new = [{"IpAddressPrefix": "10.1.0.0/24", "Routes": gateway}, {"IpAddressPrefix": "10.2.0.0/24"}]
    network = await modify(service, network, "Update", {"Subnets": new}, "Subnet")
    assert [item.ip_address_prefix for item in network.subnets] == ["10.1.0.0/24", "10.2.0.0/24"]
    assert (network.subnets[0].id, network.subnets[0].gateway) == (old.id, "10.1.0.254")
    error = await refused(service, network, "Update", {"Subnets": new[1:]}, "Subnet")
    assert error.code is HcnCode.ENTITY_HAS_REFERENCES
    await service.delete(Kind.ENDPOINT, pod.id)
    network = await modify(service, network, "Update", {"Subnets": new[1:]}, "Subnet")
    assert [item.ip_address_prefix for item in network.subnets] == ["10.2.0.0/24"]


@pytest.mark.parametrize("how", ["Add", "Update"])
async def test_an_endpoints_address_cannot_become_a_gateway(service: HnsService, how: str) -> None:
    network = await service.create_network(bridge())
    pod = await service.create_endpoint(Endpoint(network_id=network.id, ip_configurations=at("10.1.0.9")))
    given = {
        "IpAddressPrefix": "10.2.0.0/24" if how == "Add" else "10.1.0.0/24",
        "Routes": [{"DestinationPrefix": "0.0.0.0/0", "NextHop": "10.1.0.9"}],
    }
    error = await refused(service, network, how, {"Subnets": [given]}, "Subnet")
    assert (error.code, pod.id in str(error)) == (HcnCode.ENTITY_HAS_REFERENCES, True)
    await modify(service, network, how, {"Subnets": [{**given, "Flags": 1}]}, "Subnet")


@pytest.mark.parametrize(
    "spell", [lambda made: {"IpAddressPrefix": "FD00:0::/64"}, lambda made: {"ID": f"{{{made.id}}}"}]
)
async def test_subnets_go_however_they_are_spelled(
    service: HnsService, spell: Callable[[Subnet], Any]
) -> None:
    network = await service.create_network(bridge())
    added = {"IpAddressPrefix": "fd00::/64", "IpSubnets": [{"IpAddressPrefix": "fd00::/80"}]}
    network = await modify(service, network, "Add", {"Subnets": [added]}, "Subnet")
    (_, subnet) = network.subnets
    ranges = {"SubnetId": subnet.id, "IpSubnets": [{"IpAddressPrefix": "FD00:0::/80"}]}
    network = await modify(service, network, "Remove", ranges, "IPSubnet")
    assert network.subnets[1].ip_subnets == ()
    network = await modify(service, network, "Remove", {"Subnets": [spell(subnet)]}, "Subnet")
    assert len(network.subnets) == 1


async def test_ranges_of_a_subnet(service: HnsService) -> None:
    network = await service.create_network(bridge())
    (subnet,) = network.subnets
    ranges = {"SubnetId": subnet.id.lower(), "IpSubnets": [{"IpAddressPrefix": "10.1.0.16/28"}]}
    network = await modify(service, network, "Add", ranges, "IPSubnet")
    (made,) = network.subnets[0].ip_subnets
    outside = {"SubnetId": subnet.id, "IpSubnets": [{"IpAddressPrefix": "10.9.0.0/28"}]}
    assert (await refused(service, network, "Add", outside, "IPSubnet")).code is HcnCode.INVALID_IP_SUBNET
    nowhere = {"SubnetId": made.id, "IpSubnets": []}
    assert (await refused(service, network, "Add", nowhere, "IPSubnet")).code is HcnCode.SUBNET_NOT_FOUND
    without = {"SubnetId": subnet.id, "IpSubnets": [{}]}
    assert (await refused(service, network, "Add", without, "IPSubnet")).code is HcnCode.INVALID_IP_SUBNET
    network = await modify(service, network, "Remove", ranges, "IPSubnet")
    assert network.subnets[0].ip_subnets == ()
    assert (await refused(service, network, "Remove", ranges, "IPSubnet")).code is HcnCode.INVALID_IP_SUBNET


async def test_a_range_that_an_endpoint_has_stays(service: HnsService) -> None:
    network = await service.create_network(bridge())
    (subnet,) = network.subnets
    gateway = [{"DestinationPrefix": "0.0.0.0/0", "NextHop": "10.1.0.1"}]
    bare = {"IpAddressPrefix": "10.1.0.0/24", "Routes": gateway}
    ranged = {"Subnets": [{**bare, "IpSubnets": [{"IpAddressPrefix": "10.1.0.16/28"}]}]}
    network = await modify(service, network, "Update", ranged, "Subnet")
    (made,) = network.subnets[0].ip_subnets
    pod = await service.create_endpoint(
        Endpoint(network_id=network.id, ip_configurations=(IpConfiguration(ip_subnet_id=made.id),))
    )
    network = await modify(service, network, "Update", ranged, "Subnet")
    assert network.subnets[0].ip_subnets == (made,)
    lost = await refused(service, network, "Update", {"Subnets": [bare]}, "Subnet")
    assert (lost.code, pod.id in str(lost)) == (HcnCode.ENTITY_HAS_REFERENCES, True)
    ranges = {"SubnetId": subnet.id, "IpSubnets": [{"ID": made.id}]}
    lost = await refused(service, network, "Remove", ranges, "IPSubnet")
    assert lost.code is HcnCode.ENTITY_HAS_REFERENCES
    await service.delete(Kind.ENDPOINT, pod.id)
    network = await modify(service, network, "Update", {"Subnets": [bare]}, "Subnet")
    assert network.subnets[0].ip_subnets == ()


async def test_extensions_and_ports(service: HnsService) -> None:
    network = await service.create_network(bridge())
    extension = {"Id": VFP_EXTENSION.lower(), "IsEnabled": True}
    assert await modify(service, network, "Update", extension, "Extension") == network
    off = await refused(service, network, "Update", {**extension, "IsEnabled": False}, "Extension")
    assert off.code is HcnCode.SHARED_SWITCH_MODIFICATION
    pod = await service.create_endpoint(Endpoint(network_id=network.id))
    port = await refused(service, pod, "Add", {"PortId": "x"}, "Port")
    assert port.code is HcnCode.PORT_NOT_FOUND
    assert (await refused(service, pod, "Remove", {}, "Port")).code is HcnCode.ENDPOINT_NOT_ATTACHED
    namespace = await service.create_namespace(Namespace())
    joined = {"ResourceType": "Endpoint", "RequestType": "Add", "Settings": {"EndpointId": pod.id}}
    await service.modify(Kind.NAMESPACE, namespace.id, decode_modify(Kind.NAMESPACE, joined))
    assert (await modify(service, pod, "Remove", {}, "Port")).namespace_id == ""


async def test_no_pod_has_the_address_of_its_subnet(service: HnsService) -> None:
    one, two = await service.create_network(bridge()), await service.create_network(overlay())
    with pytest.raises(HcnError) as caught:
        await service.create_endpoint(Endpoint(network_id=one.id, ip_configurations=at("10.1.0.0")))
    assert caught.value.code is HcnCode.ADDR_INVALID_OR_RESERVED
    source_vip = await service.create_endpoint(
        Endpoint(network_id=two.id, ip_configurations=at("10.244.1.0"))
    )
    namespace = await service.create_namespace(Namespace())
    joined = {"ResourceType": "Endpoint", "RequestType": "Add", "Settings": {"EndpointId": source_vip.id}}
    with pytest.raises(HcnError) as caught:
        await service.modify(Kind.NAMESPACE, namespace.id, decode_modify(Kind.NAMESPACE, joined))
    assert caught.value.code is HcnCode.ADDR_INVALID_OR_RESERVED


async def test_a_private_network_has_no_way_to_the_node(service: HnsService) -> None:
    network = await service.create_network(Network(name="p", type=NetworkType.PRIVATE, ipams=bridge().ipams))
    pod = await service.create_endpoint(Endpoint(network_id=network.id))
    route = {"Type": "SDNRoute", "Settings": {"DestinationPrefix": "10.96.0.0/12", "NeedEncap": True}}
    assert (await refused(service, pod, "Update", policies(route))).code is HcnCode.INVALID_POLICY


async def test_codes_of_rare_situations(service: HnsService, switch: FakeSwitch) -> None:
    for kind in ("ICS", "ConstrainedICS", 1):
        with pytest.raises(HcnError) as caught:
            decode_object(Kind.NETWORK, {"Type": kind})
        assert caught.value.code is HcnCode.ICS_DISABLED
    network = await service.create_network(bridge())
    mtu = {"Type": "InterfaceParameters", "Settings": {"Mtu": 1400}}
    pod = await service.create_endpoint(Endpoint(network_id=network.id))
    await modify(service, pod, "Add", policies(mtu))
    again = await refused(service, pod, "Add", policies(mtu))
    assert again.code is HcnCode.INTERFACEPARAMETERS_ALREADY_APPLIED
    other = {"Type": "InterfaceConstraint", "Settings": {"InterfaceAlias": "eth9"}}
    assert (await refused(service, network, "Add", policies(other))).code is HcnCode.ADAPTER_NOT_FOUND
    namespace = await service.create_namespace(Namespace(netns_path="/run/netns/gone"))
    switch.fail_next = NotFound("network namespace", "/run/netns/gone")
    joined = {"ResourceType": "Endpoint", "RequestType": "Add", "Settings": {"EndpointId": pod.id}}
    with pytest.raises(HcnError) as caught:
        await service.modify(Kind.NAMESPACE, namespace.id, decode_modify(Kind.NAMESPACE, joined))
    assert caught.value.code is HcnCode.NAMESPACE_ATTACH_FAILED
    await service.close()
    with pytest.raises(HcnError) as caught:
        await service.create_namespace(Namespace())
    assert caught.value.code is HcnCode.MANAGER_STOPPED
