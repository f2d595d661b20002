"""A loaded program: its descriptor, its id, pinning, and PROG_TEST_RUN."""

from __future__ import annotations

import ctypes as ct
import errno
from pathlib import Path
from typing import Final, Self

import msgspec

from samewire.errors import NotFound
from samewire.kernel.bpf import _libbpf as b
from samewire.kernel.bpf.handle import Handle

_SCHED_CLS: Final = 3  # BPF_PROG_TYPE_SCHED_CLS
_INSTRUCTION_BYTES: Final = 8
_ROOM: Final = 512  # a test run may grow the packet
_CHECKSUM_COMPLETE: Final = 1 << 2  # BPF_F_TEST_SKB_CHECKSUM_COMPLETE


class SkbContext(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of __sk_buff that a test run may set (net/bpf/test_run.c, convert___skb_to_skb).

    ``ifindex`` must exist in the calling thread's network namespace; lengths are in bytes. ``gso_size`` makes the
    frame look like an aggregate of ``gso_segs`` packets.
    """

    ifindex: int = 0
    ingress_ifindex: int = 0
    mark: int = 0
    priority: int = 0
    cb: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)
    wire_len: int = 0
    gso_segs: int = 0
    gso_size: int = 0


class TestRun(msgspec.Struct, frozen=True):
    """Outcome of a test run.

    ``retval`` is signed; ``duration_ns`` the mean of one repetition; ``context`` what the program left in the
    fields of its context (all zero without one).
    """

    __test__ = False  # not a test class for pytest

    retval: int
    data: bytes
    duration_ns: int
    context: SkbContext


class BpfProgram(Handle):
    """A program by descriptor."""

    def __init__(self, fd: int, *, owned: bool = True) -> None:
        info = b.ProgInfo()
        length = ct.c_uint32(ct.sizeof(info))
        b.check(
            b.lib.bpf_obj_get_info_by_fd(fd, ct.byref(info), ct.byref(length)), "read program information"
        )
        super().__init__(fd, "program", info.name.decode(), owned=owned)
        self.id: int = info.id

    @classmethod
    def from_instructions(cls, name: str, instructions: bytes) -> Self:
        """A tc program of these instructions (``struct bpf_insn``, eight bytes each). Raises KernelError."""
        operation = f"load {name}"
        b.begin(operation)
        count = len(instructions) // _INSTRUCTION_BYTES
        fd = b.lib.bpf_prog_load(_SCHED_CLS, name.encode(), b"GPL", instructions, count, None)
        return cls(b.check(fd, operation))

    @classmethod
    def open_pinned(cls, path: Path) -> Self:
        """The program pinned at ``path``. Raises NotFound, and KernelError (EINVAL) when it is no program."""
        return cls(b.open_pin(path, "program"))

    @classmethod
    def from_id(cls, program_id: int) -> Self:
        """The program with that id, wherever it came from. Raises ``NotFound``."""
        b.begin(f"open program {program_id}")
        fd = b.lib.bpf_prog_get_fd_by_id(program_id)
        if fd == -errno.ENOENT:
            raise NotFound("program", str(program_id))
        return cls(b.check(fd, f"open program {program_id}"))

    def test_run(
        self, data: bytes, context: SkbContext | None = None, repeat: int = 1, *, summed: bool = False
    ) -> TestRun:
        """Run a tc program on a frame of at least 14 bytes in the calling thread's network namespace.

        ``summed``: as if a NIC had added up all of it (CHECKSUM_COMPLETE). An error (EBADMSG) if that sum is not the
        frame's any more when the program has ended. Kernels from 6.16 on.
        """
        operation = f"run {self.name}"
        b.begin(operation)
        out = ct.create_string_buffer(len(data) + _ROOM)
        skb, skb_out = _to_skb(context or SkbContext()), b.SkBuff()
        options = b.TestRunOpts(
            sz=ct.sizeof(b.TestRunOpts),
            data_in=ct.cast(ct.c_char_p(data), ct.c_void_p),
            data_out=ct.cast(out, ct.c_void_p),
            data_size_in=len(data),
            data_size_out=len(out),
            ctx_in=ct.addressof(skb) if context else None,
            ctx_out=ct.addressof(skb_out) if context else None,
            ctx_size_in=ct.sizeof(skb) if context else 0,
            ctx_size_out=ct.sizeof(skb_out) if context else 0,
            repeat=repeat,
            flags=_CHECKSUM_COMPLETE if summed else 0,
        )
        b.check(b.lib.bpf_prog_test_run_opts(self.fd, ct.byref(options)), operation)
        retval = ct.c_int32(options.retval).value
        return TestRun(retval, out.raw[: options.data_size_out], options.duration, _from_skb(skb_out))


def _to_skb(context: SkbContext) -> b.SkBuff:
    skb = b.SkBuff()
    for name, value in msgspec.structs.asdict(context).items():
        setattr(skb, name, value)
    return skb


def _from_skb(skb: b.SkBuff) -> SkbContext:
    found = {name: getattr(skb, name) for name in SkbContext.__struct_fields__ if name != "cb"}
    return SkbContext(cb=tuple(skb.cb), **found)
