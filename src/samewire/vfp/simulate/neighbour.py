"""ARP and neighbour discovery, answered from the tables (``bpf/neighbour.h``)."""

from __future__ import annotations

from typing import Final, NoReturn

from samewire.vfp.address import NO_MAC, ZERO
from samewire.vfp.constants import Fate, Layer, NeighbourFlag, PortFlag, Reason, RouteKind
from samewire.vfp.simulate import checksum
from samewire.vfp.simulate.packet import ICMPV6, L3, Packet, pad
from samewire.vfp.simulate.state import Dropped, Passed, State
from samewire.vfp.tables import Neighbour, Nexthop, Port

_ARP_IPV4: Final = b"\x00\x01\x08\x00"
_REQUEST: Final = b"\x00\x01"
_SOLICITATION: Final = 135
_ADVERTISEMENT: Final = 136
_ND: Final = L3 + 40
_ND_LENGTH: Final = 32  # with one link-layer address option
_SOURCE_OPTION: Final = b"\x01\x01"
_ASKS_WIRE: Final = PortFlag.TRANSPARENT | PortFlag.TAGGED
_ALL_NODES: Final = bytes.fromhex("ff020000000000000000000000000001")


class Swallowed(Exception):
    """Nothing to answer and nothing lost: an announcement that nobody needs."""


class Forwarded(Exception):
    """A pod's question goes out to the wire, or the wire's answer in to the pod."""

    def __init__(self, fate: Fate, target: int) -> None:
        super().__init__(fate.name)
        self.fate = fate
        self.target = target


def is_link_local(address: bytes) -> bool:
    """fe80::/10."""
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80


def _by_policy(
    state: State, scope: int, family: int, asker: bytes, target: bytes, on_wire: bool
) -> Neighbour | None:
    """Not for who announces an address, or asks whether it is free; nor for link-local addresses."""
    if asker in (ZERO, target) or (family == 6 and is_link_local(target)):
        return None
    found = state.neighbour(scope, family, target)
    return None if found is not None and on_wire and found.flags & NeighbourFlag.PODS else found


def _owner_mac(
    state: State, scope: int, family: int, port: Port | None, asker: bytes, target: bytes
) -> bytes | Neighbour | None:
    if port is not None:
        owner = state.endpoint(scope, family, target)
        if owner is not None:
            return owner.mac
        found = _by_policy(state, scope, family, asker, target, False)
        if found is not None:
            return found
        if port.gateway[family == 6] != target:
            route = state.way(port.route_set, scope, family, target)
            if route is None or route.kind in (RouteKind.LOCAL, RouteKind.BLACKHOLE):
                return None
        return port.gateway_mac
    here = state.endpoint(scope, family, target)
    if here is None:
        route = state.route(scope, family, target)
        of_node = route is not None and route.kind == RouteKind.HOST
        return None if of_node else _by_policy(state, scope, family, asker, target, True)
    owner_port = state.port(here.port) if here.port else None
    return mac_on_wire(state, here.port, owner_port) if owner_port is not None else None


def mac_on_wire(state: State, ifindex: int, port: Port) -> bytes:
    """The MAC that a port has on the underlay."""
    if port.flags & PortFlag.TRANSPARENT:
        return port.mac
    own = state.source_mac(ifindex) if port.flags & PortFlag.SOURCE_MAC else None
    return own or (state.config.uplink_mac if state.config else NO_MAC)


def _wire_to_ask(
    state: State, scope: int, family: int, port: Port | None, target: bytes, mac: bytes
) -> Nexthop | None:
    """Where a pod that asks the wire itself is to ask about addresses beyond this node."""
    if port is None or not port.flags & _ASKS_WIRE or mac != port.gateway_mac:
        return None
    route = state.way(port.route_set, scope, family, target)
    known = route is not None and route.kind == RouteKind.UPLINK
    return state.nexthop(route.nexthop) if route is not None and known else None


