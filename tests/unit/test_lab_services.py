"""Services of a lab: what the daemons are given, who ought to answer, which cells there are."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from samewire.kube.manifest_files import parse_manifests
from samewire.lab.addressing import family_of
from samewire.lab.cluster import Stack
from samewire.lab.matrix import Matrix
from samewire.lab.probes import Expected, Observed, Probe, judge
from samewire.lab.services import (
    answerers,
    balanced_pods,
    cluster_prefixes,
    is_served,
    node_objects,
    pod_objects,
    reasons_lacking,
    routed_addresses,
    service_plans,
    with_ingress,
)
from samewire.lab.state import LabState
from samewire.lab.underlay import service_routes
from samewire.lab.up import read_plan
from tests.support.lab import EXAMPLES, lab_state


@pytest.fixture(scope="module")
def guestbook() -> LabState:
    return lab_state("guestbook")


@pytest.fixture(scope="module")
def probes(guestbook: LabState) -> list[Probe]:
    return [probe for probe in Matrix(guestbook).probes() if probe.category.startswith("service: ")]


def of(probes: list[Probe], category: str, row: str = "") -> list[Probe]:
    found = [probe for probe in probes if probe.category == f"service: {category}" and row in probe.row]
    assert found
    return found


def test_every_front_door_is_asked_by_everybody(probes: list[Probe]) -> None:
    """Under both policies, in both families."""
    clients = {"pod", "the backend itself", "node", "outside", "pod of a kernel node"}
    wanted = {
        (f"{kind}{policy}", client, family)
        for kind, some in (
            ("ClusterIP", clients - {"outside"}),
            ("external IP", clients),
            ("NodePort", clients),
        )
        for policy in ("", ", policy Local")
        for client in some
        for family in (4, 6)
    }
    assert wanted == {
        (probe.category.removeprefix("service: "), probe.row.partition(" → ")[0], probe.family)
        for probe in probes
    }


def test_who_may_answer_follows_from_the_policies(guestbook: LabState, probes: list[Probe]) -> None:
    hosts = {
        node.plan.name: {
            pod.hostname
            for pod in guestbook.pods
            if pod.pod.owner == "Deployment/frontend" and pod.pod.node == node.plan.name
        }
        for node in guestbook.nodes
    }
    everywhere = set().union(*hosts.values())
    assert all(hosts.values())
    for probe in of(probes, "ClusterIP", "frontend:80"):
        assert set(probe.expected.hostnames) == everywhere
    for probe in of(probes, "NodePort, policy Local", "outside"):
        node = next(node for node in guestbook.nodes if probe.address in node.plan.addresses)
        assert set(probe.expected.hostnames) == hosts[node.plan.name]
        assert probe.expected.sources == ("203.0.113.10" if probe.family == 4 else "2001:db8:cafe::10",)
    for probe in of(probes, "ClusterIP, policy Local", "node →"):
        if not probe.row.startswith("pod"):
            assert set(probe.expected.hostnames) == hosts[probe.source]


def test_a_service_without_pods_is_expected_to_be_unreachable(probes: list[Probe]) -> None:
    found = of(probes, "ClusterIP", "retired:80")
    assert not any(probe.expected.reachable for probe in found)


def test_pods_show_their_own_address_and_to_themselves_the_gateways(probes: list[Probe]) -> None:
    for probe in of(probes, "ClusterIP", "pod → default/redis-leader"):
        assert len(probe.expected.sources) == 1
    for probe in of(probes, "ClusterIP", "the backend itself → default/redis-leader"):
        assert len(probe.expected.sources) == 2
        assert all(family_of(source) == probe.family for source in probe.expected.sources)


def test_headless_services_have_no_cells(probes: list[Probe]) -> None:
    assert not any("redis-all" in probe.row for probe in probes)


def test_what_the_daemons_read_is_what_they_can_read(guestbook: LabState) -> None:
    nodes = node_objects(node.plan for node in guestbook.nodes)
    pods = pod_objects(guestbook.pods)
    document = {"apiVersion": "v1", "kind": "List", "items": [*nodes, *pods]}
    content = parse_manifests(json.dumps(document))
    assert len(content.others) == len(guestbook.nodes) + len(guestbook.pods)


def test_named_ports_are_each_pods_own(guestbook: LabState) -> None:
    frontend = next(service for service in guestbook.services if service.name == "frontend")
    assert frontend.ports[0].target == "http"
    behind = answerers(frontend, frontend.ports[0], guestbook.pods, 6)
    assert {one.port for one in behind} == {80}
    assert is_served(frontend, guestbook.pods)
    retired = next(service for service in guestbook.services if service.name == "retired")
    assert not is_served(retired, guestbook.pods)


def test_a_load_balancer_gets_an_address_of_each_family_unless_it_brings_one() -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "a", "namespace": "x"},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]},
    }
    own = {**service, "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.9"}]}}}
    given, kept = with_ingress([service, own], ("192.0.2.0/30", "2001:db8::/126"))
    assert given["status"]["loadBalancer"]["ingress"] == [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}]
    assert kept == own
    first, second = with_ingress([service, service], ("192.0.2.7/32", "2001:db8::7/128"))
    assert first["status"]["loadBalancer"]["ingress"] == [{"ip": "192.0.2.7"}, {"ip": "2001:db8::7"}]
    assert not second["status"]["loadBalancer"]["ingress"], "there is one address"
    assert list(routed_addresses(service_plans([given], ("10.96.0.0/16",)))) == ["192.0.2.1", "2001:db8::1"]


def test_what_a_proxy_in_front_has_is_not_led_to_the_nodes() -> None:
    """A load balancer that puts its own address in (`ipMode: Proxy`) is the cloud's, and none is here."""
    ingress = [{"ip": "192.0.2.77", "ipMode": "Proxy"}, {"ip": "192.0.2.78", "ipMode": "VIP"}]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "a", "namespace": "x"},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]},
        "status": {"loadBalancer": {"ingress": ingress}},
    }
    (found,) = service_plans([service], ("10.96.0.0/16",))
    assert (found.external_ips, found.ingress_ips) == (("192.0.2.78",), ("192.0.2.78",))


