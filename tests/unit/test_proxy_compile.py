"""One service becomes HCN load balancers."""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import Any

import pytest

from samewire.hcn.loadbalancers import (
    DistributionType,
    LoadBalancer,
    LoadBalancerFlags,
    NoEndpointsAction,
    direct_mac,
)
from samewire.kube.base import Protocol
from samewire.kube.model import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Node,
    NodeAddress,
    NodeMetadata,
    NodeStatus,
    Service,
    ServiceAnnotations,
    ServicePort,
)
from samewire.proxy.compile import Compiled, DirectNode, Settings, compile_service, direct_node
from samewire.proxy.ids import OWNER, load_balancer_id, service_key, service_name
from tests.support.kube_services import HERE, PLACE, THERE, endpoint, endpoint_slice, service

SETTINGS = Settings(PLACE, "NETWORK")
LOCAL, DRAINING, ONLY = 1, 2, 4
KEY = ("shop", "web")


def compiled(
    value: Service | None,
    *slices: EndpointSlice,
    settings: Settings = SETTINGS,
    moving: bool = False,
    **before: Any,
) -> Compiled:
    known: dict[str, LoadBalancer] = before.get("before", {})
    return compile_service(KEY, value, slices, settings, known.get, moving=moving)


def built(value: Service, *endpoints: Endpoint, **more: Any) -> dict[str, LoadBalancer]:
    """Load balancers by address, "node" for the node port."""
    slices = (endpoint_slice(*endpoints),) if endpoints else ()
    found = compiled(value, *slices, **more).load_balancers
    return {lb.frontend_vips[0] if lb.frontend_vips else "node": lb for lb in found}


def backends(lb: LoadBalancer) -> list[tuple[str, int]]:
    return [(backend.ip_address, backend.flags) for backend in lb.backends]


def everything(**spec: Any) -> Service:
    """A service with every kind of address."""
    return service(
        type="LoadBalancer",
        ports=(ServicePort(port=80, name="http", node_port=30080),),
        external_ips=("198.51.100.7",),
        ingress=("203.0.113.9",),
        **spec,
    )


HERE_READY = endpoint("10.244.1.1", node=HERE)
AWAY_READY = endpoint("10.244.2.1")
HERE_LAST = endpoint("10.244.1.2", node=HERE, ready=False, serving=True, terminating=True)
AWAY_LAST = endpoint("10.244.2.2", ready=False, serving=True, terminating=True)
HERE_BUSY = endpoint("10.244.1.3", node=HERE, ready=False)


def test_a_cluster_ip() -> None:
    found = compiled(service(), endpoint_slice(HERE_READY, AWAY_READY)).load_balancers
    assert len(found) == 1
    lb = found[0]
    assert (lb.owner, lb.network_id, lb.service_name) == (OWNER, "NETWORK", "shop/web:http")
    assert lb.frontend_vips == ("10.96.0.10",)
    assert [(b.ip_address, b.port, b.flags) for b in lb.backends] == [
        ("10.244.1.1", 8080, LOCAL),
        ("10.244.2.1", 8080, 0),
    ]
    mapping = lb.port_mappings[0]
    assert (mapping.protocol, mapping.external_port, mapping.internal_port, mapping.flags) == (6, 80, 8080, 0)
    assert mapping.distribution_type is DistributionType.NONE
    assert (lb.flags, lb.affinity_timeout, lb.source_ranges) == (0, 0, ())


def test_nothing_for_services_that_are_not_ours_or_gone() -> None:
    piece = endpoint_slice(HERE_READY)
    for value in (None, service(ips=("None",)), service(ips=(), type="ExternalName")):
        assert compiled(value, piece) == Compiled()


def test_families_are_never_mixed() -> None:
    value = service(
        ips=("10.96.0.10", "fd96::10"),
        type="NodePort",
        ports=(ServicePort(port=80, name="http", node_port=30080),),
    )
    four = endpoint_slice(endpoint("10.244.2.1"))
    six = endpoint_slice(endpoint("fd44::1"), name="web-6")
    found = compiled(value, four, six).load_balancers
    assert len(found) == 4
    for lb in found:
        assert {":" in backend.ip_address for backend in lb.backends} == {lb.is_ipv6}
    assert sorted(bool(lb.flags & 2) for lb in found if not lb.frontend_vips) == [False, True]


