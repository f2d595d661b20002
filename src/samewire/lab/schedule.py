"""Placing pods on nodes (pure): the predicates of kube-scheduler that published manifests rely on.

nodeName, nodeSelector, required node affinity, taints and tolerations and host-port clashes are honoured;
among the eligible nodes a pod goes to the one with the fewest pods of its workload, then the fewest pods,
then the first in the file.
"""

from __future__ import annotations

import ipaddress
import platform
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from msgspec import Struct

from samewire.lab.cluster import Node, Override
from samewire.lab.hostports import EVERY, Claim, HostPorts
from samewire.lab.manifests import Workload, daemon_pod_name, generated_suffix, pod_template
from samewire.lab.names import DNS_PORT, KUBELET_PORT
from samewire.lab.podspec import NODE_NAME, Container, PodTemplate, Requirement, Toleration

# What the DaemonSet controller adds to its pods; taints of these keys never keep a daemon pod away.
_DAEMON_TOLERATIONS = tuple(
    Toleration(key=f"node.kubernetes.io/{condition}", operator="Exists")
    for condition in (
        "not-ready",
        "unreachable",
        "disk-pressure",
        "memory-pressure",
        "pid-pressure",
        "unschedulable",
        "network-unavailable",
    )
)

# A file's name has 255 bytes, of which the name of a pod's network namespace takes up to 31 for the lab's.
_SLUG_LENGTH, _HASH_LENGTH = 200, 10

# What every node serves itself (see names.py).
_LAB_PORTS = frozenset(
    (protocol, port, EVERY) for protocol in ("TCP", "UDP") for port in (KUBELET_PORT, DNS_PORT)
)
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Pod(Struct, frozen=True):
    """A pod with its place. ``owner`` is ``Kind/name``."""

    namespace: str
    name: str
    owner: str
    network: str
    node: str
    template: PodTemplate
    commands: dict[str, tuple[str, ...]] = {}

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    @property
    def slug(self) -> str:
        """The key as one path component (a dot cannot be part of a namespace's name), the end of a long one hashed."""
        whole = f"{self.namespace}.{self.name}"
        if len(whole) <= _SLUG_LENGTH:
            return whole
        return f"{whole[: _SLUG_LENGTH - _HASH_LENGTH]}{generated_suffix(_HASH_LENGTH, whole)}"

    def stands_in(self, container: Container) -> bool:
        """Is this container an echo server, as opposed to a command that the cluster file asks for?"""
        return container.name not in self.commands


class Pending(Struct, frozen=True):
    """A pod that fits on no node."""

    namespace: str
    name: str
    reason: str


