"""Records of forwarding: the node, ports, endpoints, routes, next hops, port mappings, NAT, VNIs and caps.

Import them from ``samewire.vfp.tables``.
"""

from typing import ClassVar

from samewire.vfp.address import ZERO
from samewire.vfp.record import U8, U16, U32, U64, Addr, Be16, Mac, Pad, Record, record


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
    route_set: U64
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


@record("sw_own_route_key")
class OwnRouteKey(Record, frozen=True, gc=False):
    """An LPM key; ``prefix_bits`` counts the 96 bits of the set (in halves), family and reserved too."""

    prefix_bits: U32
    set_low: U32
    set_high: U32
    family: U8
    reserved: ClassVar[Pad] = Pad(3)
    address: Addr

    @property
    def set(self) -> int:
        """The number of the set."""
        return self.set_high << 32 | self.set_low


@record("sw_source_mac")
class SourceMac(Record, frozen=True, gc=False):
    """With which MAC an endpoint is on the underlay."""

    mac: Mac
    reserved: ClassVar[Pad] = Pad(2)


@record("sw_neighbour_entry")
class Neighbour(Record, frozen=True, gc=False):
    """What is answered to who asks for an address."""

    mac: Mac
    flags: U8
    reserved: ClassVar[Pad] = Pad(1)
    sender: Addr


@record("sw_route")
class Route(Record, frozen=True, gc=False):
    """What is to be done with a destination. ``bits``: length of the prefix."""

    kind: U8
    flags: U8
    scope: U16
    nexthop: U32
    bits: U8
    reserved: ClassVar[Pad] = Pad(3)


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
