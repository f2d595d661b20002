"""cni.sock: takes the calls of the CNI client, one a connection, and answers each exactly once.

The socket has mode 0600 and serves user id 0 and those that the configuration allows, by the kernel's word on the
peer (SO_PEERCRED). A call that takes too long is answered with "try again later" and runs on to its end, so that
nothing is left half done: the runtime's DEL then waits behind it.
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

from samewire.accept import Door
from samewire.cni.errors import CniCode, CniError
from samewire.cni.result import LATEST, encode_error
from samewire.cni.verbs import CniPlugin, Reply
from samewire.cni.wire import MAX_REQUEST, decode_request, encode_reply
from samewire.hcn.eager import begin
from samewire.hcn.http import listen

READ_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 25.0
"""Less than the client waits by default (30 s), so that it hears why."""

CLOSE_TIMEOUT_S = 5.0
READ_BYTES = 1 << 16

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
        self.running: set[asyncio.Future[None]] = set()
        self._path = path
        self._door: Door | None = None

    async def start(self) -> None:
        """Listen. Raises Conflict when another process does already, Unavailable when the socket cannot be made."""
        self._door = Door(listen(self._path), self._take)

    def listen_again(self) -> None:
        """Make the socket anew, whose file is gone. Raises Conflict, Unavailable."""
        if self._door is not None:
            self._door.move(listen(self._path))

    async def close(self) -> None:
        """Stop listening and let the calls under way end, for `CLOSE_TIMEOUT_S`; remove the socket."""
        door, self._door = self._door, None
        if door is not None:
            door.close()
            self._path.unlink(missing_ok=True)
        if self.running:
            _, late = await asyncio.wait(self.running, timeout=CLOSE_TIMEOUT_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for connection in list(self.connections):
            connection.close()

    def _take(self, accepted: socket.socket) -> None:
        _Connection(self, accepted).begin()


class _Connection:
    """One client: reads to its end of file, runs the call, answers, closes.

    Plain socket calls in place of a transport: a client has sent all of its request by the time it is accepted, so
    that one turn of the loop is enough for what would be six.
    """

    def __init__(self, server: CniServer, accepted: socket.socket) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = accepted
        self._received = bytearray()
        self._ended = False
        self._watched = False  # whether the loop tells when there is more to read,
        self._writing = False  # and when more can be written
        self._answer_left: memoryview | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Take the request, as far as it has come."""
        self._server.connections.add(self)
        assert self._socket is not None
        uid = _peer_uid(self._socket)
        if uid not in self._server.allowed_uids:
            self._watch(self._socket)
            self._refuse(CniError(CniCode.IO_FAILURE, f"user id {uid} may not use this socket"))
            return
        self._readable()
        if self._socket is not None and not self._ended and self._answer_left is None:
            self._limit(self._server.read_timeout_s, "the request did not come to its end")

    def close(self) -> None:
        """Close at once; a second call does nothing."""
        connection, self._socket = self._socket, None
        if connection is not None:
            self._stop_clock()
            if self._watched:
                self._loop.remove_reader(connection.fileno())
            if self._writing:
                self._loop.remove_writer(connection.fileno())
            connection.close()
            self._server.connections.discard(self)

    def _readable(self) -> None:
        while self._socket is not None and not self._ended:
            try:
                data = self._socket.recv(READ_BYTES)
            except BlockingIOError:
                self._watch(self._socket)
                return
            except OSError:
                self.close()
                return
            if not data:
                self._ended = True
                if self._watched:
                    self._watched = False
                    self._loop.remove_reader(self._socket.fileno())
                self._run()
            elif self._answer_left is None:
                self._received += data
                if len(self._received) > MAX_REQUEST:
                    error = f"the request is longer than {MAX_REQUEST} bytes"
                    self._refuse(CniError(CniCode.IO_FAILURE, error))

    def _watch(self, connection: socket.socket) -> None:
        if not self._watched:
            self._watched = True
            self._loop.add_reader(connection.fileno(), self._readable)

    def _run(self) -> None:
        """The request is complete."""
        if self._answer_left is not None:
            self._send()  # it was refused before
            return
        self._stop_clock()
        work = begin(self._serve(bytes(self._received)))
        if not work.done():  # most calls wait for nothing
            self._limit(self._server.request_timeout_s, "the call takes too long; it goes on to its end")
            self._server.running.add(work)
            work.add_done_callback(self._server.running.discard)

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
        self._stop_clock()
        self._timer = self._loop.call_later(timeout_s, self._late, timeout_s, reason)

    def _late(self, timeout_s: float, reason: str) -> None:
        self._refuse(CniError(CniCode.TRY_AGAIN, reason, f"after {timeout_s:g} s"))

    def _refuse(self, error: CniError) -> None:
        reply = _failure(error)
        _write_log(reply, 0.0)
        self._answer(reply)

    def _answer(self, reply: Reply) -> None:
        """Answer, unless that has been done."""
        if self._socket is None or self._answer_left is not None:
            return
        self._stop_clock()
        self._answer_left = memoryview(encode_reply(reply.status, reply.output))
        if not self._ended:  # many a client hears no answer before it has sent all
            self._timer = self._loop.call_later(self._server.read_timeout_s, self.close)
        self._send()

    def _send(self) -> None:
        assert self._socket is not None
        assert self._answer_left is not None
        try:
            self._answer_left = self._answer_left[self._socket.send(self._answer_left) :]
        except BlockingIOError:
            pass
        except OSError:
            self.close()  # the client has gone
            return
        if self._answer_left:
            self._writing = True
            self._loop.add_writer(self._socket.fileno(), self._send)
        elif self._ended:
            self.close()
        else:
            self._socket.shutdown(socket.SHUT_WR)
            if self._writing:
                self._writing = False
                self._loop.remove_writer(self._socket.fileno())

    def _stop_clock(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


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


def _peer_uid(peer: socket.socket) -> int:
    """Return the user id of the process that connected."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])
