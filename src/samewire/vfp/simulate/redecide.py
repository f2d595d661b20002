"""Stale flows, judged again from the initiator's tuple (``bpf/redecide.h``)."""

from __future__ import annotations

from msgspec.structs import replace

from samewire.vfp.constants import (
    SCOPE_MAX,
    SCOPE_UPLINK,
    Arrival,
    Fate,
    FlowFlag,
    Layer,
    Reason,
    RewriteFlag,
    TcpFlag,
)
from samewire.vfp.simulate.entries import partner_key, plain_scope, remove, transpose, tuple_of
from samewire.vfp.simulate.packet import TCP
from samewire.vfp.simulate.state import Dropped, Passed, Refused, State, Unrouted, Walk
from samewire.vfp.simulate.walk import walk_layers
from samewire.vfp.tables import Action, Flow, FlowKey

_ACL = (Layer.ACL_OUT, Layer.ACL_IN)


def is_unserved(flow: Flow, packet_side: int) -> bool:
    """Of a pair: whether the packet goes the way that the partner serves."""
    return bool(flow.flags & FlowFlag.PAIR) and packet_side != bool(flow.flags & FlowFlag.SECOND)


class InTheWay(Exception):
    """The entry is another connection's, the packet in hand is of one that stands aside."""


def is_in_the_way(walk: Walk, key: FlowKey, flow: Flow) -> bool:
    """Of an unserved packet: whether it is its sender's own, to a service's backend itself."""
    reverse = flow.action[1 - (flow.flags & FlowFlag.INITIATOR)]
    is_translated = reverse.flags & RewriteFlag.DESTINATION
    is_own = flow.arrival == walk.arrival and key.scope <= SCOPE_MAX
    return bool(flow.flags & FlowFlag.SECOND) and not is_translated and is_own


def redecide(state: State, walk: Walk, key: FlowKey, flow: Flow, packet_side: int) -> Action | None:
    """Judge a stale flow again; None: it is gone, and the packet in hand may open a new one.

    Raises ``Dropped``, ``Refused``, ``Passed``, ``InTheWay``.
    """
    if not packet_side and _is_of_another(state, walk, flow):
        remove(state, key)
        return None
    first_key, second_key = key, key
    if flow.flags & FlowFlag.PAIR:
        other = partner_key(key, flow)
        first_key, second_key = (other, key) if flow.flags & FlowFlag.SECOND else (key, other)
    first, second = state.flows.get(first_key), state.flows.get(second_key)
    if first is not None and second is not None:
        _walk_again(state, walk, key, flow, (first_key, first), packet_side)
        if _is_still_true(state, walk, first, first.action[first.flags & FlowFlag.INITIATOR]):
            found = _update(state, walk, first_key, second_key, packet_side)
            if not is_unserved(flow, packet_side):
                return found
            if is_in_the_way(walk, key, flow):
                raise InTheWay
            return replace(found, fate=Fate.NOWHERE)
    remove(state, key)
    if packet_side:
        raise Dropped(Layer.FLOW, Reason.NO_ENDPOINT)
    return None


def _is_of_another(state: State, walk: Walk, flow: Flow) -> bool:
    """Whether the initiator's packet in hand is of another one: who began has gone, the address is somebody else's."""
    if flow.port[0]:
        return state.port(flow.port[0]) is None
    owner = state.endpoint(walk.scope, walk.packet.family, walk.packet.tuple.source) if walk.port_id else None
    return owner is not None and owner.port == walk.port_id


