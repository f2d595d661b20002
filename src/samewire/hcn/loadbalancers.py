"""HostComputeLoadBalancer: virtual addresses and port mappings that lead to endpoints.

The shape is HCN's; `LoadBalancer` lists what Linux adds to it.
"""

from __future__ import annotations

import enum
from typing import Final
from zlib import crc32

from samewire.hcn.base import U16, U32, SchemaVersion, Wire


class LoadBalancerFlags(enum.IntFlag):
    """Flags of a load balancer. Without VIPs, `ENABLE_IPV6` says which family its node port is of.

    `KEEP_DIRECT_CONNECTIONS` (Linux): it had direct server return. No new connection has, and those from then go on.
    """

    ENABLE_DIRECT_SERVER_RETURN = 1
    ENABLE_IPV6 = 2
    KEEP_DIRECT_CONNECTIONS = 1 << 16


class PortMappingFlags(enum.IntFlag):
    """Flags of a load balancer's port mapping.

    `VIP_EXTERNAL_IP`: the VIP is for clients outside, too (a load balancer without VIPs always is);
    `INTERNAL_LOAD_BALANCER`: for nobody outside. `LOCAL_ROUTED_VIP`: for the node itself, too.
    `PRESERVE_DIP`: backends get the VIP as destination.
    """

    INTERNAL_LOAD_BALANCER = 1
    LOCAL_ROUTED_VIP = 2
    USE_MUX = 4
    PRESERVE_DIP = 8
    VIP_EXTERNAL_IP = 16


class BackendFlags(enum.IntFlag):
    """Flags of an explicit backend: on this node; no new connections, old ones go on.

    `LOCAL_POLICY_ONLY`: new connections only where a traffic policy is Local (it ends and is the last one here that
    serves, or topology hints point elsewhere), not from clients under the policy Cluster.
    """

    LOCAL = 1
    DRAINING = 2
    LOCAL_POLICY_ONLY = 4


class DistributionType(enum.IntEnum):
    """What decides which backend a connection gets: its 5-tuple, its client and protocol, or its client."""

    NONE = 0
    SOURCE_IP_PROTOCOL = 1
    SOURCE_IP = 2


class NoEndpointsAction(enum.StrEnum):
    """What a client of a load balancer without backends sees: a refusal at once, or nothing."""

    REJECT = "Reject"
    DROP = "Drop"


class LoadBalancerPortMapping(Wire, frozen=True, kw_only=True, gc=False):
    """``external_port`` of the VIPs leads to ``internal_port`` of the backends."""

    protocol: U32 = 0
    internal_port: U16 = 0
    external_port: U16 = 0
    distribution_type: DistributionType = DistributionType.NONE
    flags: U32 = 0


class LoadBalancerBackend(Wire, frozen=True, kw_only=True, gc=False):
    """A backend that is no endpoint object. ``port`` 0 = the mapping's internal port.

    ``provider_address`` and ``mac_address`` are for a pod on a node that takes part in DSR: its node, and the pod's
    own MAC or the one of `direct_mac`. ``target_id`` says who is behind the address, in any words ("" = unknown):
    with another one it is another backend, which gets none of the connections of the first.
    """

    ip_address: str
    port: U16 = 0
    flags: U32 = 0
    provider_address: str = ""
    mac_address: str = ""
    target_id: str = ""


class LoadBalancer(Wire, frozen=True, kw_only=True, gc=False):
    """HostComputeLoadBalancer. Without ``frontend_vips`` it is a node port: any address of the node.

    Linux extensions: ``backends`` beside ``endpoint_ids``; ``local_endpoint_ids``: those that traffic policies take
    for local (default: endpoints that are not remote); ``draining_endpoint_ids``: no new connections for them;
    ``affinity_timeout`` in s, how long a client stays with its backend when the distribution is by client;
    ``source_ranges``: prefixes of the clients that may; ``no_endpoints_action``; ``internal_traffic_policy_local``
    and ``external_traffic_policy_local``: only local backends for clients inside, outside; ``service_name``:
    "namespace/name:port", for tools and metrics.
    """

    id: str = ""
    name: str = ""
    owner: str = ""
    network_id: str = ""
    endpoint_ids: tuple[str, ...] = ()
    source_vip: str = ""
    frontend_vips: tuple[str, ...] = ()
    port_mappings: tuple[LoadBalancerPortMapping, ...] = ()
    flags: U32 = 0
    backends: tuple[LoadBalancerBackend, ...] = ()
    local_endpoint_ids: tuple[str, ...] = ()
    draining_endpoint_ids: tuple[str, ...] = ()
    affinity_timeout: U32 = 0
    source_ranges: tuple[str, ...] = ()
    no_endpoints_action: NoEndpointsAction = NoEndpointsAction.REJECT
    internal_traffic_policy_local: bool = False
    external_traffic_policy_local: bool = False
    service_name: str = ""
    schema_version: SchemaVersion = SchemaVersion()

    @property
    def is_ipv6(self) -> bool:
        """Whether it balances IPv6."""
        if self.frontend_vips:
            return ":" in self.frontend_vips[0]
        return bool(self.flags & LoadBalancerFlags.ENABLE_IPV6)


_DIRECT_4: Final = bytes.fromhex("0E2A")
_DIRECT_6: Final = bytes.fromhex("0E2B")


def direct_mac(address: bytes) -> bytes:
    """Return the MAC that names an endpoint on the forward hop of DSR, by its address (4 or 16 bytes) alone.

    A node that balances knows the addresses of pods elsewhere, and not their MACs: so the pod's node takes this one
    for the pod's, too. For IPv4 it is the MAC that pods of overlay networks have, as on Windows; for IPv6 a checksum,
    which differs for addresses that differ within 32 bits.
    """
    if len(address) == 4:
        return _DIRECT_4 + address
    return _DIRECT_6 + crc32(address).to_bytes(4)


class LoadBalancerSettings(Wire, frozen=True, kw_only=True):
    """Settings of a load balancer's modify request: what to add, remove or replace, each field if it is given."""

    endpoint_ids: tuple[str, ...] | None = None
    frontend_vips: tuple[str, ...] | None = None
    port_mappings: tuple[LoadBalancerPortMapping, ...] | None = None
    backends: tuple[LoadBalancerBackend, ...] | None = None
