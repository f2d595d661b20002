"""Where the unified (version 2) control group tree is mounted."""

from __future__ import annotations

import re
from pathlib import Path

_OCTAL = re.compile(r"\\([0-7]{3})")


def cgroup2_mount(mounts: Path = Path("/proc/mounts")) -> Path | None:
    """The first mount point of a cgroup version 2 tree, or ``None`` when it is not mounted.

    On a hybrid system that is ``/sys/fs/cgroup/unified``, on a unified one ``/sys/fs/cgroup``.
    """
    for line in mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        _source, target, kind = line.split(" ")[:3]
        if kind == "cgroup2":
            # /proc/mounts writes blanks and backslashes as octal escapes (proc(5)).
            return Path(_OCTAL.sub(lambda match: chr(int(match[1], 8)), target))
    return None
