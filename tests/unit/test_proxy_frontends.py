"""Virtual addresses of a service, and the rules that go with them."""

from __future__ import annotations

from typing import Any

import pytest

from samewire.kube.model import (
    LoadBalancerIngress,
    Service,
    ServiceAnnotations,
    ServiceLabels,
    ServicePort,
)
from samewire.proxy.frontends import VipKind, frontends, is_ours, rules
from tests.support.kube_services import service

DUAL = ("10.96.0.10", "fd96::10")


def shown(value: Service) -> list[tuple[str, str, int]]:
    return [(item.kind.value, item.address, item.port) for item in frontends(value)]


@pytest.mark.parametrize(
    "value",
    [
        service(ips=("None",)),
        service(ips=()),
        service(type="ExternalName", ips=()),
        service(labels=ServiceLabels(service_proxy_name="mesh")),
        service(labels=ServiceLabels(service_proxy_name="")),
        service(labels=ServiceLabels(headless="")),
    ],
)
def test_services_that_are_not_ours(value: Service) -> None:
    assert not is_ours(value)


def test_cluster_ips_of_both_families_and_all_ports() -> None:
    value = service(
        ips=DUAL, ports=(ServicePort(port=80, name="a"), ServicePort(port=53, name="b", protocol="UDP"))
    )
    assert is_ours(value)
    assert shown(value) == [
        ("cluster", "10.96.0.10", 80),
        ("cluster", "10.96.0.10", 53),
        ("cluster", "fd96::10", 80),
        ("cluster", "fd96::10", 53),
    ]


def test_an_address_is_one_however_it_is_written() -> None:
    value = service(ips=("FD96:0:0::10",), external_ips=("fd96::10", "FD96::0:99"))
    assert [address for _, address, _ in shown(value)] == ["fd96::10", "fd96::99"]


def test_leading_zeros_are_decimal() -> None:
    """As kube-proxy reads them (CVE-2021-29923): never octal, and no reason to leave an address out."""
    value = service(
        type="LoadBalancer",
        ips=("010.096.0.10",),
        external_ips=("198.051.100.007",),
        load_balancer_source_ranges=("010.00.0.0/8", "10.0.0.0/8"),
    )
    assert [address for _, address, _ in shown(value)] == ["10.96.0.10", "198.51.100.7"]
    assert rules(value).source_ranges == ({4: ("10.0.0.0/8", "10.0.0.0/8")}, ())


def test_node_ports_in_each_family_of_the_service() -> None:
    ports = (ServicePort(port=80, name="a", node_port=30080), ServicePort(port=81, name="b"))
    value = service(type="NodePort", ips=DUAL, ports=ports)
    assert [item.family for item in frontends(value) if item.kind is VipKind.NODE_PORT] == [4, 6]
    assert ("node-port", "", 30080) in shown(value)
    assert all(port != 0 for _, _, port in shown(value))


def test_addresses_of_a_family_that_the_service_has_not_are_left_out() -> None:
    value = service(external_ips=("203.0.113.1", "2001:db8::1", "203.0.113.1"))
    assert shown(value)[1:] == [("external", "203.0.113.1", 80)]


def test_an_address_named_twice_is_one_frontend() -> None:
    """As load balancers on the nodes' own addresses do; two would be in each other's way."""
    value = service(
        type="LoadBalancer",
        ips=DUAL,
        external_ips=("203.0.113.1", "203.0.113.2", "10.96.0.10"),
        ingress=("203.0.113.1", "fd96:0::10", "203.0.113.3", "203.0.113.3"),
    )
    assert shown(value)[2:] == [
        ("external", "203.0.113.2", 80),
        ("ingress", "203.0.113.1", 80),
        ("ingress", "203.0.113.3", 80),
    ]


def test_ingress_addresses_in_vip_mode_only() -> None:
    points = (
        "203.0.113.1",
        LoadBalancerIngress("203.0.113.2", "Proxy"),
        LoadBalancerIngress("203.0.113.3", "VIP"),
        LoadBalancerIngress(""),
    )
    value = service(type="LoadBalancer", ingress=points)
    assert shown(value)[1:] == [("ingress", "203.0.113.1", 80), ("ingress", "203.0.113.3", 80)]


