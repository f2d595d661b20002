"""HNS v1 policies, whose fields stand beside ``Type``, as HCN v2 policies and back. Works on JSON values.

v1: ``{"Type": "NAT", "Protocol": "TCP", "InternalPort": 80, "ExternalPort": 8080}``; v2:
``{"Type": "PortMapping", "Settings": {...}}``. Fields that are not known are carried over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

JsonObject = dict[str, Any]

EXTERNAL_PORT_RESERVED = 4
PROTOCOL_NAMES = {6: "TCP", 17: "UDP"}

V2_NAMES = {"nat": "PortMapping", "route": "SDNRoute", "pa": "ProviderAddress", "proxy": "L4Proxy"}
"""v2 types of v1 types that have another name."""

RENAMED: dict[str, dict[str, str]] = {
    "pa": {"pa": "ProviderAddress"},
    "vlan": {"vlan": "IsolationId"},
    "vsid": {"vsid": "IsolationId"},
    "outboundnat": {"vip": "VirtualIP", "exceptionlist": "Exceptions"},
    "proxy": {"exceptionlist": "Exceptions", "outboundnat": "OutboundNAT"},
}
"""Fields (lower case) with another name in v2."""

V1_NAMES = {"PortMapping": "NAT", "SDNRoute": "ROUTE", "ProviderAddress": "PA", "L4Proxy": "PROXY"}
BACK: dict[str, dict[str, str]] = {
    "ProviderAddress": {"ProviderAddress": "PA"},
    "VLAN": {"IsolationId": "VLAN"},
    "VSID": {"IsolationId": "VSID"},
    "OutBoundNAT": {"VirtualIP": "VIP", "Exceptions": "ExceptionList"},
    "L4Proxy": {"Exceptions": "ExceptionList", "OutboundNAT": "OutboundNat"},
}


def from_flat(policy: JsonObject) -> JsonObject:
    """Return the v2 form of a v1 policy, which has a ``Type`` of text."""
    name = next(item for key, item in policy.items() if key.lower() == "type")
    kind = name.lower()
    names = RENAMED.get(kind, {})
    settings = {
        names.get(key.lower(), key): item
        for key, item in policy.items()
        if key.lower() != "type" and not (key.lower() in ("settings", "data") and item is None)
    }
    change = _READ.get(kind)
    if change:
        settings = change(settings)
    return {"Type": V2_NAMES.get(kind, name), "Settings": settings}


def to_flat(policy: JsonObject) -> JsonObject:
    """Return the v1 form of a v2 policy as `samewire.hcn.codec` writes it."""
    name, settings = policy["Type"], policy.get("Settings")
    beside = {key: item for key, item in policy.items() if key not in ("Type", "Settings")}
    flat: JsonObject = {"Type": V1_NAMES.get(name, name), **beside}
    if not isinstance(settings, dict):
        return flat if settings is None else {**flat, "Settings": settings}
    names = BACK.get(name, {})
    fields: JsonObject = {
        names.get(str(key), str(key)): item for key, item in settings.items() if key != "Type"
    }
    change = _WRITE.get(name)
    return {**flat, **(change(fields) if change else fields)}


def _nat(fields: JsonObject) -> JsonObject:
    """``ExternalPortReserved`` is a flag in v2."""
    result = {key: item for key, item in fields.items() if key.lower() != "externalportreserved"}
    reserved = next((item for key, item in fields.items() if key.lower() == "externalportreserved"), False)
    if reserved is True or str(reserved).lower() == "true":
        result.setdefault("Flags", EXTERNAL_PORT_RESERVED)
    return result


_ACL_SINGLE = {"protocol": "Protocols", "localport": "LocalPorts", "remoteport": "RemotePorts"}


def _acl(fields: JsonObject) -> JsonObject:
    """Single numbers become the lists of v2, where there is no such list; 0 is "any"."""
    present = {key.lower() for key, item in fields.items() if item not in (None, "")}
    result: JsonObject = {}
    for key, item in fields.items():
        wanted = _ACL_SINGLE.get(key.lower())
        if key.lower() == "internalport":
            wanted = "LocalPorts" if "localport" not in present else ""
        if wanted is None:
            result[key] = item
        elif wanted and wanted.lower() not in present and item not in (0, "0", None, ""):
            result[wanted] = str(item)
    return result


def _nat_back(fields: JsonObject) -> JsonObject:
    protocol, flags = fields.get("Protocol", 0), fields.get("Flags", 0)
    result = {**fields, "Protocol": PROTOCOL_NAMES.get(protocol, str(protocol))}
    result["ExternalPortReserved"] = bool(flags & EXTERNAL_PORT_RESERVED)
    return result


def _acl_back(fields: JsonObject) -> JsonObject:
    """Lists of one number are given as numbers too, for clients from before there were lists."""
    result = dict(fields)
    for single, name in (
        ("Protocol", "Protocols"),
        ("LocalPort", "LocalPorts"),
        ("RemotePort", "RemotePorts"),
    ):
        text = str(fields.get(name, ""))
        if text.isascii() and text.isdigit():
            result[single] = int(text)
    return result


_READ: dict[str, Callable[[JsonObject], JsonObject]] = {"nat": _nat, "acl": _acl}
_WRITE: dict[str, Callable[[JsonObject], JsonObject]] = {"PortMapping": _nat_back, "ACL": _acl_back}
