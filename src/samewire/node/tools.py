"""The daemon's own endpoints of the HTTP API; the tools' (traces, views, doctor) come from `samewire.trace`."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CollectorRegistry

from samewire.hcn.http import json_response
from samewire.node.health import health
from samewire.node.metrics import CONTENT_TYPE, render
from samewire.node.node import Node


def node_routes(node: Node, registry: CollectorRegistry) -> list[web.RouteDef]:
    """``/v2/health``, ``/v2/switch/diff`` and ``/v2/metrics``."""

    async def get_health(_: web.Request) -> web.Response:
        return json_response(health(node))

    async def get_diff(_: web.Request) -> web.Response:
        found = await node.auditor.compare()
        return json_response({"healthy": not found, "differences": found})

    async def get_metrics(_: web.Request) -> web.Response:
        return web.Response(body=render(registry), headers={"Content-Type": CONTENT_TYPE})

    return [
        web.get("/v2/health", get_health),
        web.get("/v2/switch/diff", get_diff),
        web.get("/v2/metrics", get_metrics),
    ]
