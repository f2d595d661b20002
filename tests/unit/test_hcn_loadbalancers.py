"""Load balancers at the HNS level: what is refused, how they are modified, batches of a proxy."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace

from samewire.errors import KernelError, SamewireError
from samewire.hcn.codec import decode_modify, decode_object, encode
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.loadbalancers import (
    BackendFlags,
    DistributionType,
    LoadBalancer,
    LoadBalancerBackend,
    LoadBalancerPortMapping,
    NoEndpointsAction,
    PortMappingFlags,
)
from samewire.hcn.modify import ModifySettingRequest, RequestType
from samewire.hcn.policies import HostRoute
from samewire.hcn.query import find, parse_query
from samewire.hcn.schema import Endpoint, EndpointFlags, IpamType, Kind, Network, NetworkFlags
from samewire.hcn.service import HnsService
from samewire.hcn.store import Store
from samewire.hcn.switch import Change, StoreView
from tests.support.hcn import FakeSwitch, at, bridge, overlay
from tests.support.waiting import until

VIP = "10.96.0.10"
OWNER = "proxy"


@pytest_asyncio.fixture
async def service(tmp_path: Path, switch: FakeSwitch) -> AsyncIterator[HnsService]:
    store = Store(tmp_path / "hns.db")
    yield HnsService(store, switch)
    store.close()


@pytest_asyncio.fixture
async def network(service: HnsService) -> Network:
    return await service.create_network(overlay())


async def pod(service: HnsService, network: Network, address: str = "") -> Endpoint:
    return await service.create_endpoint(
        Endpoint(network_id=network.id, ip_configurations=at(address) if address else ())
    )


def mapping(port: int = 80, **fields: Any) -> LoadBalancerPortMapping:
    return LoadBalancerPortMapping(**{"protocol": 6, "internal_port": 8080, "external_port": port, **fields})


def balancer(**fields: Any) -> LoadBalancer:
    return LoadBalancer(**{"frontend_vips": (VIP,), "port_mappings": (mapping(),), **fields})


def guid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012X}"


def backends(*addresses: str) -> tuple[LoadBalancerBackend, ...]:
    return tuple(LoadBalancerBackend(ip_address=address, port=8080) for address in addresses)


async def refused(service: HnsService, value: LoadBalancer) -> HcnCode:
    before = service.view.load_balancers()
    with pytest.raises(HcnError) as caught:
        await service.create_load_balancer(value)
    assert service.view.load_balancers() == before
    return caught.value.code


async def test_the_network_is_that_of_the_endpoints(service: HnsService, network: Network) -> None:
    endpoint = await pod(service, network)
    made = await service.create_load_balancer(balancer(endpoint_ids=(endpoint.id.lower(),)))
    assert (made.network_id, made.endpoint_ids) == (network.id, (endpoint.id,))
    assert made.id == made.id.upper()
    assert service.get(Kind.LOADBALANCER, made.id.lower()) == made


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"endpoint_ids": (guid(1),)}, HcnCode.ENDPOINT_NOT_FOUND),
        ({"network_id": guid(1)}, HcnCode.NETWORK_NOT_FOUND),
        ({"endpoint_ids": ("pod",)}, HcnCode.GUID_CONVERSION_FAILURE),
        ({"frontend_vips": (VIP, "fd00::1")}, HcnCode.INVALID_IP),
        ({"frontend_vips": ("10.96.0.300",)}, HcnCode.INVALID_IP),
        ({"frontend_vips": ("224.0.0.1",)}, HcnCode.INVALID_IP),
        ({"source_vip": "fd00::9"}, HcnCode.INVALID_IP),
        ({"flags": 2}, HcnCode.INVALID_IP),
        ({"backends": backends("fd00::5")}, HcnCode.INVALID_IP),
        ({"port_mappings": ()}, HcnCode.INVALID_JSON),
        ({"port_mappings": (mapping(), mapping())}, HcnCode.PORT_ALREADY_EXISTS),
        ({"port_mappings": (mapping(protocol=1),)}, HcnCode.MAPPING_NOT_SUPPORTED),
        ({"port_mappings": (mapping(0),)}, HcnCode.E_INVALIDARG),
        ({"local_endpoint_ids": (guid(2),)}, HcnCode.INVALID_JSON_REFERENCE),
        ({"source_ranges": ("10.0.0.0/33",)}, HcnCode.INVALID_PREFIX),
        (
            {"backends": (LoadBalancerBackend(ip_address="10.244.2.2", mac_address="0E-2A-00-00-00-01"),)},
            HcnCode.E_INVALIDARG,
        ),
    ],
)
async def test_what_is_refused(service: HnsService, fields: dict[str, Any], code: HcnCode) -> None:
    assert await refused(service, balancer(**fields)) is code


async def test_internal_port_zero(service: HnsService, network: Network) -> None:
    endpoint = await pod(service, network)
    zero = (mapping(internal_port=0),)
    assert await refused(service, balancer(endpoint_ids=(endpoint.id,), port_mappings=zero)) == 0x803B002D
    without = (LoadBalancerBackend(ip_address="10.244.1.9"),)
    assert await refused(service, balancer(backends=without, port_mappings=zero)) == 0x803B002D
    assert await service.create_load_balancer(balancer(backends=backends("10.244.1.9"), port_mappings=zero))


async def test_endpoints_of_one_network_and_family(service: HnsService, network: Network) -> None:
    other = await service.create_network(bridge())
    here, there = await pod(service, network), await pod(service, other)
    mixed = balancer(endpoint_ids=(here.id, there.id))
    assert await refused(service, mixed) is HcnCode.INVALID_JSON_REFERENCE
    six = balancer(endpoint_ids=(here.id,), frontend_vips=("fd00:96::1",))
    assert await refused(service, six) is HcnCode.INVALID_IP


async def test_a_vip_is_no_pods_address(service: HnsService, network: Network) -> None:
    endpoint = await pod(service, network, "10.244.1.7")
    code = await refused(service, balancer(frontend_vips=endpoint.addresses))
    assert code is HcnCode.ADDR_INVALID_OR_RESERVED
    # kube-proxy on Windows makes a remote endpoint of every cluster IP.
    await service.create_endpoint(
        Endpoint(network_id=network.id, ip_configurations=at(VIP), flags=EndpointFlags.REMOTE_ENDPOINT)
    )
    assert await service.create_load_balancer(balancer(network_id=network.id))


async def test_a_vip_and_port_is_there_once(service: HnsService) -> None:
    await service.create_load_balancer(balancer())
    assert await refused(service, balancer()) is HcnCode.PORT_ALREADY_EXISTS
    others = (
        balancer(port_mappings=(mapping(81),)),
        balancer(port_mappings=(mapping(protocol=17),)),
        balancer(frontend_vips=("10.96.0.11",)),
        balancer(frontend_vips=()),
        balancer(frontend_vips=(), flags=2),
    )
    for other in others:
        await service.create_load_balancer(other)
    assert await refused(service, balancer(frontend_vips=())) is HcnCode.PORT_ALREADY_EXISTS


async def test_who_has_a_vip_and_port_is_named(service: HnsService) -> None:
    first = await service.create_load_balancer(balancer(service_name="shop/web:http"))
    with pytest.raises(HcnError) as caught:
        await service.create_load_balancer(balancer())
    assert str(caught.value).endswith(f"is that of load balancer {first.id} (shop/web:http) at {VIP}")


async def test_tenants_may_use_the_same_vips(service: HnsService) -> None:
    one = await service.create_network(overlay("one"))
    two = await service.create_network(overlay("two", "10.244.2.0/24", 4097))
    await service.create_load_balancer(balancer(network_id=one.id))
    await service.create_load_balancer(balancer(network_id=two.id))
    outside = mapping(81, flags=16)
    await service.create_load_balancer(balancer(network_id=one.id, port_mappings=(outside,)))
    # From outside there is only one of it.
    code = await refused(service, balancer(network_id=two.id, port_mappings=(outside,)))
    assert code is HcnCode.PORT_ALREADY_EXISTS


async def test_networks_of_the_node_share_its_view(service: HnsService) -> None:
    one = await service.create_network(overlay("one", policies=(HostRoute(),)))
    two = await service.create_network(overlay("two", "10.244.2.0/24", 4097, policies=(HostRoute(),)))
    await service.create_load_balancer(balancer(network_id=one.id))
    assert await refused(service, balancer(network_id=two.id)) is HcnCode.PORT_ALREADY_EXISTS
    await service.create_load_balancer(balancer())  # for all networks; gives way in that one


async def test_a_node_port_by_one_empty_vip(service: HnsService) -> None:
    made = await service.create_load_balancer(balancer(frontend_vips=("",)))
    assert made.frontend_vips == ()


async def test_backends_are_there_once(service: HnsService) -> None:
    twice = backends("10.244.1.5", "10.244.1.5", "10.244.1.6")
    made = await service.create_load_balancer(balancer(backends=twice))
    assert made.backends == backends("10.244.1.5", "10.244.1.6")


async def test_json_both_ways(service: HnsService) -> None:
    body = {
        "Name": "web",
        "FrontendVIPs": [VIP],
        "SourceVIP": "10.244.1.2",
        "PortMappings": [
            {
                "Protocol": "TCP",
                "InternalPort": "8080",
                "ExternalPort": 80,
                "DistributionType": "SourceIP",
                "Flags": 16,
            }
        ],
        "Flags": "EnableDirectServerReturn",
        "Backends": [{"IpAddress": "10.244.2.5", "Port": 8081, "Flags": "Draining"}],
        "AffinityTimeout": 600,
        "SourceRanges": ["192.0.2.7/24"],
        "NoEndpointsAction": "drop",
        "ExternalTrafficPolicyLocal": True,
        "ServiceName": "default/web:http",
        "Novelty": {"a": 1},
    }
    value = decode_object(Kind.LOADBALANCER, body)
    assert isinstance(value, LoadBalancer)
    made = await service.create_load_balancer(value)
    assert made.port_mappings[0].distribution_type is DistributionType.SOURCE_IP
    assert made.no_endpoints_action is NoEndpointsAction.DROP
    assert made.backends[0].flags == BackendFlags.DRAINING
    shown = encode(made)
    assert shown["PortMappings"] == [
        {"Protocol": 6, "InternalPort": 8080, "ExternalPort": 80, "DistributionType": 2, "Flags": 16}
    ]
    assert (shown["Flags"], shown["SourceRanges"], shown["Novelty"]) == (1, ["192.0.2.0/24"], {"a": 1})
    assert decode_object(Kind.LOADBALANCER, shown) == made


async def test_lists_and_filters(service: HnsService, network: Network) -> None:
    made = [
        await service.create_load_balancer(
            balancer(name=f"lb{i}", network_id=network.id, port_mappings=(mapping(i),))
        )
        for i in (1, 2)
    ]
    found = find(
        service.view, Kind.LOADBALANCER, parse_query('{"VirtualNetworkName": "vxlan0", "Name": "lb2"}')
    )
    assert found == made[1:]


async def test_a_whole_object_replaces_the_present_one(service: HnsService, network: Network) -> None:
    one, two = await pod(service, network), await pod(service, network)
    made = await service.create_load_balancer(balancer(endpoint_ids=(one.id,)))
    sent = encode(made) | {"HostComputeEndpoints": [two.id]}
    after = await service.modify(Kind.LOADBALANCER, made.id, decode_modify(Kind.LOADBALANCER, sent))
    assert after == replace(made, endpoint_ids=(two.id,))
    del sent["ID"]
    assert await service.modify(Kind.LOADBALANCER, made.id, decode_modify(Kind.LOADBALANCER, sent)) == after


@pytest.mark.parametrize(
    ("request_type", "resource", "settings", "expected"),
    [
        ("Add", "LoadBalancer", lambda ids: {"HostComputeEndpoints": [ids[1]]}, [0, 1]),
        ("Update", "LoadBalancer", lambda ids: {"HostComputeEndpoints": [ids[1].lower()]}, [1]),
        ("Remove", "Endpoint", lambda ids: {"EndpointId": ids[0]}, []),
        ("Add", "Endpoint", lambda ids: {"EndpointId": ids[1]}, [0, 1]),
    ],
)
async def test_requests_for_parts(
    service: HnsService,
    network: Network,
    request_type: str,
    resource: str,
    settings: Callable[[list[str]], Any],
    expected: list[int],
) -> None:
    ids = [(await pod(service, network)).id for _ in range(2)]
    made = await service.create_load_balancer(
        balancer(endpoint_ids=(ids[0],), draining_endpoint_ids=(ids[0],))
    )
    body = {"ResourceType": resource, "RequestType": request_type, "Settings": settings(ids)}
    after = await service.modify(Kind.LOADBALANCER, made.id, decode_modify(Kind.LOADBALANCER, body))
    assert isinstance(after, LoadBalancer)
    assert after.endpoint_ids == tuple(ids[i] for i in expected)
    assert after.draining_endpoint_ids == ((ids[0],) if 0 in expected else ())


async def test_parts_go_however_they_are_spelled(service: HnsService) -> None:
    backends = tuple(LoadBalancerBackend(ip_address=f"fd01::{n}", port=80, flags=1) for n in (1, 2))
    made = await service.create_load_balancer(
        balancer(frontend_vips=("fd00::a", "fd00::b"), backends=backends)
    )
    gone = {"FrontendVIPs": ["FD00:0::B"], "Backends": [{"IpAddress": "FD01::2", "Port": 80}]}
    body = {"ResourceType": "LoadBalancer", "RequestType": "Remove", "Settings": gone}
    after = await service.modify(Kind.LOADBALANCER, made.id, decode_modify(Kind.LOADBALANCER, body))
    assert after == replace(made, frontend_vips=("fd00::a",), backends=backends[:1])


async def test_members_that_stay_and_those_that_come(service: HnsService, network: Network) -> None:
    """Those that a load balancer has are possible, unless it is to be of another network or family."""
    other = await service.create_network(bridge())
    here, there = await pod(service, network), await pod(service, other)
    made = await service.create_load_balancer(balancer(endpoint_ids=(here.id,)))
    batch = replace(made, owner="proxy", frontend_vips=("10.96.0.11",), id=guid(1))
    assert await service.change_load_balancers("proxy", [batch]) == {}
    for after, code, path in (
        (replace(made, endpoint_ids=(here.id, there.id)), HcnCode.INVALID_JSON_REFERENCE, "[1]"),
        (replace(made, endpoint_ids=(here.id, guid(9))), HcnCode.ENDPOINT_NOT_FOUND, guid(9)),
        (replace(made, network_id=other.id), HcnCode.INVALID_JSON_REFERENCE, "[0]"),
        (replace(made, frontend_vips=("fd00:96::1",)), HcnCode.INVALID_IP, "[0]"),
    ):
        request = ModifySettingRequest(request_type=RequestType.UPDATE, settings=after)
        with pytest.raises(HcnError, match=re.escape(path)) as caught:
            await service.modify(Kind.LOADBALANCER, made.id, request)
        assert caught.value.code is code
        in_batch = replace(after, id=batch.id, owner="proxy")
        (error,) = (await service.change_load_balancers("proxy", [in_batch])).values()
        assert isinstance(error, HcnError)
        assert error.code is code
    assert set(service.view.load_balancers()) == {made, batch}


async def test_other_requests_are_refused(service: HnsService) -> None:
    made = await service.create_load_balancer(balancer())
    body = {"ResourceType": "LoadBalancer", "RequestType": "Reset", "Settings": {}}
    with pytest.raises(HcnError) as caught:
        await service.modify(Kind.LOADBALANCER, made.id, decode_modify(Kind.LOADBALANCER, body))
    assert caught.value.code is HcnCode.REQUEST_UNSUPPORTED


async def test_a_deleted_endpoint_is_no_member(service: HnsService, network: Network) -> None:
    one, two = await pod(service, network), await pod(service, network)
    ids = (one.id, two.id)
    made = await service.create_load_balancer(
        balancer(endpoint_ids=ids, local_endpoint_ids=ids, draining_endpoint_ids=(one.id,))
    )
    await service.delete(Kind.ENDPOINT, one.id)
    assert service.view.load_balancers() == [
        replace(made, endpoint_ids=(two.id,), local_endpoint_ids=(two.id,), draining_endpoint_ids=())
    ]


async def test_who_takes_over_the_address_takes_over_the_membership(
    service: HnsService, network: Network
) -> None:
    """The load balancer's writer meant the address, and does not hear of it."""
    two = await pod(service, network)
    far = await service.create_endpoint(
        Endpoint(
            network_id=network.id, flags=EndpointFlags.REMOTE_ENDPOINT, ip_configurations=at("10.244.1.77")
        )
    )
    ids = (far.id, two.id)
    made = await service.create_load_balancer(balancer(endpoint_ids=ids, draining_endpoint_ids=(far.id,)))
    near = await service.create_endpoint(Endpoint(network_id=network.id, ip_configurations=at("10.244.1.77")))
    assert service.view.endpoint(far.id) is None
    after = replace(made, endpoint_ids=(near.id, two.id), draining_endpoint_ids=(near.id,))
    assert service.view.load_balancers() == [after]
    assert service.view.load_balancers_of_endpoint(near.id) == [after]


