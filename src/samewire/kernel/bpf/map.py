"""A BPF map by descriptor: keys and values are bytes of the map's own sizes."""

from __future__ import annotations

import ctypes as ct
import errno
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import Final, Self

from samewire.errors import KernelError, NotFound
from samewire.kernel.bpf import _libbpf as b
from samewire.kernel.bpf.handle import Handle

_BATCH: Final = 4096
_READ_BATCH: Final = 1024  # more than any bucket of a hash table holds; the buffers are cleared for each read
_PERCPU_TYPES: Final = frozenset({5, 6, 10})  # BPF_MAP_TYPE_PERCPU_HASH, _ARRAY, LRU_PERCPU_HASH
_LPM_TYPE: Final = 11
_FULL: Final = (errno.E2BIG, errno.ENOSPC)  # of a hash, of a trie
# BPF_MAP_TYPE_HASH, ARRAY, PERCPU_HASH, PERCPU_ARRAY, LRU_HASH, LRU_PERCPU_HASH, LPM_TRIE
_BATCH_TYPES: Final = frozenset({1, 2, 5, 6, 9, 10, 11})


class UpdateFlag(IntEnum):
    """What an update may find: BPF_ANY, BPF_NOEXIST, BPF_EXIST."""

    ANY = 0
    NOEXIST = 1
    EXIST = 2


@lru_cache(maxsize=1)
def possible_cpus() -> int:
    """The number of values a per-CPU map holds for each key."""
    return b.check(b.lib.libbpf_num_possible_cpus(), "count possible CPUs")


