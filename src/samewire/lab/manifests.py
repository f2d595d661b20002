"""Kubernetes manifests to workloads (pure): any published multi-document YAML.

Objects that make pods become :class:`Workload` values, Services and EndpointSlices are kept for the nodes'
daemons; everything else, and everything malformed, is listed in ``skipped`` with the reason and never fatal.
Documents are split before parsing, so that one that is no YAML (a template, say) does not hide the others.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import msgspec
from msgspec import Struct

from samewire.kube.manifest_files import parse_manifests as parse_objects
from samewire.kube.yamltext import load_yaml, says_something, split_documents
from samewire.lab.podspec import PodTemplate, mapping, parse_template

# Kubernetes' own alphabet for generated names: no vowels, nothing that reads as a word or another digit.
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
_NAME = re.compile(r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")
NAMESPACE = re.compile(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")

# Names that Kubernetes generates are host names, too: what stands before the generated part is cut off to fit.
_GENERATED_LENGTH, _HOST_NAME_LENGTH = 5, 63

_NO_PODS, _NO_REPLICAS = "makes no pods here", "asks for no replicas"
_UNENFORCED = "is not enforced: give the endpoints ACL policies"
_HARMLESS = frozenset({_NO_PODS, _NO_REPLICAS})

POD_KINDS = frozenset(
    {"Pod", "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job"}
)

SERVICE_KINDS = frozenset({"Service", "EndpointSlice", "Endpoints"})


class Skipped(Struct, frozen=True):
    """An object that makes no pods here, with the reason. ``place``: ``file:line`` of the document, "" where there is
    nothing wrong with it.
    """

    kind: str
    name: str
    reason: str
    place: str = ""


class Workload(Struct, frozen=True):
    """One pod-making object. ``pod_names`` holds a name a replica, or is None: one pod on every eligible
    node. ``indexed``: its pods are told apart by the number behind its name.
    """

    kind: str
    namespace: str
    name: str
    template: PodTemplate
    pod_names: tuple[str, ...] | None
    indexed: bool = False


class Manifests(Struct, frozen=True):
    """What one file holds. ``services``: what is for the daemons as it is, each with its namespace."""

    workloads: tuple[Workload, ...]
    services: tuple[dict[str, Any], ...]
    skipped: tuple[Skipped, ...]


def parse_manifests(text: str, default_namespace: str = "default", file: str = "manifest") -> Manifests:
    """Read a multi-document manifest, which is called ``file`` in messages; never raises for its content."""
    workloads: list[Workload] = []
    services: list[dict[str, Any]] = []
    skipped: list[Skipped] = []
    for start, document in split_documents(text):
        first, first_line = next(
            pair for pair in enumerate(document.split("\n"), start) if says_something(pair[1])
        )
        try:
            items = _flatten(load_yaml(document, start))
        except ValueError as error:
            place = f"{file}:{first}"
            skipped.append(Skipped("document", first_line.strip()[:60], f"is not YAML: {error}", place))
            continue
        for item in items:
            found: list[Skipped] = []
            if isinstance(item, dict) and str(item.get("kind")) in SERVICE_KINDS:
                _read_service(item, default_namespace, services, found)
            else:
                _read_object(item, default_namespace, workloads, found)
            skipped += [
                one if one.reason in _HARMLESS else msgspec.structs.replace(one, place=f"{file}:{first}")
                for one in found
            ]
    return Manifests(tuple(workloads), tuple(services), tuple(skipped))


def generated_suffix(length: int, *parts: object) -> str:
    """A name suffix in Kubernetes' alphabet, the same for the same parts (so that a lab is reproducible)."""
    number = int.from_bytes(hashlib.sha256(repr(parts).encode()).digest(), "big")
    letters = []
    for _ in range(length):
        number, digit = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[digit])
    return "".join(letters)


def daemon_pod_name(workload: Workload, node: str) -> str:
    """The name of a DaemonSet's pod on a node."""
    return _generated(f"{workload.name}-", workload.namespace, workload.name, node)


def pod_template(workload: Workload, name: str) -> PodTemplate:
    """The template of the pod of that name, with what the workload's controller gives each pod of its own."""
    if not workload.indexed:
        return workload.template
    if workload.kind == "StatefulSet":
        index = name.rpartition("-")[2]
        labels = {"statefulset.kubernetes.io/pod-name": name, "apps.kubernetes.io/pod-index": index}
    else:
        index = name.split("-")[-2]
        labels = {"batch.kubernetes.io/job-completion-index": index}
    return msgspec.structs.replace(
        workload.template,
        labels={**workload.template.labels, **labels},
        hostname=f"{workload.name}-{index}",
    )


def _generated(base: str, *parts: object) -> str:
    """A name with a generated part behind ``base``, which is cut off where the whole would be too long."""
    return base[: _HOST_NAME_LENGTH - _GENERATED_LENGTH] + generated_suffix(_GENERATED_LENGTH, *parts)


