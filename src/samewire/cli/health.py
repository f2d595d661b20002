"""``samewire diff`` and ``samewire doctor``: is this node what it should be?"""

from __future__ import annotations

import sys
from typing import Any, Final

import click

from samewire.cli.options import json_option
from samewire.cli.output import as_json
from samewire.counted import counted

_COLOURS: Final = {"error": "red", "warning": "yellow"}


@click.command()
@json_option
@click.pass_obj
def diff(socket: str, as_document: bool) -> None:
    """Compare what is wanted with what the kernel has; nothing to say and status 0 means healthy.

    The daemon makes the same comparison at intervals and repairs what it finds.
    """
    answer = _ask(socket, "/v2/switch/diff")
    if as_document:
        click.echo(as_json(answer))
    else:
        for found in answer["differences"]:
            click.echo(f"{found['kind']} {found['subject']}: {found['text']}")
    sys.exit(0 if answer["healthy"] else 1)


@click.command()
@json_option
@click.pass_obj
def doctor(socket: str, as_document: bool) -> None:
    """Check the invariants of a healthy node; status 1 when something is wrong (warnings alone: 0)."""
    answer = _ask(socket, "/v2/doctor")
    if as_document:
        click.echo(as_json(answer))
    else:
        for finding in answer["findings"]:
            _print_finding(finding)
        if answer["healthy"]:
            count = len(answer["findings"])
            warnings = f"healthy, with {counted(count, 'warning')}"
            click.echo(warnings if count else "healthy: every check passed")
    sys.exit(0 if answer["healthy"] else 1)


def _ask(socket: str, path: str) -> Any:
    from samewire.hcn.client import HnsClient

    return HnsClient(socket).get_json(path)


def _print_finding(finding: dict[str, str]) -> None:
    level = click.style(finding["level"], fg=_COLOURS.get(finding["level"]), bold=True)
    click.echo(f"{level} {finding['check']}: {finding['object']}: {finding['message']}")
    click.echo(f"    {finding['remedy']}")
