"""A client of the daemon's HTTP API over its unix socket, for the command line and the lab."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from samewire.errors import Unavailable
from samewire.hcn.base import Wire
from samewire.hcn.codec import encode
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.schema import Kind

DEFAULT_TIMEOUT_S = 30.0


class HnsClient:
    """Blocking calls. Objects are JSON values; structs of `samewire.hcn.schema` are accepted too.

    Every call raises HcnError for what the daemon refuses, Unavailable when it does not answer.
    """

    def __init__(self, socket_path: Path | str, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._path = str(socket_path)
        self._timeout_s = timeout_s

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
        changed: dict[str, Any] = self.post_json(_path(kind, object_id), body)
        return changed

    def delete(self, kind: Kind, object_id: str) -> None:
        """Delete an object."""
        self._call("DELETE", _path(kind, object_id), None)

    def get_json(self, path: str) -> Any:
        """Return the answer to any GET."""
        return self._call("GET", path, None)

    def post_json(self, path: str, value: Wire | dict[str, Any]) -> Any:
        """Return the answer to any POST."""
        return self._call("POST", path, json.dumps(_plain(value)).encode())

    def _call(self, method: str, path: str, body: bytes | None) -> Any:
        connection = _UnixConnection(self._path, self._timeout_s)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"samewire at {self._path}", str(error) or type(error).__name__) from error
        finally:
            connection.close()
        return _interpret(response.status, data)


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
