"""Placing pods, giving addresses, writing resolv.conf: everything decided before the kernel is touched."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from samewire.errors import Invalid
from samewire.lab.addressing import leg, node_attachments, on_underlay, router_addresses, segments
from samewire.lab.cluster import Cluster, Dns, Node, Override, Stack
from samewire.lab.hns import dr_mac, network_object, remote_subnet_routes
from samewire.lab.loader import parse_cluster
from samewire.lab.manifests import parse_manifests
from samewire.lab.names import pod_netns
from samewire.lab.plan import Plan, make_plan, nat_exceptions
from samewire.lab.podfiles import parse_resolv_conf, pod_dns, render_hosts, render_resolv_conf
from samewire.lab.podspec import DnsConfig
from samewire.lab.schedule import Pod, Scheduler, node_labels
from samewire.lab.stack import Vtep
from samewire.lab.up import read_plan

EXAMPLES = Path(__file__).parents[2] / "examples"

CLUSTER = """\
underlay: {type: l3, ipv4: 172.31.0.0/16, ipv6: "fd31::/48"}
nodes:
  - {name: alpha, stack: samewire, pod_cidrs: [10.244.1.0/24, "fd00:244:0:1::/64"]}
  - {name: beta, stack: samewire, pod_cidrs: [10.244.2.0/24, "fd00:244:0:2::/64"]}
networks:
  - {name: pods, type: Overlay}
outside:
  - {name: dc, addresses: [198.51.100.10], pod_routes: true}
"""


def cluster(text: str = CLUSTER) -> Cluster:
    return parse_cluster(text, "lab.yaml", "lab").cluster


def node(name: str, **fields: object) -> Node:
    return msgspec.convert({"name": name, "stack": "kernel", "pod_cidrs": ["10.0.0.0/24"], **fields}, Node)


def placed(text: str, *nodes: Node, overrides: tuple[Override, ...] = ()) -> Scheduler:
    scheduler = Scheduler(nodes or (node("a"), node("b"), node("c")), overrides)
    parsed = parse_manifests(text)
    assert not parsed.skipped
    for workload in parsed.workloads:
        scheduler.place(workload, "pods")
    return scheduler


def pods(kind: str, spec: str = "", replicas: int = 1, ports: str = "[]") -> str:
    template = f"{{spec: {{containers: [{{name: c, ports: {ports}}}]{spec}}}}}"
    return f"{{kind: {kind}, metadata: {{name: x}}, spec: {{replicas: {replicas}, template: {template}}}}}"


def test_replicas_spread_over_the_nodes() -> None:
    assert [pod.node for pod in placed(pods("StatefulSet", replicas=4)).pods] == ["a", "b", "c", "a"]


def test_daemon_sets_run_once_on_every_eligible_node() -> None:
    assert [pod.node for pod in placed(pods("DaemonSet")).pods] == ["a", "b", "c"]
    nodes = (node("a"), node("b", labels={"disk": "ssd"}), node("c", taints=["dedicated=db:NoSchedule"]))
    assert [pod.node for pod in placed(pods("DaemonSet"), *nodes).pods] == ["a", "b"]
    selected = placed(pods("DaemonSet", ", nodeSelector: {disk: ssd}"), *nodes)
    assert [pod.node for pod in selected.pods] == ["b"]
    assert not selected.pending
    nowhere = placed(pods("DaemonSet", ", nodeSelector: {beta.kubernetes.io/arch: s390x}"), *nodes)
    assert [item.name for item in nowhere.pending] == ["x"]
    assert "a: lacks beta.kubernetes.io/arch=s390x" in nowhere.pending[0].reason
    tolerant = placed(pods("DaemonSet", ", tolerations: [{operator: Exists}]"), *nodes)
    assert [pod.node for pod in tolerant.pods] == ["a", "b", "c"]
    unready = node("a", taints=["node.kubernetes.io/not-ready:NoExecute"])
    assert len(placed(pods("DaemonSet"), unready).pods) == 1
    assert len(placed(pods("Deployment"), unready).pending) == 1


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (", nodeName: b", "b"),
        (", nodeSelector: {kubernetes.io/hostname: c}", "c"),
        (", nodeSelector: {kubernetes.io/os: linux}", "a"),
        (", nodeName: elsewhere", "a: the pod names elsewhere"),
        (", nodeSelector: {kubernetes.io/os: windows}", "a: lacks kubernetes.io/os=windows"),
    ],
)
def test_node_name_and_selector(spec: str, expected: str) -> None:
    scheduler = placed(pods("StatefulSet", spec))
    found = [pod.node for pod in scheduler.pods] or [scheduler.pending[0].reason]
    assert found[0].startswith(expected)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("{key: tier, operator: In, values: [gold]}", ["b"]),
        ("{key: tier, operator: NotIn, values: [gold]}", ["a"]),
        ("{key: tier, operator: Exists}", ["b"]),
        ("{key: tier, operator: DoesNotExist}", ["a"]),
        ("{key: cores, operator: Gt, values: ['4']}", ["b"]),
        ("{key: cores, operator: Lt, values: ['4']}", ["a"]),
        ("{key: tier, operator: Gt, values: ['4']}", []),
        ("{key: tier, operator: Whatever}", []),
    ],
)
def test_required_node_affinity(expression: str, expected: list[str]) -> None:
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    terms = f"{{nodeSelectorTerms: [{{matchExpressions: [{expression}]}}]}}"
    spec = f", affinity: {{nodeAffinity: {{{required}: {terms}}}}}"
    nodes = (node("a", labels={"cores": "2"}), node("b", labels={"tier": "gold", "cores": "8"}))
    assert [pod.node for pod in placed(pods("DaemonSet", spec), *nodes).pods] == expected


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        ("{matchFields: [{key: metadata.name, operator: In, values: [b]}]}", ["b"]),
        ("{matchFields: [{key: metadata.name, operator: NotIn, values: [b]}]}", ["a"]),
        ("{matchFields: [{key: cores, operator: Exists}]}", []),
        ("{}", []),
    ],
)
def test_node_affinity_by_the_nodes_name(term: str, expected: list[str]) -> None:
    """Of a node's fields there is only its name; a label may be called so, too, and a term of nothing fits no node."""
    required = f"requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: [{term}]}}"
    nodes = (node("a", labels={"cores": "2", "metadata.name": "b"}), node("b"))
    found = placed(pods("DaemonSet", f", affinity: {{nodeAffinity: {{{required}}}}}"), *nodes)
    assert [pod.node for pod in found.pods] == expected


