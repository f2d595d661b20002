"""Opens the switch in a thread of its own: while the kernel verifies its programs, the rest of the daemon is imported
and the database read. So a start makes this as early as it can, and this module imports only what it needs itself.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import samewire
from samewire.kernel.bpf import mount_bpffs
from samewire.kernel.closing import Closing
from samewire.kernel.features import require_floor
from samewire.node.config import NodeConfig, require_host_cgroup
from samewire.node.hooks import SOCKETS
from samewire.node.switchboard import Switchboard


def switch_object() -> Path:
    """The compiled switch of this installation."""
    return Path(samewire.__file__).parent / "_build" / "switch.o"


class Opening(Closing):
    """A switchboard that is being opened. A context manager: at its end the thread is, too."""

    def __init__(self, config: NodeConfig, object_path: Path | None = None) -> None:
        """Begin; nothing that carries packets is touched. Raises Unsupported, Invalid, KernelError."""
        require_floor()
        require_host_cgroup(config)
        mount_bpffs(config.bpf_dir)
        # The verifier need not walk what nobody attaches.
        idle = () if config.host_cgroup else tuple(SOCKETS)
        path = object_path or switch_object()
        self._taken = False
        self._thread = ThreadPoolExecutor(1)
        self._opened = self._thread.submit(
            Switchboard, config.bpf_dir, path, config.map_sizes, idle, config.switch_constants
        )

    async def board(self) -> Switchboard:
        """The switchboard, once it is open; from then on it is the caller's to close. Raises KernelError, OSError."""
        board = await asyncio.wrap_future(self._opened)
        self._taken = True
        return board

    def close(self) -> None:
        """Wait for the thread, and close what nobody has taken."""
        self._thread.shutdown()
        if not self._taken and not self._opened.cancelled() and self._opened.exception() is None:
            self._taken = True
            self._opened.result().close()
