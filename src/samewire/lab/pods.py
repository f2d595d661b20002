"""Pods as processes: one network namespace, one pause process, one process a container."""

from __future__ import annotations

from pathlib import Path

from samewire.lab.cgroups import Cgroups
from samewire.lab.commands import bounded
from samewire.lab.names import pod_directory, pod_netns
from samewire.lab.plan import Plan, network_named
from samewire.lab.podfiles import pod_dns, render_hosts, render_resolv_conf
from samewire.lab.podspec import Container, oom_score_adj, served_ports
from samewire.lab.processes import Launch, python_script, start
from samewire.lab.schedule import Pod
from samewire.lab.stack import Attached, NodeContext, NodeStack
from samewire.lab.state import PodState

#: The process that keeps a pod's namespaces, by the name Kubernetes gives it. No container can be called so
#: (names of containers have no underscore).
PAUSE = "_pause"
_PAUSE_OOM_SCORE_ADJ = -998
_IDLE = ("sleep", "infinity")
_PARALLEL = 4


class PodMaker:
    """Starts the pods of one lab."""

    def __init__(self, plan: Plan, cgroups: Cgroups) -> None:
        self._plan = plan
        self._cgroups = cgroups
        self._machine_bytes = _machine_memory_bytes()
        resolv_conf = Path("/etc/resolv.conf")
        self._resolv_conf = resolv_conf.read_text() if resolv_conf.exists() else ""

    async def start(self, pod: Pod, context: NodeContext, stack: NodeStack) -> PodState:
        """Attach the pod's namespace (which exists), write its files and start all its processes."""
        network = network_named(self._plan.cluster, pod.network)
        dns = pod_dns(pod, network.dns, context.node.addresses[0], self._resolv_conf)
        host = pod.template.host_network
        netns = context.netns if host else pod_netns(self._plan.name, pod.slug)
        cgroups = self._cgroups.host(context.cgroup, pod.slug) if host else self._cgroups.member(pod.slug)
        if host:
            attached = Attached(context.node.addresses, dns)
        else:
            attached = await stack.add_pod(pod, netns, dns)
        hostname = context.node.name if host else (pod.template.hostname or pod.name)[:63].rstrip("-.")
        state = PodState(
            pod=pod,
            netns=netns,
            directory=str(pod_directory(self._plan.name, pod.slug)),
            cgroups=tuple(str(path) for path in cgroups),
            addresses=attached.addresses,
            hostname=hostname,
            dns=dns,
        )
        self._write_files(state, attached, network.dns.domain)
        await bounded(_PARALLEL, [start(launch) for launch in self._launches(state)])
        return state

    def _write_files(self, state: PodState, attached: Attached, domain: str) -> None:
        directory = Path(state.directory)
        directory.mkdir(parents=True)
        (directory / "resolv.conf").write_text(render_resolv_conf(attached.dns))
        (directory / "hosts").write_text(render_hosts(state.pod, state.hostname, state.addresses, domain))

    def _launches(self, state: PodState) -> list[Launch]:
        launches = [self._container(state, container) for container in state.pod.template.containers]
        if not state.pod.template.host_network:
            launches.append(self._launch(state, PAUSE, _IDLE, _PAUSE_OOM_SCORE_ADJ))
        return launches

    def _container(self, state: PodState, container: Container) -> Launch:
        requested = container.resources.get("requests.memory", container.resources.get("limits.memory", 0.0))
        score = oom_score_adj(state.pod.template.qos, requested, self._machine_bytes)
        command = state.pod.commands.get(container.name)
        if command is not None:
            return self._launch(state, container.name, command, score, env=container.env)
        ports = served_ports(container)
        if not ports:
            return self._launch(state, container.name, _IDLE, score)
        ready = Path(state.directory) / f"{container.name}.ready"
        words = python_script("echo.py", str(ready), container.name, *(str(port) for port in ports))
        return self._launch(state, container.name, words, score, own_ready=True)

    def _launch(
        self,
        state: PodState,
        name: str,
        command: tuple[str, ...],
        score: int,
        own_ready: bool = False,
        env: tuple[tuple[str, str], ...] = (),
    ) -> Launch:
        directory = Path(state.directory)
        return Launch(
            name=name,
            directory=directory,
            netns=state.netns,
            hostname=state.hostname,
            cgroups=tuple(Path(path) for path in state.cgroups),
            command=command,
            own_ready=own_ready,
            oom_score_adj=score,
            binds=((directory / "resolv.conf", "/etc/resolv.conf"), (directory / "hosts", "/etc/hosts")),
            env=env,
        )


def _machine_memory_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no MemTotal")