@pytest.mark.parametrize(
    ("spec", "internal", "external"),
    [
        ({}, False, False),
        ({"internal_traffic_policy": "Local"}, True, False),
        ({"type": "NodePort", "external_traffic_policy": "Local"}, False, True),
        ({"type": "LoadBalancer", "external_traffic_policy": "Local"}, False, True),
        ({"external_ips": ("203.0.113.1",), "external_traffic_policy": "Local"}, False, True),
        ({"external_traffic_policy": "Local"}, False, False),  # nobody outside can reach it
    ],
)
def test_traffic_policies(spec: dict[str, Any], internal: bool, external: bool) -> None:
    found = rules(service(**spec))
    assert (found.internal_local, found.external_local) == (internal, external)


def test_affinity() -> None:
    assert rules(service()).affinity_s == 0
    assert rules(service(affinity_s=60)).affinity_s == 60
    assert rules(service(session_affinity="ClientIP")).affinity_s == 10800


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"type": "LoadBalancer", "external_traffic_policy": "Local"}, 31000),
        ({"type": "LoadBalancer", "external_traffic_policy": "Cluster"}, 0),
        ({"type": "NodePort", "external_traffic_policy": "Local"}, 0),
    ],
)
def test_a_health_check_needs_local_policy_and_a_load_balancer(spec: dict[str, Any], expected: int) -> None:
    assert rules(service(health_check_node_port=31000, **spec)).health_check_port == expected


def test_a_health_check_needs_a_port_that_there_is() -> None:
    spec: dict[str, Any] = {"type": "LoadBalancer", "external_traffic_policy": "Local"}
    assert rules(service(health_check_node_port=70000, **spec)).health_check_port == 0


def test_source_ranges() -> None:
    ranges = (" 10.0.0.7/8 ", "fd00::/8", "nonsense")  # as in Kubernetes, a range may have host bits
    spec: dict[str, Any] = {"type": "LoadBalancer", "load_balancer_source_ranges": ranges}
    annotation = ServiceAnnotations(load_balancer_source_ranges="192.0.2.0/24, 2001:db8::/32")
    expected = ({4: ("10.0.0.0/8",), 6: ("fd00::/8",)}, ("nonsense",))
    assert rules(service(**spec)).source_ranges == expected
    both = service(**spec, annotations=annotation)
    assert rules(both).source_ranges == expected
    only = service(type="LoadBalancer", annotations=annotation)
    assert rules(only).source_ranges == ({4: ("192.0.2.0/24",), 6: ("2001:db8::/32",)}, ())
    assert rules(service(annotations=annotation)).source_ranges == ({}, ())


@pytest.mark.parametrize(
    "text", ["10.0.0.0/33", "10.0.0.7", "10.0.0.0/255.0.0.0", "fe80::%eth0/64", "10.0.0/8", "/8", "x" * 9999]
)
def test_where_no_range_can_be_read_nobody_is_let_in(text: str) -> None:
    """Not all, as with kube-proxy: who writes ranges wants to keep some out."""

    def ranges(*texts: str) -> tuple[dict[int, tuple[str, ...]], tuple[str, ...]]:
        return rules(service(type="LoadBalancer", load_balancer_source_ranges=texts)).source_ranges

    assert ranges(text) == ({4: ("0.0.0.0/32",), 6: ("::/128",)}, (text,))
    assert ranges("192.0.2.0/24", text, text) == ({4: ("192.0.2.0/24",), 6: ("::/128",)}, (text,))
    assert ranges("", " ") == ({}, ())


def test_preserve_destination() -> None:
    assert rules(service(annotations=ServiceAnnotations(preserve_destination="true"))).preserve_destination
    assert not rules(
        service(annotations=ServiceAnnotations(preserve_destination="false"))
    ).preserve_destination