class BpfMap(Handle):
    """A map."""

    def __init__(self, fd: int, *, owned: bool = True) -> None:
        info = b.MapInfo()
        length = ct.c_uint32(ct.sizeof(info))
        b.check(b.lib.bpf_obj_get_info_by_fd(fd, ct.byref(info), ct.byref(length)), "read map information")
        super().__init__(fd, "map", info.name.decode(), owned=owned)
        self.id: int = info.id
        self.type: int = info.type
        self.key_size: int = info.key_size
        self.value_size: int = info.value_size
        self.max_entries: int = info.max_entries
        self.flags: int = info.map_flags
        self.per_cpu = info.type in _PERCPU_TYPES
        self._stride = (self.value_size + 7) // 8 * 8 if self.per_cpu else self.value_size
        self._room = self._stride * possible_cpus() if self.per_cpu else self.value_size

    @classmethod
    def open_pinned(cls, path: Path) -> Self:
        """The map pinned at ``path``. Raises NotFound, and KernelError (EINVAL) when it is no map."""
        return cls(b.open_pin(path, "map"))

    @classmethod
    def from_id(cls, map_id: int) -> Self:
        """The map with that id, whoever made it. Raises ``NotFound``."""
        operation = f"open map {map_id}"
        b.begin(operation)
        fd = b.lib.bpf_map_get_fd_by_id(map_id)
        if fd == -errno.ENOENT:
            raise NotFound("map", str(map_id))
        return cls(b.check(fd, operation))

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """What must agree for two programs to share the map: type, sizes, entries, flags."""
        return self.type, self.key_size, self.value_size, self.max_entries, self.flags

    def update(self, key: bytes, value: bytes, flag: UpdateFlag = UpdateFlag.ANY) -> None:
        """Write one element. Per-CPU maps take one value for all CPUs, or all of them as ``lookup`` gives."""
        operation = f"update {self.name}"
        b.begin(operation)
        value = self._checked(key, value)
        result = b.lib.bpf_map_update_elem(self.fd, key, value, int(flag))
        if result < 0:
            raise self._refused(operation, -result)

    def lookup(self, key: bytes) -> bytes | None:
        """The value, or None. Per-CPU maps: all CPUs' values one after the other; see ``per_cpu_values``."""
        operation = f"look up in {self.name}"
        b.begin(operation)
        self._check_key(key)
        value = ct.create_string_buffer(self._room)
        result = b.lib.bpf_map_lookup_elem(self.fd, key, value)
        if result == -errno.ENOENT:
            return None
        b.check(result, operation)
        return value.raw

    def per_cpu_values(self, value: bytes) -> list[bytes]:
        """One value of ``value_size`` for each CPU."""
        return [value[at : at + self.value_size] for at in range(0, len(value), self._stride)]

    def delete(self, key: bytes) -> bool:
        """Remove an element; False if it was not there."""
        operation = f"delete from {self.name}"
        b.begin(operation)
        self._check_key(key)
        result = b.lib.bpf_map_delete_elem(self.fd, key)
        if result == -errno.ENOENT:
            return False
        b.check(result, operation)
        return True

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All elements; per-CPU values as from ``lookup``.

        Hash tables may change meanwhile: what is there all the time is seen, nothing is seen twice. A trie may
        be changed by the caller as it goes, and by nobody else. Types without elements raise KernelError.
        """
        if self.type == _LPM_TYPE:
            # Whole before the first is given out: the walk would begin anew if the caller removed what it got.
            yield from dict(self._items_by_batch()).items()
            return
        if self.type in _BATCH_TYPES:
            yield from self._items_by_batch()
            return
        for key in self._keys():
            value = self.lookup(key)
            if value is not None:
                yield key, value

    def update_batch(self, items: Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]]) -> None:
        """Write many elements with few system calls; per-CPU values as for ``update``.

        A failure (the map is full) leaves the elements before it written; the KernelError's ``detail`` says how
        many those are.
        """
        pairs = list(items.items() if isinstance(items, Mapping) else items)
        operation = f"update {self.name} ({len(pairs)} elements)"
        options = b.BatchOpts(sz=ct.sizeof(b.BatchOpts))
        for start in range(0, len(pairs), _BATCH):
            b.begin(operation)
            part = pairs[start : start + _BATCH]
            keys, values = self._joined(part)
            count = ct.c_uint32(len(part))
            result = b.lib.bpf_map_update_batch(self.fd, keys, values, ct.byref(count), ct.byref(options))
            if result < 0:
                raise self._refused(operation, -result, f"after {start + count.value} elements")

    def delete_batch(self, keys: Iterable[bytes]) -> int:
        """Remove many elements with few system calls; returns how many were there. Raises KernelError."""
        left = list(keys)
        operation = f"delete from {self.name} ({len(left)} elements)"
        options = b.BatchOpts(sz=ct.sizeof(b.BatchOpts))
        removed = at = 0
        while at < len(left):
            b.begin(operation)
            part = left[at : at + _BATCH]
            joined = b"".join(part)
            if len(joined) != len(part) * self.key_size:
                raise KernelError(operation, errno.EINVAL, f"keys have {self.key_size} bytes")
            count = ct.c_uint32(len(part))
            result = b.lib.bpf_map_delete_batch(self.fd, joined, ct.byref(count), ct.byref(options))
            removed += count.value
            at += count.value
            if result == -errno.ENOENT:
                at += 1  # the kernel stops at a key that is not there; that one is done, too
            else:
                b.check(result, operation)
        return removed

    def _joined(self, pairs: list[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
        """All keys, and all values as the kernel wants them."""
        keys, values = zip(*pairs, strict=True)
        if {*map(len, keys)} != {self.key_size} or {*map(len, values)} != {self._room}:
            values = tuple([self._checked(key, value) for key, value in pairs])
        return b"".join(keys), b"".join(values)

    def _checked(self, key: bytes, value: bytes) -> bytes:
        """The value as the kernel wants it; what has another size would be read past its end."""
        if len(key) == self.key_size:
            if len(value) == self._room:
                return value
            if self.per_cpu and len(value) == self.value_size:
                return value.ljust(self._stride, b"\0") * possible_cpus()
        raise KernelError(
            f"update {self.name}",
            errno.EINVAL,
            f"key of {len(key)} and value of {len(value)} bytes, not {self.key_size} and {self.value_size}",
        )

    def _refused(self, operation: str, number: int, detail: str = "") -> KernelError:
        """What a refused update is to the caller: the words of a full table's error number are about other things."""
        full = f"there is room for {self.max_entries} entries" if number in _FULL else ""
        return KernelError(operation, number, ", ".join(filter(None, (detail, full))))

    def _check_key(self, key: bytes) -> None:
        if len(key) != self.key_size:
            raise KernelError(
                f"use {self.name}", errno.EINVAL, f"key of {len(key)} bytes, not {self.key_size}"
            )

    def _keys(self) -> Iterator[bytes]:
        operation = f"walk {self.name}"
        following = ct.create_string_buffer(self.key_size)
        key: bytes | None = None
        while True:
            b.begin(operation)
            result = b.lib.bpf_map_get_next_key(self.fd, key, following)
            if result == -errno.ENOENT:
                return
            b.check(result, operation)
            key = following.raw
            yield key

    def _items_by_batch(self) -> Iterator[tuple[bytes, bytes]]:
        operation = f"read {self.name}"
        options = b.BatchOpts(sz=ct.sizeof(b.BatchOpts))
        size = min(_READ_BATCH, self.max_entries)
        position = ct.create_string_buffer(max(self.key_size, 4))
        keys = ct.create_string_buffer(size * self.key_size)
        values = ct.create_string_buffer(size * self._room)
        start = None
        more = True
        while more:
            count = ct.c_uint32(size)
            b.begin(operation)
            result = b.lib.bpf_map_lookup_batch(
                self.fd, start, position, keys, values, ct.byref(count), ct.byref(options)
            )
            more = result != -errno.ENOENT
            if more:
                b.check(result, operation)
            found = count.value
            yield from self._pairs(
                memoryview(keys)[: found * self.key_size].tobytes(),
                memoryview(values)[: found * self._room].tobytes(),
                found,
            )
            start = position

    def _pairs(self, keys: bytes, values: bytes, count: int) -> Iterator[tuple[bytes, bytes]]:
        width, room = self.key_size, self._room
        for i in range(count):
            yield keys[i * width : (i + 1) * width], values[i * room : (i + 1) * room]
