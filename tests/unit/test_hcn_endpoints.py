"""Endpoints through the service: addresses, MACs, port mappings, policies, references."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from samewire.errors import Exhausted
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.modify import ModifySettingRequest, PolicySettings, RequestType
from samewire.hcn.policies import (
    ACL,
    QOS,
    VLAN,
    AclAction,
    AclDirection,
    OutBoundNAT,
    Policy,
    PortMapping,
    SDNRoute,
)
from samewire.hcn.schema import (
    Dns,
    Endpoint,
    EndpointFlags,
    Ipam,
    IpamType,
    IpConfiguration,
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
    SubnetFlags,
)
from samewire.hcn.service import HnsService
from tests.support.hcn import FakeSwitch, at, bridge, overlay

REMOTE = int(EndpointFlags.REMOTE_ENDPOINT)
MISSING = "0A1B2C3D-0000-0000-0000-00000000000F"


def dual(*subnets: Subnet, kind: NetworkType = NetworkType.L2BRIDGE, **fields: Any) -> Network:
    return Network(type=kind, ipams=(Ipam(subnets=subnets),), **fields)


def mapping(external: int = 8080, **fields: Any) -> PortMapping:
    return PortMapping(**{"protocol": 6, "internal_port": 80, "external_port": external, **fields})


async def endpoint(service: HnsService, network: Network, *addresses: str, **fields: Any) -> Endpoint:
    wanted = Endpoint(network_id=network.id, ip_configurations=at(*addresses), **fields)
    return await service.create_endpoint(wanted)


async def refused(service: HnsService, wanted: Endpoint) -> HcnError:
    before = service.view.endpoints()
    with pytest.raises(HcnError) as caught:
        await service.create_endpoint(wanted)
    assert service.view.endpoints() == before
    return caught.value


async def modify(service: HnsService, value: Endpoint, how: RequestType, *policies: Policy) -> Endpoint:
    request = ModifySettingRequest(request_type=how, settings=PolicySettings(policies=policies))
    after = await service.modify(Kind.ENDPOINT, value.id, request)
    assert isinstance(after, Endpoint)
    return after


async def test_an_endpoint_is_completed(service: HnsService) -> None:
    network = await service.create_network(overlay())
    made = await endpoint(service, replace(network, id=network.id.lower()), "10.244.1.5")
    assert made.network_id == network.id
    assert made.ip_configurations[0].prefix_length == 24
    assert made.ip_configurations[0].ip_subnet_id == network.subnets[0].id
    assert made.mac_address == "0E-2A-0A-F4-01-05"
    assert service.view.endpoints() == [made]


async def test_an_address_that_the_service_chooses_is_one_of_its_family(service: HnsService) -> None:
    """Beside one that was given, too: the two could be the same, and such an endpoint could not be deleted."""
    network = await service.create_network(overlay())
    chosen = IpConfiguration(ip_subnet_id=network.subnets[0].id)
    for configurations in ((*at("10.244.1.2"), chosen), (chosen, *at("10.244.1.2")), (chosen, chosen)):
        error = await refused(service, Endpoint(network_id=network.id, ip_configurations=configurations))
        assert error.code is HcnCode.INVALID_IP
        assert "at most one IPv4 address" in str(error)


async def test_addresses_are_handed_out_in_rotation(service: HnsService) -> None:
    network = await service.create_network(bridge(prefix="10.1.0.0/29"))
    given = []
    for _ in range(4):
        made = await endpoint(service, network)
        given.append(made.addresses[0])
        await service.delete(Kind.ENDPOINT, made.id)
    assert given == ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5"]
    held = [(await endpoint(service, network)).addresses[0] for _ in range(5)]
    assert sorted(held) == [f"10.1.0.{last}" for last in range(2, 7)]
    with pytest.raises(Exhausted, match=r"10\.1\.0\.0/29"):
        await endpoint(service, network)


async def test_an_address_of_each_family_is_given(service: HnsService, switch: FakeSwitch) -> None:
    switch.with_facts(management_ips=("10.1.0.2", "fd00::1"))
    network = await service.create_network(
        dual(Subnet(ip_address_prefix="10.1.0.0/24"), Subnet(ip_address_prefix="fd00::/64"))
    )
    made = await endpoint(service, network)
    assert made.addresses == ("10.1.0.1", "fd00::2")
    assert [entry.prefix_length for entry in made.ip_configurations] == [24, 64]


@pytest.mark.parametrize(
    ("prefix", "count"), [("10.1.0.0/30", 2), ("10.1.0.0/31", 2), ("10.1.0.7/32", 1), ("fd00::/126", 3)]
)
async def test_small_subnets(service: HnsService, prefix: str, count: int) -> None:
    network = await service.create_network(dual(Subnet(ip_address_prefix=prefix)))
    for _ in range(count):
        await endpoint(service, network)
    with pytest.raises(Exhausted):
        await endpoint(service, network)


@pytest.mark.parametrize(
    ("prefix", "inner", "given"),
    [
        ("10.1.0.0/24", "10.1.0.254/31", "10.1.0.254"),
        ("10.1.0.0/24", "10.1.0.0/31", "10.1.0.1"),
        ("fd00::/64", "fd00::/127", "fd00::1"),
    ],
)
async def test_a_range_has_none_of_its_subnets_own_addresses(
    service: HnsService, prefix: str, inner: str, given: str
) -> None:
    subnet = Subnet(ip_address_prefix=prefix, ip_subnets=(IpSubnet(ip_address_prefix=inner),))
    network = await service.create_network(dual(subnet))
    (item,) = network.subnets[0].ip_subnets
    wanted = Endpoint(network_id=network.id, ip_configurations=(IpConfiguration(ip_subnet_id=item.id),))
    assert (await service.create_endpoint(wanted)).addresses == (given,)
    with pytest.raises(Exhausted):
        await service.create_endpoint(wanted)


async def test_an_address_from_a_range_that_has_an_id(service: HnsService) -> None:
    inner = IpSubnet(ip_address_prefix="10.1.0.64/28")
    network = await service.create_network(dual(Subnet(ip_address_prefix="10.1.0.0/24", ip_subnets=(inner,))))
    inner = network.subnets[0].ip_subnets[0]
    wanted = Endpoint(
        network_id=network.id, ip_configurations=(IpConfiguration(ip_subnet_id=inner.id.lower()),)
    )
    made = await service.create_endpoint(wanted)
    assert made.addresses == ("10.1.0.65",)
    assert made.ip_configurations[0].prefix_length == 24
    outside = IpConfiguration(ip_address="10.1.0.9", ip_subnet_id=inner.id)
    error = await refused(service, replace(wanted, ip_configurations=(outside,)))
    assert error.code is HcnCode.INVALID_IP_SUBNET
    error = await refused(
        service, replace(wanted, ip_configurations=(IpConfiguration(ip_subnet_id=MISSING),))
    )
    assert error.code is HcnCode.INVALID_IP_SUBNET


@pytest.mark.parametrize(
    ("addresses", "code"),
    [
        (("10.1.0.1",), HcnCode.ADDR_INVALID_OR_RESERVED),
        (("10.1.0.0",), HcnCode.ADDR_INVALID_OR_RESERVED),
        (("10.1.0.255",), HcnCode.ADDR_INVALID_OR_RESERVED),
        (("10.1.1.1",), HcnCode.ADDR_INVALID_OR_RESERVED),
        (("fd00::5",), HcnCode.ADDR_INVALID_OR_RESERVED),
        (("10.1.0.10",), HcnCode.ADDR_INVALID_OR_RESERVED),
        (("10.1.0.7", "10.1.0.8"), HcnCode.INVALID_IP),
        (("10.1.0",), HcnCode.INVALID_IP),
        (("0.0.0.0",), HcnCode.INVALID_IP),
        (("255.255.255.255",), HcnCode.INVALID_IP),
        (("ff02::1",), HcnCode.INVALID_IP),
    ],
)
async def test_addresses_nobody_gets(
    service: HnsService, switch: FakeSwitch, addresses: tuple[str, ...], code: HcnCode
) -> None:
    switch.with_facts(management_ips=("10.1.0.10",))
    network = await service.create_network(bridge())
    error = await refused(service, Endpoint(network_id=network.id, ip_configurations=at(*addresses)))
    assert error.code is code
    assert error.message.startswith("$.IpConfigurations[")


async def test_the_gateway_address_can_be_free(service: HnsService) -> None:
    default = RouteEntry(next_hop="10.1.0.1", destination_prefix="0.0.0.0/0")
    flags = int(SubnetFlags.DO_NOT_RESERVE_GATEWAY_ADDRESS)
    network = await service.create_network(
        dual(Subnet(ip_address_prefix="10.1.0.0/24", routes=(default,), flags=flags))
    )
    assert (await endpoint(service, network, "10.1.0.1")).addresses == ("10.1.0.1",)


async def test_the_network_address_of_an_overlay_can_be_a_source_vip(service: HnsService) -> None:
    network = await service.create_network(overlay())
    assert (await endpoint(service, network, "10.244.1.0")).addresses == ("10.244.1.0",)


async def test_a_prefix_length_of_0_is_none(service: HnsService) -> None:
    """As in HNS's JSON, where zeroes are as good as absent."""
    network = await service.create_network(overlay())
    entry = IpConfiguration(ip_address="10.244.1.9", prefix_length=0)
    made = await service.create_endpoint(Endpoint(network_id=network.id, ip_configurations=(entry,)))
    assert [one.prefix_length for one in made.ip_configurations] == [24]


