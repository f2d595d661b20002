"""Network namespaces: opening, making, removing them, and running a function inside one.

A process here never moves for long: a short-lived thread enters the namespace (``setns`` acts on one thread
only), does one thing and ends; opening a socket is so short that the calling thread goes there and back. What
was made there, such as the socket, stays bound to that namespace.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self, TypeVar

from samewire.errors import Conflict, Invalid, KernelError, NotFound
from samewire.kernel import faults
from samewire.kernel.closing import Closing

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_CLONE_FILES = 0x400
_NS_GET_NSTYPE = 0xB703
_SO_NETNS_COOKIE = 71
_MS_BIND = 4096
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_WHAT = "network namespace"

GONE: Final = (NotFound, Invalid)
"""What opening a namespace raises that has been there: its file has gone, or something else has taken its place."""

_held: dict[str, NetNamespace] = {}
"""Namespaces by path that are held for a while: the steps of a CNI ADD all ask for the same one."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.setns.argtypes = [ctypes.c_int, ctypes.c_int]
_libc.unshare.argtypes = [ctypes.c_int]
_libc.mount.argtypes = [
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]


class NetNamespace(Closing):
    """An open network namespace; owns a file descriptor, which keeps the namespace alive. A context manager."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the namespace file ``path``.

        Raises :class:`NotFound` when the file is gone or is only the mount point that a removed namespace left,
        :class:`Invalid` when it is something else than a network namespace, :class:`KernelError` when it
        cannot be opened.
        """
        self.path = os.fspath(path)
        self._fd = _open(self.path)
        self._identity: tuple[int, int] | None = None
        self._users = 1
        self._spare: socket.socket | None = None

    @classmethod
    def shared(cls, path: str | os.PathLike[str]) -> NetNamespace:
        """The one that is held at a path (`hold`), else opened anew. Each caller closes it once, and is of the
        thread that holds it. Raises as the constructor does.
        """
        found = _held.get(os.fspath(path))
        if found is None or not found._is_there():
            return cls(path)
        found._users += 1
        return found

    def hold(self) -> Self:
        """Be the one that `shared` returns for the path, until the last user has closed it."""
        _held.setdefault(self.path, self)
        return self

    @property
    def fd(self) -> int:
        """The open descriptor; it belongs to this object. Raises ValueError when closed."""
        if self._fd < 0:
            raise ValueError(f"{_WHAT} {self.path} is closed")
        return self._fd

    @property
    def identity(self) -> tuple[int, int]:
        """Inode and cookie: equal exactly when two files name, or named, the same namespace since the node's
        boot. The cookie is needed because a new namespace soon gets the inode of one that has died. Raises
        KernelError.
        """
        if self._identity is None:
            self._spare = briefly_in(self.fd, _route_socket)
            self._identity = os.fstat(self.fd).st_ino, _cookie_of(self._spare)
        return self._identity

    def run(self, function: Callable[[], T]) -> T:
        """Same as :func:`run_in` with this namespace."""
        return run_in(self.fd, function)

    def route_socket(self) -> socket.socket:
        """A new route netlink socket of the namespace, not bound yet; the caller closes it. Raises KernelError."""
        spare, self._spare = self._spare, None
        return spare if spare is not None else briefly_in(self.fd, _route_socket)

    def close(self) -> None:
        """Close the descriptor, unless others share it; a call more does nothing."""
        self._users -= 1
        if self._users > 0:
            return
        if _held.get(self.path) is self:
            del _held[self.path]
        if self._spare is not None:
            self._spare.close()
            self._spare = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _is_there(self) -> bool:
        """Whether the file still is this namespace: no other can have its inode while it is open."""
        try:
            found, own = os.stat(self.path), os.fstat(self._fd)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)


def create(path: str | os.PathLike[str]) -> NetNamespace:
    """Make a new network namespace that lives, bound to the file ``path``, until :func:`delete`.

    Missing parent directories are made. Its loopback interface is down, as the kernel made it. Raises
    :class:`Conflict` when the file exists.
    """
    target = os.fspath(path)
    operation = f"create {_WHAT} {target}"
    faults.check(operation)
    try:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o444))
    except FileExistsError as error:
        raise Conflict(f"{target} exists already") from error
    except OSError as error:
        raise KernelError(operation, error.errno or errno.EIO) from error

    def unshare_and_bind() -> None:
        _call(operation, _libc.unshare(_CLONE_NEWNET))
        source = b"/proc/thread-self/ns/net"
        _call(operation, _libc.mount(source, os.fsencode(target), b"none", _MS_BIND, None))

    try:
        _in_thread(unshare_and_bind)
        return NetNamespace(target)
    except BaseException:
        _libc.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW)
        os.unlink(target)
        raise