def test_host_ports_are_exclusive_and_a_preference_is_only_that() -> None:
    clash = placed(pods("StatefulSet", replicas=3, ports="[{containerPort: 80, hostPort: 8080}]"), node("a"))
    assert len(clash.pods) == 1
    assert [item.reason for item in clash.pending] == ["a: host port 8080/TCP is taken"] * 2
    own = placed(pods("StatefulSet", ports="[{containerPort: 1, hostPort: 53, protocol: UDP}]"), node("a"))
    assert own.pending[0].reason == "a: host port 53/UDP is taken"  # by the node's own DNS stand-in
    shy = (node("a", taints=["k:PreferNoSchedule"]), node("b"))
    assert [pod.node for pod in placed(pods("StatefulSet"), *shy).pods] == ["b"]
    assert [pod.node for pod in placed(pods("StatefulSet"), shy[0]).pods] == ["a"]


def test_a_named_node_takes_a_host_port_once() -> None:
    """As its kubelet, which does not count addresses: that is for CNI to refuse."""
    ports = "[{containerPort: 80, hostPort: 8080}]"
    found = placed(pods("Deployment", ", nodeName: b", replicas=2, ports=ports), node("a"), node("b"))
    assert [pod.node for pod in found.pods] == ["b"]
    assert [one.reason for one in found.pending] == ["a: the pod names b, b: host port 8080/TCP is taken"]
    small = placed(pods("Deployment", ", nodeName: a", replicas=2), node("a", pod_cidrs=("10.0.0.0/30",)))
    assert not small.pending


def test_a_node_takes_as_many_pods_as_it_has_addresses() -> None:
    """One more ended the whole lab up. Network, gateway and broadcast are nobody's."""
    tight = [node(name, pod_cidrs=[f"10.0.{at}.0/29", "fd00::/64"]) for at, name in enumerate("ab")]
    scheduler = placed(pods("ReplicaSet", replicas=12), *tight)
    assert [pod.node for pod in scheduler.pods] == ["a", "b"] * 5
    full = "a: no address of 10.0.0.0/29 is left, b: no address of 10.0.1.0/29 is left"
    assert [item.reason for item in scheduler.pending] == [full] * 2
    own = placed(pods("ReplicaSet", ", hostNetwork: true", replicas=12), *tight)
    assert (len(own.pods), own.pending) == (12, [])