def test_source_ranges_let_in_whom_they_say(guestbook: LabState) -> None:
    """And say nothing of whom a masquerade on the way may hide."""
    behind = next(service for service in guestbook.services if service.ingress_ips)
    alpha = guestbook.nodes[0]
    ranges = tuple(address for address in alpha.plan.addresses if ":" not in address)
    limited = msgspec.structs.replace(behind, source_ranges=tuple(f"{address}/32" for address in ranges))
    matrix = Matrix(msgspec.structs.replace(guestbook, services=(limited,)))
    found = [probe for probe in matrix.probes() if probe.address in behind.ingress_ips]
    reached = {(probe.row.partition(" → ")[0], probe.source) for probe in found if probe.expected.reachable}
    assert {probe.family for probe in found if not probe.expected.reachable} == {4}
    assert {source for client, source in reached if client == "node"} >= {alpha.plan.name}
    of4 = [probe for probe in found if probe.family == 4]
    assert {probe.source for probe in of4 if probe.expected.reachable} == {alpha.plan.name}
    assert {probe.row.partition(" → ")[0] for probe in of4} >= {"pod", "node", "outside"}
    others = [probe for probe in matrix.probes() if probe.category == "service: NodePort"]
    assert all(probe.expected.reachable for probe in others)


def test_a_cluster_ip_of_another_cluster_has_a_route_too() -> None:
    """Published and exported Services have some; pods of a kernel node did not reach them."""

    def service(name: str, address: str) -> dict[str, Any]:
        metadata = {"name": name, "namespace": "default"}
        spec = {"clusterIP": address, "ports": [{"port": 53}]}
        return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}

    objects = [service("dns", "10.3.0.10"), service("own", "10.96.0.10"), service("six", "fd00:3::10")]
    assert cluster_prefixes(objects, ("10.96.0.0/16", "fd00:10:96::/112")) == [
        "10.96.0.0/16",
        "fd00:10:96::/112",
        "10.3.0.10",
        "fd00:3::10",
    ]


