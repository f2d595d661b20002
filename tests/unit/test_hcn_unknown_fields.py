"""What nobody knows is kept, on every level and in both dialects, whichever of them it came by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from samewire.hcn.codec import decode_modify, decode_object
from samewire.hcn.query import render
from samewire.hcn.schema import Kind, Object
from samewire.hcn.service import HnsService
from samewire.hcn.store import Store
from samewire.hcn.v1.calls import V1Calls
from tests.support.hcn import FakeSwitch, overlay

Json = dict[str, Any]
NEW: Json = {"Novelty": {"b": [1, None], "a": 1.5}}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[HnsService]:
    store = Store(tmp_path / "hns.db")
    yield HnsService(store, FakeSwitch())
    store.close()


def new(**fields: Any) -> Json:
    """An object with something unknown in it."""
    return {**fields, **NEW}


def levels(value: Any) -> int:
    """On how many levels of an object the unknown is found."""
    if isinstance(value, list):
        return sum(map(levels, value))
    if not isinstance(value, dict):
        return 0
    return int(value.get("Novelty") == NEW["Novelty"]) + sum(
        levels(item) for name, item in value.items() if name != "Novelty"
    )


V2: dict[Kind, Json] = {
    Kind.NETWORK: new(
        Type="NAT",
        Policies=[new(Type="HostRoute", Settings=new()), new(Type="Custom", Settings=new())],
        MacPool=new(
            Ranges=[new(StartMacAddress="00-15-5D-52-C0-00", EndMacAddress="00-15-5D-52-CF-FF")],
        ),
        Dns=new(Domain="x"),
        Ipams=[
            new(
                Type="Static",
                Subnets=[
                    new(
                        IpAddressPrefix="10.1.0.0/24",
                        Routes=[new(NextHop="10.1.0.1", DestinationPrefix="0.0.0.0/0")],
                        IpSubnets=[new(IpAddressPrefix="10.1.0.0/28")],
                        Policies=[new(Type="Custom", Settings=new())],
                    )
                ],
            )
        ],
        SchemaVersion=new(Major=2, Minor=0),
    ),
    Kind.ENDPOINT: new(
        Policies=[new(Type="QOS", Settings=new()), new(Type="TierAcl", Settings=new(Direction="In"))],
        IpConfigurations=[new(IpAddress="10.244.1.9")],
        Dns=new(Domain="x"),
        Routes=[new(NextHop="10.244.1.1", DestinationPrefix="0.0.0.0/0")],
        SchemaVersion=new(Major=2, Minor=0),
    ),
    Kind.NAMESPACE: new(
        Type="Host",
        Resources=[new(Type="Container", Data=new(Id="c"))],
        SchemaVersion=new(Major=2, Minor=0),
    ),
    Kind.LOADBALANCER: new(
        FrontendVIPs=["10.96.0.1"],
        PortMappings=[new(Protocol=6, InternalPort=80, ExternalPort=80)],
        SchemaVersion=new(Major=2, Minor=0),
    ),
    Kind.ROUTE: new(
        Routes=[new(DestinationPrefix="10.96.0.0/12")],
        SchemaVersion=new(Major=2, Minor=0),
    ),
}
V1: dict[str, Json] = {
    "networks": new(
        Type="NAT",
        MacPools=[new(StartMacAddress="00-15-5D-52-C0-00", EndMacAddress="00-15-5D-52-CF-FF")],
        Subnets=[
            new(
                AddressPrefix="10.1.0.0/24",
                GatewayAddress="10.1.0.1",
                Policies=[new(Type="Custom")],
                IpSubnets=[new(IpAddressPrefix="10.1.0.0/28")],
            )
        ],
        Policies=[new(Type="HostRoute"), new(Type="Custom")],
    ),
    "endpoints": new(
        VirtualNetworkName="vxlan0",
        Policies=[new(Type="NAT", Protocol="TCP", InternalPort=80, ExternalPort=8080), new(Type="Custom")],
    ),
    "namespaces": new(),
    "policylists": new(
        Policies=[new(Type="ELB", Protocol=6, InternalPort=80, ExternalPort=80, VIPs=["10.96.0.1"])]
    ),
}


async def made(service: HnsService, kind: Kind) -> Object:
    """An object with unknown fields, made by v2."""
    network = await service.create_network(overlay())
    body = V2[kind]
    if kind not in (Kind.NETWORK, Kind.NAMESPACE):
        body = {**body, "HostComputeNetwork": network.id}
    return await service.create(kind, decode_object(kind, json.loads(json.dumps(body))))


@pytest.mark.parametrize("kind", list(Kind))
async def test_every_level_of_v2(service: HnsService, kind: Kind) -> None:
    value = await made(service, kind)
    wanted = levels(V2[kind])
    shown = render(service.view, value)
    assert levels({name: item for name, item in shown.items() if name != "Setting"}) == wanted
    body = {"ResourceType": "Policy", "RequestType": "Add", "Settings": {"Policies": [{"Type": "L2Driver"}]}}
    if kind in (Kind.NETWORK, Kind.ENDPOINT):
        changed = await service.modify(kind, value.id, decode_modify(kind, body))
        assert levels(render(service.view, changed)) == wanted, "a change of something else leaves them"


@pytest.mark.parametrize("what", V1)
async def test_every_level_of_v1(service: HnsService, what: str) -> None:
    network = await service.create_network(overlay())
    calls = V1Calls(service)
    body = V1[what] | ({"References": [f"/networks/{network.id}"]} if what == "policylists" else {})
    answer = await calls.call("POST", f"/{what}/", json.dumps(body).encode())
    shown = await calls.call("GET", f"/{what}/{answer['ID']}", b"")
    assert levels(answer) == levels(shown) == levels(V1[what])
    for part in V1[what].get("Policies", []):
        (back,) = [item for item in shown["Policies"] if item["Type"] == part["Type"]]
        assert back["Novelty"] == NEW["Novelty"]


@pytest.mark.parametrize("what", V1)
async def test_what_came_by_v1_is_seen_by_v2_and_back(service: HnsService, what: str) -> None:
    network = await service.create_network(overlay())
    calls = V1Calls(service)
    body = V1[what] | ({"References": [f"/networks/{network.id}"]} if what == "policylists" else {})
    answer = await calls.call("POST", f"/{what}/", json.dumps(body).encode())
    kind = Kind.LOADBALANCER if what == "policylists" else Kind(what)
    assert levels(render(service.view, service.get(kind, answer["ID"]))) == levels(V1[what])
    await service.delete(kind, answer["ID"])
    again = await calls.call("POST", f"/{what}/", json.dumps(answer).encode())
    assert levels(again) == levels(V1[what])