def test_the_tunnels_port_is_taken_on_every_node() -> None:
    """A pod that has it ended the whole lab up."""
    ports = "[{containerPort: 1, hostPort: 4789, protocol: UDP}]"
    plan = make_plan(
        cluster(CLUSTER + "manifests: [{path: m.yaml}]\n"), {"m.yaml": pods("DaemonSet", ports=ports)}
    )
    assert [item.reason for item in plan.pending] == [
        "alpha: host port 4789/UDP is taken, beta: host port 4789/UDP is taken"
    ]


def test_host_ports_clash_where_their_addresses_do() -> None:
    def at(*addresses: str) -> Scheduler:
        ports = [f"[{{containerPort: 80, hostPort: 8080, hostIP: '{address}'}}]" for address in addresses]
        texts = [
            pods("StatefulSet", ports=port).replace("name: x", f"name: x{i}") for i, port in enumerate(ports)
        ]
        return placed("\n---\n".join(texts), node("a"))

    assert len(at("127.0.0.1", "127.0.0.2").pods) == 2
    for second in ("127.0.0.1", "0.0.0.0", "::", ""):
        assert [item.reason for item in at("127.0.0.1", second).pending] == ["a: host port 8080/TCP is taken"]


def test_a_workload_that_comes_twice_is_the_later_one() -> None:
    """As for who applies both: published sets have a file for all beside one for each."""
    texts = {"a.yaml": pods("Deployment", replicas=2), "b.yaml": pods("Deployment", ports="[]", replicas=3)}
    found = make_plan(cluster(CLUSTER + "manifests: [{path: a.yaml}, {path: b.yaml}]\n"), texts)
    assert (len(found.pods), found.pending) == (3, ())


def test_services_that_an_api_server_refuses_are_listed() -> None:
    spec = "{clusterIP: 10.96.0.77, ports: [{port: 80}]}"
    service = f"{{apiVersion: v1, kind: Service, metadata: {{name: %s}}, spec: {spec}}}"
    text = CLUSTER + "manifests: [{path: m.yaml}]\n"
    nowhere = service.replace("10.96.0.77", "0.0.0.0") % "three"
    services = [*(service % name for name in ("one", "two", "one")), nowhere]
    plan = make_plan(cluster(text), {"m.yaml": "\n---\n".join(services)})
    assert [(item.name, item.reason) for item in plan.skipped] == [
        ("default/three", "clusterIPs: 0.0.0.0 cannot be the address of a host"),
        ("default/two", "clusterIP: 10.96.0.77 is that of Service default/one"),
    ]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("externalIPs: [239.1.1.1]", "239.1.1.1 cannot be the address of a host"),
        ("externalIPs: [10.244.2.2]", "10.244.2.2 is in 10.244.2.0/24, which is in use"),
        ("clusterIP: 172.31.1.2", "172.31.1.2 is in 172.31.0.0/16, which is in use"),
        ("clusterIP: 198.51.100.10", "198.51.100.10 is in 198.51.100.10/32, which is in use"),
    ],
)
def test_services_whose_address_is_none_here_are_listed(spec: str, reason: str) -> None:
    """No daemon served them, and the lab did not come up; or it came up, and their address was another's no more."""
    service = "{apiVersion: v1, kind: Service, metadata: {name: %s}, spec: {ports: [{port: 80}], %s}}"
    texts = (service % ("bad", spec), service % ("good", "externalIPs: [172.31.0.2, 198.51.100.10]"))
    plan = make_plan(cluster(CLUSTER + "manifests: [{path: m.yaml}]\n"), {"m.yaml": "\n---\n".join(texts)})
    assert [(item.name, item.reason) for item in plan.skipped] == [("default/bad", reason)]
    assert [item["metadata"]["name"] for item in plan.services] == ["good"]


