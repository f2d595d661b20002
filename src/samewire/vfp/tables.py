"""The switch's tables: the registry of maps, and of every key and value of ``bpf/layout.h`` as frozen records.

Addresses are 16 packed bytes (``samewire.vfp.address``), MACs 6 bytes, ports plain integers (``pack`` puts
them into network order where the header says so). The records live in ``records_forwarding``, ``records_acl``,
``records_service`` and, what the programs themselves write, ``records_runtime``; everything is importable from here.
"""

from enum import StrEnum
from typing import Final

import msgspec

from samewire.vfp import constants as c
from samewire.vfp.record import U32, U64, Field, Record, record
from samewire.vfp.records_acl import (
    AclAnyKey,
    AclPortKey,
    AclPrefixKey,
    AclRule,
    AclRuleKey,
    AclSetKey,
    AclSpace,
    AclVector,
    Hash,
    RuleCountKey,
    SetClass,
    SetClassKey,
)
from samewire.vfp.records_forwarding import (
    Bucket,
    Config,
    Endpoint,
    EndpointKey,
    Nat,
    NatKey,
    Neighbour,
    Nexthop,
    OwnRouteKey,
    Port,
    Portmap,
    PortmapKey,
    Route,
    RouteKey,
    SourceMac,
    Vni,
)
from samewire.vfp.records_runtime import (
    Action,
    Affinity,
    AffinityKey,
    Cursors,
    DropEvent,
    DropKey,
    Flow,
    FlowCount,
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
        _table("sw_changes", Id, Id, Kind.ARRAY, 1),
        _table("sw_endpoints", EndpointKey, Endpoint, Kind.HASH, c.MAX_ENDPOINTS, compiled=True),
        _table("sw_routes", RouteKey, Route, Kind.LPM, c.MAX_ROUTES, compiled=True),
        _table("sw_own_routes", OwnRouteKey, Route, Kind.LPM, c.MAX_OWN_ROUTES, compiled=True),
        _table("sw_source_macs", Id, SourceMac, Kind.HASH, c.MAX_PORTS, compiled=True),
        _table("sw_neighbours", RouteKey, Neighbour, Kind.LPM, c.MAX_NEIGHBOURS, compiled=True),
        _table("sw_nexthops", Id, Nexthop, Kind.HASH, c.MAX_NEXTHOPS, compiled=True),
        _table("sw_portmaps", PortmapKey, Portmap, Kind.HASH, c.MAX_PORTMAPS, compiled=True),
        _table("sw_acl_prefixes", AclPrefixKey, Hash, Kind.LPM, c.MAX_ACL_PREFIXES, compiled=True),
        _table("sw_acl_ports", AclPortKey, Hash, Kind.LPM, c.MAX_ACL_PORTS, compiled=True),
        _table("sw_acl_vectors", Hash, AclVector, Kind.HASH, c.MAX_ACL_VECTORS, compiled=True),
        _table("sw_acl_any", AclAnyKey, AclVector, Kind.HASH, c.MAX_ACL_ANY, compiled=True),
        _table("sw_acl_sets", AclSetKey, Hash, Kind.HASH, c.MAX_ACL_SETS, compiled=True),
        _table("sw_acl_rules", AclRuleKey, AclRule, Kind.HASH, c.MAX_ACL_RULES, compiled=True),
        _table("sw_rule_counts", RuleCountKey, Count, Kind.PERCPU_HASH, c.MAX_RULE_COUNTS),
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
        _table("sw_flow_counts", Id, FlowCount, Kind.ARRAY, 1),
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
    OwnRouteKey,
    SourceMac,
    Neighbour,
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
    AclAnyKey,
    AclSetKey,
    AclRuleKey,
    AclRule,
    RuleCountKey,
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
    FlowCount,
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
    "AclAnyKey",
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
    "FlowCount",
    "FlowKey",
    "Fragment",
    "FragmentKey",
    "Hash",
    "Id",
    "Kind",
    "Nat",
    "NatKey",
    "Neighbour",
    "Nexthop",
    "OwnRouteKey",
    "Port",
    "Portmap",
    "PortmapKey",
    "Record",
    "Route",
    "RouteKey",
    "RuleCountKey",
    "Service",
    "ServiceCount",
    "ServiceKey",
    "SetClass",
    "SetClassKey",
    "Socket",
    "SocketKey",
    "SourceMac",
    "SourceRangeKey",
    "Table",
    "TraceInput",
    "TraceOutput",
    "TraceStep",
    "Vni",
]
