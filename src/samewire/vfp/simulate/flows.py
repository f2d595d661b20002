"""Unified flows: insertion and hits (``bpf/create.h``, ``bpf/connect.h``)."""

from __future__ import annotations

from functools import partial

from msgspec.structs import replace

from samewire.vfp.address import IPV4, ZERO
from samewire.vfp.constants import (
    NAT_TRIES,
    SCOPE_ASIDE,
    SCOPE_MAX,
    Arrival,
    Fate,
    FlowFlag,
    Layer,
    Reason,
    RewriteFlag,
    TcpFlag,
)
from samewire.vfp.simulate.balance import hash_tuple, hash_word, portmap_of, service_of
from samewire.vfp.simulate.direct import clamp_mss
from samewire.vfp.simulate.entries import has_ended, is_answered_once, partner_key, remove
from samewire.vfp.simulate.packet import TCP, UDP, WITH_PORTS, Tuple
from samewire.vfp.simulate.redecide import InTheWay, is_in_the_way, is_unserved, redecide
from samewire.vfp.simulate.state import Dropped, Passed, Refused, State, Walk, make_key
from samewire.vfp.simulate.walk import walk_layers
from samewire.vfp.tables import Action, Flow, FlowKey, Port

_NOWHERE = Action(0, 0, 0, 0, 0, ZERO, ZERO)
_ENDED = TcpFlag.FIN | TcpFlag.RST
_ORPHAN_TICKS = 4
_ANSWERED_TICKS = 4


def _compose(walk: Walk) -> None:
    first, out = walk.first, walk.out
    source = (out.source, out.source_port) != (first.source, first.source_port)
    destination = (out.destination, out.destination_port) != (first.destination, first.destination_port)
    there = (RewriteFlag.SOURCE if source else 0) | (RewriteFlag.DESTINATION if destination else 0)
    back = (RewriteFlag.DESTINATION if source else 0) | (RewriteFlag.SOURCE if destination else 0)
    walk.forward = _with_rewrite(walk.forward, there, out)
    walk.reverse = _with_rewrite(walk.reverse, back, first.reverse)


def _with_rewrite(action: Action, flags: int, ends: Tuple) -> Action:
    return replace(
        action,
        flags=action.flags & RewriteFlag.DECREMENT | flags,
        source=ends.source,
        destination=ends.destination,
        source_port=ends.source_port,
        destination_port=ends.destination_port,
    )


def _entry(state: State, walk: Walk, direction: int, actions: tuple[Action, Action], flags: int) -> Flow:
    second = flags & FlowFlag.SECOND
    return Flow(
        action=actions if not direction else actions[::-1],
        port=walk.port,
        generation=walk.generation,
        rule=walk.rule,
        seen_tick=state.now_tick,
        slot=0,
        peer_scope=0,
        flags=flags | (FlowFlag.INITIATOR if direction else 0) | (FlowFlag.DIRECT if walk.is_direct else 0),
        tcp=(0 if second else walk.packet.tcp_flags, 0),
        arrival=walk.first_arrival,
        backend=walk.backend,
        service=walk.service if walk.backend else 0,
    )


def _try_second(state: State, walk: Walk) -> bool:
    """Insert the second entry under the tuple ``walk.out``, if nothing is there."""
    packet = walk.packet
    key, direction = make_key(walk.out, walk.out_scope, packet.family, packet.protocol)
    _compose(walk)
    if key in state.flows:
        return False
    flags = FlowFlag.PAIR | FlowFlag.SECOND
    flow = _entry(state, walk, direction, (_NOWHERE, walk.reverse), flags)
    state.insert(key, replace(flow, peer_scope=walk.first_scope | walk.aside))
    return True


def _clear_way(state: State, walk: Walk, *, over: bool) -> bool:
    """Remove what is under the tuple ``walk.out`` if it is a leftover; over: or only waits to be forgotten."""
    key, _ = make_key(walk.out, walk.out_scope, walk.packet.family, walk.packet.protocol)
    held = state.flows.get(key)
    if held is None or not held.flags & FlowFlag.SECOND:
        return False
    first = state.flows.get(partner_key(key, held))
    if first is None and state.now_tick - held.seen_tick < _ORPHAN_TICKS:
        return False
    idle_since = held.seen_tick if first is None else max(first.seen_tick, held.seen_tick)
    if first is not None and not (over and _is_over(walk, first, held, state.now_tick - idle_since)):
        return False
    remove(state, key)
    return True


