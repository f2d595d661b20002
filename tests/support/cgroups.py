"""A control group of the test's own, and being in it for a while: sockets made meanwhile belong to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.cgroup_mount import cgroup2_mount


@contextmanager
def own_cgroup(label: str) -> Iterator[Path]:
    """A new version 2 group, removed at the end."""
    mount = cgroup2_mount()
    assert mount is not None, "no cgroup version 2 tree is mounted"
    group = mount / f"{label}-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        group.rmdir()


@contextmanager
def within(group: Path) -> Iterator[None]:
    """This process is in the group, and afterwards back where it was."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    home = next(line.removeprefix("0::/") for line in lines if line.startswith("0::"))
    mount = cgroup2_mount()
    assert mount is not None
    pid = str(os.getpid())
    (group / "cgroup.procs").write_text(pid)
    try:
        yield
    finally:
        (mount / home / "cgroup.procs").write_text(pid)
