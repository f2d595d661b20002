"""The HTTP protocol of the API: what aiohttp itself refuses gets the API's error body, too."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final

import msgspec
import structlog
from aiohttp import web

from samewire.hcn import http_guard
from samewire.hcn.errors import HcnCode
from samewire.hcn.http_answers import error_response
from samewire.hcn.http_reads import Reads, missing

log = structlog.get_logger(__name__)

MAX_TEXT = 256


class QuickReads(msgspec.Struct, frozen=True):
    """Reads that are answered at once, and to whom: user ids at the other end of the unix socket."""

    reads: Reads
    uids: frozenset[int]


READS: Final = web.AppKey("reads", QuickReads)


class JsonProtocol(web.RequestHandler):
    """Answers bytes that are no HTTP request, and expectations it cannot meet, as HNS answers errors; and reads of
    single objects at once.
    """

    __slots__ = ("_answered", "_half_closed", "_last_body", "_missing", "_quick", "_reads")

    def __init__(self, quick: QuickReads, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._quick = quick
        self._reads: Reads | None = None
        self._missing: int | None = 0  # bytes of a body to come; None: no request's end is known any more
        self._answered = 0
        self._half_closed = False
        self._last_body: Any = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the answer to a request that cannot be read, or that a bug stopped."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already")
        if status >= 500:
            log.error("a request failed by a bug", exc_info=exc)
            response = error_response(
                status, HcnCode.E_FAIL, "internal error; the daemon's log has the details"
            )
        else:
            text = " ".join((message or str(exc)).split())[:MAX_TEXT]
            response = error_response(status, HcnCode.E_INVALIDARG, f"the request cannot be read: {text}")
        response.force_close()
        return response

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note whether the other end may read. (The guard asks about every other request.)"""
        super().connection_made(transport)
        peer = transport.get_extra_info("socket")
        trusted = (
            peer is not None
            and peer.family == socket.AF_UNIX
            and http_guard.peer_uid(peer) in self._quick.uids
        )
        self._reads = self._quick.reads if trusted else None

    def data_received(self, data: bytes) -> None:
        """Answer a read at once, or read requests, and note the body of the last one: the only one that can lack
        something.
        """
        if self._missing == 0 and self._reads is not None and self._is_idle():
            answer = self._reads.answer(data)
            if answer is not None and self.transport is not None:
                self._next_keepalive_close_time = self._loop.time() + self.keepalive_timeout
                text, ends = answer
                self.transport.write(text)
                if ends:
                    self.close()
                    self.transport.close()
                return
        if data and self._missing is not None:  # aiohttp itself calls with nothing, to read on
            left = missing(data) if self._missing == 0 else self._missing - len(data)
            self._missing = left if left is not None and left >= 0 else None
        super().data_received(data)
        if self._messages:
            self._last_body = self._messages[-1][1]

    def _is_idle(self) -> bool:
        """Whether nothing that has been asked here waits for its answer, and answers get away."""
        answered = self._request_count == self._answered and not self._messages
        return answered and not (self.writing_paused or self._close or self._force_close or self._upgraded)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio defines it so, aiohttp narrower
        """Answer what has been asked whole by a client that then closed its half; True keeps the other one open.

        Not a stream: its listener cannot be told from one that has gone.
        """
        request = self._current_request
        streams = request is not None and request.writer.output_size > 0
        waiting = self._request_count > self._answered and self._last_body.is_eof()
        self._half_closed = waiting and not streams
        return self._half_closed

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer; a refusal of aiohttp's own (417) as JSON."""
        if resp.status >= 400 and not resp.prepared and resp.content_type != "application/json":
            resp = error_response(resp.status, HcnCode.E_INVALIDARG, f"the request is refused: {resp.reason}")
            resp.force_close()
        finished = await super().finish_response(request, resp, start_time)
        self._answered += 1
        if self._half_closed and self._answered == self._request_count:
            self.close()
        return finished


def protocol_factory(runner: web.AppRunner) -> Callable[[], JsonProtocol]:
    """Return what makes the protocol of each connection, for ``loop.create_server`` and its like. Call when the
    runner is set up.
    """
    server, loop = runner.server, asyncio.get_running_loop()
    if server is None:
        raise RuntimeError("the runner is not set up")
    # None is aiohttp's way to say "no access log"
    quick = runner.app[READS]
    return lambda: JsonProtocol(quick, server, loop=loop, access_log=None)
