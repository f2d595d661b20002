"""The walk of a connection's first packet through the layers (``bpf/first.h``)."""

from __future__ import annotations

from msgspec.structs import replace

from samewire.vfp.address import ZERO, address_bits, is_loopback
from samewire.vfp.constants import (
    ACL_IN,
    ACL_OUT,
    LOOPBACK,
    SCOPE_DIRECT,
    SCOPE_UPLINK,
    Arrival,
    Fate,
    Layer,
    NatAction,
    NatFlag,
    PortFlag,
    Reason,
    RewriteFlag,
    RouteFlag,
    RouteKind,
)
from samewire.vfp.simulate.acl import judge
from samewire.vfp.simulate.balance import (
    balance,
    is_near,
    lend_node_source,
    lend_source,
    portmap_of,
    route_across,
)
from samewire.vfp.simulate.direct import answers_elsewhere, receive_direct
from samewire.vfp.simulate.direct import send as _send
from samewire.vfp.simulate.packet import SCTP, UDP
from samewire.vfp.simulate.state import Dropped, Passed, State, Unrouted, Walk, make_key
from samewire.vfp.tables import Action, Port, Route

_NOTHING = Action(0, 0, 0, 0, 0, ZERO, ZERO)


def side(walk: Walk) -> int:
    """Index of the packet's family in a port's pairs."""
    return 1 if walk.packet.family == 6 else 0


def walk_layers(state: State, walk: Walk) -> None:
    """Decide on ``walk.first``. Raises ``Dropped``, ``Refused`` or ``Passed``."""
    walk.out = walk.first
    walk.out_scope = walk.first_scope
    walk.forward = walk.reverse = _NOTHING
    walk.route_flags = 0
    walk.port = (walk.first_port, 0)
    walk.generation = walk.rule = (0, 0)
    walk.needs_flow = walk.wants_snat = False
    walk.nat_ports = 0
    walk.backend = walk.service = 0
    walk.is_direct = False
    walk.route_set = 0
    own = _initiator(state, walk) if walk.first_arrival == Arrival.POD else None
    _routing(state, walk)
    if own is not None:
        _initiator_layers(state, walk, own)
    if walk.forward.fate == Fate.PORT:
        _target_layers(state, walk)
    _route_back(state, walk)
    if walk.out_scope != walk.first_scope:
        walk.needs_flow = True


def _initiator(state: State, walk: Walk) -> Port:
    own = state.port(walk.first_port)
    if own is None:
        raise Dropped(Layer.PARSE, Reason.UNKNOWN_PORT)
    walk.generation = (state.generation(own), 0)
    walk.route_set = own.route_set
    return own


class _ToNode(Exception):
    """An address of the node itself."""


def _routing(state: State, walk: Walk) -> None:
    """LB, PORTMAP and ROUTE. A NodePort is asked for only where the address is known to be the node's."""
    if walk.first_arrival == Arrival.TUNNEL:
        owner = state.endpoint(walk.first_scope, walk.packet.family, walk.first.source)
        if owner is not None and owner.port:
            raise Dropped(Layer.DECAP, Reason.SPOOFED_IP)
    if receive_direct(state, walk):
        return
    if walk.first_arrival == Arrival.TUNNEL and _poses_as_node(state, walk):
        raise Dropped(Layer.DECAP, Reason.SPOOFED_IP)
    balance(state, walk, False)
    if not walk.backend:
        try:
            _ROUTING[walk.first_arrival](state, walk)
        except _ToNode:
            balance(state, walk, True)
            if not walk.backend:
                _to_node(state, walk)
    if walk.backend and not walk.is_direct:
        _to_backend(state, walk)
    elif walk.backend and answers_elsewhere(state, walk):
        lend_node_source(state, walk)


def _poses_as_node(state: State, walk: Walk) -> bool:
    family = walk.packet.family
    route = state.route(walk.first_scope, family, walk.first.source)
    return route is not None and route.kind == RouteKind.HOST and route.bits == address_bits(family)


