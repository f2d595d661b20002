"""A bpffs of our own: mounted on a directory of the run directory, so that removing it removes every pin."""

from __future__ import annotations

import ctypes as ct
import errno
import os
from pathlib import Path
from typing import Final

from samewire.errors import KernelError
from samewire.kernel import faults

_BPF_FS_MAGIC: Final = 0xCAFE4A11
_MNT_DETACH: Final = 2
_libc = ct.CDLL(None, use_errno=True)


class _StatFs(ct.Structure):
    _fields_ = (("type", ct.c_long), ("rest", ct.c_uint8 * 248))


def is_bpffs(path: Path) -> bool:
    """Whether ``path`` is on a bpffs. Raises KernelError."""
    info = _StatFs()
    if _libc.statfs(os.fsencode(path), ct.byref(info)):
        raise KernelError(f"statfs {path}", ct.get_errno())
    return int(info.type) == _BPF_FS_MAGIC


def mount_bpffs(path: Path) -> None:
    """Mount a bpffs on ``path`` (made if missing), unless one is there already. Raises KernelError."""
    operation = f"mount bpffs on {path}"
    faults.check(operation)
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise KernelError(operation, error.errno or errno.EIO) from error
    if is_bpffs(path):
        return
    if _libc.mount(b"bpf", os.fsencode(path), b"bpf", 0, b"mode=0700"):
        raise KernelError(operation, ct.get_errno())


def unmount_bpffs(path: Path) -> None:
    """Unmount it, with all that is pinned in it; nothing happens if it is not there. Raises KernelError."""
    faults.check(f"unmount {path}")
    while path.is_dir() and is_bpffs(path):
        if _libc.umount2(os.fsencode(path), _MNT_DETACH):
            raise KernelError(f"unmount {path}", ct.get_errno())
