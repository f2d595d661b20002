"""Answers of the HTTP API: JSON, and the error body that every failure has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

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

T = TypeVar("T")

PIECE: Final = 100
"""Values of a list that are made into JSON before others have their turn: some milliseconds."""

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


async def list_response(values: Sequence[T], text_of: Callable[[T], bytes]) -> web.Response:
    """Return a JSON list of what may be tens of thousands of values, whose making must not hold up changes.

    What a value's text says is true when that is made; the first of a long list may have changed when the last is.
    """
    texts: list[bytes] = []
    for begin in range(0, len(values), PIECE):
        if begin:
            await asyncio.sleep(0)
        texts += map(text_of, values[begin : begin + PIECE])
    return web.Response(body=b"[" + b",".join(texts) + b"]", content_type="application/json")


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