async def test_networks_without_subnets(service: HnsService) -> None:
    private = await service.create_network(Network(type=NetworkType.PRIVATE))
    assert (await refused(service, Endpoint(network_id=private.id))).code is HcnCode.INVALID_ENDPOINT
    wanted = Endpoint(network_id=private.id, ip_configurations=at("10.9.0.1"))
    assert (await refused(service, wanted)).code is HcnCode.INVALID_PREFIX
    entry = IpConfiguration(ip_address="10.9.0.1", prefix_length=16)
    assert (await service.create_endpoint(replace(wanted, ip_configurations=(entry,)))).addresses == (
        "10.9.0.1",
    )


async def test_dhcp_networks_leave_the_address_open(service: HnsService) -> None:
    network = await service.create_network(
        Network(type=NetworkType.TRANSPARENT, ipams=(Ipam(type=IpamType.DHCP),))
    )
    assert (await endpoint(service, network)).addresses == ()


async def test_one_address_one_endpoint(service: HnsService) -> None:
    network = await service.create_network(overlay())
    other = await service.create_network(overlay(name="tenant2", vni=5000))
    await endpoint(service, network, "10.244.1.5")
    wanted = Endpoint(network_id=network.id, ip_configurations=at("10.244.1.5"))
    assert (await refused(service, wanted)).code is HcnCode.OBJECT_ALREADY_EXISTS
    assert (await refused(service, replace(wanted, flags=REMOTE))).code is HcnCode.OBJECT_ALREADY_EXISTS
    assert await endpoint(service, other, "10.244.1.5")