async def test_who_has_another_address_takes_over_nothing(service: HnsService, network: Network) -> None:
    """A remote endpoint of both IP versions gives way; the load balancer means the one that is not taken over."""
    both = at("10.244.1.77", "fd00:244:1::77")
    far = await service.create_endpoint(
        Endpoint(network_id=network.id, flags=EndpointFlags.REMOTE_ENDPOINT, ip_configurations=both)
    )
    made = await service.create_load_balancer(
        balancer(endpoint_ids=(far.id,), frontend_vips=("fd00:96::10",))
    )
    near = await service.create_endpoint(Endpoint(network_id=network.id, ip_configurations=both[:1]))
    assert not service.view.load_balancers_of_endpoint(near.id)
    assert service.view.load_balancers() == [replace(made, endpoint_ids=())]


async def test_load_balancers_go_with_their_network(service: HnsService, network: Network) -> None:
    endpoint = await pod(service, network)
    await service.create_load_balancer(balancer(endpoint_ids=(endpoint.id,)))
    kept = await service.create_load_balancer(balancer(port_mappings=(mapping(81),)))
    await service.delete(Kind.NETWORK, network.id)
    assert service.view.load_balancers() == [kept]


async def test_a_source_vip_is_given_to_no_endpoint(service: HnsService) -> None:
    network = await service.create_network(overlay(prefix="10.244.1.0/29"))
    await service.create_load_balancer(balancer(network_id=network.id, source_vip="10.244.1.3"))
    made = [await pod(service, network) for _ in range(4)]
    assert {item.addresses[0] for item in made} == {f"10.244.1.{i}" for i in (2, 4, 5, 6)}


