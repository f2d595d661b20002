"""The arrivals and the end of a packet's way (``bpf/switch.c``, ``bpf/deliver.h``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NoReturn

from msgspec.structs import replace

from samewire.vfp.address import NO_MAC, ZERO, is_loopback
from samewire.vfp.constants import (
    LOOPBACK,
    SCOPE_HOST,
    SCOPE_UPLINK,
    VLAN_ID,
    VLAN_NODE,
    Arrival,
    Fate,
    Layer,
    PortFlag,
    Reason,
    RewriteFlag,
    RouteKind,
)
from samewire.vfp.record import Record
from samewire.vfp.simulate import icmp, neighbour
from samewire.vfp.simulate.direct import speaks_for_vip
from samewire.vfp.simulate.flow_table import FlowTable
from samewire.vfp.simulate.flows import switch
from samewire.vfp.simulate.packet import (
    ETH_ARP,
    FRAGMENT_FIRST,
    FRAGMENT_LATER,
    TCP,
    UDP,
    Malformed,
    Packet,
    Tuple,
    decrement_ttl,
    is_multicast,
    move_fragment_id,
    parse,
    rewrite_address,
    rewrite_port,
    set_macs,
)
from samewire.vfp.simulate.refuse import PORT_UNREACHABLE, reset_frame
from samewire.vfp.simulate.state import Dropped, Outcome, Passed, Refused, State, Unrouted, Walk, make_key
from samewire.vfp.tables import Action, Config, Fragment, FragmentKey, Nexthop, Port

_FRAGMENT_TICKS: Final = 30


class Answered(Exception):
    """The frame goes back as an answer. ``drop``: what it answers counts as dropped."""

    def __init__(self, frame: bytes, drop: Dropped | None = None) -> None:
        super().__init__("answered")
        self.frame = frame
        self.drop = drop


class Simulator:
    """A switch. ``tables`` are those of ``vfp.tables.TABLES``; see the package for what is left out."""

    def __init__(self, tables: Mapping[str, Mapping[Record, Record]], now_tick: int = 0) -> None:
        self.state = State(tables, now_tick)

    @property
    def flows(self) -> FlowTable:
        """The flow table as it stands now."""
        return self.state.flows

    def receive(self, frame: bytes, arrival: Arrival, ifindex: int, vni: int = 0) -> Outcome:
        """What becomes of a frame that arrives on a device. ``vni``: of the tunnel key; on the uplink the frame's tag
        (VLAN and the id), which is not in ``frame``.
        """
        data = bytearray(frame)
        walk = Walk(Packet(data), arrival, 0, ifindex, ifindex if arrival == Arrival.POD else 0)
        try:
            return self._receive(walk, ifindex, vni)
        except Dropped as drop:
            return Outcome(bytes(data), drop=self._charge(walk, drop))
        except Passed:
            return Outcome(bytes(data))
        except neighbour.Swallowed:
            return Outcome(bytes(data), drop=(0, 0, Layer.L2, Reason.NONE))
        except neighbour.Forwarded as forwarded:
            return Outcome(bytes(data), forwarded.fate, forwarded.target)
        except Answered as answer:
            drop_key = self._charge(walk, answer.drop) if answer.drop else None
            return Outcome(answer.frame, answered=True, drop=drop_key)

    @staticmethod
    def _charge(walk: Walk, drop: Dropped) -> tuple[int, int, Layer, Reason]:
        return drop.port or walk.port_id or walk.device, drop.rule, drop.layer, drop.reason

    def _receive(self, walk: Walk, ifindex: int, vni: int) -> Outcome:
        own: Port | None = None
        if walk.arrival == Arrival.POD:
            own = self._from_pod(walk, ifindex)
        elif walk.arrival == Arrival.UPLINK:
            self._from_uplink(walk, vni)
        elif walk.arrival == Arrival.TUNNEL:
            self._from_tunnel(walk, vni)
        else:
            self._from_host(walk)
        packet = walk.packet
        if packet.fragment:
            self._fragment(walk)
        action = icmp.translate_error(self.state, walk) if packet.icmp_error else None
        try:
            action = action or switch(self.state, walk, own)
        except Refused as refused:
            self._refuse(walk, refused)
        except Unrouted as unrouted:
            self._answer_error(walk, icmp.NO_ROUTE[walk.packet.family], unrouted)
        return self._apply(walk, action)

    def _refuse(self, walk: Walk, refused: Refused) -> NoReturn:
        packet = walk.packet
        if packet.protocol == TCP:
            frame = reset_frame(walk)
        else:
            frame = icmp.error_frame(self.state, walk, PORT_UNREACHABLE[packet.family], 0)
        self._send_back(walk, frame, refused.drop)

    def _parse(self, walk: Walk) -> None:
        try:
            walk.packet = parse(walk.packet.data)
        except Malformed as malformed:
            raise Dropped(Layer.PARSE, malformed.reason) from None

    def _from_pod(self, walk: Walk, ifindex: int) -> Port:
        port = self.state.port(ifindex)
        if port is None or self.state.config is None:
            raise Dropped(Layer.PARSE, Reason.UNKNOWN_PORT)
        walk.scope = port.scope
        if port.flags & PortFlag.BLOCKED:
            raise Dropped(Layer.GUARD, Reason.PORT_BLOCKED)
        data = walk.packet.data
        if data[12:14] == ETH_ARP:
            raise Answered(neighbour.answer_arp(self.state, data, walk.scope, port, ifindex))
        self._parse(walk)
        packet = walk.packet
        if not port.flags & PortFlag.NO_GUARD:
            if bytes(data[6:12]) != port.mac:
                raise Dropped(Layer.GUARD, Reason.SPOOFED_MAC)
            # Of a version that the endpoint has no address of, nobody's would be its own.
            own_address = packet.neighbour or (
                packet.tuple.source == port.address[packet.family == 6] and packet.tuple.source != ZERO
            )
            if not own_address and not self._speaks_for_vip(walk):
                raise Dropped(Layer.GUARD, Reason.SPOOFED_IP)
        if packet.neighbour:
            raise Answered(neighbour.answer_neighbour(self.state, packet, walk.scope, port, ifindex))
        if is_multicast(packet) or (data[0] & 1 and not port.flags & PortFlag.TRANSPARENT):
            raise Dropped(Layer.L2, Reason.MULTICAST)
        if _is_martian(packet):
            raise Dropped(Layer.GUARD, Reason.MARTIAN)
        return port

    def _speaks_for_vip(self, walk: Walk) -> bool:
        packet = walk.packet
        ends, protocol = packet.tuple, packet.protocol
        if packet.fragment == FRAGMENT_LATER:
            seen = self._seen_fragment(walk)
            ends = _with_ports(ends, seen) if seen is not None else ends
        if packet.icmp_error:
            quoted = icmp.quoted_back(packet)
            if quoted is None or quoted[0].destination != ends.destination:
                return False
            ends, protocol = quoted
        key, direction = make_key(ends, walk.scope, packet.family, protocol)
        return speaks_for_vip(self.state.flows.get(key), direction, walk.port_id)

    def _from_uplink(self, walk: Walk, tag: int) -> None:
        walk.scope = SCOPE_UPLINK
        config, data = self.state.config, walk.packet.data
        if config is None:
            raise Passed
        if tag:
            walk.scope = self._scope_of_tag(tag)
        if data[12:14] == ETH_ARP:
            raise Answered(neighbour.answer_arp(self.state, data, walk.scope, None))
        try:
            walk.packet = packet = parse(data)
        except Malformed:
            raise Passed from None
        if packet.neighbour:
            raise Answered(neighbour.answer_neighbour(self.state, packet, walk.scope, None))
        outer = packet.protocol == UDP and packet.tuple.destination_port == config.vxlan_port
        outer = outer and walk.scope == SCOPE_UPLINK
        if (outer and not packet.fragment) or is_multicast(packet):
            raise Passed
        if not data[0] & 1 and bytes(data[0:6]) != config.uplink_mac and not self._has_owner(walk):
            raise Passed  # another machine's frame

    def _has_owner(self, walk: Walk) -> bool:
        packet = walk.packet
        route = self.state.route(walk.scope, packet.family, packet.tuple.destination)
        return route is not None and route.kind in (RouteKind.HOST, RouteKind.LOCAL)

    def _scope_of_tag(self, tag: int) -> int:
        if not tag & VLAN_ID:  # a priority, and no VLAN
            return SCOPE_UPLINK
        found = self.state.vni(tag)
        if found is not None:
            return found.scope
        of_node = self.state.vni(VLAN_NODE | tag & VLAN_ID)
        if of_node is None and self.state.vni(VLAN_NODE | VLAN_ID) is not None:
            raise Dropped(
                Layer.DECAP, Reason.OTHER_VLAN
            )  # by the node's own stack, which has no device for it
        raise Passed

    def _from_tunnel(self, walk: Walk, vni: int) -> None:
        found = self.state.vni(vni)
        if found is None:
            raise Dropped(Layer.DECAP, Reason.UNKNOWN_VNI)
        walk.scope = found.scope
        walk.inner_mac = bytes(walk.packet.data[0:6])
        self._parse(walk)
        if walk.packet.neighbour or is_multicast(walk.packet):
            raise Dropped(Layer.L2, Reason.MULTICAST)
        if _is_martian(walk.packet):
            raise Dropped(Layer.DECAP, Reason.MARTIAN)

    def _from_host(self, walk: Walk) -> None:
        self._parse(walk)
        packet = walk.packet
        if packet.neighbour or is_multicast(packet):
            raise Dropped(Layer.L2, Reason.MULTICAST)
        route = self.state.route(SCOPE_HOST, packet.family, packet.tuple.destination)
        known = route is not None and route.kind == RouteKind.SCOPE
        walk.scope = route.scope if route is not None and known else SCOPE_HOST  # of no network: a VIP

    def _seen_fragment(self, walk: Walk) -> Fragment | None:
        """Of a later fragment's first."""
        seen = self.state.fragments.get(_fragment_key(walk))
        return seen if seen and self.state.now_tick - seen.seen_tick <= _FRAGMENT_TICKS else None

    def _fragment(self, walk: Walk) -> None:
        packet, state = walk.packet, self.state
        ends = packet.tuple
        if packet.fragment == FRAGMENT_FIRST:
            state.fragments[_fragment_key(walk)] = Fragment(
                ends.source_port, ends.destination_port, state.now_tick
            )
            return
        seen = self._seen_fragment(walk)
        if seen is None:
            route = state.route(walk.scope, packet.family, ends.destination)
            if walk.arrival == Arrival.UPLINK and (route is None or route.kind != RouteKind.LOCAL):
                raise Passed  # ours only if its first was; the node reassembles its own
            raise Dropped(Layer.FRAGMENT, Reason.FRAGMENT_UNKNOWN)
        packet.tuple = _with_ports(ends, seen)

    def _answer_error(self, walk: Walk, kind: tuple[int, int], drop: Dropped, mtu: int = 0) -> NoReturn:
        self._send_back(walk, icmp.error_frame(self.state, walk, kind, mtu), drop)

    def _send_back(self, walk: Walk, frame: bytes | None, drop: Dropped) -> NoReturn:
        """An answer to whom the frame in hand is from: the node gets by lo what samewire0 has not sent."""
        config = self.state.config
        if frame is None or config is None:
            raise drop
        if walk.arrival == Arrival.HOST and frame[:6] != config.host_mac:
            frame = NO_MAC + NO_MAC + frame[12:]
        raise Answered(frame, drop)

    def _apply(self, walk: Walk, action: Action) -> Outcome:
        packet = walk.packet
        port, hop = self._target(action)
        if hop is not None and packet.ip_length > hop.mtu:
            too_big = Dropped(Layer.MTU, Reason.TOO_BIG)
            self._answer_error(walk, icmp.TOO_BIG[packet.family], too_big, hop.mtu)
        if port is not None and port.flags & PortFlag.CAP_IN and packet.ip_length > port.mtu:
            too_big = Dropped(Layer.MTU, Reason.TOO_BIG)
            self._answer_error(walk, icmp.TOO_BIG[packet.family], too_big, port.mtu)
        if action.flags & RewriteFlag.DECREMENT:
            if packet.ttl <= 1:
                exceeded = Dropped(Layer.ROUTE, Reason.TTL)
                self._answer_error(walk, icmp.TIME_EXCEEDED[packet.family], exceeded)
            decrement_ttl(packet)
        try:
            _rewrite(packet, action)
        except Malformed as malformed:
            raise Dropped(Layer.NAT, malformed.reason) from None
        return self._deliver(walk, action, port, hop)

    def _target(self, action: Action) -> tuple[Port | None, Nexthop | None]:
        if action.fate == Fate.PORT:
            port = self.state.port(action.target)
            if port is None:
                raise Dropped(Layer.ROUTE, Reason.NO_ENDPOINT)
            return port, None
        if action.fate in (Fate.UPLINK, Fate.TUNNEL):
            hop = self.state.nexthop(action.target)
            if hop is None:
                raise Dropped(Layer.ROUTE, Reason.NO_NEXTHOP)
            return None, hop
        if action.fate not in (Fate.HOST, Fate.INGRESS):
            raise Dropped(Layer.ROUTE, Reason.NO_ROUTE)
        return None, None

    def _deliver(self, walk: Walk, action: Action, port: Port | None, hop: Nexthop | None) -> Outcome:
        packet, config = walk.packet, self.state.config
        target = action.target
        if port is not None:
            if port.flags & PortFlag.BLOCKED:
                raise Dropped(Layer.L2, Reason.PORT_BLOCKED, target)
            keep_source = port.flags & PortFlag.TRANSPARENT and walk.arrival != Arrival.HOST
            set_macs(packet, port.mac, bytes(packet.data[6:12]) if keep_source else port.gateway_mac)
        elif hop is not None and action.fate == Fate.TUNNEL and config is not None:
            set_macs(packet, hop.mac, config.tunnel_mac)
            target = config.tunnel_ifindex
        elif hop is not None:
            target = hop.ifindex
            if hop.vni:
                self._to_vlan(walk)
        elif config is not None and action.fate == Fate.INGRESS:
            if walk.arrival == Arrival.UPLINK:
                raise Dropped(Layer.FLOW, Reason.MARTIAN)
            packet.data[0:6] = config.uplink_mac
            target = config.uplink_ifindex
        elif config is not None:
            target = self._to_host(walk, config, action.target)
        return Outcome(bytes(packet.data), Fate(action.fate), target)

    def _to_host(self, walk: Walk, config: Config, device: int) -> int:
        """By lo what the node has said to itself, and what it is answered to that: nobody else is the node there."""
        packet = walk.packet
        if device == LOOPBACK:
            if walk.arrival != Arrival.HOST and self._is_forged(walk):
                raise Dropped(Layer.GUARD, Reason.SPOOFED_IP)
            set_macs(packet, NO_MAC, NO_MAC)
            return LOOPBACK
        if walk.arrival == Arrival.UPLINK:
            raise Passed
        set_macs(packet, config.host_mac, config.host_peer_mac)
        return config.host_ifindex

    def _is_forged(self, walk: Walk) -> bool:
        """Who speaks, or what an error is about, is the node or an endpoint here, and it comes from elsewhere."""
        packet = walk.packet
        speakers = [packet.tuple.source, *([walk.first.destination] if packet.icmp_error else [])]
        for address in speakers:
            owner = self.state.endpoint(walk.scope, packet.family, address)
            if self.state.is_node(packet.family, address):
                return True
            if owner is not None and owner.port not in (0, walk.port_id):
                return True
        return False

    def _to_vlan(self, walk: Walk) -> None:
        """By the MAC that the pod has found; nobody else has asked for one."""
        port = self.state.port(walk.port_id) if walk.arrival == Arrival.POD else None
        data = walk.packet.data
        if port is None or not port.flags & PortFlag.TAGGED or bytes(data[0:6]) == port.gateway_mac:
            raise Dropped(Layer.L2, Reason.NO_NEXTHOP)
        data[6:12] = neighbour.mac_on_wire(self.state, walk.port_id, port)


def _fragment_key(walk: Walk) -> FragmentKey:
    packet = walk.packet
    ends = packet.tuple
    return FragmentKey(
        ends.source, ends.destination, packet.fragment_id, walk.scope, packet.family, packet.protocol
    )


def _with_ports(ends: Tuple, first: Fragment) -> Tuple:
    return replace(ends, source_port=first.source_port, destination_port=first.destination_port)


def _rewrite(packet: Packet, action: Action) -> None:
    if action.flags & RewriteFlag.SOURCE:
        rewrite_address(packet, packet.tuple.source, action.source, True)
        rewrite_port(packet, packet.tuple.source_port, action.source_port, True)
        if packet.fragment:
            move_fragment_id(packet, action.source_port)
    if action.flags & RewriteFlag.DESTINATION:
        rewrite_address(packet, packet.tuple.destination, action.destination, False)
        rewrite_port(packet, packet.tuple.destination_port, action.destination_port, False)


def _is_martian(packet: Packet) -> bool:
    destination = packet.tuple.destination
    if destination == packet.tuple.source:
        return True
    if is_loopback(packet.family, destination):
        return True
    if packet.family == 6:
        return neighbour.is_link_local(destination) or destination == ZERO
    return destination[0] == 0
