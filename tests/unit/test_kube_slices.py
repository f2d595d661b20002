"""EndpointSlices derived from pods, and what an API server would fill into Services."""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec
import pytest

from samewire.kube.admission import Wanted, WantedSpec, admit
from samewire.kube.model import EndpointSlice, Node, Pod, Service
from samewire.kube.slices import PodIndex, derive_slices

V4 = ipaddress.ip_network("10.96.0.0/24")
V6 = ipaddress.ip_network("fd00:96::/112")


def wanted(name: str = "web", labels: dict[str, str] | None = None, **spec: Any) -> Wanted:
    """A manifest's Service in namespace ``a``."""
    spec.setdefault("ports", [{"name": "http", "port": 80, "targetPort": "web"}])
    raw = {"metadata": {"namespace": "a", "name": name, "labels": labels or {}}, "spec": spec}
    return Wanted(msgspec.convert(raw, Service), msgspec.convert(spec, WantedSpec))


def admitted(item: Wanted, *networks: Any) -> Wanted:
    """What comes out of admission."""
    found, refused = admit([item], networks or (V4,))
    assert not refused
    return found[item.key]


def pod(name: str, *addresses: str, node: str = "node1", ready: bool = True, **more: Any) -> Pod:
    """A Pod with label app=web and a port named web."""
    containers = [{"name": "c", "ports": [{"name": "web", "containerPort": more.pop("port", 8080)}]}]
    raw = {
        "metadata": {"namespace": "a", "name": name, "labels": {"app": "web"}, **more.pop("metadata", {})},
        "spec": {"nodeName": node, "containers": containers},
        "status": {
            "phase": "Running", "podIPs": [{"ip": text} for text in addresses],
            "conditions": [{"type": "Ready", "status": str(ready)}], **more,
        },
    }  # fmt: skip
    return msgspec.convert(raw, Pod)


NODES = {
    "node1": msgspec.convert(
        {"metadata": {"name": "node1", "labels": {"topology.kubernetes.io/zone": "north"}}}, Node
    )
}
WEB = {"app": "web"}


def derive(item: Wanted, *pods: Pod, networks: tuple[Any, ...] = (V4,)) -> list[EndpointSlice]:
    """The slices of a Service over these pods."""
    return derive_slices(admitted(item, *networks), PodIndex(pods), NODES)


def test_pods_become_endpoints() -> None:
    (found,) = derive(wanted(selector=WEB), pod("b", "10.0.0.2"), pod("a", "10.0.0.1"))
    assert found.service_key == ("a", "web")
    assert found.address_type == "IPv4"
    assert [(port.name, port.protocol, port.port) for port in found.ports] == [("http", "TCP", 8080)]
    assert [item.addresses for item in found.endpoints] == [("10.0.0.1",), ("10.0.0.2",)]
    first = found.endpoints[0]
    assert (first.ready, first.serving, first.terminating) == (True, True, False)
    assert (first.node_name, first.zone, first.hints) == ("node1", "north", None)


def test_readiness_and_termination() -> None:
    pods = [
        pod("1", "10.0.0.1", ready=False),
        pod("2", "10.0.0.2", metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}),
        pod("3", "10.0.0.3", phase="Succeeded"),
        pod("4"),
        pod("5", "10.0.0.5", metadata={"labels": {"app": "other"}}),
        pod("6", "10.0.0.6", metadata={"namespace": "b"}),
    ]
    (found,) = derive(wanted(selector=WEB), *pods)
    seen = [(item.addresses[0], item.ready, item.serving, item.terminating) for item in found.endpoints]
    assert seen == [("10.0.0.1", False, False, False), ("10.0.0.2", False, True, True)]
    (found,) = derive(wanted(selector=WEB, publishNotReadyAddresses=True), *pods)
    assert [item.ready for item in found.endpoints] == [True, True]


def test_all_labels_must_fit() -> None:
    both = pod("1", "10.0.0.1", metadata={"labels": {"app": "web", "tier": "front"}})
    (found,) = derive(wanted(selector={"app": "web", "tier": "front"}), both, pod("2", "10.0.0.2"))
    assert [item.addresses[0] for item in found.endpoints] == ["10.0.0.1"]


