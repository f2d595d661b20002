"""Random valid operations on HNS objects against a model, on a real kernel: after each, the kernel is as wanted and
the answer as the model says; after deleting everything it is as it was.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from samewire.errors import SamewireError
from samewire.hcn.codec import decode_modify, decode_object
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.plan.attach import AttachRequest, SystemType
from samewire.hcn.policies import Policy, RemoteSubnetRoute
from samewire.hcn.schema import Kind, Object
from samewire.node.node import Node
from tests.support.afresh import unlike_afresh
from tests.support.node import NodeNet, ip_json, path_of

pytestmark = [pytest.mark.root, pytest.mark.slow]

STEPS = 70
POLICIES: list[dict[str, Any]] = [
    {"Type": "OutBoundNAT", "Settings": {"Exceptions": ["10.0.0.0/8"]}},
    {"Type": "ACL", "Settings": {"Action": "Allow", "Direction": "In", "Protocols": "6", "Priority": 100}},
    {"Type": "ACL", "Settings": {"Action": "Block", "Direction": "Out", "RemoteAddresses": "10.66.0.0/16"}},
    {"Type": "SDNRoute", "Settings": {"DestinationPrefix": "10.96.0.0/12", "NeedEncap": True}},
    {"Type": "QOS", "Settings": {"MaximumOutgoingBandwidthInBytes": 1_000_000}},
    {"Type": "InterfaceParameters", "Settings": {"Mtu": 1300}},
]
NETWORKS: list[dict[str, Any]] = [
    {
        "Name": "vxlan0",
        "Type": "Overlay",
        "Policies": [{"Type": "HostRoute"}],
        "Ipams": [
            {
                "Subnets": [
                    {
                        "IpAddressPrefix": "10.244.1.0/24",
                        "Policies": [{"Type": "VSID", "Settings": {"IsolationId": 4096}}],
                    }
                ]
            }
        ],
    },
    {
        "Name": "cbr0",
        "Type": "L2Bridge",
        "Policies": [
            {"Type": "SourceMacAddress", "Settings": {"SourceMacAddress": "0E-2A-99-00-00-01"}},
            {
                "Type": "NeighborDiscovery",
                "Settings": {
                    "TargetIpPrefix": "10.77.0.0/24",
                    "SenderIpAddress": "10.77.0.1",
                    "SenderMacAddress": "0E-2A-99-00-00-02",
                },
            },
        ],
        "Ipams": [
            {
                "Subnets": [
                    {
                        "IpAddressPrefix": "10.9.1.0/24",
                        "Routes": [{"DestinationPrefix": "0.0.0.0/0", "NextHop": "10.9.1.1"}],
                    }
                ]
            }
        ],
    },
    {"Name": "nat", "Type": "NAT"},
    {"Name": "internal", "Type": "Internal", "Ipams": [{"Subnets": [{"IpAddressPrefix": "10.50.0.0/24"}]}]},
]
REMOTE_ROUTE = {
    "Type": "RemoteSubnetRoute",
    "Settings": {
        "DestinationPrefix": "10.244.2.0/24",
        "IsolationId": 4096,
        "ProviderAddress": "192.168.77.12",
        "DistributedRouterMacAddress": "00-15-5D-00-00-03",
    },
}


class Model:
    """What should be there: endpoints with their network, namespace and address, and who names them."""

    def __init__(self) -> None:
        self.networks: dict[str, str] = {}
        self.spaces: dict[str, None] = {}
        self.endpoints: dict[str, dict[str, Any]] = {}
        self.routes: dict[str, str] = {}
        self.balancers: dict[str, tuple[str, str]] = {}

    def ids(self, kind: Kind) -> set[str]:
        held: dict[Kind, Any] = {
            Kind.NETWORK: self.networks,
            Kind.NAMESPACE: self.spaces,
            Kind.ENDPOINT: self.endpoints,
            Kind.ROUTE: self.routes,
            Kind.LOADBALANCER: self.balancers,
        }
        return set(held[kind])


class Run:
    """One random history."""

    def __init__(self, node: Node, net: NodeNet, seed: int) -> None:
        self.node, self.net, self.model = node, net, Model()
        self.random = random.Random(seed)
        self.pods = [path_of(net.pod()) for _ in range(3)]
        self.refusals = 0

    async def create(self, kind: Kind, body: dict[str, Any]) -> Any:
        return await self.node.service.create(kind, decode_object(kind, body))

    async def refused(self, code: HcnCode, work: Any) -> None:
        with pytest.raises(HcnError) as caught:
            await work
        assert caught.value.code is code, caught.value
        self.refusals += 1

    def pick(self, held: dict[str, Any]) -> str:
        return self.random.choice(list(held)) if held else ""

    async def network(self) -> None:
        body = self.random.choice(NETWORKS)
        if body["Name"] in self.model.networks.values():
            await self.refused(HcnCode.NETWORK_ALREADY_EXISTS, self.create(Kind.NETWORK, body))
        else:
            made = await self.create(Kind.NETWORK, body)
            self.model.networks[made.id] = made.name

    async def endpoint(self) -> None:
        network = self.pick(self.model.networks)
        if not network:
            return
        subnet = self.node.service.view.networks()
        prefix = next(item for item in subnet if item.id == network).subnets[0].ip_address_prefix
        address = prefix.rsplit(".", 1)[0] + f".{self.random.randint(10, 14)}"
        remote = self.random.random() < 0.25
        body: dict[str, Any] = {
            "HostComputeNetwork": network,
            "IpConfigurations": [{"IpAddress": address}],
            "Flags": int(remote),
            "Policies": [] if remote else self.random.sample(POLICIES, self.random.randint(0, 3)),
        }
        owner = next(
            (key for key, value in self.model.endpoints.items() if value["at"] == (network, address)), None
        )
        if owner and (remote or not self.model.endpoints[owner]["remote"]):
            await self.refused(HcnCode.OBJECT_ALREADY_EXISTS, self.create(Kind.ENDPOINT, body))
            return
        made = await self.create(Kind.ENDPOINT, body)
        if owner:
            self.forget(owner)
        self.model.endpoints[made.id] = {"at": (network, address), "remote": remote, "space": ""}

    async def space(self) -> None:
        taken = {item.netns_path for item in self.node.service.view.namespaces()}
        path = self.random.choice(self.pods)
        if path in taken:
            await self.refused(
                HcnCode.OBJECT_ALREADY_EXISTS, self.create(Kind.NAMESPACE, {"NetnsPath": path})
            )
        else:
            self.model.spaces[(await self.create(Kind.NAMESPACE, {"NetnsPath": path})).id] = None

    async def move(self) -> None:
        endpoint, space = self.pick(self.model.endpoints), self.pick(self.model.spaces)
        if not (endpoint and space):
            return
        how = self.random.choice(["Add", "Add", "Remove"])
        settings = {"EndpointId": endpoint}
        change = decode_modify(
            Kind.NAMESPACE, {"ResourceType": "Endpoint", "RequestType": how, "Settings": settings}
        )
        work = self.node.service.modify(Kind.NAMESPACE, space, change)
        entry = self.model.endpoints[endpoint]
        if how == "Remove":
            if entry["space"] != space:
                await self.refused(HcnCode.ENDPOINT_NOT_ATTACHED, work)
                return
            await work
            entry["space"] = ""
        elif entry["remote"]:
            await self.refused(HcnCode.INVALID_REMOTE_ENDPOINT_OPERATION, work)
        elif entry["space"] == space:
            await self.refused(HcnCode.ENDPOINT_NAMESPACE_ALREADY_EXISTS, work)
        elif entry["space"]:
            await self.refused(HcnCode.ENDPOINT_ALREADY_ATTACHED, work)
        elif self.held_twice(space, entry["at"]):
            work.close()
        else:
            await work
            entry["space"] = space

    def held_twice(self, space: str, at: tuple[str, str]) -> bool:
        """A namespace with two interfaces of one subnet is nobody's wish, and the kernel may refuse the routes."""
        return any(
            value["space"] == space and value["at"][0] == at[0] for value in self.model.endpoints.values()
        )

    async def host(self) -> None:
        endpoint = self.pick(self.model.endpoints)
        if not endpoint:
            return
        entry = self.model.endpoints[endpoint]
        request = AttachRequest(system_type=SystemType.HOST)
        if entry["space"] == "host":
            await self.node.service.detach(endpoint, AttachRequest())
            entry["space"] = ""
        elif not entry["remote"] and not entry["space"]:
            await self.node.service.attach(endpoint, request)
            entry["space"] = "host"

    async def policies(self) -> None:
        endpoint = self.pick(self.model.endpoints)
        if not endpoint or self.model.endpoints[endpoint]["remote"]:
            return
        given = self.random.sample(POLICIES, self.random.randint(0, 4))
        how = self.random.choice(["Update", "Reset", "Refresh"])
        change = {"ResourceType": "Policy", "RequestType": how, "Settings": {"Policies": given}}
        await self.node.service.modify(Kind.ENDPOINT, endpoint, decode_modify(Kind.ENDPOINT, change))

    async def far_subnet(self) -> None:
        overlay = next((key for key, name in self.model.networks.items() if name == "vxlan0"), "")
        if not overlay:
            return
        how = self.random.choice(["Update", "Remove"])
        change = {"ResourceType": "Policy", "RequestType": how, "Settings": {"Policies": [REMOTE_ROUTE]}}
        work = self.node.service.modify(Kind.NETWORK, overlay, decode_modify(Kind.NETWORK, change))
        there = any(isinstance(item, RemoteSubnetRoute) for item in self.overlay_policies(overlay))
        if how == "Remove" and not there:
            await self.refused(HcnCode.POLICY_NOT_FOUND, work)
        else:
            await work

    def overlay_policies(self, network_id: str) -> tuple[Policy, ...]:
        network = self.node.service.view.network(network_id)
        return network.policies if network else ()

    async def route(self) -> None:
        endpoint = self.pick({key: 0 for key, value in self.model.endpoints.items() if not value["remote"]})
        if endpoint:
            routes = [{"DestinationPrefix": "10.97.0.0/16", "NeedEncap": True}]
            made = await self.create(Kind.ROUTE, {"HostComputeEndpoints": [endpoint], "Routes": routes})
            self.model.routes[made.id] = endpoint

    async def balancer(self) -> None:
        endpoint = self.pick(self.model.endpoints)
        vip = f"10.96.0.{self.random.randint(1, 200)}"
        if endpoint and vip not in [taken for taken, _ in self.model.balancers.values()]:
            mapping = {"Protocol": 6, "InternalPort": 80, "ExternalPort": 80}
            body = {"HostComputeEndpoints": [endpoint], "FrontendVIPs": [vip], "PortMappings": [mapping]}
            made = await self.create(Kind.LOADBALANCER, body)
            self.model.balancers[made.id] = (vip, made.network_id)

    async def delete(self, kinds: tuple[Kind, ...] = tuple(Kind)) -> None:
        kind = self.random.choice(kinds)
        ids = sorted(self.model.ids(kind))
        if not ids:
            return
        wanted = self.random.choice(ids)
        work = self.node.service.delete(kind, wanted)
        if (kind is Kind.ENDPOINT and wanted in self.model.routes.values()) or (
            kind is Kind.NAMESPACE and any(e["space"] == wanted for e in self.model.endpoints.values())
        ):
            await self.refused(HcnCode.ENTITY_HAS_REFERENCES, work)
        else:
            await work
            self.gone(kind, wanted)

    def gone(self, kind: Kind, wanted: str) -> None:
        if kind is Kind.ENDPOINT:
            self.forget(wanted)
        elif kind is Kind.NETWORK:
            del self.model.networks[wanted]
            theirs = [key for key, (_, network) in self.model.balancers.items() if network == wanted]
            for key in theirs:
                del self.model.balancers[key]
            for key in [key for key, value in self.model.endpoints.items() if value["at"][0] == wanted]:
                self.forget(key)
        elif kind is Kind.NAMESPACE:
            del self.model.spaces[wanted]
        elif kind is Kind.ROUTE:
            del self.model.routes[wanted]
        else:
            del self.model.balancers[wanted]

    def forget(self, endpoint: str) -> None:
        del self.model.endpoints[endpoint]
        self.model.routes = {key: value for key, value in self.model.routes.items() if value != endpoint}

    async def check(self, what: str) -> None:
        view = self.node.service.view
        for kind in (Kind.NETWORK, Kind.ENDPOINT, Kind.ROUTE, Kind.LOADBALANCER):
            assert {value.id for value in view.all(kind)} == self.model.ids(kind), what
        for value in view.endpoints():
            entry = self.model.endpoints[value.id]
            assert (bool(value.namespace_id), value.addresses) == (bool(entry["space"]), (entry["at"][1],)), (
                what
            )
        assert unlike_afresh(self.node) == [], what
        differences = await self.node.auditor.compare()
        assert differences == [], what


