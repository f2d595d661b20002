"""The contract between the HNS service and the switch that makes objects real.

The service hands over changes that are valid and complete; the switch makes all of them true in the kernel,
or none, and only then does the service write them to the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec

from samewire.hcn.loadbalancers import LoadBalancer
from samewire.hcn.schema import Endpoint, Kind, Namespace, Network, Object, Route


class Change(msgspec.Struct, frozen=True):
    """One object's change. ``before`` None = created, ``after`` None = deleted, both = modified."""

    kind: Kind
    id: str
    before: Object | None
    after: Object | None

    def inverse(self) -> Change:
        """Return the change that takes this one back."""
        return Change(self.kind, self.id, self.after, self.before)


class NodeFacts(msgspec.Struct, frozen=True):
    """What the node knows of itself and the service needs to complete objects.

    ``dr_mac`` is the distributed router's MAC (dashes), ``management_ips`` the uplink's addresses (IPv4
    first), ``mtu`` the uplink's, ``local_prefixes`` prefixes that are in use on the node (a default NAT
    subnet avoids them), ``uplink_vlan`` the VLAN with which the uplink tags its frames (0 = none),
    ``uplink_ifindex`` the uplink's number in the kernel.
    """

    dr_mac: str
    management_ips: tuple[str, ...]
    uplink: str
    mtu: int
    local_prefixes: tuple[str, ...] = ()
    uplink_vlan: int = 0
    uplink_ifindex: int = 0


class EndpointStats(msgspec.Struct, frozen=True, rename="pascal"):
    """Counters of one endpoint since it was created, from the endpoint's view."""

    bytes_received: int = 0
    bytes_sent: int = 0
    packets_received: int = 0
    packets_sent: int = 0
    dropped_packets_incoming: int = 0
    dropped_packets_outgoing: int = 0


class StoreView(Protocol):
    """Read access to a consistent set of objects. Ids are upper-case GUIDs; collections are in order of
    creation.
    """

    def network(self, network_id: str) -> Network | None: ...
    def endpoint(self, endpoint_id: str) -> Endpoint | None: ...
    def namespace(self, namespace_id: str) -> Namespace | None: ...
    def route(self, route_id: str) -> Route | None: ...
    def load_balancer(self, load_balancer_id: str) -> LoadBalancer | None: ...
    def trouble_of(self, object_id: str) -> str: ...

    def networks(self) -> Iterable[Network]: ...
    def endpoints(self) -> Iterable[Endpoint]: ...
    def namespaces(self) -> Iterable[Namespace]: ...
    def routes(self) -> Iterable[Route]: ...
    def load_balancers(self) -> Iterable[LoadBalancer]: ...

    def endpoints_of_network(self, network_id: str) -> list[Endpoint]: ...
    def endpoints_minding_remote(self, network_id: str) -> list[Endpoint]: ...
    def remote_endpoints_behind(self, network_id: str, provider_address: str) -> list[Endpoint]: ...
    def remote_endpoints_in(self, network_id: str, prefix: str) -> list[Endpoint]: ...
    def endpoints_of_namespace(self, namespace_id: str) -> list[Endpoint]: ...
    def endpoints_of_container(self, container_id: str) -> list[Endpoint]: ...
    def endpoint_by_ip(self, network_id: str, ip: str) -> Endpoint | None: ...
    def namespace_by_path(self, netns_path: str) -> Namespace | None: ...
    def network_by_name(self, name: str) -> Network | None: ...
    def routes_of_network(self, network_id: str) -> list[Route]: ...
    def routes_of_endpoint(self, endpoint_id: str) -> list[Route]: ...
    def load_balancers_of_network(self, network_id: str) -> list[LoadBalancer]: ...
    def load_balancers_of_endpoint(self, endpoint_id: str) -> list[LoadBalancer]: ...
    def load_balancers_with_backend(self, address: str) -> list[LoadBalancer]: ...


class Switch(Protocol):
    """The switch of this node."""

    async def apply(self, changes: Sequence[Change], view: StoreView) -> None:
        """Make the changes true, all or none; ``view`` shows the objects as they will be. Raises
        SamewireError.

        Changes come in an order that can be applied as it stands (a network before its endpoints, a
        replaced remote endpoint's removal before the local one). It must undo its own steps when it raises
        or is cancelled.
        """
        ...

    def netns_identity(self, path: str) -> str:
        """Return what tells the network namespace in a file from any other, of this boot or another; "" when
        there is none.
        """
        ...

    def facts(self) -> NodeFacts:
        """Return what the node knows of itself now."""
        ...

    def usable_ports(self) -> Callable[[int, int], bool]:
        """Return what says of a protocol and a port of the node, for one request, that no socket uses it and that it is
        reserved for nothing. Both raise SamewireError.
        """
        ...

    async def endpoint_stats(self, endpoint: Endpoint) -> EndpointStats:
        """Return the endpoint's counters. Raises SamewireError."""
        ...
