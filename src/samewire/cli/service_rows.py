"""The columns of services."""

from __future__ import annotations

import time
from typing import Final

from samewire.cli.rows import Column, Json, View

_SHOWN_BACKENDS: Final = 6


def _name(value: Json) -> str:
    return f"{value['namespace']}/{value['name']}"


def _addresses(value: Json) -> str:
    found = dict.fromkeys(
        item.get("address", "") for item in value.get("addresses", ()) if item.get("address", "")
    )
    return ", ".join(found) or "none"


def _ports(value: Json) -> str:
    """As kubectl shows them; a node port by itself where its port is not known."""
    found = dict.fromkeys(
        f"{item['port']}/{item['protocol']}"
        if item.get("address", "")
        else f":{item['port']}/{item['protocol']}"
        for item in value.get("addresses", ())
    )
    return ", ".join(found)


def _endpoints(value: Json) -> str:
    """How many addresses there are, whatever the number of ports at each."""
    addresses = value.get("addresses", ())
    return str(len({backend["address"] for item in addresses for backend in item.get("backends", ())}))


def _backends(value: Json) -> str:
    unique: dict[str, None] = {}
    for item in value.get("addresses", ()):
        for backend in item.get("backends", ()):
            address = backend["address"]
            host = f"[{address}]" if ":" in address else address
            state = next((f" ({word})" for word in ("missing", "draining") if backend.get(word)), "")
            unique[f"{host}:{backend['port']}{state}"] = None
    found = list(unique)
    rest = len(found) - _SHOWN_BACKENDS
    shown = ", ".join(found[:_SHOWN_BACKENDS]) or "none"
    return f"{shown}, {rest} more" if rest > 0 else shown


def _count(field: str) -> Column:
    def cell(value: Json) -> str:
        return str((value.get("tally") or {}).get(field, 0))

    return Column(field.upper(), cell, wide=True)


def _changed(value: Json) -> str:
    at_s = value.get("changed_s", 0.0)
    if not at_s:
        return ""  # none since the daemon's start
    return f"{_duration(max(time.time() - at_s, 0.0))} ago"


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def _latency(value: Json) -> str:
    latency_s = value.get("latency_s", 0.0)
    return f"{latency_s * 1000:.1f} ms" if latency_s else ""


def _drops(value: Json) -> int:
    """What was refused or dropped for want of an endpoint or by a source range, and what lost its backend."""
    tally = value.get("tally") or {}
    return int(tally.get("refused", 0)) + int(tally.get("ended", 0))


def not_followed(health: Json) -> list[str]:
    """Of which kinds of Kubernetes objects no changes arrive, and why; from what ``/v2/health`` says."""
    return [
        f"{kind}s {'are as last known' if value['synced'] else 'are not known'}: {value['error']}"
        for kind, value in health.get("kubernetes", {}).items()
        if not value["connected"]
    ]


SERVICES: Final = View(
    (
        Column("NAME", _name),
        Column("TYPE", lambda value: value["type"]),
        Column("ADDRESSES", _addresses),
        Column("PORTS", _ports),
        Column("ENDPOINTS", _endpoints),
        Column("BACKENDS", _backends, wide=True),
        _count("flows"),
        _count("connections"),
        Column("DROPS", lambda value: str(_drops(value)), wide=True),
        Column("CHANGED", _changed, wide=True),
        Column("LATENCY", _latency, wide=True),
        Column("ERROR", lambda value: value.get("error", "")),
    )
)
