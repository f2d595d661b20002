"""The matrix: what is probed, what is expected, and how an observation is judged."""

from __future__ import annotations

import msgspec
import pytest
from rich.console import Console

from samewire.lab.addressing import family_of
from samewire.lab.check import Fact, Report
from samewire.lab.matrix import Matrix
from samewire.lab.podspec import served_ports
from samewire.lab.probes import Expected, Observed, Probe, judge, observe
from samewire.lab.report import binary, check_document, check_table, next_steps
from samewire.lab.top import parse_net_dev
from tests.support.lab import lab_state


@pytest.fixture(scope="module")
def mixed() -> list[Probe]:
    probes = Matrix(lab_state("mixed-cluster")).probes()
    return [probe for probe in probes if not probe.category.startswith("service: ")]


def categories(probes: list[Probe]) -> set[str]:
    return {probe.category for probe in probes}


def test_every_kind_of_path_is_there_in_both_families(mixed: list[Probe]) -> None:
    assert categories(mixed) == {
        "node to its router",
        "pod to pod, same node",
        "pod to pod, other node",
        "containers by localhost",
        "pod to outside, node's address",
        "pod to outside, own address",
        "pod to own node",
        "pod to DNS on own node",
        "pod to other node",
        "pod to DNS on other node",
        "pod to hostNetwork pod",
        "node (hostNetwork) to own pod",
        "node (hostNetwork) to pod of other node",
        "outside to hostPort",
        "node to own hostPort",
        "node to own hostPort by 127.0.0.1",
        "pod to its own hostPort",
        "pod to hostPort",
    }
    for category in categories(mixed) - {"node to own hostPort by 127.0.0.1"}:
        assert {probe.family for probe in mixed if probe.category == category} == {4, 6}, category
    across = {probe.column for probe in mixed if probe.category == "pod to pod, other node"}
    assert across == {"tcp", "udp", "icmp", "tcp+", "udp+"}


@pytest.mark.parametrize(
    ("host_ip", "loopback", "families"),
    [
        ("", True, {4, 6}),
        ("0.0.0.0", True, {4}),
        ("::", False, {6}),
        ("127.0.0.1", True, set()),
        ("::1", False, set()),
    ],
)
def test_a_host_port_is_asked_for_where_its_host_ip_is(
    host_ip: str, loopback: bool, families: set[int]
) -> None:
    state = lab_state("mixed-cluster")
    (pod, *_) = [one for one in state.pods if one.pod.name.startswith("web-")]
    first, *rest = pod.pod.template.containers
    port = msgspec.structs.replace(first.ports[0], host_ip=host_ip)
    containers = (msgspec.structs.replace(first, ports=(port,)), *rest)
    template = msgspec.structs.replace(pod.pod.template, containers=containers)
    alone = msgspec.structs.replace(pod, pod=msgspec.structs.replace(pod.pod, template=template))
    found = Matrix(msgspec.structs.replace(state, pods=(alone,))).probes()
    by_loopback = [probe.address for probe in found if probe.category == "node to own hostPort by 127.0.0.1"]
    assert by_loopback == ["127.0.0.1"] * loopback
    for category in ("outside to hostPort", "node to own hostPort", "pod to its own hostPort"):
        assert {probe.family for probe in found if probe.category == category} == families


def test_a_node_is_not_asked_for_host_ports_of_a_network_that_it_is_no_part_of() -> None:
    state = lab_state("mixed-cluster")
    network = msgspec.structs.replace(state.cluster.networks[0], host_route=False)
    cut_off = msgspec.structs.replace(state.cluster, networks=(network,))
    found = categories(Matrix(msgspec.structs.replace(state, cluster=cut_off)).probes())
    assert {one for one in found if "hostPort" in one} == {
        "outside to hostPort",
        "pod to its own hostPort",
        "pod to hostPort",
    }


def test_every_ordered_pair_of_nodes_is_crossed(mixed: list[Probe]) -> None:
    rows = {probe.row for probe in mixed if probe.category == "pod to pod, other node"}
    names = ("alpha", "beta", "gamma (kernel)")
    assert rows == {f"{a} → {b}" for a in names for b in names if a != b}


def test_source_addresses_follow_the_nat_exceptions(mixed: list[Probe]) -> None:
    state = lab_state("mixed-cluster")
    pods = {pod.pod.key: pod for pod in state.pods}
    for probe in mixed:
        if probe.category == "pod to outside, own address":
            assert probe.target == "datacenter"
            assert set(probe.expected.sources) <= set(pods[probe.source].addresses)
        if probe.category == "pod to outside, node's address":
            assert probe.target == "internet"
            node = state.node(pods[probe.source].pod.node)
            assert set(probe.expected.sources) <= set(node.plan.addresses)
            assert len(probe.expected.sources) == 1
        if probe.category.startswith("pod to pod"):
            assert set(probe.expected.sources) <= set(pods[probe.source].addresses)
            assert probe.expected.hostname == (pods[probe.target].hostname if probe.port else "")


