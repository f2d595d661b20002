"""The HTTP API of the daemon on a unix socket: HCN objects in JSON (docs/api.md).

Every answer to a wrong request is ``{"Success": false, "Error": "...", "ErrorCode": <HRESULT>}``. Who may
ask is decided by the kernel's word on the peer (SO_PEERCRED), on top of the socket's mode 0600.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from samewire.errors import (
    Conflict,
    Exhausted,
    Invalid,
    NotFound,
    SamewireError,
    Unavailable,
    Unsupported,
)
from samewire.hcn.codec import decode_modify, decode_object
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.jsontext import parse_json
from samewire.hcn.query import find, render
from samewire.hcn.schema import Kind
from samewire.hcn.service import HnsService

VERSION = {"Major": 15, "Minor": 4}
MAX_REQUEST_BYTES = 1 << 20
CLOSE_TIMEOUT_S = 5.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = structlog.get_logger(__name__)

_NOT_FOUND = frozenset(
    code for code in HcnCode if code.name.endswith("_NOT_FOUND") or code is HcnCode.ENDPOINT_NOT_ATTACHED
)
_CLASHES = frozenset(code for code in HcnCode if code.name.endswith(("_EXISTS", "_ATTACHED", "_REFERENCES")))
_GENERAL: list[tuple[type[SamewireError], int, HcnCode]] = [
    (Invalid, 400, HcnCode.E_INVALIDARG),
    (NotFound, 404, HcnCode.ERROR_NOT_FOUND),
    (Conflict, 409, HcnCode.OBJECT_ALREADY_EXISTS),
    (Exhausted, 507, HcnCode.E_OUTOFMEMORY),
    (Unsupported, 501, HcnCode.E_NOTIMPL),
    (Unavailable, 503, HcnCode.RPC_SERVER_UNAVAILABLE),
]
_HTTP_CODES = {404: HcnCode.ERROR_NOT_FOUND, 405: HcnCode.REQUEST_UNSUPPORTED, 403: HcnCode.E_ACCESSDENIED}


def json_response(value: Any, status: int = 200) -> web.Response:
    """Return a JSON answer."""
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def error_response(status: int, code: HcnCode, message: str) -> web.Response:
    """Return the answer to a request that failed."""
    return json_response({"Success": False, "Error": message, "ErrorCode": int(code)}, status)


def classify(error: SamewireError) -> tuple[int, HcnCode]:
    """Return the HTTP status and HRESULT of an error."""
    if isinstance(error, HcnError):
        if error.code in _NOT_FOUND:
            return 404, error.code
        return (409 if error.code in _CLASHES else 400), error.code
    return next(
        ((status, code) for kind, status, code in _GENERAL if isinstance(error, kind)), (500, HcnCode.E_FAIL)
    )


def make_app(
    service: HnsService,
    extra_routes: Sequence[web.AbstractRouteDef] = (),
    allowed_uids: Collection[int] = (),
) -> web.Application:
    """Return the application; user id 0 and ``allowed_uids`` may use it.

    ``extra_routes`` are the tools' endpoints; they share the error bodies and the authorisation, and raise
    SamewireError.
    """
    app = web.Application(
        middlewares=[_error_middleware, _peer_middleware(frozenset({0, *allowed_uids}))],
        client_max_size=MAX_REQUEST_BYTES,
    )
    app.add_routes([web.get("/v2/version", _version), *_object_routes(service), *extra_routes])
    return app


class HttpServer:
    """An application listening on a unix socket of mode 0600."""

    def __init__(self, app: web.Application, path: Path) -> None:
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=CLOSE_TIMEOUT_S)
        self._path = path

    async def start(self) -> None:
        """Listen. Raises Conflict when another process does already, Unavailable when the socket cannot be
        made.
        """
        try:
            listener = listen(self._path)
        except OSError as error:
            raise Unavailable(str(self._path), str(error)) from error
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()

    async def close(self) -> None:
        """Stop listening, finish the requests under way (for `CLOSE_TIMEOUT_S`), remove the socket."""
        await self._runner.cleanup()
        self._path.unlink(missing_ok=True)


def listen(path: Path) -> socket.socket:
    """Return a unix socket bound to a path, of mode 0600 from the first moment. Raises Conflict, OSError."""
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise Conflict(f"another process listens on {path}")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(mask)
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
    except Exception:
        log.exception("a request failed by a bug", method=request.method, path=request.path[:256])
        return error_response(500, HcnCode.E_FAIL, "internal error; the daemon's log has the details")


def _peer_middleware(allowed_uids: frozenset[int]) -> Any:
    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        uid = _peer_uid(request)
        if uid not in allowed_uids:
            raise HcnForbidden(f"user id {uid} may not use this socket")
        return await handler(request)

    return check


class HcnForbidden(web.HTTPForbidden):
    """The peer is nobody we serve."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason=reason)


def _peer_uid(request: web.Request) -> int:
    """Return the user id of the process that connected, -1 when the connection is gone."""
    transport = request.transport
    peer = transport.get_extra_info("socket") if transport else None
    if peer is None:
        return -1
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


async def _version(_: web.Request) -> web.Response:
    return json_response(VERSION)


def _object_routes(service: HnsService) -> list[web.RouteDef]:
    routes = []
    for kind in Kind:
        collection, item = f"/v2/{kind.value}", f"/v2/{kind.value}/{{id}}"
        handlers = _Handlers(service, kind)
        routes += [
            web.get(collection, handlers.list),
            web.post(collection, handlers.create),
            web.get(item, handlers.get),
            web.post(item, handlers.modify),
            web.delete(item, handlers.delete),
        ]
    routes.append(web.get("/v2/endpoints/{id}/stats", _Handlers(service, Kind.ENDPOINT).stats))
    return routes


class _Handlers:
    """The requests for one kind of object."""

    def __init__(self, service: HnsService, kind: Kind) -> None:
        self._service = service
        self._kind = kind

    async def list(self, request: web.Request) -> web.Response:
        view = self._service.view
        found = find(view, self._kind, request.query.get("filter", ""))
        return json_response([render(view, value) for value in found])

    async def create(self, request: web.Request) -> web.Response:
        value = decode_object(self._kind, parse_json(await request.read()))
        return json_response(render(self._service.view, await self._service.create(self._kind, value)), 201)

    async def get(self, request: web.Request) -> web.Response:
        return json_response(render(self._service.view, self._service.get(self._kind, _id(request))))

    async def modify(self, request: web.Request) -> web.Response:
        change = decode_modify(self._kind, parse_json(await request.read()))
        value = await self._service.modify(self._kind, _id(request), change)
        return json_response(render(self._service.view, value))

    async def delete(self, request: web.Request) -> web.Response:
        await self._service.delete(self._kind, _id(request))
        return web.Response(status=204)

    async def stats(self, request: web.Request) -> web.Response:
        return json_response(await self._service.endpoint_stats(_id(request)))


def _id(request: web.Request) -> str:
    return request.match_info["id"][:64]
