"""BPF links: tcx on shared devices, cgroup programs. A pinned link outlives the process that made it."""

from __future__ import annotations

import ctypes as ct
from enum import IntEnum
from pathlib import Path
from typing import Final, Self

import msgspec

from samewire.kernel.bpf import _libbpf as b
from samewire.kernel.bpf.handle import Handle
from samewire.kernel.bpf.program import BpfProgram

_LINK_TYPE_CGROUP: Final = 3


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


class LinkInfo(msgspec.Struct, frozen=True):
    """What the kernel says of a link: the ids of link and program, and the interface or the control group (its inode).

    ``target`` becomes 0 when that is gone, or the program was detached.
    """

    id: int
    program_id: int
    target: int


class BpfLink(Handle):
    """A link by descriptor; closing it detaches the program, unless the link is pinned."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, "link")

    @classmethod
    def attach(cls, program: BpfProgram, target: int, kind: AttachType) -> Self:
        """Attach to an ifindex (tcx) or an open cgroup directory. Raises KernelError (EINVAL: no tcx here)."""
        operation = f"attach {program.name} ({kind.name.lower()})"
        b.begin(operation)
        return cls(b.check(b.lib.bpf_link_create(program.fd, target, int(kind), None), operation))

    @classmethod
    def open_pinned(cls, path: Path) -> Self:
        """The link pinned at ``path``. Raises NotFound, and KernelError (EINVAL) when it is no link."""
        return cls(b.open_pin(path, "link"))

    def update(self, program: BpfProgram) -> None:
        """Put another program into the link's place, atomically."""
        operation = f"replace the program of a link by {program.name}"
        b.begin(operation)
        b.check(b.lib.bpf_link_update(self.fd, program.fd, None), operation)

    def info(self) -> LinkInfo:
        """Read back what is attached where."""
        operation = "read link information"
        b.begin(operation)
        info = b.LinkInfo()
        length = ct.c_uint32(ct.sizeof(info))
        b.check(b.lib.bpf_obj_get_info_by_fd(self.fd, ct.byref(info), ct.byref(length)), operation)
        target = info.target[0]
        if info.type == _LINK_TYPE_CGROUP:
            target |= info.target[1] << 32
        return LinkInfo(info.id, info.prog_id, target)

    def detach(self) -> None:
        """Take the program off now, pinned or not; the link stays, attached to nothing."""
        operation = "detach a link"
        b.begin(operation)
        b.check(b.lib.bpf_link_detach(self.fd), operation)
