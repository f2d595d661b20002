"""``samewire daemon``: the node's service."""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path

import click

from samewire.errors import SamewireError


@click.command("daemon")
@click.option(
    "--config",
    "config_file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Configuration file, TOML or JSON (docs/guides/operating.md).",
)
def daemon(config_file: Path) -> None:
    """Run the node's service until it is told to stop.

    Ends at SIGTERM and leaves the network as it is: pods keep their connections and can make new ones.
    """
    gc.disable()  # until the daemon is up: nearly all that the start makes stays
    import samewire.node.lean  # noqa: F401  # before the libraries that it keeps small
    from samewire.node.config import load_config
    from samewire.node.daemon import configure_logging, run_daemon

    configure_logging()
    try:
        config = load_config(config_file)
        if os.geteuid() != 0:
            raise click.ClickException("the daemon needs root")
        asyncio.run(run_daemon(config))
    except SamewireError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    daemon()
