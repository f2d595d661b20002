"""The daemon: one node and its sockets, from start to SIGTERM. The data path outlives it.

Imports little by itself: the rest is imported while the kernel verifies the switch.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

import msgspec
import structlog

from samewire.node.config import NodeConfig
from samewire.node.lean import late_patterns
from samewire.node.opening import Opening
from samewire.node.runlock import lock_network, lock_run_dir
from samewire.node.testhooks import from_environment

if TYPE_CHECKING:
    from samewire.kube.source import Source
    from samewire.node.node import Node
    from samewire.node.package import Package
    from samewire.node.services import Services
    from samewire.node.watch import Watcher

log = structlog.get_logger(__name__)

Closer = Callable[[], Awaitable[None]]

_COLLECTOR: Final = (20_000, 20, 10)
"""Cycles are rare here, and a list of fifty thousand services makes millions of objects that stay."""
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
        self._closers.append(("lock", _async(lock.close)))
        lock.enter_context(lock_run_dir(config.run_dir))
        lock.enter_context(lock_network())
        with Opening(config, object_path) as opening:
            watcher = self._listener()
            node, package, source = await self._node_and_source(watcher, opening)
        from samewire.node.servers import serve

        services = _services(node, source) if source is not None and config.balances else None
        await serve(node, package, source, services, self._closers)
        watcher.run()
        self._closers.append(("watcher", watcher.close))
        if services is not None:
            self._closers.append(("services", services.close))
            await services.start()
        if source is not None and config.proxy_network:
            from samewire.overlay.controller import FlannelNodes

            others = FlannelNodes(source, node.service, config.proxy_network, config.kubernetes_name)
            self._closers.append(("other nodes", others.close))
            others.start()
        log.info("serving", http=str(config.http_socket), cni=str(config.cni_socket))

    def _listener(self) -> Watcher:
        from samewire.kernel.rtnetlink import LinkMonitor
        from samewire.node.watch import QUIET, Watcher

        watcher = Watcher(LinkMonitor(quiet=QUIET))
        self._closers.append(("monitor", _async(watcher.stop_listening)))
        return watcher

    async def _node_and_source(
        self, watcher: Watcher, opening: Opening
    ) -> tuple[Node, Package, Source | None]:
        """Bring the node up. While the kernel verifies its programs, import the servers and list Services."""
        from samewire.node.node import Node
        from samewire.node.package import Package

        config = self.config
        starting = asyncio.ensure_future(Node.start(config, watcher.listen, opening))
        source = None
        try:
            await asyncio.sleep(0)
            import samewire.node.lean_http  # before anything that imports aiohttp
            import samewire.node.servers

            package = Package()
            if config.balances:
                import samewire.node.services  # noqa: F401
            if config.follows:
                from samewire.node.cluster import listen

                source = await listen(config)
        finally:
            try:
                node = self.node = await starting
                self._closers.append(("node", node.close))
            finally:
                if source is not None:
                    self._closers.append(("source", source.close))
        return node, package, source


def _services(node: Node, source: Source) -> Services:
    from samewire.node.services import Services

    return Services(node, source)


async def run_daemon(config: NodeConfig) -> None:
    """Run until SIGTERM or SIGINT. Raises SamewireError when the start fails."""
    daemon = Daemon(config)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop.set)
    with late_patterns():
        await daemon.start(from_environment())
    gc.freeze()  # what is there now stays: the collector need not look at it again and again
    gc.set_threshold(*_COLLECTOR)
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
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(_json_line),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.BytesLoggerFactory(cast(BinaryIO, _Lines(sys.stderr.buffer))),
        cache_logger_on_first_use=True,
    )
    logging.getLogger().addHandler(_FromLibraries(logging.WARNING))


class _Lines:
    """A file for the log. What cannot be written (the disk is full, the reader gone) is lost, and fails nothing of what
    it tells.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, line: bytes) -> None:
        with suppress(OSError):
            self._file.write(line)

    def flush(self) -> None:
        with suppress(OSError):
            self._file.flush()


class _FromLibraries(logging.Handler):
    """What libraries say, in our form; but nothing of requests that are none: whoever reaches a port, a pod that of a
    health check for one, could fill the disk with them.
    """

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if type(error).__module__ != "aiohttp.http_exceptions":
            structlog.get_logger().log(record.levelno, record.getMessage(), exc_info=error, of=record.name)


def _json_line(event: object, **options: Any) -> bytes:
    """One line of the log; what msgspec has no form for (lone surrogates, whole numbers beyond 64 bits), json has."""
    try:
        return msgspec.json.encode(event, enc_hook=options["default"])
    except (ValueError, OverflowError):
        return json.dumps(event, **options).encode()


def _async(function: Callable[[], None]) -> Closer:
    async def call() -> None:
        function()

    return call
