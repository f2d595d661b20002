"""What load balancers have in the tables, as the bytes that the kernel sees: layouts, and who has which entry. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from itertools import repeat
from typing import Final

import msgspec

from samewire.vfp.constants import CHUNK_BACKENDS
from samewire.vfp.tables import (
    Backend,
    BackendChunk,
    BackendChunkKey,
    DirectKey,
    Portmap,
    Service,
    ServiceKey,
    SourceRangeKey,
)

# The tables that load balancers fill, the pointed-at before the pointing.
TABLES: Final = ("sw_backends", "sw_backend_sets", "sw_source_ranges", "sw_services", "sw_direct")

Rows = dict[bytes, bytes]
Tables = Mapping[str, Mapping[bytes, bytes]]

CHUNK_BYTES: Final = BackendChunk.size
FREE: Final = bytes(CHUNK_BYTES // CHUNK_BACKENDS)
"""A place in a chunk without a backend; else there are its number and its seed."""
ID: Final = struct.Struct("=I")
SERVICE_HEAD: Final = struct.Struct("=IIH")  # service, set, chunks
pack_service_key = ServiceKey.packer()
pack_service = Service.packer()
pack_chunk_key = BackendChunkKey.packer()
pack_backend = Backend.packer()
pack_range = SourceRangeKey.packer()
pack_direct = DirectKey.packer()
pack_portmap = Portmap.packer()
TARGET_BYTES: Final = 18  # bytes of a backend: address and port
_SCOPE: Final = struct.Struct("=H")
_SCOPE_AT: Final = next(field.offset for field in Backend.fields if field.name == "scope")
_SERVICE_AT: Final = next(field.offset for field in Backend.fields if field.name == "service")


class Variant(msgspec.Struct, frozen=True, gc=False):
    """A backend set: its number (0 = it has none yet) and its number of chunks."""

    set: int
    chunks: int

    def chunk_keys(self) -> list[bytes]:
        """The keys of its chunks."""
        return [pack_chunk_key(self.set, chunk) for chunk in range(self.chunks)]


NO_SET: Final = Variant(0, 0)


class HeldPort(msgspec.Struct, frozen=True, gc=False):
    """What one port mapping has: its service id, its sets (all backends, local ones), its backends' keys, and in the
    same order who these are (None: nothing is known of any).
    """

    protocol: int
    port: int
    service: int
    all: Variant
    local: Variant
    backends: tuple[bytes, ...]
    identities: tuple[str, ...] | None


class Held(msgspec.Struct, frozen=True, gc=False):
    """What one load balancer has in the tables, but for what `HeldPort` says."""

    services: tuple[bytes, ...]
    ports: tuple[HeldPort, ...]
    ranges: tuple[bytes, ...]
    direct: tuple[bytes, ...]

    def keys_by_table(self) -> Iterable[tuple[str, Iterable[bytes]]]:
        """All of its keys, table by table; a table may come more than once."""
        for port in self.ports:
            yield "sw_backends", port.backends
            for variant in (port.all, port.local):
                yield "sw_backend_sets", variant.chunk_keys()
        yield "sw_source_ranges", self.ranges
        yield "sw_services", self.services
        yield "sw_direct", self.direct


def scope_of(row: bytes) -> int:
    """The scope of a backend."""
    return int(_SCOPE.unpack_from(row, _SCOPE_AT)[0])


def known_backends(known: HeldPort, rows: Mapping[bytes, bytes]) -> dict[tuple[bytes, str], bytes]:
    """The backends of a port mapping by what must not change of one: target, identity. Its network may: the route to
    its node comes and goes.
    """
    found = {}
    for key, identity in zip(known.backends, known.identities or repeat(""), strict=False):
        row = rows.get(key)
        if row is not None:
            found[row[:TARGET_BYTES], identity] = key
    return found


def backends_by_service(rows: Mapping[bytes, bytes]) -> dict[int, list[bytes]]:
    """The keys of backends by the service that their entries name."""
    found: dict[int, list[bytes]] = {}
    for key, row in rows.items():
        found.setdefault(ID.unpack_from(row, _SERVICE_AT)[0], []).append(key)
    return found


def number_of(table: str, key: bytes, row: bytes) -> int:
    """The service or set that an entry is about, 0 where the entry does not say."""
    if table == "sw_backends":
        return int(ID.unpack_from(row, _SERVICE_AT)[0])
    if table == "sw_services":
        return int(ID.unpack_from(row)[0])
    if table == "sw_backend_sets":
        return int(ID.unpack_from(key)[0])
    return int(ID.unpack_from(key, 4)[0]) if table == "sw_source_ranges" else 0


def highest_number(rows: Tables) -> int:
    """The highest number in the tables; new ones must be above it."""
    return max(
        max((ID.unpack(key)[0] for key in rows["sw_backends"]), default=0),
        max((ID.unpack_from(key)[0] for key in rows["sw_backend_sets"]), default=0),
        max((max(SERVICE_HEAD.unpack_from(row)[:2]) for row in rows["sw_services"].values()), default=0),
    )