async def test_a_local_endpoint_replaces_a_remote_one_in_one_step(
    service: HnsService, switch: FakeSwitch
) -> None:
    network = await service.create_network(overlay())
    far = await endpoint(service, network, "10.244.1.5", flags=REMOTE)
    near = await endpoint(service, network, "10.244.1.5")
    assert [(change.before, change.after) for change in switch.calls[-1]] == [(far, None), (None, near)]
    assert service.view.endpoint_by_ip(network.id, "10.244.1.5") == near
    assert service.view.endpoint(far.id) is None


async def test_remote_endpoints(service: HnsService) -> None:
    network = await service.create_network(overlay())
    made = await endpoint(service, network, "10.244.9.5", flags=REMOTE)
    assert made.ip_configurations[0].prefix_length == 32
    assert made.mac_address == "02-11-0A-F4-09-05"
    twice = Endpoint(network_id=network.id, flags=REMOTE, ip_configurations=at("10.244.9.5"))
    assert (await refused(service, twice)).code is HcnCode.OBJECT_ALREADY_EXISTS
    same_mac = await endpoint(service, network, "10.244.9.6", flags=REMOTE, mac_address="02:11:0a:f4:09:05")
    assert same_mac.mac_address == made.mac_address
    assert (
        await refused(service, Endpoint(network_id=network.id, flags=REMOTE))
    ).code is HcnCode.INVALID_ENDPOINT
    wanted = Endpoint(
        network_id=network.id, flags=REMOTE, ip_configurations=at("10.244.9.7"), policies=(mapping(),)
    )
    assert (await refused(service, wanted)).code is HcnCode.INVALID_REMOTE_ENDPOINT_OPERATION
    with pytest.raises(HcnError) as caught:
        await modify(service, made, RequestType.ADD, mapping())
    assert caught.value.code is HcnCode.INVALID_REMOTE_ENDPOINT_OPERATION