def delete(path: str | os.PathLike[str]) -> None:
    """Remove the file of a namespace made by :func:`create`; it dies with its last user.

    A mount point left over from a removed namespace is removed as well. Raises :class:`NotFound` when the file
    is gone and :class:`Invalid` when it is something else.
    """
    target = os.fspath(path)
    operation = f"delete {_WHAT} {target}"
    faults.check(operation)
    try:
        NetNamespace(target).close()
    except NotFound:
        if not os.path.lexists(target):
            raise
    else:
        _call(operation, _libc.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW))
    try:
        os.unlink(target)
    except OSError as error:
        raise KernelError(operation, error.errno or errno.EIO) from error


def run_in(netns_fd: int, function: Callable[[], T]) -> T:
    """Call ``function`` in a fresh thread inside the namespace; its result, or its exception, is the caller's.

    The namespace covers sockets opened and ``/proc/sys/net`` files touched by that thread. Costs about
    0.1 ms. Raises :class:`KernelError` when the namespace cannot be entered.
    """

    def entered() -> T:
        _call(f"enter {_WHAT}", _libc.setns(netns_fd, _CLONE_NEWNET))
        return function()

    return _in_thread(entered)


def briefly_in(netns_fd: int, function: Callable[[], T]) -> T:
    """Call ``function`` in the calling thread, which enters the namespace and comes back.

    Only for a system call or two that cannot wait: meanwhile ``/proc/<pid>/ns/net`` of a process whose main
    thread does this names the other namespace. Saves the hand-over to a thread of :func:`run_in`, which on a
    busy machine is milliseconds. Raises :class:`KernelError` when the namespace cannot be entered.
    """
    try:
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(f"open own {_WHAT}", error.errno or errno.EIO) from error
    try:
        try:
            _call(f"enter {_WHAT}", _libc.setns(netns_fd, _CLONE_NEWNET))
            return function()
        finally:
            _call(f"return to own {_WHAT}", _libc.setns(own, _CLONE_NEWNET))
    finally:
        os.close(own)


def free_descriptors(first: int, behind: int) -> None:
    """Give the calling thread, which ends soon, a table of descriptors of its own, in which these are free.

    They stay open for all other threads. Raises :class:`KernelError`.
    """
    _call("make a table of descriptors", _libc.unshare(_CLONE_FILES))
    os.closerange(first, behind)


def cookie() -> int:
    """The kernel's number for the namespace of the calling thread, given once (Linux 5.14)."""
    with _route_socket() as any_socket:
        return _cookie_of(any_socket)


def _cookie_of(opened: socket.socket) -> int:
    return int.from_bytes(opened.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)


def _route_socket() -> socket.socket:
    try:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    except OSError as error:
        raise KernelError("open netlink socket", error.errno or errno.EIO) from error


def _in_thread(function: Callable[[], T]) -> T:
    results: list[T] = []
    failures: list[BaseException] = []

    def body() -> None:
        try:
            results.append(function())
        except BaseException as error:  # handed to the caller, whatever it is
            failures.append(error)

    thread = threading.Thread(target=body, name="netns")
    try:
        thread.start()
    except RuntimeError as error:  # Python has no other word for it, and none for why
        raise KernelError("start a thread", errno.EAGAIN) from error
    thread.join()
    if failures:
        try:
            raise failures[0]
        finally:
            failures.clear()  # breaks the cycle error -> traceback -> this frame -> error
    return results[0]


def _call(operation: str, result: int) -> None:
    if result < 0:
        raise KernelError(operation, ctypes.get_errno())


def _open(path: str) -> int:
    operation = f"open {_WHAT} {path}"
    try:
        # O_NONBLOCK: a FIFO in its place must not hang us.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESRCH):
            raise NotFound(_WHAT, path) from error
        raise KernelError(operation, error.errno or errno.EIO) from error
    try:
        _require_netns(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _require_netns(fd: int, path: str) -> None:
    status = os.fstat(fd)
    wrong = Invalid(path, "is not a network namespace file")
    if not stat.S_ISREG(status.st_mode):
        raise wrong
    try:
        kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError as error:
        if status.st_size == 0 and not path.startswith("/proc/"):
            # The empty file under a mount that is gone.
            raise NotFound(_WHAT, path) from error
        raise wrong from error
    if kind != _CLONE_NEWNET:
        raise wrong
