"""HCN v2 objects: networks, endpoints, namespaces and routes. (Load balancers: `samewire.hcn.loadbalancers`; what
changes an object: `samewire.hcn.modify`.)

The shapes are those of the Host Compute Network schema 2.x, with the Linux extensions
``Namespace.netns_path``, ``Endpoint.interface_name`` and ``Endpoint.container_id``. `hcn/codec.py` turns
JSON into these and back.
"""

from __future__ import annotations

import enum
from typing import Final

from samewire.hcn.base import U8, U16, U32, SchemaVersion, Wire
from samewire.hcn.loadbalancers import LoadBalancer
from samewire.hcn.policies import VLAN, VSID, Policy, first, parse_prefix
from samewire.hcn.policy_base import parse_ip


class Kind(enum.StrEnum):
    """The kinds of object; the value is the segment of the API's path."""

    NETWORK = "networks"
    ENDPOINT = "endpoints"
    NAMESPACE = "namespaces"
    ROUTE = "routes"
    LOADBALANCER = "loadbalancers"


class NetworkType(enum.StrEnum):
    """Types of network that the switch implements."""

    NAT = "NAT"
    TRANSPARENT = "Transparent"
    L2BRIDGE = "L2Bridge"
    L2TUNNEL = "L2Tunnel"
    OVERLAY = "Overlay"
    PRIVATE = "Private"
    INTERNAL = "Internal"


class IpamType(enum.StrEnum):
    """Who hands out addresses: HNS (Static) or a DHCP server on the physical network."""

    STATIC = "Static"
    DHCP = "Dhcp"


class NamespaceType(enum.StrEnum):
    """HCN namespace types; Samewire treats all alike, but there is one default of each side."""

    HOST = "Host"
    HOST_DEFAULT = "HostDefault"
    GUEST = "Guest"
    GUEST_DEFAULT = "GuestDefault"


class NetworkFlags(enum.IntFlag):
    """Flags of a network. `ENABLE_NON_PERSISTENT` makes it vanish with a reboot of the node."""

    ENABLE_DNS_PROXY = 1
    ENABLE_DHCP_SERVER = 2
    ENABLE_MIRRORING = 4
    ENABLE_NON_PERSISTENT = 8
    DISABLE_HOST_PORT = 1024
    ENABLE_IOV = 8192


class SubnetFlags(enum.IntFlag):
    """Flags of a subnet."""

    DO_NOT_RESERVE_GATEWAY_ADDRESS = 1


class IpSubnetFlags(enum.IntFlag):
    """Flags of a range within a subnet."""

    ENABLE_BROADCAST = 1
    RESERVE_NETWORK_ADDRESS = 2


class EndpointFlags(enum.IntFlag):
    """Flags of an endpoint. `REMOTE_ENDPOINT` is an address that lives on another node."""

    REMOTE_ENDPOINT = 1
    DISABLE_INTER_COMPUTE_COMMUNICATION = 2
    ENABLE_MIRRORING = 4
    ENABLE_LOW_INTERFACE_METRIC = 8
    OVERRIDE_DNS_SERVER_ORDER = 16
    ENABLE_DHCP = 32


class ObjectState(enum.IntEnum):
    """State of an object as HNS reports it. An endpoint with a namespace is `ATTACHED_SHARING`, as process pods
    are there; `DEGRADED` is what exists and cannot work; `DESTROYED` is seen in the answer to its deletion only.
    """

    UNINITIALIZED = 0
    CREATED = 1
    ATTACHED = 2
    ATTACHED_SHARING = 3
    DETACHED = 4
    DEGRADED = 5
    DESTROYED = 6


class Dns(Wire, frozen=True, kw_only=True):
    """Resolver settings of a network or an endpoint."""

    domain: str = ""
    search: tuple[str, ...] = ()
    server_list: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class MacRange(Wire, frozen=True, kw_only=True):
    """An inclusive range of MAC addresses."""

    start_mac_address: str
    end_mac_address: str