def test_a_named_port_may_differ_from_pod_to_pod() -> None:
    slices = derive(wanted(selector=WEB), pod("1", "10.0.0.1"), pod("2", "10.0.0.2", port=9090))
    seen = {(item.ports[0].port, item.endpoints[0].addresses[0]) for item in slices}
    assert seen == {(8080, "10.0.0.1"), (9090, "10.0.0.2")}
    assert len({item.key for item in slices}) == 2


def test_a_port_that_a_pod_does_not_declare_is_left_out() -> None:
    ports = [
        {"name": "http", "port": 80, "targetPort": "web"},
        {"name": "admin", "port": 81, "targetPort": "admin"},
    ]
    (found,) = derive(wanted(selector=WEB, ports=ports), pod("1", "10.0.0.1"))
    assert [port.name for port in found.ports] == ["http"]


@pytest.mark.parametrize(("target", "number"), [(8081, 8081), ("8082", 8082), (None, 80)])
def test_target_ports_by_number(target: int | str | None, number: int) -> None:
    port = {"port": 80} | ({"targetPort": target} if target else {})
    (found,) = derive(wanted(selector=WEB, ports=[port]), pod("1", "10.0.0.1"))
    assert found.ports[0].port == number


def test_both_families_have_slices_of_their_own() -> None:
    item = wanted(selector=WEB, ipFamilyPolicy="PreferDualStack")
    slices = derive(item, pod("1", "10.0.0.1", "fd00::1"), pod("2", "10.0.0.2"), networks=(V4, V6))
    seen = {item.address_type: [end.addresses for end in item.endpoints] for item in slices}
    assert seen == {"IPv4": [("10.0.0.1",), ("10.0.0.2",)], "IPv6": [("fd00::1",)]}


def test_many_endpoints_fill_several_slices() -> None:
    slices = derive(wanted(selector=WEB), *(pod(f"p{n:03}", f"10.0.1.{n}") for n in range(250)))
    assert [len(item.endpoints) for item in slices] == [100, 100, 50]
    assert len({item.key for item in slices}) == 3


def test_headless_services_have_slices_and_say_so() -> None:
    (found,) = derive(wanted(selector=WEB, clusterIP="None"), pod("1", "10.0.0.1"))
    assert found.metadata.labels.headless == ""


def test_who_has_none() -> None:
    pods = (pod("1", "10.0.0.1"),)
    assert derive(wanted(), *pods) == []
    assert derive(wanted(selector=WEB, type="ExternalName"), *pods) == []


def test_another_proxys_label_is_passed_on() -> None:
    labels = {"service.kubernetes.io/service-proxy-name": "mine"}
    (found,) = derive(wanted(selector=WEB, labels=labels), pod("1", "10.0.0.1"))
    assert found.metadata.labels.service_proxy_name == "mine"


@pytest.mark.parametrize(
    ("wish", "zones", "nodes"),
    [
        ("PreferClose", ["north"], []),
        ("PreferSameZone", ["north"], []),
        ("PreferSameNode", ["north"], ["node1"]),
    ],
)
def test_traffic_distribution_gives_hints(wish: str, zones: list[str], nodes: list[str]) -> None:
    pods = (pod("1", "10.0.0.1"), pod("2", "10.0.0.2", ready=False))
    (found,) = derive(wanted(selector=WEB, trafficDistribution=wish), *pods)
    hints = found.endpoints[0].hints
    assert hints is not None
    assert ([hint.name for hint in hints.for_zones], [hint.name for hint in hints.for_nodes]) == (
        zones,
        nodes,
    )
    assert found.endpoints[1].hints is None


# --- admission ---


def addresses(*items: Wanted, networks: tuple[Any, ...] = (V4,)) -> dict[str, tuple[str, ...]]:
    """Cluster IPs by name."""
    found, refused = admit(items, networks)
    assert not refused
    return {name: item.service.cluster_ips for (_, name), item in found.items()}


def test_cluster_ips_depend_on_the_names_alone() -> None:
    names = [f"web{number}" for number in range(100)]
    found = addresses(*map(wanted, names))
    assert found == addresses(*map(wanted, reversed(names)))
    assert len(set(found.values())) == 100
    assert all(ipaddress.ip_address(text) in V4 for (text,) in found.values())
    assert not {ips[0] for ips in found.values()} & {str(V4[n]) for n in (*range(16), 255)}


