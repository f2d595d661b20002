"""A trace for people: layer by layer, node by node, and what to do when the packet dies. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from samewire.trace.context import EndpointInfo
from samewire.trace.follow import Trail
from samewire.trace.model import StepView, TraceAnswer, TupleView
from samewire.trace.reasons import LAYERS
from samewire.trace.summary import ends_text
from samewire.vfp.constants import Layer
from samewire.vfp.rule_names import rule_in

_STYLES: Final = {"drop": "bold red", "rewrite": "yellow", "send": "green", "established": "cyan"}
_FROM: Final = {
    "uplink": "from the uplink",
    "tunnel": "out of the tunnel",
    "host": "from the node itself",
}


def render(trail: Trail) -> RenderableType:
    """The whole trail, its verdict last."""
    parts: list[RenderableType] = []
    for hop in trail.hops:
        parts += _hop(hop)
    parts.append(_verdict(trail))
    return Group(*parts)


def _hop(hop: TraceAnswer) -> Iterator[RenderableType]:
    where = f"from {_who(hop.origin)}" if hop.origin else _FROM.get(hop.arrival, "")
    yield Text.assemble((hop.node, "bold"), f"  {where}  ", (ends_text(hop.received), "cyan"))
    yield Padding.indent(_steps(hop), 2)
    for note in hop.notes:
        yield Text(f"  note: {note}", style="dim")
    if hop.disagreement:
        yield Text(f"  BUG of Samewire, please report: {hop.disagreement}", style="bold yellow")
    else:
        yield Text("  the simulator agrees", style="dim")


def _steps(hop: TraceAnswer) -> Table:
    grid = Table.grid(padding=(0, 2), expand=False)
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    seen = hop.received
    for step in hop.steps:
        style = _STYLES.get(step.verdict, "")
        grid.add_row(
            Text(step.layer.replace("_", " ").upper(), style="bold"),
            Text(step.verdict, style=style),
            Text(_what(step, seen)),
        )
        seen = step.ends or seen
    return grid


def _what(step: StepView, before: TupleView) -> str:
    """The rule, and the packet where the layer has changed it."""
    if step.ends is None or step.ends == before:
        return step.matched
    return f"{step.matched}: {ends_text(step.ends)}" if step.matched else ends_text(step.ends)


def _verdict(trail: Trail) -> RenderableType:
    last = trail.hops[-1]
    if last.drop is not None:
        drop = last.drop
        rule = f", rule {rule_in(drop.layer, drop.rule)}" if drop.rule else ""
        reason = drop.reason.replace("_", " ")
        head = f"✗ dropped on {last.node} by {_layer(drop.layer)}: {reason}{rule}"
        return Group(
            Text(head, style="bold red"),
            Padding.indent(Text(drop.explanation), 2),
            Padding.indent(Text(f"What to do: {drop.remedy}", style="italic"), 2),
        )
    text = f"→ {_end(last)}"
    if trail.end:
        text += f"; not followed: {trail.end}"
    return Text(text, style="bold green")


def _layer(name: str) -> str:
    """A layer with what it is there for."""
    shown = name.replace("_", " ").upper()
    known = Layer.__members__.get(name.upper())
    return f"{shown}, which {LAYERS[known]}" if known else shown


def _end(hop: TraceAnswer) -> str:
    if hop.fate == "port":
        return f"delivered on {hop.node} to {_who(hop.endpoint)}"
    if hop.fate == "host":
        return f"handed to {hop.node} itself"
    if hop.fate == "ingress":
        return f"comes to {hop.node} again, as if by its uplink"
    if hop.fate == "stack" and hop.sent != hop.received:
        return f"handed to {hop.node} itself"
    if hop.fate == "stack":
        return f"left to {hop.node}'s own stack: it is not the switch's"
    if hop.tunnel is not None:
        return f"sent to node {hop.tunnel.provider_address} in VXLAN {hop.tunnel.vni}"
    if hop.uplink is not None:
        vlan = f" in VLAN {hop.uplink.vlan}" if hop.uplink.vlan else ""
        return f"leaves {hop.node} by {hop.uplink.interface}{vlan}, next hop {hop.uplink.next_hop}"
    return f"leaves {hop.node}"


def _who(info: EndpointInfo | None) -> str:
    if info is None:
        return "a port"
    return f"{info.label} ({', '.join(info.addresses)})"
