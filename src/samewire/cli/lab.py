"""``samewire lab``: a mixed cluster on this machine, from a YAML file, in seconds."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from samewire.cli.errors import Failure, exit_status
from samewire.cli.options import json_option, proto_option, source_port_option
from samewire.errors import SamewireError

_LOG_WIDTH = 140

P = ParamSpec("P")
R = TypeVar("R")

_lab_argument = click.argument("lab_name", metavar="[LAB]", required=False)


def _reporting(function: Callable[P, R]) -> Callable[P, R]:
    """Turn errors raised on purpose, and the two a new user meets first, into their words and exit status.

    Faults of a cluster file keep their lines, one a fault.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if os.geteuid() != 0:
            raise click.ClickException("the lab needs root: it makes network namespaces")
        try:
            return function(*args, **kwargs)
        except SamewireError as error:
            raise Failure(str(error), exit_status(error)) from error

    return wrapper


async def _until_stopped(work: Coroutine[Any, Any, R]) -> R:
    """Do something that undoes itself when it is cancelled, at SIGTERM and SIGHUP too; a second one ends it at once."""
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    asked: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        loop.remove_signal_handler(number)
        asked.append(number)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not asked:
            raise
        raise Failure(f"stopped by {asked[0].name}", 128 + asked[0]) from None


@click.group()
def lab() -> None:
    """Mixed clusters in network namespaces of this machine (needs root).

    LAB, the `name` in its file, may be left out where only one lab is up.
    """


@lab.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--keep", is_flag=True, help="Leave what was made when it fails, to look at.")
@json_option
@_reporting
def up(file: Path, keep: bool, as_document: bool) -> None:
    """Bring up the cluster of FILE: underlay, nodes, pods."""
    from samewire.lab.report import lab_document, lab_tables, next_steps
    from samewire.lab.state import labs
    from samewire.lab.up import read_plan
    from samewire.lab.up import up as bring_up

    began = time.monotonic()
    console = _console(as_document)

    def progress(text: str) -> None:
        console.print(Text.assemble((f"{time.monotonic() - began:5.1f} s", "dim"), f"  {text}"))

    plan = read_plan(file)  # before signals are the loop's: where a pipe gives nothing, it would not run
    state = asyncio.run(_until_stopped(bring_up(file, plan, progress, keep)))
    if as_document:
        _print_json(lab_document(state))
        return
    progress("up")
    console.print(lab_tables(state))
    console.print("go on with:", *next_steps(state, alone=len(labs()) == 1), sep="\n  ", highlight=False)


