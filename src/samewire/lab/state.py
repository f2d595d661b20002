"""What a lab has made, on disk, so that any later process can use it or remove it.

Two files in the lab's runtime directory:

* ``journal``: one line for every kernel object, written *before* the object is made. ``lab down`` works from
  it alone, whatever moment ``lab up`` was killed at.
* ``lab.json``: the :class:`LabState`, written once the lab is up; its presence means "complete".

The directory itself is the lock (flock): the kernel drops it with the process that held it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import msgspec
from msgspec import Struct

from samewire.errors import Conflict, NotFound
from samewire.lab.cluster import Cluster
from samewire.lab.manifests import Skipped
from samewire.lab.names import LABS, lab_directory
from samewire.lab.pids import running_pid
from samewire.lab.plan import NodePlan, OutsidePlan
from samewire.lab.podspec import DnsConfig
from samewire.lab.schedule import Pending, Pod
from samewire.lab.services import ServicePlan

NETNS, CGROUP = "netns", "cgroup"


class NodeState(Struct, frozen=True):
    """A node that is up. ``pod_addresses``: its own addresses in each pod network."""

    plan: NodePlan
    netns: str
    mac: str
    cgroup: str
    pod_addresses: dict[str, tuple[str, ...]]
    socket: str = ""


class OutsideState(Struct, frozen=True):
    """An outside host that is up."""

    plan: OutsidePlan
    netns: str


class PodState(Struct, frozen=True):
    """A pod that is up. ``addresses`` without prefix length, IPv4 first; a hostNetwork pod has the node's.

    ``dns`` is what its resolv.conf is to hold.
    """

    pod: Pod
    netns: str
    directory: str
    cgroups: tuple[str, ...]
    addresses: tuple[str, ...]
    hostname: str
    dns: DnsConfig

    def pid(self, container: str) -> int:
        """The process id of a container; NotFound while it does not run."""
        return running_pid(Path(self.directory), container)


class LabState(Struct, frozen=True):
    """A complete lab. ``file`` is the cluster file it was made from."""

    cluster: Cluster
    file: str
    nodes: tuple[NodeState, ...]
    outside: tuple[OutsideState, ...]
    pods: tuple[PodState, ...]
    pending: tuple[Pending, ...]
    skipped: tuple[Skipped, ...]
    services: tuple[ServicePlan, ...] = ()

    def node(self, name: str) -> NodeState:
        """The node of that name; NotFound otherwise."""
        for node in self.nodes:
            if node.plan.name == name:
                return node
        raise NotFound("node", name)

    def outside_host(self, name: str) -> OutsideState:
        """The outside host of that name; NotFound otherwise."""
        for host in self.outside:
            if host.plan.name == name:
                return host
        raise NotFound("outside host", name)

    def find_pod(self, query: str, sender: PodState | None = None) -> PodState:
        """The one pod meant by ``namespace/name``, ``name``, an owner (``deployment/web``, ``web``,
        ``namespace/web``) or a unique beginning. Of an owner's pods rather another one than ``sender``.
        Raises NotFound, Conflict.
        """
        word = query.lower()
        tests: tuple[Callable[[Pod], bool], ...] = (
            lambda pod: pod.key == word,
            lambda pod: pod.name == word,
            lambda pod: word in _owner_names(pod),
            lambda pod: pod.name.startswith(word) or pod.key.startswith(word),
        )
        for exact, test in enumerate(tests):
            found = [state for state in self.pods if test(state.pod)]
            owners = {(state.pod.namespace, state.pod.owner) for state in found}
            if len(found) == 1 or (exact == 2 and len(owners) == 1):  # any pod of an owner will do
                return next((state for state in found if state is not sender), found[0])
            if found:
                names = ", ".join(state.pod.key for state in found)
                raise Conflict(f"{query!r} could be any of {names}")
        raise NotFound("pod", query, "`samewire lab show` lists what there is")


def _owner_names(pod: Pod) -> tuple[str, ...]:
    """What the pod's owner is called: ``deployment/web``, ``web``, ``namespace/web``."""
    owner = pod.owner.lower()
    name = owner.partition("/")[2]
    return (owner, name, f"{pod.namespace}/{name}") if owner else ()