def test_a_new_service_leaves_most_others_alone() -> None:
    names = [f"web{number}" for number in range(60)]
    before = addresses(*map(wanted, names), networks=(ipaddress.ip_network("10.96.0.0/12"),))
    after = addresses(*map(wanted, [*names, "another"]), networks=(ipaddress.ip_network("10.96.0.0/12"),))
    assert {name: after[name] for name in names} == before


def test_given_addresses_are_kept_and_given_to_nobody_else() -> None:
    free = addresses(wanted("web"))["web"][0]
    found = addresses(wanted("web"), wanted("other", clusterIP=free))
    assert found["other"] == (free,)
    assert found["web"] != (free,)


def test_families_of_a_service() -> None:
    both = (V4, V6)
    found = addresses(
        wanted("single"),
        wanted("six", ipFamilies=["IPv6"]),
        wanted("both", ipFamilyPolicy="PreferDualStack"),
        wanted("six-first", ipFamilyPolicy="RequireDualStack", ipFamilies=["IPv6"]),
        wanted("given", clusterIPs=["fd00:96::9"], ipFamilyPolicy="PreferDualStack"),
        networks=both,
    )
    versions = {name: [ipaddress.ip_address(text).version for text in ips] for name, ips in found.items()}
    assert versions == {"single": [4], "six": [6], "both": [4, 6], "six-first": [6, 4], "given": [6, 4]}
    assert found["given"][0] == "fd00:96::9"
    assert len(addresses(wanted("both", ipFamilyPolicy="PreferDualStack"))["both"]) == 1


def test_a_service_that_cannot_be_admitted_stops_no_other() -> None:
    bad = wanted("bad", ipFamilyPolicy="RequireDualStack")
    worse = wanted("worse", ipFamilies=["IPv6"])
    found, refused = admit([bad, wanted("good"), worse], (V4,))
    assert found.keys() == {("a", "good")}
    assert {key for key, _ in refused} == {("a", "bad"), ("a", "worse")}
    tiny = ipaddress.ip_network("10.0.0.0/30")
    found, refused = admit([wanted(f"w{number}") for number in range(4)], (tiny,))
    assert (len(found), len(refused)) == (2, 2)
    assert "are taken" in refused[0][1]
    assert not admit([wanted("w")], (ipaddress.ip_network("10.0.0.1/32"),))[0]


def test_what_another_service_has_is_refused() -> None:
    """By name, whichever comes first in the files: every node must say the same."""
    ports = [{"name": p, "port": 80, "nodePort": 30007, "protocol": p} for p in ("TCP", "UDP")]
    first = wanted("a", type="NodePort", ports=ports, clusterIP="10.96.0.7")
    port = wanted("b", type="NodePort", ports=ports[:1])
    address = wanted("c", clusterIP="10.96.0.7")
    six, spelled = (wanted(name, clusterIP=text) for name, text in (("d", "fd96::7"), ("e", "FD96:0::0007")))
    found, refused = admit([address, port, first, spelled, six], (V4, V6))
    assert found.keys() == {("a", "a"), ("a", "d")}
    assert refused == [
        (("a", "b"), "nodePort: 30007 is that of Service a/a"),
        (("a", "c"), "clusterIP: 10.96.0.7 is that of Service a/a"),
        (("a", "e"), "clusterIP: fd96::7 is that of Service a/d"),
    ]


def test_a_service_needs_ports_unless_it_is_headless() -> None:
    found, refused = admit([wanted("a", ports=[]), wanted("b", ports=[], clusterIP="None")], (V4,))
    assert found.keys() == {("a", "b")}
    assert refused == [(("a", "a"), "ports: is required")]