@lab.command(short_help="Probe every path and compare with what is expected.")
@_lab_argument
@json_option
@_reporting
def check(lab_name: str | None, as_document: bool) -> None:
    """Probe every path and compare with what the cluster file asks for; status 1 if any cell is wrong."""
    from samewire.lab.check import check as run_check
    from samewire.lab.report import check_document, check_table
    from samewire.lab.state import load_state

    state = load_state(lab_name)
    console = _console()
    columns = (TextColumn("checking"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=_console(True), transient=True) as bar:
        task = bar.add_task("check", total=None)
        checking = run_check(state, lambda done, total: bar.update(task, completed=done, total=total))
        report = asyncio.run(_until_stopped(checking))
    if as_document:
        _print_json(check_document(report))
    else:
        console.print(check_table(report))
    sys.exit(0 if report.ok else 1)


@lab.command(
    name="exec",
    short_help="Run a command in a pod, a node, an outside host.",
    context_settings={"ignore_unknown_options": True},
)
@click.option("--lab", "lab_name", metavar="LAB", help="Which lab, where several are up.")
@click.option(
    "-c", "--container", metavar="NAME", default="", help="Which container of the pod; the first by default."
)
@click.argument("target")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@_reporting
def execute(lab_name: str | None, container: str, target: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in a pod, a node, an outside host, switch or router.

    TARGET is a name; node/NAME or outside/NAME where a pod is called so, too.
    """
    from samewire.lab import targets
    from samewire.lab.state import load_state

    targets.execute(targets.resolve(load_state(lab_name), target, container), command)


@lab.command(short_help="What becomes of a packet, layer by layer.")
@click.option("--lab", "lab_name", metavar="LAB", help="Which lab, where several are up.")
@click.option("--from", "origin", metavar="POD", required=True, help="The sending pod.")
@click.option(
    "--to",
    "target",
    metavar="NAME|ADDR[:PORT]",
    required=True,
    help="The destination: a pod, node, outside host or address; IPv6 with a port: [ADDR]:PORT.",
)
@proto_option
@source_port_option
@json_option
@click.pass_context
@_reporting
def trace(
    ctx: click.Context,
    lab_name: str | None,
    origin: str,
    target: str,
    proto: str | None,
    source_port: int | None,
    as_document: bool,
) -> None:
    """What becomes of a packet, layer by layer, here and on the far node."""
    from samewire.cli.trace import trace as trace_command
    from samewire.lab.state import load_state
    from samewire.lab.targets import peers, trace_origin, trace_target

    state = load_state(lab_name)
    ctx.obj, name = trace_origin(state, origin)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(peers(state), file)
        file.flush()
        ctx.invoke(
            trace_command,
            origin=name,
            target=trace_target(state, target, origin),
            proto=proto,
            source_port=source_port,
            peers_file=Path(file.name),
            as_document=as_document,
        )


@lab.command(short_help="CPU, memory and network use of every pod.")
@_lab_argument
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    help="Seconds between samples.",
)
@click.option("--once", is_flag=True, help="One sample after one interval.")
@json_option
@_reporting
def top(lab_name: str | None, interval_s: float, once: bool, as_document: bool) -> None:
    """CPU, memory and network use of every pod, until interrupted (not on a terminal: one sample)."""
    from samewire.lab.report import top_table
    from samewire.lab.state import load_state
    from samewire.lab.top import Sampler

    console = _console()
    sampler = Sampler(load_state(lab_name))
    latest = sampler.sample()
    if as_document or once or not sys.stdout.isatty():
        time.sleep(interval_s)
        latest = sampler.sample()
        if as_document:
            import msgspec

            _print_json(msgspec.to_builtins(latest))
        else:
            console.print(top_table(latest, console.width))
        return
    with Live(top_table(latest, console.width), console=console, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(interval_s)
                live.update(top_table(sampler.sample(), console.width), refresh=True)
        except KeyboardInterrupt:
            return


@lab.command()
@_lab_argument
@json_option
@_reporting
def show(lab_name: str | None, as_document: bool) -> None:
    """Nodes, pods and addresses of a lab."""
    from samewire.lab.report import lab_document, lab_tables
    from samewire.lab.state import load_state

    state = load_state(lab_name)
    if as_document:
        _print_json(lab_document(state))
    else:
        _console().print(lab_tables(state))


@lab.command(short_help="Remove a lab and everything it made.")
@_lab_argument
@click.option("--all", "every", is_flag=True, help="Remove all labs of this machine.")
@_reporting
def down(lab_name: str | None, every: bool) -> None:
    """Remove a lab and everything it made. LAB may be left out where only one is up."""
    from samewire.lab.down import down as remove
    from samewire.lab.state import labs, the_lab

    if every and lab_name is not None:
        raise click.UsageError("--all and LAB exclude each other")
    found = labs()
    if lab_name is not None and lab_name not in found:
        click.echo(f"lab {lab_name} is not up")
        return
    if lab_name is None and not found:
        click.echo("no lab is up")
        return
    for name in found if every else [the_lab(lab_name)]:
        asyncio.run(remove(name))
        click.echo(f"lab {name} is gone")


@lab.command()
def schema() -> None:
    """Print the JSON schema of cluster files."""
    from samewire.lab.cluster import json_schema

    _print_json(json_schema())


def _console(stderr: bool = False) -> Console:
    """A terminal's own width; elsewhere (a log, a pipe) wide enough for the tables.

    Texts are shown as they are: rich would take the group of fd00:100::1 for an emoji, and [fd00::1] for a style.
    """
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _LOG_WIDTH
    return Console(stderr=stderr, width=width, markup=False, emoji=False)


def _print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2, sort_keys=False))