def test_a_load_balancer_is_not_given_the_address_of_an_outside_host() -> None:
    spec = "{type: LoadBalancer, ports: [{port: 80}]}"
    text = f"{{apiVersion: v1, kind: Service, metadata: {{name: x}}, spec: {spec}}}"
    away = CLUSTER.replace("198.51.100.10", "192.0.2.1")
    plan = make_plan(cluster(away + "manifests: [{path: m.yaml}]\n"), {"m.yaml": text})
    assert [one["status"]["loadBalancer"]["ingress"] for one in plan.services] == [[{"ip": "192.0.2.2"}]]


def test_services_that_lack_an_address_are_listed() -> None:
    """The first by name has it; the rest of the other's is served."""
    service = "{apiVersion: v1, kind: Service, metadata: {name: %s}, spec: {externalIPs: [%s], ports: [%s]}}"
    texts = [
        service % ("two", "198.51.100.77, 198.51.100.78", "{name: a, port: 80}, {name: b, port: 81}"),
        service % ("three", "198.51.100.77", "{port: 80, protocol: UDP}"),
        service % ("one", "198.51.100.77", "{port: 80}"),
        service % ("four", "198.51.100.78", "{name: a, port: 81}, {name: b, port: 82}"),
    ]
    plan = make_plan(cluster(CLUSTER + "manifests: [{path: m.yaml}]\n"), {"m.yaml": "\n---\n".join(texts)})
    assert [(item.kind, item.name, item.reason) for item in plan.skipped] == [
        (
            "Service",
            "default/two",
            f"198.51.100.{last} is that of Service default/{owner}, the rest is served",
        )
        for last, owner in (("77 port 80/TCP", "one"), ("78 port 81/TCP", "four"))
    ]
    assert len(plan.services) == 4


def test_a_second_pod_of_the_same_name_is_pending() -> None:
    scheduler = placed(f"{pods('StatefulSet')}\n---\n{pods('StatefulSet')}")
    assert [item.reason for item in scheduler.pending] == ["a pod of this name is there already"]


def test_labels_of_the_file_win_over_the_well_known_ones() -> None:
    assert node_labels(node("a", labels={"kubernetes.io/os": "windows"}))["kubernetes.io/os"] == "windows"
    assert node_labels(node("a"))["kubernetes.io/hostname"] == "a"


def test_overrides_run_a_command_or_the_manifests_own() -> None:
    text = "{kind: Pod, metadata: {name: x}, spec: {containers: [{name: c, command: [/bin/own]}, {name: d}]}}"
    given = Override(pod="default/x", container="c", command=("/bin/other",))
    own = Override(pod="default/*", container="c")
    nothing = Override(pod="default/*", container="d")
    (pod,) = placed(text, overrides=(given,)).pods
    assert pod.commands == {"c": ("/bin/other",)}
    (pod,) = placed(text, overrides=(own, nothing)).pods
    assert pod.commands == {"c": ("/bin/own",)}
    assert [pod.stands_in(container) for container in pod.template.containers] == [False, True]
    assert placed(text, overrides=(Override("other/*", "c", ("x",)),)).pods[0].commands == {}


def test_l3_gives_every_node_its_own_subnet() -> None:
    found = cluster()
    assert [[str(prefix) for prefix in segment] for segment in segments(found)] == [
        ["172.31.0.0/24", "fd31::/64"],
        ["172.31.1.0/24", "fd31:0:0:1::/64"],
    ]
    alpha, beta = node_attachments(found)
    assert alpha.addresses == ("172.31.0.2/24", "fd31::2/64")
    assert beta.gateways == ("172.31.1.1", "fd31:0:0:1::1")
    assert router_addresses(found, 1) == ("172.31.1.1/24", "fd31:0:0:1::1/64")
    assert leg(found, 1, 0).addresses == ("172.31.1.3/24", "fd31:0:0:1::3/64")


def test_l3_cuts_a_small_prefix_as_large_as_it_can() -> None:
    text = CLUSTER.replace("172.31.0.0/16", "172.31.0.0/24")
    assert [str(segment[0]) for segment in segments(cluster(text))] == ["172.31.0.0/25", "172.31.0.128/25"]


def test_l2_puts_all_nodes_on_one_segment() -> None:
    found = cluster(CLUSTER.replace("type: l3", "type: l2"))
    assert [item.addresses[0] for item in node_attachments(found)] == ["172.31.0.11/16", "172.31.0.12/16"]
    assert {item.segment for item in node_attachments(found)} == {0}
    assert str(on_underlay(found, "172.31.7.0/24")) == "172.31.0.0/16"
    assert on_underlay(found, "10.244.1.0/24") is None


