"""One line about a captured frame, for people who watch. Pure."""

from __future__ import annotations

from typing import Final

from samewire.trace.model import TupleView
from samewire.trace.probe import view_of
from samewire.vfp.address import mac_text
from samewire.vfp.simulate.packet import ETH_ARP, FRAGMENT_LATER, L3, TCP, Malformed, Packet, parse

_TCP_FLAGS: Final = ((0x02, "S"), (0x01, "F"), (0x04, "R"), (0x08, "P"), (0x20, "U"))
_ACK: Final = 0x10
_ICMP_TYPES: Final = {
    4: {0: "echo reply", 3: "unreachable", 5: "redirect", 8: "echo request", 11: "time exceeded"},
    6: {
        1: "unreachable",
        2: "packet too big",
        3: "time exceeded",
        128: "echo request",
        129: "echo reply",
        133: "router solicitation",
        134: "router advertisement",
        135: "neighbour solicitation",
        136: "neighbour advertisement",
    },
}


def summary(frame: bytes) -> str:
    """What is in a frame: the ends, the protocol and its most telling fields, the length."""
    if frame[12:14] == ETH_ARP and len(frame) >= L3 + 28:
        return _arp(frame)
    try:
        packet = parse(bytearray(frame))
    except Malformed as error:
        macs = f"{mac_text(frame[6:12])} > {mac_text(frame[0:6])}"
        return f"{macs} type 0x{frame[12:14].hex()} {error.reason.name.lower()}, length {len(frame)}"
    view = view_of(packet)
    return f"{ends_text(view)}{_detail(packet)}, length {packet.ip_length}"


def ends_text(view: TupleView) -> str:
    """``tcp 10.0.0.1:1234 > 10.0.0.2:80``."""
    if not view.protocol:
        return "no address read"
    if view.protocol in ("icmp", "icmpv6"):
        number = view.source_port or view.destination_port
        return f"{view.protocol} {view.source} > {view.destination}{f' id {number}' if number else ''}"
    if not view.source_port and not view.destination_port:
        return f"{view.protocol} {view.source} > {view.destination}"
    source, destination = _end(view.source, view.source_port), _end(view.destination, view.destination_port)
    return f"{view.protocol} {source} > {destination}"


def _end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _detail(packet: Packet) -> str:
    if packet.fragment == FRAGMENT_LATER:
        return " later fragment"
    if packet.protocol == TCP:
        flags = packet.data[packet.l4 + 13]
        letters = "".join(letter for bit, letter in _TCP_FLAGS if flags & bit)
        return f" [{letters}{'.' if flags & _ACK else ''}]"
    if packet.is_icmp:
        kind = packet.data[packet.l4]
        return f" {_ICMP_TYPES[packet.family].get(kind, f'type {kind}')}"
    return ""


def _arp(frame: bytes) -> str:
    operation = int.from_bytes(frame[L3 + 6 : L3 + 8], "big")
    sender, target = (".".join(map(str, frame[L3 + at : L3 + at + 4])) for at in (14, 24))
    if operation == 1:
        return f"arp who has {target}? tell {sender}"
    return f"arp {sender} is at {mac_text(frame[L3 + 8 : L3 + 14])}"