class MacPool(Wire, frozen=True, kw_only=True):
    """MAC addresses to hand out, in order."""

    ranges: tuple[MacRange, ...] = ()


class RouteEntry(Wire, frozen=True, kw_only=True):
    """A route of a subnet or an endpoint: ``destination_prefix`` through ``next_hop``."""

    next_hop: str = ""
    destination_prefix: str = ""
    metric: U16 = 0


class IpSubnet(Wire, frozen=True, kw_only=True):
    """A range within a subnet that endpoints may ask for by id."""

    id: str = ""
    ip_address_prefix: str = ""
    flags: U32 = 0


class Subnet(Wire, frozen=True, kw_only=True):
    """A subnet of a network. Its gateway is the next hop of its default route (see `gateway`)."""

    id: str = ""
    ip_address_prefix: str = ""
    policies: tuple[Policy, ...] = ()
    routes: tuple[RouteEntry, ...] = ()
    ip_subnets: tuple[IpSubnet, ...] = ()
    flags: U32 = 0

    @property
    def gateway(self) -> str:
        """The next hop of the default route, or ""."""
        defaults = ("0.0.0.0/0", "::/0")
        return next((route.next_hop for route in self.routes if route.destination_prefix in defaults), "")

    @property
    def vni(self) -> int:
        """The VXLAN network identifier of the subnet's VSID policy, or 0."""
        policy = first(self.policies, VSID)
        return policy.isolation_id if policy else 0


class Ipam(Wire, frozen=True, kw_only=True):
    """One source of addresses."""

    type: IpamType = IpamType.STATIC
    subnets: tuple[Subnet, ...] = ()


class Network(Wire, frozen=True, kw_only=True):
    """HostComputeNetwork: one virtual network on the node."""

    id: str = ""
    name: str = ""
    owner: str = ""
    type: NetworkType = NetworkType.NAT
    policies: tuple[Policy, ...] = ()
    mac_pool: MacPool | None = None
    dns: Dns | None = None
    ipams: tuple[Ipam, ...] = ()
    flags: U32 = 0
    schema_version: SchemaVersion = SchemaVersion()

    @property
    def subnets(self) -> tuple[Subnet, ...]:
        """The subnets of all Ipams."""
        return tuple(subnet for ipam in self.ipams for subnet in ipam.subnets)

    @property
    def vni(self) -> int:
        """The VXLAN network identifier of an overlay network (all subnets have the same), or 0."""
        return next((subnet.vni for subnet in self.subnets if subnet.vni), 0)

    @property
    def vlan(self) -> int:
        """The VLAN of the network, by its policies or a subnet's, or 0."""
        lists = (self.policies, *(subnet.policies for subnet in self.subnets))
        return next((found.isolation_id for found in (first(one, VLAN) for one in lists) if found), 0)

    def subnet_of(self, ip: str) -> Subnet | None:
        """Return the subnet that contains an address, or None."""
        address = parse_ip(ip)
        for subnet in self.subnets:
            if address in parse_prefix(subnet.ip_address_prefix):
                return subnet
        return None


class IpConfiguration(Wire, frozen=True, kw_only=True):
    """One address of an endpoint. The service fills in the prefix length of the subnet where it is absent."""

    ip_address: str = ""
    prefix_length: U8 | None = None
    ip_subnet_id: str = ""


_REMOTE: Final = int(EndpointFlags.REMOTE_ENDPOINT)  # the flag itself takes ten times as long to ask for
_ALONE: Final = int(EndpointFlags.DISABLE_INTER_COMPUTE_COMMUNICATION)