def test_addresses_that_machines_of_the_lab_have_stay_theirs() -> None:
    """An exported Service has its own cluster's nodes as ingress; a node that lost its address to another was dead."""
    service: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "a", "namespace": "default"},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}], "externalTrafficPolicy": "Local"},
    }
    state, plan = lab_state("guestbook"), read_plan(EXAMPLES / "guestbook.yaml")
    nodes = [node.plan.address(4) for node in state.nodes]
    spec = {**service["spec"], "externalIPs": [*nodes, *plan.outside[0].addresses, "198.51.100.77"]}
    named = ({**service, "spec": spec},)
    routes = service_routes(msgspec.structs.replace(plan, services=named))
    assert [route.split()[2] for route in routes] == ["198.51.100.77"]

    target = next(pod for pod in state.pods if pod.pod.owner == "Deployment/frontend")
    selecting = {**spec, "selector": target.pod.template.labels, "ports": [{"port": 80, "targetPort": 80}]}
    services = service_plans([{**service, "spec": selecting}], ("10.96.0.0/16",))
    found = Matrix(msgspec.structs.replace(state, services=services)).probes()
    outside = [
        probe
        for probe in found
        if probe.row.startswith("outside") and probe.category.startswith("service: ext")
    ]
    kernel = {node.plan.address(4) for node in state.nodes if node.plan.stack is Stack.KERNEL}
    assert {probe.address for probe in outside} == {*nodes, "198.51.100.77"} - kernel
    for probe in outside:
        at = next(
            (node.plan.name for node in state.nodes if probe.address in node.plan.addresses),
            state.nodes[0].plan.name,
        )
        assert set(probe.expected.hostnames) == {
            pod.hostname
            for pod in state.pods
            if pod.pod.owner == "Deployment/frontend" and pod.pod.node == at
        }


def test_an_address_that_two_services_name_is_asked_for_one(guestbook: LabState) -> None:
    """The first by name has it, unless it is the other one's cluster IP."""
    target = next(pod for pod in guestbook.pods if pod.pod.owner == "Deployment/frontend")

    def named(name: str, **spec: Any) -> dict[str, Any]:
        ports = [{"port": 80, "targetPort": 80}]
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"ports": ports, "selector": target.pod.template.labels, **spec},
        }

    one = named("one", externalIPs=["198.51.100.77", "10.96.0.77"])
    two, zero = named("two", externalIPs=["198.51.100.77"]), named("zero", clusterIP="10.96.0.77")
    services = service_plans([zero, two, one], ("10.96.0.0/16",))
    found = Matrix(msgspec.structs.replace(guestbook, services=services)).probes()
    asked = {(probe.address, probe.row.partition(" → ")[2]) for probe in found if probe.address}
    own = {service.name: service.cluster_ips[0] for service in services}
    assert {pair for pair in asked if pair[1].startswith("default/")} == {
        (own["one"], "default/one:80"),
        ("198.51.100.77", "default/one:80"),
        ("10.96.0.77", "default/zero:80"),
        (own["two"], "default/two:80"),
    }
    served = {service.name: is_served(service, guestbook.pods) for service in services}
    assert served == {"one": True, "two": True, "zero": True}


def test_services_lead_to_pods_of_the_first_network_only(guestbook: LabState) -> None:
    """Pods of another tenant have the same addresses; nodes that are cut off ask nobody."""
    first, owner = guestbook.cluster.networks[0], "Deployment/frontend"
    cut_off = msgspec.structs.replace(first, host_route=False)
    cluster = msgspec.structs.replace(guestbook.cluster, networks=(cut_off, cut_off))
    pods = [
        msgspec.structs.replace(one, pod=msgspec.structs.replace(one.pod, network="other"))
        if one.pod.owner == owner
        else one
        for one in guestbook.pods
    ]
    assert {one.pod.owner for one in guestbook.pods} - {
        one.pod.owner for one in balanced_pods(pods, first.name)
    } == {owner}
    probes = Matrix(msgspec.structs.replace(guestbook, cluster=cluster, pods=tuple(pods))).probes()
    found = [probe for probe in probes if probe.category.startswith("service: ")]
    assert {probe.row.partition(" → ")[0] for probe in found} >= {"pod", "outside"}
    assert not any(probe.row.startswith("node →") for probe in found)
    assert not any(probe.row.startswith("pod of a kernel node") for probe in of(found, "ClusterIP"))
    assert not any(probe.expected.reachable for probe in of(found, "ClusterIP", "frontend:80"))
    assert any(probe.expected.reachable for probe in of(found, "ClusterIP", "redis-leader"))


