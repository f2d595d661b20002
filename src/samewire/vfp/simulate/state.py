"""What a walk works on: the tables with their look-ups, the decision it makes, and the outcome."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import msgspec

from samewire.vfp.address import ZERO, masked
from samewire.vfp.constants import NAT_KEY_BITS, ROUTE_KEY_BITS, Arrival, Fate, Layer, Reason, RouteKind
from samewire.vfp.record import Record
from samewire.vfp.simulate.packet import Packet, Tuple
from samewire.vfp.tables import (
    AclKey,
    AclRule,
    Action,
    Config,
    Endpoint,
    EndpointKey,
    Flow,
    FlowKey,
    Fragment,
    FragmentKey,
    Id,
    Nat,
    NatKey,
    Nexthop,
    Port,
    Portmap,
    PortmapKey,
    Route,
    RouteKey,
    Vni,
)


class Dropped(Exception):
    """The packet ends here: charged to ``port`` (0 = wherever it came from), by ``layer``, ``rule``, ``reason``."""

    def __init__(self, layer: Layer, reason: Reason, port: int = 0, rule: int = 0) -> None:
        super().__init__(f"{layer.name} {reason.name}")
        self.layer = layer
        self.reason = reason
        self.port = port
        self.rule = rule


class Passed(Exception):
    """Not the switch's: the node's own stack has it."""


class Outcome(msgspec.Struct, frozen=True):
    """A packet's end. ``target`` is a port's or device's ifindex; ``answered``: the frame goes back where it came
    from, turned into an answer. ``fate`` NOWHERE with neither ``drop`` nor ``answered`` means that the node's own
    stack has the frame.
    """

    frame: bytes
    fate: Fate = Fate.NOWHERE
    target: int = 0
    answered: bool = False
    drop: tuple[int, int, Layer, Reason] | None = None


class Walk(msgspec.Struct):
    """The state of one packet's walk: ``first`` as the initiator sees the connection, ``out`` after the layers."""

    packet: Packet
    arrival: Arrival
    scope: int
    device: int
    port_id: int
    first: Tuple = Tuple(ZERO, ZERO)
    first_arrival: Arrival = Arrival.POD
    first_scope: int = 0
    first_port: int = 0
    out: Tuple = Tuple(ZERO, ZERO)
    out_scope: int = 0
    forward: Action = Action(0, 0, 0, 0, 0, ZERO, ZERO)
    reverse: Action = Action(0, 0, 0, 0, 0, ZERO, ZERO)
    route_flags: int = 0
    port: tuple[int, int] = (0, 0)
    generation: tuple[int, int] = (0, 0)
    rule: tuple[int, int] = (0, 0)
    needs_flow: bool = False
    wants_snat: bool = False
    keep_frame: bool = False


class State:
    """Tables by name. Compiled ones are only read; flows and fragments are this object's own copies."""

    def __init__(self, tables: Mapping[str, Mapping[Record, Record]], now_tick: int) -> None:
        self.tables = tables
        self.now_tick = now_tick
        self.flows = dict(cast(Mapping[FlowKey, Flow], tables.get("sw_flows", {})))
        self.fragments = dict(cast(Mapping[FragmentKey, Fragment], tables.get("sw_fragments", {})))
        self._route_lengths = self._lengths("sw_routes")
        self._nat_lengths = self._lengths("sw_nat")

    def _lengths(self, table: str) -> list[int]:
        keys = cast(Mapping[RouteKey | NatKey, Record], self.tables.get(table, {}))
        return sorted({key.prefix_bits for key in keys}, reverse=True)

    def _get(self, table: str, key: Record) -> Record | None:
        return self.tables.get(table, {}).get(key)

    @property
    def config(self) -> Config | None:
        """Facts about the node."""
        return cast(Config | None, self._get("sw_config", Id(0)))

    def port(self, ifindex: int) -> Port | None:
        """A port of the switch."""
        return cast(Port | None, self._get("sw_ports", Id(ifindex)))

    def nexthop(self, number: int) -> Nexthop | None:
        """A provider address or gateway."""
        return cast(Nexthop | None, self._get("sw_nexthops", Id(number)))

    def endpoint(self, scope: int, family: int, address: bytes) -> Endpoint | None:
        """The owner of an address."""
        return cast(Endpoint | None, self._get("sw_endpoints", EndpointKey(address, scope, family)))

    def vni(self, vni: int) -> Vni | None:
        """The network behind a VNI."""
        return cast(Vni | None, self._get("sw_vnis", Id(vni)))

    def acl_rule(self, number: int, index: int) -> AclRule | None:
        """An entry of an ACL set."""
        return cast(AclRule | None, self._get("sw_acl", AclKey(number, index)))

    def route(self, scope: int, family: int, address: bytes) -> Route | None:
        """The longest matching route."""
        for length in self._route_lengths:
            key = RouteKey(length, scope, family, masked(address, length - ROUTE_KEY_BITS))
            found = self._get("sw_routes", key)
            if found is not None:
                return cast(Route, found)
        return None

    def nat(self, number: int, family: int, address: bytes) -> Nat | None:
        """The longest matching prefix of a NAT set."""
        for length in self._nat_lengths:
            key = NatKey(length, number, family, masked(address, length - NAT_KEY_BITS))
            found = self._get("sw_nat", key)
            if found is not None:
                return cast(Nat, found)
        return None

    def is_host_address(self, scope: int, family: int, address: bytes) -> bool:
        """Whether it is an address of the node itself, as seen from a scope."""
        route = self.route(scope, family, address)
        return route is not None and route.kind == RouteKind.HOST

    def portmap(self, family: int, protocol: int, address: bytes, port: int) -> Portmap | None:
        """A host port for this very address, else for every address of the node."""
        for candidate in (address, ZERO):
            found = self._get("sw_portmaps", PortmapKey(candidate, port, protocol, family))
            if found is not None:
                return cast(Portmap, found)
        return None
