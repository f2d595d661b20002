"""Reading a ring buffer map: records that programs send, in order."""

from __future__ import annotations

import ctypes as ct
import errno
from typing import Any, Final

from samewire.kernel.bpf import _libbpf as b
from samewire.kernel.bpf.map import BpfMap
from samewire.kernel.closing import Closing

_AT_ONCE: Final = 4096
"""Records. Programs may send faster than anybody reads: libbpf by itself would go on for as long as they do."""


class RingBuffer(Closing):
    """The one reader of a ring buffer map. A context manager; not for two threads at once."""

    def __init__(self, source: BpfMap) -> None:
        """Raises KernelError (EINVAL) when the map is of another type. The map may be closed afterwards."""
        self._records: list[bytes] = []
        self._callback = b.SampleFn(self._keep)  # kept alive as long as libbpf may call it
        operation = f"open ring buffer {source.name}"
        b.begin(operation)
        with b.capture_log():
            self._handle: int | None = b.check_pointer(
                b.lib.ring_buffer__new(source.fd, self._callback, None, None), operation
            )
        self._name = source.name

    def fileno(self) -> int:
        """The descriptor to wait on: readable when there are records."""
        return int(b.lib.ring_buffer__epoll_fd(self._handle))

    def receive(self) -> list[bytes]:
        """The records sent since the last call; empty when there are none. Does not wait. Of very many they are the
        first: the descriptor stays readable.
        """
        operation = f"read ring buffer {self._name}"
        b.begin(operation)
        result = b.lib.ring_buffer__consume(self._handle)
        if result != -errno.ENOBUFS:
            b.check(result, operation)
        records, self._records = self._records, []
        return records

    def close(self) -> None:
        """End reading; a second call does nothing."""
        if self._handle is not None:
            b.lib.ring_buffer__free(self._handle)
            self._handle = None

    def _keep(self, _context: Any, record: int, size: int) -> int:
        self._records.append(ct.string_at(record, size))
        return 0 if len(self._records) < _AT_ONCE else -errno.ENOBUFS
