"""ICMP errors: the ones the switch sends (``bpf/icmp_reply.h``), and those it translates (``bpf/icmp_error.h``)."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from samewire.vfp.address import IPV4, ZERO
from samewire.vfp.constants import Arrival, Fate, FlowFlag, Layer, Reason, RewriteFlag
from samewire.vfp.simulate import checksum
from samewire.vfp.simulate.flows import make_key
from samewire.vfp.simulate.packet import (
    FRAGMENT_LATER,
    ICMP,
    ICMPV6,
    L3,
    WITH_PORTS,
    Packet,
    Tuple,
    pad,
)
from samewire.vfp.simulate.state import Dropped, Passed, State, Walk
from samewire.vfp.simulate.walk import side
from samewire.vfp.tables import Action

_QUOTE: Final = {4: (64, 28), 6: (96, 48)}
TOO_BIG: Final = {4: (3, 4), 6: (2, 0)}
TIME_EXCEEDED: Final = {4: (11, 0), 6: (3, 0)}


def error_frame(state: State, walk: Walk, kind: tuple[int, int], mtu: int) -> bytes | None:
    """The ICMP error about the frame in hand, turned round; None where none may be sent."""
    packet = walk.packet
    long, short = _QUOTE[packet.family]
    length = len(packet.data) - L3
    elsewhere = walk.arrival == Arrival.TUNNEL
    if packet.icmp_error or packet.fragment == FRAGMENT_LATER or elsewhere or length < short:
        return None
    quote = bytes(packet.data[L3 : L3 + (long if length >= long else short)])
    build = _error4 if packet.family == IPV4 else _error6
    source = _error_source(state, walk)
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


def _parse_quoted(packet: Packet) -> tuple[Tuple, int, int] | None:
    """The quoted tuple, its protocol and the offset of its L4 header."""
    data, at = packet.data, packet.l4 + 8
    if packet.family == IPV4:
        if at + 20 > len(data) or data[at] & 0xF < 5 or int.from_bytes(data[at + 6 : at + 8], "big") & 0x1FFF:
            return None
        ends = Tuple(pad(bytes(data[at + 12 : at + 16])), pad(bytes(data[at + 16 : at + 20])))
        protocol, at = data[at + 9], at + (data[at] & 0xF) * 4
    else:
        if at + 40 > len(data):
            return None
        ends = Tuple(bytes(data[at + 8 : at + 24]), bytes(data[at + 24 : at + 40]))
        protocol, at = data[at + 6], at + 40
    if at + 8 > len(data):
        return None
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
    return ends, protocol, at


def _change(packet: Packet, at: int, before: bytes, after: bytes) -> None:
    """Change quoted bytes that the ICMP checksum covers."""
    where = packet.l4 + 2
    update = checksum.replace_by_difference if len(before) == 16 else checksum.replace
    packet.data[where : where + 2] = update(bytes(packet.data[where : where + 2]), before, after)
    packet.data[at : at + len(after)] = after


def _rewrite_address(packet: Packet, at: int, before: bytes, after: bytes) -> None:
    if packet.family != IPV4:
        _change(packet, at, before, after)
        return
    where = (
        packet.l4 + 8 + 10
    )  # the quoted header's own checksum keeps its sum, and so the outer one, constant
    current = bytes(packet.data[where : where + 2])
    packet.data[where : where + 2] = checksum.replace(current, before[:4], after[:4])
    packet.data[at : at + 4] = after[:4]


def _rewrite_port(packet: Packet, at: int, before: int, after: int) -> None:
    if before and before != after:
        _change(packet, at, before.to_bytes(2, "big"), after.to_bytes(2, "big"))


def translate_error(state: State, walk: Walk) -> Action | None:
    """The action for an ICMP error, its quoted header rewritten; None: routed like any packet.

    Raises ``Dropped``, ``Passed``.
    """
    packet = walk.packet
    from_uplink = walk.arrival == Arrival.UPLINK
    quoted = _parse_quoted(packet)
    if quoted is None:
        raise Passed if from_uplink else Dropped(Layer.ICMP, Reason.MALFORMED)
    ends, protocol, l4 = quoted
    key, direction = make_key(ends.reverse, walk.scope, packet.family, protocol)
    flow = state.flows.get(key)
    if flow is None or flow.flags & FlowFlag.HOST:
        if from_uplink:
            raise Passed
        if flow is not None:
            raise Dropped(Layer.ICMP, Reason.ICMP_UNRELATED)
        return None
    action = flow.action[direction]
    if action.fate == Fate.NOWHERE:
        raise Dropped(Layer.ICMP, Reason.ICMP_UNRELATED)
    l3 = packet.l4 + 8
    addresses = (l3 + 12, l3 + 16) if packet.family == IPV4 else (l3 + 8, l3 + 24)
    ports = (l4, l4 + 2) if protocol in WITH_PORTS else (l4 + 4, l4 + 4)
    if action.flags & RewriteFlag.DESTINATION:
        _rewrite_address(packet, addresses[0], ends.source, action.destination)
        _rewrite_port(packet, ports[0], ends.source_port, action.destination_port)
    if action.flags & RewriteFlag.SOURCE:
        _rewrite_address(packet, addresses[1], ends.destination, action.source)
        _rewrite_port(packet, ports[1], ends.destination_port, action.source_port)
    flags = action.flags
    if packet.tuple.source != ends.destination:
        flags &= ~RewriteFlag.SOURCE
    packet.tuple = replace(packet.tuple, source_port=0, destination_port=0)
    return replace(action, flags=flags, source_port=0, destination_port=0)
