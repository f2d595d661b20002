"""The HTTP servers that load balancers and kubelets ask: health check node ports, ``/healthz`` and ``/livez``.

Bodies, headers and status codes are kube-proxy's. A port that is taken is logged once and tried again; nothing else
waits for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec
import structlog
from aiohttp import web

from samewire.accept import ANY, Connections, Door, tcp_listener
from samewire.kube.model import Key
from samewire.proxy.health import ProxyHealth

log = structlog.get_logger(__name__)

RETRY_S: Final = 5.0
_HEADERS: Final = {"X-Content-Type-Options": "nosniff"}
_FAMILIES: Final = ("IPv4", "IPv6")


class Check(NamedTuple):
    """One service's health check: its port, and its ready endpoints on this node."""

    port: int
    local_endpoints: int


class HealthServer:
    """All of them in one. `update` says which health checks there are; a failed `bind` is tried again by itself.

    ``addresses``: those of the node at which health checks are answered, as node ports are; None = all.
    """

    def __init__(
        self,
        health: ProxyHealth,
        healthz: tuple[str, int] | None,
        addresses: Callable[[], tuple[str, ...] | None] = lambda: None,
    ) -> None:
        self._health = health
        self._healthz = healthz
        self._addresses = addresses
        self._checks: Mapping[Key, Check] = {}
        self._services: dict[int, Key] = {}
        self._doors: dict[int, Door] = {}
        self._complained: set[int] = set()
        server = web.Server(self._answer, access_log=None)
        self._runner = web.ServerRunner(server)
        self._connections = Connections(server)
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.answers: dict[tuple[str, int], int] = {}
        """How often each of healthz and livez was answered with which status."""

    async def start(self) -> None:
        """Begin to serve; ports are opened as they become free."""
        await self._runner.setup()
        self._wake.set()
        self._task = asyncio.create_task(self._keep_open())

    async def close(self) -> None:
        """Stop serving."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        for door in self._doors.values():
            door.close()
        await self._runner.cleanup()

    def update(self, checks: Mapping[Key, Check]) -> None:
        """These are the health checks from now on (the mapping is kept and read live)."""
        self._checks = checks
        services = {check.port: key for key, check in sorted(checks.items(), reverse=True)}
        if services != self._services:
            self._services = services
            self._wake.set()

    @property
    def open_ports(self) -> frozenset[int]:
        """The ports that are served now."""
        return frozenset(self._doors)

    async def _keep_open(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._open():
                asyncio.get_running_loop().call_later(RETRY_S, self._wake.set)

    def _open(self) -> bool:
        """Close what is not wanted and open what is; whether something is missing."""
        wanted: dict[int, tuple[str, ...]] = dict.fromkeys(self._services, ANY)
        if self._healthz is not None:
            host, port = self._healthz
            wanted[port] = (host,) if host else ANY
        for port in [port for port in self._doors if port not in wanted]:
            self._doors.pop(port).close()
        self._complained &= wanted.keys()
        for port, hosts in wanted.items():
            if port not in self._doors:
                self._open_port(port, hosts)
        return len(self._doors) < len(wanted)

    def _open_port(self, port: int, hosts: tuple[str, ...]) -> None:
        try:
            listener = tcp_listener(hosts, port)
        except OSError as error:
            if port not in self._complained:
                self._complained.add(port)
                log.warning("a health port cannot be opened; trying again", port=port, error=str(error))
            return
        self._doors[port] = self._connections.door(listener)
        self._complained.discard(port)

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        transport = request.transport
        address, port = transport.get_extra_info("sockname")[:2] if transport is not None else ("", 0)
        if self._healthz is not None and port == self._healthz[1]:
            return self._proxy_health(request.path)
        key = self._services.get(port)
        check = self._checks.get(key) if key is not None else None
        offered = self._addresses()  # the listener has all: they come and go
        elsewhere = offered is not None and address.removeprefix("::ffff:") not in offered
        if key is None or check is None or elsewhere:
            return web.Response(status=404)
        return self._service_health(key, check)

    def _service_health(self, key: Key, check: Check) -> web.Response:
        healthy = self._health.healthy(time.monotonic())
        body = (
            "{\n"
            '\t"service": {\n'
            f'\t\t"namespace": {_quoted(key[0])},\n'
            f'\t\t"name": {_quoted(key[1])}\n'
            "\t},\n"
            f'\t"localEndpoints": {check.local_endpoints},\n'
            f'\t"serviceProxyHealthy": {_bool(healthy)}\n'
            "}"
        )
        weight = {"X-Load-Balancing-Endpoint-Weight": str(check.local_endpoints)}
        return _json(body, 200 if check.local_endpoints and healthy else 503, weight)

    def _proxy_health(self, path: str) -> web.Response:
        if path not in ("/healthz", "/livez"):
            return web.Response(status=404)
        now_s = time.monotonic()
        now = _text(time.time())
        healthy = self._health.healthy(now_s)
        updated = self._last_update(now_s)
        fields: dict[str, object] = {"lastUpdated": updated, "currentTime": now}
        serving = healthy
        if path == "/healthz":
            fields["nodeEligible"] = self._health.node_eligible
            serving = healthy and self._health.node_eligible
        fields["healthy"] = healthy
        if self._health.updated_s is not None:  # one pass programs both families
            fields["status"] = {key: {"lastUpdated": updated, "healthy": healthy} for key in _FAMILIES}
        if serving:
            fields["lastUpdated"] = now
        status = 200 if serving else 503
        self.answers[path[1:], status] = self.answers.get((path[1:], status), 0) + 1
        return _json(msgspec.json.encode(fields).decode(), status)

    def _last_update(self, now_s: float) -> str:
        at_s = self._health.updated_s
        return _text(time.time() - (now_s - at_s)) if at_s is not None else "0001-01-01T00:00:00Z"


def _json(body: str, status: int, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        body=body.encode(),
        status=status,
        content_type="application/json",
        headers={**_HEADERS, **(headers or {})},
    )


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()


def _bool(value: bool) -> str:
    return "true" if value else "false"


def _text(at_s: float) -> str:
    """A time as Go writes it into JSON."""
    return datetime.fromtimestamp(at_s, UTC).isoformat().replace("+00:00", "Z")
