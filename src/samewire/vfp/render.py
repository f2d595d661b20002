"""Records as people and JSON see them: addresses, MACs and enum names instead of bytes and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, IntFlag
from typing import Final, TypeAlias

from samewire.vfp import constants as c
from samewire.vfp import tables as t
from samewire.vfp.address import IPV4, IPV6, ZERO, address_text, mac_text
from samewire.vfp.record import Record

Json: TypeAlias = "str | int | list[Json] | dict[str, Json] | None"

_ENUMS: Final[Mapping[tuple[type[Record], str], type[IntEnum]]] = {
    (t.Route, "kind"): c.RouteKind,
    (t.Nexthop, "kind"): c.RouteKind,
    (t.AclRule, "action"): c.AclAction,
    (t.Nat, "action"): c.NatAction,
    (t.Action, "fate"): c.Fate,
    (t.Flow, "arrival"): c.Arrival,
    (t.DropKey, "layer"): c.Layer,
    (t.DropKey, "reason"): c.Reason,
    (t.DropKey, "arrival"): c.Arrival,
    (t.TraceStep, "layer"): c.Layer,
    (t.TraceStep, "verdict"): c.StepVerdict,
    (t.TraceStep, "reason"): c.Reason,
    (t.TraceOutput, "fate"): c.Fate,
    (t.TraceOutput, "drop_layer"): c.Layer,
    (t.TraceOutput, "drop_reason"): c.Reason,
}
_FLAGS: Final[Mapping[tuple[type[Record], str], type[IntEnum] | type[IntFlag]]] = {
    (t.Config, "flags"): c.ConfigFlag,
    (t.Port, "flags"): c.PortFlag,
    (t.Route, "flags"): c.RouteFlag,
    (t.Neighbour, "flags"): c.NeighbourFlag,
    (t.Nat, "flags"): c.NatFlag,
    (t.Action, "flags"): c.RewriteFlag,
    (t.Flow, "flags"): c.FlowFlag,
}
# LPM keys: how many bits stand before the address.
_PREFIX_BITS: Final[Mapping[type[Record], int]] = {
    t.RouteKey: c.ROUTE_KEY_BITS,
    t.OwnRouteKey: c.OWN_ROUTE_KEY_BITS,
    t.NatKey: c.NAT_KEY_BITS,
}


def record_json(record: Record, family: int = 0) -> dict[str, Json]:
    """A record's fields for JSON. ``family`` helps with addresses whose family only the key knows."""
    family = getattr(record, "family", 0) or family
    cls = type(record)
    return {
        field.name: _field(cls, field.name, getattr(record, field.name), family)
        for field in record.fields
        if field.name != "reserved"
    }


def entry_json(key: Record, value: Record) -> dict[str, Json]:
    """One entry of a table for JSON."""
    return {"key": record_json(key), "value": record_json(value, getattr(key, "family", 0))}


def record_text(record: Record, family: int = 0) -> str:
    """A record on one line: ``name=value`` for each field that is not zero or empty."""
    if isinstance(record, t.Id | t.Count):
        return str(record.value)
    shown = record_json(record, family)
    bits = _PREFIX_BITS.get(type(record))
    if bits is not None:
        prefix = shown.pop("prefix_bits")
        assert isinstance(prefix, int)
        shown["address"] = f"{shown['address']}/{prefix - bits}"
        shown.pop("family")
    return " ".join(
        f"{name}={_text(value)}" for name, value in shown.items() if value not in (0, "", [], None)
    )


def _text(value: Json) -> str:
    if isinstance(value, list):
        return ",".join(_text(item) or "-" for item in value)
    if isinstance(value, dict):
        return "{" + " ".join(f"{name}={_text(item)}" for name, item in value.items()) + "}"
    return "" if value is None else str(value)


def _field(cls: type[Record], name: str, value: object, family: int) -> Json:
    if isinstance(value, tuple):
        by_family = cls is t.Port
        return [
            _field(cls, name, item, (IPV4, IPV6)[i] if by_family else family) for i, item in enumerate(value)
        ]
    if isinstance(value, Record):
        return record_json(value, family)
    if isinstance(value, bytes):
        return _bytes(value, family)
    assert isinstance(value, int)
    enum = _ENUMS.get((cls, name))
    if enum is not None:
        return enum(value).name.lower() if value in enum._value2member_map_ else value
    flags = _FLAGS.get((cls, name))
    if flags is not None:
        return [flag.name.lower() for flag in flags if value & flag and flag.name]
    return value


def _bytes(value: bytes, family: int) -> str:
    if len(value) == 6:
        return mac_text(value) if any(value) else ""
    if value == ZERO:
        return ""
    # A value whose family nobody knows (a NAT answer alone): IPv4 addresses end in twelve zero bytes.
    return address_text(family or (IPV6 if any(value[4:]) else IPV4), value)
