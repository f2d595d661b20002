"""Services: the LB layer, the choice of a backend, and the way to it (``bpf/choose.h``, ``bpf/lb.h``)."""

from __future__ import annotations

from msgspec.structs import replace

from samewire.vfp.address import IPV6, ZERO
from samewire.vfp.constants import (
    LOOPBACK,
    SCOPE_ANY,
    SCOPE_OUTSIDE,
    SCOPE_UPLINK,
    Arrival,
    BackendFlag,
    Fate,
    Layer,
    Reason,
    RewriteFlag,
    RouteFlag,
    RouteKind,
    ServiceFlag,
)
from samewire.vfp.simulate.direct import choose_direct, send
from samewire.vfp.simulate.packet import WITH_PORTS, Tuple
from samewire.vfp.simulate.state import Dropped, Refused, State, Walk
from samewire.vfp.tables import Affinity, AffinityKey, Portmap, Route, Service, ServiceKey

_MASK32 = 0xFFFFFFFF
_BY_CLIENT = ServiceFlag.BY_CLIENT | ServiceFlag.BY_PROTOCOL
_CLOSED_LOCAL = BackendFlag.DRAINING  # no new connections, not even by affinity
_CLOSED = BackendFlag.DRAINING | BackendFlag.LOCAL_ONLY


def hash_ends(source: bytes, destination: bytes, last: int) -> int:
    """A hash of two addresses and one more word."""
    words = [int.from_bytes(source[i : i + 4], "big") for i in range(0, 16, 4)]
    words += [int.from_bytes(destination[i : i + 4], "big") for i in range(0, 16, 4)]
    value = 0
    for word in (*words, last):
        value = hash_word(value, word)
    return value


def hash_word(value: int, word: int) -> int:
    """A hash with one more word."""
    value = (value ^ word) * 0x9E3779B1 & _MASK32
    return value ^ value >> 15


def hash_tuple(ends: Tuple) -> int:
    """What the choice of a backend, and of the first SNAT port to try, depends on."""
    return hash_ends(ends.source, ends.destination, ends.source_port << 16 | ends.destination_port)


def weight(value: int, seed: int) -> int:
    """A member's weight for a connection's hash: the heaviest gets it."""
    value ^= seed
    value = (value ^ value >> 16) * 0x85EBCA6B & _MASK32
    value = (value ^ value >> 13) * 0xC2B2AE35 & _MASK32
    return value ^ value >> 16


def lend_source(walk: Walk, address: bytes) -> None:
    """The connection gets another source address; the port is found when the flow is inserted."""
    walk.out = replace(walk.out, source=address)
    walk.wants_snat = walk.needs_flow = True


def balance(state: State, walk: Walk, node_port: bool) -> None:
    """The LB layer: leaves the choice in ``walk.backend``. Raises ``Dropped``, ``Refused``.

    The switch asks the node's sockets, too: a connection that one of them has is no service's, nor a host port's. None
    is known here.
    """
    if walk.packet.protocol not in WITH_PORTS:
        return
    if walk.kept:
        _use_backend(state, walk, walk.kept, 0)
        return
    service = service_of(state, walk, node_port)
    if service is None:
        return
    walk.service = service.service
    walk.service_source = service.source
    family, client = walk.packet.family, walk.first.source
    if service.flags & ServiceFlag.SOURCE_RANGES and not state.in_source_ranges(
        service.service, family, client
    ):
        raise Dropped(Layer.LB, Reason.SOURCE_RANGE, rule=service.service)
    chosen = _choose(state, walk, service)
    if chosen:
        _use_backend(state, walk, chosen, service.flags)
    elif service.flags & ServiceFlag.REJECT:
        raise Refused(Reason.NO_BACKEND, service.service)
    else:
        raise Dropped(Layer.LB, Reason.NO_BACKEND, rule=service.service)


def service_of(state: State, walk: Walk, node_port: bool) -> Service | None:
    """The service of ``walk.first``, by its address or as a node port."""
    address = ZERO if node_port else walk.first.destination
    outside = walk.first_arrival == Arrival.UPLINK
    if outside and walk.first_scope != SCOPE_UPLINK:  # a VLAN is no way into others
        return None
    if not node_port and address == ZERO:  # the key of node ports, and nobody's address
        return None
    scopes = (SCOPE_OUTSIDE,) if outside else (walk.first_scope, SCOPE_ANY)
    for scope in scopes:
        packet = walk.packet
        key = ServiceKey(address, walk.first.destination_port, packet.protocol, packet.family, scope)
        found = state.service(key)
        if found is not None:
            return found
    return None


def portmap_of(state: State, walk: Walk) -> Portmap | None:
    """The host port that ``walk.first`` is for, whose destination is an address of the node and no service's."""
    protocol, first = walk.packet.protocol, walk.first
    if walk.first_arrival == Arrival.TUNNEL or protocol not in WITH_PORTS:
        return None
    return state.portmap(walk.packet.family, protocol, first.destination, first.destination_port)