def _flatten(loaded: Any) -> list[Any]:
    """The objects of a document: a ``List`` (or any ``*List`` with items) holds several."""
    if loaded is None:
        return []
    if isinstance(loaded, dict) and str(loaded.get("kind", "")).endswith("List") and "items" in loaded:
        # The API server's own lists, ServiceList and the like, say what their items are; these do not.
        implied = {"kind": loaded["kind"][:-4], "apiVersion": loaded.get("apiVersion")}
        items = loaded["items"] if isinstance(loaded["items"], list) else []
        whole = [
            {**implied, **item} if isinstance(item, dict) and implied["kind"] else item for item in items
        ]
        return [inner for item in whole for inner in _flatten(item)]
    return [loaded]


def _read_service(
    item: dict[str, Any], namespace: str, services: list[dict[str, Any]], skipped: list[Skipped]
) -> None:
    """Keep what the nodes' daemons can read; the reader is theirs."""
    found = item.get("metadata")
    metadata: dict[str, Any] = found if isinstance(found, dict) else {}
    whole = {**item, "metadata": {**metadata, "namespace": str(metadata.get("namespace") or namespace)}}
    name = str(metadata.get("name") or "")
    try:
        content = parse_objects(json.dumps(whole, default=str))
    except (ValueError, TypeError) as error:
        reason = str(error).removeprefix("document at line 1: ")
        skipped.append(Skipped(str(item["kind"]), name, reason))
        return
    if not (content.services or content.others):  # Knative has a Service, too
        skipped.append(
            Skipped(str(item["kind"]), name, f"apiVersion: {item.get('apiVersion')!r} is not read here")
        )
        return
    services.append(whole)


def _read_object(item: Any, namespace: str, workloads: list[Workload], skipped: list[Skipped]) -> None:
    if not isinstance(item, dict) or not isinstance(item.get("kind"), str):
        skipped.append(Skipped("document", str(item)[:60], "is not a Kubernetes object"))
        return
    kind = item["kind"]
    found = item.get("metadata")
    metadata: dict[str, Any] = found if isinstance(found, dict) else {}
    label = str(metadata.get("name") or metadata.get("generateName") or "")
    if kind not in POD_KINDS:
        skipped.append(Skipped(kind, label, _UNENFORCED if kind == "NetworkPolicy" else _NO_PODS))
        return
    try:
        workload = _workload(kind, item, metadata, namespace)
    except ValueError as error:
        skipped.append(Skipped(kind, label, str(error)))
        return
    if workload.pod_names == ():
        skipped.append(Skipped(kind, label, _NO_REPLICAS))
    else:
        workloads.append(workload)


def _workload(kind: str, item: dict[str, Any], metadata: dict[str, Any], namespace: str) -> Workload:
    namespace = str(metadata.get("namespace") or namespace)
    name = str(metadata.get("name") or "")
    if not name and metadata.get("generateName"):
        name = _generated(str(metadata["generateName"]), namespace, item)
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a valid name" if name else "has neither name nor generateName")
    if not NAMESPACE.fullmatch(namespace):
        raise ValueError(f"{namespace!r} is not a valid namespace")
    spec = mapping(item.get("spec"), "spec")
    template = parse_template(item if kind == "Pod" else spec.get("template"))
    indexed = kind == "StatefulSet" or (kind == "Job" and spec.get("completionMode") == "Indexed")
    template = _of_controller(kind, name, spec, template)
    return Workload(kind, namespace, name, template, _pod_names(kind, namespace, name, spec), indexed)


def _of_controller(kind: str, name: str, spec: dict[str, Any], template: PodTemplate) -> PodTemplate:
    """A template with what its controller gives all pods of a workload."""
    if kind == "StatefulSet":
        return msgspec.structs.replace(template, subdomain=str(spec.get("serviceName") or ""))
    if kind == "Job":
        labels = {"job-name": name, "batch.kubernetes.io/job-name": name}
        return msgspec.structs.replace(template, labels={**template.labels, **labels})
    return template


def _pod_names(kind: str, namespace: str, name: str, spec: dict[str, Any]) -> tuple[str, ...] | None:
    if kind == "Pod":
        return (name,)
    if kind == "DaemonSet":
        return None
    if kind == "StatefulSet":
        start = _count(mapping(spec.get("ordinals"), "ordinals"), "start", 0)
        return tuple(f"{name}-{start + ordinal}" for ordinal in range(_count(spec, "replicas", 1)))
    if kind == "Job":
        return _job_pod_names(namespace, name, spec)
    prefix = name
    if kind == "Deployment":
        prefix = f"{name}-{generated_suffix(9, namespace, name, spec.get('template'))}"
    count = _count(spec, "replicas", 1)
    return tuple(_generated(f"{prefix}-", namespace, prefix, index) for index in range(count))


def _job_pod_names(namespace: str, name: str, spec: dict[str, Any]) -> tuple[str, ...]:
    if spec.get("suspend"):
        return ()
    parallelism = _count(spec, "parallelism", 1)
    count = min(parallelism, _count(spec, "completions", parallelism))
    if spec.get("completionMode") != "Indexed":
        return tuple(_generated(f"{name}-", namespace, name, index) for index in range(count))
    room = _HOST_NAME_LENGTH - _GENERATED_LENGTH
    bases = [(name[: room - len(f"-{index}-")], index) for index in range(count)]
    return tuple(_generated(f"{base}-{index}-", namespace, name, index) for base, index in bases)


def _count(spec: dict[str, Any], name: str, default: int) -> int:
    value = spec.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name}: {value!r} is not a count of pods")
    return value
