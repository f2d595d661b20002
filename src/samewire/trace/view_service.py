"""GET /v2/switch/endpoints|ports|layers|flows|drops|tables: the switch as it is now."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from itertools import islice
from typing import Any

import msgspec
from aiohttp import web

from samewire.errors import Conflict, Invalid, NotFound, there
from samewire.hcn.http import json_response
from samewire.trace.context import TraceContext
from samewire.trace.flows import flow_rows
from samewire.trace.model import FlowRow, PortRow
from samewire.trace.names import Names, find_endpoint
from samewire.trace.views import (
    Owners,
    drop_event,
    drop_rows,
    flow_summary,
    layer_row,
    port_rows,
    route_owners,
    with_proxies,
)
from samewire.vfp.constants import TICK_SHIFT
from samewire.vfp.model import Entries
from samewire.vfp.render import entry_json
from samewire.vfp.tables import TABLES, DropEvent

_RULE_COUNTS = ("sw_rule_counts", "sw_service_counts", "sw_drops")
_SPECIAL = ("uplink", "tunnel", "host")
_NAMES_S = 1.0  # drops come in floods; reading the names for each one would cost more than the rest
_ROWS_AT_ONCE = 500
_HANG_UP_S = 2.0  # how long a hung-up client may go unnoticed


def routes(context: TraceContext) -> list[web.RouteDef]:
    """The views' endpoints, for the daemon's application."""
    views = _Views(context)
    return [
        web.get("/v2/switch/endpoints", views.endpoints),
        web.get("/v2/switch/ports", views.ports),
        web.get("/v2/switch/layers", views.layers),
        web.get("/v2/switch/flows", views.flows),
        web.get("/v2/switch/drops", views.drops),
        web.get("/v2/switch/tables", views.tables),
    ]


class _Views:
    """All take ``?endpoint=`` with any name of an endpoint where one port is meant. Raise NotFound, Conflict."""

    def __init__(self, context: TraceContext) -> None:
        self._context = context

    async def endpoints(self, request: web.Request) -> web.Response:
        _check_parameters(request, "endpoint")
        query = request.query.get("endpoint", "")
        found = self._context.endpoints()
        return json_response([find_endpoint(found, query)] if query else found)

    async def ports(self, request: web.Request) -> web.Response:
        _check_parameters(request, "endpoint")
        read = await self._read("sw_config", "sw_ports", "sw_vnis", "sw_drops")
        rows = port_rows(read, self._names())
        query = request.query.get("endpoint", "")
        if query in _SPECIAL:
            rows = [row for row in rows if row.kind == query]
        elif query:
            port = self._port(request)
            rows = [row for row in rows if row.id == port]
        return json_response(rows)

    async def layers(self, request: web.Request) -> web.Response:
        _check_parameters(request, "endpoint", "object")
        compiled = [table.name for table in TABLES.values() if table.compiled]
        counts = {"sw_flow_counts": self._context.rows("sw_flow_counts")}
        tables = {**await self._read(*compiled, *_RULE_COUNTS), **counts}
        balancers, only = self._context.balancer_owners(), request.query.get("object", "").upper()
        query = request.query.get("endpoint", "")
        if query in _SPECIAL:
            found = [row.id for row in port_rows(tables, self._names()) if row.kind == query]
            if not found:
                raise NotFound("port", query)
            return json_response(await self._layers(tables, found[0], Owners(balancers), only))
        if not query:
            raise Invalid(
                "endpoint", f"layers of which port? an endpoint's name, or one of {', '.join(_SPECIAL)}"
            )
        port = self._port(request)
        owners = Owners(balancers, route_owners(self._context.routes(port)))
        row = await self._layers(tables, port, owners, only)
        return json_response(with_proxies(row, self._context.proxies(port), only))

    async def _layers(self, tables: Entries, port: int, owners: Owners, only: str) -> PortRow:
        """A port may have very many rules, and an index is made of them all: work for a thread."""
        interface = self._context.name_of_port(port)
        names = Names(self._context.endpoints(), lambda ifindex: interface)

        def work() -> PortRow:
            return layer_row(tables, names, port, owners, only, self._context.acl_names(port))

        return await asyncio.to_thread(work)

    async def flows(self, request: web.Request) -> web.StreamResponse:
        _check_parameters(request, "endpoint", "summary", "limit")
        limit = _limit(request)
        if request.query.get("summary"):
            return json_response(flow_summary(await self._read("sw_counters")))
        port = self._port(request) if request.query.get("endpoint") else 0
        counts = {"sw_flow_counts": self._context.rows("sw_flow_counts")}
        tables = {**await self._read("sw_config", "sw_flows"), **counts}
        # Many rows are work for a thread, which must not ask for the names of devices; pods have theirs.
        names = Names(self._context.endpoints(), lambda ifindex: "")
        now_tick = time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> TICK_SHIFT
        return await _listed(request, islice(flow_rows(tables, names, now_tick, port), limit))

    async def drops(self, request: web.Request) -> web.StreamResponse:
        _check_parameters(request, "endpoint", "watch")
        query = request.query.get("endpoint", "")
        if query in _SPECIAL:
            port = await self._special(query)
        else:
            port = self._port(request) if query else 0
        if request.query.get("watch"):
            return await self._watch(request, port)
        return json_response(drop_rows(await self._read("sw_drops"), self._names(), port))

    async def tables(self, request: web.Request) -> web.Response:
        _check_parameters(request, "name")
        name = request.query.get("name", "")
        if name and name not in TABLES:
            raise NotFound("table", name)
        compiled = [table.name for table in TABLES.values() if table.compiled]
        tables = await self._read(*([name] if name else compiled))
        return json_response(await asyncio.to_thread(_tables_json, tables))

    async def _watch(self, request: web.Request, port: int) -> web.StreamResponse:
        """One JSON line a dropped packet, until the client hangs up."""
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        loop = asyncio.get_running_loop()
        names, read_at = self._names(), loop.time()
        async with aclosing(_while_connected(request, self._context.drop_events())) as events:
            async for event in events:
                if port and event.drop.port != port:
                    continue
                if loop.time() > read_at + _NAMES_S:
                    names, read_at = self._names(), loop.time()
                try:
                    await response.write(msgspec.json.encode(drop_event(names, event)) + b"\n")
                except ConnectionError:
                    break
        return response

    async def _read(self, *names: str) -> Entries:
        return await asyncio.to_thread(self._context.tables, names)

    def _names(self) -> Names:
        return Names(self._context.endpoints(), self._context.name_of_port)

    async def _special(self, kind: str) -> int:
        """The port of the uplink, the tunnel or the node. Raises NotFound."""
        rows = port_rows(await self._read("sw_config", "sw_ports", "sw_vnis", "sw_drops"), self._names())
        return there(next((row.id for row in rows if row.kind == kind), None), "port", kind)

    def _port(self, request: web.Request) -> int:
        found = find_endpoint(self._context.endpoints(), request.query["endpoint"])
        if not found.port:
            what = "is on another node" if found.remote else "is not attached to a pod"
            raise Conflict(f"endpoint {found.label} {what}: it has no port here")
        return found.port


def _check_parameters(request: web.Request, *known: str) -> None:
    """Refuse a parameter that would be ignored. Raises Invalid."""
    for name in request.query:
        if name not in known:
            raise Invalid(name[:64], f"is no parameter of {request.path}; known: {', '.join(known)}")


async def _listed(request: web.Request, rows: Iterator[FlowRow]) -> web.StreamResponse:
    """A JSON list, a part at a time: that of a full table is 50 MB."""
    part = await asyncio.to_thread(_encoded, rows)  # what cannot be read is said before anything is sent
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    try:
        await response.write(b"[" + part)
        while part and (part := await asyncio.to_thread(_encoded, rows)):
            await response.write(b"," + part)
        await response.write(b"]")
    except ConnectionError:
        pass  # nobody reads any more
    return response


def _encoded(rows: Iterator[FlowRow]) -> bytes:
    return b",".join(map(msgspec.json.encode, islice(rows, _ROWS_AT_ONCE)))


def _limit(request: web.Request) -> int | None:
    """How many rows are wanted, None for all. Raises Invalid."""
    text = request.query.get("limit")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and int(text[:10]) > 0):
        raise Invalid("limit", f"expected a number of flows from 1, got {text[:32]!r}")
    return int(text[:10])


async def _while_connected(
    request: web.Request, events: AsyncGenerator[DropEvent, None]
) -> AsyncGenerator[DropEvent, None]:
    """The events until the client hangs up: nobody tells the handler, and there may be no event to write."""
    async with aclosing(events):
        following: asyncio.Future[DropEvent] | None = None
        try:
            while request.transport is not None and not request.transport.is_closing():
                following = following or asyncio.ensure_future(anext(events))
                done, _ = await asyncio.wait({following}, timeout=_HANG_UP_S)
                if done:
                    following = None
                    try:
                        yield done.pop().result()
                    except StopAsyncIteration:
                        return
        finally:
            if following is not None:
                following.cancel()
                await asyncio.wait({following})


def _tables_json(tables: Entries) -> dict[str, list[dict[str, Any]]]:
    return {
        name: [dict(entry_json(key, value)) for key, value in rows.items()] for name, rows in tables.items()
    }
