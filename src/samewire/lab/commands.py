"""Running the system's tools (``ip``, ``bridge``, ``nsenter``, CNI plugins) from asyncio."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import TypeVar

from samewire.errors import SamewireError, Unavailable

#: Every tool here answers in milliseconds; one that does not within this time hangs.
TIMEOUT_S = 60.0

Result = TypeVar("Result")


class CommandFailed(SamewireError):
    """A command that exited with a status other than 0."""

    def __init__(self, argv: Sequence[str], status: int, output: str) -> None:
        super().__init__(f"`{shlex.join(argv)}` exited with {status}: {output.strip() or '(no output)'}")
        self.argv = tuple(argv)
        self.status = status
        self.output = output


async def run(
    *argv: str, stdin: str = "", env: Mapping[str, str] | None = None, timeout_s: float = TIMEOUT_S
) -> str:
    """Run a command and return its standard output.

    Raises :class:`CommandFailed` with its output for a non-zero status, ``Unavailable`` when it is not
    installed or does not end in time (it is killed then).
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=None if env is None else dict(env),
        )
    except FileNotFoundError as error:
        raise Unavailable(argv[0], "the program is not installed") from error
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate(stdin.encode())
    except (TimeoutError, asyncio.CancelledError) as error:
        process.kill()
        await process.wait()
        if isinstance(error, asyncio.CancelledError):
            raise
        raise Unavailable(argv[0], f"`{shlex.join(argv)}` did not end within {timeout_s:g} s") from error
    if process.returncode:
        raise CommandFailed(argv, process.returncode, (err + out).decode(errors="replace"))
    return out.decode(errors="replace")


async def ip_batch(netns: str | None, lines: Iterable[str]) -> None:
    """Run ``ip`` commands (without the word ``ip``) in one process, in a named namespace or (None) in this
    one.
    """
    await _batch("ip", netns, lines)


async def bridge_batch(netns: str, lines: Iterable[str]) -> None:
    """The same for ``bridge`` commands."""
    await _batch("bridge", netns, lines)


async def _batch(tool: str, netns: str | None, lines: Iterable[str]) -> None:
    script = "".join(f"{line}\n" for line in lines)
    if script:
        await run(tool, *(("-n", netns) if netns else ()), "-batch", "-", stdin=script)


async def in_netns(netns: str, *argv: str, stdin: str = "", env: Mapping[str, str] | None = None) -> str:
    """Run a command inside a named namespace, with this process's mounts (cgroups stay visible)."""
    return await run("nsenter", f"--net={netns_path(netns)}", *argv, stdin=stdin, env=env)


async def sysctls(netns: str, settings: Mapping[str, object]) -> None:
    """Set network sysctls (``ipv4.ip_forward``) inside a named namespace."""
    script = "".join(
        f"echo {value} > /proc/sys/net/{key.replace('.', '/')}\n" for key, value in settings.items()
    )
    await in_netns(netns, "sh", "-eu", stdin=script)


def netns_path(netns: str) -> str:
    """Where ``ip netns`` keeps a namespace."""
    return f"/run/netns/{netns}"


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment of everything that the lab starts: nothing of the caller's but the search path."""
    path = os.environ.get("PATH", os.defpath)
    return {"PATH": f"{path}:/usr/sbin:/sbin", "HOME": "/root", "LANG": "C.UTF-8", **extra}


async def bounded(limit: int, jobs: Iterable[Coroutine[object, object, Result]]) -> list[Result]:
    """Run coroutines, at most ``limit`` at once; the first failure cancels the others and is raised."""
    gate = asyncio.Semaphore(limit)

    async def one(job: Coroutine[object, object, Result]) -> Result:
        async with gate:
            return await job

    waiting = list(jobs)
    tasks = [asyncio.ensure_future(one(job)) for job in waiting]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for job in waiting:
            job.close()  # those that never got their turn would warn that they were not awaited
        raise
