"""HNSCall over HTTP: ``<method> /v1<path>``, answered with the envelope and status 200 whatever comes of it."""

from __future__ import annotations

from typing import Any

import structlog
from aiohttp import web

from samewire.errors import SamewireError
from samewire.hcn.errors import HcnCode
from samewire.hcn.http_answers import classify, error_body, json_response
from samewire.hcn.service import HnsService
from samewire.hcn.v1.calls import V1Calls

log = structlog.get_logger(__name__)

EXACT = ("Element not found.", "This endpoint is already attached to the switch.")
"""Texts that v1 clients compare as a whole."""


def v1_routes(service: HnsService) -> list[web.RouteDef]:
    """Return the route of all v1 calls."""
    calls = V1Calls(service)

    async def serve(request: web.Request) -> web.Response:
        return json_response(
            await envelope(calls, request.method, request.match_info["path"], await request.read())
        )

    return [web.route("*", "/v1/{path:.*}", serve)]


async def envelope(calls: V1Calls, method: str, path: str, body: bytes) -> dict[str, Any]:
    """Return HNS's answer to a call, which never fails itself."""
    try:
        output = await calls.call(method, path, body)
    except SamewireError as error:
        text = str(error)
        return error_body(
            classify(error)[1], next((exact for exact in EXACT if text.startswith(exact)), text)
        )
    except Exception:
        log.exception("a call failed by a bug", method=method[:8], path=path[:256])
        return error_body(HcnCode.E_FAIL, "internal error; the daemon's log has the details")
    answer = {"Success": True, "Error": "", "ErrorCode": 0}
    return answer if output is None else {**answer, "Output": output}