class NoLab(NotFound):
    """No lab is up, and none was named."""

    def __init__(self) -> None:
        super().__init__("lab", "")
        self.args = ("no lab is up; `samewire lab up FILE` builds one",)


class Lab:
    """The runtime directory of one lab, held exclusively while open."""

    def __init__(self, name: str, lock_fd: int) -> None:
        self.name = name
        self.directory = lab_directory(name)
        self._lock_fd = lock_fd

    @classmethod
    def create(cls, name: str) -> Lab:
        """Make the directory of a new lab; Conflict when the lab is there, whole or in parts."""
        directory = lab_directory(name)
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            raise Conflict(cls._occupied(name)) from None
        return cls(name, _lock(directory, name))

    @classmethod
    def open(cls, name: str) -> Lab:
        """Hold an existing lab, complete or not; NotFound, or Conflict when another process holds it."""
        directory = lab_directory(name)
        if not directory.is_dir():
            raise NotFound("lab", name)
        return cls(name, _lock(directory, name))

    @staticmethod
    def _occupied(name: str) -> str:
        try:
            lab = Lab.open(name)
        except Conflict as error:
            return str(error)
        except NotFound:
            return f"lab {name!r} was being removed just now; try again"
        with lab:
            if lab.complete:
                return f"lab {name!r} is up already; `samewire lab down {name}` removes it"
            return (
                f"lab {name!r} was left half built by an earlier run; `samewire lab down {name}` removes it"
            )

    @property
    def complete(self) -> bool:
        """Did ``lab up`` run to its end?"""
        return (self.directory / "lab.json").exists()

    def note(self, kind: str, name: str) -> None:
        """Write down an object that is about to be made."""
        with (self.directory / "journal").open("a", encoding="utf-8") as journal:
            journal.write(f"{kind} {name}\n")

    def noted(self, kind: str) -> list[str]:
        """The objects of a kind, newest first, each once. A torn last line is taken as far as it goes."""
        try:
            lines = (self.directory / "journal").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        words = [line.partition(" ") for line in lines]
        return list(dict.fromkeys(name for found, _, name in reversed(words) if found == kind and name))

    def save(self, state: LabState) -> None:
        """Write ``lab.json`` in one step."""
        draft = self.directory / "lab.json.new"
        draft.write_bytes(msgspec.json.encode(state))
        draft.rename(self.directory / "lab.json")

    def close(self) -> None:
        """Let go of the lock."""
        os.close(self._lock_fd)

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def labs() -> list[str]:
    """The names of all labs on this machine, complete or not."""
    if not LABS.is_dir():
        return []
    return sorted(path.name for path in LABS.iterdir() if path.is_dir())


def the_lab(name: str | None) -> str:
    """``name``, or the only lab there is. Raises NotFound, or Conflict when there are several."""
    found = labs()
    if name is not None:
        if name not in found:
            raise NotFound("lab", name)
        return name
    if not found:
        raise NoLab
    if len(found) > 1:
        raise Conflict(f"several labs are up ({', '.join(found)}); name one (exec and trace: --lab NAME)")
    return found[0]


def load_state(name: str | None = None) -> LabState:
    """The state of a complete lab; Conflict when it is not (yet) complete."""
    name = the_lab(name)
    try:
        return msgspec.json.decode((lab_directory(name) / "lab.json").read_bytes(), type=LabState)
    except FileNotFoundError:
        raise Conflict(f"lab {name!r} is not up: it is being built, or was left half built") from None


def _lock(directory: Path, name: str) -> int:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Conflict(f"another command is building or removing lab {name!r} right now") from None
    return descriptor
