"""POST /v2/switch/trace: the tuple through the traced build on the live maps, and through the simulator."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Final, cast

import msgspec
from aiohttp import web
from msgspec import Struct
from msgspec.structs import replace

from samewire.errors import Conflict, Invalid, NotFound
from samewire.hcn.http import json_response
from samewire.trace.answer import Arrived, Node, make_answer, parse_frame
from samewire.trace.compare import difference
from samewire.trace.context import EndpointInfo, TraceContext, TraceRun
from samewire.trace.matching import scope_from_host
from samewire.trace.model import TraceAnswer, TraceRequest
from samewire.trace.names import find_endpoint
from samewire.trace.probe import ACK, PROTOCOLS, SYN, Probe, build
from samewire.trace.rows import typed_rows
from samewire.vfp.address import IPV4, ZERO, Address, address_text, parse_address
from samewire.vfp.constants import SCOPE_ANY, TICK_SHIFT, VLAN, Arrival, PortFlag
from samewire.vfp.layers_proxy import proxy_note
from samewire.vfp.model import Entries
from samewire.vfp.protocols import protocol_text
from samewire.vfp.simulate import Simulator
from samewire.vfp.simulate.packet import Tuple
from samewire.vfp.simulate.state import make_key
from samewire.vfp.tables import Config, Id, Port, Service, ServiceKey

_FULL: Final = (
    "the flow table is full: a new connection that needs an entry is dropped (flow_table_full) where none can be "
    "recycled, which a trace does not try"
)
_SHOWN: Final = 5
_FIRST_PORT: Final = 40000
_PORTS_TRIED: Final = 9000
_ATTEMPTS: Final = 3
_FOUND_MAC: Final = b"\x02\0\0\0\0\x01"  # stands for what a pod in a VLAN has found by ARP or ND
_TABLES: Final = (
    "sw_config",
    "sw_ports",
    "sw_endpoints",
    "sw_routes",
    "sw_own_routes",
    "sw_nexthops",
    "sw_portmaps",
    "sw_acl_vectors",
    "sw_acl_rules",
    "sw_acl_prefixes",
    "sw_acl_ports",
    "sw_acl_any",
    "sw_acl_sets",
    "sw_set_members",
    "sw_set_classes",
    "sw_acl_spaces",
    "sw_nat",
    "sw_vnis",
    "sw_flows",
    "sw_fragments",
    "sw_affinity",
    "sw_source_ranges",
)
_LOOKED_UP: Final = ("sw_services", "sw_backend_sets", "sw_backends", "sw_direct")
"""A few look-ups a packet; there may be very much in them."""


def routes(context: TraceContext) -> list[web.RouteDef]:
    """The trace endpoint, for the daemon's application."""
    return [web.post("/v2/switch/trace", _Tracer(context).handle)]


class _Prepared(Struct, frozen=True):
    """A frame ready to run. ``flow_known``: the flow table has its connection."""

    arrived: Arrived
    tunnel_source: Address
    flow_known: bool


