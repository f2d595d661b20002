"""One daemon a run directory, and one a network namespace, whose devices have fixed names: locks that the kernel gives
up when the process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from samewire.errors import Conflict

log = structlog.get_logger(__name__)

LOCK_NAME = "daemon.lock"
TAKEOVER_LOCK_NAME = "takeover.lock"
_NETWORK = "/proc/thread-self/ns/net"


@contextmanager
def lock_run_dir(run_dir: Path) -> Iterator[None]:
    """Hold a run directory. Raises Conflict when another process does."""
    with lock_file(run_dir / LOCK_NAME, str(run_dir)):
        yield


@contextmanager
def lock_file(path: Path, what: str) -> Iterator[None]:
    """Hold ``what`` a file stands for; the file is made. Raises Conflict when another process holds it, OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise Conflict(f"{what} is in use by the process {holder or 'of unknown id'}") from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def lock_network() -> Iterator[None]:
    """Hold the calling thread's network namespace. Raises Conflict when another process of root's does: every process
    there may lock it, and none but root's is a daemon.
    """
    descriptor = os.open(_NETWORK, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not _take(descriptor):
            holder = _holder(descriptor)
            if not holder or _is_root(holder):
                raise Conflict(
                    f"this network namespace is in use by the process {holder or 'of unknown id'}, with another "
                    "run_dir: stop that daemon first, or give this one a namespace of its own"
                )
            if not _take(descriptor):  # may have ended since
                log.warning("a process that is no daemon holds the network namespace's lock", process=holder)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> str:
    """The id of the process that holds a file; "" where the kernel does not say, as of other PID namespaces."""
    found = os.fstat(descriptor)
    device, file = found.st_dev, found.st_ino
    wanted = f"{os.major(device):02x}:{os.minor(device):02x}:{file}"
    with open("/proc/locks", encoding="ascii") as locks:
        lines = (line.split() for line in locks)
        return next((words[4] for words in lines if words[1] == "FLOCK" and words[5] == wanted), "")


def _is_root(process: str) -> bool:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False  # it has ended, and children of its hold the lock: a daemon's do not
    return any(line.split()[2] == "0" for line in status.splitlines() if line.startswith("Uid:"))


def is_held(run_dir: Path) -> bool:
    """Whether a daemon runs there."""
    try:
        descriptor = os.open(run_dir / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
