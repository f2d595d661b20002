"""What the lab prints: tables of rich, and plain documents for ``--json``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from rich import box
from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from samewire.counted import counted
from samewire.lab.check import Fact, Report
from samewire.lab.matrix import COLUMNS
from samewire.lab.podspec import served_ports
from samewire.lab.probes import Cell
from samewire.lab.state import LabState, PodState
from samewire.lab.top import PodUsage

_FAULTS_SHOWN = 40
_TOP_TEXTS = ("pod", "node", "QoS", "oom adj", "running")
_TOP = (*_TOP_TEXTS, "CPU %", "CPU s", "memory", "rx/s", "tx/s", "rx", "tx")
_TOP_FIGURES = ("CPU %", "memory", "rx/s", "tx/s")
_TOPS = (
    _TOP,
    ("pod", "node", "running", *_TOP_FIGURES),
    ("pod", "node", *_TOP_FIGURES),
    ("pod", *_TOP_FIGURES),
)
_TOP_GAP = 2


def check_table(report: Report) -> RenderableType:
    """The matrix: a row a path, a column a protocol, in every field ``IPv4·IPv6`` counts of cells."""
    table = _table(f"lab {report.cluster}: expected against observed")
    table.add_column("path", no_wrap=True)
    for column in COLUMNS:
        _column(table, column.upper().replace("+", " >MTU"), justify="right")
    categories: dict[str, dict[str, list[Cell]]] = {}
    for cell in report.cells:
        categories.setdefault(cell.probe.category, {}).setdefault(cell.probe.row, []).append(cell)
    for category, rows in categories.items():
        table.add_row(Text(category, style="bold"))
        for row, cells in rows.items():
            fields = [_count([cell for cell in cells if cell.probe.column == name]) for name in COLUMNS]
            table.add_row(Text(f"  {row}"), *fields)
    parts: list[RenderableType] = [table, *_fact_lines(report.facts)]
    if faults := _faults(report):
        parts.append(faults)
    return Group(*parts, _verdict(report))


def check_document(report: Report) -> dict[str, Any]:
    """The report for ``--json``: every cell with what was expected and what was observed."""
    cells = [
        {
            "category": cell.probe.category,
            "row": cell.probe.row,
            "protocol": cell.probe.column,
            "family": cell.probe.family,
            "from": cell.probe.source,
            "to": cell.probe.target,
            "address": cell.probe.address,
            "port": cell.probe.port,
            "expected": msgspec.to_builtins(cell.probe.expected),
            "observed": msgspec.to_builtins(cell.observed),
            "ok": cell.ok,
            "why": cell.why,
        }
        for cell in report.cells
    ]
    facts = [{**msgspec.to_builtins(fact), "ok": fact.ok} for fact in report.facts]
    return {
        "cluster": report.cluster,
        "ok": report.ok,
        "seconds": round(report.seconds, 3),
        "cells": cells,
        "facts": facts,
    }


def lab_tables(state: LabState) -> RenderableType:
    """Nodes, pods and what was left out."""
    nodes = [
        (
            node.plan.name,
            node.plan.stack.value,
            " ".join(node.plan.addresses),
            " ".join(node.plan.pod_cidrs),
            str(sum(pod.pod.node == node.plan.name for pod in state.pods)),
        )
        for node in state.nodes
    ]
    hosts = [(host.plan.name, "outside", " ".join(host.plan.addresses), "", "") for host in state.outside]
    headings = ("node", "stack", "addresses", "pod CIDRs", "pods")
    return Group(
        _filled(_table(f"lab {state.cluster.name}"), headings, [*nodes, *hosts]),
        _filled(_table(), ("pod", "node", "network", "addresses", "containers"), map(_pod_row, state.pods)),
        *_left_out(state),
    )


def _pod_row(pod: PodState) -> tuple[str, ...]:
    template = pod.pod.template
    containers = (
        item.name if pod.pod.stands_in(item) else f"{item.name} (command)" for item in template.containers
    )
    network = "hostNetwork" if template.host_network else pod.pod.network
    return pod.pod.key, pod.pod.node, network, " ".join(pod.addresses), " ".join(containers)


def next_steps(state: LabState, *, alone: bool = True) -> list[str]:
    """Commands to go on with, that work as they stand. ``alone``: no other lab is up, so it need not be named."""
    argument, option = ("", "") if alone else (f" {state.cluster.name}", f" --lab {state.cluster.name}")
    steps = [f"samewire lab check{argument}"]
    own = [pod for pod in state.pods if not pod.pod.template.host_network]
    if own:
        steps.append(f"samewire lab exec{option} {own[0].pod.name} -- ip address")
    traced = next((pod for pod in own if state.node(pod.pod.node).socket), None)
    targets = (
        _trace_target(pod.addresses[0], ports[0])
        for pod in own
        if traced and pod.pod.node != traced.pod.node and pod.pod.network == traced.pod.network
        for container in pod.pod.template.containers
        if (ports := served_ports(container))
    )
    if traced and (target := next(targets, None)):
        steps.append(f"samewire lab trace{option} --from {traced.pod.name} --to {target}")
    return [*steps, f"samewire lab top{argument}", f"samewire lab down {state.cluster.name}"]


def _trace_target(address: str, port: int) -> str:
    """As a shell and ``samewire lab trace`` take it."""
    return f"'[{address}]:{port}'" if ":" in address else f"{address}:{port}"


def lab_document(state: LabState) -> Any:
    """The state for ``--json``."""
    return msgspec.to_builtins(state)


def top_table(pods: Iterable[PodUsage], width: int) -> Table:
    """One sample; on a terminal with fewer columns than all takes, what changes most."""
    usage = list(map(_usage_row, pods))
    headings = next((headings for headings in _TOPS if _top_width(headings, usage) <= width), _TOPS[-1])
    rows = [[row[heading] for heading in headings] for row in usage]
    texts = [heading for heading in headings if heading in _TOP_TEXTS]
    return _filled(_table(), texts, rows, headings[len(texts) :])


def _top_width(headings: Sequence[str], usage: Sequence[Mapping[str, str]]) -> int:
    return sum(max(len(heading), *(len(row[heading]) for row in usage), 0) + _TOP_GAP for heading in headings)


def _usage_row(pod: PodUsage) -> dict[str, str]:
    return {
        "pod": pod.pod,
        "node": pod.node,
        "QoS": pod.qos,
        "oom adj": str(pod.oom_score_adj),
        "running": f"{pod.running}/{pod.containers}",
        "CPU %": f"{pod.cpu_percent:.1f}",
        "CPU s": f"{pod.cpu_s:.2f}",
        "memory": binary(pod.memory_bytes) if pod.memory_bytes >= 0 else "-",
        "rx/s": binary(pod.rx_bytes_per_s),
        "tx/s": binary(pod.tx_bytes_per_s),
        "rx": binary(pod.rx_bytes),
        "tx": binary(pod.tx_bytes),
    }


def binary(count: float) -> str:
    """``1536`` -> ``1.5Ki``."""
    for unit in ("", "Ki", "Mi", "Gi"):
        if abs(count) < 1024:
            return f"{count:.0f}{unit}" if not unit or count >= 100 else f"{count:.1f}{unit}"
        count /= 1024
    return f"{count:.1f}Ti"


def _table(title: str = "", title_style: str = "bold") -> Table:
    """One look for all: no frames, so that a line can be copied or grepped."""
    return Table(
        title=title or None,
        title_justify="left",
        title_style=title_style,
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )


def _filled(
    table: Table, headings: Sequence[str], rows: Iterable[Sequence[str]], figures: Sequence[str] = ()
) -> Table:
    """The table with these columns (``figures`` on the right) and rows. A narrow terminal breaks fields between words
    only, and the first column never: what it names is typed into the next command.
    """
    filled = list(rows)
    for number, heading in enumerate([*headings, *figures]):
        words = [word for row in filled for word in row[number].split()]
        _column(table, heading, words, no_wrap=number == 0, justify="right" if heading in figures else "left")
    for row in filled:
        table.add_row(*row)
    return table


def _column(
    table: Table,
    heading: str,
    words: Iterable[str] = (),
    no_wrap: bool = False,
    justify: JustifyMethod = "left",
) -> None:
    """A column that is as wide as its longest word."""
    width = max(map(len, [*heading.split(), *words]))
    table.add_column(heading, no_wrap=no_wrap, justify=justify, min_width=width)


def _count(cells: Sequence[Cell]) -> Text:
    """``6·6``: IPv4 and IPv6 cells that are right; ``5/6·6`` in red where some are not."""
    if not cells:
        return Text("")
    parts = []
    for family in (4, 6):
        mine = [cell for cell in cells if cell.probe.family == family]
        right = sum(cell.ok for cell in mine)
        parts.append("-" if not mine else str(right) if right == len(mine) else f"{right}/{len(mine)}")
    return Text("·".join(parts), style="green" if all(cell.ok for cell in cells) else "bold red")


def _faults(report: Report) -> Table | None:
    wrong = [cell for cell in report.cells if not cell.ok]
    if not wrong:
        return None
    table = _table(f"{counted(len(wrong), 'wrong cell')}", title_style="bold red")
    for heading in ("from", "to", "protocol", "what is wrong"):
        table.add_column(heading)
    for cell in wrong[:_FAULTS_SHOWN]:
        probe = cell.probe
        port = f" port {probe.port}" if probe.port else ""
        to = f"{probe.target} ({probe.address}{port})" if probe.target else f"{probe.address}{port}"
        table.add_row(probe.source, to, probe.column, cell.why)
    if len(wrong) > _FAULTS_SHOWN:
        table.add_row("...", f"and {len(wrong) - _FAULTS_SHOWN} more (--json has all)", "", "")
    return table


def _fact_lines(facts: Sequence[Fact]) -> list[Text]:
    lines = []
    for category in dict.fromkeys(fact.category for fact in facts):
        mine = [fact for fact in facts if fact.category == category]
        right = sum(fact.ok for fact in mine)
        style = "green" if right == len(mine) else "bold red"
        lines.append(Text(f"{category}: {right}/{len(mine)} as expected", style=style))
        lines += [
            Text(f"  {fact.row}: expected {fact.expected}, found {fact.observed}", style="red")
            for fact in mine
            if not fact.ok
        ]
    return lines


def _verdict(report: Report) -> Text:
    right = sum(cell.ok for cell in report.cells)
    retried = sum(
        cell.observed.tries > 1 for cell in report.cells if cell.ok and cell.probe.expected.reachable
    )
    text = f"{right}/{counted(len(report.cells), 'cell')} as expected in {report.seconds:.1f} s"
    text += f"; {retried} needed another attempt" if retried else ""
    return Text(text, style="bold green" if report.ok else "bold red")


def _left_out(state: LabState) -> list[Text]:
    lines = [
        Text(f"pending: {item.namespace}/{item.name}: {item.reason}", style="yellow")
        for item in state.pending
    ]
    reasons: dict[str, list[str]] = {}
    for item in state.skipped:
        name = f"{item.kind}/{item.name}" if item.name else item.kind
        reasons.setdefault(item.reason, []).append(f"{name} at {item.place}" if item.place else name)
    lines += [
        Text(f"skipped ({reason}): {', '.join(names)}", style="dim") for reason, names in reasons.items()
    ]
    return lines
