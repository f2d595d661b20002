"""The daemon: one node and its sockets, from start to SIGTERM. The data path outlives it."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog
from aiohttp import web

from samewire.cni.server import CniServer
from samewire.cni.verbs import CniPlugin
from samewire.errors import Unavailable
from samewire.hcn.http import HttpServer, make_app
from samewire.hcn.http_guard import read_token
from samewire.kernel.rtnetlink import LinkMonitor
from samewire.node.cni_backend import NodeBackend
from samewire.node.config import NodeConfig
from samewire.node.node import Node
from samewire.node.runlock import lock_run_dir
from samewire.node.serviceview import service_routes
from samewire.node.testhooks import from_environment
from samewire.node.tools import LateMetrics, Render, metrics_handler, node_routes
from samewire.node.toolview import ToolView
from samewire.node.watch import QUIET, Watcher
from samewire.trace import doctor_service, view_service
from samewire.trace import service as trace_service

if TYPE_CHECKING:
    from samewire.node.services import Services

log = structlog.get_logger(__name__)

Closer = Callable[[], Awaitable[None]]

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Daemon:
    """The servers of one node. Use `run_daemon`; tests may start and close it themselves."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self._closers: list[tuple[str, Closer]] = []
        self.node: Node | None = None

    async def start(self, object_path: Path | None = None) -> None:
        """Bring everything up; returns when requests are served. Raises SamewireError."""
        try:
            await self._start(object_path)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close in reverse order of the start. What fails is logged."""
        while self._closers:
            name, closer = self._closers.pop()
            try:
                await closer()
            except Exception:
                log.exception("closing failed", part=name)
        self.node = None

    async def _start(self, object_path: Path | None) -> None:
        config = self.config
        config.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock = ExitStack()
        lock.enter_context(lock_run_dir(config.run_dir))
        self._closers.append(("lock", _async(lock.close)))
        watcher = Watcher(LinkMonitor(quiet=QUIET))
        self._closers.append(("monitor", _async(watcher.stop_listening)))
        node, services = await self._node_and_services(watcher, object_path)
        render = LateMetrics(node, services).render
        tools = ToolView(node)
        self._closers.append(("tools", _async(tools.close)))
        routes = [
            *node_routes(node, render),
            *trace_service.routes(tools),
            *view_service.routes(tools),
            *doctor_service.routes(tools),
            *service_routes(node, services),
        ]
        token = read_token(config.hns_token_file) if config.hns_address is not None else ""
        app = make_app(node.service, routes, config.allowed_uids, token)
        http = HttpServer(app, config.http_socket, config.hns_address)
        await http.start()
        self._closers.append(("http", http.close))
        cni = CniServer(CniPlugin(NodeBackend(node)), config.cni_socket, allowed_uids=config.allowed_uids)
        await cni.start()
        self._closers.append(("cni", cni.close))
        if config.metrics_address is not None:
            runner = await _serve_metrics(config.metrics_address, render)
            self._closers.append(("metrics", runner.cleanup))
        watcher.run()
        self._closers.append(("watcher", watcher.close))
        if services is not None:
            self._closers.append(("services", services.close))
            await services.start()
        log.info("serving", http=str(config.http_socket), cni=str(config.cni_socket))

    async def _node_and_services(
        self, watcher: Watcher, object_path: Path | None
    ) -> tuple[Node, Services | None]:
        """Bring the node up, and list Services while the kernel verifies its programs."""
        config = self.config
        starting = asyncio.ensure_future(Node.start(config, watcher.listen, object_path))
        source = None
        try:
            if config.balances:
                await asyncio.sleep(0)
                from samewire.node.services import Services, listen

                source = await listen(config)
        finally:
            try:
                node = self.node = await starting
                self._closers.append(("node", node.close))
            finally:
                if source is not None:
                    self._closers.append(("source", source.close))
        return node, Services(node, source) if source is not None else None


async def run_daemon(config: NodeConfig) -> None:
    """Run until SIGTERM or SIGINT. Raises SamewireError when the start fails."""
    daemon = Daemon(config)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop.set)
    await daemon.start(from_environment())
    gc.freeze()  # what is there now stays: the collector need not look at it again and again
    gc.enable()
    try:
        await stop.wait()
        log.info("stopping; the data path stays")
    finally:
        await daemon.close()


def configure_logging() -> None:
    """One JSON object a line on stderr."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


async def _serve_metrics(address: tuple[str, int], render: Render) -> web.AppRunner:
    app = web.Application()
    app.router.add_get("/metrics", metrics_handler(render))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    host, port = address
    try:
        await web.TCPSite(runner, host or None, port).start()
    except OSError as error:
        await runner.cleanup()
        raise Unavailable(f"metrics_listen {host}:{port}", str(error)) from error
    return runner


def _async(function: Callable[[], None]) -> Closer:
    async def call() -> None:
        function()

    return call
