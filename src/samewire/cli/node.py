"""``samewire install-cni`` and ``samewire uninstall``: putting Samewire on a node and taking it off."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import click

from samewire.cli.options import config_option
from samewire.cni.dialects.names import ALIASES
from samewire.errors import Conflict, SamewireError

_CLIENT = "samewire-cni"


@click.command("install-cni")
@click.option(
    "--bin-dir",
    metavar="DIRECTORY",
    default="/opt/cni/bin",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the container runtime looks for CNI plugins.",
)
@click.option(
    "--as",
    "aliases",
    multiple=True,
    type=click.Choice(ALIASES),
    help="Install it under the name of another plugin as well (repeatable), whose configurations it then serves.",
)
@click.option("--replace", is_flag=True, help="Take the place of a plugin of that name which is not ours.")
def install_cni(bin_dir: Path, aliases: tuple[str, ...], replace: bool) -> None:
    """Copy the CNI client to where the container runtime finds it."""
    import samewire

    source = Path(samewire.__file__).parent / "_build" / _CLIENT
    if not source.exists():
        raise click.ClickException(f"{source} is missing: this installation was built without the CNI client")
    target, new = bin_dir / _CLIENT, bin_dir / f".{_CLIENT}.new"
    try:
        bin_dir.mkdir(parents=True, exist_ok=True)
        new.write_bytes(source.read_bytes())
        new.chmod(0o755)
        new.rename(target)  # a runtime that starts it now gets the old one or the new one, whole
        for alias in aliases:
            _link(bin_dir / alias, replace)
    except OSError as error:
        raise click.ClickException(f"{target}: {error}") from error
    click.echo(f"installed {target}{''.join(f', {alias}' for alias in aliases)}")


def _link(alias: Path, replace: bool) -> None:
    """Make a name a link to the client. Raises ClickException when another plugin has it."""
    ours = alias.is_symlink() and os.readlink(alias) == _CLIENT
    if os.path.lexists(alias) and not ours and not replace:
        raise click.ClickException(f"{alias} is another plugin; --replace takes its place")
    new = alias.with_name(f".{alias.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(_CLIENT)
    new.rename(alias)


@click.command("uninstall")
@config_option
@click.option("--purge", is_flag=True, help="Forget the networks and endpoints as well.")
def uninstall(config_file: Path, purge: bool) -> None:
    """Remove every interface, program and setting of Samewire from this node.

    Pods lose their network. The daemon must have been stopped. Does not touch what others have made.
    """
    from samewire.node.config import load_config
    from samewire.node.uninstall import uninstall as remove_everything

    if os.geteuid() != 0:
        raise click.ClickException("uninstall needs root")
    try:
        config = load_config(config_file)
        removed = remove_everything(config, purge=purge)
        removed += _takeover(config.state_dir, purge)
    except Conflict as error:
        raise click.ClickException(f"{error}: stop the daemon first (systemctl stop samewire)") from error
    except SamewireError as error:
        raise click.ClickException(str(error)) from error
    for line in removed:
        click.echo(f"removed {line}")
    if not removed:
        click.echo("there was nothing to remove")


def _takeover(state_dir: Path, purge: bool) -> Iterator[str]:
    """What is left of one: say what to do while there is a way back; its notes of one that has none are of no use."""
    from samewire.takeover.apply import forget_journal, load_journal
    from samewire.takeover.runner import JOURNAL

    path = state_dir / JOURNAL
    journal = load_journal(path)
    if journal is None:
        return
    if not journal.removed:
        click.echo(
            "what was taken over stays: `samewire takeover --undo` gives it back to flannel and kube-proxy"
        )
    elif purge:
        forget_journal(path)
        yield str(path)
        with contextlib.suppress(OSError):  # there is something of others in it
            state_dir.rmdir()
