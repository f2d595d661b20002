"""A loaded program: its descriptor, its id, pinning, and PROG_TEST_RUN."""

from __future__ import annotations

import ctypes as ct
import errno
import os
from pathlib import Path
from typing import Final, Self

import msgspec

from samewire.errors import NotFound
from samewire.kernel.bpf import _libbpf as b

_ROOM: Final = 512  # a test run may grow the packet


class SkbContext(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of __sk_buff that a test run may set (net/bpf/test_run.c, convert___skb_to_skb)."""

    ifindex: int = 0
    ingress_ifindex: int = 0
    mark: int = 0
    priority: int = 0


class TestRun(msgspec.Struct, frozen=True):
    """Outcome of a test run. ``retval`` is signed; ``duration_ns`` the mean of one repetition."""

    __test__ = False  # not a test class for pytest

    retval: int
    data: bytes
    duration_ns: int
    mark: int


class BpfProgram:
    """A program by descriptor."""

    def __init__(self, fd: int, *, owned: bool = True) -> None:
        info = b.ProgInfo()
        length = ct.c_uint32(ct.sizeof(info))
        b.check(
            b.lib.bpf_obj_get_info_by_fd(fd, ct.byref(info), ct.byref(length)), "read program information"
        )
        self.fd = fd
        self.id: int = info.id
        self.name: str = info.name.decode()
        self._owned = owned

    @classmethod
    def open_pinned(cls, path: Path) -> Self:
        """The program pinned at ``path``. Raises ``NotFound`` if nothing is there."""
        operation = f"open pinned program {path}"
        b.begin(operation)
        fd = b.lib.bpf_obj_get(os.fsencode(path))
        if fd == -errno.ENOENT:
            raise NotFound("pinned program", str(path))
        return cls(b.check(fd, operation))

    @classmethod
    def from_id(cls, program_id: int) -> Self:
        """The program with that id, wherever it came from. Raises ``NotFound``."""
        fd = b.lib.bpf_prog_get_fd_by_id(program_id)
        if fd == -errno.ENOENT:
            raise NotFound("program", str(program_id))
        return cls(b.check(fd, f"open program {program_id}"))

    def pin(self, path: Path) -> None:
        """Pin the program."""
        operation = f"pin program {self.name}"
        b.begin(operation)
        b.check(b.lib.bpf_obj_pin(self.fd, os.fsencode(path)), operation)

    def close(self) -> None:
        """Close an owned descriptor."""
        if self._owned:
            b.close(self.fd)
        self.fd = -1

    def test_run(self, data: bytes, context: SkbContext | None = None, repeat: int = 1) -> TestRun:
        """Run a tc program on a frame of at least 14 bytes in the calling thread's network namespace."""
        operation = f"run {self.name}"
        b.begin(operation)
        out = ct.create_string_buffer(len(data) + _ROOM)
        skb = b.SkBuff()
        if context is not None:
            skb.ifindex, skb.ingress_ifindex = context.ifindex, context.ingress_ifindex
            skb.mark, skb.priority = context.mark, context.priority
        skb_out = b.SkBuff()
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
        )
        b.check(b.lib.bpf_prog_test_run_opts(self.fd, ct.byref(options)), operation)
        retval = ct.c_int32(options.retval).value
        return TestRun(retval, out.raw[: options.data_size_out], options.duration, skb_out.mark)
