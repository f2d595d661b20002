"""HNSCall: the v1 requests by path and method, as calls of the HNS service.

Paths are matched in any case. What a call returns is the ``Output`` of the envelope, None for none.
"""

from __future__ import annotations

from typing import Any

import msgspec

from samewire.hcn import values
from samewire.hcn.codec import decode_modify, decode_object
from samewire.hcn.errors import HcnCode, HcnError, fail
from samewire.hcn.jsontext import parse_json
from samewire.hcn.modify import ModifySettingRequest
from samewire.hcn.plan.attach import AttachRequest, SystemType
from samewire.hcn.plan.network_changes import check_extension
from samewire.hcn.readers import enum_reader, integer
from samewire.hcn.schema import Endpoint, Kind, Object, ObjectState
from samewire.hcn.service import HnsService
from samewire.hcn.v1 import lists
from samewire.hcn.v1.read import Fields, to_v2
from samewire.hcn.v1.write import HNS_VERSION, field_policies, to_v1

KINDS = {"networks": Kind.NETWORK, "endpoints": Kind.ENDPOINT, "namespaces": Kind.NAMESPACE}
MAX_COMPARTMENT = 2**32 - 1


class V1Calls:
    """The calls of one service."""

    def __init__(self, service: HnsService) -> None:
        self._service = service

    async def call(self, method: str, path: str, body: bytes) -> Any:
        """Return the output of a call. Raises SamewireError."""
        parts = [part for part in path.split("?")[0].split("/") if part]
        name = parts[0].lower() if parts else ""
        object_id = _guid(parts[1]) if len(parts) > 1 and name != "globals" else ""
        action = parts[2].lower() if len(parts) > 2 else ""
        method = method.upper()
        if name in KINDS and len(parts) <= 3:
            return await self._object(KINDS[name], method, object_id, action, body)
        if name == "policylists" and len(parts) <= 2:
            return await self._policy_list(method, object_id, body)
        if name == "endpointstats" and method == "GET" and len(parts) == 2:
            return await self._stats(object_id)
        if name == "accelnet" and len(parts) == 1:
            return self._accelnet(method, body)
        if method == "GET" and "/".join(parts).lower() in ("globals/version", *_LISTINGS):
            return self._read("/".join(parts).lower())
        raise HcnError(HcnCode.REQUEST_UNSUPPORTED, f"{method[:8]} {path[:128]}: there is no such request")

    async def _object(self, kind: Kind, method: str, object_id: str, action: str, body: bytes) -> Any:
        service = self._service
        match method, bool(object_id), action:
            case "GET", False, "":
                return [to_v1(service.view, value) for value in service.view.all(kind)]
            case "GET", True, "":
                return self._shown(kind, object_id)
            case "POST", False, "":
                return self._render(await self._create(kind, body))
            case "POST", True, "":
                return await self._update(kind, object_id, _json(body))
            case "DELETE", True, "":
                gone = self._shown(kind, object_id)
                await service.delete(kind, object_id)
                return gone | ({"State": int(ObjectState.DESTROYED)} if "State" in gone else {})
            case "GET", True, "detailed" if kind is Kind.ENDPOINT:
                return self._detailed(object_id)
            case "POST", True, ("attach" | "detach") if kind is Kind.ENDPOINT:
                return await self._attach(object_id, action, body)
            case "POST", True, ("addresource" | "removeresource") if kind is Kind.NAMESPACE:
                return await self._resource(object_id, action, body)
        raise HcnError(
            HcnCode.REQUEST_UNSUPPORTED,
            f"{method[:8]} {kind.value}/{object_id}/{action[:64]}: no such request",
        )

    async def _create(self, kind: Kind, body: bytes) -> Object:
        value = decode_object(kind, to_v2(kind, _json(body), self._service.view))
        return await self._service.create(kind, value)

    async def _update(self, kind: Kind, object_id: str, body: Any) -> Any:
        """Change an object by its new form, at once: its policies, and DNS and extensions of a network."""
        before = self._service.get(kind, object_id)
        given = to_v2(kind, body, self._service.view)
        if kind is Kind.NETWORK:
            _check_extensions(Fields(body).items("Extensions"))
            named = {"Policy": {"Policies": given.get("Policies", [])}}
            if "Dns" in given:
                named["DNS"] = given["Dns"]
            await self._service.modify_network(before.id, [_update_of(kind, *item) for item in named.items()])
        elif isinstance(before, Endpoint) and Fields(body).take("Policies") is not None:
            policies = given.get("Policies", []) + field_policies(before, body)
            request = _update_of(kind, "Policy", {"Policies": policies})
            await self._service.modify(kind, before.id, request)
        return self._shown(kind, object_id)

    async def _attach(self, object_id: str, action: str, body: bytes) -> Any:
        request = _attach_request(_json(body) if body.strip() else {})
        change = self._service.attach if action == "attach" else self._service.detach
        await change(object_id, request)
        return self._shown(Kind.ENDPOINT, object_id)

    async def _resource(self, object_id: str, action: str, body: bytes) -> Any:
        fields = Fields(_json(body))
        kind, data = fields.text("Type"), Fields(fields.take("Data"))
        how = "Add" if action == "addresource" else "Remove"
        settings = {f"{kind}Id": data.text("Id")}
        change = {"ResourceType": kind, "RequestType": how, "Settings": settings}
        await self._service.modify(Kind.NAMESPACE, object_id, decode_modify(Kind.NAMESPACE, change))
        return self._shown(Kind.NAMESPACE, object_id)

    async def _policy_list(self, method: str, object_id: str, body: bytes) -> Any:
        service = self._service
        match method, bool(object_id):
            case "GET", False:
                return [lists.to_v1(value) for kind in lists.KINDS for value in service.view.all(kind)]
            case "GET", True:
                return lists.to_v1(lists.find(service.view, object_id))
            case "POST", False:
                kind, given = lists.to_v2(_json(body))
                return lists.to_v1(await service.create(kind, decode_object(kind, given)))
            case "DELETE", True:
                found = lists.find(service.view, object_id)
                await service.delete(lists.kind_of(found), object_id)
                return lists.to_v1(found)
        raise HcnError(
            HcnCode.REQUEST_UNSUPPORTED,
            f"{method[:8]} policylists: lists are deleted and created, not modified",
        )

    async def _stats(self, object_id: str) -> Any:
        stats = await self._service.endpoint_stats(object_id)
        return {**msgspec.to_builtins(stats), "EndpointId": object_id, "InstanceId": object_id}

    def _accelnet(self, method: str, body: bytes) -> Any:
        stored = self._service.setting("accelnet") or {"MacAddressList": []}
        if method == "POST":
            fields = Fields(_json(body))
            entries = [Fields(item).text("MacAddress") for item in fields.items("MacAddressList")]
            macs = [
                values.mac(mac, f"$.MacAddressList[{n}]", HcnCode.INVALID_JSON)
                for n, mac in enumerate(entries)
            ]
            stored = {**fields.rest(), "MacAddressList": [{"MacAddress": mac} for mac in macs]}
            self._service.set_setting("accelnet", stored)
        elif method == "DELETE":
            self._service.set_setting("accelnet", None)
        elif method != "GET":
            raise HcnError(HcnCode.REQUEST_UNSUPPORTED, f"{method[:8]} accelnet: there is no such request")
        return stored

    def _read(self, path: str) -> Any:
        view = self._service.view
        if path == "globals/version":
            return {"Major": HNS_VERSION >> 32, "Minor": HNS_VERSION & 0xFFFFFFFF}
        if path == "endpointaddresses":
            return [
                {"EndpointId": item.id, "VirtualNetwork": item.network_id, "IPAddress": address}
                for item in view.endpoints()
                for address in item.addresses
            ]
        return []

    def _shown(self, kind: Kind, object_id: str) -> Any:
        return self._render(self._service.get(kind, object_id))

    def _detailed(self, object_id: str) -> Any:
        view, value = self._service.view, self._service.get(Kind.ENDPOINT, object_id)
        routes = [{"ID": route.id, "Type": "Route"} for route in view.routes_of_endpoint(value.id)]
        return {**self._render(value), "Resources": {"Allocators": routes}}

    def _render(self, value: Object) -> Any:
        return to_v1(self._service.view, value)