def test_sources_are_of_the_targets_family(mixed: list[Probe]) -> None:
    for probe in mixed:
        assert all(family_of(source) == probe.family for source in probe.expected.sources)


def test_containers_are_told_apart_by_localhost(mixed: list[Probe]) -> None:
    local = [probe for probe in mixed if probe.category == "containers by localhost"]
    assert {probe.expected.container for probe in local} >= {"nginx", "exporter"}
    assert {probe.address for probe in local} == {"127.0.0.1", "::1"}
    assert all(probe.source == probe.target for probe in local)


def test_any_container_of_several_on_one_port_may_answer() -> None:
    """One has it for TCP and one for UDP, say; a stand-in answers both. Pods of a node's network share its ports."""
    state = lab_state("mixed-cluster")
    web = next(pod for pod in state.pods if pod.pod.owner == "Deployment/web")
    exporter = next(pod for pod in state.pods if pod.pod.template.host_network)
    twice = []
    for pod in (web, exporter):
        template, own = pod.pod.template, pod.pod.template.containers[0]
        more = msgspec.structs.replace(own, name="other")
        other = msgspec.structs.replace(template, containers=(*template.containers, more))
        twice.append(msgspec.structs.replace(pod, pod=msgspec.structs.replace(pod.pod, template=other)))
    pods = tuple(
        {web.pod.key: twice[0], exporter.pod.key: twice[1]}.get(one.pod.key, one) for one in state.pods
    )
    probes = Matrix(msgspec.structs.replace(state, pods=pods)).probes()
    address, port = exporter.addresses[0], served_ports(exporter.pod.template.containers[0])[0]
    of_node = [probe for probe in probes if (probe.address, probe.port) == (address, port)]
    of_pod = [probe for probe in probes if probe.source == web.pod.key and probe.address == "127.0.0.1"]
    shared = served_ports(web.pod.template.containers[0])
    assert of_node
    assert not any(probe.expected.container for probe in of_node)
    assert {bool(probe.expected.container) for probe in of_pod if probe.port in shared} == {False}
    assert {bool(probe.expected.container) for probe in of_pod if probe.port not in shared} == {True}


def test_tenants_expect_silence_from_what_only_the_other_has() -> None:
    probes = Matrix(lab_state("two-tenants")).probes()
    foreign = [probe for probe in probes if probe.category == "other tenant's address"]
    assert {probe.row for probe in foreign} == {"red → blue"}
    assert {probe.address for probe in foreign} == {"10.244.1.4", "10.244.2.4"}
    assert not any(probe.expected.reachable for probe in foreign)
    assert "pod to own node" not in categories(probes)
    assert not any(probe.category.startswith("node (hostNetwork)") for probe in probes)
    # The same address means a different pod in each tenant.
    answers = {
        (probe.source.partition("/")[0], probe.address): probe.expected.hostname
        for probe in probes
        if probe.category == "pod to pod, other node" and probe.column == "tcp"
    }
    assert answers["red", "10.244.2.2"] != answers["blue", "10.244.2.2"]


def test_a_command_is_only_connected_to() -> None:
    state = lab_state("mixed-cluster")
    pod = state.find_pod("db-0")
    changed = msgspec.structs.replace(
        pod, pod=msgspec.structs.replace(pod.pod, commands={"postgres": ("/bin/true",)})
    )
    pods = tuple(changed if item is pod else item for item in state.pods)
    probes = Matrix(msgspec.structs.replace(state, pods=pods)).probes()
    found = [
        probe for probe in probes if probe.target == "shop/db-0" and probe.category.startswith("pod to pod")
    ]
    assert {probe.protocol for probe in found} == {"connect", "icmp"}
    assert {probe.column for probe in found} == {"tcp", "icmp"}


def a_probe(expected: Expected, column: str = "tcp") -> Probe:
    return Probe("c", "r", column, "a", "b", column.rstrip("+"), "10.0.0.1", 80, expected)


