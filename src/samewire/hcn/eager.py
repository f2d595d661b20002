"""Work that must run to its end, begun at once: most of it never waits, and then no task is needed.

A task of its own and the way back from it are three turns of the event loop, which is a tenth of a CNI ADD.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


def begin(work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
    """Run ``work`` as far as it gets without waiting; what is left of it is a task.

    Raises what ``work`` raises before it waits. Until then the caller's task is the current one, so that ``work``
    must set itself no `asyncio.timeout`.
    """
    try:
        waits_for = work.send(None)
    except StopIteration as end:
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        done.set_result(end.value)
        return done
    return asyncio.ensure_future(_rest(work, waits_for))


@types.coroutine
def _rest(work: Coroutine[Any, Any, T], waits_for: Any) -> Generator[Any, Any, T]:
    """Hand on what ``work`` waits for, and to it what comes of that."""
    try:
        while True:
            try:
                answer = yield waits_for
            except GeneratorExit:
                work.close()
                raise
            except BaseException as error:
                waits_for = work.throw(error)
            else:
                waits_for = work.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result
