"""First process of a test node: hides the host's run-time directories, reaps, ends with its standard input.

Run by node.py under ``unshare`` in network, mount and PID namespaces of its own. When it exits, for whatever
reason, the kernel kills every process of the node, and the node's mounts and network namespaces go with them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

CNI_CACHE = Path("/var/lib/cni")  # libcni's, not configurable in the runtimes


def inherited_mounts() -> list[str]:
    """Where the host's network namespaces and bpffs are mounted here."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split(" ")[4] for line in lines if line.split(" - ")[1].split(" ")[0] in ("nsfs", "bpf")]


def drop_inherited_mounts() -> None:
    """Let go of the host's mounts, which this namespace would keep alive. Some may go by themselves meanwhile."""
    for target in inherited_mounts():
        subprocess.run(["umount", "--lazy", target], stderr=subprocess.DEVNULL, check=False)
    if left := inherited_mounts():
        sys.exit(f"still mounted: {left}")


def mount(kind: str, target: Path, *options: str) -> None:
    """Mount a file system that has no device."""
    subprocess.run(["mount", "-t", kind, "-o", ",".join(options), "samewire-test", str(target)], check=True)


def hide_host_state() -> None:
    """Fresh RAM disks where runtimes and plugins keep state at fixed places: /run and libcni's cache."""
    mount("tmpfs", Path("/run"), "mode=755")
    for name in ("lock", "netns", "upper", "work"):
        Path("/run", name).mkdir()
    if not CNI_CACHE.exists():  # make it without making it on the host
        mount(
            "overlay",
            CNI_CACHE.parent,
            f"lowerdir={CNI_CACHE.parent}",
            "upperdir=/run/upper",
            "workdir=/run/work",
        )
        CNI_CACHE.mkdir()
    mount("tmpfs", CNI_CACHE, "mode=755")


def reap(_signal: int, _frame: object) -> None:
    """Collect every child that has ended: nobody else in this PID namespace does."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def main() -> None:
    """Prepare, say so on standard output, and wait for the end of standard input."""
    drop_inherited_mounts()
    hide_host_state()
    signal.signal(signal.SIGCHLD, reap)
    print("ready", flush=True)
    sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
