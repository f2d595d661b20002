"""The daemon's own endpoints of the HTTP API; the tools' (traces, views, doctor) come from `samewire.trace`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import TYPE_CHECKING, Final

from aiohttp import web

from samewire.hcn.http import json_response
from samewire.node.health import health
from samewire.node.node import Node
from samewire.node.package import Package

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from samewire.kube.source import Source
    from samewire.node.services import Services
    from samewire.node.toolview import ToolView

Render = Callable[[], bytes]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

TOOLS: Final = {
    "/v2/doctor": "samewire.trace.doctor_service",
    "/v2/switch/trace": "samewire.trace.service",
    **{
        f"/v2/switch/{view}": "samewire.trace.view_service"
        for view in ("endpoints", "ports", "layers", "flows", "drops", "tables")
    },
}
"""The tools' endpoints, and the modules whose ``routes`` answer them."""

_POSTED: Final = frozenset({"/v2/switch/trace"})
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class LateMetrics:
    """The node's metrics. Their library is imported when they are asked for: not every node is scraped."""

    def __init__(self, node: Node, services: Services | None, package: Package) -> None:
        self._node = node
        self._services = services
        self._package = package
        self._registry: CollectorRegistry | None = None

    def render(self) -> bytes:
        """All metrics as text. Raises KernelError, Unavailable."""
        if self._registry is None:
            self._package.check("the metrics page")
        from samewire.node import metrics

        if self._registry is None:
            self._registry = metrics.make_registry(self._node, self._services)
        return metrics.render(self._registry)


def tool_routes(view: ToolView, package: Package) -> list[web.RouteDef]:
    """The tools' endpoints. What answers them, the simulator among it, is imported when it is asked."""
    answering: dict[str, dict[str, Handler]] = {}

    def late(path: str, module: str) -> web.RouteDef:
        async def handle(request: web.Request) -> web.StreamResponse:
            if module not in answering:
                package.check(path)
                found: list[web.RouteDef] = import_module(module).routes(view)
                answering[module] = {route.path: route.handler for route in found}
            return await answering[module][path](request)

        return web.post(path, handle) if path in _POSTED else web.get(path, handle)

    return [late(path, module) for path, module in TOOLS.items()]


def metrics_handler(render: Render) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Answers a scrape."""

    async def get_metrics(_: web.Request) -> web.Response:
        return web.Response(body=render(), headers={"Content-Type": _CONTENT_TYPE})

    return get_metrics


def node_routes(node: Node, source: Source | None, render: Render) -> list[web.RouteDef]:
    """``/v2/health``, ``/v2/switch/diff`` and ``/v2/metrics``."""

    async def get_health(_: web.Request) -> web.Response:
        return json_response(health(node, source))

    async def get_diff(_: web.Request) -> web.Response:
        found = await node.auditor.compare()
        return json_response({"healthy": not found, "differences": found})

    return [
        web.get("/v2/health", get_health),
        web.get("/v2/switch/diff", get_diff),
        web.get("/v2/metrics", metrics_handler(render)),
    ]
