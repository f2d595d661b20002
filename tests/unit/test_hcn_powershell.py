"""Requests as the field's PowerShell modules (hns.psm1, hns.v2.psm1) write them: not what hcsshim writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from samewire.hcn.codec import decode_modify, decode_object, encode
from samewire.hcn.errors import HcnError
from samewire.hcn.schema import Endpoint, Kind, Network
from samewire.hcn.service import HnsService
from samewire.hcn.state import State
from samewire.hcn.store import Store
from samewire.hcn.v1 import lists
from samewire.hcn.v1.read import to_v2
from tests.support.hcn import FakeSwitch, overlay

VERSION = {"Minor": 2, "Major": 2}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[HnsService]:
    store = Store(tmp_path / "hns.db")
    yield HnsService(store, FakeSwitch())
    store.close()


def routed(prefix: str, gateway: str) -> dict[str, Any]:
    """A subnet as New-HnsNetwork makes it: the default route is IPv4's, whatever the gateway."""
    route = {"NextHop": gateway, "DestinationPrefix": "0.0.0.0/0"}
    return {"IpAddressPrefix": prefix, "Routes": [route], "Policies": [], "IpSubnets": None}


async def create(service: HnsService, kind: Kind, **fields: Any) -> Any:
    return await service.create(kind, decode_object(kind, {"SchemaVersion": VERSION, **fields}))


@pytest.fixture
async def network(service: HnsService) -> Network:
    subnets = [routed("10.1.0.0/24", "10.1.0.1"), routed("fd00:1::/64", "fd00:1::1")]
    ipams = [{"Type": "Static", "Subnets": subnets}]
    made = await create(service, Kind.NETWORK, Type="l2bridge", Name="cbr0", Policies=[], Ipams=ipams)
    assert isinstance(made, Network)
    return made


async def test_a_network_of_both_families(network: Network) -> None:
    assert [subnet.gateway for subnet in network.subnets] == ["10.1.0.1", "fd00:1::1"]
    assert [subnet.routes[0].destination_prefix for subnet in network.subnets] == ["0.0.0.0/0", "::/0"]


async def test_an_inbound_nat_policy_without_protocol(service: HnsService, network: Network) -> None:
    settings = {"InternalPort": "80", "ExternalPort": "8080", "Flags": 0}
    made = await create(
        service,
        Kind.ENDPOINT,
        HostComputeNetwork=network.id.lower(),
        IpConfigurations=[{"PrefixLength": 24}],
        Policies=[{"Type": "PortMapping", "Settings": settings}],
    )
    (policy,) = encode(made)["Policies"]
    assert (policy["Settings"]["Protocol"], policy["Settings"]["InternalPort"]) == (6, 80)


def test_an_isolation_without_a_subnet_to_have_it_is_not_lost() -> None:
    policy = {"Type": "VSID", "VSID": 5000}
    assert to_v2(Kind.NETWORK, {"Type": "NAT", "Policies": [policy]}, State())["Policies"] == [policy]


async def test_an_array_of_nothing(service: HnsService, network: Network) -> None:
    mapping = {"InternalPort": 80, "ExternalPort": 80, "Protocol": 6, "DistributionType": 0, "Flags": 0}
    made = await create(
        service,
        Kind.LOADBALANCER,
        HostComputeNetwork=network.id,
        HostComputeEndpoints=[None],
        PortMappings=[mapping],
        FrontendVIPs=["10.96.0.1"],
        SourceVIP="",
    )
    assert made.endpoint_ids == ()
    settings = {"Domain": "", "Search": [""], "ServerList": [""], "Options": [""]}
    request = {"RequestType": "Update", "ResourceType": "DNS", "Settings": settings}
    changed = await service.modify(Kind.NETWORK, network.id, decode_modify(Kind.NETWORK, request))
    assert "Dns" not in encode(changed)


async def test_policies_are_taken_away_by_an_empty_one(service: HnsService, network: Network) -> None:
    policies = [{"Type": "OutBoundNAT", "Settings": {"VIP": "", "ExceptionList": ["", ""], "Flags": 1}}]
    made = await create(service, Kind.ENDPOINT, HostComputeNetwork=network.id, Policies=policies)
    assert len(made.policies) == 1
    request = {"RequestType": "Update", "ResourceType": "Policy", "Settings": {"Policies": [{}]}}
    changed = await service.modify(Kind.ENDPOINT, made.id, decode_modify(Kind.ENDPOINT, request))
    assert isinstance(changed, Endpoint)
    assert changed.policies == ()


async def test_a_route_for_endpoints_to_come(service: HnsService, network: Network) -> None:
    """New-HnsRoute -MonitorDynamicEndpoints, without endpoints, by both modules."""
    route = {
        "DestinationPrefix": "10.96.0.0/12",
        "NextHop": "",
        "NeedEncap": True,
        "AutomaticEndpointMonitor": True,
    }
    made = await create(service, Kind.ROUTE, HostComputeEndpoints=[None], Routes=[route])
    assert (made.network_id, made.endpoint_ids) == (network.id, ())
    kind, flat = lists.to_v2({"References": [], "Policies": [{"Type": "ROUTE", **route}]})
    assert (await create(service, kind, **flat)).network_id == network.id
    unwatched = {**route, "AutomaticEndpointMonitor": False}
    with pytest.raises(HcnError, match="needs one"):
        await create(service, Kind.ROUTE, HostComputeEndpoints=[None], Routes=[unwatched])
    await service.create_network(overlay())
    with pytest.raises(HcnError, match="needs one"):
        await create(service, Kind.ROUTE, HostComputeEndpoints=[None], Routes=[route])
