"""The objects over HTTP: a path a kind, and one request for each entry point of computenetwork.dll."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import msgspec
from aiohttp import web

from samewire.hcn.codec import decode_modify, decode_object
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.http_answers import json_response, list_response
from samewire.hcn.jsontext import parse_json
from samewire.hcn.notifications import Notification
from samewire.hcn.query import Rendered, find, parse_query, render
from samewire.hcn.schema import Endpoint, Kind, Object
from samewire.hcn.service import HnsService
from samewire.hcn.v1 import lists
from samewire.hcn.v1.read import is_v1, to_v2
from samewire.hcn.v1.write import to_v1
from samewire.hcn.values import ZERO_GUID

IDLE_S = 15.0
"""How long a stream of notifications is silent before it sends an empty line."""

_MINIMAL = "return=minimal"
_ID = "{id:[^/]+}"  # aiohttp's own pattern would not match the braces around a GUID


def object_routes(service: HnsService, rendered: Mapping[Kind, Rendered]) -> list[web.RouteDef]:
    """Return the routes of all kinds of objects."""
    routes = []
    for kind in Kind:
        collection, item = f"/v2/{kind.value}", f"/v2/{kind.value}/{_ID}"
        handlers = _Handlers(service, kind, rendered[kind])
        routes += [
            web.get(collection, handlers.list),
            web.post(collection, handlers.create),
            web.post(f"{collection}/enumerate", handlers.enumerate),
            web.get(item, handlers.get),
            web.post(item, handlers.modify),
            web.delete(item, handlers.delete),
            web.post(f"{item}/open", handlers.open),
            web.post(f"{item}/query", handlers.query),
        ]
    endpoints = _Handlers(service, Kind.ENDPOINT, rendered[Kind.ENDPOINT])
    return [
        *routes,
        web.get(f"/v2/endpoints/{_ID}/stats", endpoints.stats),
        web.post(f"/v2/endpoints/{_ID}/stats", endpoints.stats),
        web.get(f"/v2/endpoints/{_ID}/addresses", endpoints.addresses),
        web.post(f"/v2/endpoints/{_ID}/addresses", endpoints.addresses),
        web.get("/v2/notifications", _Stream(service).serve),
    ]


class _Handlers:
    """The requests for one kind of object."""

    def __init__(self, service: HnsService, kind: Kind, rendered: Rendered) -> None:
        self._service = service
        self._kind = kind
        self._rendered = rendered

    async def list(self, request: web.Request) -> web.Response:
        view = self._service.view
        query = parse_query(request.query.get("filter", ""))
        found = find(view, self._kind, query)
        if query.major == 1:
            return await list_response(found, lambda value: msgspec.json.encode(to_v1(view, value)))
        return await list_response(found, lambda value: self._rendered.json(view, value))

    async def enumerate(self, request: web.Request) -> web.Response:
        query = parse_query(await request.read())
        return json_response([value.id for value in find(self._service.view, self._kind, query)])

    async def create(self, request: web.Request) -> web.Response:
        body = parse_json(await request.read())
        if is_v1(self._kind, body):
            lists_it = self._kind in lists.KINDS
            body = (
                lists.as_kind(self._kind, body) if lists_it else to_v2(self._kind, body, self._service.view)
            )
        value = _with_handles(decode_object(self._kind, body), request.query)
        return self._shown(await self._service.create(self._kind, value), 201)

    async def get(self, request: web.Request) -> web.Response:
        return self._shown(self._service.get(self._kind, _id(request)))

    async def open(self, request: web.Request) -> web.Response:
        if self._service.view.get(self._kind, _id(request)) is None:
            raise HcnError(HcnCode.ERROR_NOT_FOUND, f"Element not found. ({self._kind.value}/{_id(request)})")
        return web.Response(status=204)

    async def query(self, request: web.Request) -> web.Response:
        query = parse_query(await request.read())
        view, value = self._service.view, self._service.get(self._kind, _id(request))
        if query.major == 1:
            return json_response(to_v1(view, value))
        return json_response(render(view, value, detailed=True)) if query.detailed else self._shown(value)

    def _shown(self, value: Object, status: int = 200) -> web.Response:
        text = self._rendered.json(self._service.view, value)
        return web.Response(body=text, status=status, content_type="application/json")

    async def modify(self, request: web.Request) -> web.Response:
        change = decode_modify(self._kind, parse_json(await request.read()))
        value = await self._service.modify(self._kind, _id(request), change)
        # RFC 7240: an object may be a megabyte, its change is not.
        if _MINIMAL in request.headers.get("Prefer", ""):
            return web.Response(status=204, headers={"Preference-Applied": _MINIMAL})
        return json_response(render(self._service.view, value))

    async def delete(self, request: web.Request) -> web.Response:
        await self._service.delete(self._kind, _id(request))
        return web.Response(status=204)

    async def stats(self, request: web.Request) -> web.Response:
        parse_query(await request.read())
        return json_response(await self._service.endpoint_stats(_id(request)))

    async def addresses(self, request: web.Request) -> web.Response:
        parse_query(await request.read())
        value = self._service.get(Kind.ENDPOINT, _id(request))
        body = render(self._service.view, value)
        return json_response(
            {
                "ID": body["ID"],
                "MacAddress": body.get("MacAddress", ""),
                "IpConfigurations": body.get("IpConfigurations", []),
            }
        )


class _Stream:
    """Notifications, a line each."""

    def __init__(self, service: HnsService) -> None:
        self._service = service

    async def serve(self, request: web.Request) -> web.StreamResponse:
        events = self._service.notifications.listen(IDLE_S)
        try:
            first = await anext(events)  # refuses before the answer has begun
            response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
            await response.prepare(request)
            await response.write(_line(first))
            await _copy(events, response)
        finally:
            await events.aclose()
        return response


async def _copy(events: AsyncGenerator[Notification | None, None], response: web.StreamResponse) -> None:
    try:
        async for event in events:
            await response.write(_line(event))
        await response.write_eof()
    except ConnectionError:
        return  # the listener has gone


def _line(event: Notification | None) -> bytes:
    return b"\n" if event is None else msgspec.json.encode(event) + b"\n"


def _with_handles(value: Object, query: Any) -> Object:
    """Return an object with the id and the network that a call gave beside its settings."""
    given = query.get("id", "")[:64]
    if given and given != ZERO_GUID:  # which leaves the choice to the settings, and then to the service
        value = msgspec.structs.replace(value, id=given)
    network = query.get("network", "")[:64]
    if network and isinstance(value, Endpoint):
        value = msgspec.structs.replace(value, network_id=network)
    return value


def _id(request: web.Request) -> str:
    """Return the id in a path, without the braces that some callers put around it."""
    return request.match_info["id"][:64].upper().removeprefix("{").removesuffix("}")
