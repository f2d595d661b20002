"""``samewire``: the command line. Subcommands are imported when they are called, so that help is instant."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import click

import samewire
from samewire.cli.errors import FAILED, reported

_FULL: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


class _Command(NamedTuple):
    module: str
    attribute: str
    help: str


_COMMANDS: Final[Mapping[str, _Command]] = {
    "get": _Command(
        "samewire.cli.get", "get", "Show objects of the node and what they became in the switch."
    ),
    "trace": _Command("samewire.cli.trace", "trace", "Say layer by layer what becomes of a packet, and why."),
    "capture": _Command(
        "samewire.cli.capture", "capture", "Record a pod's packets in both directions (pcapng)."
    ),
    "hns": _Command("samewire.cli.hns", "hns", "HNS objects, in the manner of hnsdiag."),
    "vfp": _Command("samewire.cli.vfp", "vfp", "Ports, layers, rules, flows, in the manner of vfpctrl."),
    "diff": _Command("samewire.cli.health", "diff", "Compare what is wanted with what the kernel has."),
    "doctor": _Command("samewire.cli.health", "doctor", "Check the invariants of a healthy node."),
    "daemon": _Command("samewire.cli.daemon", "daemon", "Run the node's service until it is told to stop."),
    "install-cni": _Command(
        "samewire.cli.node", "install_cni", "Put the CNI client where runtimes look for it."
    ),
    "takeover": _Command(
        "samewire.cli.takeover",
        "takeover",
        "Take this node over from flannel and kube-proxy, or give it back.",
    ),
    "uninstall": _Command("samewire.cli.node", "uninstall", "Remove everything of Samewire from this node."),
    "lab": _Command("samewire.cli.lab", "lab", "Mixed clusters in network namespaces of this machine."),
}


class _LazyGroup(click.Group):
    """A group whose help needs no import of its commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = _COMMANDS.get(cmd_name)
        if found is None:
            return None
        command: click.Command = getattr(importlib.import_module(found.module), found.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """One line and an exit status for everything raised on purpose."""
        with reported():
            return super().invoke(ctx)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--socket",
    envvar="SAMEWIRE_SOCKET",
    default="/run/samewire/samewire.sock",
    show_default=True,
    show_envvar=True,
    help="Unix socket of the node's daemon.",
)
@click.version_option(samewire.__version__, message="%(version)s")
@click.pass_context
def cli(ctx: click.Context, socket: str) -> None:
    """The network of a Kubernetes node: HNS objects, an eBPF switch, and the tools to look into both.

    Exit status: 0 done (and healthy), 1 failed (or unhealthy, or the packet was dropped), 2 wrong usage, 3 not
    found, 4 the daemon does not answer.
    """
    ctx.obj = socket


def main() -> None:
    """Entry point of the ``samewire`` executable."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what the locale's encoding lacks ends no command
    try:
        cli(prog_name="samewire")
    except OSError as error:
        if error.errno not in _FULL:
            raise
        # What is left of the output is tried once more at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        click.echo(f"Error: cannot be written: {error.strerror}", err=True)
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