async def test_load_balancers_survive_a_restart(tmp_path: Path) -> None:
    with_store = Store(tmp_path / "hns.db")
    service = HnsService(with_store, FakeSwitch())
    network = await service.create_network(overlay())
    endpoint = await pod(service, network)
    made = await service.create_load_balancer(
        balancer(endpoint_ids=(endpoint.id,), backends=backends("10.244.2.9"), affinity_timeout=5)
    )
    with_store.close()
    store = Store(tmp_path / "hns.db")
    assert store.state.load_balancers() == [made]
    assert store.state.load_balancers_of_endpoint(endpoint.id) == [made]
    assert store.state.load_balancers_with_backend("10.244.2.9") == [made]
    store.close()


def numbered(count: int, **fields: Any) -> list[LoadBalancer]:
    return [
        balancer(id=guid(i), frontend_vips=(f"10.96.{i >> 8}.{i & 255}",), **fields)
        for i in range(1, count + 1)
    ]


async def test_a_batch(service: HnsService, switch: FakeSwitch) -> None:
    values = numbered(600, backends=backends("10.244.2.9"))
    assert await service.change_load_balancers(OWNER, values) == {}
    assert [value.id for value in service.view.load_balancers()] == [value.id for value in values]
    assert {value.owner for value in service.view.load_balancers()} == {OWNER}
    calls = len(switch.calls)
    assert 1 < calls < 10
    assert await service.change_load_balancers(OWNER, values) == {}
    assert len(switch.calls) == calls
    changed = replace(values[3], backends=())
    assert await service.change_load_balancers(OWNER, [changed], [values[0].id, guid(9999)]) == {}
    assert sum(len(call) for call in switch.calls[calls:]) == 2
    assert service.view.load_balancer(values[0].id) is None
    assert service.view.load_balancer(changed.id) == replace(changed, owner=OWNER)