def example(name: str) -> Plan:
    return read_plan(EXAMPLES / f"{name}.yaml")


@pytest.mark.parametrize(
    ("content", "reason"), [(b"\xff", "codec can't decode"), (None, "No such file or directory")]
)
def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(
        "{underlay: {type: l3}, nodes: [{name: a, stack: kernel, pod_cidrs: [10.1.0.0/24]}], "
        "networks: [{name: pods, type: Overlay}], manifests: [{path: web.yaml}]}"
    )
    if content is not None:
        (tmp_path / "web.yaml").write_bytes(content)
    with pytest.raises(Invalid, match=rf"lab.yaml:1: manifests\[0\].path: web.yaml: .*{reason}"):
        read_plan(file)


OVERRIDE = """
overrides:
  - pod: POD
    container: CONTAINER
    command: [/bin/true]
"""


@pytest.mark.parametrize(
    ("pod", "container", "fault"),
    [
        ("shop/web", "c", "lab.yaml:11: overrides[0].pod: no pod's namespace/name fits"),
        ("web", "c", "lab.yaml:11: overrides[0].pod: no pod's namespace/name fits"),
        (
            "*/web",
            "d",
            "lab.yaml:12: overrides[0].container: default/web has no such container; there are b, c",
        ),
        ("*/web", "c", ""),
        ("*/nowhere", "e", ""),
        ("default/none-*-*", "c", ""),
        ("*/db-0", "c", ""),
        ("*/nine-*", "c", "lab.yaml:11: overrides[0].pod: no pod's namespace/name fits"),
    ],
)
def test_an_override_that_concerns_no_container(tmp_path: Path, pod: str, container: str, fault: str) -> None:
    """It would have been an echo server in silence. What waits for a node, or has no pod now, is not looked into."""
    web = "{kind: Pod, metadata: {name: web}, spec: {containers: [{name: c}, {name: b}]}}"
    waits = "{kind: Pod, metadata: {name: nowhere}, spec: {nodeName: away, containers: [{name: e}]}}"
    none, db = (
        f"{{kind: {kind}, metadata: {{name: {name}}}, spec: "
        f"{{replicas: 0, template: {{spec: {{containers: [{{name: c}}]}}}}}}}}"
        for kind, name in (("Deployment", "none"), ("StatefulSet", "db"))
    )
    (tmp_path / "web.yaml").write_text("\n---\n".join((web, waits, none, db)))
    file = tmp_path / "lab.yaml"
    text = OVERRIDE.replace("POD", json.dumps(pod)).replace("CONTAINER", container)
    file.write_text(CLUSTER + "manifests: [{path: web.yaml}]" + text)
    if fault:
        with pytest.raises(Invalid, match=re.escape(fault)):
            read_plan(file)
    else:
        assert len(read_plan(file).pending) == 1


@pytest.mark.parametrize(
    ("command", "path", "known"),
    [
        ("[no-such-program, -x]", "", False),
        ("[/no/such/program]", "", False),
        ("[sh, -c, 'exit 0']", "", True),
        ("[./relative]", "", True),
        ("[]", "", True),
        ("[own]", "HERE", True),
    ],
)
def test_an_override_whose_program_is_not_there(tmp_path: Path, command: str, path: str, known: bool) -> None:
    """Its container would end at once, and `lab up` say nothing. The container's own PATH counts."""
    (tmp_path / "own").write_text("#!/bin/sh\n")
    (tmp_path / "own").chmod(0o755)
    env = f", env: [{{name: PATH, value: {json.dumps(str(tmp_path))}}}]" if path else ""
    (tmp_path / "web.yaml").write_text(
        f"{{kind: Pod, metadata: {{name: web}}, spec: {{containers: [{{name: c{env}}}]}}}}"
    )
    file = tmp_path / "lab.yaml"
    text = OVERRIDE.replace("POD", "'*/web'").replace("CONTAINER", "c").replace("[/bin/true]", command)
    file.write_text(CLUSTER + "manifests: [{path: web.yaml}]" + text)
    if known:
        assert read_plan(file).pods
    else:
        with pytest.raises(
            Invalid, match=r"lab.yaml:13: overrides\[0\].command: '.*' is no program of this machine"
        ):
            read_plan(file)


