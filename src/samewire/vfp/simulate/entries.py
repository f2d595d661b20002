"""Entries of the flow table: the tuples of their keys, the other one of a pair, removal (``bpf/flow.h``).

Both entries of a pair are in one dict, as in the map.
"""

from __future__ import annotations

from msgspec.structs import replace

from samewire.vfp.constants import SCOPE_ASIDE, SCOPE_DIRECT, FlowFlag, RewriteFlag, TcpFlag
from samewire.vfp.simulate.packet import Tuple
from samewire.vfp.simulate.state import State, make_key
from samewire.vfp.tables import Action, Flow, FlowKey


def plain_scope(scope: int) -> int:
    """Of a key: the network's, also where the flow stands aside."""
    return scope & ~SCOPE_ASIDE if scope < SCOPE_DIRECT else scope


def tuple_of(key: FlowKey, direction: int) -> Tuple:
    """The tuple of a key's packets in one direction."""
    ends = Tuple(key.address[0], key.address[1], key.port[0], key.port[1])
    return ends.reverse if direction else ends


def transpose(ends: Tuple, action: Action) -> Tuple:
    """The tuple after an action."""
    if action.flags & RewriteFlag.SOURCE:
        ends = replace(ends, source=action.source, source_port=action.source_port)
    if action.flags & RewriteFlag.DESTINATION:
        ends = replace(ends, destination=action.destination, destination_port=action.destination_port)
    return ends


def partner_key(key: FlowKey, flow: Flow) -> FlowKey:
    """The key of the other entry of a pair."""
    initiator = flow.flags & FlowFlag.INITIATOR
    served = 1 - initiator if flow.flags & FlowFlag.SECOND else initiator
    after = transpose(tuple_of(key, served), flow.action[served])
    return make_key(after, flow.peer_scope, key.family, key.protocol)[0]


def has_ended(flow: Flow, other: Flow | None) -> bool:
    """Whether a TCP connection is over, by what its entry, or both entries of its pair, have seen.

    Direct replies are not seen: of such a connection's end the initiator's half is what is heard.
    """
    initiator, target = (flow.tcp[side] | (other.tcp[side] if other else 0) for side in (0, 1))
    if flow.flags & FlowFlag.DIRECT and not target:
        return bool(initiator & (TcpFlag.FIN | TcpFlag.RST))
    return bool((initiator | target) & TcpFlag.RST or initiator & target & TcpFlag.FIN)


def is_answered_once(flow: Flow, other: Flow | None) -> bool:
    """Whether a datagram was answered, and nothing has gone on since."""
    flags = flow.flags | (other.flags if other else 0)
    return bool(flags & FlowFlag.REPLIED and not flags & FlowFlag.STREAM)


def is_established(flow: Flow, other: Flow | None) -> bool:
    """Whether a TCP connection has been answered and confirmed, and is not over."""
    flags = flow.flags | (other.flags if other else 0)
    confirmed = (flow.tcp[0] | (other.tcp[0] if other else 0)) & TcpFlag.DATA
    return bool(flags & FlowFlag.REPLIED and confirmed) and not has_ended(flow, other)


def remove(state: State, key: FlowKey) -> None:
    """Remove a flow, both entries of a pair."""
    flow = state.flows.pop(key, None)
    if flow is not None and flow.flags & FlowFlag.PAIR:
        state.flows.pop(partner_key(key, flow), None)