async def test_macs_come_from_the_pool_and_run_out(service: HnsService) -> None:
    pool = MacPool(ranges=(
        MacRange(start_mac_address="00:15:5d:52:c0:00", end_mac_address="00-15-5D-52-C0-01"),
        MacRange(start_mac_address="00-15-5D-52-C0-10", end_mac_address="00-15-5D-52-C0-10"),
    ))  # fmt: skip
    network = await service.create_network(bridge(mac_pool=pool))
    given = [(await endpoint(service, network)).mac_address for _ in range(3)]
    assert given == ["00-15-5D-52-C0-00", "00-15-5D-52-C0-01", "00-15-5D-52-C0-10"]
    with pytest.raises(Exhausted):
        await endpoint(service, network)


async def test_macs_are_derived_from_the_id_and_stay_unique(service: HnsService) -> None:
    network = await service.create_network(bridge())
    one = await endpoint(service, network, id="0A1B2C3D-0000-0000-0000-000000FFFFFF")
    two = await endpoint(service, network, id="0A1B2C3E-0000-0000-0000-000000FFFFFF")
    assert (one.mac_address, two.mac_address) == ("00-15-5D-FF-FF-FF", "00-15-5D-00-00-00")
    wanted = Endpoint(network_id=network.id, mac_address="00:15:5d:ff:ff:ff")
    assert (await refused(service, wanted)).code is HcnCode.OBJECT_ALREADY_EXISTS


async def test_an_overlay_endpoint_without_ipv4_has_a_mac_of_its_id(service: HnsService) -> None:
    network = await service.create_network(overlay(prefix="fd00:244::/64"))
    made = await endpoint(service, network, id="0A1B2C3D-0000-0000-0000-000000010203")
    assert made.mac_address == "00-15-5D-01-02-03"


@pytest.mark.parametrize(
    ("fields", "code", "path"),
    [
        ({"network_id": ""}, HcnCode.NETWORK_NOT_FOUND, "$.HostComputeNetwork"),
        ({"network_id": MISSING}, HcnCode.NETWORK_NOT_FOUND, "The network was not found."),
        ({"network_id": "x"}, HcnCode.GUID_CONVERSION_FAILURE, "$.HostComputeNetwork"),
        ({"namespace_id": MISSING}, HcnCode.INVALID_ENDPOINT, "$.HostComputeNamespace"),
        ({"mac_address": "x"}, HcnCode.INVALID_ENDPOINT, "$.MacAddress"),
        ({"mac_address": "01-15-5D-00-00-01"}, HcnCode.INVALID_ENDPOINT, "$.MacAddress"),
        ({"interface_name": "much-too-long-name"}, HcnCode.INVALID_ENDPOINT, "$.InterfaceName"),
        ({"interface_name": "a b"}, HcnCode.INVALID_ENDPOINT, "$.InterfaceName"),
        ({"interface_name": 'e"0'}, HcnCode.INVALID_ENDPOINT, "$.InterfaceName"),
        ({"interface_name": "eth*"}, HcnCode.INVALID_ENDPOINT, "$.InterfaceName"),
        ({"interface_name": ".."}, HcnCode.INVALID_ENDPOINT, "$.InterfaceName"),
        ({"dns": Dns(domain="a b")}, HcnCode.INVALID_JSON, "$.Dns.Domain"),
        ({"routes": (RouteEntry(next_hop="10.1.0.1"),)}, HcnCode.INVALID_ENDPOINT, "$.Routes[0]"),
        ({"id": "x"}, HcnCode.GUID_CONVERSION_FAILURE, "$.ID"),
        (
            {"ip_configurations": (IpConfiguration(ip_address="10.1.0.9", prefix_length=33),)},
            HcnCode.INVALID_PREFIX,
            "$.IpConfigurations[0].PrefixLength",
        ),
    ],
)
async def test_refusals_name_the_field(
    service: HnsService, fields: dict[str, Any], code: HcnCode, path: str
) -> None:
    network = await service.create_network(bridge())
    error = await refused(service, Endpoint(**{"network_id": network.id, **fields}))
    assert error.code is code
    assert error.message.startswith(path)


async def test_an_id_is_used_once(service: HnsService) -> None:
    network = await service.create_network(bridge())
    made = await endpoint(service, network)
    error = await refused(service, Endpoint(network_id=network.id, id=made.id.lower()))
    assert error.code is HcnCode.OBJECT_ALREADY_EXISTS


