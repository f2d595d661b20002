"""What takes a half-made change back."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

from samewire.errors import SamewireError

log = structlog.get_logger(__name__)


class UndoStack:
    """Steps back, run in reverse order. One that fails does not stop the others."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[[], object | Awaitable[object]]]] = []

    def push(self, what: str, step: Callable[[], object | Awaitable[object]]) -> None:
        """Remember how to undo something that is about to be done."""
        self._steps.append((what, step))

    async def run(self) -> bool:
        """Take everything back; False when something could not be (it has been logged)."""
        clean = True
        while self._steps:
            what, step = self._steps.pop()
            try:
                result = step()
                if isinstance(result, Awaitable):
                    await result
            except Exception as error:
                clean = False
                bug = None if isinstance(error, SamewireError) else error
                log.error("a step could not be taken back", step=what, error=str(error), exc_info=bug)
        return clean


def end_without_memory(error: BaseException) -> None:
    """End this process at once if a change has failed of that: the next start finds what is wanted in the store.

    Half of the change is in what this process knows, and taking it back would need memory, too.
    """
    if isinstance(error, MemoryError):
        with suppress(MemoryError):
            log.critical(
                "out of memory within a change; the daemon ends, its next start sets everything right"
            )
        os.kill(os.getpid(), signal.SIGKILL)
