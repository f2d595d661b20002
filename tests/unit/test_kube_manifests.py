"""A directory of manifests as a source: files that change, break, vanish; Services with what belongs to them."""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samewire.kube import manifest_files
from samewire.kube.manifest_files import FileContent, ManifestDirectory, parse_manifests
from samewire.kube.manifests import ManifestSource, write_objects
from samewire.kube.model import EndpointSlice, Node, Pod, Service
from samewire.kube.yamltext import load_yaml
from tests.apiserver.objects import Recorder, until

SERVICE = """
apiVersion: v1
kind: Service
metadata:
  name: {name}
spec:
  selector: {{app: web}}
  ports:
  - port: {port}
    targetPort: web
    protocol: TCP
"""
POD = """
apiVersion: v1
kind: Pod
metadata:
  name: web-0
  labels: {app: web}
  creationTimestamp: 2026-01-01T00:00:00Z
spec:
  containers:
  - name: c
    ports: [{name: web, containerPort: 8080}]
    resources: null
"""

Opener = Callable[..., ManifestSource]


def running(name: str, address: str, node: str = "node1") -> Pod:
    """A Pod as whoever runs it writes it."""
    raw = {
        "metadata": {"namespace": "default", "name": name, "labels": {"app": "web"}},
        "spec": {
            "nodeName": node,
            "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}],
        },
        "status": {
            "phase": "Running",
            "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }
    return msgspec.convert(raw, Pod)


@pytest.fixture
async def open_manifests(tmp_path: Path) -> AsyncIterator[Opener]:
    """Opens sources on the directory, and closes them."""
    opened: list[ManifestSource] = []

    def open_source(pods_of_node: str = "", directory: Path = tmp_path) -> ManifestSource:
        networks = (ipaddress.ip_network("10.96.0.0/16"),)
        opened.append(ManifestSource(directory, networks, pods_of_node, interval_s=0.01))
        return opened[-1]

    yield open_source
    for source in opened:
        await source.close()


def put(path: Path, text: str) -> None:
    """Replace a file in one step."""
    draft = path.with_suffix(".draft")
    draft.write_text(text)
    draft.replace(path)


async def test_services_come_with_their_endpoints(open_manifests: Opener, tmp_path: Path) -> None:
    put(
        tmp_path / "web.yaml",
        f"{SERVICE.format(name='web', port=80)}---\n{POD}---\nkind: Deployment\napiVersion: apps/v1\n",
    )
    write_objects(tmp_path / "pods-node1.json", [running("web-0", "10.244.1.5")])
    source = open_manifests()
    slices: Recorder[EndpointSlice] = Recorder()
    source.watch(EndpointSlice, slices)
    await source.start()
    await source.wait_synced()
    (service,) = source.objects(Service).values()
    assert service.key == ("default", "web")
    assert ipaddress.ip_address(service.cluster_ips[0]) in ipaddress.ip_network("10.96.0.0/16")
    (found,) = slices.cache.values()
    assert found.service_key == service.key
    assert [item.addresses[0] for item in found.endpoints] == ["10.244.1.5"]
    write_objects(tmp_path / "pods-node1.json", [])
    await until(lambda: not slices.cache)
    assert source.objects(Pod)[("default", "web-0")].addresses == ()


async def test_endpoints_are_those_of_a_service_without_a_selector(
    open_manifests: Opener, tmp_path: Path
) -> None:
    """Published manifests name machines beyond the cluster so; an API server makes EndpointSlices of it."""
    endpoints = """
apiVersion: v1
kind: Endpoints
metadata: {name: NAME, labels: LABELS}
subsets:
- addresses: [{ip: 192.0.2.7}, {ip: "2001:db8::7", nodeName: node1}]
  notReadyAddresses: [{ip: 192.0.2.8}]
  ports: [{name: db, port: 5432}]
- addresses: [{ip: 192.0.2.9}]
  ports: [{name: db, port: 5433, protocol: TCP}]
---
"""
    service = "{apiVersion: v1, kind: Service, metadata: {name: db}, spec: {ports: [{name: db, port: 5432}]}}\n---\n"
    skipped = "{endpointslice.kubernetes.io/skip-mirror: 'true'}"
    put(
        tmp_path / "db.yaml",
        service
        + endpoints.replace("NAME", "db").replace("LABELS", "{}")
        + service.replace("name: db}, spec", "name: own}, spec")
        + endpoints.replace("NAME", "own").replace("LABELS", skipped)
        + SERVICE.format(name="web", port=80)
        + endpoints.replace("NAME", "web").replace("LABELS", "{}"),
    )
    source = open_manifests()
    await source.start()
    await source.wait_synced()
    found = source.objects(EndpointSlice).values()
    assert {piece.service_key for piece in found} == {("default", "db")}
    assert [
        (
            piece.address_type,
            port.port,
            [(one.addresses[0], one.ready, one.node_name) for one in piece.endpoints],
        )
        for piece in found
        for port in piece.ports
    ] == [
        ("IPv4", 5432, [("192.0.2.7", True, None), ("192.0.2.8", False, None)]),
        ("IPv6", 5432, [("2001:db8::7", True, "node1")]),
        ("IPv4", 5433, [("192.0.2.9", True, None)]),
    ]


async def test_only_the_pods_of_a_node_are_handed_over(open_manifests: Opener, tmp_path: Path) -> None:
    put(tmp_path / "web.yaml", SERVICE.format(name="web", port=80))
    write_objects(tmp_path / "pods.json", [running("a", "10.244.1.5"), running("b", "10.244.2.5", "node2")])
    source = open_manifests("node2")
    await source.start()
    await source.wait_synced()
    assert source.objects(Pod).keys() == {("default", "b")}
    (found,) = source.objects(EndpointSlice).values()
    assert len(found.endpoints) == 2


async def test_a_broken_file_counts_as_it_was(
    open_manifests: Opener, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "web.yaml", SERVICE.format(name="web", port=80))
    source = open_manifests()
    told: Recorder[Service] = Recorder()
    source.watch(Service, told)
    await source.start()
    await source.wait_synced()
    put(tmp_path / "web.yaml", "kind: [")
    put(tmp_path / "other.yaml", SERVICE.format(name="other", port=80))
    await until(lambda: len(told.cache) == 2)
    put(tmp_path / "web.yaml", SERVICE.format(name="web", port="none"))
    put(tmp_path / "third.yaml", SERVICE.format(name="third", port=80))
    await until(lambda: len(told.cache) == 3)
    assert told.cache["default", "web"].spec.ports[0].port == 80
    put(tmp_path / "web.yaml", SERVICE.format(name="web", port=81))
    await until(lambda: told.cache["default", "web"].spec.ports[0].port == 81)
    warnings = [line for line in capsys.readouterr().out.splitlines() if "manifest not read" in line]
    assert len(warnings) == 2, "once a version of the file"


@pytest.mark.parametrize("how", ["no YAML", "a link in a circle"])
async def test_a_file_that_was_never_read_is_told_of(
    open_manifests: Opener, tmp_path: Path, how: str
) -> None:
    put(tmp_path / "web.yaml", SERVICE.format(name="web", port=80))
    bad = tmp_path / "bad.yaml"
    if how == "no YAML":
        put(bad, "kind: [")
    else:
        bad.symlink_to(bad)
    source = open_manifests()
    told: Recorder[Service] = Recorder()
    source.watch(Service, told)
    await source.start()
    await source.wait_synced()
    assert len(told.cache) == 1
    assert source.health()[0].unread
    bad.unlink()
    await until(lambda: not source.health()[0].unread)
    put(bad, "kind: [")
    await until(lambda: source.health()[0].unread)
    put(bad, SERVICE.format(name="other", port=80))
    await until(lambda: len(told.cache) == 2)
    put(bad, "kind: [")
    put(tmp_path / "third.yaml", SERVICE.format(name="third", port=80))
    await until(lambda: len(told.cache) == 3)
    assert not source.health()[0].unread, "it counts as it was"


async def test_a_directory_that_cannot_be_read_changes_nothing(
    open_manifests: Opener, tmp_path: Path
) -> None:
    directory = tmp_path / "manifests"
    directory.mkdir()
    put(directory / "web.yaml", SERVICE.format(name="web", port=80))
    source = open_manifests(directory=directory)
    told: Recorder[Service] = Recorder()
    source.watch(Service, told)
    await source.start()
    await source.wait_synced()
    directory.rename(tmp_path / "away")
    await until(lambda: not source.health()[0].connected)
    assert "No such file" in source.health()[0].error
    assert not told.changes
    (tmp_path / "away" / "web.yaml").unlink()
    (tmp_path / "away").rename(directory)
    await until(lambda: not told.cache)


async def test_a_directory_that_is_not_there_yet_is_no_empty_one(
    open_manifests: Opener, tmp_path: Path
) -> None:
    source = open_manifests(directory=tmp_path / "later")
    told: Recorder[Service] = Recorder()
    source.watch(Service, told)
    await source.start()
    await until(lambda: "No such file" in source.health()[0].error)
    assert not told.batches
    (tmp_path / "later").mkdir()
    await source.wait_synced()
    assert told.batches[0].snapshot


def test_a_file_that_is_being_written_is_left_until_it_stands_still(tmp_path: Path) -> None:
    path = tmp_path / "web.yaml"
    put(path, SERVICE.format(name="web", port=80))
    directory = ManifestDirectory(tmp_path)
    assert directory.scan()
    with path.open("w") as file:
        assert not directory.scan(), "empty for a moment"
        file.write(SERVICE.format(name="web", port=81))
        file.flush()
        assert not directory.scan()
    assert directory.scan()
    (found,) = directory.contents()
    assert found.services[0].service.spec.ports[0].port == 81
    assert not directory.scan()


def test_what_was_read_before_a_fault_of_ours_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        put(tmp_path / f"{name}.yaml", SERVICE.format(name=name, port=80))
    directory = ManifestDirectory(tmp_path)

    def faulty(text: str) -> FileContent:
        if "name: b" in text:
            raise RuntimeError
        return parse_manifests(text)

    monkeypatch.setattr(manifest_files, "parse_manifests", faulty)
    with pytest.raises(RuntimeError):
        directory.scan()
    assert directory.scan()
    assert [len(item.services) for item in directory.contents()] == [1, 0]


def test_a_link_in_a_circle_keeps_no_other_file(tmp_path: Path) -> None:
    """In the place of a manifest, it leaves what that said."""
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(SERVICE.format(name="web", port=80))
    directory = ManifestDirectory(tmp_path)
    directory.scan()
    (tmp_path / "a.yaml").unlink()
    for name in ("a.yaml", "new.yaml"):
        (tmp_path / name).symlink_to(name)
    (tmp_path / "b.yaml").unlink()
    assert directory.scan()
    assert [len(item.services) for item in directory.contents()] == [1]
    (tmp_path / "a.yaml").unlink()
    assert directory.scan()
    assert directory.contents() == []


def test_which_files_count(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yml", "c.json", ".hidden.yaml", "notes.txt", "web.yaml~"):
        (tmp_path / name).write_text(SERVICE.format(name="web", port=80))
    (tmp_path / "sub.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")  # whose reader waits for a writer
    (tmp_path / "a.yaml").rename(tmp_path / "a.text")
    (tmp_path / "a.yaml").symlink_to("a.text")  # as in mounted ConfigMaps
    directory = ManifestDirectory(tmp_path)
    directory.scan()
    assert len([item for item in directory.contents() if item.services]) == 3
    assert directory.faults == 0


def test_lists_and_defaults() -> None:
    found = parse_manifests(
        "apiVersion: v1\nkind: List\nitems:\n"
        "- {apiVersion: v1, kind: Node, metadata: {name: n, namespace: x, annotations: null}}\n"
        "---\napiVersion: v1\nkind: ServiceList\nitems:\n- metadata: {name: s}\n  spec: {ports: [{port: 1}]}\n---\n"
    )
    assert [item.key for item in found.others] == [("", "n")]
    assert [item.key for item in found.services] == [("default", "s")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\n---\n- x\n", "document at line 2: is not a Kubernetes object"),
        ("\n\n---\nkind: [\n", "document at line 3: .* in line"),
        ("apiVersion: v1\nkind: Service\nmetadata: {}\n", "Service without a valid metadata.name"),
        (
            SERVICE.format(name="web", port="x"),
            r"Expected `int`, got `str` - at `\$.ports\[0\].port`|spec.ports",
        ),
        (SERVICE.format(name="web", port=99999), r"Expected `int` <= 65535 - at `\$.ports\[0\].port`"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nstatus: {podIP: nope}\n",
            "addresses: 'nope' does not appear to be",
        ),
        (
            "apiVersion: v1\nkind: Endpoints\nmetadata: {name: e}\nsubsets: [{addresses: [{ip: nope}]}]\n",
            "addresses: 'nope' does not appear to be",
        ),
        (
            SERVICE.format(name="web", port=1) + "status: {loadBalancer: {ingress: [{ip: nope}]}}\n",
            "ingress: 'nope' does not appear to be",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {clusterIP: 10.96.7}\n",
            "clusterIPs: '10.96.7' does not appear to be",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_manifests(text)


def test_a_pod_that_has_no_name_yet_hides_nothing() -> None:
    """Nobody runs it: who runs pods gives them names. The Services in its file were not there."""
    pod = "apiVersion: v1\nkind: Pod\nmetadata: {generateName: job-}\n"
    found = parse_manifests(f"{pod}---\n{SERVICE.format(name='web', port=80)}")
    assert (len(found.services), found.others) == (1, ())


@pytest.mark.parametrize(
    "text", ["127.0.0.1", "::1", "0.0.0.0", "::", "169.254.1.1", "fe80::1%a", "224.0.0.1", "ff02::1"]
)
def test_an_external_ip_is_one_machines(text: str) -> None:
    """An API server takes no others; a node would send its own packets to itself elsewhere."""
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}}
    spec = {"ports": [{"port": 1}], "externalIPs": ["203.0.113.1", text]}
    with pytest.raises(ValueError, match=r"externalIPs: .* is no single machine's address"):
        parse_manifests(json.dumps({**service, "spec": spec}))


@pytest.mark.parametrize("text", ["127.0.0.1", "::1", "0.0.0.0", "::", "169.254.1.1", "fe80::1", "nonsense"])
def test_an_endpoint_is_one_machines(text: str) -> None:
    """Those of an EndpointSlice were not looked at."""
    piece = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "addressType": "IPv6" if ":" in text else "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": [text]}],
    }
    given = {"apiVersion": "v1", "kind": "Endpoints", "subsets": [{"addresses": [{"ip": text}]}]}
    for item in piece, given:
        with pytest.raises(ValueError, match=r"addresses: .*(no single machine's address|does not appear)"):
            parse_manifests(json.dumps({**item, "metadata": {"name": "s"}}))
    names = {**piece, "metadata": {"name": "s"}, "addressType": "FQDN"}
    parse_manifests(json.dumps({**names, "endpoints": [{"addresses": ["example.org"]}]}))