def _claim_nothing(port: Port, asker: bytes) -> None:
    """Whether an address is free is asked by who is about to take it: on the wire others would give it up."""
    if asker == ZERO and not port.flags & PortFlag.NO_GUARD:
        raise Dropped(Layer.GUARD, Reason.SPOOFED_ARP)


def _ask_neighbour(state: State, packet: Packet, ifindex: int, port: Port, hop: Nexthop) -> NoReturn:
    """From the MAC that the pod has on the wire, and from its own address: the answer must find it."""
    data = packet.data
    # GUARD has looked at the first option. Another one might name another MAC.
    if not port.flags & PortFlag.NO_GUARD and int.from_bytes(data[L3 + 4 : L3 + 6], "big") > _ND_LENGTH:
        raise Dropped(Layer.GUARD, Reason.SPOOFED_ARP)
    own = port.flags & PortFlag.NO_GUARD or not is_link_local(packet.tuple.source)
    if not (port.flags & PortFlag.TRANSPARENT and own):
        without = len(data) < _ND + 32 or bytes(data[_ND + 24 : _ND + 26]) != _SOURCE_OPTION
        if without or port.address[1] == ZERO:
            raise Dropped(Layer.L2, Reason.MULTICAST)
        mac = mac_on_wire(state, ifindex, port)
        before = bytes(data[L3 + 8 : L3 + 24]) + bytes(data[_ND + 26 : _ND + 32])
        summed = checksum.replace_by_difference(bytes(data[_ND + 2 : _ND + 4]), before, port.address[1] + mac)
        data[_ND + 2 : _ND + 4] = summed
        data[L3 + 8 : L3 + 24] = port.address[1]
        data[_ND + 26 : _ND + 32] = data[6:12] = mac
    raise Forwarded(Fate.UPLINK, hop.ifindex)


def _answer_in(state: State, data: bytearray, scope: int, family: int, asker: bytes) -> NoReturn:
    """An answer from the wire: a pod's that has asked, or the node's own."""
    owner = state.endpoint(scope, family, asker)
    port = state.port(owner.port) if owner is not None and owner.port else None
    if owner is None or port is None or not port.flags & _ASKS_WIRE:
        raise Passed
    if port.flags & PortFlag.BLOCKED:
        raise Dropped(Layer.L2, Reason.PORT_BLOCKED, owner.port)
    data[0:6] = port.mac
    if not port.flags & PortFlag.TRANSPARENT:
        data[6:12] = port.gateway_mac
    raise Forwarded(Fate.PORT, owner.port)


def answer_arp(state: State, data: bytearray, scope: int, port: Port | None, ifindex: int = 0) -> bytes:
    """The reply to an ARP request. Raises ``Dropped``, ``Passed``, ``Swallowed``, ``Forwarded``."""
    if len(data) < L3 + 28:
        raise Dropped(Layer.PARSE, Reason.MALFORMED) if port else Passed
    if data[L3 : L3 + 4] != _ARP_IPV4:
        raise Dropped(Layer.PARSE, Reason.NOT_IP) if port else Passed
    sender_mac, sender = bytes(data[L3 + 8 : L3 + 14]), bytes(data[L3 + 14 : L3 + 18])
    target = bytes(data[L3 + 24 : L3 + 28])
    if port is not None and not port.flags & PortFlag.NO_GUARD:
        own = port.address[0][:4]
        if bytes(data[6:12]) != port.mac:
            raise Dropped(Layer.GUARD, Reason.SPOOFED_MAC)
        if sender_mac != port.mac or (sender != bytes(4) and sender != own):
            raise Dropped(Layer.GUARD, Reason.SPOOFED_ARP)
        if target == own:
            raise Swallowed
    if data[L3 + 6 : L3 + 8] != _REQUEST:
        if port is not None:
            raise Swallowed
        _answer_in(state, data, scope, 4, pad(target))
    found = _owner_mac(state, scope, 4, port, pad(sender), pad(target))
    if found is None:
        raise Dropped(Layer.ROUTE, Reason.NO_ENDPOINT) if port else Passed
    mac = found.mac if isinstance(found, Neighbour) else found
    hop = _wire_to_ask(state, scope, 4, port, pad(target), mac)
    if hop is not None and port is not None:
        _claim_nothing(port, pad(sender))
        data[6:12] = data[L3 + 8 : L3 + 14] = mac_on_wire(state, ifindex, port)
        raise Forwarded(Fate.UPLINK, hop.ifindex)
    head = sender_mac + mac + bytes(data[12 : L3 + 6]) + b"\x00\x02"
    return head + mac + target + sender_mac + sender + bytes(data[L3 + 28 :])


