"""The switch's tables: every key and value of ``bpf/layout.h`` as frozen records, and the registry of maps.

Addresses are 16 packed bytes (``samewire.vfp.address``), MACs 6 bytes, ports plain integers (``pack`` puts
them into network order where the header says so). Records of what the programs themselves write live in
``records_runtime``, those of load balancers in ``records_service``; everything is importable from here.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, Final

import msgspec

from samewire.vfp import constants as c
from samewire.vfp.address import ZERO
from samewire.vfp.record import U8, U16, U32, U64, Addr, Be16, Field, Mac, Pad, Record, record
from samewire.vfp.records_acl import (
    AclCountKey,
    AclPortKey,
    AclPrefixKey,
    AclRule,
    AclRuleKey,
    AclSetKey,
    AclSpace,
    AclVector,
    Hash,
    SetClass,
    SetClassKey,
)
from samewire.vfp.records_runtime import (
    Action,
    Affinity,
    AffinityKey,
    Cursors,
    DropEvent,
    DropKey,
    Flow,
    FlowKey,
    Fragment,
    FragmentKey,
    ServiceCount,
    Socket,
    SocketKey,
    TraceInput,
    TraceOutput,
    TraceStep,
)
from samewire.vfp.records_service import (
    Backend,
    BackendChunk,
    BackendChunkKey,
    BackendPlace,
    DirectKey,
    Service,
    ServiceKey,
    SourceRangeKey,
)


@record("")
class Id(Record, frozen=True, gc=False):
    """A 32-bit key: ifindex, nexthop, VNI, array index."""

    value: U32


@record("")
class Count(Record, frozen=True, gc=False):
    """A 64-bit counter."""

    value: U64


@record("sw_config")
class Config(Record, frozen=True, gc=False):
    """Facts about the node. Idle times are in ticks of 2^30 ns; ``netns``: low half of the cookie of the node's network
    namespace, 0 = unknown; ``address``: [IPv4, IPv6] on the underlay.
    """

    layout_version: U32
    uplink_ifindex: U32
    tunnel_ifindex: U32
    host_ifindex: U32
    host_peer_ifindex: U32
    flow_slots: U32
    uplink_mac: Mac
    tunnel_mac: Mac
    host_mac: Mac
    host_peer_mac: Mac
    nat_port_low: U16
    nat_port_high: U16
    vxlan_port: Be16
    flags: U16
    idle_tcp_half_open: U32
    idle_tcp_established: U32
    idle_tcp_closing: U32
    idle_udp_single: U32
    idle_udp_stream: U32
    idle_icmp: U32
    idle_other: U32
    netns: U32 = 0
    address: tuple[Addr, Addr] = (ZERO, ZERO)


@record("sw_port")
class Port(Record, frozen=True, gc=False):
    """A port of the switch; pairs are [IPv4, IPv6] for addresses and [in, out] for ACLs."""

    generation: U32
    scope: U16
    flags: U8
    reserved: ClassVar[Pad] = Pad(1)
    mac: Mac
    gateway_mac: Mac
    address: tuple[Addr, Addr]
    gateway: tuple[Addr, Addr]
    nat_set: U32
    acl_table: tuple[U64, U64]
    acl_space: U64
    acl_words: tuple[U8, U8]
    acl_shape: tuple[U8, U8]
    mtu: U32


@record("sw_endpoint_key")
class EndpointKey(Record, frozen=True, gc=False):
    """An address in a scope."""

    address: Addr
    scope: U16
    family: U8
    reserved: ClassVar[Pad] = Pad(1)


@record("sw_endpoint")
class Endpoint(Record, frozen=True, gc=False):
    """Who owns the address: a local port, or a nexthop for a remote endpoint."""

    port: U32
    nexthop: U32
    mac: Mac
    reserved: ClassVar[Pad] = Pad(2)


@record("sw_route_key")
class RouteKey(Record, frozen=True, gc=False):
    """An LPM key; ``prefix_bits`` counts the 32 bits of scope, family and reserved too."""

    prefix_bits: U32
    scope: U16
    family: U8
    reserved: ClassVar[Pad] = Pad(1)
    address: Addr


@record("sw_route")
class Route(Record, frozen=True, gc=False):
    """What is to be done with a destination."""

    kind: U8
    flags: U8
    scope: U16
    nexthop: U32


@record("sw_nexthop")
class Nexthop(Record, frozen=True, gc=False):
    """A provider address behind the tunnel, or a gateway on the uplink."""

    kind: U8
    family: U8
    mtu: U16
    ifindex: U32
    vni: U32
    address: Addr
    local: Addr
    mac: Mac
    reserved: ClassVar[Pad] = Pad(2)


@record("sw_portmap_key")
class PortmapKey(Record, frozen=True, gc=False):
    """A host port; a zero address stands for every address of the node."""

    address: Addr
    port: Be16
    protocol: U8
    family: U8


@record("sw_portmap")
class Portmap(Record, frozen=True, gc=False):
    """The endpoint's side of a host port."""

    port: U32
    scope: U16
    internal_port: Be16
    address: Addr


