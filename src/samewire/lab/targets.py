"""``lab exec``: what a name means and how to get in there (building the command is pure)."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from samewire.errors import NotFound, Unsupported
from samewire.lab.cgroups import enter
from samewire.lab.cni import container_id
from samewire.lab.commands import netns_path
from samewire.lab.names import HOST_PROCESS, node_netns
from samewire.lab.pods import PAUSE
from samewire.lab.state import LabState, PodState


class Entry(Struct, frozen=True):
    """How to run something in a place: the command's beginning, and the cgroups to be in."""

    argv: tuple[str, ...]
    cgroups: tuple[str, ...] = ()


def resolve(state: LabState, target: str, container: str = "") -> Entry:
    """Find ``POD``, ``node/NAME``, ``outside/NAME``, ``switch`` or ``router``.

    A node's name alone means the node, unless a pod is called so. Raises NotFound or Conflict.
    """
    kind, _, name = target.partition("/")
    if target in {"switch", "router"}:
        return _namespace(node_netns(state.cluster.name, target))
    if kind == "node":
        return _node(state, name)
    if kind == "outside":
        for host in state.outside:
            if host.plan.name == name:
                return _namespace(host.netns)
        raise NotFound("outside host", name)
    try:
        return _pod(state.find_pod(target), container)
    except NotFound:
        if any(node.plan.name == target for node in state.nodes):
            return _node(state, target)
        raise


def trace_origin(state: LabState, query: str) -> tuple[str, str]:
    """The socket of the daemon that a pod's traffic goes through, and the pod's name there.

    Raises Unsupported for pods that no switch carries: those of kernel nodes, and hostNetwork pods.
    """
    pod = state.find_pod(query)
    node = state.node(pod.pod.node)
    if not node.socket:
        raise Unsupported(f"tracing {pod.pod.key} on kernel node {pod.pod.node}", "a Samewire node")
    if pod.pod.template.host_network:
        raise Unsupported(f"tracing {pod.pod.key}, which uses its node's network", "a pod of its own network")
    return node.socket, container_id(pod.pod)


def trace_target(state: LabState, target: str, origin: str) -> str:
    """``ADDR[:PORT]`` as it is; of ``POD[:PORT]`` the pod's first address. Raises NotFound or Conflict.

    ``origin``: the sending pod. Where both are any pod of an owner (``--from web --to web:80``), they are two.
    """
    name, colon, port = target.partition(":")
    if ":" in port or target.startswith("["):
        return target
    try:
        ipaddress.ip_address(name)
    except ValueError:
        name = state.find_pod(name, state.find_pod(origin)).addresses[0]
        return f"[{name}]{colon}{port}" if ":" in name else f"{name}{colon}{port}"
    return target


def peers(state: LabState) -> dict[str, str]:
    """Address of every Samewire node -> its daemon's socket, for a trace to go on where the packet goes."""
    return {address: node.socket for node in state.nodes if node.socket for address in node.plan.addresses}


def execute(entry: Entry, command: Sequence[str]) -> None:
    """Replace this process by the command; raises NotFound when the machine has no ``nsenter``."""
    for cgroup in entry.cgroups:
        enter(Path(cgroup))
    try:
        os.execvp(entry.argv[0], [*entry.argv, *command])
    except FileNotFoundError as error:
        raise NotFound("program", entry.argv[0]) from error


def _namespace(netns: str) -> Entry:
    return Entry(("nsenter", f"--net={netns_path(netns)}", "--"))


def _node(state: LabState, name: str) -> Entry:
    node = state.node(name)
    return Entry((*_namespace(node.netns).argv,), (f"{node.cgroup}/{HOST_PROCESS}",))


def _pod(pod: PodState, container: str) -> Entry:
    """Into the container's own network, mounts and host name; the first one where none is named."""
    names = [item.name for item in pod.pod.template.containers]
    if container and container not in names:
        raise NotFound(f"container of {pod.pod.key}", container, f"there are {', '.join(names)}")
    order = [container] if container else [*names, PAUSE]
    for name in order:
        try:
            pid = pod.pid(name)
        except NotFound:
            continue
        inside = ("--net", "--mount", "--uts", "--wd=/")
        return Entry(("nsenter", f"--target={pid}", *inside, "--"), pod.cgroups)
    raise NotFound("running container", f"{pod.pod.key} {container}".strip())
