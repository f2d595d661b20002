"""The client's calls over the HCN library of a Windows node, so that controllers run there as they do here."""

from __future__ import annotations

import json
import queue
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from samewire.hcn.base import Wire
from samewire.hcn.codec import encode
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.notifications import NotificationType
from samewire.hcn.schema import Kind
from samewire.kernel.computenetwork import ComputeNetwork, LibraryError

_NAMES: Final = {
    Kind.NETWORK: "Network",
    Kind.ENDPOINT: "Endpoint",
    Kind.NAMESPACE: "Namespace",
    Kind.ROUTE: "SdnRoute",
    Kind.LOADBALANCER: "LoadBalancer",
}
_GONE: Final = frozenset({HcnCode.ERROR_NOT_FOUND, HcnCode.NETWORK_NOT_FOUND, HcnCode.ENDPOINT_NOT_FOUND})
"""Of an object: before it is opened, and before it is asked."""
_VERSION: Final = {"Major": 2, "Minor": 0}
_KNOWN: Final = {int(code) for code in HcnCode}


class LibraryClient:
    """`samewire.hcn.client.HnsClient`'s calls on objects, carried by ``computenetwork.dll``.

    Every call raises HcnError for what HNS refuses.
    """

    def __init__(self, library: ComputeNetwork | None = None) -> None:
        self._library = library or ComputeNetwork()

    def enumerate(self, kind: Kind, **where: str | int) -> list[str]:
        """The ids of all objects of a kind, or of those that match."""
        found: list[str] = self._call(self._library.enumerate, f"{_NAMES[kind]}s", _query(where))
        return found

    def list(self, kind: Kind, **where: str | int) -> list[dict[str, Any]]:
        """All objects of a kind, or those that match HNS's filter keys (``Name="cbr0"``)."""
        found = []
        for object_id in self.enumerate(kind, **where):
            try:
                found.append(self.get(kind, object_id))
            except HcnError as error:
                if error.code not in _GONE:  # in between
                    raise
        return found

    def get(self, kind: Kind, object_id: str) -> dict[str, Any]:
        """One object."""
        found: dict[str, Any] = self._call(self._library.query, _NAMES[kind], object_id, _query({}))
        return found

    def create(self, kind: Kind, value: Wire | dict[str, Any]) -> dict[str, Any]:
        """Create an object and return it complete. Without an ID one is drawn here: the library tells none."""
        settings = encode(value) if isinstance(value, Wire) else dict(value)
        object_id = str(settings.get("ID") or uuid.uuid4()).upper()
        settings = {"SchemaVersion": _VERSION, **settings, "ID": object_id}
        network = str(settings.get("HostComputeNetwork", "")) if kind is Kind.ENDPOINT else ""
        self._call(self._library.create, _NAMES[kind], object_id, settings, network)
        return self.get(kind, object_id)

    def modify(
        self,
        kind: Kind,
        object_id: str,
        resource_type: str,
        request_type: str,
        settings: Wire | dict[str, Any],
    ) -> dict[str, Any]:
        """Modify an object (``"Policy", "Add", {"Policies": [...]}``) and return it."""
        plain = encode(settings) if isinstance(settings, Wire) else settings
        request = {"ResourceType": resource_type, "RequestType": request_type, "Settings": plain}
        return self.change(kind, object_id, request)

    def delete(self, kind: Kind, object_id: str) -> None:
        """Delete an object."""
        self._call(self._library.delete, _NAMES[kind], object_id)

    def change(self, kind: Kind, object_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a modify request, or a whole load balancer, and return the object."""
        self._call(self._library.modify, _NAMES[kind], object_id, body)
        return self.get(kind, object_id)

    def stats(self, endpoint_id: str) -> dict[str, Any]:
        """The counters of an endpoint."""
        return self._of_endpoint(endpoint_id, "Stats")

    def addresses(self, endpoint_id: str) -> dict[str, Any]:
        """The addresses of an endpoint."""
        return self._of_endpoint(endpoint_id, "Addresses")

    @contextmanager
    def notifications(self) -> Iterator[Iterator[dict[str, Any]]]:
        """What happens from now on, until the service ends or the context is left."""
        heard: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

        def put(number: int, status: int, text: str) -> None:
            heard.put({"Type": number, "Status": status, "Data": json.loads(text) if text else {}})

        with _errors(), self._library.listening(put):
            yield _until_the_end(heard)

    def _of_endpoint(self, endpoint_id: str, what: str) -> dict[str, Any]:
        name = _NAMES[Kind.ENDPOINT]
        found: dict[str, Any] = self._call(self._library.query, name, endpoint_id, _query({}), what)
        return found

    def _call(self, function: Any, *arguments: Any) -> Any:
        with _errors():
            return function(*arguments)


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except LibraryError as error:
        code = HcnCode(error.hresult) if error.hresult in _KNOWN else HcnCode.E_FAIL
        raise HcnError(code, error.text or str(error)) from error


def _until_the_end(heard: queue.SimpleQueue[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    while True:
        event = heard.get()
        yield event
        if event["Type"] == NotificationType.SERVICE_DISCONNECT:
            return


def _query(where: dict[str, str | int]) -> str:
    return json.dumps({"SchemaVersion": _VERSION, "Flags": 0, "Filter": json.dumps(where)})
