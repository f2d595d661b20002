"""Namespaces and routes through the service, and the one-step calls of the CNI plugin."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.modify import (
    ContainerSettings,
    EndpointSettings,
    ModifySettingRequest,
    ModifySettings,
    RequestType,
)
from samewire.hcn.plan.namespaces import NamespaceSpec
from samewire.hcn.query import render
from samewire.hcn.schema import (
    Dns,
    Endpoint,
    EndpointFlags,
    Kind,
    Namespace,
    NamespaceType,
    Network,
    Resource,
    ResourceData,
    ResourceType,
    Route,
    SdnRoute,
)
from samewire.hcn.service import HnsService
from tests.support.hcn import FakeSwitch, at, bridge, overlay

REMOTE = int(EndpointFlags.REMOTE_ENDPOINT)
MISSING = "0A1B2C3D-0000-0000-0000-00000000000F"
SPEC = NamespaceSpec("/run/netns/pod1", "c1")
ENCAP = (SdnRoute(destination_prefix="10.96.0.0/12", need_encap=True),)


@pytest.fixture
async def network(service: HnsService) -> Network:
    return await service.create_network(bridge())


def member(kind: ResourceType, resource_id: str) -> Resource:
    return Resource(type=kind, data=ResourceData(resource_id=resource_id))


async def endpoint(service: HnsService, network: Network, **fields: Any) -> Endpoint:
    return await service.create_endpoint(Endpoint(network_id=network.id, **fields))


async def modify(
    service: HnsService, namespace: Namespace, how: RequestType, settings: ModifySettings
) -> Namespace:
    request = ModifySettingRequest(request_type=how, settings=settings)
    value = await service.modify(Kind.NAMESPACE, namespace.id, request)
    assert isinstance(value, Namespace)
    return value


async def attach(service: HnsService, namespace: Namespace, value: Endpoint) -> Endpoint:
    await modify(service, namespace, RequestType.ADD, EndpointSettings(endpoint_id=value.id.lower()))
    after = service.view.endpoint(value.id)
    assert after is not None
    return after


async def test_a_namespace_of_containerd(service: HnsService) -> None:
    made = await service.create_namespace(Namespace())
    assert (made.type, made.compartment_id) == (None, 2)
    assert (await service.create_namespace(Namespace())).compartment_id == 3
    await service.delete(Kind.NAMESPACE, made.id)
    assert (await service.create_namespace(Namespace())).compartment_id == 4


@pytest.mark.parametrize("kind", [NamespaceType.HOST_DEFAULT, NamespaceType.GUEST_DEFAULT])
async def test_there_is_one_default(service: HnsService, kind: NamespaceType) -> None:
    await service.create_namespace(Namespace(type=kind))
    with pytest.raises(HcnError) as caught:
        await service.create_namespace(Namespace(type=kind))
    assert caught.value.code is HcnCode.GCN_DEFAULTNAMESPACE_EXISTS
    await service.create_namespace(Namespace(type=NamespaceType.HOST))
    await service.create_namespace(Namespace(type=NamespaceType.HOST))


async def test_a_network_namespace_has_one_object(service: HnsService) -> None:
    await service.create_namespace(Namespace(netns_path="/run/netns/a"))
    with pytest.raises(HcnError) as caught:
        await service.create_namespace(Namespace(netns_path="/run/netns/a"))
    assert caught.value.code is HcnCode.OBJECT_ALREADY_EXISTS
    assert caught.value.message.startswith("$.NetnsPath")


@pytest.mark.parametrize("path", ["relative", "/a\x00b", "/a\nb", "/" + "a" * 5000])
async def test_paths_are_absolute_and_printable(service: HnsService, path: str) -> None:
    with pytest.raises(HcnError, match=r"\$\.NetnsPath"):
        await service.create_namespace(Namespace(netns_path=path))


async def test_endpoints_join_and_leave(service: HnsService, network: Network) -> None:
    namespace = await service.create_namespace(Namespace(netns_path="/run/netns/a"))
    one = await attach(service, namespace, await endpoint(service, network))
    two = await attach(service, namespace, await endpoint(service, network))
    assert [one.interface_name, two.interface_name] == ["eth0", "eth1"]
    assert service.view.endpoints_of_namespace(namespace.id) == [one, two]
    shown = render(service.view, namespace)["Resources"]
    assert shown == [{"Type": "Endpoint", "Data": {"Id": value.id}} for value in (one, two)]
    assert render(service.view, one)["State"] == 3
    await modify(service, namespace, RequestType.REMOVE, EndpointSettings(endpoint_id=one.id))
    assert service.view.endpoints_of_namespace(namespace.id) == [two]
    assert render(service.view, service.get(Kind.ENDPOINT, one.id))["State"] == 4
    with pytest.raises(HcnError) as caught:
        await modify(service, namespace, RequestType.REMOVE, EndpointSettings(endpoint_id=one.id))
    assert caught.value.code is HcnCode.ENDPOINT_NOT_ATTACHED


async def test_attaching_has_its_limits(service: HnsService, network: Network) -> None:
    here = await service.create_namespace(Namespace())
    there = await service.create_namespace(Namespace())
    one = await attach(service, here, await endpoint(service, network, interface_name="net1"))
    same_name = await endpoint(service, network, interface_name="net1")
    far = await endpoint(service, network, ip_configurations=at("10.9.0.1"), flags=REMOTE)
    for namespace, endpoint_id, code in (
        (here, one.id, HcnCode.ENDPOINT_NAMESPACE_ALREADY_EXISTS),
        (there, one.id, HcnCode.ENDPOINT_ALREADY_ATTACHED),
        (here, same_name.id, HcnCode.ENDPOINT_NAMESPACE_ALREADY_EXISTS),
        (here, far.id, HcnCode.INVALID_REMOTE_ENDPOINT_OPERATION),
        (here, MISSING, HcnCode.ENDPOINT_NOT_FOUND),
        (here, "x", HcnCode.GUID_CONVERSION_FAILURE),
        (replace(here, id=MISSING), one.id, HcnCode.ERROR_NOT_FOUND),
    ):
        with pytest.raises(HcnError) as caught:
            await modify(service, namespace, RequestType.ADD, EndpointSettings(endpoint_id=endpoint_id))
        assert caught.value.code is code
    assert "Element not found." in caught.value.message
    with pytest.raises(HcnError) as caught:
        await modify(service, here, RequestType.UPDATE, EndpointSettings(endpoint_id=one.id))
    assert caught.value.code is HcnCode.REQUEST_UNSUPPORTED
    with pytest.raises(HcnError) as caught:
        await modify(service, here, RequestType.ADD, Dns())
    assert caught.value.code is HcnCode.REQUEST_UNSUPPORTED


async def test_a_namespace_can_start_with_its_endpoints(
    service: HnsService, network: Network, switch: FakeSwitch
) -> None:
    """Their ids are taken in any spelling, as everywhere."""
    ids = [(await endpoint(service, network)).id for _ in range(2)]
    spelled = ids[0].lower(), f"{{{ids[1]}}}"
    resources = (member(ResourceType.CONTAINER, "c1"), *(member(ResourceType.ENDPOINT, i) for i in spelled))
    namespace = await service.create_namespace(Namespace(resources=resources))
    assert namespace.resources == resources[:1]
    members = service.view.endpoints_of_namespace(namespace.id)
    assert [(value.id, value.interface_name) for value in members] == list(
        zip(ids, ("eth0", "eth1"), strict=True)
    )
    assert len(switch.calls[-1]) == 3


async def test_containers_are_remembered_once(service: HnsService) -> None:
    namespace = await service.create_namespace(Namespace())
    for _ in range(2):
        namespace = await modify(service, namespace, RequestType.ADD, ContainerSettings(container_id="c1"))
    assert namespace.resources == (member(ResourceType.CONTAINER, "c1"),)
    for _ in range(2):
        namespace = await modify(service, namespace, RequestType.REMOVE, ContainerSettings(container_id="c1"))
    assert namespace.resources == ()


async def test_a_namespace_with_endpoints_stays(service: HnsService, network: Network) -> None:
    namespace = await service.create_namespace(Namespace())
    one = await attach(service, namespace, await endpoint(service, network))
    with pytest.raises(HcnError) as caught:
        await service.delete(Kind.NAMESPACE, namespace.id)
    assert caught.value.code is HcnCode.ENTITY_HAS_REFERENCES
    await service.delete(Kind.ENDPOINT, one.id)
    await service.delete(Kind.NAMESPACE, namespace.id)
    assert service.view.namespaces() == []


async def test_one_call_makes_an_endpoint_in_a_network_namespace(
    service: HnsService, network: Network, switch: FakeSwitch
) -> None:
    calls = len(switch.calls)
    made = await service.create_attached_endpoint(network.id, Endpoint(name="c1_cbr0"), SPEC, "eth0")
    namespace = service.view.namespace_by_path("/run/netns/pod1")
    assert namespace is not None
    assert namespace.resources == (member(ResourceType.CONTAINER, "c1"),)
    assert (made.namespace_id, made.interface_name, made.container_id) == (namespace.id, "eth0", "c1")
    assert service.view.endpoints_of_container("c1") == [made]
    assert len(switch.calls) == calls + 1
    await service.delete_attached_endpoint(made.id)
    assert (service.view.endpoints(), service.view.namespaces()) == ([], [])
    assert len(switch.calls) == calls + 2
    with pytest.raises(HcnError) as caught:
        await service.delete_attached_endpoint(made.id)
    assert caught.value.code is HcnCode.ENDPOINT_NOT_FOUND


async def test_a_pod_with_two_interfaces_keeps_its_namespace_until_the_last_goes(
    service: HnsService, network: Network
) -> None:
    one = await service.create_attached_endpoint(network.id, Endpoint(), SPEC, "eth0")
    two = await service.create_attached_endpoint(network.id, Endpoint(), SPEC, "net1")
    assert one.namespace_id == two.namespace_id
    with pytest.raises(HcnError) as caught:
        await service.create_attached_endpoint(network.id, Endpoint(), SPEC, "net1")
    assert caught.value.code is HcnCode.ENDPOINT_NAMESPACE_ALREADY_EXISTS
    await service.delete_attached_endpoint(one.id)
    assert len(service.view.namespaces()) == 1
    await service.delete_attached_endpoint(two.id)
    assert service.view.namespaces() == []


async def test_a_namespace_that_a_client_made_is_its_own(service: HnsService, network: Network) -> None:
    namespace = await service.create_namespace(Namespace(netns_path=SPEC.netns_path))
    made = await service.create_attached_endpoint(network.id, Endpoint(), SPEC, "eth0")
    assert made.namespace_id == namespace.id
    await service.delete_attached_endpoint(made.id)
    assert service.view.namespaces() == [namespace]


async def test_another_container_of_the_same_network_namespace_is_noted(
    service: HnsService, network: Network
) -> None:
    await service.create_attached_endpoint(network.id, Endpoint(), SPEC, "eth0")
    await service.create_attached_endpoint(
        network.id, Endpoint(), NamespaceSpec(SPEC.netns_path, "c2"), "eth1"
    )
    resources = service.view.namespaces()[0].resources
    assert [item.data.resource_id for item in resources] == ["c1", "c2"]


async def test_an_attached_endpoint_replaces_a_remote_one(service: HnsService, switch: FakeSwitch) -> None:
    network = await service.create_network(overlay())
    await endpoint(service, network, ip_configurations=at("10.244.1.5"), flags=REMOTE)
    wanted = Endpoint(ip_configurations=at("10.244.1.5"))
    made = await service.create_attached_endpoint(network.id, wanted, SPEC, "eth0")
    assert service.view.endpoints() == [made]
    assert [change.kind for change in switch.calls[-1]] == [Kind.ENDPOINT, Kind.NAMESPACE, Kind.ENDPOINT]


async def test_a_deleted_network_takes_the_namespaces_made_for_its_endpoints(
    service: HnsService, network: Network
) -> None:
    kept = await service.create_namespace(Namespace(netns_path="/run/netns/kept"))
    await attach(service, kept, await endpoint(service, network))
    await service.create_attached_endpoint(network.id, Endpoint(), SPEC, "eth0")
    await service.delete(Kind.NETWORK, network.id)
    assert service.view.namespaces() == [kept]


async def test_a_route_belongs_to_the_network_of_its_endpoints(service: HnsService, network: Network) -> None:
    one, two = await endpoint(service, network), await endpoint(service, network)
    route = await service.create_route(Route(endpoint_ids=(one.id.lower(), two.id), routes=ENCAP))
    assert (route.network_id, route.endpoint_ids) == (network.id, (one.id, two.id))
    assert service.view.routes_of_endpoint(two.id) == service.view.routes_of_network(network.id) == [route]
    whole = await service.create_route(
        Route(network_id=network.id, routes=(SdnRoute(destination_prefix="169.254.169.254/24"),))
    )
    assert [item.destination_prefix for item in whole.routes] == ["169.254.169.0/24"]
    assert service.view.routes_of_network(network.id) == [route, whole]
    await service.delete(Kind.ROUTE, route.id)
    with pytest.raises(HcnError) as caught:
        await service.delete(Kind.ROUTE, route.id)
    assert caught.value.code is HcnCode.ERROR_NOT_FOUND


async def test_routes_that_make_no_sense(service: HnsService, network: Network) -> None:
    other = await service.create_network(overlay())
    mine, theirs = await endpoint(service, network), await endpoint(service, other)
    far = await endpoint(service, other, ip_configurations=at("10.9.0.1"), flags=REMOTE)
    mixed = SdnRoute(destination_prefix="10.0.0.0/8", next_hop="fd00::1")
    for route, code in (
        (Route(routes=ENCAP), HcnCode.INVALID_JSON_REFERENCE),
        (Route(network_id=network.id), HcnCode.INVALID_JSON),
        (Route(network_id=MISSING, routes=ENCAP), HcnCode.NETWORK_NOT_FOUND),
        (Route(endpoint_ids=(MISSING,), routes=ENCAP), HcnCode.ENDPOINT_NOT_FOUND),
        (Route(endpoint_ids=(mine.id, theirs.id), routes=ENCAP), HcnCode.INVALID_JSON_REFERENCE),
        (
            Route(network_id=network.id, endpoint_ids=(theirs.id,), routes=ENCAP),
            HcnCode.INVALID_JSON_REFERENCE,
        ),
        (Route(endpoint_ids=(far.id,), routes=ENCAP), HcnCode.ENDPOINT_NOT_LOCAL),
        (Route(network_id=network.id, routes=(mixed,)), HcnCode.INVALID_IP),
        (Route(network_id=network.id, routes=(SdnRoute(destination_prefix="x"),)), HcnCode.INVALID_PREFIX),
    ):
        with pytest.raises(HcnError) as caught:
            await service.create_route(route)
        assert caught.value.code is code
    assert service.view.routes() == []


async def test_routes_are_not_modified(service: HnsService, network: Network) -> None:
    route = await service.create_route(Route(network_id=network.id, routes=ENCAP))
    request = ModifySettingRequest(request_type=RequestType.ADD, settings=Dns())
    with pytest.raises(HcnError) as caught:
        await service.modify(Kind.ROUTE, route.id, request)
    assert caught.value.code is HcnCode.REQUEST_UNSUPPORTED


async def test_a_refresh_changes_nothing(service: HnsService, network: Network) -> None:
    namespace = await service.create_namespace(Namespace())
    held = await endpoint(service, network)
    settings = EndpointSettings(endpoint_id=held.id)
    assert await modify(service, namespace, RequestType.REFRESH, settings) == namespace
    assert service.view.endpoints_of_namespace(namespace.id) == []


@pytest.mark.parametrize("back", [False, True])
async def test_a_namespace_made_for_an_endpoint_that_left_it_goes_with_the_endpoint(
    service: HnsService, network: Network, back: bool
) -> None:
    """As hcsshim takes an endpoint away: out of its namespace first."""
    made = await service.create_attached_endpoint(network.id, Endpoint(), SPEC, "eth0")
    beside = await service.create_attached_endpoint(
        network.id, Endpoint(), NamespaceSpec("/run/netns/pod2", "c2"), "eth0"
    )
    (space, other) = service.view.namespaces()
    await modify(service, space, RequestType.REMOVE, EndpointSettings(endpoint_id=made.id))
    assert service.view.namespaces() == [space, other]
    if back:
        await modify(service, space, RequestType.ADD, EndpointSettings(endpoint_id=made.id))
    await service.delete(Kind.ENDPOINT, made.id)
    assert (service.view.endpoints(), service.view.namespaces()) == ([beside], [other])
