"""The client's calls over the HCN library of a Windows node, so that controllers run there as they do here."""

from __future__ import annotations

import json
import uuid
from typing import Any, Final

from samewire.hcn.base import Wire
from samewire.hcn.codec import encode
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.schema import Kind
from samewire.kernel.computenetwork import ComputeNetwork, LibraryError

_NAMES: Final = {
    Kind.NETWORK: "Network",
    Kind.ENDPOINT: "Endpoint",
    Kind.NAMESPACE: "Namespace",
    Kind.ROUTE: "SdnRoute",
    Kind.LOADBALANCER: "LoadBalancer",
}
_VERSION: Final = {"Major": 2, "Minor": 0}
_KNOWN: Final = {int(code) for code in HcnCode}


class LibraryClient:
    """`samewire.hcn.client.HnsClient`'s calls on objects, carried by ``computenetwork.dll``.

    Every call raises HcnError for what HNS refuses.
    """

    def __init__(self, library: ComputeNetwork | None = None) -> None:
        self._library = library or ComputeNetwork()

    def list(self, kind: Kind, **where: str | int) -> list[dict[str, Any]]:
        """All objects of a kind, or those that match HNS's filter keys (``Name="cbr0"``)."""
        found = []
        for object_id in self._call(self._library.enumerate, f"{_NAMES[kind]}s", _query(where)):
            try:
                found.append(self.get(kind, object_id))
            except HcnError as error:
                if error.code is not HcnCode.ERROR_NOT_FOUND:  # gone in between
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
        self._call(self._library.modify, _NAMES[kind], object_id, request)
        return self.get(kind, object_id)

    def delete(self, kind: Kind, object_id: str) -> None:
        """Delete an object."""
        self._call(self._library.delete, _NAMES[kind], object_id)

    def _call(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except LibraryError as error:
            code = HcnCode(error.hresult) if error.hresult in _KNOWN else HcnCode.E_FAIL
            raise HcnError(code, error.text or str(error)) from error


def _query(where: dict[str, str | int]) -> str:
    return json.dumps({"SchemaVersion": _VERSION, "Flags": 0, "Filter": json.dumps(where)})