def _to_node(state: State, walk: Walk) -> None:
    """PORTMAP, else the node's own stack."""
    from_uplink = walk.first_arrival == Arrival.UPLINK
    if _portmap(state, walk):
        if from_uplink and walk.out_scope != SCOPE_UPLINK:
            _send(walk, Fate.PORT, walk.forward.target, RewriteFlag.DECREMENT)
    elif from_uplink:
        raise Passed
    else:
        _send(walk, Fate.HOST, LOOPBACK if walk.first_arrival == Arrival.HOST else 0)


def _to_backend(state: State, walk: Walk) -> None:
    if not is_near(state, walk):
        route_across(state, walk)
        return
    try:
        _from_pod(state, walk)
    except _ToNode:
        _send(walk, Fate.HOST)


def _portmap(state: State, walk: Walk) -> bool:
    found = portmap_of(state, walk)
    if found is None:
        return False
    walk.out = replace(walk.out, destination=found.address, destination_port=found.internal_port)
    walk.out_scope = found.scope
    walk.needs_flow = True
    _send(walk, Fate.PORT, found.port)
    return True


def _local_target(state: State, walk: Walk) -> None:
    owner = state.endpoint(walk.first_scope, walk.packet.family, walk.out.destination)
    if owner is None:
        raise Dropped(Layer.ROUTE, Reason.NO_ENDPOINT)
    if owner.port:
        _send(walk, Fate.PORT, owner.port)
    else:
        _send(walk, Fate.TUNNEL, owner.nexthop)


def _stay_here(state: State, walk: Walk) -> None:
    """Out of a network of its own, to an endpoint of the underlay that is here: nobody on the wire would answer."""
    owner = state.endpoint(walk.out_scope, walk.packet.family, walk.out.destination)
    if owner is not None and owner.port:
        walk.forward = replace(walk.forward, fate=Fate.PORT, target=owner.port)


def _from_pod(state: State, walk: Walk) -> None:
    route = state.way(walk.route_set, walk.first_scope, walk.packet.family, walk.out.destination)
    if route is None:
        raise Unrouted
    walk.route_flags = route.flags
    if route.kind == RouteKind.HOST:
        raise _ToNode
    if route.kind == RouteKind.LOCAL:
        _local_target(state, walk)
        return
    if route.kind not in (RouteKind.TUNNEL, RouteKind.UPLINK):
        raise Dropped(Layer.ROUTE, Reason.NO_ROUTE)
    if route.kind == RouteKind.UPLINK:
        walk.out_scope = route.scope
    fate = Fate.TUNNEL if route.kind == RouteKind.TUNNEL else Fate.UPLINK
    _send(walk, fate, route.nexthop, RewriteFlag.DECREMENT if route.flags & RouteFlag.DECREMENT else 0)
    if walk.out_scope != walk.first_scope:
        _stay_here(state, walk)


def _from_uplink(state: State, walk: Walk) -> None:
    family = walk.packet.family
    scope = walk.first_scope
    route = state.route(scope, family, walk.out.destination)
    if route is not None and route.kind == RouteKind.LOCAL:
        owner = state.endpoint(scope, family, walk.out.destination)
        if owner is None or not owner.port:
            raise Passed
        _send(walk, Fate.PORT, owner.port)
        return
    of_node = route is not None and route.kind == RouteKind.HOST and scope == SCOPE_UPLINK
    raise _ToNode if of_node else Passed


def _from_tunnel(state: State, walk: Walk) -> None:
    family = walk.packet.family
    route = state.route(walk.first_scope, family, walk.out.destination)
    if route is not None and route.kind == RouteKind.HOST:
        raise _ToNode
    if route is None or route.kind != RouteKind.LOCAL:
        raise Dropped(Layer.ROUTE, Reason.NO_ROUTE)
    _local_target(state, walk)
    if walk.forward.fate != Fate.PORT:  # no transit from tunnel to tunnel
        raise Dropped(Layer.ROUTE, Reason.NO_ENDPOINT)


