"""RemoteSubnetRoutes from flannel's annotations: which, when, and whose are left alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from samewire.errors import Invalid
from samewire.hcn.errors import HcnError
from samewire.hcn.modify import ModifySettingRequest, PolicySettings, RequestType
from samewire.hcn.policies import RemoteSubnetRoute, SDNRoute, select
from samewire.hcn.schema import Kind
from samewire.hcn.service import HnsService
from samewire.hcn.store import Store
from samewire.kube.model import Node, NodeMetadata, NodeSpec
from samewire.overlay import controller
from samewire.overlay.controller import FlannelNodes
from samewire.overlay.flannel import remote_subnets
from tests.support.hcn import FakeSwitch, bridge, overlay
from tests.support.proxy import FakeSource
from tests.support.waiting import until

HERE = "here"
FLANNEL = "flannel.alpha.coreos.com/"


def node(name: str, number: int, *, vni: int = 4096, mac: str = "02:00:00:00:00:0a", **changed: str) -> Node:
    """A Node as flanneld v0.25 annotates it, dual-stack."""
    annotations = {
        FLANNEL + "backend-data": json.dumps({"VNI": vni, "VtepMAC": mac}),
        FLANNEL + "backend-v6-data": json.dumps({"VNI": vni, "VtepMAC": "06:" + mac[3:]}),
        FLANNEL + "backend-type": "vxlan",
        FLANNEL + "kube-subnet-manager": "true",
        FLANNEL + "public-ip": f"192.0.2.{number}",
        FLANNEL + "public-ipv6": f"2001:db8::{number}",
        **{FLANNEL + key.replace("_", "-"): value for key, value in changed.items()},
    }
    cidrs = f"10.244.{number}.0/24", f"fd00:244:0:{number}::/64"
    return Node(
        metadata=NodeMetadata(name=name, annotations=annotations),
        spec=NodeSpec(pod_cidr=cidrs[0], pod_cidrs=cidrs),
    )


def route(prefix: str, provider: str, mac: str, vni: int = 4096) -> RemoteSubnetRoute:
    return RemoteSubnetRoute(
        destination_prefix=prefix,
        isolation_id=vni,
        provider_address=provider,
        distributed_router_mac_address=mac,
    )


def test_both_families_by_their_own_device() -> None:
    assert remote_subnets(node("far", 7)) == (
        route("10.244.7.0/24", "192.0.2.7", "02-00-00-00-00-0A"),
        route("fd00:244:0:7::/64", "2001:db8::7", "06-00-00-00-00-0A"),
    )
    assert [p.destination_prefix for p in remote_subnets(node("far", 7, backend_v6_data="null"))] == [
        "10.244.7.0/24"
    ]
    assert remote_subnets(node("far", 7, backend_type="host-gw")) == ()
    assert remote_subnets(Node(spec=NodeSpec(pod_cidr="10.244.7.0/24"))) == ()


@pytest.mark.parametrize(
    "changed",
    [
        {"backend_data": "{"},
        {"backend_data": '{"VNI": 1}'},
        {"backend_data": '{"x":' * 100_000},
        {"public_ip": "no address"},
    ],
)
def test_what_flannel_would_not_write_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises((Invalid, HcnError)):
        remote_subnets(node("far", 7, **changed))


class Rig:
    """The controller between a source and the HNS service on a switch in memory."""

    def __init__(self, directory: Path) -> None:
        self.store = Store(directory / "db")
        self.switch = FakeSwitch()
        self.service = HnsService(self.store, self.switch)
        self.source = FakeSource()
        self.begin()

    def begin(self) -> None:
        self.nodes = FlannelNodes(self.source, self.service, "cbr0", HERE)
        self.nodes.start()

    def routes(self) -> dict[str, RemoteSubnetRoute]:
        network = self.service.view.network_by_name("cbr0")
        assert network is not None
        return {policy.destination_prefix: policy for policy in select(network.policies, RemoteSubnetRoute)}

    async def prefixes(self, *wanted: str) -> None:
        await until(lambda: set(self.routes()) == set(wanted))

    async def add(self, policy: RemoteSubnetRoute, how: RequestType = RequestType.ADD) -> None:
        network = self.service.view.network_by_name("cbr0")
        assert network is not None
        settings = PolicySettings(policies=(policy,))
        await self.service.modify(
            Kind.NETWORK, network.id, ModifySettingRequest(request_type=how, settings=settings)
        )


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(controller, "LOOK_S", 0.001)
    made = Rig(tmp_path)
    yield made
    await made.nodes.close()
    await made.service.close()
    made.store.close()


FAR = "10.244.7.0/24", "fd00:244:0:7::/64"
NEXT = "10.244.8.0/24", "fd00:244:0:8::/64"


async def test_nodes_join_move_and_leave(rig: Rig) -> None:
    await rig.service.create_network(overlay("cbr0"))
    rig.source.put(node(HERE, 1), node("far", 7), node("windows", 9, vni=4097), quiet=True)
    await asyncio.sleep(0.01)
    assert rig.routes() == {}, "nothing before all nodes are known"
    await rig.source.start()
    await rig.prefixes(*FAR)
    rig.source.put(node("next", 8))
    await rig.prefixes(*FAR, *NEXT)
    rig.source.put(node("far", 7, mac="02:00:00:00:00:0b", public_ip="192.0.2.70"))
    await until(lambda: rig.routes()[FAR[0]] == route(FAR[0], "192.0.2.70", "02-00-00-00-00-0B"))
    rig.source.remove(node("far", 7))
    await rig.prefixes(*NEXT)


async def test_nodes_of_host_gw_join_move_and_leave(rig: Rig) -> None:
    """Routes by way of them, beside those that others have put; an overlay's nodes are none of a bridged network."""
    own = SDNRoute(destination_prefix="10.244.1.7/32", need_encap=True)
    await rig.service.create_network(bridge("cbr0", policies=(own,)))

    def ways() -> dict[str, str]:
        network = rig.service.view.network_by_name("cbr0")
        assert network is not None
        return {way.destination_prefix: way.next_hop for way in select(network.policies, SDNRoute)}

    rig.source.put(
        node("far", 7, backend_type="host-gw", backend_data="null"), node("tunnelled", 8), quiet=True
    )
    await rig.source.start()
    await until(lambda: ways() == {"10.244.1.7/32": "", FAR[0]: "192.0.2.7", FAR[1]: "2001:db8::7"})
    rig.source.put(node("far", 7, backend_type="host-gw", public_ip="192.0.2.70"))
    await until(lambda: ways() == {"10.244.1.7/32": "", FAR[0]: "192.0.2.70", FAR[1]: "2001:db8::7"})
    rig.source.remove(node("far", 7))
    await until(lambda: ways() == {"10.244.1.7/32": ""})