@pytest.mark.parametrize(
    ("type_", "ports", "reason"),
    [
        ("ClusterIP", [{"port": 80}, {"port": 81}], "ports: each of several needs a name of its own"),
        ("ClusterIP", [{"name": "a", "port": 80}, {"name": "b", "port": 80}], "ports: 80/TCP is there twice"),
        (
            "NodePort",
            [{"name": "a", "port": 80, "nodePort": 30001}, {"name": "b", "port": 81, "nodePort": 30001}],
            "nodePort: 30001/TCP is there twice",
        ),
        ("ClusterIP", [{"port": 80, "nodePort": 30001}], "nodePort: a ClusterIP has none"),
        ("ClusterIP", [{"port": 80, "targetPort": "99999"}], "targetPort: 99999 is not within 1 to 65535"),
        ("ClusterIP", [{"port": 80, "targetPort": "0"}], "targetPort: 0 is not within 1 to 65535"),
    ],
)
def test_ports_that_an_api_server_does_not_take(
    type_: str, ports: list[dict[str, object]], reason: str
) -> None:
    """The endpoints of two ports of one name were those of both; of two of one number one was lost."""
    assert admit([wanted("a", type=type_, ports=ports)], (V4,)) == ({}, [(("a", "a"), reason)])


@pytest.mark.parametrize(
    ("port", "spec"),
    [
        ({"nodePort": 22}, {}),
        ({"nodePort": 70000}, {}),
        ({"nodePort": -1}, {}),
        ({}, {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 22}),
    ],
)
def test_a_node_port_is_one_of_the_range(port: dict[str, Any], spec: dict[str, Any]) -> None:
    """Others are the node's own (its SSH server's), or those of outbound NAT."""
    wish = wanted("a", **{"type": "NodePort", "ports": [{"port": 80, **port}], **spec})
    found, ((key, reason),) = admit([wish], (V4,))
    assert (found, key) == ({}, ("a", "a"))
    assert reason.endswith("is not within 30000 to 32767")
    if 22 in (*port.values(), *spec.values()):
        assert admit([wish], (V4,), range(20, 40))[0]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"clusterIPs": ["10.96.0.4", "10.96.0.5"]}, "clusterIPs: one of each family at most"),
        ({"ipFamilies": ["IPv4", "IPv4"]}, "ipFamilies: names one twice"),
        (
            {"ipFamilies": ["IPv4"], "clusterIP": "fd00::1"},
            "clusterIPs: there is one of IPv6, which is not in ipFamilies",
        ),
        ({"clusterIP": "127.0.0.1"}, "clusterIPs: 127.0.0.1 cannot be the address of a host"),
        ({"clusterIP": "fe80::1"}, "clusterIPs: fe80::1 cannot be the address of a host"),
    ],
)
def test_addresses_that_an_api_server_does_not_take(spec: dict[str, Any], reason: str) -> None:
    """One of two was lost without a word; and localhost was a Service's."""
    assert admit([wanted("a", **spec)], (V4, V6)) == ({}, [(("a", "a"), reason)])


def test_headless_and_external_names_get_no_address() -> None:
    headless = admitted(wanted(clusterIP="None")).service
    assert (headless.headless, headless.cluster_ips, headless.spec.ip_families) == (True, (), ("IPv4",))
    external = admitted(wanted(type="ExternalName", externalName="example.org")).service
    assert external.cluster_ips == ()


def test_node_ports() -> None:
    ports = [{"name": "a", "port": 80}, {"name": "b", "port": 81, "nodePort": 30007}]
    spec = admitted(wanted(type="NodePort", ports=ports)).service.spec
    first, second = (port.node_port for port in spec.ports)
    assert (second, spec.external_traffic_policy) == (30007, "Cluster")
    assert 30000 <= first <= 32767
    assert first != 30007
    found, _ = admit([wanted(type="NodePort", ports=ports[:1])], (V4,), range(20000, 20001))
    assert found["a", "web"].service.spec.ports[0].node_port == 20000
    plain = admitted(wanted(ports=ports[:1])).service.spec
    assert (plain.ports[0].node_port, plain.external_traffic_policy) == (0, "")


def test_load_balancers() -> None:
    local = admitted(wanted(type="LoadBalancer", externalTrafficPolicy="Local")).service.spec
    assert local.health_check_node_port >= 30000
    assert local.health_check_node_port != local.ports[0].node_port
    without = admitted(wanted(type="LoadBalancer", allocateLoadBalancerNodePorts=False)).service.spec
    assert without.ports[0].node_port == 0
