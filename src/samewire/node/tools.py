"""The daemon's own endpoints of the HTTP API; the tools' (traces, views, doctor) come from `samewire.trace`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiohttp import web

from samewire.hcn.http import json_response
from samewire.node.health import health
from samewire.node.node import Node

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from samewire.node.services import Services

Render = Callable[[], bytes]

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class LateMetrics:
    """The node's metrics. Their library is imported when they are asked for: not every node is scraped."""

    def __init__(self, node: Node, services: Services | None) -> None:
        self._node = node
        self._services = services
        self._registry: CollectorRegistry | None = None

    def render(self) -> bytes:
        """All metrics as text. Raises KernelError."""
        from samewire.node import metrics

        if self._registry is None:
            self._registry = metrics.make_registry(self._node, self._services)
        return metrics.render(self._registry)


def metrics_handler(render: Render) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Answers a scrape."""

    async def get_metrics(_: web.Request) -> web.Response:
        return web.Response(body=render(), headers={"Content-Type": _CONTENT_TYPE})

    return get_metrics


def node_routes(node: Node, services: Services | None, render: Render) -> list[web.RouteDef]:
    """``/v2/health``, ``/v2/switch/diff`` and ``/v2/metrics``."""

    async def get_health(_: web.Request) -> web.Response:
        return json_response(health(node, services))

    async def get_diff(_: web.Request) -> web.Response:
        found = await node.auditor.compare()
        return json_response({"healthy": not found, "differences": found})

    return [
        web.get("/v2/health", get_health),
        web.get("/v2/switch/diff", get_diff),
        web.get("/v2/metrics", metrics_handler(render)),
    ]
