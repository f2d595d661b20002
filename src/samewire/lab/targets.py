"""``lab exec``: what a name means and how to get in there (building the command is pure)."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from samewire.errors import Invalid, NotFound, Unsupported
from samewire.lab.cgroups import enter
from samewire.lab.cni import container_id
from samewire.lab.commands import netns_path
from samewire.lab.names import HOST_PROCESS, node_netns
from samewire.lab.pods import PAUSE
from samewire.lab.state import LabState, NodeState, OutsideState, PodState


class Entry(Struct, frozen=True):
    """How to run something in a place: the command's beginning, and the cgroups to be in."""

    argv: tuple[str, ...]
    cgroups: tuple[str, ...] = ()


def resolve(state: LabState, target: str, container: str = "") -> Entry:
    """Find ``POD``, ``node/NAME``, ``outside/NAME``, ``switch`` or ``router``.

    The name alone of a node or outside host means that, unless a pod is called so. Raises NotFound or Conflict.
    """
    if target in {"switch", "router"}:
        return _namespace(node_netns(state.cluster.name, target))
    place = find(state, target)
    if isinstance(place, PodState):
        return _pod(place, container)
    return _node(place) if isinstance(place, NodeState) else _namespace(place.netns)


def find(state: LabState, query: str, sender: PodState | None = None) -> PodState | NodeState | OutsideState:
    """A pod as `LabState.find_pod` has it, else a node or outside host by name. Raises NotFound or Conflict."""
    kind, _, name = query.partition("/")
    if kind == "node":
        return state.node(name)
    if kind == "outside":
        return state.outside_host(name)
    try:
        return state.find_pod(query, sender)
    except NotFound:
        places: tuple[NodeState | OutsideState, ...] = (*state.nodes, *state.outside)
        for place in places:
            if place.plan.name == query:
                return place
        raise


def trace_origin(state: LabState, query: str) -> tuple[str, str]:
    """The socket of the daemon that a pod's traffic goes through, and the pod's name there.

    Raises Unsupported for whom no switch carries: machines, pods of kernel nodes, and hostNetwork pods.
    """
    pod = find(state, query)
    if not isinstance(pod, PodState):
        raise Unsupported(f"a trace from {query} (a machine)", "a pod to begin at")
    node = state.node(pod.pod.node)
    if not node.socket:
        raise Unsupported(f"a trace from {pod.pod.key} on kernel node {pod.pod.node}", "a Samewire node")
    if pod.pod.template.host_network:
        raise Unsupported(f"a trace from {pod.pod.key} (hostNetwork)", "a pod with a network of its own")
    return node.socket, container_id(pod.pod)


def trace_target(state: LabState, target: str, origin: str) -> str:
    """``ADDR[:PORT]`` as it is; of a pod, node or outside host (``NAME[:PORT]``) the first address.

    ``origin``: the sending pod. Where both are any pod of an owner (``--from web --to web:80``), they are two. Raises
    NotFound, Conflict, or Invalid for a pod whose address is somebody else's in the sender's network.
    """
    name, colon, port = target.partition(":")
    if ":" in port or target.startswith("["):
        return target
    try:
        ipaddress.ip_address(name)
    except ValueError:
        name = _first_address(state, name, state.find_pod(origin))
        return f"[{name}]{colon}{port}" if ":" in name else f"{name}{colon}{port}"
    return target


def _first_address(state: LabState, name: str, sender: PodState) -> str:
    place = find(state, name, sender)
    if not isinstance(place, PodState):
        return place.plan.addresses[0]
    pod = place.pod
    if not pod.template.host_network and pod.network != sender.pod.network:
        raise Invalid(
            "--to",
            f"{pod.key} is a pod of network {pod.network}; in {sender.pod.network}, {sender.pod.key}'s, "
            f"{place.addresses[0]} is another's or nobody's",
        )
    return place.addresses[0]


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


def _node(node: NodeState) -> Entry:
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