def test_the_mixed_example_has_the_asked_for_shape() -> None:
    plan = example("mixed-cluster")
    assert [found.stack for found in plan.nodes] == [Stack.SAMEWIRE, Stack.SAMEWIRE, Stack.KERNEL]
    assert (plan.cluster.networks[0].vni, plan.cluster.networks[0].vxlan_port) == (4096, 4789)
    assert not plan.pending
    assert any(len(pod.template.containers) == 2 for pod in plan.pods)
    assert all(len(found.pod_cidrs) == 2 for found in plan.nodes)


def test_tenants_reuse_the_same_prefixes_under_two_vnis() -> None:
    plan = example("two-tenants")
    assert [network.vni for network in plan.cluster.networks] == [5001, 5002]
    places = [(pod.network, pod.node) for pod in plan.pods]
    assert places.count(("red", "alpha")) == places.count(("red", "beta")) == 2
    assert places.count(("blue", "alpha")) == places.count(("blue", "beta")) == 3


def test_overlay_network_object_and_remote_routes() -> None:
    plan = make_plan(cluster(), {})
    alpha, beta = plan.nodes
    network = plan.cluster.networks[0]
    made = network_object(plan, alpha, network, "eth0")
    assert made["Type"] == "Overlay"
    (v4, v6) = made["Ipams"][0]["Subnets"]
    assert v4["Routes"] == [{"NextHop": "10.244.1.1", "DestinationPrefix": "0.0.0.0/0"}]
    assert v6["Routes"] == [{"NextHop": "fd00:244:0:1::1", "DestinationPrefix": "::/0"}]
    assert v4["Policies"] == [{"Type": "VSID", "Settings": {"IsolationId": 4096}}]
    assert [policy["Type"] for policy in made["Policies"]] == ["NetAdapterName", "VxlanPort", "HostRoute"]
    vtep = Vtep("pods", "beta", "172.31.1.2", "00:15:5d:0a:0b:0c", beta.pod_cidrs)
    assert remote_subnet_routes(network, [vtep])[0]["Settings"] == {
        "DestinationPrefix": "10.244.2.0/24",
        "IsolationId": 4096,
        "ProviderAddress": "172.31.1.2",
        "DistributedRouterMacAddress": "00-15-5D-0A-0B-0C",
    }
    published = {"Policies": [{"Type": "DrMacAddress", "Settings": {"Address": "00-15-5D-0A-0B-0C"}}]}
    assert dr_mac(published) == "00:15:5d:0a:0b:0c"


def test_l2bridge_network_objects_on_and_behind_the_underlay() -> None:
    ranged = example("l2bridge")
    made = network_object(ranged, ranged.nodes[0], ranged.cluster.networks[0], "eth0")
    (v4, _) = made["Ipams"][0]["Subnets"]
    assert v4["IpAddressPrefix"] == "172.29.0.0/16"
    assert v4["Routes"] == [{"NextHop": "172.29.0.1", "DestinationPrefix": "0.0.0.0/0"}]
    text = CLUSTER.replace("type: l3", "type: l2").replace("type: Overlay", "type: L2Bridge")
    routed = make_plan(cluster(text), {})
    made = network_object(routed, routed.nodes[0], routed.cluster.networks[0], "eth0")
    assert made["Ipams"][0]["Subnets"][0]["Routes"] == [
        {"NextHop": "10.244.1.1", "DestinationPrefix": "0.0.0.0/0"},
        {"NextHop": "172.31.0.12", "DestinationPrefix": "10.244.2.0/24"},
    ]


def test_nat_exceptions_default_to_all_pod_prefixes() -> None:
    found = cluster()
    assert nat_exceptions(found, found.networks[0]) == (
        "10.244.1.0/24",
        "fd00:244:0:1::/64",
        "10.244.2.0/24",
        "fd00:244:0:2::/64",
    )


def a_pod(spec: str) -> Pod:
    text = f"{{kind: Pod, metadata: {{name: x, namespace: shop}}, spec: {{containers: [{{name: c}}]{spec}}}}}"
    return placed(text).pods[0]