class _Tracer:
    """Runs one trace at a time: the traced build has one record."""

    def __init__(self, context: TraceContext) -> None:
        self._context = context
        self._lock = asyncio.Lock()

    async def handle(self, request: web.Request) -> web.Response:
        wanted = _decode(await request.read())
        source = find_endpoint(self._context.endpoints(), wanted.origin) if wanted.arrival == "pod" else None
        async with self._lock:
            # The switch goes on while it is looked at: a difference that does not last is a race, not a bug.
            for attempt in range(_ATTEMPTS):
                answer = await self._trace(wanted, source)
                if not answer.disagreement or attempt == _ATTEMPTS - 1:
                    break
        return json_response(answer)

    async def _trace(self, wanted: TraceRequest, source: EndpointInfo | None) -> TraceAnswer:
        read = await asyncio.to_thread(self._context.tables, _TABLES)
        tables = {**read, **{name: self._context.rows(name) for name in _LOOKED_UP}}
        prepared = _prepare_pod(wanted, source, tables) if source else _prepare_frame(wanted, tables)
        arrived, tunnel = prepared.arrived, prepared.tunnel_source
        run = await asyncio.to_thread(
            self._context.run_traced,
            arrived.frame,
            arrived.arrival,
            arrived.ifindex,
            arrived.vni,
            tunnel.family,
            tunnel.packed,
        )
        node = Node(
            name=self._context.node,
            endpoints=self._context.endpoints(),
            interface=self._context.name_of_port,
            service=self._context.service_name,
            acl=self._context.acl_names,
        )
        answer = make_answer(node, tables, arrived, run)
        anew = prepared.flow_known and not run.output.flow_hit and not run.output.drop_reason
        if anew:
            note = "the connection exists and is judged anew with its next packet: a policy has changed"
            answer = replace(answer, notes=(*answer.notes, note))
        if not prepared.flow_known and len(tables.get("sw_flows", {})) >= self._context.flow_capacity:
            answer = replace(answer, notes=(*answer.notes, _FULL))
        answer = replace(answer, notes=(*answer.notes, *self._proxies(answer, arrived)))
        port = tables["sw_ports"].get(Id(arrived.ifindex)) if source else None
        if isinstance(port, Port):
            services = await self._services(answer, arrived, port.scope)
            answer = replace(answer, notes=(*answer.notes, *services))
        said = await asyncio.to_thread(_simulate, tables, arrived, run, not anew)
        return replace(answer, disagreement=said)

    async def _services(self, answer: TraceAnswer, arrived: Arrived, scope: int) -> list[str]:
        """Where a packet for a service's address met no service: at which ports there is one."""
        lost = answer.fate in ("uplink", "stack") or (
            answer.drop is not None and answer.drop.layer == "route"
        )
        if not lost or answer.established or any(step.layer == "lb" for step in answer.steps):
            return []
        asked = parse_frame(arrived.frame)
        rows = await asyncio.to_thread(self._context.tables, ("sw_services",))
        found = dict.fromkeys(
            f"{self._context.service_name(value.service)} {key.port}/{protocol_text(key.protocol)}"
            for key, value in typed_rows(rows, "sw_services", ServiceKey, Service)
            if key.scope in (scope, SCOPE_ANY)
            and (key.family, key.address) == (asked.family, asked.tuple.destination)
        )
        more = ", ..." if len(found) > _SHOWN else ""
        address = answer.received.destination
        there = ", ".join(list(found)[:_SHOWN])
        return [f"{address} is a service's address, at other ports: {there}{more}"] if found else []

    def _proxies(self, answer: TraceAnswer, arrived: Arrived) -> Iterator[str]:
        """What the stacks of the pods at both ends do with such a connection."""
        context = self._context
        if answer.origin is not None:
            note = proxy_note(context.proxies(arrived.ifindex), parse_frame(arrived.frame), outbound=True)
            yield from [note] if note else []
        if answer.endpoint is not None and answer.fate == "port":
            delivered = parse_frame(bytes.fromhex(answer.frame))
            note = proxy_note(context.proxies(answer.endpoint.port), delivered, outbound=False)
            yield from [note] if note else []


def _decode(body: bytes) -> TraceRequest:
    try:
        wanted = msgspec.json.decode(body, type=TraceRequest)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Invalid("request", str(error)) from None
    if wanted.arrival == "pod":
        if not wanted.origin or not wanted.destination:
            raise Invalid("request", "a trace from a pod needs `from` and `to`")
        if wanted.frame:
            raise Invalid("frame", "the packet from a pod is built from the other fields")
        if wanted.protocol != "icmp" and not wanted.port:
            raise Invalid("port", f"{wanted.protocol} needs a destination port")
    elif not wanted.frame:
        raise Invalid("frame", f"a trace from the {wanted.arrival} needs the frame that arrives")
    return wanted