def test_flags_by_kind_of_address() -> None:
    found = built(everything(), HERE_READY)
    assert {vip: lb.port_mappings[0].flags for vip, lb in found.items()} == {
        "10.96.0.10": 0,
        "node": 2 | 16,
        "198.51.100.7": 16,
        "203.0.113.9": 16,
    }
    assert found["node"].port_mappings[0].external_port == 30080


@pytest.mark.parametrize(
    ("endpoints", "internal", "external"),
    [
        # (backends of the cluster IP, backends of the others), both with external policy Local, internal Cluster
        ([HERE_READY, AWAY_READY], [("10.244.1.1", LOCAL), ("10.244.2.1", 0)], None),
        ([AWAY_READY], [("10.244.2.1", 0)], None),
        (
            [HERE_LAST, AWAY_READY],
            [("10.244.2.1", 0)],
            [("10.244.2.1", 0), ("10.244.1.2", LOCAL | ONLY)],
        ),
        ([HERE_LAST, AWAY_LAST], [("10.244.1.2", LOCAL), ("10.244.2.2", 0)], None),
        ([HERE_BUSY], [], None),
    ],
)
def test_external_policy_local(
    endpoints: list[Endpoint], internal: list[tuple[str, int]], external: list[tuple[str, int]] | None
) -> None:
    found = built(everything(external_traffic_policy="Local"), *endpoints)
    for vip, lb in found.items():
        cluster_ip = vip == "10.96.0.10"
        assert backends(lb) == (internal if cluster_ip or external is None else external)
        assert lb.external_traffic_policy_local is not cluster_ip
        assert not lb.internal_traffic_policy_local


@pytest.mark.parametrize(
    ("endpoints", "expected", "action"),
    [
        ([HERE_READY, AWAY_READY], [("10.244.1.1", LOCAL)], NoEndpointsAction.DROP),
        ([AWAY_READY], [], NoEndpointsAction.DROP),
        ([AWAY_LAST], [], NoEndpointsAction.DROP),
        ([HERE_LAST, AWAY_READY], [("10.244.1.2", LOCAL)], NoEndpointsAction.DROP),
        ([HERE_BUSY], [], NoEndpointsAction.REJECT),
        ([], [], NoEndpointsAction.REJECT),
    ],
)
def test_internal_policy_local(
    endpoints: list[Endpoint], expected: list[tuple[str, int]], action: NoEndpointsAction
) -> None:
    lb = built(service(internal_traffic_policy="Local"), *endpoints)["10.96.0.10"]
    assert backends(lb) == expected
    assert lb.no_endpoints_action is action
    assert lb.internal_traffic_policy_local


def test_internal_policy_local_is_for_the_cluster_ip_only() -> None:
    found = built(everything(internal_traffic_policy="Local"), HERE_READY, AWAY_READY)
    assert backends(found["10.96.0.10"]) == [("10.244.1.1", LOCAL)]
    assert backends(found["node"]) == [("10.244.1.1", LOCAL), ("10.244.2.1", 0)]


def test_hints_for_inside_and_local_for_outside() -> None:
    near = endpoint("10.244.2.1", zones=("zone-1",))
    own = endpoint("10.244.1.1", node=HERE, zones=("zone-2",))
    found = built(everything(external_traffic_policy="Local"), near, own)
    assert backends(found["10.96.0.10"]) == [("10.244.2.1", 0)]
    assert backends(found["node"]) == [("10.244.2.1", 0), ("10.244.1.1", LOCAL | ONLY)]


def test_no_endpoints_is_a_refusal() -> None:
    for lb in built(everything(), HERE_BUSY).values():
        assert (lb.backends, lb.no_endpoints_action) == ((), NoEndpointsAction.REJECT)


def test_affinity_and_its_time() -> None:
    lb = built(service(affinity_s=7), HERE_READY)["10.96.0.10"]
    assert (lb.affinity_timeout, lb.port_mappings[0].distribution_type) == (7, DistributionType.SOURCE_IP)