async def test_the_network_comes_later_and_again(rig: Rig) -> None:
    rig.source.put(node("far", 7), quiet=True)
    await rig.source.start()
    made = await rig.service.create_network(overlay("cbr0"))
    await rig.prefixes(*FAR)
    await rig.service.delete(Kind.NETWORK, made.id)
    await rig.service.create_network(overlay("cbr0"))
    await rig.prefixes(*FAR)


async def test_what_others_have_put_stays_and_what_they_took_comes_back(rig: Rig) -> None:
    foreign = route("10.99.0.0/16", "192.0.2.99", "02-00-00-00-00-99")
    await rig.service.create_network(overlay("cbr0", policies=(foreign,)))
    rig.source.put(node("far", 7), quiet=True)
    await rig.source.start()
    await rig.prefixes(*FAR, "10.99.0.0/16")
    await rig.add(rig.routes()[FAR[0]], RequestType.REMOVE)
    await rig.prefixes(*FAR, "10.99.0.0/16")
    rig.source.remove(node("far", 7))
    await rig.prefixes("10.99.0.0/16")


async def test_a_node_that_left_while_nobody_looked(rig: Rig) -> None:
    await rig.service.create_network(
        overlay("cbr0", policies=(route(FAR[0], "192.0.2.7", "02-00-00-00-00-0A"),))
    )
    rig.source.put(node("far", 7), node("next", 8), quiet=True)
    await rig.source.start()
    await rig.prefixes(*FAR, *NEXT)
    await rig.nodes.close()
    rig.source.remove(node("far", 7))
    rig.begin()
    await rig.source.start()
    await rig.prefixes(*NEXT)


