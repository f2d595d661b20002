"""``lab down``: remove everything a lab made, whatever state it was left in.

Works from the journal alone, in an order that leaves nothing to race: the processes first (their cgroups end
them, and with them their mounts), then the namespaces (and with them every link, route and program in them),
then what is mounted below the lab's directory, then the directory. Every step is idempotent; the journal goes
last, so a killed ``down`` is simply run again.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from pathlib import Path

from samewire.errors import KernelError
from samewire.lab.cgroups import remove_cgroups
from samewire.lab.commands import run
from samewire.lab.names import LABS
from samewire.lab.state import CGROUP, NETNS, Lab
from samewire.lab.underlay import remove_namespaces


async def down(name: str) -> None:
    """Remove the lab of that name. Raises NotFound, or Conflict while another command holds it."""
    with Lab.open(name) as lab:
        await remove(lab)


async def remove(lab: Lab) -> None:
    """Remove everything in a lab's journal, and its directory. The caller must be in none of the lab's
    cgroups. Raises KernelError.
    """
    await asyncio.to_thread(remove_cgroups, lab.noted(CGROUP))
    await remove_namespaces(lab.noted(NETNS))
    for mount in mounts_below(lab.directory):
        await run("umount", "--lazy", str(mount))
    if left := mounts_below(lab.directory):
        raise KernelError(f"unmount {left[0]}", errno.EBUSY)
    shutil.rmtree(lab.directory)
    try:
        LABS.rmdir()
    except OSError:
        pass  # other labs are there


def mounts_below(directory: Path, mounts: Path = Path("/proc/self/mountinfo")) -> list[Path]:
    """Mount points inside a directory, deepest first."""
    points = []
    for line in mounts.read_bytes().strip().split(b"\n"):  # a name is any bytes, with octal escapes (proc(5))
        name = line.split(b" ")[4].decode("unicode_escape").encode("latin-1")
        point = Path(os.fsdecode(name))
        if directory in point.parents:
            points.append(point)
    return sorted(points, key=lambda point: len(point.parts), reverse=True)
