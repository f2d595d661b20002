"""The HTTP API of the daemon on a unix socket: HCN objects in JSON (docs/api.md).

Every answer to a wrong request is ``{"Success": false, "Error": "...", "ErrorCode": <HRESULT>}``. Who may ask is
`samewire.hcn.http_guard`'s business, on top of the socket's mode 0600.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from samewire.accept import BACKLOG, Connections, Door, tcp_listener
from samewire.errors import Conflict, SamewireError, Unavailable
from samewire.hcn.errors import HcnCode
from samewire.hcn.http_answers import classify, error_response, json_response
from samewire.hcn.http_guard import guard
from samewire.hcn.http_objects import object_routes
from samewire.hcn.http_protocol import READS, QuickReads, protocol_factory
from samewire.hcn.http_reads import Reads
from samewire.hcn.query import Rendered
from samewire.hcn.schema import Kind
from samewire.hcn.service import HnsService
from samewire.hcn.v1.http import v1_routes

__all__ = ["HttpServer", "classify", "error_response", "json_response", "listen", "make_app"]

VERSION = {"Major": 15, "Minor": 4}
MAX_REQUEST_BYTES = 8 << 20
"""A whole list of rules, or all sets of a cluster at once as policy agents send them, is several MB."""
CLOSE_TIMEOUT_S = 5.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = structlog.get_logger(__name__)

_HTTP_CODES = {404: HcnCode.ERROR_NOT_FOUND, 405: HcnCode.REQUEST_UNSUPPORTED, 403: HcnCode.E_ACCESSDENIED}


def make_app(
    service: HnsService,
    extra_routes: Sequence[web.AbstractRouteDef] = (),
    allowed_uids: Collection[int] = (),
    token: str = "",
) -> web.Application:
    """Return the application; user id 0 and ``allowed_uids`` may use it, and over TCP who has the ``token``.

    ``extra_routes`` are the tools' endpoints; they share the error bodies and the authorisation, and raise
    SamewireError.
    """
    app = web.Application(
        middlewares=[_error_middleware, guard(allowed_uids, token)],
        client_max_size=MAX_REQUEST_BYTES,
    )
    rendered = {kind: Rendered(kind) for kind in Kind}
    app.add_routes([web.get("/v2/version", _version), *object_routes(service, rendered), *v1_routes(service)])
    app.add_routes(extra_routes)
    app.on_shutdown.append(_end_streams(service))
    app[READS] = QuickReads(Reads(service, rendered), frozenset({0, *allowed_uids}))
    return app


def _end_streams(service: HnsService) -> Callable[[web.Application], Awaitable[None]]:
    async def end(_: web.Application) -> None:
        service.notifications.close()

    return end


class HttpServer:
    """An application listening on a unix socket of mode 0600, and at ``tcp`` (host, port) where that is given."""

    def __init__(self, app: web.Application, path: Path, tcp: tuple[str, int] | None = None) -> None:
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=CLOSE_TIMEOUT_S)
        self._path = path
        self._tcp = tcp
        self._doors: list[Door] = []

    async def start(self) -> None:
        """Listen. Raises Conflict when another process does already, Unavailable when the socket cannot be
        made.
        """
        listener = listen(self._path)
        await self._runner.setup()
        protocol = protocol_factory(self._runner)
        self._doors = [Connections(protocol).door(listener)]
        if self._tcp is None:
            return
        host, port = self._tcp
        try:
            self._doors.append(Connections(protocol).door(tcp_listener((host,), port)))
        except OSError as error:
            await self.close()
            raise Unavailable(f"{host}:{port}", f"the HNS listener cannot be had: {error}") from error

    def listen_again(self) -> None:
        """Make the socket anew, whose file is gone. Raises Conflict, Unavailable."""
        self._doors[0].move(listen(self._path))

    async def close(self) -> None:
        """Stop listening, finish the requests under way (for `CLOSE_TIMEOUT_S`), remove the socket."""
        for door in self._doors:
            door.close()
        await self._runner.cleanup()
        self._path.unlink(missing_ok=True)


def listen(path: Path) -> socket.socket:
    """Return a unix socket that listens at a path, of mode 0600 from the first moment. Raises Conflict when another
    process does already, Unavailable when it cannot be made.
    """
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(path)) == 0:
                    raise Conflict(f"another process listens on {path}")
            path.unlink()
        listener = socket.socket(socket.AF_UNIX)
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(mask)
    except OSError as error:
        raise Unavailable(str(path), str(error)) from error
    return listener


@web.middleware
async def _error_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except SamewireError as error:
        status, code = classify(error)
        return error_response(status, code, str(error))
    except web.HTTPException as error:
        code = _HTTP_CODES.get(error.status, HcnCode.E_INVALIDARG)
        response = error_response(
            error.status, code, f"{request.method} {request.path[:256]}: {error.reason}"
        )
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except (HttpProcessingError, web.RequestPayloadError) as error:
        return error_response(400, HcnCode.E_INVALIDARG, f"the request cannot be read: {error}"[:256])
    except Exception as error:
        if error is request.content.exception():
            # Who asked has gone before all of the request had come.
            return error_response(400, HcnCode.E_INVALIDARG, "the request breaks off")
        log.exception("a request failed by a bug", method=request.method, path=request.path[:256])
        return error_response(500, HcnCode.E_FAIL, "internal error; the daemon's log has the details")


async def _version(_: web.Request) -> web.Response:
    return json_response(VERSION)