def _choose(state: State, walk: Walk, service: Service) -> int:
    if not service.chunks:
        return 0
    client = walk.first.source
    key = AffinityKey(client, service.set, walk.packet.family)
    if service.affinity_ticks:
        recalled = _recall(state, key, service)
        if recalled:
            return recalled
    if service.flags & _BY_CLIENT:
        protocol = walk.packet.protocol if service.flags & ServiceFlag.BY_PROTOCOL else 0
        value = hash_ends(client, walk.first.destination, protocol)
    else:
        value = hash_tuple(walk.first)
    chosen = heaviest(state, service, value)
    if chosen and service.affinity_ticks:
        state.affinity[key] = Affinity(chosen, state.now_tick)
    return chosen


def heaviest(state: State, service: Service, value: int) -> int:
    """The member of a service's set that a hash chooses; 0 when the set is empty."""
    best = chosen = 0
    for place in state.members(service):
        score = weight(value, place.seed) << 31 | place.seed >> 1
        if best < score | 1:
            best, chosen = score, place.backend
    return chosen


def _recall(state: State, key: AffinityKey, service: Service) -> int:
    found = state.affinity.get(key)
    if found is None or state.now_tick - found.seen_tick > service.affinity_ticks:
        return 0
    backend = state.backend(found.backend)
    closed = _CLOSED_LOCAL if service.flags & ServiceFlag.LOCAL else _CLOSED
    if backend is None or backend.flags & closed:
        return 0
    state.affinity[key] = replace(found, seen_tick=state.now_tick)
    return found.backend


def _use_backend(state: State, walk: Walk, number: int, flags: int) -> None:
    backend = state.backend(number)
    if backend is None:
        raise Dropped(Layer.LB, Reason.NO_BACKEND, rule=walk.service)
    walk.backend, walk.service, walk.backend_scope = number, backend.service, backend.scope
    walk.needs_flow = True
    choose_direct(state, walk, backend, flags)
    if not walk.is_direct:
        walk.out = replace(walk.out, destination=backend.address, destination_port=backend.port)


def is_near(state: State, walk: Walk) -> bool:
    """Whether a pod reaches the backend as it would reach its address without any service."""
    if walk.first_arrival != Arrival.POD or walk.backend_scope == walk.first_scope:
        return walk.first_arrival == Arrival.POD
    if walk.backend_scope != SCOPE_UPLINK:
        return False
    owner = state.endpoint(SCOPE_UPLINK, walk.packet.family, walk.out.destination)
    return owner is None or not owner.port


def route_across(state: State, walk: Walk) -> None:
    """The way to the backend from outside its network. Raises ``Dropped``."""
    route = state.route(walk.backend_scope, walk.packet.family, walk.out.destination)
    if route is None:
        raise Dropped(Layer.ROUTE, Reason.NO_ROUTE, rule=walk.service)
    if route.kind == RouteKind.HOST:
        send(walk, Fate.HOST, LOOPBACK if walk.first_arrival == Arrival.HOST else 0)
        return
    fate, target = _across(state, walk, route)
    walk.out_scope = walk.backend_scope
    walk.route_flags = route.flags
    if walk.first_arrival == Arrival.UPLINK:
        routed = walk.out_scope != SCOPE_UPLINK or fate == Fate.UPLINK
    else:
        routed = fate != Fate.PORT and bool(route.flags & RouteFlag.DECREMENT)
    send(walk, fate, target, RewriteFlag.DECREMENT if routed else 0)
    if fate != Fate.PORT:
        lend_node_source(state, walk)


def _across(state: State, walk: Walk, route: Route) -> tuple[Fate, int]:
    if route.kind == RouteKind.LOCAL:
        owner = state.endpoint(walk.backend_scope, walk.packet.family, walk.out.destination)
        if owner is None:
            raise Dropped(Layer.ROUTE, Reason.NO_ENDPOINT, rule=walk.service)
        return (Fate.PORT, owner.port) if owner.port else (Fate.TUNNEL, owner.nexthop)
    if route.kind == RouteKind.TUNNEL:
        return Fate.TUNNEL, route.nexthop
    if route.kind == RouteKind.UPLINK:
        return Fate.UPLINK, route.nexthop
    raise Dropped(Layer.ROUTE, Reason.NO_ROUTE, rule=walk.service)


def lend_node_source(state: State, walk: Walk) -> None:
    """The node's own address where the backend is, for a client that it could not answer. Raises ``Dropped``."""
    if walk.kept:  # the flow has one
        walk.wants_snat = True
        return
    source = walk.service_source
    if walk.backend_scope == SCOPE_UPLINK and state.config is not None:
        source = state.config.address[walk.packet.family == IPV6]
    if source == ZERO:
        raise Dropped(Layer.LB, Reason.NO_SOURCE, rule=walk.service)
    lend_source(walk, source)
