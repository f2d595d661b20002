"""Clients of HCN: `HcnClient` with objects as structs, over any transport; `HnsClient`, which is the transport over the
daemon's unix socket, with objects as JSON values. The other one is `samewire.hcn.library_client.LibraryClient`.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast
from urllib.parse import quote, urlencode

import msgspec

from samewire.errors import Unavailable
from samewire.hcn.base import Wire
from samewire.hcn.codec import decode_object, encode, encode_modify
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.loadbalancers import LoadBalancer
from samewire.hcn.modify import ModifySettingRequest, ModifySettings, RequestType
from samewire.hcn.notifications import Notification
from samewire.hcn.schema import Endpoint, Kind, Namespace, Network, ObjectState, Route
from samewire.hcn.switch import EndpointStats

DEFAULT_TIMEOUT_S = 30.0
DEFAULT_SOCKET = "/run/samewire/samewire.sock"

T = TypeVar("T", Network, Endpoint, Namespace, Route, LoadBalancer)


class Transport(Protocol):
    """How `HcnClient` reaches HCN: JSON values in and out, HcnError for what is refused."""

    def enumerate(self, kind: Kind, **where: str | int) -> list[str]: ...
    def list(self, kind: Kind, **where: str | int) -> list[dict[str, Any]]: ...
    def get(self, kind: Kind, object_id: str) -> dict[str, Any]: ...
    def create(self, kind: Kind, value: dict[str, Any]) -> dict[str, Any]: ...
    def change(self, kind: Kind, object_id: str, body: dict[str, Any]) -> dict[str, Any]: ...
    def delete(self, kind: Kind, object_id: str) -> None: ...
    def stats(self, endpoint_id: str) -> dict[str, Any]: ...
    def addresses(self, endpoint_id: str) -> dict[str, Any]: ...
    def notifications(self) -> AbstractContextManager[Iterator[dict[str, Any]]]: ...


class Objects(Generic[T]):
    """The objects of one kind. All calls block, and raise HcnError for what is refused, Unavailable when nobody
    answers.
    """

    def __init__(self, transport: Transport, kind: Kind) -> None:
        self._transport = transport
        self._kind = kind

    def enumerate(self, **where: str | int) -> list[str]:
        """Return the ids of all objects, or of those that match."""
        return self._transport.enumerate(self._kind, **where)

    def list(self, **where: str | int) -> list[T]:
        """Return all objects, or those that match HNS's filter keys (``Name="cbr0"``)."""
        return [self._decoded(value) for value in self._transport.list(self._kind, **where)]

    def get(self, object_id: str) -> T:
        """Return one object."""
        return self._decoded(self._transport.get(self._kind, object_id))

    def find(self, name: str) -> T | None:
        """Return the first object of a name, None when there is none."""
        return next(iter(self.list(Name=name)), None)

    def create(self, value: T) -> T:
        """Create an object and return it complete: its id, addresses, and what else the service chose."""
        return self._decoded(self._transport.create(self._kind, encode(value)))

    def modify(self, object_id: str, how: RequestType, settings: ModifySettings) -> T:
        """Modify an object and return it: ``RequestType.ADD, PolicySettings(policies=(ACL(...),))``. The type of the
        settings says which resource; raises TypeError for settings of another kind of object.
        """
        body = encode_modify(self._kind, ModifySettingRequest(request_type=how, settings=settings))
        return self._decoded(self._transport.change(self._kind, object_id, body))

    def delete(self, object_id: str) -> None:
        """Delete an object."""
        self._transport.delete(self._kind, object_id)

    def _decoded(self, value: dict[str, Any]) -> T:
        return cast(T, decode_object(self._kind, value))


class Endpoints(Objects[Endpoint]):
    """Endpoints, and what can be asked of them alone."""

    def stats(self, endpoint_id: str) -> EndpointStats:
        """Return the counters."""
        return msgspec.convert(self._transport.stats(endpoint_id), EndpointStats)

    def addresses(self, endpoint_id: str) -> tuple[str, ...]:
        """Return the IP addresses."""
        found = self._transport.addresses(endpoint_id).get("IpConfigurations", [])
        return tuple(str(item["IpAddress"]) for item in found)

    def state(self, endpoint_id: str) -> ObjectState:
        """Return the state: attached to a pod, to the node, or not."""
        return ObjectState(self._transport.get(self._kind, endpoint_id).get("State", 0))


