"""The LB layer as VFP shows it: the services that an arrival of a scope is asked about, and their backends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from samewire.vfp.address import ZERO, address_text
from samewire.vfp.constants import SCOPE_ANY, SCOPE_OUTSIDE, TICK_S, BackendFlag, ServiceFlag
from samewire.vfp.model import Entries
from samewire.vfp.protocols import protocol_text
from samewire.vfp.tables import Backend, BackendChunk, BackendChunkKey, Id, Service, ServiceKey

SHOWN: Final = 64
"""More services than these are only counted: `samewire get services` shows them."""
_BACKENDS_SHOWN: Final = 16


class ServiceRule(msgspec.Struct, frozen=True):
    """One VIP and port: the service's id, what a packet must have, and what is done with it."""

    id: int
    conditions: tuple[str, ...]
    action: str


def service_rules(tables: Entries, scope: int) -> list[ServiceRule]:
    """The services for arrivals of a scope (SCOPE_OUTSIDE: the uplink), by address and port."""
    scopes = {scope} if scope == SCOPE_OUTSIDE else {scope, SCOPE_ANY}
    found = [
        (key, value)
        for key, value in tables.get("sw_services", {}).items()
        if isinstance(key, ServiceKey) and isinstance(value, Service) and key.scope in scopes
    ]
    if len(found) > SHOWN:
        return [ServiceRule(0, ("destination is a VIP",), f"{len(found)} services: samewire get services")]
    found.sort(key=lambda row: (row[0].family, row[0].address, row[0].port, row[0].protocol, row[0].scope))
    return [ServiceRule(value.service, _conditions(key), _action(tables, value)) for key, value in found]


def _conditions(key: ServiceKey) -> tuple[str, ...]:
    where = "any node address" if key.address == ZERO else address_text(key.family, key.address)
    return f"ipv{key.family} {protocol_text(key.protocol)}", f"destination {where} port {key.port}"


def _action(tables: Entries, service: Service) -> str:
    members = [_member(tables.get("sw_backends", {}).get(Id(number))) for number in _members(tables, service)]
    if not members:
        return "refuse: no backends" if service.flags & ServiceFlag.REJECT else "drop: no backends"
    shown = ", ".join(members[:_BACKENDS_SHOWN])
    more = f" and {len(members) - _BACKENDS_SHOWN} more" if len(members) > _BACKENDS_SHOWN else ""
    return f"to one of {len(members)}: {shown}{more}{''.join(_extras(service))}"


def _extras(service: Service) -> Iterator[str]:
    if service.affinity_ticks:
        yield f"; clients stay {int(service.affinity_ticks * TICK_S)} s"
    for flag, text in (
        (ServiceFlag.SOURCE_RANGES, "; source ranges"),
        (ServiceFlag.DSR, "; direct server return"),
        (ServiceFlag.PRESERVE, "; destination preserved"),
    ):
        if service.flags & flag:
            yield text


def _members(tables: Entries, service: Service) -> Iterator[int]:
    rows = tables.get("sw_backend_sets", {})
    for chunk in range(service.chunks):
        found = rows.get(BackendChunkKey(service.set, chunk))
        if isinstance(found, BackendChunk):
            yield from (place.backend for place in found.place if place.backend)


def _member(backend: object) -> str:
    if not isinstance(backend, Backend):
        return "?"
    address = address_text(backend.family, backend.address)
    where = f"[{address}]" if backend.family == 6 else address
    return f"{where}:{backend.port}{' (draining)' if backend.flags & BackendFlag.DRAINING else ''}"
