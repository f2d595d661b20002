"""Random frames about a universe: TCP, UDP, ICMP, errors, fragments, ARP, neighbour discovery, and junk."""

from __future__ import annotations

from typing import Final, cast

from hypothesis import strategies as st

from samewire.vfp.address import ZERO
from samewire.vfp.constants import SCOPE_HOST, SCOPE_OUTSIDE, SCOPE_UPLINK, Arrival
from samewire.vfp.simulate import checksum
from samewire.vfp.tables import DirectKey, Id, Port, ServiceKey
from tests.support.universe import (
    GATEWAY,
    GATEWAY_MAC,
    HOST_MAC,
    LOOPBACK,
    NODE,
    OUTSIDE,
    PEER_MAC,
    PODS,
    PORTS,
    PROTOCOLS,
    REMOTE,
    TAGGED_SCOPE,
    TUNNEL_MAC,
    UPLINK_MAC,
    Universe,
    addresses,
    packed,
)

Played = tuple[Arrival, int, bytes]
OTHER_MAC: Final = bytes.fromhex("02cccccccc01")
_TCP_FLAGS: Final = (0x02, 0x02, 0x02, 0x12, 0x10, 0x11, 0x04, 0x18)
_MOSTLY: Final = st.sampled_from([True] * 9 + [False])
_OF_NODE: Final = {f: (NODE[f], NODE[f], GATEWAY[f], LOOPBACK[f]) for f in (4, 6)}
_LENGTHS: Final = (0, 1, 8, 40, 120)


def fill(data: bytes, at: int, covered: bytes) -> bytes:
    """``data`` with the checksum of ``covered`` at an offset."""
    return data[:at] + checksum.whole(covered if len(covered) % 2 == 0 else covered + b"\0") + data[at + 2 :]


