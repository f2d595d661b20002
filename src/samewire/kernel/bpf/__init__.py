"""eBPF objects, maps, links and test runs through libbpf.so.1 by ctypes.

``_libbpf`` holds every foreign signature; raw pointers never leave this package. Values and keys are ``bytes``.
"""

from samewire.kernel.bpf.fs import is_bpffs, mount_bpffs, unmount_bpffs
from samewire.kernel.bpf.link import AttachType, BpfLink, LinkInfo
from samewire.kernel.bpf.map import BpfMap, UpdateFlag
from samewire.kernel.bpf.object import BpfObject
from samewire.kernel.bpf.program import BpfProgram, SkbContext, TestRun
from samewire.kernel.bpf.ringbuf import RingBuffer

__all__ = [
    "AttachType",
    "BpfLink",
    "BpfMap",
    "BpfObject",
    "BpfProgram",
    "LinkInfo",
    "RingBuffer",
    "SkbContext",
    "TestRun",
    "UpdateFlag",
    "is_bpffs",
    "mount_bpffs",
    "unmount_bpffs",
]
