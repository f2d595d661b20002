"""Every libbpf function and structure that Samewire uses, in one table (libbpf >= 1.0, Debian 12 has 1.1.2).

Functions that return ``int`` give ``-errno`` on failure in libbpf 1.x; ``check`` turns that into a KernelError.
"""

from __future__ import annotations

import ctypes as ct
import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from samewire.errors import KernelError, NotFound, Unsupported
from samewire.kernel import faults

c_void_p = ct.c_void_p
_PrintFn = ct.CFUNCTYPE(ct.c_int, ct.c_int, ct.c_char_p, ct.c_void_p)
SampleFn = ct.CFUNCTYPE(ct.c_int, ct.c_void_p, ct.c_void_p, ct.c_size_t)


class MapInfo(ct.Structure):
    """struct bpf_map_info up to map_flags and name (uapi/linux/bpf.h)."""

    _fields_ = (
        ("type", ct.c_uint32),
        ("id", ct.c_uint32),
        ("key_size", ct.c_uint32),
        ("value_size", ct.c_uint32),
        ("max_entries", ct.c_uint32),
        ("map_flags", ct.c_uint32),
        ("name", ct.c_char * 16),
    )


class ProgInfo(ct.Structure):
    """struct bpf_prog_info up to name."""

    _fields_ = (
        ("type", ct.c_uint32),
        ("id", ct.c_uint32),
        ("tag", ct.c_uint8 * 8),
        ("jited_prog_len", ct.c_uint32),
        ("xlated_prog_len", ct.c_uint32),
        ("jited_prog_insns", ct.c_uint64),
        ("xlated_prog_insns", ct.c_uint64),
        ("load_time", ct.c_uint64),
        ("created_by_uid", ct.c_uint32),
        ("nr_map_ids", ct.c_uint32),
        ("map_ids", ct.c_uint64),
        ("name", ct.c_char * 16),
    )


class LinkInfo(ct.Structure):
    """struct bpf_link_info; the union as tcx and cgroup links fill it."""

    _fields_ = (
        ("type", ct.c_uint32),
        ("id", ct.c_uint32),
        ("prog_id", ct.c_uint32),
        ("padding", ct.c_uint32),  # the union holds pointers
        ("target", ct.c_uint32 * 16),
    )


class SkBuff(ct.Structure):
    """struct __sk_buff; only what PROG_TEST_RUN looks at has a name."""

    _fields_ = (
        ("len", ct.c_uint32),
        ("pkt_type", ct.c_uint32),
        ("mark", ct.c_uint32),
        ("queue_mapping", ct.c_uint32),
        ("protocol", ct.c_uint32),
        ("vlan_present", ct.c_uint32),
        ("vlan_tci", ct.c_uint32),
        ("vlan_proto", ct.c_uint32),
        ("priority", ct.c_uint32),
        ("ingress_ifindex", ct.c_uint32),
        ("ifindex", ct.c_uint32),
        ("tc_index", ct.c_uint32),
        ("cb", ct.c_uint32 * 5),
        ("hash_to_tstamp", ct.c_uint8 * 92),
        ("wire_len", ct.c_uint32),
        ("gso_segs", ct.c_uint32),
        ("sk", ct.c_uint64),
        ("gso_size", ct.c_uint32),
        ("tstamp_type", ct.c_uint32),
        ("hwtstamp", ct.c_uint64),
    )


class TestRunOpts(ct.Structure):
    """struct bpf_test_run_opts."""

    _fields_ = (
        ("sz", ct.c_size_t),
        ("data_in", ct.c_void_p),
        ("data_out", ct.c_void_p),
        ("data_size_in", ct.c_uint32),
        ("data_size_out", ct.c_uint32),
        ("ctx_in", ct.c_void_p),
        ("ctx_out", ct.c_void_p),
        ("ctx_size_in", ct.c_uint32),
        ("ctx_size_out", ct.c_uint32),
        ("retval", ct.c_uint32),
        ("repeat", ct.c_int),
        ("duration", ct.c_uint32),
        ("flags", ct.c_uint32),
        ("cpu", ct.c_uint32),
        ("batch_size", ct.c_uint32),
    )


