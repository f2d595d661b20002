"""What a check leaves behind."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import PIPE

import pytest

from samewire.lab.check import _Agent


async def test_a_probe_runner_at_work_ends_with_a_check_that_is_broken_off() -> None:
    """Whoever cannot wait for its farewell: it would go on in the lab."""
    agent = _Agent("web", "nowhere")
    agent._process = process = await asyncio.create_subprocess_exec(
        "sleep", "600", stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    try:
        stopping = asyncio.create_task(agent.stop())
        await asyncio.sleep(0)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        assert process.returncode is not None
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
