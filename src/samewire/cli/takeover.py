"""``samewire takeover``: from flannel and kube-proxy to Samewire, with the node's pods running, and back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeVar

import click
import msgspec
from rich.console import Console
from rich.text import Text

from samewire.cli.errors import Failure, exit_status
from samewire.cli.options import config_option, json_option
from samewire.cli.output import as_yaml
from samewire.counted import counted
from samewire.errors import Conflict
from samewire.node.config import load_config
from samewire.takeover.model import Command, Found, MakeNetwork, Places, Setting, Step, Write
from samewire.takeover.runner import Takeover

F = TypeVar("F", bound=Callable[..., None])

_LINES: Final = 24
"""Of a command's input that is shown."""
_DONE: Final = {
    "takeover": "Samewire has the network. Old pods go on until they are re-created; then: samewire takeover --remove",
    "undo": "Everything is as it was.",
    "remove": "What Samewire replaced is gone.",
}


def _place(option: str, metavar: str, default: str, what: str) -> Callable[[F], F]:
    shown = f"that of the takeover before, or {default}"
    return click.option(option, metavar=metavar, show_default=shown, help=what)


@click.command("takeover")
@config_option
@click.option("--dry-run", is_flag=True, help="Say what is there and what would be done; change nothing.")
@click.option("--remove", is_flag=True, help="Remove what was replaced, once no old pod lives on it.")
@click.option("--undo", is_flag=True, help="The way back: everything as it was before the takeover.")
@json_option
@_place("--cni-conf-dir", "DIRECTORY", Places().conf_dir, "CNI configurations.")
@_place("--cni-bin-dir", "DIRECTORY", Places().bin_dir, "CNI plugins.")
@_place("--subnet-file", "FILE", Places().subnet_file, "What flanneld wrote.")
def takeover(
    config_file: Path,
    dry_run: bool,
    remove: bool,
    undo: bool,
    as_document: bool,
    cni_conf_dir: str | None,
    cni_bin_dir: str | None,
    subnet_file: str | None,
) -> None:
    """Bring Samewire's network up beside flannel's and kube-proxy's, with the node's pods running.

    The daemon must be running. May be repeated at any time; one that was cut off is finished by the next.

    Exit status: 0 done, 1 refused or failed (the message says what to do), 2 wrong usage, 3 there is nothing to take
    over, 4 the daemon (or a tool that is needed) does not answer.
    """
    if remove and undo:
        raise click.UsageError("--remove and --undo exclude each other")
    if os.geteuid() != 0:
        raise click.ClickException("takeover needs root")
    action = "remove" if remove else "undo" if undo else "takeover"
    shown = _Shown(as_document)
    places = {"conf_dir": cni_conf_dir, "bin_dir": cni_bin_dir, "subnet_file": subnet_file}
    given = {key: value for key, value in places.items() if value is not None}
    run = Takeover(load_config(config_file), config_file, given, shown.step)
    try:
        if dry_run:
            found = run.found()
            shown.found(found)
            shown.plan(found, run.steps(found, action))
            return
        {"takeover": run.take_over, "undo": run.undo, "remove": run.remove}[action]()
    except Conflict as error:  # keeps its lines: those for the configuration are to be copied
        raise Failure(str(error), exit_status(error)) from error
    shown.done(action)


class _Shown:
    """What the user sees: a line a step, or one JSON object at the end."""

    def __init__(self, as_json: bool) -> None:
        self._json = as_json
        # Texts as they are: rich would take the group of fd00:100::/64 for an emoji.
        self._console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
        self._steps: list[Step] = []

    def step(self, step: Step) -> None:
        self._steps.append(step)
        if not self._json:
            self._console.print(_numbered(len(self._steps), step))

    def done(self, action: str) -> None:
        if self._json:
            click.echo(json.dumps({"action": action, "done": [step.title for step in self._steps]}, indent=2))
        else:
            self._console.print(_DONE[action])

    def found(self, found: Found) -> None:
        """What is there, whether or not it can be taken over."""
        if not self._json:
            self._console.print(Text("Found", style="bold"))
            for line in _found_lines(found):
                self._console.print(f"  {line}")

    def plan(self, found: Found, steps: list[Step]) -> None:
        """The steps; as JSON with what is there."""
        if self._json:
            plain = {"found": msgspec.to_builtins(found), "steps": msgspec.to_builtins(steps)}
            click.echo(json.dumps(plain, indent=2))
            return
        self._console.print(Text.assemble(("Steps", "bold"), " (nothing has been changed)"))
        for number, step in enumerate(steps, 1):
            self._console.print(_numbered(number, step))
            for line in _details(step):
                self._console.print(Text(f"       {line}", style="dim"))


def _numbered(number: int, step: Step) -> Text:
    return Text.assemble((f"{number:3}", "green"), f"  {step.title}")


def _found_lines(found: Found) -> Iterable[str]:
    if found.conf:
        yield f"CNI network {found.conf.name} of flannel's: {found.conf.path}"
    for subnet in found.subnets:
        yield f"pods here {subnet.prefix}, of the cluster {subnet.cluster}"
    for tunnel in found.tunnels:
        state = "up" if tunnel.up else "down"
        yield f"{tunnel.name}: VNI {tunnel.vni}, UDP {tunnel.port}, {state}"
    yield from (f"pods {remote.prefix} behind {remote.provider} ({remote.mac})" for remote in found.remotes)
    yield from (f"pods {hop.prefix} via {hop.via}" for hop in found.hops)
    if found.bridge:
        yield f"{found.bridge.name} with {counted(len(found.bridge.guests), 'pod')}"
        yield from (f"  {guest}" for guest in found.bridge.guests)
    for rules in found.rules:
        chains, own = counted(len(rules.chains), "chain"), counted(len(rules.rules), "rule")
        yield f"{rules.tool} {rules.table}: {chains}, {own if rules.readable else 'and rules that it cannot read'}"
        yield from (f"  used by another rule: {text}" for text in rules.blockers)
    yield from (f"nftables table {table.family} {table.name}" for table in found.tables)
    for one in found.pod_rules:
        yield f"nftables table {one.family} {one.table}: {counted(len(one.rules), 'rule')} of old pods"
    if found.ipvs:
        yield (
            f"kube-ipvs0 and {counted(len(found.sets), 'ipset')} of kube-proxy's ipvs mode. Its virtual servers "
            "stay: they cannot be told from others' (`kube-proxy --cleanup` has them)"
        )
    yield from (f"running: {process}" for process in found.processes)


def _details(step: Step) -> Iterable[str]:
    match step:
        case Command(argv=argv, stdin=stdin):
            yield f"$ {' '.join(argv)}"
            lines = stdin.splitlines()
            yield from (f"  {line}" for line in lines[:_LINES])
            if len(lines) > _LINES:
                yield f"  ... and {len(lines) - _LINES} more (--json has them)"
        case Write(path=path, text=text):
            yield f"{path}:"
            yield from (f"  {line}" for line in text.splitlines())
        case Setting(path=path, value=value):
            yield f"{path} = {value}"
        case MakeNetwork(value=value):
            yield from as_yaml(value).splitlines()
