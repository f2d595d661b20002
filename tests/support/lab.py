"""Labs for tests: the state of one that is not there, and running, listing and removing real ones."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from samewire.lab.services import service_plans
from samewire.lab.state import LabState, NodeState, OutsideState, PodState
from samewire.lab.up import read_plan

EXAMPLES = Path(__file__).parents[2] / "examples"
COMMAND = (sys.executable, "-m", "samewire.cli.main", "lab")


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
        services=service_plans(plan.services, plan.cluster.services.cluster_cidrs),
    )


def run_lab(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``samewire lab ...`` as a user would."""
    return subprocess.run((*COMMAND, *arguments), capture_output=True, text=True, timeout=120, check=False)


def lab_json(*arguments: str) -> Any:
    """The JSON document that a lab command prints, whatever its exit status."""
    done = run_lab(*arguments, "--json")
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def variant(example: str, name: str, directory: Path, **changes: str) -> Path:
    """A copy of an example under another name, with texts replaced (``samewire="kernel"``)."""
    text = (EXAMPLES / f"{example}.yaml").read_text()
    text = re.sub(r"^name: .*$", f"name: {name}", text, flags=re.MULTILINE)
    text = text.replace("path: manifests/", f"path: {EXAMPLES}/manifests/")
    for old, new in changes.items():
        text = re.sub(rf"stack: {old}", f"stack: {new}", text)
    path = directory / f"{name}.yaml"
    path.write_text(text)
    return path


def wrong_cells(report: Any) -> list[str]:
    """The wrong cells and facts of a check's document, readable in an assertion."""
    cells = [
        f"{cell['category']}: {cell['from']} to {cell['to']} ({cell['address']}) {cell['protocol']}: {cell['why']}"
        for cell in report["cells"]
        if not cell["ok"]
    ]
    return cells + [f"{fact['row']}: {fact['observed']}" for fact in report["facts"] if not fact["ok"]]


def footprint(name: str) -> dict[str, list[str]]:
    """Everything on this machine that belongs to a lab of that name: empty lists when it is gone."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    hierarchies = {
        line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if "cgroup" in line
    }
    cgroups = []
    for hierarchy in hierarchies:
        found = [
            *Path(hierarchy).glob(f"samewire-lab/{name}*"),
            *Path(hierarchy).glob(f"samewire-lab-{name}-*"),
        ]
        cgroups += [str(path) for path in found]
    return {
        "namespaces": [path.name for path in Path("/run/netns").glob(f"swlab-{name}[-.]*")],
        "mounts": [line for line in mounts if f"samewire-lab/{name}" in line or f"swlab-{name}" in line],
        "cgroups": cgroups,
        "directories": [str(path) for path in Path("/run/samewire-lab").glob(name)],
        "processes": _processes(name),
    }


def namespace_inodes(name: str) -> set[int]:
    """The identities of a lab's network namespaces."""
    return {path.stat().st_ino for path in Path("/run/netns").glob(f"swlab-{name}[-.]*")}


def processes_in(inodes: set[int]) -> list[int]:
    """The processes in any of these network namespaces, under whatever name."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "ns/net").stat().st_ino in inodes:
                found.append(int(process.name))
        except OSError:
            continue  # ended meanwhile, or a zombie
    return found


def _processes(name: str) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            groups = (process / "cgroup").read_text()
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if not words:
            continue  # a zombie: dead, and init's to reap
        if f"samewire-lab/{name}" in groups or f"samewire-lab-{name}-" in groups or f"swlab-{name}" in words:
            found.append(f"{process.name} {words}")
    return found
