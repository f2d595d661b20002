"""Answers of the HTTP API: JSON, and the error body that every failure has."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from samewire.errors import (
    Conflict,
    Exhausted,
    Invalid,
    NotFound,
    SamewireError,
    Unavailable,
    Unsupported,
)
from samewire.hcn.errors import HcnCode, HcnError

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


def json_response(value: Any, status: int = 200) -> web.Response:
    """Return a JSON answer."""
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def error_body(code: HcnCode, message: str) -> dict[str, Any]:
    """Return the error record of a failure."""
    return {"Success": False, "Error": message, "ErrorCode": int(code)}


def error_response(status: int, code: HcnCode, message: str) -> web.Response:
    """Return the answer to a request that failed."""
    return json_response(error_body(code, message), status)


def classify(error: SamewireError) -> tuple[int, HcnCode]:
    """Return the HTTP status and HRESULT of an error."""
    if isinstance(error, HcnError):
        if error.code is HcnCode.MANAGER_STOPPED:
            return 503, error.code
        if error.code in _NOT_FOUND:
            return 404, error.code
        return (409 if error.code in _CLASHES else 400), error.code
    if isinstance(error, Invalid) and "$.Policies" in error.path:
        return 400, HcnCode.INVALID_POLICY  # what only the switch can judge
    return next(
        ((status, code) for kind, status, code in _GENERAL if isinstance(error, kind)), (500, HcnCode.E_FAIL)
    )
