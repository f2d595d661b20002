"""The lab's cgroups: the handle by which every process is found again, and the meter of ``lab top``.

Every process of a lab is in a cgroup of the v2 hierarchy: ``samewire-lab/<cluster>/<pod>`` for pods (outside
hosts and ``lab up`` itself have one there too), ``samewire-lab-<cluster>-<node>/...`` for a node's host
processes and hostNetwork pods, so that the node's daemon can attach its host-socket hooks to that one
directory. ``cgroup.kill`` then ends them all, with nothing left to race.

CPU time comes from v2's ``cpu.stat``, which needs no controller. Memory needs the memory controller: where v2
does not have it (hybrid machines), each pod also gets a v1 memory cgroup.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from msgspec import Struct

from samewire.errors import Conflict, KernelError, Unsupported
from samewire.lab.state import CGROUP, Lab

_DEATH_TIMEOUT_S = 30.0


class Mounts(Struct, frozen=True):
    """Where the hierarchies are; ``v1_memory`` is None where v2 has the memory controller itself."""

    v2: Path
    v1_memory: Path | None


class Usage(Struct, frozen=True):
    """What a pod's processes have used: CPU seconds since the start, memory now (-1: not metered)."""

    cpu_s: float
    memory_bytes: int


def find_mounts(mounts_file: Path = Path("/proc/mounts")) -> Mounts:
    """Read the mount points; Unsupported without a cgroup v2 hierarchy."""
    v2: Path | None = None
    v1_memory: Path | None = None
    for line in os.fsdecode(mounts_file.read_bytes().strip()).split("\n"):  # a name is any bytes
        _, point, kind, options, *_ = line.split(" ")
        if kind == "cgroup2" and v2 is None:
            v2 = Path(point)
        elif kind == "cgroup" and "memory" in options.split(","):
            v1_memory = Path(point)
    if v2 is None:
        raise Unsupported("the lab", "a mounted cgroup2 hierarchy")
    has_memory = "memory" in (v2 / "cgroup.controllers").read_text().split()
    return Mounts(v2, None if has_memory else v1_memory)


class Cgroups:
    """Makes the cgroups of one lab, each noted in the journal first."""

    def __init__(self, lab: Lab, mounts: Mounts) -> None:
        self._lab = lab
        self._mounts = mounts

    def node(self, node: str) -> Path:
        """The cgroup of a node: host processes live in sub-cgroups of it. Raises Conflict."""
        path = self._mounts.v2 / f"samewire-lab-{self._lab.name}-{node}"
        if path.exists():
            raise Conflict(f"the cgroup {path} exists already and is not this lab's")
        self._make(path)
        self._meter(self._mounts.v2, path)
        return path

    def host(self, node_cgroup: Path, name: str) -> tuple[Path, ...]:
        """The cgroups of a node's host processes or of one hostNetwork pod, below the node's own."""
        path = node_cgroup / name  # goes with the node's cgroup, so it needs no note of its own
        path.mkdir(exist_ok=True)
        return (path, *self._memory(name))

    def member(self, name: str) -> tuple[Path, ...]:
        """The cgroups that a pod's processes enter: v2 first, then v1 memory where that is separate."""
        parent = self._mounts.v2 / "samewire-lab" / self._lab.name
        self._make(parent / name)
        self._meter(self._mounts.v2, parent.parent, parent)
        return (parent / name, *self._memory(name))

    def _meter(self, *parents: Path) -> None:
        """Have the children of these cgroups metered, where v2 does it."""
        if self._mounts.v1_memory is None:
            for parent in parents:
                _write(parent / "cgroup.subtree_control", "+memory")

    def _memory(self, name: str) -> tuple[Path, ...]:
        if self._mounts.v1_memory is None:
            return ()
        path = self._mounts.v1_memory / "samewire-lab" / self._lab.name / name
        self._make(path)
        return (path,)

    def _make(self, path: Path) -> None:
        self._lab.note(CGROUP, str(path))
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise KernelError(f"make cgroup {path}", error.errno or 0) from error


def enter(path: Path) -> None:
    """Move this process into a cgroup."""
    _write(path / "cgroup.procs", "0")


def own_cgroup(mounts: Mounts) -> Path:
    """The v2 cgroup that this process is in now. Raises Unsupported."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return mounts.v2 / line[3:].lstrip("/")
    raise Unsupported("the lab", "cgroup v2 membership in /proc/self/cgroup")


def usage(cgroups: tuple[str, ...]) -> Usage:
    """What a pod has used; cgroups that have gone away count as nothing."""
    cpu_s, memory_bytes = 0.0, -1
    for path in map(Path, cgroups):
        for line in _read(path / "cpu.stat").splitlines():
            key, _, value = line.partition(" ")
            if key == "usage_usec":
                cpu_s = int(value) / 1e6
        for name in ("memory.current", "memory.usage_in_bytes"):
            if text := _read(path / name):
                memory_bytes = int(text)
    return Usage(cpu_s, memory_bytes)


def remove_cgroups(paths: list[str]) -> None:
    """Kill every process in the v2 cgroups among ``paths``, then remove them all with what is below them.

    Raises KernelError when a process does not die within 30 s. Gone cgroups are no error.
    """
    trees = [Path(path) for path in paths]
    for tree in trees:
        _kill(tree)
    deadline = time.monotonic() + _DEATH_TIMEOUT_S
    for tree in sorted(trees, key=lambda path: len(path.parts), reverse=True):
        for path, _, _ in os.walk(tree, topdown=False):
            _remove(Path(path), deadline)
    # <mount>/samewire-lab/<cluster>/<pod>: the two above it go once nobody else's cgroups are in them.
    shared = {parent for tree in trees for parent in tree.parents if "samewire-lab" in parent.parts}
    for parent in sorted(shared, key=lambda path: len(path.parts), reverse=True):
        _remove_if_empty(parent)


def _remove(path: Path, deadline: float) -> None:
    while True:
        try:
            path.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise KernelError(
                    f"remove cgroup {path}", error.errno or 0, "its processes live on"
                ) from error
        _kill(path)  # again: a process may have entered after the first time
        time.sleep(0.01)


def _kill(path: Path) -> None:
    if (path / "cgroup.kill").exists():  # else gone, or a v1 cgroup, whose processes are in a v2 one as well
        _write(path / "cgroup.kill", "1")


def _remove_if_empty(path: Path) -> None:
    try:
        path.rmdir()
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.EBUSY, errno.ENOTEMPTY}:
            raise KernelError(f"remove cgroup {path}", error.errno or 0) from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise KernelError(f"write {text!r} to {path}", error.errno or 0) from error


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