def _from_host(state: State, walk: Walk) -> None:
    route = state.route(walk.first_scope, walk.packet.family, walk.out.destination)
    nowhere_else = route is None or route.kind == RouteKind.HOST
    if nowhere_else and state.is_node(walk.packet.family, walk.out.destination):
        raise _ToNode
    if route is not None and route.kind == RouteKind.LOCAL:
        _local_target(state, walk)
        return
    if route is None or route.kind != RouteKind.TUNNEL:
        raise Dropped(Layer.ROUTE, Reason.NO_ROUTE)
    _send(walk, Fate.TUNNEL, route.nexthop)


_ROUTING = {
    Arrival.POD: _from_pod,
    Arrival.UPLINK: _from_uplink,
    Arrival.TUNNEL: _from_tunnel,
    Arrival.HOST: _from_host,
}


def _poses_as_tunnel(state: State, walk: Walk, own: Port) -> bool:
    """What a pod encapsulates itself would speak, inside, for any pod of any network."""
    config = state.config
    return (
        config is not None
        and (walk.packet.protocol, walk.out.destination_port) == (UDP, config.vxlan_port)
        and walk.forward.fate in (Fate.HOST, Fate.UPLINK)
        and not own.flags & PortFlag.NO_GUARD
    )


def _initiator_layers(state: State, walk: Walk, own: Port) -> None:
    if _poses_as_tunnel(state, walk, own):
        raise Dropped(Layer.GUARD, Reason.BLOCKED, walk.first_port)
    if any(own.acl_words):
        walk.needs_flow = True
    judge(state, walk, own, walk.first_port, ACL_OUT)
    if not own.nat_set or walk.forward.fate == Fate.HOST or walk.wants_snat:
        return
    nat = state.nat(own.nat_set, walk.packet.family, walk.out.destination)
    if nat is None or nat.action != NatAction.SNAT:
        return
    if walk.forward.fate == Fate.UPLINK or nat.flags & NatFlag.EXPLICIT:
        lend_source(walk, nat.address)
        walk.nat_ports = nat.ports


def _is_from_loopback(walk: Walk) -> bool:
    return walk.first_arrival == Arrival.HOST and is_loopback(walk.packet.family, walk.first.source)


def _target_layers(state: State, walk: Walk) -> None:
    ifindex = walk.forward.target
    target = state.port(ifindex)
    if target is None:
        raise Dropped(Layer.ROUTE, Reason.NO_ENDPOINT)
    walk.port = (walk.port[0], ifindex)
    walk.generation = (walk.generation[0], state.generation(target))
    walk.route_set = target.route_set
    if any(target.acl_words):
        walk.needs_flow = True
    if target.nat_set and (walk.first_arrival == Arrival.UPLINK or target.flags & PortFlag.NAT_EXPLICIT):
        walk.needs_flow = True
    family, source = walk.packet.family, walk.first.source
    from_host = walk.first_arrival == Arrival.HOST
    loopback = _is_from_loopback(walk)
    if not loopback and not (from_host and state.is_host_address(walk.out_scope, family, source)):
        judge(state, walk, target, ifindex, ACL_IN)
    elsewhere = ifindex == walk.first_port or walk.out_scope != walk.first_scope
    if (loopback or (walk.first_arrival == Arrival.POD and elsewhere)) and not walk.wants_snat:
        here = state.config if loopback and walk.out_scope == SCOPE_UPLINK else None
        lend_source(walk, (here.address if here is not None else target.gateway)[side(walk)])


def _route_back(state: State, walk: Walk) -> None:
    back = _way_back(state, walk)
    if back is not None:
        fate, target, flags = back
        walk.reverse = replace(walk.reverse, fate=fate, target=target, flags=flags)


def _is_answered_by_lo(state: State, walk: Walk) -> bool:
    """Whether answers to what the node has sent are from the node itself, or from a VIP."""
    if walk.packet.protocol != SCTP:
        return False
    return bool(walk.backend) or state.is_node(walk.packet.family, walk.first.destination)