class BatchOpts(ct.Structure):
    """struct bpf_map_batch_opts."""

    _fields_ = (("sz", ct.c_size_t), ("elem_flags", ct.c_uint64), ("flags", ct.c_uint64))


# name -> (result, arguments)
_SIGNATURES: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "libbpf_set_print": (c_void_p, (_PrintFn,)),
    "libbpf_num_possible_cpus": (ct.c_int, ()),
    "bpf_object__open_file": (c_void_p, (ct.c_char_p, c_void_p)),
    "bpf_object__load": (ct.c_int, (c_void_p,)),
    "bpf_object__close": (None, (c_void_p,)),
    "bpf_object__next_map": (c_void_p, (c_void_p, c_void_p)),
    "bpf_object__next_program": (c_void_p, (c_void_p, c_void_p)),
    "bpf_map__name": (ct.c_char_p, (c_void_p,)),
    "bpf_map__fd": (ct.c_int, (c_void_p,)),
    "bpf_map__type": (ct.c_int, (c_void_p,)),
    "bpf_map__key_size": (ct.c_uint32, (c_void_p,)),
    "bpf_map__value_size": (ct.c_uint32, (c_void_p,)),
    "bpf_map__max_entries": (ct.c_uint32, (c_void_p,)),
    "bpf_map__set_max_entries": (ct.c_int, (c_void_p, ct.c_uint32)),
    "bpf_map__is_internal": (ct.c_bool, (c_void_p,)),
    "bpf_map__initial_value": (c_void_p, (c_void_p, ct.POINTER(ct.c_size_t))),
    "bpf_map__reuse_fd": (ct.c_int, (c_void_p, ct.c_int)),
    "bpf_program__name": (ct.c_char_p, (c_void_p,)),
    "bpf_program__set_autoload": (ct.c_int, (c_void_p, ct.c_bool)),
    "bpf_program__fd": (ct.c_int, (c_void_p,)),
    "bpf_map_update_elem": (ct.c_int, (ct.c_int, c_void_p, c_void_p, ct.c_uint64)),
    "bpf_map_lookup_elem": (ct.c_int, (ct.c_int, c_void_p, c_void_p)),
    "bpf_map_delete_elem": (ct.c_int, (ct.c_int, c_void_p)),
    "bpf_map_get_next_key": (ct.c_int, (ct.c_int, c_void_p, c_void_p)),
    "bpf_map_lookup_batch": (
        ct.c_int,
        (ct.c_int, c_void_p, c_void_p, c_void_p, c_void_p, ct.POINTER(ct.c_uint32), c_void_p),
    ),
    "bpf_map_update_batch": (
        ct.c_int,
        (ct.c_int, c_void_p, c_void_p, ct.POINTER(ct.c_uint32), c_void_p),
    ),
    "bpf_map_delete_batch": (ct.c_int, (ct.c_int, c_void_p, ct.POINTER(ct.c_uint32), c_void_p)),
    "bpf_obj_get": (ct.c_int, (ct.c_char_p,)),
    "bpf_obj_pin": (ct.c_int, (ct.c_int, ct.c_char_p)),
    "bpf_obj_get_info_by_fd": (ct.c_int, (ct.c_int, c_void_p, ct.POINTER(ct.c_uint32))),
    "bpf_map_get_fd_by_id": (ct.c_int, (ct.c_uint32,)),
    "bpf_prog_load": (ct.c_int, (ct.c_int, ct.c_char_p, ct.c_char_p, c_void_p, ct.c_size_t, c_void_p)),
    "bpf_prog_get_fd_by_id": (ct.c_int, (ct.c_uint32,)),
    "bpf_prog_test_run_opts": (ct.c_int, (ct.c_int, ct.POINTER(TestRunOpts))),
    "bpf_link_create": (ct.c_int, (ct.c_int, ct.c_int, ct.c_int, c_void_p)),
    "bpf_link_update": (ct.c_int, (ct.c_int, ct.c_int, c_void_p)),
    "bpf_link_detach": (ct.c_int, (ct.c_int,)),
    "ring_buffer__new": (c_void_p, (ct.c_int, SampleFn, c_void_p, c_void_p)),
    "ring_buffer__consume": (ct.c_int, (c_void_p,)),
    "ring_buffer__epoll_fd": (ct.c_int, (c_void_p,)),
    "ring_buffer__free": (None, (c_void_p,)),
}

