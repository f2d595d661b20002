"""BPF links: tcx on shared devices, cgroup programs. A pinned link outlives the process that made it."""

from __future__ import annotations

import errno
import os
from enum import IntEnum
from pathlib import Path
from typing import Self

from samewire.errors import NotFound
from samewire.kernel.bpf import _libbpf as b
from samewire.kernel.bpf.program import BpfProgram


class AttachType(IntEnum):
    """enum bpf_attach_type, as far as used."""

    CGROUP_INET4_CONNECT = 10
    CGROUP_INET6_CONNECT = 11
    CGROUP_UDP4_SENDMSG = 14
    CGROUP_UDP6_SENDMSG = 15
    CGROUP_UDP4_RECVMSG = 19
    CGROUP_UDP6_RECVMSG = 20
    CGROUP_INET4_GETPEERNAME = 29
    CGROUP_INET6_GETPEERNAME = 30
    TCX_INGRESS = 46
    TCX_EGRESS = 47


class BpfLink:
    """A link by descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def attach(cls, program: BpfProgram, target: int, kind: AttachType) -> Self:
        """Attach to an ifindex (tcx) or an open cgroup directory. Raises KernelError (EINVAL: no tcx here)."""
        operation = f"attach {program.name} ({kind.name.lower()})"
        b.begin(operation)
        return cls(b.check(b.lib.bpf_link_create(program.fd, target, int(kind), None), operation))

    @classmethod
    def open_pinned(cls, path: Path) -> Self:
        """The link pinned at ``path``. Raises ``NotFound``."""
        fd = b.lib.bpf_obj_get(os.fsencode(path))
        if fd == -errno.ENOENT:
            raise NotFound("pinned link", str(path))
        return cls(b.check(fd, f"open pinned link {path}"))

    def update(self, program: BpfProgram) -> None:
        """Put another program into the link's place, atomically."""
        operation = f"replace the program of a link by {program.name}"
        b.begin(operation)
        b.check(b.lib.bpf_link_update(self.fd, program.fd, None), operation)

    def pin(self, path: Path) -> None:
        """Pin the link."""
        operation = f"pin link {path.name}"
        b.begin(operation)
        b.check(b.lib.bpf_obj_pin(self.fd, os.fsencode(path)), operation)

    def close(self) -> None:
        """Close the descriptor; an unpinned link is detached."""
        b.close(self.fd)
        self.fd = -1
