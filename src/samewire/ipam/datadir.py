"""The directory of one network's addresses on disk, as the reference host-local keeps it.

One file for each address, named like it, holding ``<container id>\\r\\n<interface>``; the last address of each
range set in ``last_reserved_ip.<number>``; all changes under flock(2) on ``lock``. So the reference plugin may
work on the same directory at the same time.

The files are read once. Afterwards a change by another process shows in the directory's modification time,
and, where that clock ticks too slowly (every 4 ms on kernels before 6.13), an allocation shows in the last address.
A release may show in neither, and an address look taken that is free: so who is about to be refused for that
has the files read again (`DataDir.scan`).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import time
from collections.abc import Iterable
from types import TracebackType

from samewire.cni.fields import address
from samewire.errors import KernelError, Unavailable

LOCK_TIMEOUT_S = 10.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.0005, 0.02
_LAST = "last_reserved_ip."

Key = tuple[str, str]
"""Container id and interface name."""


class DataDir:
    """One network's addresses. The methods but `locked` and `exists` need the lock held."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._owners: dict[str, str] = {}
        self._names: dict[str, set[str]] = {}
        self._last: dict[int, str] = {}
        self._seen_ns = -1

    def exists(self) -> bool:
        """Whether there is such a directory."""
        return os.path.isdir(self._path)

    def locked(self) -> _Locked:
        """Hold the lock within an ``async with``; the directory is made if it is missing.

        Raises KernelError, and Unavailable when another process does not let go in `LOCK_TIMEOUT_S`. An OSError
        within becomes a KernelError, too.
        """
        return _Locked(self)

    async def lock(self) -> int:
        """Take the lock; the descriptor to close is what holds it. Raises OSError, Unavailable."""
        handle = self._open_lock()
        try:
            await self._lock(handle)
            if os.stat(self._path).st_mtime_ns != self._seen_ns:
                self.scan()
        except BaseException:
            os.close(handle)
            raise
        return handle

    def failed(self, error: OSError) -> KernelError:
        """What an OSError of the directory is to the caller; it is read again before it is used again."""
        self._seen_ns = -1
        return KernelError(f"keep addresses in {self._path}", error.errno or errno.EIO)

    def addresses_of(self, key: Key) -> list[str]:
        """Return the addresses that an attachment holds, read from their files.

        Files written by host-local before 0.8.2 hold the container id alone; they count where there are no others.
        """
        found = self._found(key)
        if not found:
            self.scan()
            found = self._found(key)
        return found

    def known_addresses_of(self, key: Key) -> list[str]:
        """Return the addresses that an attachment is known to hold, without a look at the disk."""
        return sorted(name for content in _contents(key) for name in self._names.get(content, ()))

    def last(self, number: int) -> str:
        """Return the address given last from a range set, "" for none."""
        text = self._read(f"{_LAST}{number}")
        if text != self._last.get(number, ""):
            self.scan()
        try:
            return address(text)
        except ValueError:
            return ""

    def is_taken(self, name: str) -> bool:
        """Whether an address is known to be taken; `reserve` has the last word."""
        return name in self._owners

    def reserve(self, name: str, key: Key, number: int) -> bool:
        """Take an address of a range set for an attachment; False when it is taken."""
        if not self._create(name, _content(key)):
            self._seen_ns = -1
            return False
        self._own(name, _content(key))
        try:
            self._write(f"{_LAST}{number}", name)
        except OSError:
            self.remove([name])
            raise
        self._last[number] = name
        self._seen_ns = os.stat(self._path).st_mtime_ns
        return True

    def release(self, key: Key) -> list[str]:
        """Give back what an attachment holds, and return it."""
        names = self.addresses_of(key)
        self.remove(names)
        return names

    def release_others(self, valid: Iterable[Key]) -> list[str]:
        """Give back all that belongs to none of these attachments, and return it."""
        self.scan()
        kept = {content for key in valid for content in _contents(key)}
        names = [name for name, content in self._owners.items() if content not in kept]
        self.remove(names)
        return names

    def remove(self, names: Iterable[str]) -> None:
        """Give back addresses; those that nobody holds are passed over."""
        for name in names:
            try:
                os.unlink(f"{self._path}/{name}")
            except FileNotFoundError:
                pass
            self._disown(name)
        self._seen_ns = os.stat(self._path).st_mtime_ns

    def _found(self, key: Key) -> list[str]:
        for content in _contents(key):
            found = [name for name in sorted(self._names.get(content, ())) if self._read(name) == content]
            if found:
                return found
        return []

    def _own(self, name: str, content: str) -> None:
        self._owners[name] = content
        self._names.setdefault(content, set()).add(name)

    def _disown(self, name: str) -> None:
        content = self._owners.pop(name, "")
        names = self._names.get(content, set())
        names.discard(name)
        if not names:
            self._names.pop(content, None)

    def scan(self) -> None:
        """Read the whole directory."""
        self._owners, self._names, self._last = {}, {}, {}
        seen_ns = os.stat(self._path).st_mtime_ns
        for name in os.listdir(self._path):
            if name.startswith(_LAST) and name[len(_LAST) :].isdecimal():
                self._last[int(name[len(_LAST) :])] = self._read(name)
            elif _is_address(name):
                content = self._read(name)
                if content or os.path.isdir(f"{self._path}/{name}"):
                    self._own(name, content)
                else:  # we hold the lock, so its writer was killed between making and filling it
                    self.remove([name])
        self._seen_ns = seen_ns

    def _read(self, name: str) -> str:
        """Return a file's text without white space around it, "" when there is no such file."""
        try:
            handle = os.open(f"{self._path}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, IsADirectoryError):
            return ""
        try:
            return os.read(handle, 4096).decode(errors="replace").strip()
        except IsADirectoryError:
            return ""
        finally:
            os.close(handle)

    def _create(self, name: str, content: str) -> bool:
        path = f"{self._path}/{name}"
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            return False
        try:
            os.write(handle, content.encode())
        except OSError:
            os.unlink(path)
            raise
        finally:
            os.close(handle)
        return True

    def _write(self, name: str, content: str) -> None:
        """Replace a file's text in place: ext4 writes a file that was cut to nothing to the disk at once."""
        handle = os.open(f"{self._path}/{name}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(handle, os.write(handle, content.encode()))
        finally:
            os.close(handle)

    def _open_lock(self) -> int:
        flags = os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC
        try:
            return os.open(f"{self._path}/lock", flags, 0o750)
        except FileNotFoundError:
            os.makedirs(self._path, 0o755, exist_ok=True)
            return os.open(f"{self._path}/lock", flags, 0o750)

    async def _lock(self, handle: int) -> None:
        """Take the lock without blocking the loop: nobody holds it for longer than a few milliseconds."""
        deadline, wait_s = time.monotonic() + LOCK_TIMEOUT_S, _FIRST_WAIT_S
        while True:
            try:
                return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Unavailable(f"{self._path}/lock", "another process does not let go of it") from None
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


class _Locked:
    """The lock, while it is entered."""

    def __init__(self, directory: DataDir) -> None:
        self._directory = directory
        self._handle = -1

    async def __aenter__(self) -> None:
        try:
            self._handle = await self._directory.lock()
        except OSError as error:
            raise self._directory.failed(error) from error

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._handle)
        if isinstance(error, OSError):
            raise self._directory.failed(error) from error


def _content(key: Key) -> str:
    return f"{key[0]}\r\n{key[1]}"


def _contents(key: Key) -> tuple[str, str]:
    return _content(key), key[0]


def _is_address(name: str) -> bool:
    try:
        return address(name) == name
    except ValueError:
        return False