@record("sw_nat_key")
class NatKey(Record, frozen=True, gc=False):
    """An LPM key; ``prefix_bits`` counts the 64 bits of set, family and reserved too."""

    prefix_bits: U32
    set: U32
    family: U8
    reserved: ClassVar[Pad] = Pad(3)
    address: Addr


@record("sw_nat")
class Nat(Record, frozen=True, gc=False):
    """The precomputed answer for a destination."""

    action: U8
    flags: U8
    ports: U16
    rule: U32
    address: Addr


@record("sw_vni")
class Vni(Record, frozen=True, gc=False):
    """The network behind a VNI."""

    scope: U16
    reserved: ClassVar[Pad] = Pad(2)


@record("sw_bucket")
class Bucket(Record, frozen=True, gc=False):
    """Token bucket of a cap; ``full_ns`` (when it will be full again) belongs to the programs."""

    rate_bytes_per_s: U64
    burst_bytes: U64
    full_ns: U64


class Kind(StrEnum):
    """Map types, named as the kernel does."""

    HASH = "hash"
    LPM = "lpm_trie"
    ARRAY = "array"
    LRU = "lru_hash"
    PERCPU_HASH = "percpu_hash"
    PERCPU_ARRAY = "percpu_array"
    RINGBUF = "ringbuf"


class Table(msgspec.Struct, frozen=True):
    """One map. ``compiled``: its content is wanted state, written by the daemon and audited."""

    name: str
    key: type[Record]
    value: type[Record]
    kind: Kind
    max_entries: int
    compiled: bool


def _table(
    name: str, key: type[Record], value: type[Record], kind: Kind, max_entries: int, compiled: bool = False
) -> tuple[str, Table]:
    return name, Table(name, key, value, kind, max_entries, compiled)