def test_source_ranges_are_for_ingress_addresses() -> None:
    found = built(everything(load_balancer_source_ranges=("192.0.2.0/24", "2001:db8::/32")), HERE_READY)
    assert {vip for vip, lb in found.items() if lb.source_ranges} == {"203.0.113.9"}
    assert found["203.0.113.9"].source_ranges == ("192.0.2.0/24",)


def test_what_cannot_be_read_is_said() -> None:
    """In few words, however much there is of it, and once for all its ports and addresses."""
    value = everything(load_balancer_source_ranges=("192.0.2.0/24", "x"))
    bad = [endpoint(f"127.0.0.{number}") for number in range(1, 6)]
    found = compiled(value, endpoint_slice(HERE_READY, *bad))
    assert found.refused == (
        "loadBalancerSourceRanges: 'x' is no prefix; endpoints: '127.0.0.1', '127.0.0.2', '127.0.0.3' and 2 more "
        "are no addresses of machines"
    )
    assert {backends(lb)[0][0] for lb in found.load_balancers} == {HERE_READY.addresses[0]}
    long = compiled(everything(load_balancer_source_ranges=("x" * 9999,)))
    assert len(long.refused) < 200


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "0.0.0.0", "169.254.169.254", "224.0.0.1", "::1", "fe80::1"]
)
def test_an_ingress_ip_is_one_machines(address: str) -> None:
    """API servers take any in a Service's status; a node's own localhost is no Service's."""
    value = service(ips=("10.96.0.10", "fd00:96::10"), type="LoadBalancer", ingress=(address, "203.0.113.9"))
    found = compiled(value, endpoint_slice(HERE_READY))
    assert {vip for lb in found.load_balancers for vip in lb.frontend_vips} == {
        "10.96.0.10",
        "fd00:96::10",
        "203.0.113.9",
    }
    assert found.refused == f"{address} is no address of a machine"


def test_preserve_destination() -> None:
    found = built(
        everything(annotations=ServiceAnnotations(preserve_destination="true")), HERE_READY, AWAY_READY
    )
    lb = found["203.0.113.9"]
    assert lb.port_mappings[0].flags == 16 | 4 | 8
    assert lb.flags & 1
    assert {vip for vip, lb in found.items() if lb.external_traffic_policy_local} == {"203.0.113.9", "node"}
    assert not any(found[vip].flags & 1 for vip in ("10.96.0.10", "node", "198.51.100.7"))


@pytest.mark.parametrize(
    ("annotation", "default", "expected"),
    [("", False, False), ("", True, True), ("true", False, True), ("false", True, False)],
)
def test_dsr_is_asked_for_and_only_for_clients_outside(
    annotation: str, default: bool, expected: bool
) -> None:
    value = everything(annotations=ServiceAnnotations(dsr=annotation))
    found = built(value, HERE_READY, settings=SETTINGS._replace(dsr=default))
    assert {vip: bool(lb.flags & 1) for vip, lb in found.items()} == {
        "10.96.0.10": False,
        "node": expected,
        "198.51.100.7": expected,
        "203.0.113.9": expected,
    }


def test_connections_by_dsr_go_on_without_it() -> None:
    """Those of before: their backends, and what their nodes take for them, stay as they are."""
    settings = SETTINGS._replace(direct={THERE: DirectNode(("192.0.2.7",))})
    wants, not_any_more = (everything(annotations=ServiceAnnotations(dsr=text)) for text in ("true", ""))
    piece = endpoint_slice(HERE_READY, AWAY_READY)
    before: dict[str, LoadBalancer] = {}
    shown = []
    for value in (not_any_more, wants, not_any_more, not_any_more, wants):
        before = {lb.id: lb for lb in compiled(value, piece, settings=settings, before=before).load_balancers}
        (lb,) = (one for one in before.values() if not one.frontend_vips)
        shown.append((lb.flags, bool(lb.backends[1].provider_address)))
        assert not any(lb.flags for lb in before.values() if lb.frontend_vips == ("10.96.0.10",))
    keep = int(LoadBalancerFlags.KEEP_DIRECT_CONNECTIONS)
    assert shown == [(0, False), (1, True), (keep, True), (keep, True), (1, True)]