async def test_a_node_that_has_not_been_read_since_the_start_is_not_gone(rig: Rig) -> None:
    await rig.service.create_network(overlay("cbr0"))
    rig.source.put(node("far", 7), quiet=True)
    await rig.source.start()
    await rig.prefixes(*FAR)
    await rig.nodes.close()
    rig.source.remove(node("far", 7))
    rig.source.unread = {"Node": (("", "far"),)}
    rig.begin()
    await rig.source.start()
    rig.source.put(node("next", 8))
    await rig.prefixes(*FAR, *NEXT)
    rig.source.unread = {}
    await rig.prefixes(*NEXT)


async def test_what_cannot_be_read_or_written_changes_nothing_and_stops_nobody(rig: Rig) -> None:
    await rig.service.create_network(overlay("cbr0"))
    rig.source.put(node("far", 7), quiet=True)
    await rig.source.start()
    await rig.prefixes(*FAR)
    rig.source.put(node("far", 7, backend_data="{"))
    rig.switch.refuse_next()
    rig.source.put(node("next", 8))
    await rig.prefixes(*FAR, *NEXT)
    rig.source.remove(node("far", 7))
    await rig.prefixes(*NEXT)


async def test_a_prefix_of_its_own_and_other_networks_are_left_alone(rig: Rig) -> None:
    await rig.service.create_network(overlay("cbr0"))
    rig.source.put(node("twin", 1), node("far", 7), quiet=True)
    await rig.source.start()
    await rig.prefixes(*FAR, "fd00:244:0:1::/64")
    await rig.nodes.close()
    await rig.service.delete(Kind.NETWORK, next(iter(rig.service.view.networks())).id)
    await rig.service.create_network(bridge("cbr0"))
    rig.begin()
    await rig.source.start()
    await asyncio.sleep(0.01)
    assert rig.routes() == {}


@pytest.mark.parametrize("prefix", ["10.244.1.128/25", "10.244.0.0/16", "0.0.0.0/0"])
async def test_nobody_leads_its_own_pods_away(rig: Rig, prefix: str) -> None:
    await rig.service.create_network(overlay("cbr0"))
    rig.source.put(given(node("twin", 9), prefix), node("far", 7), quiet=True)
    await rig.source.start()
    await rig.prefixes(*FAR)


async def test_of_two_nodes_with_one_prefix_the_first_stays(rig: Rig) -> None:
    await rig.service.create_network(overlay("cbr0"))
    first = node("far", 7)
    rig.source.put(first, given(node("twin", 9), FAR[0]), quiet=True)
    await rig.source.start()
    await rig.prefixes(*FAR)
    for again in (first, given(node("twin", 9, public_ip="192.0.2.90"), FAR[0])):
        rig.source.put(again)
        await until(lambda: rig.nodes._done is not None)
        assert rig.routes()[FAR[0]].provider_address == "192.0.2.7"
    rig.source.remove(first)
    await until(lambda: rig.routes()[FAR[0]].provider_address == "192.0.2.90")


async def test_a_prefix_is_the_same_however_it_is_written(rig: Rig) -> None:
    await rig.service.create_network(overlay("cbr0"))
    rig.source.put(given(node("far", 7), "10.244.7.1/24", "FD00:244:0:7:0::/64"), quiet=True)
    await rig.source.start()
    await rig.prefixes(*FAR)
    rig.source.put(given(node("far", 7, backend_data="{"), "10.244.7.1/24", "FD00:244:0:7:0::/64"))
    await until(lambda: rig.nodes._done is not None)
    assert rig.routes().keys() == set(FAR), "what cannot be read changes nothing"


def given(value: Node, *prefixes: str) -> Node:
    """The node with other pod CIDRs."""
    return replace(value, spec=NodeSpec(pod_cidr=prefixes[0], pod_cidrs=prefixes))