def _is_over(walk: Walk, first: Flow, second: Flow, idle_ticks: int) -> bool:
    """Whether a pair only waits to be forgotten. Not a moment ago: the last acknowledgement may be on its way."""
    if walk.packet.protocol == TCP:
        return has_ended(first, second) and idle_ticks > 0
    if walk.packet.protocol != UDP and not walk.packet.is_icmp:
        return False
    return is_answered_once(first, second) and idle_ticks >= _ANSWERED_TICKS


def _has_identifier(walk: Walk) -> bool:
    """ICMP with an identifier, which may be 0: an echo request, or later fragments of one."""
    request = 8 if walk.packet.family == IPV4 else 128
    return bool(walk.first.source_port) or walk.packet.icmp_type == request


def _insert_second(state: State, walk: Walk) -> bool:
    packet, config = walk.packet, state.config
    assert config is not None
    numbered = packet.protocol in WITH_PORTS or packet.is_icmp
    if not walk.wants_snat or not numbered:
        if _try_second(state, walk):
            return True
        if _clear_way(state, walk, over=False) and _try_second(state, walk):
            return True
    if packet.protocol not in WITH_PORTS and not (packet.is_icmp and _has_identifier(walk)):
        return False
    pool = config.nat_port_high - config.nat_port_low + 1
    size = min(walk.nat_ports or pool, pool)
    # The part of the pool of an endpoint that may not use all of it.
    low = config.nat_port_low + (hash_word(0, walk.first_port) * (pool + 1 - size) >> 32)
    start = hash_tuple(walk.first) * size >> 32
    ports = [low + (start + index) % size for index in range(min(size, NAT_TRIES))]
    if _search(state, walk, ports, over=False):
        return True
    opens = packet.protocol != TCP or packet.tcp_flags == TcpFlag.SYN
    return opens and _search(state, walk, ports, over=True)


def _search(state: State, walk: Walk, ports: list[int], *, over: bool) -> bool:
    for port in ports:
        walk.out = replace(walk.out, source_port=port)
        if walk.reverse.fate == Fate.INGRESS and port == walk.first.source_port:
            continue
        if _try_second(state, walk):
            return True
        if over and _clear_way(state, walk, over=True) and _try_second(state, walk):
            return True
    return False


def create(state: State, walk: Walk) -> Action:
    """Insert what the walk decided; returns the action for the packet in hand. Raises ``Dropped``."""
    packet = walk.packet
    if walk.wants_snat and packet.is_icmp and not _has_identifier(walk):
        raise Dropped(Layer.NAT, Reason.NAT_PROTOCOL, walk.first_port)
    key, direction = make_key(walk.first, walk.first_scope | walk.aside, packet.family, packet.protocol)
    other, _ = make_key(walk.out, walk.out_scope, packet.family, packet.protocol)
    pair = walk.wants_snat or key != other
    if pair and not _insert_second(state, walk):
        known = packet.protocol in WITH_PORTS or packet.is_icmp
        reason = Reason.NAT_EXHAUSTED if known else Reason.NAT_PROTOCOL
        raise Dropped(Layer.NAT, reason, walk.first_port)
    _compose(walk)
    back = _NOWHERE if pair else walk.reverse
    flow = _entry(state, walk, direction, (walk.forward, back), FlowFlag.PAIR if pair else 0)
    if pair:
        flow = replace(flow, peer_scope=walk.out_scope)
    state.insert(key, flow)
    state.count(key, direction, packet)
    return walk.forward


def first_packet(state: State, walk: Walk) -> Action:
    """A packet without a flow: the walk, then a flow if the decision needs one."""
    walk.first = walk.packet.tuple
    walk.first_arrival = walk.arrival
    walk.first_scope = walk.scope
    walk.first_port = walk.port_id
    walk.kept = 0
    walk_layers(state, walk)
    return create(state, walk) if walk.needs_flow or walk.aside else walk.forward


def _is_reopened(state: State, walk: Walk, key: FlowKey, flow: Flow) -> bool:
    """A pure SYN on a connection that has ended: its flow is removed."""
    if walk.packet.tcp_flags != TcpFlag.SYN:
        return False
    seen = flow.tcp[0] | flow.tcp[1]
    if flow.flags & FlowFlag.PAIR:
        other = state.flows.get(partner_key(key, flow))
        if other is not None:
            seen |= other.tcp[0] | other.tcp[1]
    if not seen & _ENDED:
        return False
    remove(state, key)
    return True


def _lost_backend(state: State, walk: Walk, key: FlowKey, flow: Flow, packet_side: int) -> None:
    """The flow's backend is gone, and so is the flow. Returns when the packet may open another. Raises."""
    packet = walk.packet
    remove(state, key)
    if not packet_side and (packet.protocol != TCP or packet.tcp_flags == TcpFlag.SYN):
        return
    refused = Refused(Reason.BACKEND_GONE, flow.service)
    raise refused if packet.protocol == TCP else refused.drop


