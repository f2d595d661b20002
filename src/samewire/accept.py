"""Takes the connections of one listening socket, as many as there may be; who comes then waits in the kernel's queue.

asyncio's own servers take a process's last descriptor and then (Python 3.11) write a thousand lines a second: whoever
reaches a port, a pod the node's health port for one, could stop the node by opening connections and saying nothing.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from collections.abc import Callable
from typing import Final

import structlog

log = structlog.get_logger(__name__)

BACKLOG: Final = 1024
MOST: Final = 4096
_SHARE: Final = 8  # of the descriptors that the process may have
_TURN: Final = 64
_FEW: Final = 64
_WAIT_S: Final = 0.5
_QUIET_S: Final = 60.0
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

ANY: Final = ("::", "0.0.0.0")
"""Every address, of both families or of the one there is."""

Take = Callable[[socket.socket], None]


class Door:
    """Hands what is accepted to ``take`` while there is ``room``. ``listener`` listens already; `close` closes it."""

    def __init__(self, listener: socket.socket, take: Take, room: Callable[[], bool] = lambda: True) -> None:
        self._listener = listener
        self._take = take
        self._room = room
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.TimerHandle | None = None
        self._quiet_until = 0.0
        listener.setblocking(False)
        self._loop.add_reader(listener.fileno(), self._accept)

    def close(self) -> None:
        """Take no more. What has been taken stays."""
        if self._waiting is not None:
            self._waiting.cancel()
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()

    def move(self, listener: socket.socket) -> None:
        """Accept from another socket, which listens already. What has been taken stays."""
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        self._listener = listener
        listener.setblocking(False)
        if self._waiting is None:
            self._loop.add_reader(listener.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(_TURN):
            if not self._room():
                self._wait("there are as many as there may be")
                return
            try:
                accepted, _ = self._listener.accept()
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._wait(os.strerror(error.errno))
                return  # no more, or one that has gone again
            accepted.setblocking(False)
            self._take(accepted)

    def _wait(self, why: str) -> None:
        self._loop.remove_reader(self._listener.fileno())
        self._waiting = self._loop.call_later(_WAIT_S, self._go_on)
        if self._loop.time() >= self._quiet_until:
            self._quiet_until = self._loop.time() + _QUIET_S
            log.warning("connections have to wait", at=str(self._listener.getsockname()), why=why)

    def _go_on(self) -> None:
        self._waiting = None
        self._loop.add_reader(self._listener.fileno(), self._accept)


class Connections:
    """The connections of a server, through one door or several: few enough to leave descriptors for the rest."""

    def __init__(self, protocol: Callable[[], asyncio.BaseProtocol]) -> None:
        self._protocol = protocol
        # And some that have ended since these were last looked through.
        self._open: list[asyncio.BaseTransport] = []
        self._look_at = _FEW
        self._beginning: set[asyncio.Task[None]] = set()
        self._most = min(MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE)

    def door(self, listener: socket.socket) -> Door:
        """Accept from a socket that listens."""
        return Door(listener, self._take, self._has_room)

    def _has_room(self) -> bool:
        if len(self._open) + len(self._beginning) >= min(self._look_at, self._most):
            self._open = [transport for transport in self._open if not transport.is_closing()]
            self._look_at = max(_FEW, 2 * len(self._open))
        return len(self._open) + len(self._beginning) < self._most

    def _take(self, accepted: socket.socket) -> None:
        task = asyncio.get_running_loop().create_task(self._begin(accepted))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def _begin(self, accepted: socket.socket) -> None:
        try:
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(self._protocol, accepted)
        except OSError:
            accepted.close()
        else:
            self._open.append(transport)


def tcp_listener(hosts: tuple[str, ...], port: int) -> socket.socket:
    """A listening socket on the first of the addresses that this machine can do. Raises OSError."""
    for host in hosts:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT and host != hosts[-1]:
                continue
            raise
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
            listener.bind((host, port))
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRNOTAVAIL and host != hosts[-1]:
                continue  # IPv6 is switched off
            raise
        return listener
    raise OSError(errno.EAFNOSUPPORT, "no address family")
