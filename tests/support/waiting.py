"""Waiting for what other tasks of the same event loop bring about."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Let the other tasks have their turns until something is so. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  # plain values, which announce nothing
            await asyncio.sleep(0)
