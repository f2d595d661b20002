"""Manifests: every pod-making kind, what is skipped and why, and that nothing published is ever fatal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samewire.lab.manifests import POD_KINDS, Workload, daemon_pod_name, parse_manifests
from samewire.lab.podspec import Port, oom_score_adj, quantity

EXAMPLE = Path(__file__).parents[2] / "examples/manifests/shop.yaml"

POD_SPEC = "{containers: [{name: c, ports: [{containerPort: 80}]}]}"


def one(text: str) -> Workload:
    parsed = parse_manifests(text)
    assert not parsed.skipped, parsed.skipped
    (workload,) = parsed.workloads
    return workload


def workload(kind: str, extra: str = "", name: str = "x") -> Workload:
    spec = POD_SPEC if kind == "Pod" else f"{{template: {{spec: {POD_SPEC}}}{extra}}}"
    return one(f"{{kind: {kind}, metadata: {{name: {name}}}, spec: {spec}}}")


def skipped(text: str) -> list[tuple[str, str, str]]:
    parsed = parse_manifests(text)
    assert not parsed.workloads
    return [(item.kind, item.name, item.reason) for item in parsed.skipped]


def test_the_example_becomes_workloads_and_a_list_of_the_rest() -> None:
    parsed = parse_manifests(EXAMPLE.read_text())
    assert [(item.kind, item.name) for item in parsed.workloads] == [
        ("Deployment", "web"),
        ("StatefulSet", "db"),
        ("DaemonSet", "dns-cache"),
        ("DaemonSet", "node-exporter"),
        ("Job", "migrate"),
    ]
    assert [item.kind for item in parsed.skipped] == [
        "Namespace",
        "ConfigMap",
        "PodDisruptionBudget",
    ]
    assert [item["metadata"] for item in parsed.services] == [
        {"name": "web", "namespace": "shop"},
        {"name": "db", "namespace": "shop"},
    ]
    web = parsed.workloads[0]
    assert web.namespace == "shop"
    assert [container.name for container in web.template.containers] == ["nginx", "exporter"]
    assert web.template.containers[0].ports == (Port(80, "TCP", 8080, name="http"),)
    assert web.template.qos == "Burstable"
    assert parsed.workloads[1].template.qos == "Guaranteed"
    assert parsed.workloads[3].template.host_network


def test_pod_names_are_those_kubernetes_would_make() -> None:
    assert workload("Pod").pod_names == ("x",)
    assert workload("StatefulSet", ", replicas: 3").pod_names == ("x-0", "x-1", "x-2")
    assert workload("StatefulSet", ", replicas: 2, ordinals: {start: 5}").pod_names == ("x-5", "x-6")
    assert workload("DaemonSet").pod_names is None
    (deployed,) = workload("Deployment").pod_names or ()
    prefix, template, suffix = deployed.split("-")
    assert (prefix, len(template), len(suffix)) == ("x", 9, 5)
    replicas = workload("ReplicaSet", ", replicas: 3").pod_names or ()
    assert len(set(replicas)) == 3
    assert len(workload("Job", ", parallelism: 3").pod_names or ()) == 3
    assert len(workload("Job", ", parallelism: 3, completions: 2").pod_names or ()) == 2
    indexed = workload("Job", ", parallelism: 2, completions: 2, completionMode: Indexed").pod_names or ()
    assert [name.split("-")[1] for name in indexed] == ["0", "1"]


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("ReplicaSet", ", replicas: 12"),
        ("Deployment", ", replicas: 12"),
        ("Job", ", parallelism: 12"),
        ("Job", ", parallelism: 12, completions: 12, completionMode: Indexed"),
    ],
)
def test_a_generated_name_fits_a_host_name(kind: str, extra: str) -> None:
    """Cut off before the generated part, as Kubernetes does; else pods of one workload had one host name."""
    names = workload(kind, extra, name="x" * 60).pod_names or ()
    assert {len(name) for name in names} == {63}
    assert len(set(names)) == 12
    daemons = workload("DaemonSet", name="x" * 60)
    assert {len(daemon_pod_name(daemons, node)) for node in "ab"} == {63}


def test_names_are_reproducible_and_follow_the_template() -> None:
    assert workload("Deployment").pod_names == workload("Deployment").pod_names
    other = one(
        "{kind: Deployment, metadata: {name: x}, spec: {template: {spec: {containers: [{name: d}]}}}}"
    )
    assert other.pod_names != workload("Deployment").pod_names


def test_generate_name_list_kinds_and_default_namespace() -> None:
    generated = one(f"{{kind: Pod, metadata: {{generateName: run-}}, spec: {POD_SPEC}}}")
    assert generated.name.startswith("run-")
    assert len(generated.name) == len("run-") + 5
    item = f"{{kind: Pod, metadata: {{name: a, namespace: n}}, spec: {POD_SPEC}}}"
    parsed = parse_manifests(f"{{kind: List, items: [{item}, {{kind: PodList, items: [{item}]}}]}}", "dflt")
    assert [(found.namespace, found.name) for found in parsed.workloads] == [("n", "a"), ("n", "a")]
    assert parse_manifests(item.replace(", namespace: n", ""), "dflt").workloads[0].namespace == "dflt"


FIRST, SECOND = (f"kind: Pod\nmetadata: {{name: {name}}}\nspec: {POD_SPEC}\n" for name in "ab")


@pytest.mark.parametrize(
    "text",
    [
        f"{FIRST}---\n{SECOND}",
        f"# first\n--- # second\n{FIRST}--- \t\n{SECOND}---\n",
        f"%YAML 1.1\n---\n{FIRST}...\n---\n{SECOND}",
        f"--- {{kind: Pod, metadata: {{name: a}}, spec: {POD_SPEC}}}\n---\n{SECOND}",
        f"\ufeff{FIRST}---\n\ufeff{SECOND}",
        f"\ufeff---\n{FIRST}\ufeff---\n{SECOND}",
        f'{{"kind": "Pod", "metadata": {{"name": "a"}}, "spec": {POD_SPEC}}}\n---\n{SECOND}',
    ],
)
def test_documents_are_told_apart(text: str) -> None:
    parsed = parse_manifests(text)
    assert ([item.name for item in parsed.workloads], parsed.skipped) == (["a", "b"], ())


def test_one_broken_document_does_not_hide_the_others() -> None:
    good = f"kind: Pod\nmetadata: {{name: a}}\nspec: {POD_SPEC}\n"
    parsed = parse_manifests(f"{{{{ .Values.broken }}: [\n---\n{good}---\n")
    assert [item.name for item in parsed.workloads] == ["a"]
    assert parsed.skipped[0].kind == "document"
    assert "is not YAML" in parsed.skipped[0].reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{kind: Deployment, metadata: {name: x}, spec: {replicas: 0, template: T}}", "asks for no replicas"),
        ("{kind: Job, metadata: {name: x}, spec: {suspend: true, template: T}}", "asks for no replicas"),
        ("{kind: Job, metadata: {name: x}, spec: {completions: 0, template: T}}", "asks for no replicas"),
        ("{kind: Pod, metadata: {name: x}, spec: {}}", "the pod has no containers"),
        ("{kind: Pod, metadata: {}, spec: S}", "has neither name nor generateName"),
        ("{kind: Pod, metadata: {name: ../x}, spec: S}", "'../x' is not a valid name"),
        ("{kind: Pod, metadata: {name: x, namespace: a/b}, spec: S}", "'a/b' is not a valid namespace"),
        (
            "{kind: Pod, metadata: {name: x}, spec: {containers: [{name: ../c}]}}",
            "not a valid name of a cont",
        ),
        ("{kind: Pod, metadata: {name: x}, spec: {containers: web}}", "containers is not a list"),
        (
            "{kind: Deployment, metadata: {name: x}, spec: {replicas: many, template: T}}",
            "replicas: 'many' is not a cou",
        ),
        (
            "{kind: Pod, metadata: {name: x}, spec: {containers: [{name: c, ports: [{containerPort: 0}]}]}}",
            "containerPort 0 is out of range",
        ),
        (
            "{kind: Pod, metadata: {name: x}, spec: {containers: [{name: c, ports: [{containerPort: web}]}]}}",
            "containerPort 'web' is not a number",
        ),
        (
            "{kind: Pod, metadata: {name: x}, spec: {containers: [{name: c, ports: [{containerPort: .inf}]}]}}",
            "containerPort inf is not a number",
        ),
        (
            "{kind: Pod, metadata: {name: x}, spec: {containers: [{name: c, ports: [{containerPort: 1, hostPort: 1, "
            "hostIP: here}]}]}}",
            "'here' does not appear to be an IPv4 or IPv6 address",
        ),
        ("{kind: Pod, metadata: {name: x}, spec: {containers: [{name: c}, {name: c}]}}", "the same name"),
        (
            '{kind: Pod, metadata: {name: x}, spec: {containers: [{name: c, command: ["a\\0"]}]}}',
            "container c has a zero byte",
        ),
        (
            "{kind: Pod, metadata: {name: x}, spec: {containers: [{name: c, resources: {limits: {cpu: 1e999}}}]}}",
            "'1e999' is not a quantity",
        ),
        (
            "{kind: Pod, metadata: {name: x}, spec: {containers: [{name: c, ports: [{containerPort: 1, hostPort: 80},"
            " {containerPort: 2, hostPort: 80, hostIP: 127.0.0.1}]}]}}",
            "host port 80/TCP is there twice",
        ),
        (
            "{kind: Pod, metadata: {name: x}, spec: {containers: [{name: c}], dnsConfig: {nameservers: [DNS_IP]}}}",
            "'DNS_IP' does not appear to be",
        ),
        ('{kind: Pod, metadata: {name: "x\\n"}, spec: S}', "is not a valid name"),
        ("{kind: Service, metadata: {name: x, annotations: {!!binary YQ==: y}}}", "keys must be str"),
        ("{kind: CronJob, metadata: {name: x}}", "makes no pods here"),
        ("{kind: NetworkPolicy, metadata: {name: x}}", "is not enforced"),
    ],
)
def test_what_cannot_be_run_is_listed_with_the_reason(text: str, expected: str) -> None:
    text = text.replace(": T", f": {{spec: {POD_SPEC}}}").replace("spec: S", f"spec: {POD_SPEC}")
    ((_, _, reason),) = skipped(text)
    assert expected in reason


def test_documents_that_are_no_objects() -> None:
    assert skipped("just words") == [("document", "just words", "is not a Kubernetes object")]
    assert skipped("# only a comment\n") == []
    for kind in ("[a]", "{a: b}"):
        assert [reason for *_, reason in skipped(f"kind: {kind}")] == ["is not a Kubernetes object"]


@pytest.mark.parametrize(
    "text",
    [
        "&a {kind: List, items: [*a]}",
        "[" * 3000 + "]" * 3000,
        "a: !!bool x",
    ],
)
def test_what_the_library_chokes_on_is_a_document_that_is_no_yaml(text: str) -> None:
    ((kind, _, reason),) = skipped(text)
    assert kind == "document"
    assert reason.startswith("is not YAML: ")


def test_ports_env_and_sidecars() -> None:
    text = """
