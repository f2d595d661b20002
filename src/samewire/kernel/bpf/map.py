"""A BPF map by descriptor: keys and values are bytes of the map's own sizes."""

from __future__ import annotations

import ctypes as ct
import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from samewire.errors import KernelError, NotFound
from samewire.kernel.bpf import _libbpf as b

_BATCH: Final = 4096
_PERCPU_TYPES: Final = frozenset({5, 6, 10})  # BPF_MAP_TYPE_PERCPU_HASH, _ARRAY, LRU_PERCPU_HASH
_LPM_TYPE: Final = 11


class UpdateFlag(IntEnum):
    """What an update may find: BPF_ANY, BPF_NOEXIST, BPF_EXIST."""

    ANY = 0
    NOEXIST = 1
    EXIST = 2


@lru_cache(maxsize=1)
def possible_cpus() -> int:
    """The number of values a per-CPU map holds for each key."""
    return b.check(b.lib.libbpf_num_possible_cpus(), "count possible CPUs")


class BpfMap:
    """A map. ``owned`` descriptors are closed by ``close()``; those of a loaded object belong to it."""

    def __init__(self, fd: int, *, owned: bool = True) -> None:
        info = b.MapInfo()
        length = ct.c_uint32(ct.sizeof(info))
        b.check(b.lib.bpf_obj_get_info_by_fd(fd, ct.byref(info), ct.byref(length)), "read map information")
        self.fd = fd
        self.name: str = info.name.decode()
        self.id: int = info.id
        self.type: int = info.type
        self.key_size: int = info.key_size
        self.value_size: int = info.value_size
        self.max_entries: int = info.max_entries
        self.flags: int = info.map_flags
        self._owned = owned
        self.per_cpu = info.type in _PERCPU_TYPES
        self._stride = (self.value_size + 7) // 8 * 8 if self.per_cpu else self.value_size
        self._room = self._stride * possible_cpus() if self.per_cpu else self.value_size

    @classmethod
    def open_pinned(cls, path: Path) -> Self:
        """The map pinned at ``path``. Raises ``NotFound`` if nothing is there."""
        operation = f"open pinned map {path}"
        b.begin(operation)
        fd = b.lib.bpf_obj_get(os.fsencode(path))
        if fd == -errno.ENOENT:
            raise NotFound("pinned map", str(path))
        return cls(b.check(fd, operation))

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """What must agree for two programs to share the map: type, sizes, entries, flags."""
        return self.type, self.key_size, self.value_size, self.max_entries, self.flags

    def pin(self, path: Path) -> None:
        """Pin the map, so that it outlives this process."""
        operation = f"pin map {self.name}"
        b.begin(operation)
        b.check(b.lib.bpf_obj_pin(self.fd, os.fsencode(path)), operation)

    def close(self) -> None:
        """Close an owned descriptor."""
        if self._owned:
            b.close(self.fd)
        self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, key: bytes, value: bytes, flag: UpdateFlag = UpdateFlag.ANY) -> None:
        """Write one element. Per-CPU maps take one value of ``value_size`` for all CPUs."""
        operation = f"update {self.name}"
        b.begin(operation)
        self._check_sizes(key, value)
        if self.per_cpu:
            value = value.ljust(self._stride, b"\0") * possible_cpus()
        b.check(b.lib.bpf_map_update_elem(self.fd, key, value, int(flag)), operation)

    def lookup(self, key: bytes) -> bytes | None:
        """The value, or None. Per-CPU maps: all CPUs' values one after the other; see ``per_cpu_values``."""
        operation = f"look up in {self.name}"
        b.begin(operation)
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
        result = b.lib.bpf_map_delete_elem(self.fd, key)
        if result == -errno.ENOENT:
            return False
        b.check(result, operation)
        return True

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All elements. What is added or removed meanwhile may be missed, but nothing is seen twice."""
        if self._can_batch:
            yield from self._items_by_batch()
            return
        seen: set[bytes] = set()
        for key in self._keys():
            if key in seen:
                continue  # the element we stood on was removed, and the walk began anew
            seen.add(key)
            value = self.lookup(key)
            if value is not None:
                yield key, value

    def update_batch(self, items: Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]]) -> None:
        """Write many elements with few system calls."""
        pairs = list(items.items() if isinstance(items, Mapping) else items)
        if not self._can_batch:
            for key, value in pairs:
                self.update(key, value)
            return
        operation = f"update {self.name} ({len(pairs)} elements)"
        options = b.BatchOpts(sz=ct.sizeof(b.BatchOpts))
        for start in range(0, len(pairs), _BATCH):
            b.begin(operation)
            part = pairs[start : start + _BATCH]
            keys = b"".join(key for key, _ in part)
            values = b"".join(value for _, value in part)
            self._check_batch(part, keys, values)
            count = ct.c_uint32(len(part))
            b.check(
                b.lib.bpf_map_update_batch(self.fd, keys, values, ct.byref(count), ct.byref(options)),
                operation,
            )

    def delete_batch(self, keys: Iterable[bytes]) -> int:
        """Remove many elements; returns how many were there."""
        return sum(self.delete(key) for key in keys)

    @property
    def _can_batch(self) -> bool:
        return not self.per_cpu and self.type != _LPM_TYPE

    def _check_sizes(self, key: bytes, value: bytes) -> None:
        if len(key) != self.key_size or len(value) != self.value_size:
            raise KernelError(
                f"update {self.name}",
                errno.EINVAL,
                f"key of {len(key)} and value of {len(value)} bytes, not {self.key_size} and {self.value_size}",
            )

    def _check_batch(self, part: list[tuple[bytes, bytes]], keys: bytes, values: bytes) -> None:
        if len(keys) != len(part) * self.key_size or len(values) != len(part) * self.value_size:
            for key, value in part:
                self._check_sizes(key, value)

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
        size = min(_BATCH, self.max_entries)
        position = ct.create_string_buffer(max(self.key_size, 8))
        first = True
        while True:
            keys = ct.create_string_buffer(size * self.key_size)
            values = ct.create_string_buffer(size * self.value_size)
            count = ct.c_uint32(size)
            b.begin(operation)
            result = b.lib.bpf_map_lookup_batch(
                self.fd,
                None if first else position,
                position,
                keys,
                values,
                ct.byref(count),
                ct.byref(options),
            )
            if result == -errno.ENOSPC and size < self.max_entries:
                size = min(size * 2, self.max_entries)  # one bucket holds more than a batch
                continue
            if result not in (0, -errno.ENOENT):
                b.check(result, operation)
            first = False
            raw_keys, raw_values = keys.raw, values.raw
            for i in range(count.value):
                yield (
                    raw_keys[i * self.key_size : (i + 1) * self.key_size],
                    raw_values[i * self.value_size : (i + 1) * self.value_size],
                )
            if result == -errno.ENOENT:
                return