class Scheduler:
    """Places workloads one after another; remembers what is where. ``taken``: host ports that no node has to give."""

    def __init__(
        self, nodes: Sequence[Node], overrides: Sequence[Override] = (), taken: Iterable[Claim] = ()
    ) -> None:
        self.nodes = nodes
        self.overrides = overrides
        self.pods: list[Pod] = []
        self.pending: list[Pending] = []
        self._host_ports = {node.name: HostPorts({*_LAB_PORTS, *taken}) for node in nodes}
        self._names: set[str] = set()

    def place(self, workload: Workload, network: str) -> None:
        """Place all pods of a workload; what cannot be placed lands in ``pending``."""
        if workload.pod_names is None:
            refusals = {node.name: self._refusal(workload, network, node) for node in self.nodes}
            for node in self.nodes:
                if refusals[node.name] is None:
                    self._add(workload, daemon_pod_name(workload, node.name), network, [node])
            if None not in refusals.values():
                self.pending.append(Pending(workload.namespace, workload.name, _listed(refusals)))
            return
        for name in workload.pod_names:
            self._add(workload, name, network, self.nodes)

    def _add(self, workload: Workload, name: str, network: str, nodes: Sequence[Node]) -> None:
        key = f"{workload.namespace}/{name}"
        refusals = {node.name: self._refusal(workload, network, node) for node in nodes}
        eligible = [node for node in nodes if refusals[node.name] is None]
        if key in self._names:
            self.pending.append(Pending(workload.namespace, name, "a pod of this name is there already"))
            return
        if not eligible:
            self.pending.append(Pending(workload.namespace, name, _listed(refusals)))
            return
        node = min(eligible, key=lambda node: self._load(workload, node))
        template = pod_template(workload, name)
        commands = self._commands(key, template)
        owner = f"{workload.kind}/{workload.name}"
        pod = Pod(workload.namespace, name, owner, network, node.name, template, commands)
        self.pods.append(pod)
        self._names.add(key)
        self._host_ports[node.name].update(_claims(workload.template))

    def _load(self, workload: Workload, node: Node) -> tuple[bool, int, int, int]:
        avoided = any(
            effect == "PreferNoSchedule" and not _tolerated(key, value, effect, workload.template.tolerations)
            for key, value, effect in map(parse_taint, node.taints)
        )
        here = [pod for pod in self.pods if pod.node == node.name]
        owner = f"{workload.kind}/{workload.name}"
        same = sum(pod.owner == owner and pod.namespace == workload.namespace for pod in here)
        return avoided, same, len(here), self.nodes.index(node)

    def _refusal(self, workload: Workload, network: str, node: Node) -> str | None:
        """Why this node cannot take a pod of the workload, or None."""
        template = workload.template
        if template.node_name not in {"", node.name}:
            return f"the pod names {template.node_name}"
        # What names its node is placed already. Its kubelet refuses a host port twice still; addresses are for CNI.
        if not template.node_name and (reason := _unsuited(workload, node)):
            return reason
        here = self._host_ports[node.name]
        if taken := next((claim for claim in sorted(_claims(template)) if claim in here), None):
            return f"host port {taken[1]}/{taken[0]} is taken"
        return None if template.host_network or template.node_name else self._full(network, node)

    def _full(self, network: str, node: Node) -> str | None:
        """Whether a node's pods of a network have all addresses of a prefix but its own three."""
        mine = [pod for pod in self.pods if (pod.node, pod.network) == (node.name, network)]
        count = sum(not pod.template.host_network for pod in mine)
        for prefix in node.pod_cidrs:
            if count >= ipaddress.ip_network(prefix).num_addresses - 3:
                return f"no address of {prefix} is left"
        return None

    def _commands(self, key: str, template: PodTemplate) -> dict[str, tuple[str, ...]]:
        commands: dict[str, tuple[str, ...]] = {}
        for override in self.overrides:
            for container in template.containers:
                if container.name == override.container and fnmatchcase(key, override.pod):
                    commands[container.name] = tuple(override.command) or container.command
        return {name: words for name, words in commands.items() if words}


def node_labels(node: Node) -> dict[str, str]:
    """A node's labels with the well-known ones that every node has."""
    architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())
    return {
        "kubernetes.io/hostname": node.name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": architecture,
        "beta.kubernetes.io/os": "linux",
        "beta.kubernetes.io/arch": architecture,
        **node.labels,
    }


def parse_taint(text: str) -> tuple[str, str, str]:
    """``key[=value]:Effect`` -> (key, value, effect)."""
    rest, _, effect = text.rpartition(":")
    key, _, value = rest.partition("=")
    return key, value, effect


def _unsuited(workload: Workload, node: Node) -> str | None:
    """Why the scheduler would not choose this node for a pod of the workload, or None."""
    template = workload.template
    labels = node_labels(node)
    for key, value in template.node_selector.items():
        if labels.get(key) != value:
            return f"lacks {key}={value}"
    known = {**labels, NODE_NAME: node.name}
    terms = [term for term in template.affinity if term]
    if template.affinity and not any(all(_meets(known, one) for one in term) for term in terms):
        return "node affinity does not match"
    extra = _DAEMON_TOLERATIONS if workload.kind == "DaemonSet" else ()
    for key, value, effect in map(parse_taint, node.taints):
        if effect != "PreferNoSchedule" and not _tolerated(
            key, value, effect, (*template.tolerations, *extra)
        ):
            return f"taint {key}"
    return None


def _listed(refusals: Mapping[str, str | None]) -> str:
    return ", ".join(f"{node}: {reason}" for node, reason in refusals.items())


def _claims(template: PodTemplate) -> set[Claim]:
    ports = [port for container in template.containers for port in container.ports]
    claims = {port.claim for port in ports if port.host_port}
    if template.host_network:
        claims |= {(port.protocol, port.container_port, EVERY) for port in ports}
    return claims


def _meets(labels: dict[str, str], requirement: Requirement) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value in requirement.values
        case "NotIn":
            return value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt":
            try:
                left, right = int(value or ""), int(requirement.values[0])
            except (ValueError, IndexError):
                return False
            return left > right if requirement.operator == "Gt" else left < right
    return False


def _tolerated(key: str, value: str, effect: str, tolerations: Iterable[Toleration]) -> bool:
    for toleration in tolerations:
        if toleration.effect and toleration.effect != effect:
            continue
        if toleration.operator == "Exists" and toleration.key in {"", key}:
            return True
        if toleration.key == key and toleration.value == value:
            return True
    return False