@pytest.mark.parametrize(
    ("expected", "observed", "why"),
    [
        (Expected(), Observed(True), ""),
        (Expected(), Observed(False, error="no answer"), "no answer"),
        (Expected(reachable=False), Observed(False, error="no answer"), ""),
        (Expected(reachable=False), Observed(True, "x"), "answered by x; it must not be reachable"),
        (Expected(hostname="x"), Observed(True, "y"), "answered by y, expected x"),
        (Expected(container="c"), Observed(True, container="d"), "answered by container d, expected c"),
        (Expected(sources=("1.1.1.1",)), Observed(True, source="1.1.1.1"), ""),
        (
            Expected(sources=("1.1.1.1", "2.2.2.2")),
            Observed(True, source="3.3.3.3"),
            "the far side saw 3.3.3.3, expected 1.1.1.1 or 2.2.2.2",
        ),
        (Expected(sources=("1.1.1.1",)), Observed(True), "the far side saw nothing, expected 1.1.1.1"),
    ],
)
def test_judging(expected: Expected, observed: Observed, why: str) -> None:
    cell = judge(a_probe(expected), observed)
    assert cell.why == why
    assert cell.ok is (not why)


def test_observing_an_answer_and_an_echo() -> None:
    reply = {"hostname": "h", "container": "c", "client": {"address": "1.2.3.4", "port": 5}}
    found = observe({"id": 1, "ok": True, "error": "", "tries": 2, "reply": reply}, {})
    assert found == Observed(True, "h", "c", "1.2.3.4", "", 2)
    echo = {"id": 1, "ok": True, "error": "", "tries": 1, "token": "ab"}
    assert observe(echo, {"ab": "1.2.3.4"}).source == "1.2.3.4"
    assert observe(echo, {}).source == ""
    assert observe({"id": 1, "ok": False, "error": "no answer", "tries": 3}, {}).error == "no answer"


def test_probes_on_the_wire() -> None:
    assert a_probe(Expected(), "udp+").wire(7)["size"] == 12_000
    assert a_probe(Expected(), "tcp+").wire(7)["size"] == 200_000
    assert a_probe(Expected(), "udp").wire(7)["tries"] == 3
    silent = a_probe(Expected(reachable=False), "udp").wire(7)
    assert silent["tries"] == 1
    assert silent["timeout_s"] < 1


def test_a_report_shows_every_wrong_cell() -> None:
    good, bad = a_probe(Expected()), a_probe(Expected(sources=("1.1.1.1",)))
    cells = (judge(good, Observed(True)), judge(bad, Observed(True, source="9.9.9.9")))
    report = Report("lab", cells, (Fact("MACs", "alpha", "a", "a b"),), 1.0)
    assert not report.ok
    console = Console(width=140)
    with console.capture() as capture:
        console.print(check_table(report))
    text = capture.get()
    assert "1/2" in text
    assert "the far side saw 9.9.9.9, expected 1.1.1.1" in text
    assert "expected a, found a b" in text
    document = check_document(report)
    assert document["ok"] is False
    assert [cell["ok"] for cell in document["cells"]] == [True, False]
    assert document["cells"][1]["observed"]["source"] == "9.9.9.9"
    assert document["facts"][0]["ok"] is False


def test_next_steps_work_as_they_stand() -> None:
    state = lab_state("mixed-cluster")
    assert not any("trace" in step for step in next_steps(state))  # nobody has a daemon in this state
    nodes = tuple(msgspec.structs.replace(node, socket="/s") for node in state.nodes)
    steps = next_steps(msgspec.structs.replace(state, nodes=nodes))
    assert "samewire lab trace --from web-mkmpvm6kb-wprw4 --to 10.244.2.2:80" in steps
    assert steps[-1] == "samewire lab down mixed"
    assert next_steps(msgspec.structs.replace(state, pods=()))[0] == "samewire lab check"
    only_v6 = tuple(msgspec.structs.replace(pod, addresses=pod.addresses[1:]) for pod in state.pods)
    steps = next_steps(msgspec.structs.replace(state, nodes=nodes, pods=only_v6))
    assert "samewire lab trace --from web-mkmpvm6kb-wprw4 --to '[fd00:244:0:2::2]:80'" in steps


def test_next_steps_name_the_lab_beside_another() -> None:
    steps = next_steps(lab_state("mixed-cluster"), alone=False)
    assert steps[0] == "samewire lab check mixed"
    assert steps[1].startswith("samewire lab exec --lab mixed web-")
    assert steps[-2:] == ["samewire lab top mixed", "samewire lab down mixed"]


def test_units_and_counters() -> None:
    assert [binary(count) for count in (0, 1023, 1536, 200 * 1024**2)] == ["0", "1023", "1.5Ki", "200Mi"]
    text = "Inter-| Receive\n face |bytes\n  lo: 1 1 0 0 0 0 0 0 1 1\neth0:10 1 0 0 0 0 0 0 20 1 0\n"
    assert parse_net_dev(text, "eth0") == (10, 20)
    assert parse_net_dev(text, "eth1") == (0, 0)
