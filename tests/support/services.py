"""Load balancers written straight into a node's tables, without the compiler."""

from __future__ import annotations

import itertools
from typing import Final
from zlib import crc32

import msgspec

from samewire.vfp.address import ZERO, parse_address
from samewire.vfp.constants import CHUNK_BACKENDS, BackendFlag
from samewire.vfp.diff import Put, Remove
from samewire.vfp.record import Record
from samewire.vfp.tables import (
    Backend,
    BackendChunk,
    BackendChunkKey,
    BackendPlace,
    Id,
    Service,
    ServiceKey,
)
from tests.support.node_rig import Node

_IDS = itertools.count(1)
_EMPTY: Final = BackendPlace(0, 0)


class Target(msgspec.Struct, frozen=True):
    """A backend: where it is, in which scope."""

    address: str
    port: int
    scope: int
    direct: int = 0  # the nexthop that names it by its MAC


class Balancer:
    """One service port on a node: VIPs in scopes, all with one set of backends."""

    def __init__(self, node: Node, *targets: Target, protocol: int = 6, **fields: int | str) -> None:
        self.node = node
        self.protocol = protocol
        self.number = next(_IDS)
        self.fields = fields
        self.backends: dict[Target, int] = {}
        self.draining: set[Target] = set()
        self.keys: list[ServiceKey] = []
        for target in targets:
            self.add(target)

    def add(self, target: Target) -> None:
        """One more backend."""
        self.backends[target] = next(_IDS)
        self._put_backend(target, 0)
        self._put_set()

    def drain(self, target: Target) -> None:
        """It keeps its connections and gets no new ones."""
        self.draining.add(target)
        self._put_backend(target, BackendFlag.DRAINING)
        self._put_set()

    def remove(self, target: Target) -> None:
        """It is gone."""
        number = self.backends.pop(target)
        self._put_set()
        self.node.apply([Remove("sw_backends", Id(number))])

    def vip(self, address: str, port: int, *scopes: int, family: int = 0) -> None:
        """Listen on an address ("" with a family: NodePort) in some scopes."""
        packed = parse_address(address).packed if address else ZERO
        family = family or parse_address(address).family
        for scope in scopes:
            key = ServiceKey(packed, port, self.protocol, family, scope)
            self.keys.append(key)
            self._put("sw_services", key, self._service())

    def close(self) -> None:
        """All of it is gone."""
        for key in self.keys:
            self.node.apply([Remove("sw_services", key)])
        for target in list(self.backends):
            self.remove(target)

    def _service(self) -> Service:
        source = str(self.fields.get("source", ""))
        return Service(
            service=self.number,
            set=self.number,
            chunks=int(self.fields.get("chunks", 4)),
            flags=int(self.fields.get("flags", 0)),
            affinity_ticks=int(self.fields.get("affinity_ticks", 0)),
            source=parse_address(source).packed if source else ZERO,
        )

    def _put_backend(self, target: Target, flags: int) -> None:
        address = parse_address(target.address)
        value = Backend(
            address.packed,
            target.port,
            address.family,
            int(flags),
            self.number,
            target.direct,
            target.scope,
        )
        self._put("sw_backends", Id(self.backends[target]), value)

    def _put_set(self) -> None:
        places = [
            BackendPlace(
                self.backends[target],
                crc32(parse_address(target.address).packed + target.port.to_bytes(2, "big")),
            )
            for target in self.backends
            if target not in self.draining
        ]
        for chunk in range(4):
            part = places[chunk * CHUNK_BACKENDS : (chunk + 1) * CHUNK_BACKENDS]
            padded = (*part, *[_EMPTY] * CHUNK_BACKENDS)[:CHUNK_BACKENDS]
            self._put("sw_backend_sets", BackendChunkKey(self.number, chunk), BackendChunk(padded))

    def _put(self, table: str, key: Record, value: Record) -> None:
        self.node.apply([Put(table, key, value)])
