"""Every libbpf function and structure that Samewire uses, in one table (libbpf >= 1.0, Debian 12 has 1.1.2).

Functions that return ``int`` give ``-errno`` on failure in libbpf 1.x; ``check`` turns that into a KernelError.
"""

from __future__ import annotations

import ctypes as ct
import errno
import os
import threading
from typing import Any, Final

from samewire.errors import KernelError, Unsupported
from samewire.kernel import faults

c_void_p = ct.c_void_p
_PrintFn = ct.CFUNCTYPE(ct.c_int, ct.c_int, ct.c_char_p, ct.c_void_p)


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


class SkBuff(ct.Structure):
    """struct __sk_buff, as far as PROG_TEST_RUN looks at it."""

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
        ("rest", ct.c_uint8 * 148),
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


class LinkCreateOpts(ct.Structure):
    """struct bpf_link_create_opts of libbpf 1.1; sz tells which fields exist."""

    _fields_ = (("sz", ct.c_size_t), ("flags", ct.c_uint32), ("reserved", ct.c_uint8 * 60))


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
    "bpf_map__reuse_fd": (ct.c_int, (c_void_p, ct.c_int)),
    "bpf_program__name": (ct.c_char_p, (c_void_p,)),
    "bpf_program__fd": (ct.c_int, (c_void_p,)),
    "bpf_map_create": (ct.c_int, (ct.c_int, ct.c_char_p, ct.c_uint32, ct.c_uint32, ct.c_uint32, c_void_p)),
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
    "bpf_prog_get_fd_by_id": (ct.c_int, (ct.c_uint32,)),
    "bpf_prog_test_run_opts": (ct.c_int, (ct.c_int, ct.POINTER(TestRunOpts))),
    "bpf_link_create": (ct.c_int, (ct.c_int, ct.c_int, ct.c_int, c_void_p)),
    "bpf_link_update": (ct.c_int, (ct.c_int, ct.c_int, c_void_p)),
}

_log = threading.local()
_LOG_LINES: Final = 60


def _keep_log(level: int, template: bytes, arguments: int) -> int:
    """libbpf's print hook: warnings are kept for the error that follows, the rest is dropped."""
    if level > 0:
        return 0
    buffer = ct.create_string_buffer(8192)
    _libc.vsnprintf(buffer, len(buffer), template, ct.c_void_p(arguments))
    lines: list[str] = getattr(_log, "lines", [])
    lines.append(buffer.value.decode(errors="replace").rstrip())
    _log.lines = lines[-_LOG_LINES:]
    return 0


_print_hook: Final = _PrintFn(_keep_log)  # kept alive: libbpf calls it for the life of the process
_libc = ct.CDLL(None, use_errno=True)
_libc.vsnprintf.argtypes = (ct.c_char_p, ct.c_size_t, ct.c_char_p, ct.c_void_p)


def _load() -> ct.CDLL:
    try:
        library = ct.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise Unsupported("eBPF", f"libbpf.so.1 (Debian package libbpf1): {error}") from error
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    library.libbpf_set_print(_print_hook)
    return library


lib: Final = _load()


def log_text() -> str:
    """What libbpf has warned about on this thread since it was last asked."""
    lines: list[str] = getattr(_log, "lines", [])
    _log.lines = []
    return "\n".join(lines)


def begin(operation: str) -> None:
    """To be called before a call into the kernel: the point where tests inject faults."""
    if faults.inject is not None:
        faults.check(operation)


def check(result: int, operation: str) -> int:
    """``result`` if it is no error, else KernelError with libbpf's own words."""
    if result >= 0:
        return result
    raise KernelError(operation, -result, log_text())


def check_pointer(pointer: int | None, operation: str) -> int:
    """The same for functions that return a pointer and leave errno."""
    if pointer:
        return pointer
    raise KernelError(operation, ct.get_errno() or errno.EINVAL, log_text())


def close(fd: int) -> None:
    """Close a descriptor, once."""
    if fd >= 0:
        os.close(fd)
