"""A kernel node's way with the plugins of others."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from samewire.lab.kernel_node import KernelNode
from samewire.lab.podspec import Container, DnsConfig, PodTemplate, Port
from samewire.lab.schedule import Pod
from samewire.lab.stack import Attached, NodeContext
from samewire.lab.up import read_plan
from tests.support.lab import EXAMPLES


async def test_host_ports_are_mapped_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """The portmap plugin makes its chains if they are not there; of two at once one failed, and with it the lab."""
    plan = read_plan(EXAMPLES / "mixed-cluster.yaml")
    node = KernelNode(NodeContext(plan, plan.nodes[-1], "netns", Path(), Path(), Path()))
    running: list[str] = []
    most: dict[bool, int] = {}

    async def add(conflist: Any, pod: Pod, netns_file: str, args: Any) -> Attached:
        running.append(pod.name)
        mapped = bool(args["portMappings"])
        most[mapped] = max(most.get(mapped, 0), sum(name.startswith(pod.name[0]) for name in running))
        await asyncio.sleep(0)
        running.remove(pod.name)
        return Attached((), DnsConfig())

    monkeypatch.setattr(node, "_runtime", SimpleNamespace(add=add))

    def pod(name: str, *ports: Port) -> Pod:
        return Pod("default", name, "", "pods", "gamma", PodTemplate((Container("c", ports=ports),)))

    pods = [pod(f"m{number}", Port(80, "TCP", 8080 + number)) for number in range(3)]
    pods += [pod(f"p{number}", Port(80)) for number in range(3)]
    await asyncio.gather(*(node.add_pod(one, "netns", DnsConfig()) for one in pods))
    assert most == {True: 1, False: 3}
