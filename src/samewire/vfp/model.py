"""What goes into the compiler and what comes out of it. Plain values, no behaviour.

Addresses are 16 packed bytes and MACs 6 (``samewire.vfp.address``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol, TypeAlias

import msgspec

from samewire.vfp.address import IPV4, IPV6, ZERO, Address, Prefix
from samewire.vfp.record import Record

# Table name -> key -> value. The entries of one owner, or the content of all tables.
Entries: TypeAlias = Mapping[str, Mapping[Record, Record]]

# Everything that Samewire creates as a link carries this group number ("Sw") and this alias.
LINK_GROUP: Final = 0x5377
LINK_ALIAS: Final = "samewire"

# Encapsulation overhead in bytes by the family of the provider address: outer IP, UDP, VXLAN, inner Ethernet.
VXLAN_OVERHEAD: Final = {IPV4: 50, IPV6: 70}


class Numbers(Protocol):
    """Allocated numbers, never reused: the store's allocator behind a mapping.

    Kinds and keys that the compiler asks for:

    - ``scope``: network id, ``vlan/<id>`` -> 1..32763
    - ``nexthop``: ``uplink/gateway/4``, ``uplink/onlink/6``, ``uplink/via/<address>``, ``uplink/vlan/<id>``,
      ``tunnel/<network id>/<prefix>``, ``endpoint/<endpoint id>`` -> >= 1
    - ``nat``: ``<digest>`` -> >= 1
    """

    def number(self, kind: str, key: str) -> int:
        """The number of ``key``, allocated at the first call."""
        ...


LEAST_PATH_MTU: Final = 552
"""The kernel learns of no narrower way (``net.ipv4.route.min_pmtu``); a route may say anything."""


class NodeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the node is: read from the kernel at start and whenever it changes.

    ``addresses`` are the node's own addresses with their prefix lengths (host bits kept), global scope only,
    the main address of each family first, without those that Samewire itself put on samewire0; ``gateways``
    the default gateways, at most one a family. ``events``: somebody reads drop events; ``acl_allow_unmatched``:
    what an endpoint's ACL rules leave open passes; ``netns``: low half of the cookie of the node's network
    namespace, 0 = unknown. ``uplink_vlan``: the VLAN with which the uplink
    tags its frames itself, 0 = none; ``vlans``: those of the node's own devices on it. ``underlay``: the uplink's
    subnets; of a family of which it has no address at the moment, those that it had last. ``path_mtus``: of ways
    that are narrower than the uplink, by the provider address or the gateway.
    """

    name: str
    uplink_ifindex: int
    uplink_mac: bytes
    uplink_mtu: int
    addresses: tuple[Prefix, ...] = ()
    gateways: tuple[Address, ...] = ()
    tunnel_ifindex: int = 0
    tunnel_mac: bytes = bytes(6)
    host_ifindex: int = 0
    host_mac: bytes = bytes(6)
    host_peer_ifindex: int = 0
    host_peer_mac: bytes = bytes(6)
    nat_port_low: int = 49152
    nat_port_high: int = 65535
    vxlan_port: int = 4789
    flow_slots: int = 262144
    csum_ipv6: bool = False
    events: bool = False
    acl_allow_unmatched: bool = False
    netns: int = 0
    uplink_vlan: int = 0
    vlans: tuple[int, ...] = ()
    underlay: tuple[Prefix, ...] = ()
    path_mtus: Mapping[Address, int] = msgspec.field(default_factory=dict)

    def address(self, family: int) -> bytes:
        """The node's main address of that family, packed; zero when it has none."""
        for prefix in self.addresses:
            if prefix.family == family:
                return prefix.packed
        return ZERO

    def mtu_to(self, address: Address) -> int:
        """How long a packet may be that the uplink takes to an address, in bytes. Zero: to anybody on its link."""
        if not self.path_mtus:
            return self.uplink_mtu
        way = [address]
        if address.packed != ZERO and not any(address in subnet for subnet in self.underlay):
            way.append(Address(address.family, self.gateway(address.family)))
        narrowest = min(self.path_mtus.get(hop, self.uplink_mtu) for hop in way)
        return min(self.uplink_mtu, max(narrowest, LEAST_PATH_MTU))

    def gateway(self, family: int) -> bytes:
        """The default gateway of that family, packed; zero when there is none."""
        for gateway in self.gateways:
            if gateway.family == family:
                return gateway.packed
        return ZERO


class LinkRoute(msgspec.Struct, frozen=True):
    """A kernel route in a pod's namespace. ``gateway`` None = on-link; metric 0 = the kernel's default."""

    destination: Prefix
    gateway: Address | None = None
    metric: int = 0


class LinkNeighbour(msgspec.Struct, frozen=True):
    """A permanent neighbour entry inside a pod's namespace."""

    address: Address
    mac: bytes


