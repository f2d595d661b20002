"""A node without a daemon around it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from samewire.kernel import faults
from samewire.node.config import NodeConfig
from samewire.node.node import Node


@asynccontextmanager
async def running(config: NodeConfig) -> AsyncIterator[Node]:
    """Start one; at the end no faults are injected any more, and it is closed."""
    node = await Node.start(config, lambda _: None)
    try:
        yield node
    finally:
        faults.inject = None
        await node.close()