def _stands_aside(state: State, walk: Walk, key: FlowKey, direction: int) -> FlowKey | None:
    """The key of the packet's flow if its connection stands aside."""
    aside = replace(key, scope=key.scope | SCOPE_ASIDE)
    flow = state.flows.get(aside) if key.scope <= SCOPE_MAX else None
    if flow is None or flow.arrival != walk.arrival or direction != flow.flags & FlowFlag.INITIATOR:
        return None
    if _is_reopened(state, walk, aside, flow):
        return None
    walk.aside = SCOPE_ASIDE
    return aside


def _answered_by_tunnel(state: State, walk: Walk, key: FlowKey, direction: int) -> FlowKey | None:
    """The key by the uplink of an answer that has come by the tunnel to what has left by the uplink as it was."""
    flow = state.flows[key]
    forward = flow.action[1 - direction]
    if (walk.arrival, flow.arrival, forward.fate) != (Arrival.TUNNEL, Arrival.POD, Fate.UPLINK):
        return None
    rewritten = forward.flags & (RewriteFlag.SOURCE | RewriteFlag.DESTINATION)
    if rewritten or flow.flags & (FlowFlag.SECOND | FlowFlag.DIRECT):
        return None
    other = replace(key, scope=flow.peer_scope)
    return other if other in state.flows else None


def _check_nowhere(state: State, flow: Flow, packet_side: int, *, in_the_way: bool) -> None:
    """Of a packet whose action has no fate: raises, unless routes have changed since and it is to be judged again."""
    if all(map(partial(_is_current, state), flow.port, flow.generation)):
        if in_the_way:
            raise InTheWay
        unserved = is_unserved(flow, packet_side)
        raise Dropped(Layer.FLOW, Reason.MARTIAN) if unserved else Dropped(Layer.ROUTE, Reason.NO_ROUTE)


def _is_current(state: State, number: int, generation: int) -> bool:
    port = state.port(number)
    return not number or (port is not None and state.generation(port) == generation)


def _is_taken_over(state: State, walk: Walk, flow: Flow, action: Action) -> bool:
    """A client's datagram (once a tick) or SYN on a flow that has no backend: is it for a service by now, or for a host
    port what goes to the node's own stack?
    """
    packet = walk.packet
    if flow.backend or flow.flags & FlowFlag.DIRECT:
        return False
    again = packet.protocol == UDP and flow.seen_tick != state.now_tick
    if not again and packet.tcp_flags != TcpFlag.SYN:
        return False
    walk.first, walk.first_arrival, walk.first_scope = packet.tuple, walk.arrival, walk.scope
    if service_of(state, walk, False) is not None:
        return True
    if not state.is_host_address(walk.scope, packet.family, packet.tuple.destination):
        return False
    mapped = action.fate == Fate.HOST and portmap_of(state, walk) is not None
    return mapped or service_of(state, walk, True) is not None


def _is_stale(
    state: State, walk: Walk, flow: Flow, action: Action, packet_side: int, own: Port | None
) -> bool:
    is_from_here = flow.port[1] != 0 if packet_side else flow.arrival in (Arrival.POD, Arrival.HOST)
    if walk.arrival == Arrival.TUNNEL and is_from_here:
        number = flow.port[packet_side]
        sender = state.port(number)
        if number and (sender is None or state.generation(sender) != flow.generation[packet_side]):
            return True
        # A pod's here, or the node's: it has come round, or somebody speaks for it.
        raise Dropped(Layer.DECAP, Reason.SPOOFED_IP)
    if own is not None and state.generation(own) != flow.generation[packet_side]:
        return True
    if action.fate == Fate.PORT:
        target = state.port(action.target)
        if target is None or state.generation(target) != flow.generation[1 - packet_side]:
            return True
        direct = flow.flags & FlowFlag.DIRECT and walk.arrival == Arrival.TUNNEL and not packet_side
        return bool(direct) and target.mac != walk.inner_mac  # the first node has chosen another one here
    if action.fate in (Fate.UPLINK, Fate.TUNNEL):
        return state.nexthop(action.target) is None or (not packet_side and _has_moved(state, flow))
    return False


def _has_moved(state: State, flow: Flow) -> bool:
    """Whether the backend is in another network than the flow leads to: the route to its node has come or gone."""
    if flow.arrival == Arrival.POD or flow.flags & FlowFlag.DIRECT:
        return False
    backend = state.backend(flow.backend) if flow.backend else None
    return backend is not None and backend.scope != flow.peer_scope


