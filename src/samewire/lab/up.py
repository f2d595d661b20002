"""``lab up``: from a cluster file to a running lab, all or nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from samewire.counted import counted
from samewire.lab.cgroups import Cgroups, Mounts, enter, find_mounts, own_cgroup
from samewire.lab.cluster import Stack
from samewire.lab.commands import bounded, clean_environment
from samewire.lab.down import remove
from samewire.lab.kernel_node import KernelNode
from samewire.lab.loader import load_cluster
from samewire.lab.names import (
    DNS_PORT,
    HOST_PROCESS,
    KUBELET_PORT,
    OUTSIDE_PORT,
    OUTSIDE_PROCESS,
    manifests_directory,
    node_directory,
    node_netns,
    outside_directory,
    pod_netns,
)
from samewire.lab.plan import NodePlan, OutsidePlan, Plan, idle_overrides, make_plan
from samewire.lab.pods import PodMaker
from samewire.lab.processes import Launch, python_script, start
from samewire.lab.samewire_node import SamewireNode
from samewire.lab.services import balanced_pods, is_served, node_objects, pod_objects, service_plans
from samewire.lab.stack import NodeContext, NodeStack
from samewire.lab.state import Lab, LabState, NodeState, OutsideState, PodState
from samewire.lab.underlay import build, create_namespaces, uplink_mac

_PARALLEL = 4
_STACKS: dict[Stack, Callable[[NodeContext], NodeStack]] = {
    Stack.SAMEWIRE: SamewireNode,
    Stack.KERNEL: KernelNode,
}

Progress = Callable[[str], None]


def read_plan(file: Path) -> Plan:
    """The plan of a cluster file and the manifests it names; Invalid (with line and field) for faults."""
    source = load_cluster(file)
    texts = {}
    for index, manifest in enumerate(source.cluster.manifests):
        try:
            texts[manifest.path] = (file.parent / manifest.path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise source.error([(f"manifests[{index}].path", f"{manifest.path}: {reason}")]) from error
    plan = make_plan(source.cluster, texts)
    if faults := [*idle_overrides(plan), *_unknown_commands(plan)]:
        raise source.error(faults)
    return plan


def _unknown_commands(plan: Plan) -> Iterator[tuple[str, str]]:
    """Overrides whose program is nowhere on this machine, as path and what is wrong: their containers would end at
    once. Not those with a relative path, which depend on where they are started.
    """
    containers = (container for pod in plan.pods for container in pod.template.containers)
    own = (dict(container.env).get("PATH") for container in containers)
    search = ":".join(filter(None, (clean_environment()["PATH"], *own)))
    for index, override in enumerate(plan.cluster.overrides):
        program = next(iter(override.command), "")
        if "/" in program and not program.startswith("/"):
            continue
        if program and shutil.which(program, path=search) is None:
            yield f"overrides[{index}].command", f"{program!r} is no program of this machine"


async def up(file: Path, plan: Plan, progress: Progress, keep: bool = False) -> LabState:
    """Bring up the lab of a cluster file, read by :func:`read_plan`, and return its state.

    ``progress`` is told what is being done, in a few words. A failure (or a cancellation) removes everything
    made so far, unless ``keep``; ``lab down`` does the same for a run that was killed.
    """
    mounts = find_mounts()
    with Lab.create(plan.name) as lab:
        try:
            with _tracked(lab, mounts):
                state = await _Builder(lab, plan, mounts, progress).build(file)
        except BaseException:
            if not keep:
                try:
                    progress("not finished; removing what was made")
                finally:  # also where nobody is there any more to be told
                    await remove(lab)
            raise
        lab.save(state)
        return state


class _Builder:
    """One run of ``lab up``."""

    def __init__(self, lab: Lab, plan: Plan, mounts: Mounts, progress: Progress) -> None:
        self.lab = lab
        self.plan = plan
        self.progress = progress
        self.cgroups = Cgroups(lab, mounts)
        self.contexts: dict[str, NodeContext] = {}
        self.stacks: dict[str, NodeStack] = {}

    async def build(self, file: Path) -> LabState:
        """All steps in order."""
        self.progress(
            f"underlay ({self.plan.cluster.underlay.type.value}), {counted(len(self.plan.nodes), 'node')}"
        )
        await build(self.lab, self.plan)
        self._write_objects("services", [*self.plan.services, *node_objects(self.plan.nodes)])
        await self._servers()
        self.progress("node stacks")
        await self._stacks()
        self.progress(counted(len(self.plan.pods), "pod"))
        pods = await self._pods()
        balanced = balanced_pods(pods, self.plan.cluster.networks[0].name)
        self._write_objects("pods", pod_objects(balanced))
        services = service_plans(self.plan.services, self.plan.cluster.services.cluster_cidrs)
        if services:
            self.progress(counted(len(services), "service"))
            wanted = {service.key: is_served(service, balanced) for service in services}
            lacking = {service.key for service in services if service.is_lacking}
            await bounded(
                _PARALLEL, [self.stacks[node.name].settle(wanted, lacking) for node in self.plan.nodes]
            )
        return LabState(
            cluster=self.plan.cluster,
            file=str(file),
            nodes=tuple([await self._node_state(node) for node in self.plan.nodes]),
            outside=tuple(
                OutsideState(host, node_netns(self.plan.name, host.name)) for host in self.plan.outside
            ),
            pods=tuple(pods),
            pending=self.plan.pending,
            skipped=self.plan.skipped,
            services=services,
        )

    def _write_objects(self, name: str, objects: list[dict[str, Any]]) -> None:
        """Tell the nodes' daemons, in one step."""
        directory = manifests_directory(self.plan.name)
        directory.mkdir(exist_ok=True)
        draft = directory / f".{name}"
        document = {"apiVersion": "v1", "kind": "List", "items": objects}
        draft.write_text(json.dumps(document, indent=1, default=str) + "\n")
        draft.replace(directory / f"{name}.json")

    async def _servers(self) -> None:
        """The nodes' own cgroups and servers, and the outside hosts'."""
        launches = []
        for node in self.plan.nodes:
            cgroup = self.cgroups.node(node.name)
            host, *_ = self.cgroups.host(cgroup, HOST_PROCESS)
            directory = node_directory(self.plan.name, node.name)
            netns = node_netns(self.plan.name, node.name)
            self.contexts[node.name] = NodeContext(self.plan, node, netns, directory, cgroup, host)
            launches.append(self._host_server(node))
        launches += [self._outside_server(host) for host in self.plan.outside]
        await bounded(_PARALLEL, [start(launch) for launch in launches])

    def _host_server(self, node: NodePlan) -> Launch:
        context = self.contexts[node.name]
        ports = [str(KUBELET_PORT), *(f"{address}@{DNS_PORT}" for address in node.addresses)]
        return _server(
            HOST_PROCESS, context.directory, context.netns, node.name, (context.host_cgroup,), ports
        )

    def _outside_server(self, host: OutsidePlan) -> Launch:
        directory = outside_directory(self.plan.name, host.name)
        netns = node_netns(self.plan.name, host.name)
        cgroups = self.cgroups.member(f"outside-{host.name}")
        return _server(OUTSIDE_PROCESS, directory, netns, host.name, cgroups, [str(OUTSIDE_PORT)])

    async def _stacks(self) -> None:
        """Prepare every node, then tell each of all the others."""
        names = [node.name for node in self.plan.nodes]
        for node in self.plan.nodes:
            self.stacks[node.name] = _STACKS[node.stack](self.contexts[node.name])
        prepared = await bounded(_PARALLEL, [self.stacks[name].prepare() for name in names])
        vteps = [vtep for found in prepared for vtep in found]
        others = {name: [vtep for vtep in vteps if vtep.node != name] for name in names}
        await bounded(_PARALLEL, [self.stacks[name].connect(others[name]) for name in names])

    async def _pods(self) -> list[PodState]:
        own = [pod for pod in self.plan.pods if not pod.template.host_network]
        await create_namespaces(self.lab, [pod_netns(self.plan.name, pod.slug) for pod in own])
        maker = PodMaker(self.plan, self.cgroups)
        jobs = [maker.start(pod, self.contexts[pod.node], self.stacks[pod.node]) for pod in self.plan.pods]
        return await bounded(_PARALLEL, jobs)

    async def _node_state(self, node: NodePlan) -> NodeState:
        context, stack = self.contexts[node.name], self.stacks[node.name]
        networks = [network.name for network in self.plan.cluster.networks]
        return NodeState(
            plan=node,
            netns=context.netns,
            mac=await uplink_mac(context.netns),
            cgroup=str(context.cgroup),
            pod_addresses={name: stack.host_addresses_in_pod_network(name) for name in networks},
            socket=stack.socket,
        )


def _server(
    name: str, directory: Path, netns: str, hostname: str, cgroups: tuple[Path, ...], ports: list[str]
) -> Launch:
    ready = directory / f"{name}.ready"
    return Launch(
        name=name,
        directory=directory,
        netns=netns,
        hostname=hostname,
        cgroups=cgroups,
        command=python_script("echo.py", str(ready), hostname, *ports),
        own_ready=True,
    )


@contextmanager
def _tracked(lab: Lab, mounts: Mounts) -> Iterator[None]:
    """Run this process, and so every tool it starts, in a cgroup of the lab.

    After a ``kill -9`` of this process ``lab down`` first ends the orphaned tools there; else an ``ip netns
    add`` in flight could make its namespace after ``down`` looked for it.
    """
    before = own_cgroup(mounts)
    worker, *_ = Cgroups(lab, mounts).member("_up")
    enter(worker)
    try:
        yield
    finally:
        enter(before)