async def test_numbers_that_fit_nowhere_stop_no_other(service: HnsService) -> None:
    """A caller in this process has not come by the decoder."""
    good, *bad = numbered(6, backends=backends("10.244.2.9"))
    mapping = good.port_mappings[0]
    bad[0] = replace(bad[0], port_mappings=(replace(mapping, external_port=70000),))
    bad[1] = replace(bad[1], port_mappings=(replace(mapping, external_port=-1),))
    bad[2] = replace(bad[2], port_mappings=(replace(mapping, internal_port=70000),))
    bad[3] = replace(bad[3], backends=(LoadBalancerBackend(ip_address="10.244.2.9", port=70000),))
    bad[4] = replace(bad[4], affinity_timeout=-5)
    failed = await service.change_load_balancers(OWNER, [*bad, good])
    assert set(failed) == {value.id for value in bad}


async def test_one_bad_object_stops_no_other(service: HnsService, switch: FakeSwitch) -> None:
    values = numbered(5)
    values[1] = replace(values[1], port_mappings=())
    values[3] = replace(values[3], frontend_vips=values[0].frontend_vips)
    failures = await service.change_load_balancers(OWNER, values)
    assert {key: error.code for key, error in failures.items() if isinstance(error, HcnError)} == {
        values[1].id: HcnCode.INVALID_JSON,
        values[3].id: HcnCode.PORT_ALREADY_EXISTS,
    }
    assert [value.id for value in service.view.load_balancers()] == [values[i].id for i in (0, 2, 4)]


