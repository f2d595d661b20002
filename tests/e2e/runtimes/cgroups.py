"""The control groups that the containers of a test node live in: one subtree a node, in every hierarchy."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from tests.support.cgroup_mount import cgroup2_mount

REMOVE_TIMEOUT_S = 10.0


def hierarchies() -> list[Path]:
    """Where control group trees are mounted: one on a unified system, a dozen on a version 1 or hybrid one."""
    mounts = (line.split(" ") for line in Path("/proc/mounts").read_text().splitlines())
    return [Path(fields[1]) for fields in mounts if fields[2] in ("cgroup", "cgroup2")]


def create(name: str) -> Path:
    """Make the group ``name`` in the version 2 hierarchy."""
    mount = cgroup2_mount()
    assert mount is not None, "no cgroup2 file system is mounted"
    (mount / name).mkdir(parents=True)
    return mount / name


def remove(name: str) -> None:
    """Remove the group ``name`` and those below it everywhere. Its processes must be dead."""
    end = time.monotonic() + REMOVE_TIMEOUT_S
    for hierarchy in hierarchies():
        for directory, _, _ in os.walk(hierarchy / name, topdown=False):
            _rmdir(directory, end)


def _rmdir(directory: str, end: float) -> None:
    """rmdir; a group is busy for a moment after the death of its last process."""
    while True:
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > end:
                raise
            time.sleep(0.02)
        else:
            return