def _clamp(state: State, walk: Walk, flow: Flow, action: Action, packet_side: int) -> None:
    direct = flow.flags & FlowFlag.DIRECT and flow.arrival == Arrival.TUNNEL and packet_side
    packet = walk.packet
    if not direct or packet.protocol != TCP or packet.tcp_flags:
        return
    hop = state.nexthop(action.target) if action.fate in (Fate.UPLINK, Fate.TUNNEL) else None
    if hop is not None:
        clamp_mss(packet, hop.mtu)


def _touch(state: State, walk: Walk, key: FlowKey, flow: Flow, packet_side: int) -> None:
    seen = flow.tcp[packet_side]
    if flow.seen_tick != state.now_tick and walk.packet.tcp_flags == TcpFlag.DATA:
        seen &= ~TcpFlag.RST  # whose that was goes on: nobody has obeyed it
    seen |= walk.packet.tcp_flags
    flags = flow.flags | (FlowFlag.REPLIED if packet_side or flow.flags & FlowFlag.DIRECT else 0)
    if flow.seen_tick != state.now_tick and flow.flags & FlowFlag.REPLIED:
        flags |= FlowFlag.STREAM
    state.flows[key] = replace(
        flow,
        seen_tick=state.now_tick,
        tcp=(flow.tcp[0], seen) if packet_side else (seen, flow.tcp[1]),
        flags=flags,
    )


def _follow(
    state: State, walk: Walk, key: FlowKey, flow: Flow, direction: int, own: Port | None
) -> Action | None:
    """The action that a packet's flow has for it, or a re-decision; None: the flow is gone.

    Raises ``Dropped``, ``Refused``, ``Passed``, ``InTheWay``.
    """
    if flow.flags & FlowFlag.HOST:
        state.count(key, direction, walk.packet)
        raise Passed
    if _is_reopened(state, walk, key, flow):
        return None
    packet_side = int(direction != flow.flags & FlowFlag.INITIATOR)
    action = flow.action[direction]
    if action.fate == Fate.NOWHERE:
        in_the_way = is_unserved(flow, packet_side) and is_in_the_way(walk, key, flow)
        find = _stands_aside if in_the_way else _answered_by_tunnel
        other = find(state, walk, key, direction)
        if other is not None:
            return _judge(state, walk, other, direction)
        _check_nowhere(state, flow, packet_side, in_the_way=in_the_way)
    elif flow.backend and state.backend(flow.backend) is None:
        _lost_backend(state, walk, key, flow, packet_side)
        return None
    elif not packet_side and _is_taken_over(state, walk, flow, action):
        remove(state, key)
        return None
    elif not _is_stale(state, walk, flow, action, packet_side, own):
        _clamp(state, walk, flow, action, packet_side)
        _touch(state, walk, key, flow, packet_side)
        state.count(key, direction, walk.packet)
        return action
    return _judge(state, walk, key, direction)


def _judge(state: State, walk: Walk, key: FlowKey, direction: int) -> Action | None:
    """A re-decision; None: the flow is gone."""
    flow = state.flows[key]
    packet_side = int(direction != flow.flags & FlowFlag.INITIATOR)
    refreshed = redecide(state, walk, key, flow, packet_side)
    if refreshed is not None and refreshed.fate != Fate.NOWHERE:
        _touch(state, walk, key, state.flows[key], packet_side)
        state.count(key, direction, walk.packet)
    return refreshed


def _open_aside(walk: Walk) -> None:
    packet = walk.packet
    if packet.protocol != UDP and (packet.protocol != TCP or packet.tcp_flags != TcpFlag.SYN):
        raise Dropped(Layer.FLOW, Reason.MARTIAN)
    walk.aside = SCOPE_ASIDE


def switch(state: State, walk: Walk, own: Port | None) -> Action:
    """The packet's action: from its flow, from a re-decision, or from the walk.

    Raises ``Dropped``, ``Refused``, ``Passed``.
    """
    packet = walk.packet
    key, direction = make_key(packet.tuple, walk.scope, packet.family, packet.protocol)
    flow = state.flows.get(key)
    action: Action | None = None
    if flow is not None:
        try:
            action = _follow(state, walk, key, flow, direction, own)
        except InTheWay:
            _open_aside(walk)
    elif packet.protocol in (TCP, UDP):
        aside = _stands_aside(state, walk, key, direction)
        action = _judge(state, walk, aside, direction) if aside is not None else None
    return action or first_packet(state, walk)