def _prepare_pod(wanted: TraceRequest, source: EndpointInfo, tables: Entries) -> _Prepared:
    """Build the probe. Raises Invalid, Conflict, NotFound."""
    if not source.port:
        what = "is on another node" if source.remote else "is not attached to a pod"
        raise Conflict(f"endpoint {source.label} {what}: it has no port here to trace from")
    port = cast(Port | None, tables.get("sw_ports", {}).get(Id(source.port)))
    if port is None:
        raise NotFound("port", f"{source.host_interface} of {source.label}")
    destination = parse_address(wanted.destination, "to")
    family = destination.family
    own = Address(family, port.address[0 if family == IPV4 else 1])
    if own.packed == ZERO:
        raise Invalid("to", f"endpoint {source.label} has no IPv{family} address")
    if destination == own or _means_itself(destination):
        raise Invalid(
            "to",
            f"{destination} is {source.label} itself: its own stack answers, no packet gets to the switch",
        )
    protocol = PROTOCOLS[wanted.protocol][family]
    to_port = 0 if wanted.protocol == "icmp" else wanted.port
    ends = Tuple(own.packed, destination.packed, wanted.source_port, to_port)
    ends, known = _choose_port(tables, port.scope, family, protocol, ends)
    probe = Probe(
        source_mac=port.mac,
        destination_mac=_FOUND_MAC if port.flags & PortFlag.TAGGED else port.gateway_mac,
        source=own,
        destination=destination,
        protocol=protocol,
        source_port=ends.source_port,
        destination_port=to_port,
        tcp_flags=ACK if known else SYN,
    )
    arrived = Arrived(arrival=Arrival.POD, ifindex=source.port, frame=build(probe))
    return _Prepared(arrived, Address(IPV4, ZERO), known)


def _means_itself(destination: Address) -> bool:
    """Whether every stack takes an address for its own: a loopback address, or none at all."""
    address = ip_address(str(destination))
    return address.is_loopback or address.is_unspecified


def _choose_port(tables: Entries, scope: int, family: int, protocol: int, ends: Tuple) -> tuple[Tuple, bool]:
    """The tuple with a source port, and whether a flow has it. A port that the caller chose is kept.

    Raises Conflict when the pod has no port left that no flow has.
    """
    flows = tables.get("sw_flows", {})
    if ends.source_port:
        return ends, make_key(ends, scope, family, protocol)[0] in flows
    for number in range(_FIRST_PORT, _FIRST_PORT + _PORTS_TRIED):
        candidate = replace(ends, source_port=number)
        if make_key(candidate, scope, family, protocol)[0] not in flows:
            return candidate, False
    where = address_text(family, ends.destination)
    raise Conflict(f"every source port tried towards {where} is in use by a flow; name one")


def _prepare_frame(wanted: TraceRequest, tables: Entries) -> _Prepared:
    """A frame as it is. Raises Invalid, Conflict."""
    config = tables.get("sw_config", {}).get(Id(0))
    if not isinstance(config, Config):
        raise Conflict("the switch has no configuration yet")
    frame = bytes.fromhex(wanted.frame)
    packet = parse_frame(frame)
    tag = wanted.vlan and VLAN | wanted.vlan
    arrival, ifindex, scope = {
        "uplink": (Arrival.UPLINK, config.uplink_ifindex, _scope_of_vni(tables, tag)),
        "tunnel": (Arrival.TUNNEL, config.tunnel_ifindex, _scope_of_vni(tables, wanted.vni)),
        "host": (
            Arrival.HOST,
            config.host_peer_ifindex,
            scope_from_host(tables, packet.family, packet.tuple.destination),
        ),
    }[wanted.arrival]
    if not ifindex:
        raise Conflict(f"this node has no device for the {wanted.arrival}")
    key, _ = make_key(packet.tuple, scope, packet.family, packet.protocol)
    source = parse_address(wanted.tunnel_source, "tunnel_source") if wanted.tunnel_source else None
    arrived = Arrived(
        arrival=arrival, ifindex=ifindex, frame=frame, vni=tag if arrival == Arrival.UPLINK else wanted.vni
    )
    return _Prepared(arrived, source or Address(IPV4, ZERO), key in tables.get("sw_flows", {}))


def _scope_of_vni(tables: Entries, vni: int) -> int:
    return getattr(tables.get("sw_vnis", {}).get(Id(vni)), "scope", 0)


def _simulate(tables: Entries, arrived: Arrived, run: TraceRun, same_bytes: bool) -> str:
    """What the simulator says otherwise."""
    simulator = Simulator(tables, time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> TICK_SHIFT)
    try:
        outcome = simulator.receive(arrived.frame, arrived.arrival, arrived.ifindex, arrived.vni)
    except Exception as error:  # its failure is one more thing to report, not a reason to say nothing
        return f"the simulator failed: {type(error).__name__}: {error}"
    return difference(run, outcome, same_bytes)