_LISTINGS = ("activities", "plugins", "endpointaddresses", "portpools")
"""Lists whose content nobody documents; those without a meaning here are empty."""


def _update_of(kind: Kind, resource: str, settings: Any) -> ModifySettingRequest:
    return decode_modify(kind, {"ResourceType": resource, "RequestType": "Update", "Settings": settings})


def _guid(text: str) -> str:
    return values.guid(text, "path")


def _json(body: bytes) -> Any:
    if not body.strip():
        fail("$", "a request body is required")
    return parse_json(body)


def _attach_request(body: Any) -> AttachRequest:
    fields = Fields(body)
    kind, number = fields.take("SystemType"), integer(fields.take("CompartmentId") or 0)
    if number is None or not 0 <= number <= MAX_COMPARTMENT:
        fail("$.CompartmentId", "expected the number of a compartment")
    system = SystemType.CONTAINER if kind in (None, "") else enum_reader(SystemType)(kind, "$.SystemType")
    container = values.name(fields.text("ContainerId"), "$.ContainerId", HcnCode.INVALID_JSON)
    return AttachRequest(container, system, number)


def _check_extensions(given: list[dict[str, Any]]) -> None:
    for index, item in enumerate(given):
        fields = Fields(item)
        check_extension(fields.text("Id"), fields.flag("IsEnabled"), f"$.Extensions[{index}]")