class LoadBalancers(Objects[LoadBalancer]):
    """Load balancers, which are also changed by their new form."""

    def replace(self, value: LoadBalancer) -> LoadBalancer:
        """Put a load balancer in the place of the one of its id, and return it."""
        return self.modify(value.id, RequestType.UPDATE, value)


class HcnClient:
    """HCN on this node: the daemon at ``transport``, a path, or whatever else a `Transport` reaches."""

    def __init__(self, transport: Transport | Path | str = DEFAULT_SOCKET) -> None:
        through = HnsClient(transport) if isinstance(transport, Path | str) else transport
        self._transport: Transport = through
        self.networks: Objects[Network] = Objects(through, Kind.NETWORK)
        self.endpoints = Endpoints(through, Kind.ENDPOINT)
        self.namespaces: Objects[Namespace] = Objects(through, Kind.NAMESPACE)
        self.routes: Objects[Route] = Objects(through, Kind.ROUTE)
        self.load_balancers = LoadBalancers(through, Kind.LOADBALANCER)

    @contextmanager
    def notifications(self) -> Iterator[Iterator[Notification]]:
        """Return what happens from now on, in order; the last is a ServiceDisconnect, when the service ends.
        Leaving the context ends the listening.
        """
        with self._transport.notifications() as events:
            yield (msgspec.convert(event, Notification) for event in events)


