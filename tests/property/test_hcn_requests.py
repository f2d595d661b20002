"""Requests that strangers may send, in both dialects: always a success or an error of HNS, never a crash, and
nothing reaches the switch that is not answered with success.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samewire.hcn.codec import encode
from samewire.hcn.errors import HcnCode
from samewire.hcn.http import HttpServer, make_app
from samewire.hcn.modify import RequestType
from samewire.hcn.plan.network_changes import VFP_EXTENSION
from samewire.hcn.policies import KNOWN_POLICIES, SetPolicy
from samewire.hcn.schema import Endpoint, Kind, Namespace, Network, NetworkType, Object
from samewire.hcn.service import HnsService
from samewire.hcn.store import Store
from tests.property.test_hcn_codec import (
    OBJECTS,
    json_values,
    mangle,
    paths,
    plain_text,
    structs,
    telling_text,
)
from tests.support.hcn import FakeSwitch, bridge, overlay

REFUSALS = {int(code) for code in HcnCode} - {int(HcnCode.E_FAIL)}
NETWORK, ENDPOINT, SPACE = (f"0A1B2C3D-0000-0000-0000-00000000000{n}" for n in range(1, 4))
SUBNET = "0A1B2C3D-0000-0000-0000-000000000009"

ids = st.sampled_from(
    [NETWORK, ENDPOINT, SPACE, ENDPOINT.lower(), "{" + NETWORK + "}", "x", "%00", "a" * 300, ".."]
)
hostile = st.one_of(
    json_values,
    st.sampled_from(
        [
            "x" * 100_000,
            [[]] * 5000,
            {str(n): n for n in range(5000)},
            json.loads("[" * 60 + "]" * 60),
            2**63,
            -1,
            1e308,
            "\0",
            "😀" * 300,
            "10.0.0.0/8," * 3000,
            NETWORK,
            ENDPOINT,
            SPACE,
        ]
    ),
)
"""Values of hostile size and shape."""

RESOURCES = [
    "Policy",
    "DNS",
    "Subnet",
    "IPSubnet",
    "Extension",
    "Port",
    "Endpoint",
    "Container",
    "LoadBalancer",
    "X",
]
policies = st.sampled_from(sorted(KNOWN_POLICIES)).flatmap(
    lambda name: structs(KNOWN_POLICIES[name], telling_text | st.just("set"))
)
settings_of_changes = st.one_of(
    st.lists(policies, max_size=3).map(lambda items: {"Policies": [encode_policy(item) for item in items]}),
    st.fixed_dictionaries(
        {},
        optional={
            "EndpointId": ids,
            "ContainerId": telling_text,
            "SubnetId": st.just(SUBNET) | telling_text,
            "IpSubnets": st.lists(st.fixed_dictionaries({"IpAddressPrefix": telling_text}), max_size=2),
            "Subnets": st.lists(st.fixed_dictionaries({"IpAddressPrefix": telling_text}), max_size=2),
            "Id": st.just(VFP_EXTENSION) | telling_text,
            "IsEnabled": st.booleans(),
            "PortId": telling_text,
            "Domain": telling_text,
        },
    ),
    hostile,
)
changes = st.fixed_dictionaries(
    {
        "ResourceType": st.sampled_from(RESOURCES),
        "RequestType": st.sampled_from([item.value for item in RequestType]),
        "Settings": settings_of_changes,
    }
)
V1_FIELDS = [
    *(
        "Name",
        "Type",
        "NetworkAdapterName",
        "SourceMac",
        "MacPools",
        "DNSSuffix",
        "DNSServerList",
        "AutomaticDNS",
    ),
    *("VirtualNetwork", "VirtualNetworkName", "IPAddress", "IPv6Address", "PrefixLength", "GatewayAddress"),
    *(
        "IsRemoteEndpoint",
        "EncapOverhead",
        "Flags",
        "IsDefault",
        "ContainerId",
        "CompartmentId",
        "SystemType",
    ),
    *("References", "Policies", "Subnets", "Extensions", "MacAddressList", "Data", "SchemaVersion", "ID"),
]
FLAT_FIELDS = [
    *("Protocol", "InternalPort", "ExternalPort", "VIP", "VIPs", "PA", "VSID"),
    *("DestinationPrefix", "Action"),
]
FLAT_TYPES = ["NAT", "ROUTE", "PA", "ELB", "ACL", "VSID", "PROXY", "OutBoundNAT", "QOS", "Isolation"]
flat = st.fixed_dictionaries(
    {"Type": st.sampled_from(FLAT_TYPES)},
    optional=dict.fromkeys(FLAT_FIELDS, telling_text | json_values),
)
v1_values = st.one_of(
    hostile,
    telling_text,
    ids,
    st.lists(flat, max_size=3),
    st.just([{"AddressPrefix": "10.7.0.0/24", "GatewayAddress": "10.7.0.1"}]),
    st.just([f"/endpoints/{ENDPOINT}"]),
    st.sampled_from([item.value for item in NetworkType]),
)
v1_bodies = st.dictionaries(st.sampled_from(V1_FIELDS), v1_values, max_size=6) | hostile
GOOD_POLICIES: list[dict[str, Any]] = [
    {"Type": "OutBoundNAT", "Settings": {"Exceptions": ["10.0.0.0/8"]}},
    {"Type": "OutBoundNAT", "ExceptionList": ["10.0.0.0/8"]},
    {"Type": "PortMapping", "Settings": {"Protocol": 6, "InternalPort": 80, "ExternalPort": 8080}},
    {"Type": "ACL", "Settings": {"Action": "Allow", "Direction": "In", "RemoteAddresses": "set,10.0.0.0/8"}},
    {"Type": "QOS", "Settings": {"MaximumOutgoingBandwidthInBytes": 1000}},
    {"Type": "SDNRoute", "Settings": {"DestinationPrefix": "10.96.0.0/12", "NeedEncap": True}},
    {"Type": "Iov", "Settings": {"IovOffloadWeight": 100}},
]
v1_good = st.fixed_dictionaries(
    {"VirtualNetwork": st.just(NETWORK)},
    optional={
        "Type": st.sampled_from(["L2Bridge", "NAT", "Endpoint"]),
        "Policies": st.lists(st.sampled_from(GOOD_POLICIES), max_size=2),
        "ContainerId": st.sampled_from(["a", "b"]),
        "CompartmentId": st.sampled_from([0, 1, 2]),
        "Data": st.just({"Id": ENDPOINT}),
        "IPAddress": st.integers(2, 9).map(lambda n: f"10.244.1.{n}"),
    },
)
V1_PATHS = [
    "networks",
    "endpoints",
    "namespaces",
    "policylists",
    "endpointstats",
    "accelnet",
    "globals/version",
    "plugins",
    "",
]
v1_ids = st.one_of(st.just(""), st.sampled_from([NETWORK, ENDPOINT, SPACE]), ids)
V1_ACTIONS = ["", "", "", "", "attach", "detach", "addresource", "removeresource", "detailed", "x"]


def encode_policy(policy: Any) -> Any:
    return encode(Endpoint(policies=(policy,)))["Policies"][0]


GOOD: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.NETWORK: st.fixed_dictionaries(
        {"Type": st.sampled_from(["NAT", "L2Bridge", "Private", "Internal", "Transparent"])},
        optional={
            "Name": plain_text,
            "Ipams": st.sampled_from(
                [[{"Subnets": [{"IpAddressPrefix": f"10.{n}.0.0/24"}]}] for n in range(9)]
            ),
            "MacPools": st.just(
                [{"StartMacAddress": "00-15-5D-52-C0-00", "EndMacAddress": "00-15-5D-52-CF-FF"}]
            ),
        },
    ),
    Kind.ENDPOINT: st.fixed_dictionaries(
        {"HostComputeNetwork": st.just(NETWORK)},
        optional={
            "Policies": st.lists(st.sampled_from(GOOD_POLICIES), max_size=3),
            "IpConfigurations": st.integers(2, 9).map(lambda n: [{"IpAddress": f"10.244.1.{n}"}]),
            "Flags": st.sampled_from([0, 1, 2]),
        },
    ),
    Kind.NAMESPACE: st.fixed_dictionaries(
        {},
        optional={
            "Type": st.sampled_from(["Guest", "HostDefault", None]),
            "NetnsPath": st.just("/run/netns/a"),
        },
    ),
    Kind.ROUTE: st.just({"HostComputeNetwork": NETWORK, "Routes": [{"DestinationPrefix": "10.96.0.0/12"}]}),
    Kind.LOADBALANCER: st.fixed_dictionaries(
        {
            "HostComputeEndpoints": st.just([ENDPOINT]),
            "FrontendVIPs": st.integers(1, 9).map(lambda n: [f"10.96.0.{n}"]),
            "PortMappings": st.just([{"Protocol": 6, "InternalPort": 80, "ExternalPort": 80}]),
        }
    ),
}


@st.composite
def bodies(draw: st.DrawFn, kind: Kind) -> bytes:
    """An object, good or random, and often with something wrong: a value, a key twice, bytes that are no text."""
    value = draw(GOOD[kind] | GOOD[kind] | OBJECTS[kind].map(encode))
    body = mangle(value, draw)
    if draw(st.booleans()):
        path = draw(st.sampled_from(paths(body)))
        target: Any = {"": body}
        for key in ("", *path)[:-1]:
            target = target[key]
        target[("", *path)[-1]] = draw(hostile)
        body = body if path else target[""]
    data = json.dumps(body).encode()
    fault = draw(st.sampled_from([*["none"] * 6, "twice", "bytes", "cut", "deep"]))
    if fault == "twice" and data.startswith(b"{"):
        data = b'{"ID": 1, "ID": 2, ' + data[1:]
    if fault == "bytes":
        data = data[: len(data) // 2] + draw(st.binary(max_size=4)) + data[len(data) // 2 :]
    if fault == "cut":
        data = data[: draw(st.integers(0, len(data)))]
    return b"[" * 5000 + data if fault == "deep" else data


v1_requests = st.tuples(
    st.sampled_from(["POST", "POST", "POST", "GET", "DELETE", "PUT"]),
    st.tuples(st.sampled_from(V1_PATHS), v1_ids, st.sampled_from(V1_ACTIONS)).map(
        lambda item: "/v1/" + "/".join(item).rstrip("/")
    ),
    (v1_bodies | v1_good).map(lambda body: json.dumps(body).encode()) | st.binary(max_size=40),
)
requests = st.one_of(
    st.sampled_from(list(Kind)).flatmap(
        lambda kind: st.tuples(st.just("POST"), st.just(f"/v2/{kind.value}"), bodies(kind))
    ),
    st.tuples(
        st.just("POST"),
        st.tuples(st.sampled_from(list(Kind)), ids).map(lambda item: f"/v2/{item[0].value}/{item[1]}"),
        changes.map(lambda change: json.dumps(change).encode()),
    ),
    st.tuples(
        st.just("POST"),
        st.tuples(
            st.sampled_from(list(Kind)),
            st.sampled_from(["enumerate", f"{NETWORK}/query", f"{ENDPOINT}/stats"]),
        ).map(lambda item: f"/v2/{item[0].value}/{item[1]}"),
        hostile.map(lambda value: json.dumps({"SchemaVersion": {"Major": 1}, "Filter": value}).encode()),
    ),
    v1_requests,
    v1_requests,
)


class Rig:
    """A server with some objects, and the switch behind it."""

    def __init__(self, directory: Path) -> None:
        self.runner = asyncio.Runner()
        self.path = directory / "hns.sock"
        self.store = Store(directory / "hns.db")
        self.switch = FakeSwitch()
        self.service = HnsService(self.store, self.switch)
        self.runner.run(self.start())

    async def start(self) -> None:
        self.server = HttpServer(make_app(self.service, allowed_uids={os.getuid()}), self.path)
        await self.server.start()
        await self.populate()

    async def populate(self) -> None:
        service = self.service
        for kind in (Kind.LOADBALANCER, Kind.ROUTE, Kind.NETWORK, Kind.NAMESPACE):
            for value in service.view.all(kind):
                await service.delete(kind, value.id)
        (ipam,) = overlay().ipams
        subnet = type(ipam.subnets[0])(
            id=SUBNET, ip_address_prefix="10.244.1.0/24", policies=ipam.subnets[0].policies
        )
        network = overlay(id=NETWORK, policies=(SetPolicy(set_id="set", values="10.0.0.1"),))
        await service.create_network(
            Network(**{**fields(network), "ipams": (type(ipam)(subnets=(subnet,)),)})
        )
        await service.create_network(bridge())
        await service.create_endpoint(Endpoint(id=ENDPOINT, network_id=NETWORK))
        await service.create_namespace(Namespace(id=SPACE))

    async def send(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        reader, writer = await asyncio.open_unix_connection(self.path)
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        answer = await reader.read()
        writer.close()
        top, _, text = answer.partition(b"\r\n\r\n")
        return int(top.split()[1]), json.loads(text) if text else None

    def close(self) -> None:
        self.runner.run(self.server.close())
        self.runner.close()
        self.store.close()


def fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__struct_fields__}


@contextmanager
def rig() -> Iterator[Rig]:
    with tempfile.TemporaryDirectory() as directory:
        made = Rig(Path(directory))
        try:
            yield made
        finally:
            made.close()


def everything(service: HnsService) -> list[Object]:
    return [value for kind in Kind for value in service.view.all(kind)]


@pytest.mark.slow
def test_any_request_is_answered_as_hns_answers() -> None:
    with rig() as there:

        @settings(max_examples=1500)
        @given(requests)
        def answered(request: tuple[str, str, bytes]) -> None:
            method, path, body = request
            before, calls = everything(there.service), len(there.switch.calls)
            status, answer = there.runner.run(there.send(method, path.replace(" ", "%20"), body))
            failed = status >= 400 or (path.startswith("/v1") and not answer["Success"])
            if failed:
                assert answer["Success"] is False
                assert answer["ErrorCode"] in REFUSALS, answer
                assert answer["Error"]
                assert everything(there.service) == before
                assert len(there.switch.calls) == calls
            wanted = {(kind, value.id): value for kind in Kind for value in there.service.view.all(kind)}
            assert there.switch.objects == wanted
            if len(wanted) > 60 or (Kind.NETWORK, NETWORK) not in wanted:
                there.runner.run(there.populate())

        answered()
