"""lo: what the node sends to itself by SCTP, which no hook translates, comes into the switch from there.

The program is on lo while an SCTP port is a service's or an endpoint's, and nobody's packets pay for it otherwise.
"""

from __future__ import annotations

import asyncio

import structlog

from samewire.errors import SamewireError
from samewire.node.balancers import Balancers
from samewire.node.hooks import Hooks
from samewire.node.wanted import Wanted

log = structlog.get_logger(__name__)


class Loopback:
    """Keeps the program where it is wanted, and nowhere else."""

    def __init__(self, hooks: Hooks, wanted: Wanted, balancers: Balancers, suspect: asyncio.Event) -> None:
        """``suspect`` is set when it could not be done: the audit tries again."""
        self._hooks = hooks
        self._wanted = wanted
        self._balancers = balancers
        self._suspect = suspect
        self._is_on: bool | None = None

    @property
    def wanted(self) -> bool:
        """Whether anybody has a port that is reached by it."""
        return bool(self._wanted.sctp_ports or self._balancers.sctp_ports)

    def follow(self) -> None:
        """Attach or take off if what is wanted has changed. A failure is logged: what has been changed is true."""
        if self.wanted == self._is_on:
            return
        try:
            self.attach()
        except SamewireError as error:
            log.warning(
                "packets from the node to itself are not looked at as they should be", error=str(error)
            )
            self._suspect.set()

    def attach(self) -> None:
        """Attach or take off. Raises SamewireError."""
        self._is_on = None
        wanted = self.wanted
        if wanted:
            self._hooks.attach_loopback()
        else:
            self._hooks.leave_loopback()
        self._is_on = wanted

    def trouble(self) -> str:
        """What the kernel has otherwise, in words; empty when nothing. Raises SamewireError."""
        if self._is_on is None:
            return "could not be left as it should be"
        if self._hooks.on_loopback() != self.wanted:
            return "the uplink's second program " + ("does not run" if self.wanted else "runs for nobody")
        if self.wanted and not self._hooks.loopback_takes():
            return "does not take what the node is to be answered"
        return ""