def test_dsr_reaches_the_nodes_that_take_part_in_it() -> None:
    value = service(
        ips=("10.96.0.10", "fd96::10"),
        type="NodePort",
        ports=(ServicePort(port=80, name="http", node_port=30080),),
        annotations=ServiceAnnotations(dsr="true"),
    )
    pieces = (
        endpoint_slice(
            endpoint("10.244.1.1", node=HERE),
            endpoint("10.244.2.1"),
            endpoint("192.0.2.7"),  # with hostNetwork: nobody in the tunnel has its address
            endpoint("10.244.3.1", node="other"),
        ),
        endpoint_slice(endpoint("fd44::1"), name="web-6"),
    )
    settings = SETTINGS._replace(
        direct={THERE: DirectNode(("192.0.2.7",), frozenset({"192.0.2.7"})), HERE: DirectNode(("192.0.2.1",))}
    )
    shown = {
        (lb.frontend_vips, backend.ip_address): (backend.provider_address, backend.mac_address)
        for lb in compiled(value, *pieces, settings=settings).load_balancers
        for backend in lb.backends
    }
    assert {key: how for key, how in shown.items() if any(how)} == {
        ((), "10.244.2.1"): ("192.0.2.7", "0E-2A-0A-F4-02-01"),
        ((), "fd44::1"): ("192.0.2.7", direct_mac(IPv6Address("fd44::1").packed).hex("-").upper()),
    }


def test_the_mac_of_an_address_names_it_among_its_neighbours() -> None:
    first = int(IPv6Address("fd44::1"))
    macs = {direct_mac((first + n).to_bytes(16)) for n in range(1000)}
    assert len(macs) == 1000
    assert {mac[:2] for mac in macs} == {b"\x0e\x2b"}


def test_who_takes_part_in_dsr() -> None:
    def node(text: str, *addresses: str) -> Node:
        annotations = {"samewire.io/dsr-provider-address": text}
        shown = tuple(NodeAddress("InternalIP", address) for address in addresses)
        return Node(NodeMetadata(name="n", annotations=annotations), status=NodeStatus(shown))

    assert direct_node(node("192.0.2.7")) == DirectNode(("192.0.2.7",), frozenset({"192.0.2.7"}))
    both = direct_node(node("192.0.2.7, 2001:DB8::7"))
    assert both is not None
    assert (both.provider(4), both.provider(6)) == ("192.0.2.7", "2001:db8::7")
    assert direct_node(node("2001:DB8::7", "10.0.0.7", "fd00:0::7", "host")) == DirectNode(
        ("2001:db8::7",), frozenset({"2001:db8::7", "10.0.0.7", "fd00::7"})
    )
    assert [direct_node(found) for found in (node(""), node("yes"), Node(NodeMetadata(name="n")))] == [
        None
    ] * 3


def test_node_ports_at_some_addresses() -> None:
    value = everything()
    only = SETTINGS._replace(node_port_addresses=("192.0.2.1", "2001:db8::1"))
    assert "192.0.2.1" in built(value, HERE_READY, settings=only)
    none = SETTINGS._replace(node_port_addresses=("2001:db8::1",))
    assert set(built(value, HERE_READY, settings=none)) == {"10.96.0.10", "198.51.100.7", "203.0.113.9"}


def test_named_ports_may_differ_by_endpoint() -> None:
    old = endpoint_slice(endpoint("10.244.2.1"))
    new = endpoint_slice(endpoint("10.244.2.2"), name="web-2", ports=(EndpointPort(name="http", port=9090),))
    lb = compiled(service(), old, new).load_balancers[0]
    assert [(b.ip_address, b.port) for b in lb.backends] == [("10.244.2.1", 8080), ("10.244.2.2", 9090)]


def test_sctp_and_udp() -> None:
    protocols: tuple[Protocol, ...] = ("TCP", "UDP", "SCTP")
    ports = tuple(ServicePort(port=80, name=one.lower(), protocol=one) for one in protocols)
    found = compiled(service(ports=ports)).load_balancers
    assert [lb.port_mappings[0].protocol for lb in found] == [6, 17, 132]
    assert len({lb.id for lb in found}) == 3


