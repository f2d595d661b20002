"""Deletes links without waiting for the kernel to free them.

RTM_DELLINK takes some 25 ms, nearly all of it spent waiting for RCU after the interface is already out of its
namespace and dead. So threads send the deletions, and the caller goes on when the kernel has announced that the
interface is gone. When all threads are busy, what queues up is deleted as one group.
"""

from __future__ import annotations

import asyncio
import errno
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import count
from threading import Barrier
from typing import Final

from samewire.errors import KernelError
from samewire.kernel.rtnetlink import Netlink, link_del, link_del_group, link_set

_THREADS: Final = 6
_GROUPS: Final = count(0x53770001)  # groups of links that are about to go, one for each bundle


class LinkReaper:
    """Use from one event loop; ``gone`` is to be told what the monitor reports."""

    def __init__(self) -> None:
        self._executor: Executor = ThreadPoolExecutor(_THREADS, "reaper")
        # All begin now: where one finds no memory as it begins, Python waits for it for ever, with everything else.
        all_there = Barrier(_THREADS)
        try:
            for _ in range(_THREADS):
                self._executor.submit(all_there.wait)
        except RuntimeError:  # there may be no more of them
            all_there.abort()
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._queue: list[int] = []
        self._busy = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def delete(self, ifindex: int) -> None:
        """Return when the link is out of its namespace. One that is gone already is fine. Raises
        KernelError.
        """
        done = self._waiting.get(ifindex)
        if done is None:
            done = self._waiting[ifindex] = asyncio.get_running_loop().create_future()
            self._queue.append(ifindex)
            self._start()
        await asyncio.shield(done)

    def gone(self, ifindex: int) -> None:
        """The kernel has announced that a link is gone."""
        done = self._waiting.pop(ifindex, None)
        if done is not None and not done.done():
            done.set_result(None)

    async def close(self) -> None:
        """Wait until the kernel has freed everything."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._executor.shutdown()

    def _start(self) -> None:
        if self._busy >= _THREADS or not self._queue:
            return
        links, self._queue = self._queue, []
        self._busy += 1
        task = asyncio.ensure_future(self._run(links))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, links: list[int]) -> None:
        try:
            try:
                await asyncio.get_running_loop().run_in_executor(self._executor, _delete, links)
            except RuntimeError:  # no thread can be begun; the executor will delete them when one can
                _delete(links)
        except Exception as error:  # whatever it is: who hears nothing waits for ever
            failure = error if isinstance(error, KernelError) else _failure(error)
            for ifindex in links:
                done = self._waiting.pop(ifindex, None)
                if done is not None and not done.done():
                    done.set_exception(failure)
        else:
            for ifindex in links:
                self.gone(ifindex)  # in case the announcement was lost
        finally:
            self._busy -= 1
            self._start()


def _failure(error: Exception) -> KernelError:
    return KernelError("delete interfaces", errno.EAGAIN, f"{type(error).__name__}: {error}")


def _delete(links: list[int]) -> None:
    """Runs in a thread of the node's namespace."""
    with Netlink() as netlink:
        if len(links) == 1:
            netlink.request(link_del(links[0]).tolerating(errno.ENODEV))
            return
        group = next(_GROUPS)
        netlink.batch([link_set(ifindex, group=group).tolerating(errno.ENODEV) for ifindex in links])
        netlink.request(link_del_group(group).tolerating(errno.ENODEV))
