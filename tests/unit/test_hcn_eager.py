"""Work that is begun at once and runs to its end."""

from __future__ import annotations

import asyncio

import pytest

from samewire.hcn.eager import begin


async def _waits(gate: asyncio.Event, seen: list[str]) -> int:
    seen.append("begun")
    await gate.wait()
    await asyncio.sleep(0)
    seen.append("ended")
    return 7


def test_what_never_waits_is_done_at_once_and_raises_at_once() -> None:
    async def value() -> int:
        return 7

    async def fault() -> int:
        raise ValueError("no")

    async def check() -> None:
        assert begin(value()).result() == 7
        with pytest.raises(ValueError, match="no"):
            begin(fault())

    asyncio.run(check())


def test_what_waits_goes_on_as_a_task() -> None:
    async def check() -> None:
        gate, seen = asyncio.Event(), list[str]()
        task = begin(_waits(gate, seen))
        assert seen == ["begun"]
        assert not task.done()
        gate.set()
        assert await task == 7
        assert seen == ["begun", "ended"]

    asyncio.run(check())


def test_a_failure_after_waiting_is_the_tasks() -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        raise ValueError("later")

    async def check() -> None:
        with pytest.raises(ValueError, match="later"):
            await begin(work())

    asyncio.run(check())


def test_a_failure_of_what_is_waited_for_reaches_the_work() -> None:
    async def work(failing: asyncio.Future[None]) -> str:
        try:
            await failing
        except ValueError:
            return "caught"
        return ""

    async def check() -> None:
        failing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = begin(work(failing))
        failing.set_exception(ValueError())
        assert await task == "caught"

    asyncio.run(check())


def test_a_cancelled_task_cancels_the_work() -> None:
    async def check() -> None:
        seen: list[str] = []
        task = begin(_waits(asyncio.Event(), seen))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == ["begun"]

    asyncio.run(check())