@pytest.mark.parametrize(
    ("protocol", "later", "kept"),
    [
        ("TCP", HERE_LAST, True),
        ("TCP", endpoint("10.244.1.2", node=HERE, ready=False), True),
        ("TCP", None, False),
        ("UDP", HERE_LAST, True),
        ("UDP", endpoint("10.244.1.2", node=HERE, ready=False), True),
        # Its clients must go elsewhere now.
        ("UDP", endpoint("10.244.1.2", node=HERE, ready=False, serving=False), False),
        ("SCTP", endpoint("10.244.1.2", node=HERE, ready=False, terminating=True), True),
    ],
)
def test_draining(protocol: Protocol, later: Endpoint | None, kept: bool) -> None:
    value = service(ports=(ServicePort(port=80, name="http", protocol=protocol),))
    ports = (EndpointPort(name="http", protocol=protocol, port=8080),)
    full = endpoint_slice(endpoint("10.244.1.2", node=HERE), AWAY_READY, ports=ports)
    before = compiled(value, full).load_balancers[0]
    less = endpoint_slice(*([later] if later else []), AWAY_READY, ports=ports)
    after = compiled(value, less, before={before.id: before}).load_balancers[0]
    expected = [("10.244.2.1", 0), *([("10.244.1.2", LOCAL | DRAINING)] if kept else [])]
    assert backends(after) == expected
    assert backends(compiled(value, less).load_balancers[0]) == [("10.244.2.1", 0)]


def test_an_endpoint_on_its_way_to_another_slice_keeps_what_it_has() -> None:
    """It is in none. But an address that another pod has by now is not on its way."""
    value = service()
    pieces = endpoint_slice(HERE_READY, endpoint("10.244.2.1", uid="one"), endpoint("10.244.2.2"))
    before = compiled(value, pieces).load_balancers[0]
    less = endpoint_slice(endpoint("10.244.2.1", uid="two", ready=False), endpoint("10.244.2.2"))
    (after,) = compiled(value, less, before={before.id: before}, moving=True).load_balancers
    assert backends(after) == [("10.244.2.2", 0), ("10.244.1.1", LOCAL | DRAINING)]
    (again,) = compiled(value, less, before={after.id: after}, moving=True).load_balancers
    assert again == after
    (later,) = compiled(value, less, before={after.id: after}).load_balancers
    assert backends(later) == [("10.244.2.2", 0)]


def test_what_comes_back_drains_no_more() -> None:
    value = service()
    full = endpoint_slice(HERE_READY, AWAY_READY)
    first = compiled(value, full).load_balancers[0]
    fewer = endpoint_slice(endpoint("10.244.1.1", node=HERE, ready=False), AWAY_READY)
    second = compiled(value, fewer, before={first.id: first}).load_balancers[0]
    assert (("10.244.1.1", LOCAL | DRAINING)) in backends(second)
    third = compiled(value, full, before={second.id: second}).load_balancers[0]
    assert third == first


def test_another_pod_at_an_address_is_another_backend() -> None:
    value = service()
    first = compiled(value, endpoint_slice(endpoint("10.244.2.1", uid="one"))).load_balancers[0]
    assert first.backends[0].target_id == "one"
    other = endpoint("10.244.2.1", uid="two")
    second = compiled(value, endpoint_slice(other), before={first.id: first}).load_balancers[0]
    assert [b.target_id for b in second.backends] == ["two"]
    unready = endpoint_slice(endpoint("10.244.2.1", uid="two", ready=False), endpoint("10.244.2.2"))
    third = compiled(value, unready, before={first.id: first}).load_balancers[0]
    assert backends(third) == [("10.244.2.2", 0)], "it does not drain what the first had"


def test_health_check() -> None:
    value = everything(external_traffic_policy="Local", health_check_node_port=31000)
    found = compiled(value, endpoint_slice(HERE_READY, HERE_LAST, AWAY_READY))
    assert (found.health_check_port, found.local_endpoints, found.lacks_external) == (31000, 1, False)
    found = compiled(value, endpoint_slice(AWAY_READY))
    assert (found.local_endpoints, found.lacks_external, found.lacks_internal) == (0, True, False)