kind: Pod
metadata: {name: x}
spec:
  initContainers:
    - {name: setup}
    - {name: proxy, restartPolicy: Always, ports: [{containerPort: 15001}]}
  containers:
    - name: app
      command: [/bin/app]
      args: [--port, 80]
      env: [{name: A, value: 1}, {name: "B=", value: x}, {name: C, valueFrom: {}}]
      ports: [{containerPort: "53", protocol: udp, hostPort: 5353}, {containerPort: 9, protocol: SCTP}]
"""
    containers = one(text).template.containers
    assert [container.name for container in containers] == [
        "app",
        "proxy",
    ]  # in the order of kubectl exec and named ports
    assert containers[0].command == ("/bin/app", "--port", "80")
    assert containers[0].env == (("A", "1"),)
    assert containers[0].ports == (Port(53, "UDP", 5353), Port(9, "SCTP"))


def test_host_network_ports_are_no_mappings() -> None:
    text = (
        "{kind: Pod, metadata: {name: x}, spec: {hostNetwork: true, containers: [{name: c, ports: [PORT]}]}}"
    )
    found = one(text.replace("PORT", "{containerPort: 80, hostPort: 80}"))
    assert found.template.containers[0].ports == (Port(80),)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("100m", 0.1),
        ("1", 1.0),
        (2, 2.0),
        ("1.5Gi", 1.5 * 1024**3),
        ("128Mi", 128 * 1024**2),
        ("1e3", 1000.0),
        ("5k", 5000.0),
    ],
)
def test_quantities(text: object, value: float) -> None:
    assert quantity(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "ten", "1 Gi", "1Xi"])
def test_wrong_quantities(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        quantity(text)


@pytest.mark.parametrize(
    ("resources", "qos"),
    [
        ("{}", "BestEffort"),
        ("{requests: {cpu: 1}}", "Burstable"),
        ("{limits: {cpu: 1, memory: 1Gi}}", "Guaranteed"),
        ("{limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 1, memory: 1024Mi}}", "Guaranteed"),
        ("{limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 500m}}", "Burstable"),
        ("{limits: {cpu: 1}}", "Burstable"),
        ("{requests: {cpu: 0, memory: 0}}", "BestEffort"),
    ],
)
def test_qos_classes(resources: str, qos: str) -> None:
    text = (
        f"{{kind: Pod, metadata: {{name: x}}, spec: {{containers: [{{name: c, resources: {resources}}}]}}}}"
    )
    assert one(text).template.qos == qos


@pytest.mark.parametrize(
    ("resources", "setup", "qos"),
    [
        ("{limits: {cpu: 1, memory: 1Gi}}", "{}", "Burstable"),
        ("{}", "{requests: {cpu: 1}}", "Burstable"),
        ("{limits: {cpu: 1, memory: 1Gi}}", "{limits: {cpu: 2, memory: 1Gi}}", "Guaranteed"),
    ],
)
def test_init_containers_count_for_the_qos_class(resources: str, setup: str, qos: str) -> None:
    spec = f"{{containers: [{{name: c, resources: {resources}}}], initContainers: [{{name: i, resources: {setup}}}]}}"
    template = one(f"{{kind: Pod, metadata: {{name: x}}, spec: {spec}}}").template
    assert (template.qos, [container.name for container in template.containers]) == (qos, ["c"])


def test_oom_scores_follow_the_kubelet() -> None:
    gib = 1024**3
    assert oom_score_adj("Guaranteed", gib, 4 * gib) == -997
    assert oom_score_adj("BestEffort", 0, 4 * gib) == 1000
    assert oom_score_adj("Burstable", gib, 4 * gib) == 750
    assert oom_score_adj("Burstable", 0, 4 * gib) == 999
    assert oom_score_adj("Burstable", 4 * gib, 4 * gib) == 3


_scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["kind", "metadata", "name", "spec", "template", "containers", "ports", "replicas",
                         "items", "resources", "limits", "cpu", "affinity", "tolerations", "dnsConfig", "options"]),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300)
@given(
    st.sampled_from(sorted(POD_KINDS)),
    st.dictionaries(st.sampled_from(["metadata", "spec"]), _values),
    _values,
)
def test_no_object_is_fatal(kind: str, fields: dict[str, object], spec: object) -> None:
    document = json.dumps({"kind": kind, "metadata": {"name": "x"}, **fields})
    parse_manifests(document)
    template = {"spec": {"containers": [{"name": "c"}], "extra": spec}}
    parse_manifests(json.dumps({"kind": kind, "metadata": {"name": "x"}, "spec": {"template": template}}))


@settings(max_examples=200)
@given(st.text(max_size=200))
def test_no_text_is_fatal(text: str) -> None:
    parse_manifests(text)


def test_what_is_wrong_has_its_line() -> None:
    documents = [
        "# head\n",
        "\nkind: Pod\nmetadata: {name: A}\n",
        "\n\n# note\nkind: Service\napiVersion: v1\nmetadata: {name: s}\nspec: {ports: [{port: x}]}\n",
        "\na: {{ b }}\n",
        "\nkind: Secret\n",
        "\nx: 1\ny: [\n",
    ]
    text = "---".join(documents)
    found = parse_manifests(text, file="m.yaml").skipped
    assert [item.place for item in found] == ["m.yaml:3", "m.yaml:8", "m.yaml:13", "", "m.yaml:17"]
    assert found[1].reason == "Expected `int`, got `str` - at `$.spec.ports[0].port`"
    assert found[4].reason.endswith(" in line 19")


def test_services_of_other_makers_are_listed() -> None:
    text = "{apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: x}, spec: {}}"
    assert skipped(text) == [("Service", "x", "apiVersion: 'serving.knative.dev/v1' is not read here")]
    assert parse_manifests(text).services == ()


def test_lists_of_one_kind_say_what_their_items_are() -> None:
    pods = f"{{apiVersion: v1, kind: PodList, items: [{{metadata: {{name: x}}, spec: {POD_SPEC}}}]}}"
    assert one(pods).kind == "Pod"
    services = (
        "{apiVersion: v1, kind: ServiceList, items: [{metadata: {name: s}, spec: {ports: [{port: 80}]}}]}"
    )
    (service,) = parse_manifests(services).services
    assert (service["kind"], service["apiVersion"]) == ("Service", "v1")
    assert [reason for *_, reason in skipped("{kind: PodList, items: [1]}")] == ["is not a Kubernetes object"]
    assert [reason for *_, reason in skipped("{kind: List, items: [{a: b}]}")] == [
        "is not a Kubernetes object"
    ]


@pytest.mark.parametrize("text", ["1.5.2Gi", ".", "1..e3", "e3", "9" * 400, "9" * 300 + "Ei"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        quantity(text)


def test_variables_without_a_name_or_a_value() -> None:
    env = "[{value: 5}, {name: A, value: 5}, {name: B, value: null}, {name: C}, {name: '', value: x}, 7]"
    (container,) = one(
        f"{{kind: Pod, metadata: {{name: x}}, spec: {{containers: [{{name: c, env: {env}}}]}}}}"
    ).template.containers
    assert container.env == (("A", "5"), ("B", ""))
