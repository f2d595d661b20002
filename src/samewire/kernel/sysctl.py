"""Kernel settings below ``/proc/sys``.

Files under ``/proc/sys/net`` belong to the network namespace of the thread that opens them: for another
namespace call these through :func:`samewire.kernel.netns.run_in`. Paths are given in parts because interface
names may hold dots (``("net", "ipv4", "conf", "eth0.100", "rp_filter")``).
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from samewire.errors import Invalid, KernelError, NotFound
from samewire.kernel import faults

_ROOT = Path("/proc/sys")


def read(path_parts: Sequence[str], longest_bytes: int = 4096) -> str:
    """The setting's text without the final newline. The kernel gives it to one read, and cuts off what does not fit.

    Raises :class:`NotFound` when this kernel (or interface) has no such setting, :class:`KernelError` when it
    cannot be read.
    """
    path = _path(path_parts)
    try:
        with path.open("rb", buffering=0) as file:
            return (file.read(longest_bytes) or b"").decode("ascii").strip()
    except OSError as error:
        raise _failure("read", path, error) from error


def write(path_parts: Sequence[str], value: str | int) -> None:
    """Change a setting. Raises :class:`NotFound` and :class:`KernelError` as :func:`read` does."""
    path = _path(path_parts)
    faults.check(f"write {path}")
    try:
        # Not write_text(): O_CREAT and O_TRUNC have no meaning here, and a missing file is "not found".
        with path.open("r+", encoding="ascii") as file:
            file.write(f"{value}\n")
    except OSError as error:
        raise _failure("write", path, error) from error


def _path(parts: Sequence[str]) -> Path:
    for part in parts:
        if part in ("", ".", "..") or "/" in part:
            raise Invalid("sysctl", f"{part!r} is no part of a setting's path")
    return _ROOT.joinpath(*parts)


def _failure(verb: str, path: Path, error: OSError) -> NotFound | KernelError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFound("kernel setting", str(path))
    return KernelError(f"{verb} {path}", error.errno or errno.EIO)