@pytest.mark.parametrize(
    "text",
    [
        "&a {kind: List, items: [*a]}",
        "&a {metadata: *a}",
        "[" * 3000 + "]" * 3000,
        "- " * 3000 + "x",
        "? " * 3000 + "x",
        "[a: " * 3000 + "]" * 3000,
        '{"a":' * 100_000,
        "a: !!bool x",
        'a: !!int ""',
        "a: " + "9" * 5000,
        "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{b}: &{b} [{(f'*{a},' * 10)}]\n" for a, b in pairwise("abcdefghij")),
    ],
    ids=lambda text: text[:12],
)
def test_what_no_manifest_is_ends_nobody(text: str) -> None:
    with pytest.raises(ValueError, match="document at line 1: "):
        parse_manifests(text)


def test_what_is_nested_and_named_as_people_do_is_read() -> None:
    deep = "[" * 150 + "]" * 150
    assert load_yaml(f"a: &a [1, {{b: 2}}]\nb: [*a, *a]\nc: '*'\nd: {deep}\ne: '{'[' * 300}'")["b"] == 2 * [
        [1, {"b": 2}]
    ]


def test_scalars_are_what_kubernetes_tools_take_them_for() -> None:
    """A choice of the custom resources that prometheus-operator publishes in one file with its Deployment is a `=`."""
    assert load_yaml(
        "a: [=, '!=']\nb: 2026-02-30\nc: 2026-01-01T00:00:00Z\nd: 22:22\ne: [0x10, 1_0, 1.5]"
    ) == {
        "a": ["=", "!="],
        "b": "2026-02-30",
        "c": "2026-01-01T00:00:00Z",
        "d": "22:22",
        "e": [16, 10, 1.5],
    }
    assert (
        len(parse_manifests(f"kind: X\nenum: [=]\n---\n{SERVICE.format(name='web', port=80)}").services) == 1
    )


@settings(max_examples=300)
@given(st.text(st.sampled_from("ab-:?[]{}*&!|># \n\t'\"0.,%"), max_size=60) | st.text(max_size=60))
def test_whatever_is_no_yaml_is_a_value_error(text: str) -> None:
    with suppress(ValueError):
        load_yaml(text)


def test_objects_survive_being_written(tmp_path: Path) -> None:
    node = msgspec.convert(
        {"metadata": {"name": "n", "labels": {"a": "b"}}, "spec": {"podCIDRs": ["10.0.0.0/24"]}}, Node
    )
    pod = running("p", "10.0.0.1")
    write_objects(tmp_path / "all.json", [node, pod])
    assert parse_manifests((tmp_path / "all.json").read_text()).others == (node, pod)
    assert [path.name for path in tmp_path.iterdir()] == ["all.json"]