def _way_back(state: State, walk: Walk) -> tuple[Fate, int, int] | None:
    if walk.first_arrival == Arrival.POD:
        routed = walk.forward.fate == Fate.UPLINK and walk.route_flags & RouteFlag.DECREMENT
        return Fate.PORT, walk.first_port, RewriteFlag.DECREMENT if routed else 0
    if walk.first_arrival == Arrival.HOST:
        return Fate.HOST, LOOPBACK if _is_answered_by_lo(state, walk) else 0, 0
    scope = SCOPE_UPLINK if walk.first_scope == SCOPE_DIRECT else walk.first_scope
    family, source = walk.packet.family, walk.first.source
    route = state.route(scope, family, source)
    own_name = walk.out_scope == scope and walk.out.destination == walk.first.destination
    own = state.own_route(walk.route_set, family, source, route) if own_name else None
    direct = walk.is_direct and walk.first_arrival == Arrival.TUNNEL
    way = _direct_way_back(state, walk, own or route) if direct else None
    if way is not None:
        return way
    if own is not None:
        return _own_way_back(walk, own)
    return _way_back_by(state, walk, route) if route is not None else None


def _own_way_back(walk: Walk, own: Route) -> tuple[Fate, int, int] | None:
    """By a route of the target's own."""
    flags = RewriteFlag.DECREMENT if own.flags & RouteFlag.DECREMENT else 0
    if own.kind == RouteKind.HOST:
        return Fate.HOST, 0, 0
    if own.kind == RouteKind.TUNNEL:
        return Fate.TUNNEL, own.nexthop, flags
    if own.kind != RouteKind.UPLINK:
        return None
    walk.needs_flow = walk.needs_flow or walk.first_arrival == Arrival.TUNNEL
    return Fate.UPLINK, own.nexthop, flags


def _way_back_by(state: State, walk: Walk, route: Route) -> tuple[Fate, int, int] | None:
    if walk.first_arrival == Arrival.UPLINK:
        if route.kind != RouteKind.UPLINK:
            return None
        crossing = walk.out_scope != walk.first_scope or walk.forward.fate == Fate.UPLINK
        return Fate.UPLINK, route.nexthop, RewriteFlag.DECREMENT if crossing else 0
    if route.kind == RouteKind.TUNNEL:
        return Fate.TUNNEL, route.nexthop, RewriteFlag.DECREMENT
    if route.kind == RouteKind.LOCAL:
        owner = state.endpoint(walk.first_scope, walk.packet.family, walk.first.source)
        if owner is not None and owner.nexthop:
            return Fate.TUNNEL, owner.nexthop, 0
    return None


def _direct_way_back(state: State, walk: Walk, route: Route | None) -> tuple[Fate, int, int] | None:
    if _is_client_here(state, walk):
        if walk.out_scope == SCOPE_UPLINK and walk.out.destination == walk.first.destination:
            walk.wants_snat = True
        return Fate.INGRESS, 0, RewriteFlag.DECREMENT if walk.out_scope != SCOPE_UPLINK else 0
    if route is not None and route.kind == RouteKind.UPLINK:
        routed = route.flags & RouteFlag.DECREMENT
        return Fate.UPLINK, route.nexthop, RewriteFlag.DECREMENT if routed else 0
    if route is not None and route.kind == RouteKind.HOST:
        return Fate.HOST, 0, 0
    return None


def _is_client_here(state: State, walk: Walk) -> bool:
    """Whether the client of a direct packet is a pod here, which waits for what comes by the uplink."""
    packet = walk.packet
    owner = state.endpoint(SCOPE_UPLINK, packet.family, walk.first.source)
    if owner is not None and owner.port:
        return True
    flow = state.flows.get(make_key(walk.first, SCOPE_UPLINK, packet.family, packet.protocol)[0])
    return flow is not None and flow.arrival == Arrival.POD