async def test_what_the_kernel_refuses_is_found_out(
    service: HnsService, switch: FakeSwitch, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = numbered(5)
    bad = values[2].id
    apply = switch.apply

    async def picky(changes: Any, view: Any) -> None:
        if any(change.id == bad for change in changes):
            raise KernelError("update sw_services", 7)
        await apply(changes, view)

    monkeypatch.setattr(switch, "apply", picky)
    failures = await service.change_load_balancers(OWNER, values)
    assert list(failures) == [bad]
    assert isinstance(failures[bad], KernelError)
    assert len(service.view.load_balancers()) == 4


def many(count: int = 200) -> list[LoadBalancer]:
    return [
        balancer(id=guid(number), owner=OWNER, frontend_vips=(f"10.96.1.{number}",))
        for number in range(1, count + 1)
    ]


async def test_a_batch_that_cannot_be_written_is_taken_back(
    service: HnsService, switch: FakeSwitch, tmp_path: Path
) -> None:
    database = service._store._db
    first, *rest = many()
    assert await service.change_load_balancers(OWNER, [first]) == {}
    database.execute(
        "CREATE TEMP TRIGGER full BEFORE INSERT ON main.objects BEGIN SELECT RAISE(ABORT, 'disk full'); END"
    )
    failures = await service.change_load_balancers(OWNER, [replace(first, service_name="a/b"), *rest])
    assert failures.keys() == {value.id for value in (first, *rest)}
    assert all("disk full" in str(error) for error in failures.values())
    assert service.view.load_balancers() == list(switch.objects.values()) == [first]
    assert [service.view.load_balancers_at(("frontend", 6, 80, v.frontend_vips[0])) for v in rest[:2]] == [
        [],
        [],
    ]
    database.execute("DROP TRIGGER full")
    assert await service.change_load_balancers(OWNER, rest) == {}
    service._store.close()
    again = Store(tmp_path / "hns.db")
    try:
        assert again.state.load_balancers() == [first, *rest]
    finally:
        again.close()


async def test_others_have_their_turn_while_a_batch_is_written(
    service: HnsService, switch: FakeSwitch
) -> None:
    values = many()
    with service._store._alone:
        work = asyncio.create_task(service.change_load_balancers(OWNER, values))
        await until(lambda: switch.calls)
        for _ in range(5):
            await asyncio.sleep(0)
        assert service.view.load_balancers() == values
        assert not work.done()
        other = asyncio.create_task(service.create_network(overlay("other")))
        await asyncio.sleep(0)
        assert len(switch.calls) == 1
    assert await work == {}
    assert await other in service.view.networks()


async def test_a_batch_waits_for_no_thread_of_others(service: HnsService) -> None:
    busy, loop = threading.Event(), asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    other = loop.run_in_executor(None, busy.wait, 30)
    try:
        async with asyncio.timeout(20):
            assert await service.change_load_balancers(OWNER, many()) == {}
    finally:
        busy.set()
        await other


async def test_a_batch_leaves_strangers_alone(service: HnsService) -> None:
    mine = await service.create_load_balancer(balancer(owner="somebody"))
    failures = await service.change_load_balancers(OWNER, [replace(mine, backends=())], [])
    assert isinstance(failures[mine.id], SamewireError)
    assert isinstance((await service.change_load_balancers(OWNER, [], [mine.id]))[mine.id], SamewireError)
    assert service.view.load_balancers() == [mine]


@pytest.mark.parametrize("count", [4, 700])
async def test_vips_may_change_hands_within_a_batch(service: HnsService, count: int) -> None:
    values = numbered(count)
    await service.change_load_balancers(OWNER, values)
    turned = [
        replace(value, frontend_vips=other.frontend_vips)
        for value, other in zip(values, [*values[1:], values[0]], strict=True)
    ]
    assert await service.change_load_balancers(OWNER, turned) == {}
    assert {value.id: value.frontend_vips for value in service.view.load_balancers()} == {
        value.id: value.frontend_vips for value in turned
    }


async def test_who_keeps_a_vip_keeps_others_from_it(service: HnsService) -> None:
    one, two = numbered(2)
    await service.change_load_balancers(OWNER, [one, two])
    leaves = replace(one, frontend_vips=("10.96.9.9", "fd00::1"))  # wrong, so it stays where it is
    failures = await service.change_load_balancers(
        OWNER, [leaves, replace(two, frontend_vips=one.frontend_vips)]
    )
    assert set(failures) == {one.id, two.id}
    assert [value.frontend_vips for value in service.view.load_balancers()] == [
        one.frontend_vips,
        two.frontend_vips,
    ]


@pytest.mark.parametrize("newcomer_first", [True, False])
@pytest.mark.parametrize("more", [(), (mapping(external_port=81),)], ids=["as it is", "and another port"])
async def test_who_has_a_vip_can_be_changed_beside_one_that_wants_it(
    service: HnsService, newcomer_first: bool, more: tuple[LoadBalancerPortMapping, ...]
) -> None:
    """Its members come and go in one batch with the other's attempts, which are repeated for ever."""
    (one,) = numbered(1)
    await service.change_load_balancers(OWNER, [one])
    newcomer = replace(one, id=guid(99))
    changed = replace(one, backends=backends("10.244.9.9"), port_mappings=(*one.port_mappings, *more))
    batch = [newcomer, changed] if newcomer_first else [changed, newcomer]
    assert set(await service.change_load_balancers(OWNER, batch)) == {newcomer.id}
    assert [value.backends for value in service.view.load_balancers()] == [changed.backends]


async def test_an_object_that_a_long_batch_has_twice_stops_no_other(service: HnsService) -> None:
    one, two, *rest = numbered(700)
    await service.change_load_balancers(OWNER, [one])
    twice = [replace(two, frontend_vips=one.frontend_vips)] * 2
    assert set(await service.change_load_balancers(OWNER, [*twice, *rest])) == {two.id}
    assert len(service.view.load_balancers()) == 1 + len(rest)


async def test_of_two_that_have_a_vip_and_cannot_both_be_changed_one_is(service: HnsService) -> None:
    """Each beside the other's present state would do; both refused would hold each other up for ever."""
    network = await service.create_network(overlay())
    one = balancer(id=guid(1))
    other = balancer(id=guid(2), network_id=network.id)
    assert not await service.change_load_balancers(OWNER, [one, other])
    outside = (mapping(flags=PortMappingFlags.VIP_EXTERNAL_IP),)
    changed = [replace(value, port_mappings=outside) for value in (one, other)]
    assert set(await service.change_load_balancers(OWNER, changed)) == {other.id}


async def test_a_network_without_the_node_gets_a_source_vip(service: HnsService, tmp_path: Path) -> None:
    network = await service.create_network(overlay())
    inside = await service.create_load_balancer(balancer(network_id=network.id))
    assert (inside.source_vip, service.view.endpoints()) == ("", [])
    outside = [
        await service.create_load_balancer(
            balancer(network_id=network.id, port_mappings=(mapping(port, flags=16),))
        )
        for port in (81, 82)
    ]
    (endpoint,) = service.view.endpoints()
    assert {value.source_vip for value in outside} == set(endpoint.addresses)
    assert endpoint.owner == "samewire:source-vip"
    # What a client read and sends again is what is there.
    sent = encode(outside[0])
    assert (
        await service.modify(Kind.LOADBALANCER, outside[0].id, decode_modify(Kind.LOADBALANCER, sent))
        == outside[0]
    )
    del sent["SourceVIP"]
    assert (
        await service.modify(Kind.LOADBALANCER, outside[0].id, decode_modify(Kind.LOADBALANCER, sent))
        == outside[0]
    )
    await service.delete(Kind.LOADBALANCER, outside[0].id)
    assert service.view.endpoints() == [endpoint]
    whole = decode_modify(
        Kind.LOADBALANCER, encode(balancer(network_id=network.id, port_mappings=(mapping(82),)))
    )
    await service.modify(Kind.LOADBALANCER, outside[1].id, whole)
    assert service.view.endpoints() == []


async def test_an_endpoint_of_the_source_vips_owner_may_have_no_address(service: HnsService) -> None:
    """Whoever may call may name that owner."""
    wanted = overlay()
    ipams = tuple(replace(ipam, type=IpamType.DHCP) for ipam in wanted.ipams)
    network = await service.create_network(replace(wanted, ipams=ipams))
    named = await service.create_endpoint(Endpoint(network_id=network.id, owner="samewire:source-vip"))
    assert named.addresses == ()
    value = balancer(network_id=network.id, port_mappings=(mapping(81, flags=16),))
    made = await service.create_load_balancer(value)
    assert made.source_vip


async def test_a_source_vip_stays_with_a_load_balancer_that_cannot_go(
    service: HnsService, switch: FakeSwitch, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = await service.create_network(overlay())
    value = balancer(id=guid(1), network_id=network.id, port_mappings=(mapping(81, flags=16),))
    assert await service.change_load_balancers(OWNER, [value]) == {}
    (endpoint,) = service.view.endpoints()
    apply = switch.apply

    async def refuse(changes: Sequence[Change], view: StoreView) -> None:
        if any(change.id == value.id for change in changes):
            raise KernelError("remove an entry of sw_services", 12)
        await apply(changes, view)

    monkeypatch.setattr(switch, "apply", refuse)
    assert set(await service.change_load_balancers(OWNER, [], [value.id])) == {value.id}
    assert service.view.endpoints() == [endpoint]
    monkeypatch.undo()
    assert await service.change_load_balancers(OWNER, [], [value.id]) == {}
    assert service.view.endpoints() == []


@pytest.mark.parametrize(
    "network",
    [overlay(policies=(HostRoute(),)), bridge(flags=int(NetworkFlags.DISABLE_HOST_PORT))],
    ids=["the node is in it", "bridged"],
)
async def test_where_a_backend_can_answer_there_is_no_source_vip(
    service: HnsService, network: Network
) -> None:
    made = await service.create_network(network)
    outside = await service.create_load_balancer(
        balancer(network_id=made.id, port_mappings=(mapping(flags=16),))
    )
    assert (outside.source_vip, service.view.endpoints()) == ("", [])


async def test_a_source_vip_comes_when_the_node_leaves_the_network(service: HnsService) -> None:
    network = await service.create_network(overlay(policies=(HostRoute(),)))
    outside, inside = [
        await service.create_load_balancer(
            balancer(network_id=network.id, port_mappings=(mapping(port, flags=flags),))
        )
        for port, flags in ((81, 16), (82, 0))
    ]
    leaving = {
        "ResourceType": "Policy",
        "RequestType": "Remove",
        "Settings": {"Policies": [{"Type": "HostRoute"}]},
    }
    await service.modify(Kind.NETWORK, network.id, decode_modify(Kind.NETWORK, leaving))
    (endpoint,) = service.view.endpoints()
    assert endpoint.owner == "samewire:source-vip"
    assert service.view.load_balancer(outside.id) == replace(outside, source_vip=endpoint.addresses[0])
    assert service.view.load_balancer(inside.id) == inside
    await service.delete(Kind.LOADBALANCER, outside.id)
    assert service.view.endpoints() == []


async def test_a_batch_shares_one_source_vip(service: HnsService) -> None:
    network = await service.create_network(overlay())
    values = numbered(5, network_id=network.id, port_mappings=(mapping(flags=16),))
    assert await service.change_load_balancers(OWNER, values) == {}
    (endpoint,) = service.view.endpoints()
    assert {value.source_vip for value in service.view.load_balancers()} == set(endpoint.addresses)
    assert await service.change_load_balancers(OWNER, values) == {}
    assert await service.change_load_balancers(OWNER, [], [value.id for value in values]) == {}
    assert service.view.endpoints() == []


async def test_a_source_vip_of_ones_own_is_left_alone(service: HnsService) -> None:
    network = await service.create_network(overlay())
    mine = await pod(service, network, "10.244.1.77")
    made = await service.create_load_balancer(
        balancer(network_id=network.id, port_mappings=(mapping(flags=16),), source_vip="10.244.1.77")
    )
    await service.delete(Kind.LOADBALANCER, made.id)
    assert service.view.endpoints() == [mine]
