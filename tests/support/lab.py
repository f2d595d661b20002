"""The state of a lab that is not there, for tests of what reads it."""

from __future__ import annotations

from pathlib import Path

from samewire.lab.state import LabState, NodeState, OutsideState, PodState
from samewire.lab.up import read_plan

EXAMPLES = Path(__file__).parents[2] / "examples"


def lab_state(name: str) -> LabState:
    """The state that `lab up` would reach, with addresses given out in order."""
    plan = read_plan(EXAMPLES / f"{name}.yaml")
    used: dict[tuple[str, str], int] = {}
    pods = []
    for pod in plan.pods:
        node = next(node for node in plan.nodes if node.name == pod.node)
        used[pod.network, pod.node] = number = used.get((pod.network, pod.node), 1) + 1
        addresses = tuple(
            prefix.partition("/")[0].removesuffix("0") + str(number) for prefix in node.pod_cidrs
        )
        if pod.template.host_network:
            addresses = node.addresses
        pods.append(PodState(pod, f"ns-{pod.slug}", "/nowhere", (), addresses, pod.name, pod.template.dns))
    return LabState(
        cluster=plan.cluster,
        file="x",
        nodes=tuple(
            NodeState(node, f"ns-{node.name}", "02:00:00:00:00:01", "/cgroup", {"pods": ("10.244.9.1",)})
            for node in plan.nodes
        ),
        outside=tuple(OutsideState(host, f"ns-{host.name}") for host in plan.outside),
        pods=tuple(pods),
        pending=(),
        skipped=(),
    )