@pytest.mark.parametrize(
    ("one", "two", "clash"),
    [
        (mapping(), mapping(internal_port=81), True),
        (mapping(), mapping(8081), False),
        (mapping(), mapping(protocol=17), False),
        (mapping(), mapping(vip="192.168.1.10"), True),
        (mapping(vip="192.168.1.10"), mapping(vip="192.168.1.11"), False),
        (mapping(vip="192.168.1.10"), mapping(vip="192.168.1.10"), True),
        (mapping(), mapping(flags=2), False),
        (mapping(flags=2), mapping(vip="::"), True),
        (mapping(flags=2), mapping(vip="fd00::1"), True),
    ],
)
async def test_a_node_port_is_mapped_once(
    service: HnsService, one: PortMapping, two: PortMapping, clash: bool
) -> None:
    network = await service.create_network(
        dual(Subnet(ip_address_prefix="10.1.0.0/24"), Subnet(ip_address_prefix="fd00:1::/64"))
    )
    holder = await endpoint(service, network, policies=(one,))
    wanted = Endpoint(network_id=network.id, policies=(two,))
    if clash:
        assert (await refused(service, wanted)).code is HcnCode.PORT_ALREADY_EXISTS
        assert (
            await refused(service, replace(wanted, policies=(one, two)))
        ).code is HcnCode.PORT_ALREADY_EXISTS
        await service.delete(Kind.ENDPOINT, holder.id)
    await service.create_endpoint(wanted)


@pytest.mark.parametrize(
    ("prefix", "two"),
    [
        ("10.1.0.0/24", mapping(flags=2)),
        ("10.1.0.0/24", mapping(vip="fd00::1")),
        ("fd00:1::/64", mapping(vip="192.168.1.10")),
    ],
)
async def test_a_mapping_is_to_an_address(service: HnsService, prefix: str, two: PortMapping) -> None:
    """Said when it is asked for, and not when the endpoint is attached."""
    network = await service.create_network(dual(Subnet(ip_address_prefix=prefix)))
    error = await refused(service, Endpoint(network_id=network.id, policies=(mapping(81), two)))
    assert error.code is HcnCode.MAPPING_NOT_SUPPORTED
    assert error.message.startswith("$.Policies[1].Settings: the endpoint has no IPv")
    made = await endpoint(service, network, policies=(mapping(81),))
    with pytest.raises(HcnError, match=r"no IPv[46] address for this PortMapping"):
        await modify(service, made, RequestType.ADD, two)


@pytest.mark.parametrize("hop", ["", "0.0.0.0"])
async def test_a_private_network_has_no_way_to_the_node(service: HnsService, hop: str) -> None:
    network = await service.create_network(
        dual(Subnet(ip_address_prefix="10.1.0.0/24"), kind=NetworkType.PRIVATE)
    )
    route = SDNRoute(destination_prefix="10.7.0.0/16", next_hop=hop)
    error = await refused(service, Endpoint(network_id=network.id, policies=(route,)))
    assert "$.Policies[0].Settings.NextHop" in error.message


async def test_a_mapping_added_later_is_checked_against_others_and_not_itself(service: HnsService) -> None:
    network = await service.create_network(bridge())
    one = await endpoint(service, network, policies=(mapping(),))
    two = await endpoint(service, network)
    with pytest.raises(HcnError) as caught:
        await modify(service, two, RequestType.ADD, mapping())
    assert caught.value.code is HcnCode.PORT_ALREADY_EXISTS
    await modify(service, one, RequestType.UPDATE, mapping(), QOS())


async def test_policies_are_replaced_added_and_removed(service: HnsService, switch: FakeSwitch) -> None:
    network = await service.create_network(bridge())
    nat = OutBoundNAT(exceptions=("10.0.0.0/8",))
    rule = ACL(action=AclAction.BLOCK, direction=AclDirection.IN, priority=100)
    made = await endpoint(service, network, policies=(nat,))
    made = await modify(service, made, RequestType.ADD, rule, rule)
    assert made.policies == (nat, rule, rule)
    made = await modify(service, made, RequestType.REMOVE, rule, OutBoundNAT(exceptions=("10.1.2.3/8",)))
    assert made.policies == (rule,)
    calls = len(switch.calls)
    assert await modify(service, made, RequestType.UPDATE, rule) == made
    assert len(switch.calls) == calls
    made = await modify(service, made, RequestType.UPDATE)
    assert made.policies == ()
    with pytest.raises(HcnError) as caught:
        await modify(service, made, RequestType.REMOVE, rule)
    assert caught.value.code is HcnCode.POLICY_NOT_FOUND
    made = await modify(service, made, RequestType.ADD, rule)
    assert await modify(service, made, RequestType.REFRESH) == made
    assert (await modify(service, made, RequestType.RESET)).policies == ()


