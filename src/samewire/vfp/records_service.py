"""Records of load balancing: services, backend sets, backends, source ranges, and what is answered directly.

Import them from ``samewire.vfp.tables``.
"""

from typing import Annotated, ClassVar

from samewire.vfp.record import U8, U16, U32, Addr, Be16, Mac, Pad, Record, record


@record("sw_service_key")
class ServiceKey(Record, frozen=True, gc=False):
    """A VIP and port in a scope; a zero address stands for every address of the node."""

    address: Addr
    port: Be16
    protocol: U8
    family: U8
    scope: U16
    reserved: ClassVar[Pad] = Pad(2)


@record("sw_service")
class Service(Record, frozen=True, gc=False):
    """A load balancer: its backend set and how it is used. Affinity is in ticks of 2^30 ns, 0 = none."""

    service: U32
    set: U32
    chunks: U16
    flags: U16
    affinity_ticks: U32
    source: Addr


@record("sw_backend_chunk_key")
class BackendChunkKey(Record, frozen=True, gc=False):
    """A part of a backend set."""

    set: U32
    chunk: U32


@record("sw_backend_place")
class BackendPlace(Record, frozen=True, gc=False):
    """A member of a set; backend 0 = an empty place."""

    backend: U32
    seed: U32


@record("sw_backend_chunk")
class BackendChunk(Record, frozen=True, gc=False):
    """``CHUNK_BACKENDS`` places, in any order."""

    place: Annotated[tuple[BackendPlace, ...], 16]


@record("sw_backend")
class Backend(Record, frozen=True, gc=False):
    """A backend of a service. ``direct``: the nexthop that reaches it by DSR, 0 = none."""

    address: Addr
    port: Be16
    family: U8
    flags: U8
    service: U32
    direct: U32
    scope: U16
    reserved: ClassVar[Pad] = Pad(2)


@record("sw_source_range_key")
class SourceRangeKey(Record, frozen=True, gc=False):
    """An LPM key; ``prefix_bits`` counts the 64 bits of service, family and reserved too."""

    prefix_bits: U32
    service: U32
    family: U8
    reserved: ClassVar[Pad] = Pad(3)
    address: Addr


@record("sw_direct_key")
class DirectKey(Record, frozen=True, gc=False):
    """What reaches an endpoint by DSR: a VIP (zero: any node's address) and port, and the endpoint's MAC."""

    address: Addr
    port: Be16
    protocol: U8
    family: U8
    mac: Mac
    reserved: ClassVar[Pad] = Pad(2)