class HnsClient:
    """Blocking calls. Objects are JSON values; structs of `samewire.hcn.schema` are accepted too.

    Every call raises HcnError for what the daemon refuses, Unavailable when it does not answer. May be used by several
    threads; connections are kept for later calls, and closed with the client.
    """

    def __init__(self, socket_path: Path | str, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._idle: list[_UnixConnection] = []
        self._path = str(socket_path)
        self._timeout_s = timeout_s

    def close(self) -> None:
        """Close the connections that are kept."""
        while self._idle:
            self._idle.pop().close()

    __del__ = close

    def enumerate(self, kind: Kind, **where: str | int) -> list[str]:
        """Return the ids of all objects of a kind, or of those that match."""
        query = {"Filter": json.dumps(where)}
        found: list[str] = self.post_json(f"/v2/{kind.value}/enumerate", query)
        return found

    def list(self, kind: Kind, **where: str | int) -> list[dict[str, Any]]:
        """Return all objects of a kind, or those that match HNS's filter keys (``Name="cbr0"``)."""
        query = f"?{urlencode({'filter': json.dumps(where)})}" if where else ""
        found: list[dict[str, Any]] = self.get_json(f"/v2/{kind.value}{query}")
        return found

    def get(self, kind: Kind, object_id: str) -> dict[str, Any]:
        """Return one object."""
        found: dict[str, Any] = self.get_json(_path(kind, object_id))
        return found

    def create(self, kind: Kind, value: Wire | dict[str, Any]) -> dict[str, Any]:
        """Create an object and return it complete."""
        made: dict[str, Any] = self.post_json(f"/v2/{kind.value}", value)
        return made

    def modify(
        self,
        kind: Kind,
        object_id: str,
        resource_type: str,
        request_type: str,
        settings: Wire | dict[str, Any],
    ) -> dict[str, Any]:
        """Modify an object (``"Policy", "Add", {"Policies": [...]}``) and return it."""
        body = {"ResourceType": resource_type, "RequestType": request_type, "Settings": _plain(settings)}
        return self.change(kind, object_id, body)

    def delete(self, kind: Kind, object_id: str) -> None:
        """Delete an object."""
        self._call("DELETE", _path(kind, object_id), None)

    def change(self, kind: Kind, object_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a modify request, or a whole load balancer, and return the object."""
        changed: dict[str, Any] = self.post_json(_path(kind, object_id), body)
        return changed

    def stats(self, endpoint_id: str) -> dict[str, Any]:
        """Return the counters of an endpoint."""
        found: dict[str, Any] = self.get_json(f"{_path(Kind.ENDPOINT, endpoint_id)}/stats")
        return found

    def addresses(self, endpoint_id: str) -> dict[str, Any]:
        """Return the addresses of an endpoint."""
        found: dict[str, Any] = self.get_json(f"{_path(Kind.ENDPOINT, endpoint_id)}/addresses")
        return found

    @contextmanager
    def notifications(self) -> Iterator[Iterator[dict[str, Any]]]:
        """Return what happens from now on, until the daemon ends or the context is left."""
        connection = _UnixConnection(self._path, self._timeout_s)
        try:
            with self._reached():
                connection.request("GET", "/v2/notifications")
                response = connection.getresponse()
                if response.status >= 400:
                    _interpret(response.status, response.read())
                response.readline()  # comes when the daemon listens
            yield self._events(response)
        finally:
            connection.close()

    def _events(self, lines: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
        with self._reached():  # what happens to whoever hears of them is not the daemon's fault
            yield from (json.loads(line) for line in lines if line.strip())

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"samewire at {self._path}", str(error) or type(error).__name__) from error

    def get_json(self, path: str) -> Any:
        """Return the answer to any GET."""
        return self._call("GET", path, None)

    def post_json(self, path: str, value: Wire | dict[str, Any]) -> Any:
        """Return the answer to any POST."""
        return self._call("POST", path, json.dumps(_plain(value)).encode())

    def _call(self, method: str, path: str, body: bytes | None) -> Any:
        connection = self._connection()
        try:
            with self._reached():
                connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
                response = connection.getresponse()
                data = response.read()
        except BaseException:
            connection.close()
            raise
        if connection.sock is not None:  # else it was to be closed, and is
            self._idle.append(connection)
        return _interpret(response.status, data)

    def _connection(self) -> _UnixConnection:
        """A connection that the daemon has not closed in the meantime, or a new one."""
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread took it
                break
            if connection.quiet():
                return connection
            connection.close()
        return _UnixConnection(self._path, self._timeout_s)


class AsyncHnsClient:
    """The calls of `HnsClient` for code on an event loop; each runs in a thread."""

    def __init__(self, socket_path: Path | str, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._client = HnsClient(socket_path, timeout_s)

    async def list(self, kind: Kind, **where: str | int) -> list[dict[str, Any]]:
        """See `HnsClient.list`."""
        return await asyncio.to_thread(self._client.list, kind, **where)

    async def get(self, kind: Kind, object_id: str) -> dict[str, Any]:
        """See `HnsClient.get`."""
        return await asyncio.to_thread(self._client.get, kind, object_id)

    async def create(self, kind: Kind, value: Wire | dict[str, Any]) -> dict[str, Any]:
        """See `HnsClient.create`."""
        return await asyncio.to_thread(self._client.create, kind, value)

    async def modify(
        self,
        kind: Kind,
        object_id: str,
        resource_type: str,
        request_type: str,
        settings: Wire | dict[str, Any],
    ) -> dict[str, Any]:
        """See `HnsClient.modify`."""
        return await asyncio.to_thread(
            self._client.modify, kind, object_id, resource_type, request_type, settings
        )

    async def delete(self, kind: Kind, object_id: str) -> None:
        """See `HnsClient.delete`."""
        await asyncio.to_thread(self._client.delete, kind, object_id)

    async def get_json(self, path: str) -> Any:
        """See `HnsClient.get_json`."""
        return await asyncio.to_thread(self._client.get_json, path)

    async def post_json(self, path: str, value: Wire | dict[str, Any]) -> Any:
        """See `HnsClient.post_json`."""
        return await asyncio.to_thread(self._client.post_json, path, value)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("samewire", timeout=timeout_s)
        self._socket_path = path

    def connect(self) -> None:
        """Connect to the path instead of a host."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._socket_path)

    def quiet(self) -> bool:
        """Whether nothing has come since the last answer: what comes unasked is the other side's end."""
        self.sock.settimeout(0)
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            self.sock.settimeout(self.timeout)
            return True
        except OSError:
            pass
        return False


def _path(kind: Kind, object_id: str) -> str:
    return f"/v2/{kind.value}/{quote(object_id, safe='')}"


def _plain(value: Wire | dict[str, Any]) -> dict[str, Any]:
    return encode(value) if isinstance(value, Wire) else value


def _interpret(status: int, data: bytes) -> Any:
    """Return the value of an answer. Raises HcnError, Unavailable."""
    try:
        value = json.loads(data) if data else None
    except ValueError as error:
        raise Unavailable("samewire", f"answered {status} without JSON: {data[:80]!r}") from error
    if status < 400:
        return value
    if not isinstance(value, dict):
        raise Unavailable("samewire", f"answered {status}")
    known = {int(code) for code in HcnCode}
    code = value.get("ErrorCode")
    raise HcnError(
        HcnCode(code) if code in known else HcnCode.E_FAIL, str(value.get("Error", f"HTTP status {status}"))
    )
