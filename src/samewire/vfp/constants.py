"""Constants of the switch: the enums and ``#define`` values of ``bpf/layout.h`` under Python names.

``tests/unit/test_layout.py`` compares every one of them with the compiled header.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

LAYOUT_VERSION: Final = 5

MAX_PORTS: Final = 4096
MAX_ENDPOINTS: Final = 65536
MAX_ROUTES: Final = 65536
MAX_OWN_ROUTES: Final = 524288
MAX_NEIGHBOURS: Final = 4096
MAX_NEXTHOPS: Final = 65536
MAX_PORTMAPS: Final = 16384
MAX_ACL_RULES: Final = 262144
MAX_ACL_PREFIXES: Final = 524288
MAX_ACL_PORTS: Final = 262144
MAX_ACL_VECTORS: Final = 65536
MAX_ACL_SETS: Final = 65536
MAX_ACL_ANY: Final = 65536
MAX_RULE_COUNTS: Final = 65536
MAX_SET_MEMBERS: Final = 1048576
MAX_SET_CLASSES: Final = 65536
MAX_SET_SPACES: Final = 4096
ACL_WORDS: Final = 64
ACL_STAGES: Final = 64
CLASS_SETS: Final = 16
CLASS_CHUNKS: Final = 16
MAX_NAT_PREFIXES: Final = 65536
MAX_VNIS: Final = 4096
MAX_FLOWS: Final = 131072
MAX_FRAGMENTS: Final = 8192
MAX_DROP_KINDS: Final = 16384
MAX_SOCKETS: Final = 65536
MAX_SERVICES: Final = 262144
MAX_BACKENDS: Final = 524288
MAX_BACKEND_CHUNKS: Final = 131072
CHUNK_BACKENDS: Final = 16
MAX_AFFINITY: Final = 65536
MAX_SOURCE_RANGES: Final = 65536
MAX_DIRECT: Final = 65536
MAX_SERVICE_COUNTS: Final = 65536
NAT_TRIES: Final = 64

SCOPE_UPLINK: Final = 0
SCOPE_HOST: Final = 0xFFFF
SCOPE_OUTSIDE: Final = 0xFFFE
SCOPE_DIRECT: Final = 0xFFFC
SCOPE_ANY: Final = 0xFFFD
SCOPE_MAX: Final = 0x7FFB
SCOPE_ASIDE: Final = 0x8000
VLAN: Final = 0x1000000
VLAN_NODE: Final = 0x2000000
VLAN_ID: Final = 0xFFF
LOOPBACK: Final = 1
TICK_SHIFT: Final = 30
TICK_S: Final = (1 << TICK_SHIFT) / 1e9

PROTOCOL_ANY: Final = 256
COUNTED_NAT: Final = 2
COUNTED_PORTMAP: Final = 3
COUNTED_ROUTE: Final = 8
ACL_IN: Final = 0
ACL_OUT: Final = 1
ACL_SOURCE: Final = 0
ACL_DESTINATION: Final = 1
ACL_MEMBER: Final = 2
RULE_POLICY_MASK: Final = 0xFFFF
RULE_TIER_SHIFT: Final = 16
RULE_NETWORK: Final = 0x40000000
SPACE_FACTOR: Final = 0x61C88647
TRACE_STEPS: Final = 24

# Bits of an LPM key before its address or port: scope, family, reserved; set or service, family, reserved; table and
# what follows it.
ROUTE_KEY_BITS: Final = 32
OWN_ROUTE_KEY_BITS: Final = 96
NAT_KEY_BITS: Final = 64
SOURCE_RANGE_KEY_BITS: Final = 64
ACL_PREFIX_KEY_BITS: Final = 96
ACL_PORT_KEY_BITS: Final = 72


class Arrival(IntEnum):
    """Where a packet enters the switch (enum sw_arrival)."""

    POD = 1
    UPLINK = 2
    TUNNEL = 3
    HOST = 4


class Layer(IntEnum):
    """Layers of a walk (enum sw_layer)."""

    PARSE = 1
    GUARD = 2
    FLOW = 3
    LB = 4
    PORTMAP = 5
    ACL_OUT = 6
    NAT = 7
    ROUTE = 8
    ENCAP = 9
    DECAP = 10
    ACL_IN = 11
    MTU = 12
    QOS = 13
    L2 = 14
    FRAGMENT = 15
    ICMP = 16


class Reason(IntEnum):
    """Why a packet was dropped (enum sw_reason)."""

    NONE = 0
    MALFORMED = 1
    NOT_IP = 2
    SPOOFED_MAC = 3
    SPOOFED_IP = 4
    SPOOFED_ARP = 5
    MULTICAST = 6
    BLOCKED = 7
    NO_ROUTE = 8
    NO_ENDPOINT = 9
    NO_NEXTHOP = 10
    TTL = 11
    TOO_BIG = 12
    FLOW_TABLE_FULL = 13
    NAT_EXHAUSTED = 14
    NAT_PROTOCOL = 15
    FRAGMENT_UNKNOWN = 16
    RATE = 17
    UNKNOWN_VNI = 18
    UNKNOWN_PORT = 19
    PORT_BLOCKED = 20
    ICMP_UNRELATED = 21
    MARTIAN = 22
    INTERNAL = 23
    NO_BACKEND = 24
    SOURCE_RANGE = 25
    BACKEND_GONE = 26
    NO_SOURCE = 27
    OTHER_VLAN = 28


class RouteKind(IntEnum):
    """What a route or nexthop means (enum sw_route_kind)."""

    LOCAL = 1
    TUNNEL = 2
    UPLINK = 3
    HOST = 4
    SCOPE = 5
    BLACKHOLE = 6


class Fate(IntEnum):
    """Where a packet ends up (enum sw_fate)."""

    NOWHERE = 0
    PORT = 1
    UPLINK = 2
    TUNNEL = 3
    HOST = 4
    INGRESS = 5


class Counter(IntEnum):
    """Indexes of sw_counters (enum sw_counter)."""

    FLOW_INSERTS = 0
    FLOW_ADOPTED = 1
    FLOW_RECYCLED = 2
    FLOW_AGED = 3
    FLOW_REDECIDED = 4
    FIRST_PACKETS = 6
    STATELESS = 7
    NAT_RETRIES = 8
    AGEING_TICKS = 9
    ANSWERED_ARP = 10
    TOO_BIG_SENT = 11
    TIME_EXCEEDED_SENT = 12
    HOST_FLOWS = 13
    FLOWS_REMOVED = 14
    LB_CONNECTIONS = 15
    LB_REFUSED = 16
    LB_ENDED = 17
    DROPS_UNNAMED = 18
    MAX = 24


class ConfigFlag(IntFlag):
    """Flags of sw_config."""

    CSUM_IPV6 = 1
    EVENTS = 2


class PortFlag(IntFlag):
    """Flags of sw_ports."""

    BLOCKED = 1
    TRANSPARENT = 2
    CAP_IN = 4
    CAP_OUT = 8
    NO_GUARD = 16
    NAT_EXPLICIT = 32
    SOURCE_MAC = 64
    TAGGED = 128


class RouteFlag(IntFlag):
    """Flags of sw_routes."""

    DECREMENT = 1


class NeighbourFlag(IntFlag):
    """Flags of sw_neighbours."""

    PODS = 1


class ServiceFlag(IntFlag):
    """Flags of sw_services."""

    REJECT = 1
    SOURCE_RANGES = 2
    BY_CLIENT = 4
    BY_PROTOCOL = 8
    DSR = 16
    PRESERVE = 32
    LOCAL = 64


class BackendFlag(IntFlag):
    """Flags of sw_backends."""

    DRAINING = 1
    LOCAL_ONLY = 2


class Choice(IntEnum):
    """Why a backend was chosen (SW_CHOICE_*)."""

    HASH = 1
    AFFINITY = 2
    KEPT = 3
    DIRECT = 4


class AclAction(IntEnum):
    """What an ACL rule says; PASS: the next stage decides."""

    BLOCK = 0
    ALLOW = 1
    PASS = 2


# Above them in the same byte: how often the table has been edited since it was made, 1 to 7 in turns; 0 = never.
ACL_EDITION_SHIFT: Final = 5
ACL_EDITIONS: Final = 7


class AclShape(IntFlag):
    """What a table's rules ask about, besides protocol and destination port."""

    SOURCE = 1
    SOURCE_SETS = 2
    DESTINATION = 4
    DESTINATION_SETS = 8
    SOURCE_PORT = 16


class NatAction(IntEnum):
    """Answer of a NAT prefix."""

    NONE = 0
    SNAT = 1


class NatFlag(IntFlag):
    """Flags of sw_nat."""

    EXPLICIT = 1


# What every flow has is no IntFlag: their operators cost ten times as much as those of integers.
class RewriteFlag(IntEnum):
    """Flags of a flow's action (SW_REWRITE_*, SW_DECREMENT)."""

    SOURCE = 1
    DESTINATION = 2
    DECREMENT = 4


class FlowFlag(IntEnum):
    """Flags of sw_flows."""

    INITIATOR = 1
    PAIR = 2
    SECOND = 4
    REPLIED = 8
    HOST = 16
    DIRECT = 32
    STREAM = 64
    DENIED = 128


class TcpFlag(IntEnum):
    """What has been seen of a TCP connection from one end."""

    SYN = 1
    FIN = 2
    RST = 4
    DATA = 8


class StepVerdict(IntEnum):
    """Verdict of one trace step."""

    PASS = 1
    DROP = 2
    REWRITE = 3
    FINAL = 4