class Endpoint(Wire, frozen=True, kw_only=True):
    """HostComputeEndpoint: one port of the switch.

    ``namespace_id`` is read only on the wire (attach through the namespace). Linux extensions:
    ``interface_name`` within the namespace, and ``container_id`` of the runtime that asked for it.
    ``shared_containers`` (the containers that v1 attached) and ``detached`` (it was attached once) are the
    service's own: they show as State and Health.
    """

    id: str = ""
    name: str = ""
    owner: str = ""
    network_id: str = ""
    namespace_id: str = ""
    policies: tuple[Policy, ...] = ()
    ip_configurations: tuple[IpConfiguration, ...] = ()
    dns: Dns | None = None
    routes: tuple[RouteEntry, ...] = ()
    mac_address: str = ""
    flags: U32 = 0
    interface_name: str = ""
    container_id: str = ""
    shared_containers: tuple[str, ...] = ()
    detached: bool = False
    schema_version: SchemaVersion = SchemaVersion()

    @property
    def is_remote(self) -> bool:
        """True for an address that lives on another node."""
        return self.flags & _REMOTE != 0

    @property
    def is_alone(self) -> bool:
        """True for one that talks with no other of its network."""
        return self.flags & _ALONE != 0

    @property
    def addresses(self) -> tuple[str, ...]:
        """The endpoint's IP addresses (at most one IPv4 and one IPv6)."""
        return tuple(entry.ip_address for entry in self.ip_configurations)


class ResourceType(enum.StrEnum):
    """What a namespace can hold."""

    CONTAINER = "Container"
    ENDPOINT = "Endpoint"


class ResourceData(Wire, frozen=True, kw_only=True):
    """Identity of a namespace's resource."""

    resource_id: str


class Resource(Wire, frozen=True, kw_only=True):
    """A container or an endpoint of a namespace."""

    type: ResourceType
    data: ResourceData


class Namespace(Wire, frozen=True, kw_only=True):
    """HostComputeNamespace (compartment): the network namespace that the containers of a pod share.

    ``resources`` holds the containers only: the endpoints of a namespace are the ones that name it (one
    truth), and the API adds them on output. ``netns_path`` (Linux extension) is the file of the network
    namespace. ``netns_identity`` says which one that was when an endpoint came to it, "" while none has; it is
    kept, and not shown.
    """

    id: str = ""
    name: str = ""
    owner: str = ""
    compartment_id: U32 = 0
    type: NamespaceType | None = None
    resources: tuple[Resource, ...] = ()
    netns_path: str = ""
    netns_identity: str = ""
    schema_version: SchemaVersion = SchemaVersion()


class SdnRoute(Wire, frozen=True, kw_only=True):
    """One entry of a HostComputeRoute. ``automatic_endpoint_monitor``: see `Route.watches_endpoints`."""

    destination_prefix: str
    next_hop: str = ""
    need_encap: bool = False
    automatic_endpoint_monitor: bool = False


class Route(Wire, frozen=True, kw_only=True):
    """HostComputeRoute: SDN routes of a set of endpoints (an empty set = all local endpoints of the
    network).
    """

    id: str = ""
    name: str = ""
    owner: str = ""
    network_id: str = ""
    endpoint_ids: tuple[str, ...] = ()
    routes: tuple[SdnRoute, ...] = ()
    schema_version: SchemaVersion = SchemaVersion()

    @property
    def watches_endpoints(self) -> bool:
        """True for one that is there for endpoints as they come and go, not just for those that it names."""
        return any(entry.automatic_endpoint_monitor for entry in self.routes)

    @property
    def is_of_endpoints(self) -> bool:
        """True for one that only the endpoints that it names obey, and not their whole network."""
        return bool(self.endpoint_ids) and not self.watches_endpoints


Object = Network | Endpoint | Namespace | Route | LoadBalancer

STRUCTS: dict[Kind, type[Object]] = {
    Kind.NETWORK: Network,
    Kind.ENDPOINT: Endpoint,
    Kind.NAMESPACE: Namespace,
    Kind.ROUTE: Route,
    Kind.LOADBALANCER: LoadBalancer,
}