def kernel_state(node: Node, net: NodeNet) -> dict[str, Any]:
    """Tables, links, addresses and routes, in a form that can be compared."""
    tables = node.switch.kernel.tables.read()
    links = ip_json("address", "show", netns_name=net.node)
    return {
        "tables": {
            name: msgspec.to_builtins(sorted(map(repr, rows.items()))) for name, rows in tables.items()
        },
        "links": {link["ifname"]: sorted(entry["local"] for entry in link["addr_info"]) for link in links},
        "routes": sorted(
            repr(sorted(route.items()))
            for family in ("-4", "-6")
            for route in ip_json(family, "route", "show", "table", "all", netns_name=net.node)
        ),
    }


@pytest.mark.parametrize("seed", range(1, 7))
async def test_any_history_leaves_the_kernel_as_wanted(node: Node, net: NodeNet, seed: int) -> None:
    before = kernel_state(node, net)
    run = Run(node, net, seed)
    steps = [run.network, run.endpoint, run.endpoint, run.space, run.move, run.move, run.host, run.policies]
    steps += [run.far_subnet, run.route, run.balancer, run.delete, run.policies, run.move]
    for number in range(STEPS):
        step = run.random.choice(steps)
        await step()
        await run.check(f"after step {number}: {step.__name__}")
    assert run.refusals, "the history has refusals in it"
    for kind in (Kind.LOADBALANCER, Kind.ROUTE, Kind.NETWORK, Kind.NAMESPACE):
        for value in list(node.service.view.all(kind)):
            await remove(node, kind, value)
    assert [value for kind in Kind for value in node.service.view.all(kind)] == []
    assert await node.auditor.compare() == []
    await node.switch.sweeper.close()
    assert kernel_state(node, net) == before


async def remove(node: Node, kind: Kind, value: Object) -> None:
    try:
        await node.service.delete(kind, value.id)
    except SamewireError as error:
        raise AssertionError(f"{kind.value} {value.id}: {error}") from error
