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

from msgspec import Struct

from samewire.kube.manifest_files import parse_manifests as parse_objects
from samewire.kube.yamltext import load_yaml
from samewire.lab.podspec import PodTemplate, mapping, parse_template

_SEPARATOR = re.compile(r"^---(?:[ \t].*)?$", re.MULTILINE)
# Kubernetes' own alphabet for generated names: no vowels, nothing that reads as a word or another digit.
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
_NAME = re.compile(r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")
_NAMESPACE = re.compile(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")

POD_KINDS = frozenset(
    {"Pod", "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job"}
)

SERVICE_KINDS = frozenset({"Service", "EndpointSlice"})


class Skipped(Struct, frozen=True):
    """An object that makes no pods here, with the reason."""

    kind: str
    name: str
    reason: str


class Workload(Struct, frozen=True):
    """One pod-making object. ``pod_names`` holds a name a replica, or is None: one pod on every eligible
    node.
    """

    kind: str
    namespace: str
    name: str
    template: PodTemplate
    pod_names: tuple[str, ...] | None


class Manifests(Struct, frozen=True):
    """What one file holds. ``services``: Services and EndpointSlices as they are, each with its namespace."""

    workloads: tuple[Workload, ...]
    services: tuple[dict[str, Any], ...]
    skipped: tuple[Skipped, ...]


def parse_manifests(text: str, default_namespace: str = "default") -> Manifests:
    """Read a multi-document manifest; never raises for its content."""
    workloads: list[Workload] = []
    services: list[dict[str, Any]] = []
    skipped: list[Skipped] = []
    for document in _SEPARATOR.split(text):
        try:
            items = _flatten(load_yaml(document))
        except ValueError as error:
            first_line = next((line for line in document.splitlines() if line.strip()), "")
            skipped.append(Skipped("document", first_line.strip()[:60], f"is not YAML: {error}"))
            continue
        for item in items:
            if isinstance(item, dict) and str(item.get("kind")) in SERVICE_KINDS:
                _read_service(item, default_namespace, services, skipped)
            else:
                _read_object(item, default_namespace, workloads, skipped)
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
    return f"{workload.name}-{generated_suffix(5, workload.namespace, workload.name, node)}"


def _flatten(loaded: Any) -> list[Any]:
    """The objects of a document: a ``List`` (or any ``*List`` with items) holds several."""
    if loaded is None:
        return []
    if isinstance(loaded, dict) and str(loaded.get("kind", "")).endswith("List") and "items" in loaded:
        items = loaded["items"]
        return [inner for item in (items if isinstance(items, list) else []) for inner in _flatten(item)]
    return [loaded]


def _read_service(
    item: dict[str, Any], namespace: str, services: list[dict[str, Any]], skipped: list[Skipped]
) -> None:
    """Keep what the nodes' daemons can read; the reader is theirs."""
    found = item.get("metadata")
    metadata: dict[str, Any] = found if isinstance(found, dict) else {}
    whole = {**item, "metadata": {**metadata, "namespace": str(metadata.get("namespace") or namespace)}}
    try:
        parse_objects(json.dumps(whole, default=str))
    except (ValueError, TypeError) as error:
        skipped.append(Skipped(str(item["kind"]), str(metadata.get("name") or ""), str(error)))
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
        skipped.append(Skipped(kind, label, "makes no pods here"))
        return
    try:
        workload = _workload(kind, item, metadata, namespace)
    except ValueError as error:
        skipped.append(Skipped(kind, label, str(error)))
        return
    if workload.pod_names == ():
        skipped.append(Skipped(kind, label, "asks for no replicas"))
    else:
        workloads.append(workload)


def _workload(kind: str, item: dict[str, Any], metadata: dict[str, Any], namespace: str) -> Workload:
    namespace = str(metadata.get("namespace") or namespace)
    name = str(metadata.get("name") or "")
    if not name and metadata.get("generateName"):
        name = str(metadata["generateName"]) + generated_suffix(5, namespace, item)
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a valid name" if name else "has neither name nor generateName")
    if not _NAMESPACE.fullmatch(namespace):
        raise ValueError(f"{namespace!r} is not a valid namespace")
    spec = mapping(item.get("spec"), "spec")
    template = parse_template(item if kind == "Pod" else spec.get("template"))
    return Workload(kind, namespace, name, template, _pod_names(kind, namespace, name, spec))


def _pod_names(kind: str, namespace: str, name: str, spec: dict[str, Any]) -> tuple[str, ...] | None:
    if kind == "Pod":
        return (name,)
    if kind == "DaemonSet":
        return None
    if kind == "StatefulSet":
        start = _count(mapping(spec.get("ordinals"), "ordinals").get("start"), 0)
        return tuple(f"{name}-{start + ordinal}" for ordinal in range(_count(spec.get("replicas"), 1)))
    if kind == "Job":
        return _job_pod_names(namespace, name, spec)
    prefix = name
    if kind == "Deployment":
        prefix = f"{name}-{generated_suffix(9, namespace, name, spec.get('template'))}"
    count = _count(spec.get("replicas"), 1)
    return tuple(f"{prefix}-{generated_suffix(5, namespace, prefix, index)}" for index in range(count))


def _job_pod_names(namespace: str, name: str, spec: dict[str, Any]) -> tuple[str, ...]:
    if spec.get("suspend"):
        return ()
    count = min(_count(spec.get("parallelism"), 1), max(_count(spec.get("completions"), 1), 1))
    if spec.get("parallelism") is not None and spec.get("completions") is None:
        count = _count(spec.get("parallelism"), 1)
    indexed = spec.get("completionMode") == "Indexed"
    return tuple(
        f"{name}-{index}-{generated_suffix(5, namespace, name, index)}"
        if indexed
        else f"{name}-{generated_suffix(5, namespace, name, index)}"
        for index in range(count)
    )


def _count(value: Any, default: int) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is not a count of pods")
    return value