_LOG_BYTES: Final = 16384


class _Log(threading.local):
    """What libbpf says on this thread while somebody listens; None while nobody does."""

    lines: list[str] | None = None


_log = _Log()
_libc = ct.CDLL(None, use_errno=True)
_libc.vasprintf.argtypes = (ct.POINTER(c_void_p), ct.c_char_p, c_void_p)
_libc.free.argtypes = (c_void_p,)
_libc.free.restype = None


def _keep_log(level: int, template: bytes, arguments: int) -> int:
    """libbpf's print hook: warnings (a verifier log comes as one of them) are kept, the rest is dropped."""
    if level > 0 or _log.lines is None:
        return 0
    text = c_void_p()
    if _libc.vasprintf(ct.byref(text), template, arguments) >= 0:
        _log.lines.append(ct.string_at(text.value or 0).decode(errors="replace").rstrip())
        _libc.free(text)
    return 0


_print_hook: Final = _PrintFn(_keep_log)  # kept alive: libbpf calls it for the life of the process


class _Library:
    """libbpf.so.1, opened when first used; afterwards its functions are plain attributes."""

    def __getattr__(self, name: str) -> Any:
        if name not in _SIGNATURES:
            raise AttributeError(name)
        try:
            library = ct.CDLL("libbpf.so.1", use_errno=True)
        except OSError as error:
            raise Unsupported("eBPF", f"libbpf.so.1 (Debian package libbpf1): {error}") from error
        for function_name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, function_name)
            function.restype = result
            function.argtypes = arguments
            setattr(self, function_name, function)
        self.libbpf_set_print(_print_hook)
        return self.__dict__[name]


lib: Final = _Library()


@contextmanager
def capture_log() -> Iterator[None]:
    """Within, an error raised by ``check`` carries what libbpf has said since (its end, where the verdict is)."""
    _log.lines = []
    try:
        yield
    finally:
        _log.lines = None


def _log_text() -> str:
    text = "\n".join(_log.lines or [])
    return text if len(text) <= _LOG_BYTES else f"...{text[-_LOG_BYTES:]}"


def begin(operation: str) -> None:
    """To be called before a call into the kernel: the point where tests inject faults."""
    if faults.inject is not None:
        faults.check(operation)


def check(result: int, operation: str) -> int:
    """``result`` if it is no error, else KernelError with libbpf's own words."""
    if result >= 0:
        return result
    raise KernelError(operation, -result, _log_text())


def check_pointer(pointer: int | None, operation: str) -> int:
    """The same for functions that return a pointer and leave errno. Raises KernelError otherwise."""
    if pointer:
        return pointer
    raise KernelError(operation, ct.get_errno() or errno.EINVAL, _log_text())


_INODES: Final = {"map": "map", "program": "prog", "link": "link"}


def open_pin(path: Path, what: Literal["map", "program", "link"]) -> int:
    """Open a pin that must be of this kind; the caller owns the descriptor. Raises NotFound, KernelError."""
    operation = f"open pinned {what} {path}"
    begin(operation)
    fd = lib.bpf_obj_get(os.fsencode(path))
    if fd == -errno.ENOENT:
        raise NotFound(f"pinned {what}", str(path))
    check(fd, operation)
    found = os.readlink(f"/proc/self/fd/{fd}").replace("_", "-")
    if found != f"anon-inode:bpf-{_INODES[what]}":
        os.close(fd)
        raise KernelError(operation, errno.EINVAL, f"that is an {found}")
    return int(fd)


def close(fd: int) -> None:
    """Close a descriptor, once."""
    if fd >= 0:
        os.close(fd)