def test_ids_stay_and_tell_apart() -> None:
    one = load_balancer_id(KEY, "cluster", "10.96.0.10", 4, 80, "TCP")
    assert one == "D04C7D0F-F24D-590B-A25D-CFF1F629F87F"  # whatever else changes: restarts find it by this
    others = {
        load_balancer_id(("shop", "other"), "cluster", "10.96.0.10", 4, 80, "TCP"),
        load_balancer_id(KEY, "external", "10.96.0.10", 4, 80, "TCP"),
        load_balancer_id(KEY, "cluster", "10.96.0.11", 4, 80, "TCP"),
        load_balancer_id(KEY, "cluster", "10.96.0.10", 4, 81, "TCP"),
        load_balancer_id(KEY, "cluster", "10.96.0.10", 4, 80, "UDP"),
        load_balancer_id(KEY, "node-port", "", 4, 80, "TCP"),
        load_balancer_id(KEY, "node-port", "", 6, 80, "TCP"),
    }
    assert len(others) == 7
    assert one not in others


def test_a_renamed_port_keeps_the_load_balancer() -> None:
    before = compiled(service(), endpoint_slice(HERE_READY)).load_balancers[0]
    renamed = service(ports=(ServicePort(port=80, name="web"),))
    piece = endpoint_slice(HERE_READY, ports=(EndpointPort(name="web", port=8080),))
    after = compiled(renamed, piece).load_balancers[0]
    assert (after.id, after.backends) == (before.id, before.backends)


@pytest.mark.parametrize("first", ["service", "slice"])
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_while_a_port_is_renamed_its_members_keep_what_they_have(first: str, protocol: Any) -> None:
    """The Service and its slices are two objects: for a moment the names do not meet."""

    def named(name: str) -> tuple[Service, EndpointSlice]:
        ports = (EndpointPort(name=name, port=8080, protocol=protocol),)
        return (
            service(ports=(ServicePort(port=80, name=name, protocol=protocol),)),
            endpoint_slice(HERE_READY, endpoint("10.244.2.1", uid="one"), ports=ports),
        )

    (old, old_slice), (new, new_slice) = named(""), named("web")
    before = compiled(old, old_slice).load_balancers[0]
    meanwhile = (new, old_slice) if first == "service" else (old, new_slice)
    between = compiled(*meanwhile, before={before.id: before}).load_balancers[0]
    assert backends(between) == [("10.244.1.1", LOCAL | DRAINING), ("10.244.2.1", DRAINING)]
    after = compiled(new, new_slice, before={between.id: between}).load_balancers[0]
    assert after.backends == before.backends


def test_a_name_that_another_port_has_is_no_old_name() -> None:
    ports = (ServicePort(port=80, name="a"), ServicePort(port=81, name="b"))
    swapped = (ServicePort(port=80, name="b"), ServicePort(port=81, name="a"))
    piece = endpoint_slice(
        HERE_READY, ports=(EndpointPort(name="a", port=8080), EndpointPort(name="b", port=8081))
    )
    before = {lb.id: lb for lb in compiled(service(ports=ports), piece).load_balancers}
    after = compiled(service(ports=swapped), piece, before=before).load_balancers
    assert [[b.port for b in lb.backends] for lb in after] == [[8081], [8080]]


def test_a_renamed_port_with_dsr_keeps_the_way_of_its_connections() -> None:
    direct = SETTINGS._replace(dsr=True, direct={THERE: DirectNode(("192.0.2.2",))})
    value = service(type="NodePort", ports=(ServicePort(port=80, name="http", node_port=30080),))
    before = {lb.id: lb for lb in compiled(value, endpoint_slice(AWAY_READY), settings=direct).load_balancers}
    renamed = service(type="NodePort", ports=(ServicePort(port=80, name="web", node_port=30080),))
    for lb in compiled(renamed, endpoint_slice(AWAY_READY), settings=direct, before=before).load_balancers:
        (was,), (now,) = before[lb.id].backends, lb.backends
        assert (now.provider_address, now.mac_address) == (was.provider_address, was.mac_address)
        assert now.flags == DRAINING


def test_service_names() -> None:
    assert service_name(KEY, "http") == "shop/web:http"
    assert service_name(KEY, "") == "shop/web"
    assert service_key("shop/web:http") == service_key("shop/web") == KEY
    assert service_key("") is None
    assert service_key("web") is None
