"""What a walk works on: the tables with their look-ups, the decision it makes, and the outcome."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import msgspec

from samewire.vfp.address import ZERO, address_bits, is_loopback, masked
from samewire.vfp.constants import (
    NAT_KEY_BITS,
    OWN_ROUTE_KEY_BITS,
    ROUTE_KEY_BITS,
    SCOPE_HOST,
    SCOPE_UPLINK,
    SOURCE_RANGE_KEY_BITS,
    SPACE_FACTOR,
    Arrival,
    Fate,
    Layer,
    Reason,
    RouteKind,
)
from samewire.vfp.record import Record
from samewire.vfp.simulate.flow_table import FlowTable
from samewire.vfp.simulate.packet import Packet, Tuple
from samewire.vfp.tables import (
    AclSpace,
    Action,
    Affinity,
    AffinityKey,
    Backend,
    BackendChunk,
    BackendChunkKey,
    BackendPlace,
    Config,
    DirectKey,
    Endpoint,
    EndpointKey,
    Flow,
    FlowKey,
    Fragment,
    FragmentKey,
    Hash,
    Id,
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
    Service,
    ServiceKey,
    SourceMac,
    SourceRangeKey,
    Vni,
)


class Dropped(Exception):
    """The packet ends here: charged to ``port`` (0 = wherever it came from), by ``layer``, ``rule``, ``reason``."""

    def __init__(self, layer: Layer, reason: Reason, port: int = 0, rule: int = 0) -> None:
        super().__init__(f"{layer.name} {reason.name}")
        self.layer = layer
        self.reason = reason
        self.port = port
        self.rule = rule


class Unrouted(Dropped):
    """A pod's packet to which no route leads. Its sender is told where it opens a connection."""

    def __init__(self) -> None:
        super().__init__(Layer.ROUTE, Reason.NO_ROUTE)


class Refused(Exception):
    """The packet ends at the LB layer, and its sender is told. ``rule``: the service."""

    def __init__(self, reason: Reason, rule: int = 0) -> None:
        super().__init__(reason.name)
        self.drop = Dropped(Layer.LB, reason, rule=rule)


class Passed(Exception):
    """Not the switch's: the node's own stack has it."""


class Outcome(msgspec.Struct, frozen=True):
    """A packet's end. ``target`` is a port's or device's ifindex; ``answered``: the frame goes back where it came
    from, turned into an answer. ``fate`` NOWHERE with neither ``drop`` nor ``answered`` means that the node's own
    stack has the frame.
    """

    frame: bytes
    fate: Fate = Fate.NOWHERE
    target: int = 0
    answered: bool = False
    drop: tuple[int, int, Layer, Reason] | None = None


class Walk(msgspec.Struct):
    """The state of one packet's walk: ``first`` as the initiator sees the connection, ``out`` after the layers."""

    packet: Packet
    arrival: Arrival
    scope: int
    device: int
    port_id: int
    first: Tuple = Tuple(ZERO, ZERO)
    first_arrival: Arrival = Arrival.POD
    first_scope: int = 0
    first_port: int = 0
    out: Tuple = Tuple(ZERO, ZERO)
    out_scope: int = 0
    forward: Action = Action(0, 0, 0, 0, 0, ZERO, ZERO)
    reverse: Action = Action(0, 0, 0, 0, 0, ZERO, ZERO)
    route_flags: int = 0
    port: tuple[int, int] = (0, 0)
    generation: tuple[int, int] = (0, 0)
    rule: tuple[int, int] = (0, 0)
    needs_flow: bool = False
    wants_snat: bool = False
    nat_ports: int = 0
    kept: int = 0
    backend: int = 0
    service: int = 0
    backend_scope: int = 0
    service_source: bytes = ZERO
    is_direct: bool = False
    kept_direct: bool = False
    route_set: int = 0
    inner_mac: bytes = bytes(6)
    aside: int = 0


