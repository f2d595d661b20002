"""Labs for tests: the state of one that is not there, and running, listing and removing real ones."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from samewire.errors import SamewireError
from samewire.kernel.netns import NetNamespace, cookie
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
    return subprocess.run((*COMMAND, *arguments), capture_output=True, text=True, timeout=400, check=False)


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


def namespaces(name: str) -> dict[int, int]:
    """A lab's network namespaces: inode and the kernel's own number; the inode may soon be another namespace's."""
    found = {}
    for path in Path("/run/netns").glob(f"swlab-{name}[-.]*"):
        with suppress(SamewireError):  # half made, nobody is in it
            found[path.stat().st_ino] = _cookie(path)
    return found


def processes_in(spaces: dict[int, int]) -> list[str]:
    """The processes in any of these network namespaces, under whatever name."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            inode = (process / "ns/net").stat().st_ino
            if inode in spaces and _cookie(process / "ns/net") == spaces[inode]:
                found.append(f"{process.name} {(process / 'cmdline').read_text()}")
        except (OSError, SamewireError):
            continue  # ended meanwhile, or a zombie
    return found


def _cookie(path: Path) -> int:
    with NetNamespace(str(path)) as netns:
        return netns.run(cookie)


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