def answer_neighbour(state: State, packet: Packet, scope: int, port: Port | None, ifindex: int = 0) -> bytes:
    """The advertisement for a solicitation. Raises ``Dropped``, ``Passed``, ``Swallowed``, ``Forwarded``."""
    data = packet.data
    if packet.l4 != _ND or len(data) < _ND + 24 or packet.icmp_type not in (_SOLICITATION, _ADVERTISEMENT):
        raise Dropped(Layer.L2, Reason.MULTICAST) if port else Passed
    target = bytes(data[_ND + 8 : _ND + 24])
    if port is not None and not port.flags & PortFlag.NO_GUARD and not _is_own(packet, port, target):
        raise Dropped(Layer.GUARD, Reason.SPOOFED_ARP)
    if packet.icmp_type != _SOLICITATION:
        if port is not None:
            raise Swallowed
        _answer_in(state, data, scope, 6, packet.tuple.destination)
    if port is not None and (target == port.address[1] or _is_of_no_link(packet, port, target)):
        raise Swallowed
    found = _owner_mac(state, scope, 6, port, packet.tuple.source, target)
    if found is None:
        raise Dropped(Layer.ROUTE, Reason.NO_ENDPOINT) if port else Passed
    mac, sender = (found.mac, found.sender) if isinstance(found, Neighbour) else (found, target)
    hop = _wire_to_ask(state, scope, 6, port, target, mac)
    if hop is not None and port is not None:
        _claim_nothing(port, packet.tuple.source)
        _ask_neighbour(state, packet, ifindex, port, hop)
    return _advertisement(packet, target, mac, sender, port is not None and mac == port.gateway_mac)


def _is_of_no_link(packet: Packet, port: Port, target: bytes) -> bool:
    """There are no link-local neighbours here but the wire's; whether an address is free is not asked there."""
    of_wire = port.flags & _ASKS_WIRE and packet.tuple.source != ZERO
    return is_link_local(target) and not of_wire


def _is_own(packet: Packet, port: Port, target: bytes) -> bool:
    data, source = packet.data, packet.tuple.source
    if source not in (ZERO, port.address[1]) and not is_link_local(source):
        return False
    option = bytes(data[_ND + 24 : _ND + 32])
    if len(option) == 8 and option[1] == 1 and option[0] in (1, 2) and option[2:] != port.mac:
        return False
    advertised = packet.icmp_type == _ADVERTISEMENT
    return not advertised or is_link_local(target) or target == port.address[1]


def _advertisement(packet: Packet, target: bytes, mac: bytes, sender: bytes, router: bool) -> bytes:
    data, asker = packet.data, packet.tuple.source
    everybody = asker == ZERO  # duplicate address detection
    destination = _ALL_NODES if everybody else asker
    asker_mac = b"\x33\x33\0\0\0\x01" if everybody else bytes(data[6:12])
    flags = (0x80 if router else 0) | (0 if everybody else 0x40) | 0x20
    message = bytes((_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0)) + target + b"\x02\x01" + mac
    pseudo = sender + destination + len(message).to_bytes(4, "big") + ICMPV6.to_bytes(4, "big")
    message = message[:2] + checksum.whole(pseudo + message) + message[4:]
    ip = bytes(data[L3 : L3 + 4]) + len(message).to_bytes(2, "big") + bytes((data[L3 + 6], 255))
    return (asker_mac or NO_MAC) + mac + bytes(data[12:14]) + ip + sender + destination + message