def make_key(ends: Tuple, scope: int, family: int, protocol: int) -> tuple[FlowKey, int]:
    """The canonical key of a tuple, and the tuple's direction under it (0 or 1)."""
    a = (ends.source, ends.source_port)
    b = (ends.destination, ends.destination_port)
    swap = int(a > b)
    low, high = (b, a) if swap else (a, b)
    return FlowKey((low[0], high[0]), (low[1], high[1]), scope, family, protocol), swap


class State:
    """Tables by name. Compiled ones are only read; flows, fragments and affinity are this object's own copies."""

    def __init__(self, tables: Mapping[str, Mapping[Record, Record]], now_tick: int) -> None:
        self.tables = tables
        self.now_tick = now_tick
        self.flows = FlowTable(cast(Mapping[FlowKey, Flow], tables.get("sw_flows", {})))
        self.fragments = dict(cast(Mapping[FragmentKey, Fragment], tables.get("sw_fragments", {})))
        self.counts: dict[tuple[FlowKey, int], tuple[int, int]] = {}
        """Packets and bytes of flows by their directions."""
        self.affinity = dict(cast(Mapping[AffinityKey, Affinity], tables.get("sw_affinity", {})))
        self._route_lengths = self._lengths("sw_routes")
        self._own_lengths = self._lengths("sw_own_routes")
        self._nat_lengths = self._lengths("sw_nat")
        self._range_lengths = self._lengths("sw_source_ranges")

    def _lengths(self, table: str) -> list[int]:
        keys = cast(
            Mapping[RouteKey | OwnRouteKey | NatKey | SourceRangeKey, Record], self.tables.get(table, {})
        )
        return sorted({key.prefix_bits for key in keys}, reverse=True)

    def insert(self, key: FlowKey, flow: Flow) -> None:
        """Insert an entry, of which nothing is counted yet."""
        self.flows[key] = flow
        self.counts[key, 0] = self.counts[key, 1] = (0, 0)

    def count(self, key: FlowKey, direction: int, packet: Packet) -> None:
        """The packet is one of a flow."""
        packets, length = self.counts.get((key, direction), (0, 0))
        self.counts[key, direction] = packets + 1, length + packet.counted_bytes

    def get(self, table: str, key: Record) -> Record | None:
        """An entry of a table."""
        return self.tables.get(table, {}).get(key)

    @property
    def config(self) -> Config | None:
        """Facts about the node."""
        return cast(Config | None, self.get("sw_config", Id(0)))

    def port(self, ifindex: int) -> Port | None:
        """A port of the switch."""
        return cast(Port | None, self.get("sw_ports", Id(ifindex)))

    def nexthop(self, number: int) -> Nexthop | None:
        """A provider address or gateway."""
        return cast(Nexthop | None, self.get("sw_nexthops", Id(number)))

    def endpoint(self, scope: int, family: int, address: bytes) -> Endpoint | None:
        """The owner of an address."""
        return cast(Endpoint | None, self.get("sw_endpoints", EndpointKey(address, scope, family)))

    def vni(self, vni: int) -> Vni | None:
        """The network behind a VNI."""
        return cast(Vni | None, self.get("sw_vnis", Id(vni)))

    def generation(self, port: Port) -> int:
        """What a flow keeps of a port: its generation, mixed with that of the IP sets that its rules name."""
        space = cast(AclSpace | None, self.get("sw_acl_spaces", Hash(port.acl_space)))
        return (port.generation + (space.generation * SPACE_FACTOR if space else 0)) & 0xFFFFFFFF

    def route(self, scope: int, family: int, address: bytes) -> Route | None:
        """The longest matching route."""
        for length in self._route_lengths:
            key = RouteKey(length, scope, family, masked(address, length - ROUTE_KEY_BITS))
            found = self.get("sw_routes", key)
            if found is not None:
                return cast(Route, found)
        return None

    def own_route(self, number: int, family: int, address: bytes, route: Route | None) -> Route | None:
        """An endpoint's own route to an address; None where its network's is longer."""
        low, high = number & 0xFFFFFFFF, number >> 32
        for length in self._own_lengths if number else ():
            key = OwnRouteKey(length, low, high, family, masked(address, length - OWN_ROUTE_KEY_BITS))
            own = cast(Route | None, self.get("sw_own_routes", key))
            if own is not None:
                return own if route is None or own.bits >= route.bits else None
        return None

    def way(self, number: int, scope: int, family: int, address: bytes) -> Route | None:
        """The route of what an endpoint sends; ``number``: of its own routes, 0 = none."""
        route = self.route(scope, family, address)
        return self.own_route(number, family, address, route) or route

    def neighbour(self, scope: int, family: int, address: bytes) -> Neighbour | None:
        """What a policy answers for an address."""
        for bits in range(address_bits(family), -1, -1):
            key = RouteKey(ROUTE_KEY_BITS + bits, scope, family, masked(address, bits))
            found = self.get("sw_neighbours", key)
            if found is not None:
                return cast(Neighbour, found)
        return None

    def source_mac(self, port: int) -> bytes | None:
        """The MAC with which an endpoint is on the underlay."""
        found = cast(SourceMac | None, self.get("sw_source_macs", Id(port)))
        return found.mac if found is not None else None

    def nat(self, number: int, family: int, address: bytes) -> Nat | None:
        """The longest matching prefix of a NAT set."""
        for length in self._nat_lengths:
            key = NatKey(length, number, family, masked(address, length - NAT_KEY_BITS))
            found = self.get("sw_nat", key)
            if found is not None:
                return cast(Nat, found)
        return None

    def service(self, key: ServiceKey) -> Service | None:
        """The load balancer of a VIP and port in a scope."""
        return cast(Service | None, self.get("sw_services", key))

    def direct(self, key: DirectKey) -> Portmap | None:
        """What an endpoint gets by DSR."""
        return cast(Portmap | None, self.get("sw_direct", key))

    def members(self, service: Service) -> Iterator[BackendPlace]:
        """The places of a service's backend set that are taken."""
        for chunk in range(service.chunks):
            found = self.get("sw_backend_sets", BackendChunkKey(service.set, chunk))
            if found is not None:
                yield from (place for place in cast(BackendChunk, found).place if place.backend)

    def backend(self, number: int) -> Backend | None:
        """A backend; None when it has been removed."""
        return cast(Backend | None, self.get("sw_backends", Id(number)))

    def in_source_ranges(self, service: int, family: int, client: bytes) -> bool:
        """Whether a client is in one of a service's source ranges."""
        for length in self._range_lengths:
            bits = length - SOURCE_RANGE_KEY_BITS
            key = SourceRangeKey(length, service, family, masked(client, bits))
            if self.get("sw_source_ranges", key) is not None:
                return True
        return False

    def is_host_address(self, scope: int, family: int, address: bytes) -> bool:
        """Whether it is an address of the node itself, as seen from a scope."""
        route = self.route(scope, family, address)
        return route is not None and route.kind == RouteKind.HOST

    def is_node(self, family: int, address: bytes) -> bool:
        """Whether it is the node itself: loopback, or one of its own on the underlay or in a pod network."""
        if is_loopback(family, address) or self.is_host_address(SCOPE_UPLINK, family, address):
            return True
        route = self.route(SCOPE_HOST, family, address)
        if route is None or route.kind != RouteKind.SCOPE:
            return False
        return self.is_host_address(route.scope, family, address)

    def portmap(self, family: int, protocol: int, address: bytes, port: int) -> Portmap | None:
        """A host port for this very address, else for every address of the node."""
        for candidate in (address, ZERO):
            found = self.get("sw_portmaps", PortmapKey(candidate, port, protocol, family))
            if found is not None:
                return cast(Portmap, found)
        return None
