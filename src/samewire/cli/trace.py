"""``samewire trace``: what becomes of a packet, layer by layer, on every node that can be asked."""

from __future__ import annotations

import ipaddress
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from samewire.cli.options import json_option, proto_option, source_port_option
from samewire.cli.output import as_json
from samewire.errors import Invalid

if TYPE_CHECKING:
    from samewire.trace.follow import Trail
    from samewire.trace.model import ProtocolName

_PIPE_WIDTH: Final = 160


@click.command()
@click.option(
    "--from", "origin", metavar="POD", required=True, help="Name, ID or address of the sending pod."
)
@click.option(
    "--to",
    "target",
    metavar="ADDR[:PORT]",
    required=True,
    help="The destination; IPv6 with a port: [ADDR]:PORT.",
)
@proto_option
@source_port_option
@click.option(
    "--peers",
    "peers_file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON object: address of a node -> socket of its daemon. The trace goes on there.",
)
@json_option
@click.pass_obj
def trace(
    socket: str,
    origin: str,
    target: str,
    proto: ProtocolName | None,
    source_port: int | None,
    peers_file: Path | None,
    as_document: bool,
) -> None:
    """Send a packet through the switch without sending it.

    It runs through the very programs that carry packets, on their live tables, but changes nothing; a simulator
    checks the answer. Status 0 when it arrives, 1 when it is dropped.
    """
    from samewire.trace.follow import follow
    from samewire.trace.model import TraceRequest

    address, port = _target(target)
    proto = proto or ("tcp" if port else "icmp")
    if proto != "icmp" and not port:
        raise click.BadParameter(f"{proto} needs a port: {target}:PORT", param_hint="--to")
    request = TraceRequest(
        origin=origin,
        destination=address,
        port=0 if proto == "icmp" else port,
        protocol=proto,
        source_port=source_port or 0,
    )
    show(follow(socket, request, load_peers(peers_file) if peers_file else {}), as_document)


def show(trail: Trail, as_document: bool) -> None:
    """Print a trail and end the process: status 0 when the packet arrives, 1 when it does not."""
    if as_document:
        click.echo(as_json(document(trail)))
    else:
        from rich.console import Console

        from samewire.trace.render import render

        console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)
        with console.capture() as captured:
            console.print(render(trail))
        click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))
    sys.exit(0 if trail.arrived else 1)


def document(trail: Trail) -> dict[str, Any]:
    """A trail as JSON."""
    import msgspec

    return {"arrived": trail.arrived, **msgspec.to_builtins(trail)}


def load_peers(path: Path) -> Mapping[str, str]:
    """Sockets by node address. Raises Invalid."""
    try:
        peers = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Invalid(str(path), str(error)) from error
    if not isinstance(peers, dict) or not all(isinstance(value, str) for value in peers.values()):
        raise Invalid(str(path), "expected a JSON object of node address -> socket")
    return {_canonical(address, path): socket for address, socket in peers.items()}


def _canonical(address: str, path: Path) -> str:
    try:
        return str(ipaddress.ip_address(address))
    except ValueError as error:
        raise Invalid(str(path), str(error)) from error


def _target(text: str) -> tuple[str, int]:
    """Address and port (0 = none) of ``ADDR``, ``ADDR:PORT``, ``[ADDR]`` and ``[ADDR]:PORT``."""
    if text.startswith("["):
        address, bracket, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        whole = bool(bracket) and colon in ("", ":")
    else:
        address, colon, port = text.partition(":") if text.count(":") == 1 else (text, "", "")
        whole = True
    try:
        parsed = str(ipaddress.ip_address(address))
    except ValueError:
        whole = False
        parsed = ""
    if not whole or (colon and not (port.isascii() and port.isdecimal())):
        raise click.BadParameter(
            f"{text!r} is not ADDR[:PORT]; IPv6 with a port: [ADDR]:PORT", param_hint="--to"
        )
    if colon and not 1 <= int(port) <= 65535:
        raise click.BadParameter(f"{port} is no port; want 1 to 65535", param_hint="--to")
    return parsed, int(port or 0)