class ProxyRule(msgspec.Struct, frozen=True, kw_only=True):
    """New connections of a pod that its own stack hands to a proxy.

    ``name``: of the policy, for people. ``outbound``: the pod opens them, ``remote`` is the destination; else they
    arrive, ``remote`` is the client. Empty prefixes and ports stand for any; what an ``except_`` names is left alone
    (``except_ports``: the port that is connected to). ``user``: the account whose sockets are left alone. ``target``:
    the proxy's address, None = the pod itself.
    """

    name: str
    outbound: bool
    family: int
    protocol: int
    port: int
    target: Address | None = None
    local: tuple[Prefix, ...] = ()
    remote: tuple[Prefix, ...] = ()
    local_ports: tuple[tuple[int, int], ...] = ()
    remote_ports: tuple[tuple[int, int], ...] = ()
    except_remote: tuple[Prefix, ...] = ()
    except_ports: tuple[tuple[int, int], ...] = ()
    user: int | None = None


class PortLink(msgspec.Struct, frozen=True, kw_only=True):
    """The veth pair wanted for one endpoint.

    ``netns_path`` empty: the endpoint is not attached yet and has no link. Rates and bursts are caps, 0 =
    none: *towards* the pod by a TBF on the host end, ``outgoing`` by a TBF on the pod's own end. ``proxies``: asked
    in this order, the first match decides. ``announcements``: frames for the uplink, once the link is open and when
    they are others than before.
    """

    endpoint_id: str
    host_name: str
    host_mac: bytes
    netns_path: str
    interface_name: str
    mac: bytes
    mtu: int
    addresses: tuple[Prefix, ...]
    routes: tuple[LinkRoute, ...]
    neighbours: tuple[LinkNeighbour, ...]
    rate_bytes_per_s: int = 0
    burst_bytes: int = 0
    outgoing_rate_bytes_per_s: int = 0
    outgoing_burst_bytes: int = 0
    proxies: tuple[ProxyRule, ...] = ()
    announcements: tuple[bytes, ...] = ()
    group: int = LINK_GROUP
    alias: str = LINK_ALIAS


class HostRoute(msgspec.Struct, frozen=True, order=True):
    """A kernel route of the node via samewire0, with its preferred source (None: the kernel chooses) and the MTU in
    bytes of what is behind it (0: samewire0's).
    """

    destination: Prefix
    source: Address | None = None
    mtu: int = 0


class HostBinding(msgspec.Struct, frozen=True, kw_only=True):
    """What one owner wants of the node's own stack; the union over all owners is applied.

    ``addresses`` (as /32 or /128) and ``routes`` on samewire0; ``reserved_ports`` as ip_local_reserved_ports
    writes it (``49152-65535``); ``nic_filters`` MACs, unicast and multicast, that the uplink must let in;
    ``listens``: IPv6 addresses for whose neighbour solicitations it listens;
    ``mapped_ports``: ports of the node that are an endpoint's, which the kernel must not hand to sockets;
    ``forwards``: what the switch hands over is not all for the node itself, which has to pass it on (IPv4; for IPv6
    the kernel has one switch for all interfaces).
    """

    addresses: tuple[Prefix, ...] = ()
    routes: tuple[HostRoute, ...] = ()
    reserved_ports: str = ""
    nic_filters: tuple[bytes, ...] = ()
    listens: tuple[bytes, ...] = ()
    mapped_ports: frozenset[int] = frozenset()
    forwards: bool = False


class Edit(msgspec.Struct, frozen=True):
    """How the entries of an owner follow from the very ones in ``base``."""

    base: Entries
    puts: tuple[tuple[str, Record, Record], ...]
    gone: tuple[tuple[str, Record], ...]


class Compiled(msgspec.Struct, frozen=True):
    """The result of compiling one owner object. ``edit``: a shorter way to the same entries, where one is known.
    ``shared``: what it needs beside its own entries, and others may need, too.
    """

    entries: Entries
    binding: HostBinding = HostBinding()
    edit: Edit | None = None
    shared: tuple[Shared, ...] = ()

    def everything(self) -> Entries:
        """Its own entries and the shared ones."""
        found: dict[str, dict[Record, Record]] = {table: dict(rows) for table, rows in self.entries.items()}
        for part in self.shared:
            for table, rows in part.steps[-1].entries.items():
                found.setdefault(table, {}).update(rows)
        return found


class Shared(Protocol):
    """Entries that go with the last one who needs them: an ACL table.

    ``steps``: they have to be like these, one after the other; the last is what they stay.
    """

    @property
    def name(self) -> int:
        """Equal names: the same entries."""
        ...

    @property
    def steps(self) -> tuple[Compiled, ...]: ...


FAMILIES: Final = (IPV4, IPV6)
