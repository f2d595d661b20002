"""The cluster file: examples load, faults name their line and field, the exported schema is current."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from samewire.lab.addressing import node_attachments
from samewire.lab.cluster import Cluster, NetworkType, Services, Stack, UnderlayType, json_schema
from samewire.lab.loader import ClusterFileError, load_cluster, parse_cluster
from samewire.lab.rules import ingress_prefixes

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))

BASE = """\
underlay:
  type: l3
nodes:
  - name: alpha
    stack: samewire
    pod_cidrs: [10.244.1.0/24]
  - name: beta
    stack: kernel
    pod_cidrs: [10.244.2.0/24]
networks:
  - name: pods
    type: Overlay
outside:
  - name: internet
    addresses: [203.0.113.10]
"""


def load(text: str) -> Cluster:
    return parse_cluster(text, "lab.yaml", default_name="lab").cluster


def faults(text: str) -> list[str]:
    with pytest.raises(ClusterFileError) as caught:
        load(text)
    return caught.value.faults


def test_minimal_file_has_the_documented_defaults() -> None:
    cluster = load(BASE)
    assert cluster.name == "lab"
    assert cluster.underlay.type is UnderlayType.L3
    assert [node.stack for node in cluster.nodes] == [Stack.SAMEWIRE, Stack.KERNEL]
    network = cluster.networks[0]
    assert (network.type, network.vni, network.vxlan_port) == (NetworkType.OVERLAY, 4096, 4789)
    assert network.dns.servers == ("node",)


def test_a_default_that_nobody_has_asked_for_is_in_nobodys_way() -> None:
    """An underlay where load balancers would have their addresses: they get none of it."""
    assert ingress_prefixes(load(BASE)) == ("192.0.2.0/24",)
    there = load(BASE.replace("  type: l3", "  type: l3\n  ipv4: 192.0.2.0/24"))
    assert ingress_prefixes(there) == ()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_load_and_satisfy_the_schema(path: Path) -> None:
    cluster = load_cluster(path).cluster
    assert cluster.name == path.stem or path.stem.startswith(cluster.name)
    jsonschema.validate(yaml.safe_load(path.read_text()), json_schema())


def test_exported_schema_is_current() -> None:
    exported = json.loads((ROOT / "docs/api/cluster.schema.json").read_text())
    assert exported == json.loads(json.dumps(json_schema())), (
        "run: samewire lab schema > docs/api/cluster.schema.json"
    )


def test_every_field_of_the_schema_is_described() -> None:
    for name, definition in json_schema()["$defs"].items():
        for field, body in definition.get("properties", {}).items():
            described = "description" in body or "$ref" in body or field in {"name", "container"}
            plain_list = body.get("type") == "array" and "$ref" in body.get("items", {})
            assert described or plain_list or "anyOf" in body, f"{name}.{field}"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "stack: kernel",
            "stack: kernl",
            "lab.yaml:8: nodes[1].stack: Invalid enum value 'kernl'; there are samewire, kernel",
        ),
        ("type: l3", "type: l4", "underlay.type: Invalid enum value 'l4'; there are l2, l3"),
        (
            "type: Overlay",
            "type: overlay",
            "networks[0].type: Invalid enum value 'overlay'; there are Overlay",
        ),
        (
            "stack: kernel",
            "stak: kernel",
            "lab.yaml:8: nodes[1].stak: no such field; did you mean stack?",
        ),
        ("    stack: kernel\n", "", "lab.yaml:7: nodes[1].stack: this field is required"),
        ("name: beta", "name: Beta!", "lab.yaml:7: nodes[1].name: expected lower-case letters"),
        ("name: beta", "name: alpha", "lab.yaml:7: nodes[1].name: 'alpha' is already taken"),
        ("name: beta", "name: switch", "lab.yaml:7: nodes[1].name: 'switch' is reserved"),
        (
            "[10.244.2.0/24]",
            "[10.244.2.1/24]",
            "lab.yaml:9: nodes[1].pod_cidrs[0]: 10.244.2.1/24 has host bits",
        ),
        ("[10.244.2.0/24]", "[10.244.1.128/25]", "lab.yaml:9: nodes[1].pod_cidrs[0]: overlaps 10.244.1.0/24"),
        ("[10.244.2.0/24]", "[172.31.9.0/24]", "lab.yaml:9: nodes[1].pod_cidrs[0]: overlaps the underlay"),
        ("[10.244.2.0/24]", "['fd00::/64']", "lab.yaml:3: nodes: all nodes need pod_cidrs of the same"),
        ("type: Overlay", "type: L2Bridge", "lab.yaml:12: networks[0].type: L2Bridge needs an l2 underlay"),
        ("type: Overlay", "type: Overlay\n    vni: 0", "lab.yaml:13: networks[0].vni: Expected `int` >= 1"),
        # The last VNI is the switch's own; no daemon would take it.
        ("type: Overlay", "type: Overlay\n    vni: 16777215", "networks[0].vni: Expected `int` <= 16777214"),
        (
            "type: Overlay",
            "type: Overlay\n    vxlan_port: 53",
            "lab.yaml:13: networks[0].vxlan_port: 53 is the lab's",
        ),
        ("type: Overlay", "type: [", "expected the node content"),
        ("type: l3", "type: l3\n  type: l2", "lab.yaml:3: underlay.type: the key appears twice"),
        ("type: l3", "type: l3\n  ipv4: 10.0.0.0/30", "lab.yaml:3: underlay.ipv4: the prefix is too small"),
        ("type: l3", "type: l3\n  ipv6: ''", "lab.yaml:3: underlay.ipv6: '' does not appear to be"),
        ("203.0.113.10", "172.31.0.9", "lab.yaml:15: outside[0].addresses[0]: lies inside the underlay"),
        (
            "outside:",
            "outside:\n  - {name: twin, addresses: [203.0.113.10]}",
            "lab.yaml:16: outside[1].addresses[0]: '203.0.113.10' is already taken",
        ),
        ("203.0.113.10", "'2001:db8::1'", "lab.yaml:15: outside[0].addresses[0]: the underlay has no IPv6"),
        ("[10.244.2.0/24]", "[224.0.1.0/24]", "lab.yaml:9: nodes[1].pod_cidrs[0]: no node can reach another"),
        ("type: Overlay", "type: Overlay\n    vni: !!int x", "lab.yaml:13: networks[0].vni: 'x' is no int"),
        ("name: beta", "name: 2020-99-99", "lab.yaml:7: nodes[1].name: '2020-99-99' is no timestamp"),
        (
            "outside:",
            'manifests: [{path: "a\\0b"}]\noutside:',
            "13: manifests[0].path: 'a\\x00b' has a zero byte",
        ),
        (
            "outside:",
            'manifests: [{path: "a\\uD800b"}]\noutside:',
            "13: manifests[0].path: 'a\\ud800b' has half of a surrogate pair",
        ),
        (
            "outside:",
            "manifests: [{path: a, namespace: A b}]\noutside:",
            "lab.yaml:13: manifests[0].namespace: 'A b' is not a valid namespace",
        ),
        (
            "type: Overlay",
            "type: Overlay\n    dns: {domain: a b}",
            "13: networks[0].dns.domain: 'a b' is not one",
        ),
        (
            "type: Overlay",
            'type: Overlay\n    dns: {search: [a, "b\\nnameserver 192.0.2.1"]}',
            "lab.yaml:13: networks[0].dns.search[1]: 'b\\nnameserver 192.0.2.1' is not one word",
        ),
        ("type: l3", "type: &a [*a]", "lab.yaml:1: cluster: is nested too deeply"),
        (
            "outside:",
            "services:\n  cluster_cidrs: [10.244.0.0/16]\noutside:",
            "services.cluster_cidrs[0]: 10.244.0.0/16 overlaps 10.244.1.0/24, which is in use",
        ),
        (
            "outside:",
            "services:\n  cluster_cidrs: [203.0.0.0/8]\noutside:",
            "lab.yaml:14: services.cluster_cidrs[0]: 203.0.0.0/8 overlaps 203.0.113.10/32, which is in use",
        ),
        (
            "outside:",
            "services:\n  cluster_cidrs: [10.96.0.0/16, 10.97.0.0/16]\noutside:",
            "lab.yaml:14: services.cluster_cidrs[1]: give at most one prefix a family",
        ),
        (
            "outside:",
            "services:\n  load_balancer_cidrs: [172.31.5.0/24]\noutside:",
            "lab.yaml:14: services.load_balancer_cidrs[0]: 172.31.5.0/24 overlaps 172.31.0.0/16, which is in use",
        ),
        (
            "203.0.113.10",
            "127.0.0.1",
            "lab.yaml:15: outside[0].addresses[0]: nobody reaches a host at 127.0.0.1",
        ),
        ("203.0.113.10", "'::'", "lab.yaml:15: outside[0].addresses[0]: nobody reaches a host at ::"),
        (
            "203.0.113.10",
            "'2001:db8::1%eth0'",
            "lab.yaml:15: outside[0].addresses[0]: nobody reaches a host at",
        ),
        ("203.0.113.10", "somewhere", "lab.yaml:15: outside[0].addresses[0]: 'somewhere' is not an IP"),
    ],
)
def test_faults_name_file_line_and_field(old: str, new: str, expected: str) -> None:
    assert old in BASE
    assert any(expected in fault for fault in faults(BASE.replace(old, new))), faults(BASE.replace(old, new))


def test_ipv6_pods_need_room_in_the_tunnel() -> None:
    text = BASE.replace("type: l3", "type: l3\n  ipv6: fd31::/48\n  mtu: 1329")
    text = text.replace("10.244.1.0/24", "'fd00:1::/64'").replace("10.244.2.0/24", "'fd00:2::/64'")
    assert faults(text) == ["lab.yaml:4: underlay.mtu: IPv6 pods of an Overlay network need 1330 or more"]
    assert load(text.replace("1329", "1330")).underlay.mtu == 1330


IPV6_ONLY = (
    BASE.replace("type: l3", "type: l3\n  ipv4: null\n  ipv6: fd31::/48")
    .replace("10.244.1.0/24", "'fd00:1::/64'")
    .replace("10.244.2.0/24", "'fd00:2::/64'")
    .replace("203.0.113.10", "'2001:db8::1'")
)


def test_an_underlay_of_ipv6_alone() -> None:
    cluster = load(IPV6_ONLY)
    jsonschema.validate(yaml.safe_load(IPV6_ONLY), json_schema())
    assert [uplink.addresses for uplink in node_attachments(cluster)] == [
        ("fd31::2/64",),
        ("fd31:0:0:1::2/64",),
    ]
    assert faults(IPV6_ONLY.replace("fd31::/48", "10.0.0.0/16")) == [
        "lab.yaml:4: underlay.ipv6: 10.0.0.0/16 is not an IPv6 prefix"
    ]
    assert faults(IPV6_ONLY.replace("'2001:db8::1'", "203.0.113.10")) == [
        "lab.yaml:17: outside[0].addresses[0]: the underlay has no IPv4"
    ]
    assert faults(IPV6_ONLY.replace("\n  ipv6: fd31::/48", "")) == [
        "lab.yaml:1: underlay: it needs ipv4 or ipv6"
    ]


def test_services_have_addresses_of_the_family_that_pods_have() -> None:
    """Single-stack Services, and load balancers, of a lab of IPv6 alone; what the file says is not touched."""
    cluster = load(IPV6_ONLY)
    assert cluster.services.cluster_cidrs == ("fd00:10:96::/112", "10.96.0.0/16")
    assert ingress_prefixes(cluster) == ("2001:db8:1b::/64",)
    own = load(IPV6_ONLY + "services: {cluster_cidrs: [10.97.0.0/16], load_balancer_cidrs: []}\n").services
    assert (own.cluster_cidrs, own.load_balancer_cidrs) == (("10.97.0.0/16",), ())
    assert load(BASE).services == Services()


def test_a_tunnel_over_ipv6_takes_more_room() -> None:
    text = IPV6_ONLY.replace("ipv4: null", "ipv4: null\n  mtu: 1349")
    assert faults(text) == ["lab.yaml:4: underlay.mtu: IPv6 pods of an Overlay network need 1350 or more"]
    assert load(text.replace("1349", "1350")).underlay.mtu == 1350


def test_bridged_pods_of_a_family_that_the_underlay_lacks() -> None:
    text = BASE.replace("type: l3", "type: l2").replace("type: Overlay", "type: L2Bridge")
    text = text.replace("10.244.1.0/24", "10.244.1.0/24, 'fd00:1::/64'")
    text = text.replace("10.244.2.0/24", "10.244.2.0/24, 'fd00:2::/64'")
    assert faults(text) == [
        "lab.yaml:6: nodes[0].pod_cidrs[1]: L2Bridge pods leave by the underlay, which has no IPv6",
        "lab.yaml:9: nodes[1].pod_cidrs[1]: L2Bridge pods leave by the underlay, which has no IPv6",
    ]


def test_all_rule_faults_are_reported_at_once() -> None:
    text = BASE.replace("name: beta", "name: alpha").replace("203.0.113.10", "172.31.0.9")
    assert len(faults(text)) == 2


def test_nat_exceptions_must_cover_the_pods() -> None:
    text = BASE.replace("type: Overlay", "type: Overlay\n    nat_exceptions: [10.244.1.0/24]")
    assert faults(text) == [
        "lab.yaml:13: networks[0].nat_exceptions: pod CIDR 10.244.2.0/24 of beta is missing: "
        "pods would be NATed towards one another"
    ]


def test_several_networks_need_samewire_nodes_and_one_host_route() -> None:
    text = BASE.replace(
        "  - name: pods\n    type: Overlay\n",
        "  - name: red\n    type: Overlay\n  - name: blue\n    type: Overlay\n",
    )
    found = "\n".join(faults(text))
    assert "networks[1].vni: VNI 4096 is already that of red" in found
    assert "networks[1].host_route: the networks use the same pod CIDRs" in found
    assert "nodes[1].stack: a kernel node carries one network" in found


def test_empty_and_non_mapping_files() -> None:
    assert faults("") == ["lab.yaml:1: cluster: the file is empty"]
    assert "Expected `object`" in faults("- a\n- b\n")[0]
    (found,) = faults("kind: Pod\n---\nkind: Service\n")  # a manifest
    assert found.startswith(
        "lab.yaml:2: cluster: expected a single document in the stream, but found another"
    )
    assert "under `manifests`" in found


def test_files_that_are_no_text(tmp_path: Path) -> None:
    for content in (b"\xff\xfe", b"name: \x00"):
        (tmp_path / "c.yaml").write_bytes(content)
        with pytest.raises(ClusterFileError, match=r"c\.yaml:1: cluster: "):
            load_cluster(tmp_path / "c.yaml")


def test_a_range_of_the_underlay_is_allowed_for_l2bridge_only() -> None:
    text = BASE.replace("type: l3", "type: l2").replace("type: Overlay", "type: L2Bridge")
    text = text.replace("10.244.1.0/24", "172.31.1.0/24").replace("10.244.2.0/24", "172.31.2.0/24")
    assert load(text).networks[0].type is NetworkType.L2BRIDGE


def test_a_range_of_the_underlay_may_not_hold_nodes_or_router() -> None:
    text = BASE.replace("type: l3", "type: l2").replace("type: Overlay", "type: L2Bridge")
    text = text.replace("10.244.1.0/24", "172.31.0.0/24").replace("10.244.2.0/24", "172.31.2.0/24")
    assert faults(text) == [
        "lab.yaml:6: nodes[0].pod_cidrs[0]: holds 172.31.0.1, an address of the router or of a node"
    ]
