"""A Kubernetes API server over TCP (and TLS), as far as a client of five resources can tell.

Everything that goes wrong does so on command: `FakeServer.plan` lets the next requests fail in a given way,
`FakeServer.disturb` does something to the watches that are open.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from tests.apiserver.fake_store import (
    Entry,
    Json,
    Matcher,
    Refused,
    Store,
    event_line,
    expired,
    line,
    selection,
)

Handler = Callable[..., Awaitable[web.StreamResponse]]

RESOURCES = {
    "/api/v1": ("services", "nodes", "namespaces", "pods"),
    "/apis/discovery.k8s.io/v1": ("endpointslices",),
}
KINDS = {
    "services": "Service", "nodes": "Node", "namespaces": "Namespace", "pods": "Pod",
    "endpointslices": "EndpointSlice",
}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """What happens to a request. ``verb``: "list" or "watch". ``resource``: "" = any. ``at_page``: only this one.

    ``status`` answers so, with ``headers``; ``hang``: no answer; ``truncate``: a list breaks off in its middle, a watch
    ends rightly before its first event; ``body``: another answer in the place of a list.
    """

    verb: str = "list"
    resource: str = ""
    at_page: int = 0
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    hang: bool = False
    truncate: bool = False
    body: bytes = b""


@dataclass
class Seen:
    """One request, for tests to look at."""

    verb: str
    resource: str
    query: dict[str, str]
    token: str
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(eq=False)
class Watch:
    """One open watch: lines (or commands) on their way to the client, about what came after a version."""

    resource: str
    matches: Matcher
    after: int
    queue: asyncio.Queue[bytes | str] = field(default_factory=asyncio.Queue)

    def take(self, entry: Entry) -> None:
        """Pass a change on."""
        if entry.resource != self.resource or entry.version <= self.after:
            return
        if (text := event_line(entry, self.matches)) is not None:
            self.queue.put_nowait(text)


class FakeServer:
    """One server; `serve` starts it.

    ``refuses_future``: whether a watch from a version that it has not reached is refused. Kubernetes' own takes it, and
    is silent until it has come that far.
    """

    def __init__(self) -> None:
        self.store = Store()
        self.tokens: set[str] | None = None
        self.seen: list[Seen] = []
        self.url = ""
        self.compresses = False
        self.refuses_future = False
        self.headers: dict[str, str] = {}
        self._faults: list[Fault] = []
        self._watches: set[Watch] = set()
        self._stopping = asyncio.Event()
        self.store.listeners.append(self._spread)

    @asynccontextmanager
    async def serve(
        self, context: ssl.SSLContext | None = None, port: int = 0, host: str = "127.0.0.1"
    ) -> AsyncIterator[FakeServer]:
        """Listen on the loopback; the URL is in ``url``."""
        self._stopping = asyncio.Event()
        app = web.Application(client_max_size=1 << 24)
        for prefix, resources in RESOURCES.items():
            for resource in resources:
                self._route(app, prefix, resource)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        site = web.TCPSite(runner, host, port, ssl_context=context)
        await site.start()
        found = runner.addresses[0][1]
        self.url = f"{'https' if context else 'http'}://{f'[{host}]' if ':' in host else host}:{found}"
        try:
            yield self
        finally:
            self._stopping.set()
            await runner.cleanup()

    def plan(self, *faults: Fault) -> None:
        """Let the next requests that fit fail, each fault once, in this order."""
        self._faults.extend(faults)

    def disturb(self, command: str, resource: str = "") -> int:
        """Do something to the open watches; returns to how many.

        close: end it rightly; abort: cut the connection; half_close: end our direction in mid-chunk; silence: say no
        more; truncate: half an event, then cut; garbage: a line that is no event; expire: a 410 event.
        """
        hit = [watch for watch in self._watches if resource in ("", watch.resource)]
        for watch in hit:
            watch.queue.put_nowait(command)
        return len(hit)

    def drop(self, resource: str) -> None:
        """Cut the open watches of a resource at this moment: nothing that happens from now on reaches them."""
        for watch in tuple(self._watches):
            if watch.resource == resource:
                self._watches.discard(watch)
                while not watch.queue.empty():
                    watch.queue.get_nowait()
                watch.queue.put_nowait("abort")

    def send_line(self, resource: str, text: bytes) -> None:
        """Send a line of one's own on the open watches of a resource."""
        for watch in self._watches:
            if watch.resource == resource:
                watch.queue.put_nowait(text)

    def bookmark(self, resource: str = "") -> None:
        """Send bookmarks with the present version."""
        for watch in self._watches:
            if resource in ("", watch.resource) and self.store.version >= watch.after:
                watch.queue.put_nowait(line("BOOKMARK", _bookmark(watch.resource, self.store.version)))

    def watching(self, resource: str) -> int:
        """How many watches of a resource are open."""
        return sum(watch.resource == resource for watch in self._watches)

    def requests(self, verb: str, resource: str) -> list[Seen]:
        """What was asked for so far."""
        return [item for item in self.seen if (item.verb, item.resource) == (verb, resource)]

    # --- requests ---------------------------------------------------------------------------------------------------

    def _route(self, app: web.Application, prefix: str, resource: str) -> None:
        def bind(
            handler: Callable[..., Awaitable[web.StreamResponse]],
        ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
            async def answer(request: web.Request) -> web.StreamResponse:
                try:
                    self._authorise(request)
                    return await handler(request, resource)
                except Refused as error:
                    return web.json_response(error.status(), status=error.code)

            return answer

        scoped = resource not in ("nodes", "namespaces")
        home = f"{prefix}/namespaces/{{namespace}}/{resource}" if scoped else f"{prefix}/{resource}"
        app.router.add_get(f"{prefix}/{resource}", bind(self._get))
        app.router.add_get(f"{home}/{{name}}", bind(self._get_one))
        app.router.add_post(home, bind(self._create))
        app.router.add_put(f"{home}/{{name}}", bind(self._update))
        app.router.add_delete(f"{home}/{{name}}", bind(self._delete))

    def _authorise(self, request: web.Request) -> None:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.tokens is not None and token not in self.tokens:
            raise Refused(401, "Unauthorized", "Unauthorized")

    async def _create(self, request: web.Request, resource: str) -> web.StreamResponse:
        item = _placed(await request.json(), request)
        return web.json_response(self.store.put(resource, item, create=True), status=201)

    async def _get_one(self, request: web.Request, resource: str) -> web.StreamResponse:
        key = (request.match_info.get("namespace", ""), request.match_info["name"])
        return web.json_response(self.store.get(resource, key))

    async def _update(self, request: web.Request, resource: str) -> web.StreamResponse:
        item = _placed(await request.json(), request)
        return web.json_response(self.store.put(resource, item, create=False))

    async def _delete(self, request: web.Request, resource: str) -> web.StreamResponse:
        key = (request.match_info.get("namespace", ""), request.match_info["name"])
        return web.json_response(self.store.delete(resource, key))

    async def _get(self, request: web.Request, resource: str) -> web.StreamResponse:
        query = dict(request.query)
        verb = "watch" if query.get("watch") in ("1", "true") else "list"
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        self.seen.append(Seen(verb, resource, query, token, tuple(request.headers.items())))
        fault = self._take_fault(verb, resource, query)
        if fault is not None and fault.hang:
            await self._stopping.wait()
        if fault is not None and fault.status:
            refusal = Refused(fault.status, "", "as planned")
            return web.json_response(refusal.status(), status=fault.status, headers=dict(fault.headers))
        matches = selection(query.get("labelSelector", ""), query.get("fieldSelector", ""))
        if verb == "watch":
            return await self._watch(request, resource, matches, ends=fault is not None)
        return await self._list(request, resource, matches, fault)

    def _take_fault(self, verb: str, resource: str, query: dict[str, str]) -> Fault | None:
        page = 2 if query.get("continue") else 1
        for fault in self._faults:
            if fault.verb == verb and fault.resource in ("", resource) and fault.at_page in (0, page):
                self._faults.remove(fault)
                return fault
        return None

    async def _list(
        self, request: web.Request, resource: str, matches: Matcher, fault: Fault | None
    ) -> web.StreamResponse:
        limit, token = int(request.query.get("limit", "0")), request.query.get("continue", "")
        items, version, following = self.store.page(resource, matches, limit, token)
        metadata = {"resourceVersion": str(version)} | ({"continue": following} if following else {})
        kind, group = f"{KINDS[resource]}List", _group(resource)
        body = json.dumps(
            {"kind": kind, "apiVersion": group, "metadata": metadata, "items": items or None}
        ).encode()
        if fault is not None and fault.body:
            body = fault.body
        response = web.StreamResponse(headers={"Content-Type": "application/json", **self.headers})
        if self.compresses:
            body = gzip.compress(body)
            response.headers["Content-Encoding"] = "gzip"
        response.content_length = len(body)
        await response.prepare(request)
        if fault is not None and fault.truncate:
            await response.write(body[: len(body) // 2])
            _cut(request)
            return response
        await response.write(body)
        return response

    async def _watch(
        self, request: web.Request, resource: str, matches: Matcher, *, ends: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json", **self.headers})
        response.enable_chunked_encoding()
        version = int(request.query["resourceVersion"])
        watch = Watch(resource, matches, version)
        if ends:
            watch.queue.put_nowait("close")
        if version > self.store.version and self.refuses_future:
            raise Refused(
                504, "Timeout", f"Too large resource version: {version}, current: {self.store.version}"
            )
        try:
            for entry in self.store.since(resource, version):
                watch.take(entry)
        except Refused as error:
            watch.queue.put_nowait(line("ERROR", error.status()))
            watch.queue.put_nowait("close")
        self._watches.add(watch)
        try:
            await response.prepare(request)
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(float(request.query.get("timeoutSeconds", "300"))):
                    await self._send(request, response, watch)
        finally:
            self._watches.discard(watch)
        return response

    async def _send(self, request: web.Request, response: web.StreamResponse, watch: Watch) -> None:
        while not self._stopping.is_set():
            item = await self._next(watch)
            if isinstance(item, bytes):
                await response.write(item)
            elif item == "close":
                return
            elif item == "expire":
                await response.write(line("ERROR", expired().status()))
                return
            elif item == "garbage":
                await response.write(b'{"type":"ADDED","object":{"metadata":{"name":"half\n')
            elif item == "silence":
                await self._stopping.wait()
            else:
                await self._break(request, response, item)
                return

    async def _next(self, watch: Watch) -> bytes | str:
        """The next thing to send; "close" when the server stops."""
        getting = asyncio.ensure_future(watch.queue.get())
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((getting, stopping), return_when=asyncio.FIRST_COMPLETED)
            return getting.result() if getting.done() else "close"
        finally:
            getting.cancel()
            stopping.cancel()

    async def _break(self, request: web.Request, response: web.StreamResponse, command: str) -> None:
        if command == "truncate":
            await response.write(b'{"type":"ADDED","object":{"metadata":{"name":"trunc')
        transport = request.transport
        if command == "half_close" and transport is not None and transport.can_write_eof():
            transport.write(b"7f\r\nhalf of a chu")
            transport.write_eof()
            await self._stopping.wait()
        _cut(request)

    def _spread(self, entry: Entry) -> None:
        for watch in self._watches:
            watch.take(entry)


def _placed(item: Json, request: web.Request) -> Json:
    """An object as its URL places it."""
    place = {key: value for key, value in request.match_info.items() if key in ("namespace", "name")}
    return {**item, "metadata": {**item["metadata"], **place}}


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _group(resource: str) -> str:
    return "discovery.k8s.io/v1" if resource == "endpointslices" else "v1"


def _bookmark(resource: str, version: int) -> Json:
    """A bookmark as a real server writes it: an object of its kind with zero values."""
    zero: dict[str, Json] = {
        "endpointslices": {"addressType": "", "endpoints": None, "ports": None},
        "services": {"spec": {}, "status": {"loadBalancer": {}}},
        "pods": {"spec": {"containers": None}, "status": {}},
    }
    metadata = {"resourceVersion": str(version), "creationTimestamp": None}
    return {
        "kind": KINDS[resource], "apiVersion": _group(resource), "metadata": metadata, **zero.get(resource, {}),
    }  # fmt: skip
