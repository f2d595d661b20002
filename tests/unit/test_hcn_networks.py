"""Networks through the service: what HNS completes, refuses and takes along."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from samewire.errors import Exhausted
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.modify import (
    ModifySettingRequest,
    ModifySettings,
    PolicySettings,
    RequestType,
    SubnetSettings,
)
from samewire.hcn.policies import (
    VLAN,
    VSID,
    DrMacAddress,
    HostRoute,
    InterfaceConstraint,
    NetAdapterName,
    OutBoundNAT,
    Policy,
    ProviderAddress,
    RemoteSubnetRoute,
    SourceMacAddress,
    first,
    select,
)
from samewire.hcn.schema import (
    Dns,
    Endpoint,
    Ipam,
    IpSubnet,
    Kind,
    MacPool,
    MacRange,
    Network,
    NetworkType,
    Route,
    RouteEntry,
    SdnRoute,
    Subnet,
)
from samewire.hcn.service import HnsService
from tests.support.hcn import FACTS, FakeSwitch, at, bridge, overlay

MINE = ProviderAddress(provider_address="192.168.1.10")
DR_MAC = DrMacAddress(address=FACTS.dr_mac)


def remote(prefix: str = "10.244.3.0/24", **fields: Any) -> RemoteSubnetRoute:
    values: dict[str, Any] = {
        "destination_prefix": prefix,
        "isolation_id": 4096,
        "provider_address": "192.168.1.3",
        "distributed_router_mac_address": "00-15-5D-00-00-03",
    }
    return RemoteSubnetRoute(**{**values, **fields})


async def modify(
    service: HnsService, network: Network, how: RequestType, settings: ModifySettings
) -> Network:
    request = ModifySettingRequest(request_type=how, settings=settings)
    value = await service.modify(Kind.NETWORK, network.id, request)
    assert isinstance(value, Network)
    return value


async def add(service: HnsService, network: Network, *policies: Policy) -> Network:
    return await modify(service, network, RequestType.ADD, PolicySettings(policies=policies))


async def refused(service: HnsService, network: Network) -> HcnError:
    before = service.view.networks()
    with pytest.raises(HcnError) as caught:
        await service.create_network(network)
    assert service.view.networks() == before
    return caught.value


async def test_a_network_gets_what_hns_fills_in(service: HnsService, switch: FakeSwitch) -> None:
    network = await service.create_network(overlay(id="0a1b2c3d-0000-0000-0000-00000000000f"))
    assert network.id == "0A1B2C3D-0000-0000-0000-00000000000F"
    assert network.policies == (DR_MAC, MINE)
    assert network.subnets[0].id
    assert network.subnets[0].gateway == "10.244.1.1"
    assert network.vni == 4096
    assert service.view.networks() == [network]
    assert switch.objects == {(Kind.NETWORK, network.id): network}


async def test_the_zero_guid_asks_for_an_id(service: HnsService) -> None:
    network = await service.create_network(overlay(id="00000000-0000-0000-0000-000000000000"))
    assert network.id != "00000000-0000-0000-0000-000000000000"


@pytest.mark.parametrize("wanted", ["x", "0a1b2c3d", "0A1B2C3D-0000-0000-0000-00000000000G"])
async def test_ids_are_guids(service: HnsService, wanted: str) -> None:
    assert (await refused(service, overlay(id=wanted))).code is HcnCode.GUID_CONVERSION_FAILURE


async def test_names_and_ids_are_unique(service: HnsService) -> None:
    first_one = await service.create_network(overlay())
    assert (await refused(service, bridge(name="vxlan0"))).code is HcnCode.NETWORK_ALREADY_EXISTS
    assert (await refused(service, bridge(id=first_one.id.lower()))).code is HcnCode.NETWORK_ALREADY_EXISTS
    await service.create_network(bridge(name=""))
    await service.create_network(bridge(name="", prefix="10.2.0.0/24", gateway="10.2.0.1"))


@pytest.mark.parametrize("kind", [NetworkType.L2BRIDGE, NetworkType.L2TUNNEL, NetworkType.TRANSPARENT])
async def test_external_networks_report_the_management_address(
    service: HnsService, kind: NetworkType
) -> None:
    network = await service.create_network(replace(bridge(), type=kind))
    assert network.policies == (MINE,)


@pytest.mark.parametrize("kind", [NetworkType.INTERNAL, NetworkType.PRIVATE])
async def test_isolated_networks_do_not(service: HnsService, kind: NetworkType) -> None:
    assert (await service.create_network(Network(type=kind))).policies == ()


async def test_an_address_or_adapter_of_another_node_is_refused(service: HnsService) -> None:
    foreign = ProviderAddress(provider_address="192.168.1.99")
    assert (await refused(service, overlay(policies=(foreign,)))).code is HcnCode.ADAPTER_NOT_FOUND
    other = NetAdapterName(network_adapter_name="eth7")
    assert (await refused(service, overlay(policies=(other,)))).code is HcnCode.ADAPTER_NOT_FOUND
    mine = (ProviderAddress(provider_address="fd00:1:0::10"), NetAdapterName(network_adapter_name="eth0"))
    network = await service.create_network(overlay(policies=mine))
    assert first(network.policies, ProviderAddress) == ProviderAddress(provider_address="fd00:1::10")


async def test_an_overlay_needs_an_address_of_the_node(service: HnsService, switch: FakeSwitch) -> None:
    switch.with_facts(management_ips=())
    assert (await refused(service, overlay())).code is HcnCode.ADAPTER_NOT_FOUND
    await service.create_network(bridge())


async def test_a_nat_network_picks_a_free_subnet(service: HnsService, switch: FakeSwitch) -> None:
    switch.with_facts(local_prefixes=("0.0.0.0/0", "172.16.0.0/20", "172.16.17.1/32", "fd00::/8"))
    network = await service.create_network(Network(name="nat"))
    assert [subnet.ip_address_prefix for subnet in network.subnets] == ["172.16.32.0/20"]
    assert network.subnets[0].gateway == "172.16.32.1"
    second = await service.create_network(Network(name="nat2"))
    assert second.subnets[0].ip_address_prefix == "172.16.48.0/20"
    switch.with_facts(local_prefixes=("172.0.0.0/8",))
    with pytest.raises(Exhausted):
        await service.create_network(Network(name="nat3"))


def on_host(network: Network) -> Network:
    return replace(network, policies=(*network.policies, HostRoute()))


@pytest.mark.parametrize(
    ("one", "two", "code"),
    [
        (bridge(), bridge(name="b", prefix="10.1.0.0/16"), HcnCode.INVALID_SUBNET),
        (bridge(), replace(bridge(name="b"), type=NetworkType.NAT), HcnCode.INVALID_SUBNET),
        (bridge(prefix="10.244.1.0/24"), overlay(), HcnCode.INVALID_SUBNET),
        (overlay(), overlay(name="b", prefix="10.9.0.0/16"), HcnCode.INVALID_NETWORK),
        (overlay(), overlay(name="b", vni=4097), None),
        (on_host(overlay()), overlay(name="b", vni=4097), None),
        (on_host(overlay()), on_host(overlay(name="b", vni=4097)), HcnCode.INVALID_SUBNET),
        (on_host(overlay()), on_host(overlay(name="b", vni=4097, prefix="10.9.0.0/16")), None),
        (bridge(), bridge(name="b", prefix="10.1.1.0/24", gateway="10.1.1.1"), None),
        (bridge(), replace(bridge(name="b"), type=NetworkType.PRIVATE), None),
        (replace(bridge(), type=NetworkType.INTERNAL), bridge(name="b"), None),
        (bridge(), bridge(name="b", prefix="fd00::/64", gateway="fd00::1"), None),
    ],
)
async def test_subnets_of_two_networks(
    service: HnsService, one: Network, two: Network, code: HcnCode | None
) -> None:
    await service.create_network(one)
    if code is None:
        await service.create_network(two)
    else:
        assert (await refused(service, two)).code is code


def with_subnets(*subnets: Subnet, kind: NetworkType = NetworkType.L2BRIDGE) -> Network:
    return Network(type=kind, ipams=(Ipam(subnets=subnets),))


def subnet(prefix: str, *policies: Policy, **fields: Any) -> Subnet:
    return Subnet(ip_address_prefix=prefix, policies=policies, **fields)


@pytest.mark.parametrize(
    ("network", "code", "path"),
    [
        (with_subnets(subnet("")), HcnCode.INVALID_SUBNET, "$.Ipams[0].Subnets[0].IpAddressPrefix"),
        (
            with_subnets(subnet("10.0.0.1/24")),
            HcnCode.INVALID_PREFIX,
            "$.Ipams[0].Subnets[0].IpAddressPrefix",
        ),
        (with_subnets(subnet("10.0.0.0/24"), subnet("10.0.0.128/25")), HcnCode.INVALID_SUBNET, "$.Ipams"),
        (
            with_subnets(subnet("10.0.0.0/24", routes=(RouteEntry(destination_prefix="0.0.0.0/0"),))),
            HcnCode.INVALID_SUBNET,
            "$.Ipams[0].Subnets[0].Routes[0]",
        ),
        (
            with_subnets(
                subnet("10.0.0.0/24", routes=(RouteEntry(next_hop="fd00::1", destination_prefix="::/0"),))
            ),
            HcnCode.INVALID_SUBNET,
            "$.Ipams[0].Subnets[0].Routes",
        ),
        (
            with_subnets(
                subnet("10.0.0.0/24", routes=(RouteEntry(next_hop="10.0.0.1", destination_prefix="::/0"),))
            ),
            HcnCode.INVALID_SUBNET,
            "$.Ipams[0].Subnets[0].Routes[0].NextHop",
        ),
        (
            with_subnets(subnet("10.0.0.0/24", ip_subnets=(IpSubnet(ip_address_prefix="10.0.1.0/28"),))),
            HcnCode.INVALID_IP_SUBNET,
            "$.Ipams[0].Subnets[0].IpSubnets[0].IpAddressPrefix",
        ),
        (
            with_subnets(subnet("10.0.0.0/24"), kind=NetworkType.OVERLAY),
            HcnCode.INVALID_POLICY,
            "$.Ipams[0].Subnets[0].Policies",
        ),
        (
            with_subnets(subnet("10.0.0.0/24", VSID(isolation_id=4096))),
            HcnCode.INVALID_POLICY,
            "$.Ipams[0].Subnets[0].Policies",
        ),
        (
            with_subnets(
                subnet("10.0.0.0/24", VSID(isolation_id=4096)),
                subnet("fd00::/64", VSID(isolation_id=4097)),
                kind=NetworkType.OVERLAY,
            ),
            HcnCode.INVALID_POLICY,
            "$.Ipams",
        ),
        (Network(type=NetworkType.OVERLAY), HcnCode.INVALID_NETWORK, "$.Ipams"),
        (Network(name="a\nb"), HcnCode.INVALID_NETWORK, "$.Name"),
        (Network(name="a" * 300), HcnCode.INVALID_NETWORK, "$.Name"),
        (Network(policies=(OutBoundNAT(),)), HcnCode.INVALID_POLICY_TYPE, "$.Policies[0].Type"),
        (Network(dns=Dns(server_list=("ns1",))), HcnCode.INVALID_IP, "$.Dns.ServerList[0]"),
        (Network(dns=Dns(search=("a\nnameserver 1.1.1.1",))), HcnCode.INVALID_JSON, "$.Dns.Search[0]"),
        (
            Network(
                mac_pool=MacPool(
                    ranges=(
                        MacRange(start_mac_address="00-15-5D-00-00-02", end_mac_address="00-15-5D-00-00-01"),
                    )
                )
            ),
            HcnCode.INVALID_NETWORK,
            "$.MacPool.Ranges[0]",
        ),
        (with_subnets(*(subnet(f"10.{n}.0.0/16") for n in range(65))), HcnCode.INVALID_NETWORK, "$.Ipams"),
    ],
)
async def test_refusals_name_the_field(
    service: HnsService, network: Network, code: HcnCode, path: str
) -> None:
    error = await refused(service, network)
    assert error.code is code
    assert error.message.startswith(path)


async def test_dns_drops_empty_entries(service: HnsService) -> None:
    dns = Dns(domain="svc.local", search=("", "a.b"), server_list=("", "FD00::0:1"), options=("ndots:5",))
    network = await service.create_network(bridge(dns=dns))
    assert network.dns == Dns(
        domain="svc.local", search=("a.b",), server_list=("fd00::1",), options=("ndots:5",)
    )


async def test_remote_subnets_are_added_and_removed_by_their_settings(service: HnsService) -> None:
    network = await service.create_network(overlay())
    network = await add(service, network, remote(), HostRoute(), remote("10.244.4.0/24"))
    assert [policy.destination_prefix for policy in select(network.policies, RemoteSubnetRoute)] == [
        "10.244.3.0/24",
        "10.244.4.0/24",
    ]
    spelled_otherwise = remote(distributed_router_mac_address="00:15:5d:00:00:03")
    gone = PolicySettings(policies=(spelled_otherwise,))
    network = await modify(service, network, RequestType.REMOVE, gone)
    assert [policy.destination_prefix for policy in select(network.policies, RemoteSubnetRoute)] == [
        "10.244.4.0/24"
    ]
    with pytest.raises(HcnError) as caught:
        await modify(service, network, RequestType.REMOVE, gone)
    assert caught.value.code is HcnCode.POLICY_NOT_FOUND
    assert service.view.network(network.id) == network


async def test_the_same_remote_subnet_twice_is_refused(service: HnsService) -> None:
    network = await add(service, await service.create_network(overlay()), remote())
    with pytest.raises(HcnError) as caught:
        await add(service, network, remote(provider_address="192.168.1.4"))
    assert caught.value.code is HcnCode.POLICY_ALREADY_EXISTS


async def test_a_removed_dr_mac_comes_back(service: HnsService, switch: FakeSwitch) -> None:
    network = await service.create_network(overlay())
    calls = len(switch.calls)
    after = await modify(service, network, RequestType.REMOVE, PolicySettings(policies=(DR_MAC,)))
    assert set(after.policies) == set(network.policies)
    assert len(switch.calls) <= calls + 1


async def test_dns_is_replaced_and_removed(service: HnsService) -> None:
    network = await service.create_network(bridge())
    network = await modify(service, network, RequestType.UPDATE, Dns(domain="a.b"))
    assert network.dns == Dns(domain="a.b")
    assert (await modify(service, network, RequestType.REMOVE, Dns())).dns is None
    network = await modify(service, network, RequestType.ADD, Dns(domain="a.b"))
    assert (await modify(service, network, RequestType.RESET, Dns())).dns is None


async def test_subnets_come_and_go(service: HnsService) -> None:
    network = await service.create_network(bridge())
    more = subnet("10.2.0.0/24")
    network = await modify(service, network, RequestType.ADD, SubnetSettings(subnets=(more,)))
    assert [item.ip_address_prefix for item in network.subnets] == ["10.1.0.0/24", "10.2.0.0/24"]
    endpoint = await service.create_endpoint(
        Endpoint(network_id=network.id, ip_configurations=at("10.2.0.9"))
    )
    for wanted, code in (
        (more, HcnCode.ENTITY_HAS_REFERENCES),
        (subnet("10.3.0.0/24"), HcnCode.SUBNET_NOT_FOUND),
    ):
        with pytest.raises(HcnError) as caught:
            await modify(service, network, RequestType.REMOVE, SubnetSettings(subnets=(wanted,)))
        assert caught.value.code is code
    with pytest.raises(HcnError, match="overlaps"):
        await modify(service, network, RequestType.ADD, SubnetSettings(subnets=(subnet("10.2.0.0/25"),)))
    await service.create_network(bridge(name="other", prefix="10.9.0.0/24", gateway="10.9.0.1"))
    with pytest.raises(HcnError, match="of other"):
        await modify(service, network, RequestType.ADD, SubnetSettings(subnets=(subnet("10.9.0.0/25"),)))
    await service.delete(Kind.ENDPOINT, endpoint.id)
    by_id = Subnet(id=network.subnets[1].id.lower())
    network = await modify(service, network, RequestType.REMOVE, SubnetSettings(subnets=(by_id,)))
    assert [item.ip_address_prefix for item in network.subnets] == ["10.1.0.0/24"]


async def test_a_deleted_network_takes_what_is_its_own(service: HnsService, switch: FakeSwitch) -> None:
    network, other = await service.create_network(overlay()), await service.create_network(bridge())
    mine = await service.create_endpoint(Endpoint(network_id=network.id))
    theirs = await service.create_endpoint(Endpoint(network_id=other.id))
    sdn = SdnRoute(destination_prefix="10.96.0.0/12", need_encap=True)
    await service.create_route(Route(endpoint_ids=(mine.id,), routes=(sdn,)))
    await service.delete(Kind.NETWORK, network.id)
    assert set(switch.objects) == {(Kind.NETWORK, other.id), (Kind.ENDPOINT, theirs.id)}
    assert (service.view.networks(), service.view.endpoints()) == ([other], [theirs])
    assert [change.kind for change in switch.calls[-1]] == [Kind.ROUTE, Kind.ENDPOINT, Kind.NETWORK]


async def test_what_is_not_there_is_not_found(service: HnsService) -> None:
    missing = "0A1B2C3D-0000-0000-0000-00000000000F"
    request = ModifySettingRequest(request_type=RequestType.ADD, settings=Dns())
    with pytest.raises(HcnError) as one:
        service.get(Kind.NETWORK, missing)
    with pytest.raises(HcnError) as two:
        await service.delete(Kind.NETWORK, missing)
    with pytest.raises(HcnError) as three:
        await service.modify(Kind.NETWORK, missing, request)
    assert {caught.value.code for caught in (one, two, three)} == {HcnCode.NETWORK_NOT_FOUND}


async def test_networks_follow_the_addresses_of_the_node(service: HnsService, switch: FakeSwitch) -> None:
    network = await add(service, await service.create_network(overlay()), HostRoute())
    calls = len(switch.calls)
    await service.refresh_facts()
    assert len(switch.calls) == calls
    switch.with_facts(dr_mac="0E-2A-00-00-00-01", management_ips=("192.168.1.77",))
    await service.refresh_facts()
    assert service.view.networks()[0].policies == (
        DrMacAddress(address="0E-2A-00-00-00-01"),
        ProviderAddress(provider_address="192.168.1.77"),
        HostRoute(),
    )
    await service.delete(Kind.NETWORK, network.id)


async def test_a_provider_address_keeps_its_family(service: HnsService, switch: FakeSwitch) -> None:
    """A renumbered node is without an IPv4 address for a moment."""
    await service.create_network(overlay())
    for seen, expected in (
        (("fd77::2",), "192.168.1.10"),
        (("192.168.1.77", "fd77::2"), "192.168.1.77"),
        ((), "192.168.1.77"),
    ):
        switch.with_facts(management_ips=seen)
        await service.refresh_facts()
        providers = [p for p in service.view.networks()[0].policies if isinstance(p, ProviderAddress)]
        assert providers == [ProviderAddress(provider_address=expected)]


VLAN_7 = VLAN(isolation_id=7)


def added(policy: Policy) -> ModifySettingRequest:
    return ModifySettingRequest(request_type=RequestType.ADD, settings=PolicySettings(policies=(policy,)))


def on_subnet(network: Network) -> Network:
    return replace(network, ipams=(Ipam(subnets=(replace(network.subnets[0], policies=(VLAN_7,)),)),))


async def test_there_are_no_tags_within_tags(service: HnsService, switch: FakeSwitch) -> None:
    """On a network, its subnet and its endpoints, at creation and later; nothing is changed."""
    switch.with_facts(uplink_vlan=8)
    refused = pytest.raises(
        HcnError, match=r"Settings\.IsolationId: VLAN 7: the uplink eth0 is that of VLAN 8"
    )
    for network in (bridge(policies=(VLAN_7,)), on_subnet(bridge())):
        with refused as caught:
            await service.create(Kind.NETWORK, network)
        assert caught.value.code is HcnCode.REQUEST_UNSUPPORTED
    made = await service.create(Kind.NETWORK, bridge())
    with refused:
        await service.modify(Kind.NETWORK, made.id, added(VLAN_7))
    with refused:
        await service.create(Kind.ENDPOINT, Endpoint(network_id=made.id, policies=(VLAN_7,)))
    endpoint = await service.create(Kind.ENDPOINT, Endpoint(network_id=made.id))
    with refused:
        await service.modify(Kind.ENDPOINT, endpoint.id, added(VLAN_7))
    assert service.get(Kind.NETWORK, made.id) == made
    assert service.get(Kind.ENDPOINT, endpoint.id) == endpoint


@pytest.mark.parametrize("uplink_vlan", [0, 7])
async def test_a_network_is_one_vlan(service: HnsService, switch: FakeSwitch, uplink_vlan: int) -> None:
    """That of its policy or its subnets', by whom ever the tag is put on; another one is another network's."""
    switch.with_facts(uplink_vlan=uplink_vlan)
    made = await service.create(Kind.NETWORK, on_subnet(bridge(policies=(VLAN_7,))))
    endpoint = await service.create(Kind.ENDPOINT, Endpoint(network_id=made.id, policies=(VLAN_7,)))
    if not uplink_vlan:
        eight = VLAN(isolation_id=8)
        refused = pytest.raises(HcnError, match=r"Settings\.IsolationId: VLAN 8: the network is VLAN 7")
        with refused as caught:
            await service.create(Kind.ENDPOINT, Endpoint(network_id=made.id, policies=(eight,)))
        assert caught.value.code is HcnCode.INVALID_POLICY
        with pytest.raises(HcnError, match="VLAN 7: the network is VLAN 8"):
            await service.create(Kind.NETWORK, replace(on_subnet(bridge(policies=(eight,))), name="other"))
        plain = await service.create(Kind.NETWORK, replace(bridge(), name="plain"))
        with pytest.raises(HcnError, match="VLAN 7: the network is no VLAN"):
            await service.create(Kind.ENDPOINT, Endpoint(network_id=plain.id, policies=(VLAN_7,)))
    switch.with_facts(uplink_vlan=0)
    # What is there stays, whatever the uplink has become.
    await service.modify(Kind.NETWORK, made.id, added(NetAdapterName(network_adapter_name="eth0")))
    kept = service.get(Kind.ENDPOINT, endpoint.id)
    assert isinstance(kept, Endpoint)
    assert VLAN_7 in kept.policies


async def test_vlans_may_have_the_same_subnets(service: HnsService, switch: FakeSwitch) -> None:
    """They are others behind another tag, but not behind the same one, nor when the tags are taken away."""
    made = [
        await service.create(Kind.NETWORK, replace(bridge(policies=policies), name=name))
        for name, policies in (("plain", ()), ("seven", (VLAN_7,)), ("eight", (VLAN(isolation_id=8),)))
    ]
    clash = pytest.raises(HcnError, match="overlaps")
    with clash as caught:
        await service.create(Kind.NETWORK, replace(bridge(policies=(VLAN_7,)), name="seven too"))
    assert caught.value.code is HcnCode.INVALID_SUBNET
    with clash:
        reset = ModifySettingRequest(request_type=RequestType.RESET, settings=PolicySettings())
        await service.modify(Kind.NETWORK, made[1].id, reset)


async def test_nothing_is_translated_to_the_node_in_a_vlan(service: HnsService) -> None:
    made = await service.create(Kind.NETWORK, bridge(policies=(VLAN_7,)))
    refused = pytest.raises(HcnError, match=r"Settings\.VirtualIP: OutBoundNAT needs one in VLAN 7")
    with refused as caught:
        await service.create(Kind.ENDPOINT, Endpoint(network_id=made.id, policies=(OutBoundNAT(),)))
    assert caught.value.code is HcnCode.INVALID_POLICY
    endpoint = await service.create(Kind.ENDPOINT, Endpoint(network_id=made.id))
    with refused:
        await service.modify(Kind.ENDPOINT, endpoint.id, added(OutBoundNAT()))
    await service.modify(Kind.ENDPOINT, endpoint.id, added(OutBoundNAT(virtual_ip="10.1.0.200")))


async def test_an_overlay_has_no_vlan(service: HnsService, switch: FakeSwitch) -> None:
    switch.with_facts(uplink_vlan=7)
    with pytest.raises(HcnError, match="no frames of its own") as caught:
        await service.create(Kind.NETWORK, replace(overlay(), policies=(*overlay().policies, VLAN_7)))
    assert caught.value.code is HcnCode.INVALID_NETWORK_TYPE


@pytest.mark.parametrize(
    ("right", "other"),
    [
        ({"interface_alias": "eth0"}, {"interface_alias": "eth1"}),
        ({"interface_index": 5}, {"interface_index": 6}),
        (
            {"interface_index": 5, "interface_alias": "eth0"},
            {"interface_index": 6, "interface_alias": "eth0"},
        ),
    ],
)
async def test_a_constraint_to_another_interface_is_refused(
    service: HnsService, switch: FakeSwitch, right: Any, other: Any
) -> None:
    switch.with_facts(uplink_ifindex=5)
    right, other = InterfaceConstraint(**right), InterfaceConstraint(**other)
    made = await service.create(Kind.NETWORK, bridge(policies=(right,)))
    await service.create(Kind.ENDPOINT, Endpoint(network_id=made.id, policies=(right,)))
    plain = await service.create(Kind.ENDPOINT, Endpoint(network_id=made.id))
    refused = pytest.raises(HcnError, match=r"is eth0, index 5, not (eth1|.* index 6)")
    with refused as caught:
        await service.create(Kind.NETWORK, bridge("b", "10.2.0.0/24", "10.2.0.1", policies=(other,)))
    assert caught.value.code is HcnCode.ADAPTER_NOT_FOUND
    with refused:
        await service.create(Kind.ENDPOINT, Endpoint(network_id=made.id, policies=(other,)))
    with refused:
        await service.modify(Kind.ENDPOINT, plain.id, added(other))


async def test_a_source_mac_is_for_networks_that_have_one_on_the_underlay(service: HnsService) -> None:
    policy = SourceMacAddress(source_mac_address="0E-2A-99-00-00-01")
    for kind in (NetworkType.OVERLAY, NetworkType.TRANSPARENT):
        network = overlay() if kind is NetworkType.OVERLAY else replace(bridge(), type=kind)
        with pytest.raises(HcnError, match="for L2Bridge and L2Tunnel") as caught:
            await service.create(Kind.NETWORK, replace(network, policies=(*network.policies, policy)))
        assert caught.value.code is HcnCode.INVALID_NETWORK_TYPE
    made = await service.create(Kind.NETWORK, overlay())
    with pytest.raises(HcnError, match="for L2Bridge and L2Tunnel"):
        await service.modify(Kind.NETWORK, made.id, added(policy))
    await service.create(Kind.NETWORK, bridge(policies=(policy,)))