NODE_FILE = "# by hand\nsearch corp.example\nnameserver 192.0.2.53\noptions timeout:1 ndots:1\n"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            "",
            (
                ["10.0.0.1"],
                ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "extra.example"],
                ["ndots:5"],
            ),
        ),
        (", dnsPolicy: Default", (["192.0.2.53"], ["corp.example"], ["timeout:1", "ndots:1"])),
        (", hostNetwork: true", (["192.0.2.53"], ["corp.example"], ["timeout:1", "ndots:1"])),
        (", dnsPolicy: None, dnsConfig: {nameservers: [192.0.2.1]}", (["192.0.2.1"], [], [])),
        (
            ", dnsPolicy: Default, dnsConfig: {nameservers: [192.0.2.1, 192.0.2.53], searches: [b.example],"
            " options: [{name: ndots, value: '2'}, {name: edns0}]}",
            (
                ["192.0.2.53", "192.0.2.1"],
                ["corp.example", "b.example"],
                ["timeout:1", "ndots:2", "edns0"],
            ),
        ),
    ],
)
def test_resolv_conf_follows_the_pods_dns_policy(spec: str, expected: tuple[list[str], ...]) -> None:
    dns = pod_dns(a_pod(spec), Dns(search=("extra.example",)), "10.0.0.1", NODE_FILE)
    assert [list(dns.servers), list(dns.searches), list(dns.options)] == list(expected)
    assert parse_resolv_conf(render_resolv_conf(dns)) == dns


def test_host_network_with_cluster_first() -> None:
    pod = a_pod(", hostNetwork: true, dnsPolicy: ClusterFirstWithHostNet")
    assert pod_dns(pod, Dns(), "10.0.0.1", NODE_FILE).servers == ("10.0.0.1",)


def test_empty_resolv_conf_is_empty() -> None:
    assert render_resolv_conf(DnsConfig()) == ""


def test_a_pod_of_a_stateful_set_is_called_and_labelled_by_its_number() -> None:
    """Services select single pods by that label, and pods find one another by those names."""
    text = pods("StatefulSet", replicas=2).replace("{replicas", "{serviceName: db, replicas")
    first, second = placed(text).pods
    assert second.template.labels == {
        "statefulset.kubernetes.io/pod-name": "x-1",
        "apps.kubernetes.io/pod-index": "1",
    }
    assert (first.template.hostname, second.template.hostname) == ("x-0", "x-1")
    text = render_hosts(first, "x-0", ("10.244.1.2",), "cluster.local")
    assert "10.244.1.2\tx-0.db.default.svc.cluster.local\tx-0\n" in text


def test_pods_of_jobs_have_the_jobs_name_and_their_number() -> None:
    text = "{kind: Job, metadata: {name: x}, spec: {parallelism: 2, completions: 2, template: T}}"
    text = text.replace("T}", "{metadata: {labels: {a: b}}, spec: {containers: [{name: c}]}}}")
    common = {"a": "b", "job-name": "x", "batch.kubernetes.io/job-name": "x"}
    assert [pod.template.labels for pod in placed(text).pods] == [common, common]
    indexed = placed(text.replace("template", "completionMode: Indexed, template")).pods
    numbers = [{**common, "batch.kubernetes.io/job-completion-index": number} for number in ("0", "1")]
    assert [pod.template.labels for pod in indexed] == numbers
    assert [pod.template.hostname for pod in indexed] == ["x-0", "x-1"]


def test_a_long_name_fits_a_file_and_stays_its_own() -> None:
    texts = [
        f"{{kind: Pod, metadata: {{name: {'a' * 250}{end}, namespace: {'n' * 63}}}, spec: S}}" for end in "bc"
    ]
    found = placed("\n---\n".join(texts).replace("S}", "{containers: [{name: c}]}}")).pods
    assert len({pod.slug for pod in found}) == 2
    lab = "l" * 24
    assert all(len(pod_netns(lab, pod.slug)) <= 255 for pod in found)


def test_hosts_has_every_address_the_subdomain_and_aliases() -> None:
    pod = a_pod(", subdomain: db, hostAliases: [{ip: 192.0.2.9, hostnames: [one, two]}]")
    text = render_hosts(pod, "x", ("10.244.1.2", "fd00::2"), "cluster.local")
    assert "10.244.1.2\tx.db.shop.svc.cluster.local\tx\n" in text
    assert "fd00::2\tx.db.shop.svc.cluster.local\tx\n" in text
    assert text.endswith("192.0.2.9\tone\ttwo\n")
