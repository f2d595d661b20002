"""Programs of others that run as children of the daemon: ended with all that they have started, and not waited for
without an end.

They are started with a session of their own, so that they and theirs are a group.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

_REAP_S: Final = 1.0


async def begin(
    program: str, *arguments: str, stdin: int, env: Mapping[str, str]
) -> asyncio.subprocess.Process:
    """Start a program whose output is read. Raises OSError, ValueError.

    Python 3.11 waits for each in a thread of its own; where there may be no more threads it fails when the program runs
    already, and leaves it running.
    """
    if sys.version_info < (3, 12):
        watcher = asyncio.get_child_watcher()
        if not (isinstance(watcher, asyncio.PidfdChildWatcher) and watcher.is_active()):
            watcher = asyncio.PidfdChildWatcher()
            watcher.attach_loop(asyncio.get_running_loop())
            asyncio.set_child_watcher(watcher)
    return await asyncio.create_subprocess_exec(
        program, *arguments, stdin=stdin, stdout=PIPE, stderr=PIPE, env=dict(env), start_new_session=True
    )


def kill_group(process: asyncio.subprocess.Process) -> None:
    """Kill a process with its group: children that hold its pipes when it has ended itself, too."""
    if process.returncode is not None and os.path.exists(f"/proc/{process.pid}"):
        return  # the number is another's by now; while there is anybody in the group, nobody else gets it
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def release(process: asyncio.subprocess.Process) -> None:
    """Reap a process that has ended or was killed, and let go of its pipes: children in a session of their own may
    hold them for ever, and `wait` waits for that, too.
    """
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(_REAP_S):
                await process.wait()
    finally:  # so does a timeout end after a cancellation before Python 3.11.3
        transport = process._transport  # type: ignore[attr-defined]  # the only way to close pipes nobody reads
        transport.close()
