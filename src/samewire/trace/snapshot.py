"""What the health checks look at: one node at one moment, and what they say about it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct

from samewire.hcn.schema import Network
from samewire.trace.context import EndpointInfo
from samewire.vfp.model import Entries, NodeFacts


class Level(enum.StrEnum):
    """``error``: something does not work. ``warning``: it will not, or works by luck."""

    ERROR = "error"
    WARNING = "warning"


class Finding(Struct, frozen=True):
    """What one check has to say. ``object`` is what it is about, in the user's words."""

    level: Level
    check: str
    object: str
    message: str
    remedy: str


class LinkInfo(Struct, frozen=True):
    """A network device of the node. ``ours``: carries Samewire's group mark."""

    name: str
    ifindex: int
    kind: str
    mtu: int
    up: bool
    ours: bool


class TunnelTraffic(Struct, frozen=True, kw_only=True):
    """VXLAN frames while the doctor looked: those for this node that ``arrived`` on the uplink, that were ``received``
    by the tunnel's device, and whose sending ``failed``.
    """

    arrived: int
    received: int
    failed: int


class SourceInfo(Struct, frozen=True):
    """A kind of Kubernetes objects that cannot be followed. ``synced``: it is known as it was; else not at all."""

    kind: str
    synced: bool
    error: str


class BalancerInfo(Struct, frozen=True):
    """A load balancer. ``ports``: protocol and number. ``inside``: its VIPs are for clients inside alone.

    ``present``: it is in the switch. ``active``: backends that get connections; ``lost``: those that the switch has
    left out, by address and port, because no such pod is here.
    """

    label: str
    vips: tuple[str, ...]
    ports: tuple[tuple[int, int], ...]
    inside: bool = True
    present: bool = True
    active: int = 1
    lost: tuple[str, ...] = ()


class Snapshot(Struct, frozen=True, kw_only=True):
    """A node. None = could not be read (which is a finding, not an empty answer).

    ``tables``: all of them, per-CPU values summed. ``differences``: wanted against kernel, a line each,
    of what the next audit sets right. ``degraded``: endpoint id -> what is wrong with it, and stays so.
    ``live_namespaces``: files of network namespaces that are alive. ``sysctls``: text by path below /proc/sys
    (``net/ipv4/conf/eth0/rp_filter``), those that exist.
    ``kernel_stats``: counters of /proc/net/snmp and netstat (``Udp.NoPorts``, ``TcpExt.IPReversePathFilter``).
    ``flow_capacity``: entries that fit into sw_flows. ``ageing_ticks``: AGEING_TICKS, read twice at least 0.2 s
    apart. ``now_tick``: the clock that flows are aged by. ``configured_uplink``: the NIC that the configuration
    names, "" = that of the default route. ``unkept``: why no change can be kept, and ``trouble``: why the node's
    own state could not be taken over, "" when all is well. ``lost_sources``: the kinds of Kubernetes objects whose
    changes do not arrive. ``unknown_name``: this node's name, if no Node has it. ``missing_network``: the one that
    Services are for, if it is not here. ``failed_services``: "namespace/name" -> why its present state is not in
    the switch. ``name_servers``: how many of the node's endpoints were given each. ``tunnel``: None where there is
    no tunnel, or it could not be watched.
    """

    facts: NodeFacts
    networks: tuple[Network, ...]
    endpoints: tuple[EndpointInfo, ...]
    tables: Entries | None
    differences: tuple[str, ...] | None
    degraded: Mapping[str, str]
    live_namespaces: frozenset[str] | None
    links: tuple[LinkInfo, ...] | None
    sysctls: Mapping[str, str]
    kernel_stats: Mapping[str, int] | None
    flow_capacity: int
    ageing_ticks: tuple[int, int] | None
    now_tick: int = 0
    configured_uplink: str = ""
    unkept: str = ""
    trouble: str = ""
    lost_sources: tuple[SourceInfo, ...] = ()
    unknown_name: str = ""
    missing_network: str = ""
    failed_services: Mapping[str, str] = {}
    balancers: tuple[BalancerInfo, ...] = ()
    name_servers: Mapping[str, int] = {}
    tunnel: TunnelTraffic | None = None


class SnapshotProvider(Protocol):
    """The node, for GET /v2/doctor."""

    async def snapshot(self) -> Snapshot:
        """Look at everything. What cannot be read becomes None; raises only when the daemon itself is broken."""
        ...
