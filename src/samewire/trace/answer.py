"""From the traced build's record to an answer that people and programs understand. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal, cast

from msgspec import Struct
from msgspec.structs import replace

from samewire.errors import Invalid
from samewire.trace.context import EndpointInfo, TraceRun
from samewire.trace.matching import (
    Packet,
    acl_text,
    nat_text,
    nexthop,
    nexthop_address,
    route_text,
    scope_from_host,
)
from samewire.trace.model import (
    ArrivalName,
    DropView,
    StepView,
    TraceAnswer,
    TunnelView,
    UplinkView,
)
from samewire.trace.names import endpoint_of_port
from samewire.trace.probe import view_of, view_of_ends
from samewire.trace.reasons import explain
from samewire.vfp.acl_names import AclNames
from samewire.vfp.address import address_text, mac_text
from samewire.vfp.constants import (
    SCOPE_DIRECT,
    SCOPE_HOST,
    SCOPE_UPLINK,
    VLAN_ID,
    Arrival,
    Choice,
    Fate,
    Layer,
    PortFlag,
    Reason,
    StepVerdict,
)
from samewire.vfp.model import Entries
from samewire.vfp.simulate.packet import Malformed, parse
from samewire.vfp.simulate.packet import Packet as Parsed
from samewire.vfp.tables import Id, Nexthop, Port, TraceStep, Vni

_BEFORE_THE_WALK: Final = frozenset(
    {Layer.PARSE, Layer.GUARD, Layer.DECAP, Layer.QOS, Layer.FRAGMENT, Layer.ICMP}
)


class Arrived(Struct, frozen=True, kw_only=True):
    """The frame that was traced, and where it arrived. ``ifindex`` is that of the device."""

    arrival: Arrival
    ifindex: int
    frame: bytes
    vni: int = 0


class Node(Struct, frozen=True, kw_only=True):
    """What the node offers for names."""

    name: str
    endpoints: Sequence[EndpointInfo]
    interface: Callable[[int], str]
    service: Callable[[int], str]
    acl: Callable[[int], AclNames]


def parse_frame(frame: bytes) -> Parsed:
    """The IP packet of a frame. Raises ``Invalid`` for frames that say nothing when traced (ARP, ND, junk)."""
    try:
        packet = parse(bytearray(frame))
    except Malformed as error:
        raise Invalid("frame", f"is no IP packet ({error.reason.name.lower()})") from None
    if packet.neighbour:
        raise Invalid("frame", "is a neighbour discovery message, which the switch answers itself")
    return packet


def make_answer(node: Node, tables: Entries, arrived: Arrived, run: TraceRun) -> TraceAnswer:
    """Everything but ``disagreement`` and the notes about flows."""
    received = parse_frame(arrived.frame)
    packet = Packet(_scope(tables, arrived, received), received.family, received.protocol, received.tuple)
    sent = view_of(parse_frame(run.frame)) if not run.output.drop_reason else view_of(received)
    answer = TraceAnswer(
        node=node.name,
        arrival=cast(ArrivalName, arrived.arrival.name.lower()),
        received=view_of(received),
        steps=tuple(_steps(node, tables, arrived, packet, run)),
        fate=_fate(run),
        sent=sent,
        frame=run.frame.hex(),
        origin=_origin(node, arrived),
        established=bool(run.output.flow_hit),
        notes=tuple(_notes(tables, arrived, run)),
    )
    return _with_target(answer, node, tables, packet, run)


def _origin(node: Node, arrived: Arrived) -> EndpointInfo | None:
    return endpoint_of_port(node.endpoints, arrived.ifindex) if arrived.arrival == Arrival.POD else None


def _scope(tables: Entries, arrived: Arrived, received: Parsed) -> int:
    if arrived.arrival == Arrival.POD:
        port = _port(tables, arrived.ifindex)
        return port.scope if port else SCOPE_UPLINK
    if arrived.arrival == Arrival.TUNNEL or (arrived.arrival == Arrival.UPLINK and arrived.vni):
        vni = tables.get("sw_vnis", {}).get(Id(arrived.vni))
        return vni.scope if isinstance(vni, Vni) and vni.scope != SCOPE_DIRECT else SCOPE_UPLINK
    if arrived.arrival == Arrival.HOST:
        return scope_from_host(tables, received.family, received.tuple.destination)
    return SCOPE_UPLINK


def _fate(run: TraceRun) -> Literal["port", "uplink", "tunnel", "host", "ingress", "stack", "dropped"]:
    if run.output.drop_reason:
        return "dropped"
    names: dict[int, Literal["port", "uplink", "tunnel", "host", "ingress"]] = {
        Fate.PORT: "port",
        Fate.UPLINK: "uplink",
        Fate.TUNNEL: "tunnel",
        Fate.HOST: "host",
        Fate.INGRESS: "ingress",
    }
    return names.get(run.output.fate, "stack")


def _with_target(
    answer: TraceAnswer, node: Node, tables: Entries, packet: Packet, run: TraceRun
) -> TraceAnswer:
    steps = run.output.step[: run.output.count]
    final = steps[-1] if steps else None
    if final is None:
        return answer
    if answer.fate == "dropped":
        return replace(answer, drop=_drop(run, final))
    if answer.fate == "port":
        return replace(answer, endpoint=endpoint_of_port(node.endpoints, final.target))
    hop = _hop(tables, steps, run.output.fate)
    if hop is None:
        return answer
    if answer.fate == "tunnel":
        view = TunnelView(
            provider_address=address_text(hop.family, hop.address),
            local_address=address_text(hop.family, hop.local),
            vni=hop.vni,
            inner_mac=mac_text(hop.mac),
        )
        return replace(answer, tunnel=view)
    towards = nexthop_address(hop, packet.family, final.destination)
    return replace(
        answer, uplink=UplinkView(interface=node.interface(hop.ifindex), next_hop=towards, vlan=hop.vni)
    )


def _hop(tables: Entries, steps: Sequence[TraceStep], fate: int) -> Nexthop | None:
    """The next hop that ROUTE or FLOW chose, when the packet leaves the node."""
    if fate not in (Fate.UPLINK, Fate.TUNNEL):
        return None
    chosen = [s.target for s in steps if s.layer in (Layer.ROUTE, Layer.FLOW) and s.kind == fate]
    return nexthop(tables, chosen[-1]) if chosen else None


def _drop(run: TraceRun, final: TraceStep) -> DropView:
    why = explain(run.output.drop_reason)
    return DropView(
        layer=_layer_name(run.output.drop_layer),
        reason=_reason_name(run.output.drop_reason),
        rule=final.rule,
        explanation=why.meaning,
        remedy=why.remedy,
    )


def _notes(tables: Entries, arrived: Arrived, run: TraceRun) -> Iterator[str]:
    port = _port(tables, arrived.ifindex) if arrived.arrival == Arrival.POD else None
    if port is not None and port.flags & PortFlag.CAP_OUT:
        yield "the sender has a bandwidth cap, which a trace does not use up"
    steps = run.output.step[: run.output.count]
    target = _port(tables, steps[-1].target) if steps and run.output.fate == Fate.PORT else None
    if target is not None and target.flags & PortFlag.CAP_IN:
        yield "the receiver has a bandwidth cap, which a trace does not use up"


def _steps(
    node: Node, tables: Entries, arrived: Arrived, packet: Packet, run: TraceRun
) -> Iterator[StepView]:
    steps = run.output.step[: run.output.count]
    walked = bool(steps) and not (steps[0].verdict == StepVerdict.DROP and steps[0].layer in _BEFORE_THE_WALK)
    if walked:
        yield from _passed_before(tables, arrived, packet)
    judged = packet  # as the rules see it: the sender's own address, the destination behind LB and PORTMAP
    balanced = False
    for step in steps:
        balanced = balanced or (step.layer == Layer.LB and step.verdict == StepVerdict.REWRITE)
        if step.layer in (Layer.LB, Layer.PORTMAP) and step.verdict == StepVerdict.REWRITE:
            ends = replace(packet.ends, destination=step.destination, destination_port=step.destination_port)
            judged = replace(packet, ends=ends)
        # A drop before the walk leaves no tuple of its own; NAT's port is chosen after its step.
        shown = steps[-1] if step.layer == Layer.NAT and step.verdict == StepVerdict.REWRITE else step
        yield StepView(
            layer=_layer_name(step.layer),
            verdict=_verdict(step),
            rule=step.rule,
            matched=_way_to_backend(node, tables, judged, step)
            if balanced and step.layer == Layer.ROUTE
            else _matched(node, tables, arrived, packet if step.layer == Layer.ROUTE else judged, step),
            ends=view_of_ends(packet.family, packet.protocol, shown)
            if walked and step.verdict != StepVerdict.DROP
            else None,
        )


def _passed_before(tables: Entries, arrived: Arrived, packet: Packet) -> Iterator[StepView]:
    """The checks in front of the walk leave no record when they pass: that it began says that they did."""
    if arrived.arrival == Arrival.POD:
        port = _port(tables, arrived.ifindex)
        off = port is not None and port.flags & PortFlag.NO_GUARD
        text = "spoof guard is off" if off else "source MAC and address are the endpoint's own"
        yield StepView(layer="guard", verdict="pass", matched=text)
    elif arrived.arrival == Arrival.TUNNEL:
        yield StepView(
            layer="decap", verdict="pass", matched=f"VNI {arrived.vni} is network {packet.scope}'s"
        )
    elif arrived.vni:
        text = f"VLAN {arrived.vni & VLAN_ID} is network {packet.scope}'s"
        yield StepView(layer="decap", verdict="pass", matched=text)


def _verdict(step: TraceStep) -> str:
    if step.verdict == StepVerdict.DROP:
        return "drop"
    if step.layer == Layer.ROUTE:
        return f"to {Fate(step.kind).name.lower()}"
    if step.layer == Layer.FLOW:
        return "established"
    return {StepVerdict.PASS: "pass", StepVerdict.REWRITE: "rewrite", StepVerdict.FINAL: "send"}.get(
        StepVerdict(step.verdict), "pass"
    )


def _matched(node: Node, tables: Entries, arrived: Arrived, packet: Packet, step: TraceStep) -> str:
    match step.layer:
        case Layer.ACL_OUT | Layer.ACL_IN:
            outward = step.layer == Layer.ACL_OUT
            return acl_text(tables, step.target, outward, step.rule, node.acl(step.target))
        case Layer.ROUTE:
            return _route(tables, packet, step, arrived.ifindex)
        case Layer.PORTMAP:
            return f"a port of the node that belongs to {_port_name(node, step.target)}"
        case Layer.LB if step.verdict == StepVerdict.REWRITE:
            return _backend(node, packet, step)
        case Layer.FLOW if step.verdict != StepVerdict.DROP:
            allowed = f", allowed by rule {step.rule}" if step.rule else ""
            return f"this connection was decided before{allowed}"
    if step.verdict == StepVerdict.DROP:
        reason = _reason_name(step.reason)
        return (
            f"{_service_name(node, step.rule)}: {reason}" if step.layer == Layer.LB and step.rule else reason
        )
    if step.layer == Layer.NAT:
        return _translation(tables, packet, step, arrived)
    return _delivery(node, step)


_CHOICES: Final = {
    Choice.HASH: "chosen by the connection's hash",
    Choice.AFFINITY: "where this client has been before",
    Choice.KEPT: "which the connection has already",
    Choice.DIRECT: "named by the node that balances",
}


def _backend(node: Node, packet: Packet, step: TraceStep) -> str:
    why = _CHOICES[Choice(step.kind)]
    if step.kind == Choice.DIRECT:
        return f"DSR: this node's endpoint, {why}"
    address = address_text(packet.family, step.destination)
    where = f"[{address}]" if ":" in address else address
    return f"{_service_name(node, step.rule)}: backend {where}:{step.destination_port}, {why}"


def _service_name(node: Node, number: int) -> str:
    return node.service(number) or f"service {number}"


def _way_to_backend(node: Node, tables: Entries, packet: Packet, step: TraceStep) -> str:
    """The backend's network may be another one than the packet's: what was found, and not a look-up again."""
    if step.verdict == StepVerdict.DROP:
        return f"to the backend {address_text(packet.family, packet.ends.destination)}: {_reason_name(step.reason)}"
    if step.kind == Fate.PORT:
        return f"{_port_name(node, step.target)} is here"
    hop = nexthop(tables, step.target)
    if hop is None:
        return "the node itself"
    via = nexthop_address(hop, packet.family, packet.ends.destination)
    return f"behind node {via}" if step.kind == Fate.TUNNEL else f"via {via}"


def _route(tables: Entries, packet: Packet, step: TraceStep, port: int) -> str:
    if step.verdict == StepVerdict.DROP and step.reason not in (Reason.NO_ROUTE, Reason.NO_ENDPOINT):
        return _reason_name(step.reason)
    # By lo: no table has a route for that.
    if step.verdict != StepVerdict.DROP and packet.scope == SCOPE_HOST:
        return f"{address_text(packet.family, packet.ends.destination)} is the node's own"
    return route_text(tables, packet, port)


def _translation(tables: Entries, packet: Packet, step: TraceStep, arrived: Arrived) -> str:
    """By which rule of the sender's; without one it is a pod that reaches itself, or a client of a service."""
    if step.rule or packet.ends.source == packet.ends.destination:
        return nat_text(tables, arrived.ifindex, packet, step.rule)
    shown = address_text(packet.family, step.source)
    return f"{shown} stands in for the client, so that the backend's answers come back here"


def _delivery(node: Node, step: TraceStep) -> str:
    if step.kind == Fate.PORT:
        return f"to {_port_name(node, step.target)}"
    if step.kind == Fate.TUNNEL:
        return f"VXLAN {step.target}"
    return f"{node.interface(step.target)}"


def _port_name(node: Node, ifindex: int) -> str:
    info = endpoint_of_port(node.endpoints, ifindex)
    interface = node.interface(ifindex) or f"port {ifindex}"
    return f"{info.label} ({interface})" if info else interface


def _port(tables: Entries, ifindex: int) -> Port | None:
    return cast(Port | None, tables.get("sw_ports", {}).get(Id(ifindex)))


def _layer_name(layer: int) -> str:
    return Layer(layer).name.lower() if layer in Layer._value2member_map_ else str(layer)


def _reason_name(reason: int) -> str:
    return Reason(reason).name.lower() if reason in Reason._value2member_map_ else str(reason)
