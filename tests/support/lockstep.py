"""Two processes, each on a CPU of its own, that do the same thing at the same moment, again and again."""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Callable
from typing import Final

_TIMEOUT_S: Final = 30.0
_ARRIVED: Final = struct.Struct("=II")


def together(work: Callable[[int, int], int], count: int) -> list[tuple[int, int]]:
    """Call ``work(who, i)`` in both processes for i in 0..count-1, each i at once; both results of each i.

    Results are integers 0..2^32-1. The children share the caller's descriptors and nothing else.
    """
    with mmap.mmap(-1, _ARRIVED.size + 8 * count) as shared:
        children = [_child(work, count, shared, who) for who in (0, 1)]
        failed = [who for who, child in enumerate(children) if os.waitpid(child, 0)[1] != 0]
        assert not failed, f"processes {failed} failed"
        flat = struct.unpack_from(f"={2 * count}I", shared, _ARRIVED.size)
    return list(zip(flat[::2], flat[1::2], strict=True))


def _child(work: Callable[[int, int], int], count: int, shared: mmap.mmap, who: int) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cpus[who % len(cpus)]})
        for i in range(count):
            struct.pack_into("=I", shared, 4 * who, i + 1)
            _wait_for(shared, 4 * (1 - who), i + 1)
            struct.pack_into("=I", shared, _ARRIVED.size + 8 * i + 4 * who, work(who, i))
        status = 0
    finally:
        os._exit(status)


def _wait_for(shared: mmap.mmap, at: int, value: int) -> None:
    """Spin: whatever else would wake the two up apart from one another."""
    deadline, turns = time.monotonic() + _TIMEOUT_S, 0
    while struct.unpack_from("=I", shared, at)[0] < value:
        turns += 1
        if turns % 1000 == 0:
            os.sched_yield()
            assert time.monotonic() < deadline, "the other process is not coming"
