"""Doors for the tests of the daemon as a process, open only when its environment says so.

``SAMEWIRE_TEST_FAULT=<operation>|<what>|<n>``: at the n-th kernel operation whose words contain ``<operation>``,
either ``kill`` the process, let it have no ``memory``, or fail with the errno of that name (``EIO``).
``SAMEWIRE_TEST_OBJECT``: another build of the switch.
"""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import structlog

from samewire.errors import Invalid, KernelError
from samewire.kernel import faults

log = structlog.get_logger(__name__)


def install_fault(text: str) -> None:
    """Arm the fault. Raises Invalid."""
    operation, _, rest = text.partition("|")
    what, _, number = rest.partition("|")
    known = what in ("kill", "memory") or hasattr(errno, what)
    if not operation or not known or not number.isdecimal():
        raise Invalid("SAMEWIRE_TEST_FAULT", f"{text!r} is not <operation>|kill, memory or errno|<n>")
    left = int(number)

    def inject(asked: str) -> None:
        nonlocal left
        if operation not in asked:
            return
        left -= 1
        if left:
            return
        log.warning("injected fault", operation=asked, what=what)
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "memory":
            raise MemoryError
        raise KernelError(asked, getattr(errno, what), "injected")

    faults.inject = inject


def from_environment() -> Path | None:
    """Arm what the environment asks for; returns the switch object to load, None for the usual one."""
    fault = os.environ.get("SAMEWIRE_TEST_FAULT")
    if fault:
        install_fault(fault)
    other = os.environ.get("SAMEWIRE_TEST_OBJECT")
    return Path(other) if other else None