def pseudo(family: int, source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    """The pseudo header that L4 checksums cover."""
    if family == 4:
        return source[:4] + destination[:4] + bytes((0, protocol)) + length.to_bytes(2, "big")
    return source + destination + length.to_bytes(4, "big") + protocol.to_bytes(4, "big")


def ip_packet(
    family: int,
    source: bytes,
    destination: bytes,
    protocol: int,
    payload: bytes,
    ttl: int,
    offset: int,
    number: int,
    options: bool = False,
) -> bytes:
    """An IP packet; ``offset`` is the 16 bits of IPv4's flags and fragment offset (0 = whole).

    ``options``: eight bytes of padding between the header and what it carries.
    """
    if family == 4:
        extra = b"\x01" * 8 if options else b""
        length = 20 + len(extra) + len(payload)
        head = bytes((0x47 if options else 0x45, 0)) + length.to_bytes(2, "big") + number.to_bytes(2, "big")
        head += offset.to_bytes(2, "big") + bytes((ttl, protocol, 0, 0)) + source[:4] + destination[:4]
        return fill(head + extra, 10, head + extra) + payload
    following = protocol
    if offset & 0x3FFF:
        where = (offset & 0x1FFF) << 3 | (1 if offset & 0x2000 else 0)
        payload = bytes((protocol, 0)) + where.to_bytes(2, "big") + number.to_bytes(4, "big") + payload
        following = 44
    if options:
        payload, following = bytes((following, 0, 1, 4, 0, 0, 0, 0)) + payload, 0
    return (
        b"\x60\0\0\0"
        + len(payload).to_bytes(2, "big")
        + bytes((following, ttl))
        + source
        + destination
        + payload
    )


@st.composite
def _l4(
    draw: st.DrawFn, family: int, protocol: int, source: bytes, destination: bytes, to_port: int = 0
) -> bytes:
    body = bytes(draw(st.sampled_from(_LENGTHS)))
    from_port, any_port = (draw(st.sampled_from(PORTS)) for _ in range(2))
    ports = from_port.to_bytes(2, "big") + (to_port or any_port).to_bytes(2, "big")
    if protocol == 6:
        options = draw(st.sampled_from([b"", b"", b"\x02\x04\x05\xb4", b"\x01\x02\x04\x05\xb4\0\0\0"]))
        words = 0x50 + 4 * len(options)
        segment = ports + bytes(8) + bytes((words, draw(st.sampled_from(_TCP_FLAGS)))) + bytes(6)
        segment += options + body
        return fill(segment, 16, pseudo(family, source, destination, 6, len(segment)) + segment)
    if protocol == 17:
        datagram = ports + (8 + len(body)).to_bytes(2, "big") + bytes(2) + body
        if draw(st.booleans()) and family == 4:
            return datagram  # no checksum
        return fill(datagram, 6, pseudo(family, source, destination, 17, len(datagram)) + datagram)
    if protocol in (1, 58):
        kinds = (8, 0, 13) if protocol == 1 else (128, 129, 150)
        message = bytes((draw(st.sampled_from(kinds)), 0, 0, 0)) + ports + body
        covered = (
            message if protocol == 1 else pseudo(family, source, destination, 58, len(message)) + message
        )
        return fill(message, 2, covered)
    if protocol == 132:  # any checksum: it is changed, not checked; zero = left to the NIC
        return ports + bytes(4) + draw(st.sampled_from([bytes(4), b"\xde\xad\xbe\xef"])) + body
    return ports + bytes(8) + body


@st.composite
def _packet(draw: st.DrawFn, family: int, source: bytes, destination: bytes) -> bytes:
    protocol = draw(st.sampled_from(PROTOCOLS))
    payload = draw(_l4(family, protocol, source, destination))
    offset = draw(st.sampled_from([0] * 12 + [0x4000 if family == 4 else 0, 0x2000, 0x2001, 0x0002]))
    ttl = draw(st.sampled_from([64] * 8 + [2, 1]))
    options = not draw(_MOSTLY)
    number = draw(st.integers(1, 2))
    return ip_packet(family, source, destination, protocol, payload, ttl, offset, number, options)


@st.composite
def _error(draw: st.DrawFn, family: int, source: bytes, destination: bytes) -> bytes:
    quoted_source, quoted_destination = draw(st.permutations(addresses(family)))[:2]
    if draw(st.booleans()):
        quoted_source, quoted_destination = destination, source
    quote = draw(_packet(family, quoted_source, quoted_destination))[
        : draw(st.sampled_from([28, 48, 60, 96]))
    ]
    kinds = (3, 11, 12) if family == 4 else (1, 2, 3)
    message = bytes((draw(st.sampled_from(kinds)), 0, 0, 0)) + bytes(4) + quote
    protocol = 1 if family == 4 else 58
    covered = message if family == 4 else pseudo(family, source, destination, 58, len(message)) + message
    return ip_packet(family, source, destination, protocol, fill(message, 2, covered), 64, 0, 9)


@st.composite
def _arp(draw: st.DrawFn, mac: bytes, own: bytes) -> bytes:
    everything = [address[:4] for address in addresses(4)]
    sender = draw(st.sampled_from([own[:4], own[:4], bytes(4), everything[0]]))
    operation = draw(st.sampled_from([1, 1, 1, 2]))
    target = draw(st.sampled_from(everything))
    sender_mac = draw(st.sampled_from([mac, mac, OTHER_MAC]))
    return (
        b"\xff" * 6
        + (mac if draw(_MOSTLY) else OTHER_MAC)
        + b"\x08\x06\0\x01\x08\0\x06\x04"
        + operation.to_bytes(2, "big")
        + sender_mac
        + sender
        + bytes(6)
        + target
        + bytes(18)
    )


@st.composite
def _solicitation(draw: st.DrawFn, mac: bytes, own: bytes) -> bytes:
    source = draw(st.sampled_from([own, own, bytes(16), bytes.fromhex("fe80" + "00" * 13 + "01")]))
    target = draw(st.sampled_from([*addresses(6), bytes.fromhex("fe80" + "00" * 13 + "02")]))
    kind = draw(st.sampled_from([135, 135, 135, 136, 133, 143]))
    option = draw(st.sampled_from([b"", b"\x01\x01" + mac, b"\x01\x01" + OTHER_MAC, b"\x0e\x01" + bytes(6)]))
    message = bytes((kind, 0, 0, 0)) + bytes(4) + target + option
    destination = bytes.fromhex("ff02" + "00" * 9 + "01ff") + target[13:]
    message = fill(message, 2, pseudo(6, source, destination, 58, len(message)) + message)
    return (
        b"\x33\x33\xff"
        + target[13:]
        + mac
        + b"\x86\xdd"
        + ip_packet(6, source, destination, 58, message, 255, 0, 0)
    )


@st.composite
def frames(draw: st.DrawFn, universe: Universe) -> Played:
    """One frame, where it arrives and on which device."""
    arrival = draw(st.sampled_from([Arrival.POD, Arrival.POD, Arrival.POD, Arrival.UPLINK, Arrival.HOST]))
    family = draw(st.sampled_from([4, 4, 6]))
    ifindex, mac, own = draw(st.sampled_from(universe.pods))
    if arrival != Arrival.POD:
        ifindex = universe.uplink if arrival == Arrival.UPLINK else universe.host_peer
        # What samewire0 has sent, and what a hook has brought.
        mac = draw(st.sampled_from([HOST_MAC, OTHER_MAC])) if arrival == Arrival.HOST else OTHER_MAC
        own = {f: draw(st.sampled_from(addresses(f))) for f in (4, 6)}
    kind = draw(st.sampled_from(["packet"] * 8 + ["error", "error", "arp", "neighbour", "junk"]))
    if kind == "arp":
        return arrival, ifindex, draw(_arp(mac, own[4]))
    if kind == "neighbour":
        return arrival, ifindex, draw(_solicitation(mac, own[6]))
    source = own[family]
    if not draw(st.integers(0, 19)):
        source = draw(st.sampled_from(addresses(family)))
    everybody = [*addresses(family), *map(packed, OUTSIDE[family] * 2)]
    destination = draw(st.sampled_from([a for a in everybody if a != source] if draw(_MOSTLY) else everybody))
    body = draw((_error if kind == "error" else _packet)(family, source, destination))
    to = GATEWAY_MAC if arrival == Arrival.POD else UPLINK_MAC
    if not draw(st.integers(0, 29)):
        to = b"\xff" * 6
    frame = to + mac + (b"\x08\0" if family == 4 else b"\x86\xdd") + body
    if kind == "junk":
        cut = draw(st.integers(54, len(frame))) if len(frame) > 54 else len(frame)
        return arrival, ifindex, frame[:cut] + draw(st.binary(max_size=4))
    return arrival, ifindex, frame


@st.composite
def service_frames(draw: st.DrawFn, universe: Universe) -> Played:
    """One frame to a service's VIP (or to the node's address and its port), from where that VIP is known."""
    key = draw(st.sampled_from(sorted(universe.tables["sw_services"], key=lambda k: k.pack())))
    assert isinstance(key, ServiceKey)
    family = key.family
    ifindex, mac, own = draw(st.sampled_from(universe.pods))
    arrival, source, to = Arrival.POD, own[family], GATEWAY_MAC
    if key.scope == SCOPE_OUTSIDE:
        arrival, ifindex, mac = Arrival.UPLINK, universe.uplink, OTHER_MAC
        to = UPLINK_MAC if draw(_MOSTLY) else PEER_MAC
        source = packed(OUTSIDE[family][0])
    elif key.scope == SCOPE_HOST or not draw(st.integers(0, 7)):
        arrival, ifindex = Arrival.HOST, universe.host_peer
        mac = draw(st.sampled_from([HOST_MAC, OTHER_MAC]))
        source = packed(draw(st.sampled_from(_OF_NODE[family])))
    elif not draw(st.integers(0, 7)):
        arrival, ifindex, mac, to, source = Arrival.TUNNEL, 1, PEER_MAC, TUNNEL_MAC, packed(REMOTE[family])
    destination = packed(NODE[family]) if key.address == ZERO else key.address
    if arrival == Arrival.HOST and key.address == ZERO:  # as lo hands it over
        destination = packed(draw(st.sampled_from(_OF_NODE[family])))
    payload = draw(_l4(family, key.protocol, source, destination, key.port))
    offset = draw(st.sampled_from([0] * 9 + [0x2000, 0x0002]))
    options = not draw(st.integers(0, 19))
    body = ip_packet(family, source, destination, key.protocol, payload, 64, offset, 3, options)
    return arrival, ifindex, to + mac + (b"\x08\0" if family == 4 else b"\x86\xdd") + body


@st.composite
def own_frames(draw: st.DrawFn, universe: Universe) -> Played:
    """SCTP from the node to itself as lo hands it over, or the same from somebody who has made it up."""
    family = draw(st.sampled_from([4, 4, 6]))
    source, destination = (packed(draw(st.sampled_from(_OF_NODE[family]))) for _ in range(2))
    payload = draw(_l4(family, 132, source, destination, draw(st.sampled_from([80, 80, 8080, 53, 53]))))
    body = (b"\x08\0" if family == 4 else b"\x86\xdd") + ip_packet(
        family, source, destination, 132, payload, 64, 0, 3
    )
    arrival = draw(st.sampled_from([Arrival.HOST] * 4 + [Arrival.TUNNEL] * 2 + [Arrival.POD, Arrival.UPLINK]))
    ifindex, mac, _ = draw(st.sampled_from(universe.pods))
    return {
        Arrival.HOST: (arrival, universe.host_peer, UPLINK_MAC + OTHER_MAC + body),
        Arrival.TUNNEL: (arrival, 1, TUNNEL_MAC + PEER_MAC + body),
        Arrival.UPLINK: (arrival, universe.uplink, UPLINK_MAC + OTHER_MAC + body),
        Arrival.POD: (arrival, ifindex, GATEWAY_MAC + mac + body),
    }[arrival]


@st.composite
def wire_frames(draw: st.DrawFn, universe: Universe) -> Played:
    """One frame from elsewhere to a pod here, to one with routes of its own if there is one: they may lead back."""
    ports = universe.tables["sw_ports"]
    routed = [pod for pod in universe.pods if cast(Port, ports[Id(pod[0])]).route_set]
    ifindex, _, own = draw(st.sampled_from(routed or universe.pods))
    family = draw(st.sampled_from([4, 4, 6]))
    source = packed(draw(st.sampled_from([*OUTSIDE[family], REMOTE[family], *_OF_NODE[family]])))
    body = (b"\x08\0" if family == 4 else b"\x86\xdd") + draw(_packet(family, source, own[family]))
    if cast(Port, ports[Id(ifindex)]).scope in (SCOPE_UPLINK, TAGGED_SCOPE):
        return Arrival.UPLINK, universe.uplink, UPLINK_MAC + OTHER_MAC + body
    return Arrival.TUNNEL, 1, TUNNEL_MAC + PEER_MAC + body


@st.composite
def direct_frames(draw: st.DrawFn, universe: Universe) -> bytes:
    """One decapsulated frame as DSR sends it: to an endpoint's MAC, for a VIP."""
    key = draw(st.sampled_from(sorted(universe.tables["sw_direct"], key=lambda k: k.pack())))
    assert isinstance(key, DirectKey)
    family = key.family
    clients = (*OUTSIDE[family] * 2, REMOTE[family], NODE[family], *PODS[family][1:])
    source = packed(draw(st.sampled_from(clients)))
    destination = packed(OUTSIDE[family][1]) if key.address == ZERO else key.address
    payload = draw(_l4(family, key.protocol, source, destination, key.port))
    mac = key.mac if draw(_MOSTLY) else draw(st.sampled_from(universe.pods))[1]
    body = ip_packet(family, source, destination, key.protocol, payload, 64, 0, 3)
    return mac + PEER_MAC + (b"\x08\0" if family == 4 else b"\x86\xdd") + body


@st.composite
def tunnel_frames(draw: st.DrawFn, universe: Universe) -> bytes:
    """One decapsulated frame, mostly from the remote pod to one of the pods here."""
    if not draw(st.integers(0, 2)):
        return draw(direct_frames(universe))
    family = draw(st.sampled_from([4, 4, 6]))
    source = packed(REMOTE[family])
    destination = draw(st.sampled_from(universe.pods))[2][family]
    if not draw(st.integers(0, 9)):
        source, destination = draw(st.permutations(addresses(family)))[:2]
    kind = draw(st.sampled_from([_packet, _packet, _packet, _error]))
    body = draw(kind(family, source, destination))
    return TUNNEL_MAC + PEER_MAC + (b"\x08\0" if family == 4 else b"\x86\xdd") + body
