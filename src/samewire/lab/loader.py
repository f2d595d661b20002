"""Reading a cluster file: YAML to :class:`~samewire.lab.cluster.Cluster`, with errors that name line and
field.

YAML is composed to a node tree first, so that every field keeps its mark; msgspec then validates the plain
data and its error path (``$.nodes[1].stack``) is looked up among the marks.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import yaml

from samewire.errors import Invalid
from samewire.kube.yamltext import MALFORMED
from samewire.lab.addressing import family_of
from samewire.lab.cluster import (
    IPV6_LOAD_BALANCERS,
    Cluster,
    NetworkType,
    ProxyMode,
    Services,
    Stack,
    UnderlayType,
    json_schema,
)
from samewire.lab.rules import violations

_UNKNOWN_FIELD = re.compile(r"unknown field `([^`]+)`")
_CHOICES = {
    "$.underlay.type": UnderlayType,
    "$.nodes[].stack": Stack,
    "$.networks[].type": NetworkType,
    "$.services.proxy_mode": ProxyMode,
}
_MISSING_FIELD = re.compile(r"missing required field `([^`]+)`")


class ClusterFileError(Invalid):
    """A fault in the cluster file: ``file:line: field: message``, one line a fault."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("", "\n".join(faults))
        self.faults = faults


class _Reader:
    """Turns a YAML node tree into plain data and remembers the line of every path."""

    def __init__(self, loader: yaml.SafeLoader, file: str) -> None:
        self.loader = loader
        self.file = file
        self.lines: dict[str, int] = {}

    def fault(self, path: str, message: str) -> str:
        """``file:line: field: message`` for a path, by its nearest known ancestor."""
        known = path
        while known not in self.lines and known:
            known = re.sub(r"(\.[^.\[\]]+|\[[^\]]*\])$", "", known) if known != "$" else ""
        field = path.removeprefix("$").removeprefix(".") or "cluster"
        return f"{self.file}:{self.lines.get(known, 1)}: {field}: {message}"

    def read(self, node: yaml.Node, path: str = "$") -> Any:
        """Plain data of ``node``; raises ClusterFileError for keys that are no strings or appear twice."""
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(child, f"{path}[{index}]") for index, child in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            return self._scalar(node, path)
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._scalar(key_node, path)
            where = f"{path}.{key}"
            self.lines[where] = key_node.start_mark.line + 1
            if not isinstance(key, str) or key in result:
                problem = "appears twice" if isinstance(key, str) else "is not a string"
                raise ClusterFileError([self.fault(where, f"the key {problem}")])
            result[key] = self.read(value_node, where)
        return result

    def _scalar(self, node: yaml.Node, path: str) -> Any:
        try:
            value = self.loader.construct_object(node)
        except MALFORMED as error:
            kind = node.tag.rpartition(":")[2]
            raise ClusterFileError([self.fault(path, f"{str(node.value)[:64]!r} is no {kind}")]) from error
        if isinstance(value, str) and (fault := _text_fault(value)):
            raise ClusterFileError([self.fault(path, f"{value[:64]!r} {fault}")])
        return value


def _text_fault(value: str) -> str:
    """Why no file and no word of a command can be called so."""
    if "\0" in value:
        return "has a zero byte"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "has half of a surrogate pair"
    return ""


class ClusterFile:
    """A sound cluster file, whose fields still have their lines."""

    def __init__(self, cluster: Cluster, reader: _Reader) -> None:
        self.cluster = cluster
        self._reader = reader

    def error(self, faults: Iterable[tuple[str, str]]) -> ClusterFileError:
        """What only the manifests can show to be wrong: (path, message) of each."""
        return ClusterFileError([self._reader.fault(f"$.{path}", message) for path, message in faults])


def load_cluster(path: Path) -> ClusterFile:
    """Read and validate a cluster file; the name defaults to the file's.

    Raises :class:`ClusterFileError` that lists the faults found, each with file, line and field: the first that
    is a matter of shape (YAML, keys, types), else all others.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterFileError([f"{path}:1: cluster: cannot be read: {error}"]) from error
    return parse_cluster(text, str(path), default_name=path.stem)


def parse_cluster(text: str, file: str, default_name: str) -> ClusterFile:
    """The pure part of :func:`load_cluster`. Raises ClusterFileError."""
    try:
        loader = yaml.SafeLoader(text)
    except yaml.reader.ReaderError as error:
        raise ClusterFileError([f"{file}:1: cluster: {error.reason}"]) from error
    try:
        node = loader.get_single_node()
        if node is None:
            raise ClusterFileError([f"{file}:1: cluster: the file is empty"])
        reader = _Reader(loader, file)
        data = reader.read(node)
    except RecursionError as error:
        raise ClusterFileError([f"{file}:1: cluster: is nested too deeply"]) from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = f"{error.problem}"
        continued = isinstance(error, yaml.composer.ComposerError) and problem.startswith("but ")
        if continued:  # from the error's context
            problem = f"{error.context}, {problem}; manifests are named under `manifests`"
        raise ClusterFileError([f"{file}:{line}: cluster: {problem}"]) from error
    finally:
        loader.dispose()
    cluster = _convert(data, reader)
    if not cluster.name:
        cluster = msgspec.structs.replace(cluster, name=_valid_name(default_name))
    sound = ClusterFile(cluster, reader)
    if faults := violations(cluster):
        raise sound.error(faults)
    return ClusterFile(_in_the_pods_family(cluster), reader)


def _in_the_pods_family(cluster: Cluster) -> Cluster:
    """Where no pod has IPv4, the defaults for Services are IPv6 first: nobody could answer at their addresses."""
    if any(family_of(text) == 4 for node in cluster.nodes for text in node.pod_cidrs):
        return cluster
    given, default = cluster.services, Services()
    if given.cluster_cidrs == default.cluster_cidrs:
        given = msgspec.structs.replace(given, cluster_cidrs=default.cluster_cidrs[::-1])
    if given.load_balancer_cidrs == default.load_balancer_cidrs:
        given = msgspec.structs.replace(given, load_balancer_cidrs=IPV6_LOAD_BALANCERS)
    return msgspec.structs.replace(cluster, services=given)


def _convert(data: Any, reader: _Reader) -> Cluster:
    try:
        return msgspec.convert(data, Cluster)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `")
        path = path.removesuffix("`") or "$"
        if named := _UNKNOWN_FIELD.search(message) or _MISSING_FIELD.search(message):
            path = f"{path}.{named[1]}"
            unknown = _UNKNOWN_FIELD.search(message)
            message = f"no such field{_hint(named[1])}" if unknown else "this field is required"
        elif choices := _CHOICES.get(re.sub(r"\d+", "", path)):
            message += f"; there are {', '.join(choice.value for choice in choices)}"
        elif "matching regex" in message:
            message = "expected lower-case letters, digits and dashes, at most 24, no dash at either end"
        raise ClusterFileError([reader.fault(path, message)]) from error


def _hint(name: str) -> str:
    """The field that was probably meant, wherever in the file it belongs."""
    definitions = json_schema()["$defs"].values()
    fields = {field for definition in definitions for field in definition.get("properties", {})}
    close = difflib.get_close_matches(name, fields, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _valid_name(stem: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:24].strip("-") or "lab"
