"""Packets that keep the VIP on their way to the backend: DSR and PreserveDIP (``bpf/direct.h``)."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from samewire.vfp.address import IPV4, ZERO
from samewire.vfp.constants import (
    SCOPE_UPLINK,
    Arrival,
    Fate,
    FlowFlag,
    RewriteFlag,
    RouteKind,
    ServiceFlag,
)
from samewire.vfp.simulate import checksum
from samewire.vfp.simulate.packet import WITH_PORTS, Packet
from samewire.vfp.simulate.state import State, Walk
from samewire.vfp.tables import Backend, DirectKey, Flow

_OVERHEAD: Final = 70
_OPTIONS: Final = 10


def send(walk: Walk, fate: Fate, target: int = 0, flags: int = 0) -> None:
    """Where the initiator's packets go."""
    walk.forward = replace(walk.forward, fate=fate, target=target, flags=walk.forward.flags | flags)


def choose_direct(state: State, walk: Walk, backend: Backend, flags: int) -> None:
    """Whether the chosen backend is to get the packets as they are; then the way to it is known."""
    preserve = walk.kept_direct if walk.kept else bool(flags & ServiceFlag.PRESERVE)
    outside = walk.first_arrival == Arrival.UPLINK
    if not preserve and not (flags & ServiceFlag.DSR and outside):
        return
    owner = state.endpoint(backend.scope, walk.packet.family, backend.address)
    if owner is not None and owner.port:
        if not preserve:
            return
        fate, target = Fate.PORT, owner.port
        walk.out_scope = backend.scope
    elif backend.direct and (preserve or not _is_from_hop(state, walk, backend)):
        fate, target = Fate.TUNNEL, backend.direct
    else:
        return
    routed = outside and (fate == Fate.TUNNEL or walk.out_scope != SCOPE_UPLINK)
    send(walk, fate, target, RewriteFlag.DECREMENT if routed else 0)
    walk.is_direct = True


def _is_from_hop(state: State, walk: Walk, backend: Backend) -> bool:
    """Whether the client is where the backend is: itself, its node, a pod behind that node's address; or behind a
    tunnel of the backend's network.
    """
    hop, client, family = state.nexthop(backend.direct), walk.first.source, walk.packet.family
    if backend.address == client:
        return True
    if hop is not None and hop.family == family and hop.address == client:
        return True
    return _is_behind_tunnel(state, walk, backend.scope)


def _is_behind_tunnel(state: State, walk: Walk, scope: int) -> bool:
    route = state.route(scope, walk.packet.family, walk.first.source)
    return route is not None and route.kind == RouteKind.TUNNEL


def answers_elsewhere(state: State, walk: Walk) -> bool:
    """PreserveDIP: whether the answers would go through the tunnel to the client's node, and it waits for them on the
    underlay. They have to come back here, then, as they do from any backend.
    """
    if walk.first_arrival != Arrival.UPLINK or walk.forward.fate != Fate.TUNNEL:
        return False
    if not _is_behind_tunnel(state, walk, walk.backend_scope):
        return False
    walk.out_scope = walk.backend_scope
    return True


def receive_direct(state: State, walk: Walk) -> bool:
    """LB at the endpoint's node: VIP -> own address. Whether it is one of these packets."""
    packet, first = walk.packet, walk.first
    if walk.first_arrival != Arrival.TUNNEL or packet.protocol not in WITH_PORTS:
        return False
    for address in (first.destination, ZERO):
        key = DirectKey(address, first.destination_port, packet.protocol, packet.family, walk.inner_mac)
        found = state.direct(key)
        if found is not None:
            walk.out = replace(walk.out, destination=found.address, destination_port=found.internal_port)
            walk.out_scope = found.scope
            walk.needs_flow = walk.is_direct = True
            send(walk, Fate.PORT, found.port)
            return True
    return False


def speaks_for_vip(flow: Flow | None, direction: int, port: int) -> bool:
    """PreserveDIP: an endpoint that has got packets for a VIP answers from it."""
    if flow is None or not flow.flags & FlowFlag.DIRECT or flow.port[1] != port:
        return False
    return direction != flow.flags & FlowFlag.INITIATOR


def clamp_mss(packet: Packet, mtu: int) -> None:
    """A SYN-ACK tells the client what fits its own way, which is the tunnel."""
    largest = (mtu - _OVERHEAD - (40 if packet.family == IPV4 else 60)) & 0xFFFFFFFF  # as the programs count
    data, at = packet.data, packet.l4 + 20
    end = min(packet.l4 + (data[packet.l4 + 12] >> 4) * 4, len(data))
    for _ in range(_OPTIONS):
        if at + 4 > end or not data[at]:
            return
        if data[at] == 1:
            at += 1
            continue
        if data[at] != 2:
            if data[at + 1] < 2:
                return
            at += data[at + 1]
            continue
        before = bytes(data[at + 2 : at + 4])
        if int.from_bytes(before, "big") > largest and not (at - packet.l4) & 1:
            after = (largest & 0xFFFF).to_bytes(2, "big")
            place = packet.l4 + 16
            data[place : place + 2] = checksum.replace(bytes(data[place : place + 2]), before, after)
            data[at + 2 : at + 4] = after
        return
