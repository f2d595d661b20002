"""ICMP errors: the ones the switch sends (``bpf/icmp_reply.h``), and those it translates (``bpf/icmp_error.h``)."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec.structs import replace

from samewire.vfp.address import IPV4, ZERO
from samewire.vfp.constants import Arrival, Fate, FlowFlag, Layer, PortFlag, Reason, RewriteFlag
from samewire.vfp.simulate import checksum
from samewire.vfp.simulate.packet import (
    EXTENSIONS,
    FRAGMENT,
    FRAGMENT_LATER,
    ICMP,
    ICMPV6,
    L3,
    MAX_EXTENSIONS,
    TCP,
    UDP,
    WITH_PORTS,
    Packet,
    Tuple,
    pad,
)
from samewire.vfp.simulate.refuse import PORT_UNREACHABLE
from samewire.vfp.simulate.state import Dropped, Passed, State, Walk, make_key
from samewire.vfp.simulate.walk import side
from samewire.vfp.tables import Action, Flow, Port

_QUOTE: Final = {4: (72, 40, 28), 6: (96, 60, 48)}  # the second for TCP only
_CHECKSUM_PLACE: Final = {TCP: 16, UDP: 6, ICMP: 2, ICMPV6: 2}
TOO_BIG: Final = {4: (3, 4), 6: (2, 0)}
NO_ROUTE: Final = {4: (3, 0), 6: (1, 0)}
TIME_EXCEEDED: Final = {4: (11, 0), 6: (3, 0)}


def error_frame(state: State, walk: Walk, kind: tuple[int, int], mtu: int) -> bytes | None:
    """The ICMP error about the frame in hand, turned round; None where none may be sent."""
    packet = walk.packet
    long, tcp, short = _QUOTE[packet.family]
    sizes = (long, tcp, short) if packet.protocol == TCP else (long, short)
    size = next((size for size in sizes if size <= packet.ip_length), 0)
    elsewhere = walk.arrival == Arrival.TUNNEL
    if not size or packet.icmp_error or packet.fragment == FRAGMENT_LATER or elsewhere or packet.is_for_all:
        return None
    quote = bytes(packet.data[L3 : L3 + size])
    build = _error4 if packet.family == IPV4 else _error6
    source = (
        packet.tuple.destination if kind == PORT_UNREACHABLE[packet.family] else _error_source(state, walk)
    )
    frame = bytes(packet.data[6:12]) + bytes(packet.data[0:6]) + bytes(packet.data[12:14])
    return frame + build(source, packet.tuple.source, kind, mtu, quote)


def _error_source(state: State, walk: Walk) -> bytes:
    port = state.port(walk.port_id) if walk.port_id else None
    if port is not None and port.gateway[side(walk)] != ZERO:
        return port.gateway[side(walk)]
    return walk.packet.tuple.destination


def _error4(source: bytes, destination: bytes, kind: tuple[int, int], mtu: int, quote: bytes) -> bytes:
    length = (28 + len(quote)).to_bytes(2, "big")
    ip = bytes((0x45, 0xC0)) + length + bytes(4) + bytes((64, ICMP, 0, 0)) + source[:4] + destination[:4]
    ip = ip[:10] + checksum.whole(ip) + ip[12:]
    rest = bytes(2) + mtu.to_bytes(2, "big") if kind == TOO_BIG[4] else bytes(4)
    icmp = bytes(kind) + bytes(2) + rest + quote
    return ip + icmp[:2] + checksum.whole(icmp) + icmp[4:]


def _error6(source: bytes, destination: bytes, kind: tuple[int, int], mtu: int, quote: bytes) -> bytes:
    length = 8 + len(quote)
    ip = b"\x60\0\0\0" + length.to_bytes(2, "big") + bytes((ICMPV6, 64)) + source + destination
    rest = mtu.to_bytes(4, "big") if kind == TOO_BIG[6] else bytes(4)
    icmp = bytes(kind) + bytes(2) + rest + quote
    pseudo = source + destination + length.to_bytes(4, "big") + ICMPV6.to_bytes(4, "big")
    return ip + icmp[:2] + checksum.whole(pseudo + icmp) + icmp[4:]


class _Quote(msgspec.Struct):
    """The packet that an error quotes. ``checksum_at``: of its L4 checksum, 0 = not quoted."""

    ends: Tuple
    protocol: int
    l3: int
    l4: int
    checksum_at: int


def _quoted_l3(packet: Packet) -> tuple[Tuple, int, int] | None:
    """The quoted addresses, protocol, and the offset of the L4 header."""
    data, at = packet.data, packet.l4 + 8
    if packet.family == IPV4:
        if at + 20 > len(data) or data[at] & 0xF < 5 or int.from_bytes(data[at + 6 : at + 8], "big") & 0x1FFF:
            return None
        ends = Tuple(pad(bytes(data[at + 12 : at + 16])), pad(bytes(data[at + 16 : at + 20])))
        return ends, data[at + 9], at + (data[at] & 0xF) * 4
    if at + 40 > len(data):
        return None
    ends = Tuple(bytes(data[at + 8 : at + 24]), bytes(data[at + 24 : at + 40]))
    protocol, at = data[at + 6], at + 40
    for _ in range(MAX_EXTENSIONS):
        if protocol not in EXTENSIONS:
            break
        fragment = protocol == FRAGMENT
        if at + 8 > len(data) or (fragment and int.from_bytes(data[at + 2 : at + 4], "big") & 0xFFF8):
            return None
        protocol, at = data[at], at + (8 if fragment else (data[at + 1] + 1) * 8)
    return ends, protocol, at


def _parse_quoted(packet: Packet) -> _Quote | None:
    found = _quoted_l3(packet)
    data = packet.data
    if found is None or found[2] + 8 > len(data):
        return None
    ends, protocol, at = found
    if protocol in WITH_PORTS:
        ends = replace(
            ends,
            source_port=int.from_bytes(data[at : at + 2], "big"),
            destination_port=int.from_bytes(data[at + 2 : at + 4], "big"),
        )
    elif protocol == (ICMP if packet.family == IPV4 else ICMPV6):
        identifier = int.from_bytes(data[at + 4 : at + 6], "big")
        if data[at] in (8, 128):
            ends = replace(ends, source_port=identifier)
        elif data[at] in (0, 129):
            ends = replace(ends, destination_port=identifier)
    place = _CHECKSUM_PLACE.get(protocol, 0)
    quoted = at + place if place and at + place + 2 <= len(data) else 0
    return _Quote(ends, protocol, packet.l4 + 8, at, quoted)


def quoted_back(packet: Packet) -> tuple[Tuple, int] | None:
    """The other way round of what an error quotes, and its protocol: whose answers it speaks for."""
    quote = _parse_quoted(packet)
    return (quote.ends.reverse, quote.protocol) if quote is not None else None


def _change(packet: Packet, at: int, before: bytes, after: bytes) -> None:
    """Change quoted bytes that the ICMP checksum covers."""
    where = packet.l4 + 2
    update = checksum.replace_by_difference if len(before) == 16 else checksum.replace
    packet.data[where : where + 2] = update(bytes(packet.data[where : where + 2]), before, after)
    packet.data[at : at + len(after)] = after


def _adjust(packet: Packet, quote: _Quote, before: bytes, after: bytes) -> None:
    """What the quoted L4 checksum covers has changed."""
    at, udp = quote.checksum_at, quote.protocol == UDP
    if not at:
        return
    current = new = bytes(packet.data[at : at + 2])
    if not udp or current != b"\0\0":
        update = checksum.replace_by_difference if len(before) == 16 else checksum.replace
        new = update(current, before, after)
        if udp and new == b"\0\0":
            new = b"\xff\xff"
    _change(packet, at, current, new)


def _rewrite_address(packet: Packet, quote: _Quote, at: int, before: bytes, after: bytes) -> None:
    if packet.family != IPV4:
        _change(packet, at, before, after)
        _adjust(packet, quote, before, after)
        return
    # The quoted header's own checksum keeps its sum, and so the outer one, constant.
    where = quote.l3 + 10
    current = bytes(packet.data[where : where + 2])
    packet.data[where : where + 2] = checksum.replace(current, before[:4], after[:4])
    packet.data[at : at + 4] = after[:4]
    if quote.protocol != ICMP:
        _adjust(packet, quote, before[:4], after[:4])


def _rewrite_port(packet: Packet, quote: _Quote, at: int, before: int, after: int) -> None:
    if before and before != after:
        _change(packet, at, before.to_bytes(2, "big"), after.to_bytes(2, "big"))
        _adjust(packet, quote, before.to_bytes(2, "big"), after.to_bytes(2, "big"))


def _mirror(packet: Packet, quote: _Quote, action: Action) -> None:
    """Mirror an action on packets destination -> source into the quoted header source -> destination."""
    ends = quote.ends
    addresses = (quote.l3 + 12, quote.l3 + 16) if packet.family == IPV4 else (quote.l3 + 8, quote.l3 + 24)
    ports = (quote.l4, quote.l4 + 2) if quote.protocol in WITH_PORTS else (quote.l4 + 4, quote.l4 + 4)
    if action.flags & RewriteFlag.DESTINATION:
        _rewrite_address(packet, quote, addresses[0], ends.source, action.destination)
        _rewrite_port(packet, quote, ports[0], ends.source_port, action.destination_port)
    if action.flags & RewriteFlag.SOURCE:
        _rewrite_address(packet, quote, addresses[1], ends.destination, action.source)
        _rewrite_port(packet, quote, ports[1], ends.destination_port, action.source_port)


def _is_as_decided(state: State, own: Port, flow: Flow, direction: int, action: Action) -> bool:
    """Whether a flow is as it was decided to the pod that speaks, and to the one that it leads to."""
    side = int(direction != (flow.flags & FlowFlag.INITIATOR))
    if state.generation(own) != flow.generation[side]:
        return False
    if action.fate != Fate.PORT:
        return True
    target = state.port(action.target)
    return target is not None and state.generation(target) == flow.generation[1 - side]


def translate_error(state: State, walk: Walk) -> Action | None:
    """The action for an ICMP error, its quoted header rewritten; None: routed like any packet.

    Raises ``Dropped``, ``Passed``.
    """
    packet = walk.packet
    from_uplink = walk.arrival == Arrival.UPLINK
    quote = _parse_quoted(packet)
    if quote is None:
        if from_uplink:  # perhaps the node's own
            return None
        raise Dropped(Layer.ICMP, Reason.MALFORMED)
    walk.first = ends = quote.ends
    is_to_sender = packet.tuple.destination == ends.source
    # A pod is no router: it has something to say only about what came to it, and to whom that came from.
    own = state.port(walk.port_id) if walk.arrival == Arrival.POD else None
    is_between = is_to_sender and packet.tuple.source == ends.destination
    if own is not None and not own.flags & PortFlag.NO_GUARD and not is_between:
        raise Dropped(Layer.ICMP, Reason.ICMP_UNRELATED)
    # To somebody else: a flow that it quotes does not lead there.
    if not is_to_sender:
        return None
    key, direction = make_key(ends.reverse, walk.scope, packet.family, quote.protocol)
    flow = state.flows.get(key)
    if flow is None:
        return None
    if flow.flags & FlowFlag.HOST:
        raise Passed if from_uplink else Dropped(Layer.ICMP, Reason.ICMP_UNRELATED)
    action = flow.action[direction]
    gone = flow.backend and state.backend(flow.backend) is None
    if action.fate == Fate.NOWHERE or gone:
        raise Dropped(Layer.ICMP, Reason.ICMP_UNRELATED)
    if own is not None and not _is_as_decided(state, own, flow, direction, action):
        raise Dropped(Layer.ICMP, Reason.ICMP_UNRELATED)
    _mirror(packet, quote, action)
    flags = action.flags
    if action.fate != Fate.UPLINK and packet.tuple.source != ends.destination:
        flags &= ~RewriteFlag.SOURCE
    packet.tuple = replace(packet.tuple, source_port=0, destination_port=0)
    return replace(action, flags=flags, source_port=0, destination_port=0)