async def test_only_policies_of_endpoints_are_modified(service: HnsService) -> None:
    made = await endpoint(service, await service.create_network(bridge()))
    request = ModifySettingRequest(request_type=RequestType.ADD, settings=Dns())
    with pytest.raises(HcnError) as caught:
        await service.modify(Kind.ENDPOINT, made.id, request)
    assert caught.value.code is HcnCode.REQUEST_UNSUPPORTED


async def test_an_endpoint_in_a_route_stays(service: HnsService) -> None:
    network = await service.create_network(overlay())
    made = await endpoint(service, network)
    sdn = SdnRoute(destination_prefix="10.96.0.0/12", need_encap=True)
    route = await service.create_route(Route(endpoint_ids=(made.id,), routes=(sdn,)))
    with pytest.raises(HcnError) as caught:
        await service.delete(Kind.ENDPOINT, made.id)
    assert caught.value.code is HcnCode.ENTITY_HAS_REFERENCES
    await service.delete(Kind.ROUTE, route.id)
    await service.delete(Kind.ENDPOINT, made.id.lower())
    watch = (replace(sdn, automatic_endpoint_monitor=True),)
    made, other = await endpoint(service, network), await endpoint(service, network)
    route = await service.create_route(Route(endpoint_ids=(made.id, other.id), routes=watch))
    await service.delete(Kind.ENDPOINT, made.id)
    assert service.get(Kind.ROUTE, route.id) == replace(route, endpoint_ids=(other.id,))
    await service.delete(Kind.NETWORK, network.id)
    assert service.view.routes() == []
    with pytest.raises(HcnError) as caught:
        await service.delete(Kind.ENDPOINT, made.id)
    assert caught.value.code is HcnCode.ENDPOINT_NOT_FOUND
    assert "endpoint was not found" in caught.value.message


async def test_an_endpoint_is_in_a_route_once(service: HnsService) -> None:
    made = await endpoint(service, await service.create_network(overlay()))
    sdn = SdnRoute(destination_prefix="10.96.0.0/12", need_encap=True)
    route = await service.create_route(Route(endpoint_ids=(made.id, made.id.lower()), routes=(sdn,)))
    assert route.endpoint_ids == (made.id,)
    await service.delete(Kind.ROUTE, route.id)
    assert service.view.routes_of_endpoint(made.id) == []


async def test_counters_come_from_the_switch(service: HnsService) -> None:
    made = await endpoint(service, await service.create_network(bridge()))
    assert (await service.endpoint_stats(made.id.lower())).bytes_sent == 36


@pytest.mark.parametrize(
    ("kind", "vlan", "free"),
    [
        (NetworkType.L2BRIDGE, 0, False),
        (NetworkType.L2BRIDGE, 7, True),
        (NetworkType.INTERNAL, 0, True),
    ],
)
async def test_an_address_has_one_endpoint_on_a_wire(
    service: HnsService, kind: NetworkType, vlan: int, free: bool
) -> None:
    """Networks without subnets share the uplink's."""
    policies = (VLAN(isolation_id=vlan),) if vlan else ()
    networks = [
        await service.create_network(Network(name="one", type=NetworkType.TRANSPARENT)),
        await service.create_network(Network(name="two", type=kind, policies=policies)),
    ]
    address = (IpConfiguration(ip_address="10.9.1.5", prefix_length=24),)
    there = await service.create_endpoint(Endpoint(network_id=networks[0].id, ip_configurations=address))
    wanted = Endpoint(network_id=networks[1].id, ip_configurations=address)
    if free:
        await service.create_endpoint(wanted)
    else:
        error = await refused(service, wanted)
        assert (error.code, there.id in str(error)) == (HcnCode.OBJECT_ALREADY_EXISTS, True)
    await service.create_endpoint(replace(wanted, flags=REMOTE, ip_configurations=at("10.9.1.6")))