def test_a_node_that_is_cut_off_answers_none_of_its_pods(guestbook: LabState) -> None:
    """A hostNetwork backend has no way back to a pod of its node; pods of other nodes reach it by NAT."""
    backend = next(pod for pod in guestbook.pods if pod.pod.owner == "Deployment/redis-leader")
    template = msgspec.structs.replace(backend.pod.template, host_network=True)
    on_node = msgspec.structs.replace(
        backend, pod=msgspec.structs.replace(backend.pod, template=template, network="")
    )
    pods = tuple(on_node if pod is backend else pod for pod in guestbook.pods)
    (first,) = guestbook.cluster.networks
    cut_off = msgspec.structs.replace(first, host_route=False)
    for network, answered in ((first, {"alpha", "beta"}), (cut_off, {"beta"})):
        cluster = msgspec.structs.replace(guestbook.cluster, networks=(network,))
        found = list(Matrix(msgspec.structs.replace(guestbook, cluster=cluster, pods=pods)).probes())
        asked = {probe.source for probe in of(found, "ClusterIP", "pod → default/redis-leader")}
        assert {pod.pod.node for pod in pods if pod.pod.key in asked} == answered


def test_source_ranges_are_read_as_the_daemons_read_them() -> None:
    spec = {
        "type": "LoadBalancer",
        "ports": [{"port": 80}],
        "loadBalancerSourceRanges": ["x", " 10.1.2.3/8 "],
    }
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": spec}
    (plan,) = service_plans([service], ("10.96.0.0/16",))
    assert plan.source_ranges == ("10.0.0.0/8", "::/128")
    assert plan.is_lacking, "the daemons say so, and that is waited for by nobody"
    assert list(reasons_lacking([plan])) == [("default/a", "loadBalancerSourceRanges: no prefixes: x")]


def test_a_preserved_destination_is_for_pods_that_have_the_address(guestbook: LabState) -> None:
    """No stand-in has the ingress IP; node ports lead to the node's own pods alone, as they do on Windows."""
    target = next(pod for pod in guestbook.pods if pod.pod.owner == "Deployment/frontend")
    service: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "a", "namespace": "default", "annotations": {"preserve-destination": "true"}},
        "spec": {
            "type": "LoadBalancer",
            "ports": [{"port": 80, "targetPort": 80, "nodePort": 30007}],
            "selector": target.pod.template.labels,
            "externalIPs": ["198.51.100.77"],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}]}},
    }
    services = service_plans([service], ("10.96.0.0/16",))
    found = list(Matrix(msgspec.structs.replace(guestbook, services=services)).probes())
    assert {probe.address for probe in of(found, "external IP")} == {"198.51.100.77"}
    nodes = {address: node.plan.name for node in guestbook.nodes for address in node.plan.addresses}
    for probe in of(found, "NodePort", "outside"):
        assert set(probe.expected.hostnames) == {
            pod.hostname
            for pod in guestbook.pods
            if pod.pod.owner == "Deployment/frontend" and pod.pod.node == nodes[probe.address]
        }


def test_any_of_several_may_answer() -> None:
    probe = Probe("c", "r", "tcp", "a", "", "tcp", "10.96.0.1", 80, Expected(hostnames=("one", "two")))
    assert judge(probe, Observed(True, hostname="two")).ok
    assert "three, expected one or two" in judge(probe, Observed(True, hostname="three")).why
