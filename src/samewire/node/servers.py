"""The servers of a node: the HTTP API with the tools' views, CNI, and metrics.

Imported while the kernel verifies the switch's programs: what they need takes long to import. Import
`samewire.node.lean_http` before it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiohttp import web

from samewire.accept import ANY, Connections, tcp_listener
from samewire.cni.server import CniServer
from samewire.cni.verbs import CniPlugin
from samewire.errors import Unavailable
from samewire.hcn.http import HttpServer, make_app
from samewire.hcn.http_guard import read_token
from samewire.node.cni_backend import NodeBackend
from samewire.node.node import Node
from samewire.node.package import Package
from samewire.node.serviceview import service_routes
from samewire.node.tools import LateMetrics, Render, metrics_handler, node_routes, tool_routes
from samewire.node.toolview import ToolView

if TYPE_CHECKING:
    from samewire.kube.source import Source
    from samewire.node.services import Services

Closer = Callable[[], Awaitable[None]]


async def serve(
    node: Node,
    package: Package,
    source: Source | None,
    services: Services | None,
    closers: list[tuple[str, Closer]],
) -> None:
    """Start them; what ends each is appended to ``closers``. Raises SamewireError."""
    config = node.config
    render = LateMetrics(node, services, package).render

    tools = ToolView(node, package, source, services)

    async def close_tools() -> None:
        tools.close()

    closers.append(("tools", close_tools))
    routes = [
        *node_routes(node, source, render),
        *tool_routes(tools, package),
        *service_routes(node, services),
    ]
    token = read_token(config.hns_token_file) if config.hns_address is not None else ""
    app = make_app(node.service, routes, config.allowed_uids, token)
    http = HttpServer(app, config.http_socket, config.hns_address)
    await http.start()
    closers.append(("http", http.close))
    cni = CniServer(CniPlugin(NodeBackend(node)), config.cni_socket, allowed_uids=config.allowed_uids)
    await cni.start()
    closers.append(("cni", cni.close))
    node.sockets = {config.http_socket: http.listen_again, config.cni_socket: cni.listen_again}
    if config.metrics_address is not None:
        closers.append(("metrics", await _serve_metrics(config.metrics_address, render)))


async def _serve_metrics(address: tuple[str, int], render: Render) -> Closer:
    app = web.Application()
    app.router.add_get("/metrics", metrics_handler(render))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    host, port = address
    try:
        listener = tcp_listener((host,) if host else ANY, port)
    except OSError as error:
        await runner.cleanup()
        raise Unavailable(f"metrics_listen {host}:{port}", str(error)) from error
    assert runner.server is not None
    door = Connections(runner.server).door(listener)

    async def close() -> None:
        door.close()
        await runner.cleanup()

    return close
