"""What a pod's own stack does beside the switch, as a layer of its port and in a trace's words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from samewire.vfp.address import Address, Prefix, address_text
from samewire.vfp.layers import GroupView, LayerView, RuleView
from samewire.vfp.model import ProxyRule
from samewire.vfp.protocols import protocol_text
from samewire.vfp.simulate.packet import Packet

_TCP = 6


def proxy_layer(rules: Sequence[ProxyRule]) -> LayerView:
    """The layer PROXY: which new connections go to a proxy. In front of all others on the way out, behind them in."""
    return LayerView(
        "PROXY",
        tuple(
            GroupView(
                f"PROXY_{direction.upper()}",
                direction,
                "priority",
                tuple(
                    RuleView(0, place, tuple(_conditions(rule)), _action(rule), name=rule.name)
                    for place, rule in enumerate(r for r in rules if r.outbound == (direction == "out"))
                ),
            )
            for direction in ("out", "in")
        ),
    )


def proxy_note(rules: Iterable[ProxyRule], packet: Packet, *, outbound: bool) -> str:
    """What becomes of a pod's new connection in its own stack; "" when no rule is for it."""
    for rule in rules:
        if rule.outbound == outbound and _takes(rule, packet):
            who = "the sender's own stack hands" if outbound else "the receiver's own stack hands"
            unless = f", unless user {rule.user} opens it" if rule.user is not None else ""
            when = "a new connection like this" if packet.protocol == _TCP else "this"
            return f"{who} {when} to {_where(rule)} ({rule.name}){unless}"
    return ""


def _takes(rule: ProxyRule, packet: Packet) -> bool:
    if (rule.family, rule.protocol) != (packet.family, packet.protocol):
        return False
    ends = packet.tuple
    source = Address(packet.family, ends.source), ends.source_port
    destination = Address(packet.family, ends.destination), ends.destination_port
    (local, local_port), (remote, remote_port) = (
        (source, destination) if rule.outbound else (destination, source)
    )
    return (
        _among(local, rule.local, True)
        and _among(remote, rule.remote, True)
        and not _among(remote, rule.except_remote, False)
        and _within(local_port, rule.local_ports, True)
        and _within(remote_port, rule.remote_ports, True)
        and not _within(destination[1], rule.except_ports, False)
    )


def _among(address: Address, prefixes: tuple[Prefix, ...], empty: bool) -> bool:
    return any(address in prefix for prefix in prefixes) if prefixes else empty


def _within(port: int, ranges: tuple[tuple[int, int], ...], empty: bool) -> bool:
    return any(low <= port <= high for low, high in ranges) if ranges else empty


def _conditions(rule: ProxyRule) -> Iterable[str]:
    yield f"ipv{rule.family} {protocol_text(rule.protocol)}"
    ends = ("source", "destination") if rule.outbound else ("destination", "source")
    for end, prefixes, ports in (
        (ends[0], rule.local, rule.local_ports),
        (ends[1], rule.remote, rule.remote_ports),
    ):
        if prefixes:
            yield f"{end} {' '.join(map(str, prefixes))}"
        if ports:
            yield f"{end} port {_ranges(ports)}"
    if rule.except_remote:
        yield f"{ends[1]} not {' '.join(map(str, rule.except_remote))}"
    if rule.except_ports:
        yield f"destination port not {_ranges(rule.except_ports)}"
    if rule.user is not None:
        yield f"user not {rule.user}"


def _action(rule: ProxyRule) -> str:
    return f"to the proxy at {_where(rule)}"


def _where(rule: ProxyRule) -> str:
    if rule.target is None:
        return f"port {rule.port} of the pod"
    return f"{address_text(rule.target.family, rule.target.packed)} port {rule.port}"


def _ranges(ports: tuple[tuple[int, int], ...]) -> str:
    return " ".join(str(low) if low == high else f"{low}-{high}" for low, high in ports)