TABLES: Final[dict[str, Table]] = dict(
    (
        _table("sw_config", Id, Config, Kind.ARRAY, 1, compiled=True),
        _table("sw_ports", Id, Port, Kind.HASH, c.MAX_PORTS, compiled=True),
        _table("sw_endpoints", EndpointKey, Endpoint, Kind.HASH, c.MAX_ENDPOINTS, compiled=True),
        _table("sw_routes", RouteKey, Route, Kind.LPM, c.MAX_ROUTES, compiled=True),
        _table("sw_nexthops", Id, Nexthop, Kind.HASH, c.MAX_NEXTHOPS, compiled=True),
        _table("sw_portmaps", PortmapKey, Portmap, Kind.HASH, c.MAX_PORTMAPS, compiled=True),
        _table("sw_acl_prefixes", AclPrefixKey, Hash, Kind.LPM, c.MAX_ACL_PREFIXES, compiled=True),
        _table("sw_acl_ports", AclPortKey, Hash, Kind.LPM, c.MAX_ACL_PORTS, compiled=True),
        _table("sw_acl_vectors", Hash, AclVector, Kind.HASH, c.MAX_ACL_VECTORS, compiled=True),
        _table("sw_acl_sets", AclSetKey, Hash, Kind.HASH, c.MAX_ACL_SETS, compiled=True),
        _table("sw_acl_rules", AclRuleKey, AclRule, Kind.HASH, c.MAX_ACL_RULES, compiled=True),
        _table("sw_acl_counts", AclCountKey, Count, Kind.PERCPU_HASH, c.MAX_ACL_COUNTS),
        _table("sw_set_members", AclPrefixKey, Hash, Kind.LPM, c.MAX_SET_MEMBERS, compiled=True),
        _table("sw_set_classes", SetClassKey, SetClass, Kind.HASH, c.MAX_SET_CLASSES, compiled=True),
        _table("sw_acl_spaces", Hash, AclSpace, Kind.HASH, c.MAX_SET_SPACES, compiled=True),
        _table("sw_nat", NatKey, Nat, Kind.LPM, c.MAX_NAT_PREFIXES, compiled=True),
        _table("sw_vnis", Id, Vni, Kind.HASH, c.MAX_VNIS, compiled=True),
        _table("sw_buckets", Id, Bucket, Kind.HASH, c.MAX_PORTS, compiled=True),
        _table("sw_services", ServiceKey, Service, Kind.HASH, c.MAX_SERVICES, compiled=True),
        _table(
            "sw_backend_sets", BackendChunkKey, BackendChunk, Kind.HASH, c.MAX_BACKEND_CHUNKS, compiled=True
        ),
        _table("sw_backends", Id, Backend, Kind.HASH, c.MAX_BACKENDS, compiled=True),
        _table("sw_source_ranges", SourceRangeKey, Id, Kind.LPM, c.MAX_SOURCE_RANGES, compiled=True),
        _table("sw_direct", DirectKey, Portmap, Kind.HASH, c.MAX_DIRECT, compiled=True),
        _table("sw_affinity", AffinityKey, Affinity, Kind.LRU, c.MAX_AFFINITY),
        _table("sw_service_counts", Id, ServiceCount, Kind.PERCPU_HASH, c.MAX_SERVICE_COUNTS),
        _table("sw_flows", FlowKey, Flow, Kind.HASH, c.MAX_FLOWS),
        _table("sw_flow_slots", Id, FlowKey, Kind.ARRAY, 2 * c.MAX_FLOWS),
        _table("sw_cursors", Id, Cursors, Kind.ARRAY, 1),
        _table("sw_fragments", FragmentKey, Fragment, Kind.LRU, c.MAX_FRAGMENTS),
        _table("sw_drops", DropKey, Count, Kind.PERCPU_HASH, c.MAX_DROP_KINDS),
        _table("sw_counters", Id, Count, Kind.PERCPU_ARRAY, c.Counter.MAX),
        _table("sw_sockets", SocketKey, Socket, Kind.LRU, c.MAX_SOCKETS),
        _table("sw_trace_input", Id, TraceInput, Kind.ARRAY, 1),
        _table("sw_trace_output", Id, TraceOutput, Kind.ARRAY, 1),
    )
)

# Every structure of layout.h, for the layout test and for readers of raw bytes.
RECORDS: Final[tuple[type[Record], ...]] = (
    Config,
    Port,
    EndpointKey,
    Endpoint,
    RouteKey,
    Route,
    Nexthop,
    PortmapKey,
    Portmap,
    ServiceKey,
    Service,
    BackendChunkKey,
    BackendPlace,
    BackendChunk,
    Backend,
    SourceRangeKey,
    DirectKey,
    AffinityKey,
    Affinity,
    ServiceCount,
    AclPrefixKey,
    AclPortKey,
    AclVector,
    AclSetKey,
    AclRuleKey,
    AclRule,
    AclCountKey,
    SetClassKey,
    SetClass,
    AclSpace,
    NatKey,
    Nat,
    Vni,
    Bucket,
    FlowKey,
    Action,
    Flow,
    Cursors,
    FragmentKey,
    Fragment,
    DropKey,
    DropEvent,
    SocketKey,
    Socket,
    TraceInput,
    TraceStep,
    TraceOutput,
)

__all__ = [
    "RECORDS",
    "TABLES",
    "AclCountKey",
    "AclPortKey",
    "AclPrefixKey",
    "AclRule",
    "AclRuleKey",
    "AclSetKey",
    "AclSpace",
    "AclVector",
    "Action",
    "Affinity",
    "AffinityKey",
    "Backend",
    "BackendChunk",
    "BackendChunkKey",
    "BackendPlace",
    "Bucket",
    "Config",
    "Count",
    "Cursors",
    "DirectKey",
    "DropEvent",
    "DropKey",
    "Endpoint",
    "EndpointKey",
    "Field",
    "Flow",
    "FlowKey",
    "Fragment",
    "FragmentKey",
    "Hash",
    "Id",
    "Kind",
    "Nat",
    "NatKey",
    "Nexthop",
    "Port",
    "Portmap",
    "PortmapKey",
    "Record",
    "Route",
    "RouteKey",
    "Service",
    "ServiceCount",
    "ServiceKey",
    "SetClass",
    "SetClassKey",
    "Socket",
    "SocketKey",
    "SourceRangeKey",
    "Table",
    "TraceInput",
    "TraceOutput",
    "TraceStep",
    "Vni",
]