def _walk_again(
    state: State, walk: Walk, key: FlowKey, flow: Flow, initial: tuple[FlowKey, Flow], packet_side: int
) -> None:
    """The initiator's tuple walks the layers; ``initial``: the entry that has it. Raises what the walk does."""
    first_key, first = initial
    walk.first = tuple_of(first_key, first.flags & FlowFlag.INITIATOR)
    walk.first_arrival = Arrival(first.arrival)
    walk.first_scope = plain_scope(first_key.scope)
    walk.first_port = first.port[0]
    walk.kept = first.backend
    walk.kept_direct = bool(first.flags & FlowFlag.DIRECT)
    if walk.arrival != Arrival.TUNNEL:
        target = state.port(first.port[1]) if walk.kept_direct else None
        walk.inner_mac = target.mac if target is not None else bytes(6)
    try:
        walk_layers(state, walk)
    except Passed:
        remove(state, key)
        if not packet_side:
            raise
        raise Dropped(Layer.FLOW, Reason.NO_ENDPOINT) from None
    except Refused as refused:
        remove(state, key)
        raise refused.drop if packet_side else refused from None
    except Dropped as dropped:
        if dropped.layer in _ACL and _is_kept(walk, packet_side):
            denied = flow.flags | FlowFlag.DENIED
            state.flows[key] = replace(flow, seen_tick=state.now_tick, flags=denied)
        elif dropped.layer in _ACL or not _leaves(state, first):
            remove(state, key)
        if isinstance(dropped, Unrouted):
            raise Dropped(dropped.layer, dropped.reason) from None
        raise


def _leaves(state: State, first: Flow) -> bool:
    """Whether it is a pod's connection that leaves by the uplink: without a route for the moment it keeps its port."""
    leaves = first.action[first.flags & FlowFlag.INITIATOR].fate == Fate.UPLINK
    return leaves and state.port(first.port[0]) is not None


def _is_kept(walk: Walk, packet_side: int) -> bool:
    """Of a denied flow: without it, what the target goes on sending would be a connection of its own."""
    return walk.packet.protocol == TCP and not (packet_side and walk.packet.tcp_flags == TcpFlag.SYN)


def _is_still_true(state: State, walk: Walk, first: Flow, forward: Action) -> bool:
    """Whether a walk came to what the flow was made for: target, scope, and translated if it must be."""
    scope = first.peer_scope if first.flags & FlowFlag.PAIR else walk.first_scope
    if scope != walk.out_scope:
        return False
    if walk.wants_snat and (not forward.flags & RewriteFlag.SOURCE or _has_lost_source(state, walk, forward)):
        return False
    after = transpose(walk.first, forward)
    return (after.destination, after.destination_port) == (walk.out.destination, walk.out.destination_port)


def _has_lost_source(state: State, walk: Walk, forward: Action) -> bool:
    """Translated to what was the node's address, and there is another one now."""
    family, before, now = walk.packet.family, forward.source, walk.out.source
    if before == now or state.is_host_address(SCOPE_UPLINK, family, before):
        return False
    return state.is_host_address(SCOPE_UPLINK, family, now)


def _update(state: State, walk: Walk, first_key: FlowKey, second_key: FlowKey, packet_side: int) -> Action:
    first = state.flows[first_key]
    there = first.flags & FlowFlag.INITIATOR
    forward = _refreshed_action(first.action[there], walk.forward)
    state.flows[first_key] = replace(_refreshed(first, walk), action=_set(first.action, there, forward))
    second = state.flows[second_key]
    back = 1 - (second.flags & FlowFlag.INITIATOR)
    reverse = _refreshed_action(second.action[back], walk.reverse)
    state.flows[second_key] = replace(_refreshed(second, walk), action=_set(second.action, back, reverse))
    return reverse if packet_side else forward


def _refreshed_action(action: Action, found: Action) -> Action:
    """Brought to what the walk found; the rewriting part stays."""
    flags = action.flags & ~RewriteFlag.DECREMENT | found.flags & RewriteFlag.DECREMENT
    return replace(action, fate=found.fate, target=found.target, flags=flags)


def _refreshed(flow: Flow, walk: Walk) -> Flow:
    return replace(
        flow,
        port=(flow.port[0], walk.port[1]),
        generation=walk.generation,
        rule=walk.rule,
        flags=flow.flags & ~FlowFlag.DENIED,
    )


def _set(actions: tuple[Action, Action], index: int, action: Action) -> tuple[Action, Action]:
    return (actions[0], action) if index else (action, actions[1])
