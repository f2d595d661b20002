"""cni.sock: takes the calls of the CNI client, one a connection, and answers each exactly once.

The socket has mode 0600 and serves user id 0 only, by the kernel's word on the peer (SO_PEERCRED). A call
that takes too long is answered with "try again later" and runs on to its end, so that nothing is left
half done: the runtime's DEL then waits behind it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Collection
from pathlib import Path

import msgspec
import structlog

from samewire.cni.errors import CniCode, CniError
from samewire.cni.result import LATEST, encode_error
from samewire.cni.verbs import CniPlugin, Reply
from samewire.cni.wire import MAX_REQUEST, decode_request, encode_reply
from samewire.errors import Unavailable
from samewire.hcn.http import listen

READ_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 25.0
"""Less than the client waits by default (30 s), so that it hears why."""

CLOSE_TIMEOUT_S = 5.0
BACKLOG = 1024

log = structlog.get_logger(__name__)


class CniServer:
    """Serves a `CniPlugin` on a unix socket, for user id 0 and ``allowed_uids``."""

    def __init__(
        self,
        plugin: CniPlugin,
        path: Path,
        *,
        allowed_uids: Collection[int] = (),
        read_timeout_s: float = READ_TIMEOUT_S,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> None:
        self.plugin = plugin
        self.allowed_uids = frozenset({0, *allowed_uids})
        self.read_timeout_s = read_timeout_s
        self.request_timeout_s = request_timeout_s
        self.connections: set[_Connection] = set()
        self.running: set[asyncio.Task[None]] = set()
        self._path = path
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises Conflict when another process does already, Unavailable when the socket cannot be made."""
        try:
            listener = listen(self._path)
        except OSError as error:
            raise Unavailable(str(self._path), str(error)) from error
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: _Connection(self), sock=listener, backlog=BACKLOG
        )

    async def close(self) -> None:
        """Stop listening and let the calls under way end, for `CLOSE_TIMEOUT_S`; remove the socket."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)
        if self.running:
            _, late = await asyncio.wait(self.running, timeout=CLOSE_TIMEOUT_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for connection in list(self.connections):
            connection.abort()
        if self._server is not None:
            await self._server.wait_closed()


class _Connection(asyncio.Protocol):
    """One client: reads to its end of file, runs the call, answers, closes.

    A request that is refused is read to its end too: closing with bytes unread would reset the connection, and
    the client might lose the answer.
    """

    def __init__(self, server: CniServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._fault: CniError | None = None
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.connections.add(self)
        uid = _peer_uid(transport)
        if uid not in self._server.allowed_uids:
            self._fault = CniError(CniCode.IO_FAILURE, f"user id {uid} may not use this socket")
        self._limit(self._server.read_timeout_s, "the request did not come to its end")

    def data_received(self, data: bytes) -> None:
        if self._fault is None:
            self._received += data
        if len(self._received) > MAX_REQUEST:
            self._fault = CniError(CniCode.IO_FAILURE, f"the request is longer than {MAX_REQUEST} bytes")
            self._received.clear()

    def eof_received(self) -> bool:
        if self._fault is not None:
            self._refuse(self._fault)
        elif self._transport is not None:
            self._limit(self._server.request_timeout_s, "the call takes too long; it goes on to its end")
            task = self._loop.create_task(self._serve(bytes(self._received)))
            self._server.running.add(task)
            task.add_done_callback(self._server.running.discard)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish()
        self._server.connections.discard(self)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    async def _serve(self, data: bytes) -> None:
        start = time.monotonic()
        try:
            variables, stdin = decode_request(data)
        except CniError as error:
            reply = _failure(error)
        else:
            reply = await self._server.plugin.handle(variables, stdin)
        _write_log(reply, time.monotonic() - start)
        self._answer(reply)

    def _limit(self, timeout_s: float, reason: str) -> None:
        """Answer "try again later" after a time, unless there is an answer before."""
        if self._timer is not None:
            self._timer.cancel()
        error = CniError(CniCode.TRY_AGAIN, reason, f"after {timeout_s:g} s")
        self._timer = self._loop.call_later(timeout_s, self._refuse, error)

    def _refuse(self, error: CniError) -> None:
        reply = _failure(error)
        _write_log(reply, 0.0)
        self._answer(reply)

    def _answer(self, reply: Reply) -> None:
        transport = self._finish()
        if transport is not None:
            transport.write(encode_reply(reply.status, reply.output))
            transport.close()

    def _finish(self) -> asyncio.Transport | None:
        """Forget the transport and the timer; what comes after is not for this client any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        transport, self._transport = self._transport, None
        self._received.clear()
        return transport


def _failure(error: CniError) -> Reply:
    output = msgspec.json.encode(encode_error(error, LATEST))
    return Reply(1, output, code=int(error.code), message=str(error))


def _write_log(reply: Reply, took_s: float) -> None:
    """Write the one line of a request."""
    facts = {
        "verb": reply.verb,
        "network": reply.network,
        "container": reply.container_id,
        "interface": reply.interface_name,
        "ms": round(took_s * 1000, 2),
    }
    if reply.status:
        log.warning("cni", **facts, code=reply.code, error=reply.message)
    else:
        log.info("cni", **facts)


def _peer_uid(transport: asyncio.Transport) -> int:
    """Return the user id of the process that connected."""
    peer = transport.get_extra_info("socket")
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])
