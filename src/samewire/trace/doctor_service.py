"""GET /v2/doctor: the health checks over a fresh snapshot."""

from __future__ import annotations

import asyncio

from aiohttp import web

from samewire.hcn.http import json_response
from samewire.trace.doctor import examine
from samewire.trace.snapshot import Level, SnapshotProvider


def routes(provider: SnapshotProvider) -> list[web.RouteDef]:
    """The doctor's endpoint, for the daemon's application."""

    async def handle(_: web.Request) -> web.Response:
        findings = await asyncio.to_thread(examine, await provider.snapshot())
        healthy = not any(finding.level is Level.ERROR for finding in findings)
        return json_response({"healthy": healthy, "findings": findings})

    return [web.get("/v2/doctor", handle)]
