"""``samewire daemon``: the node's service."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
from pathlib import Path
from typing import Final

import click

from samewire.cli.options import config_option
from samewire.errors import SamewireError

_FILES: Final = 65536


@click.command("daemon")
@config_option
@click.option("--kubeconfig", metavar="FILE", help="Services come from this API server.")
@click.option("--in-cluster", is_flag=True, help="Services come from the API server of the pod we run in.")
@click.option("--manifests", metavar="DIR", help="Services come from the manifests of a directory.")
@click.option(
    "--node-name", metavar="NAME", help="This node's name in Kubernetes, if it is not the configuration's."
)
@click.option(
    "--proxy-mode",
    type=click.Choice(["kernel", "userspace", "off"]),
    help="Who balances services: the switch, a relay process, or nobody here.",
)
def daemon(config_file: Path, **overrides: str | bool | None) -> None:
    """Run the node's service until it is told to stop.

    Ends at SIGTERM and leaves the network as it is: pods keep their connections and can make new ones. The options
    below win over the file.
    """
    gc.disable()  # until the daemon is up: nearly all that the start makes stays
    from samewire.node.lean import late_patterns  # before the libraries that it keeps small

    with late_patterns():
        from samewire.node.config import load_config
        from samewire.node.daemon import configure_logging, run_daemon

    configure_logging()
    raise_file_limit()
    try:
        config = load_config(config_file, {key: value for key, value in overrides.items() if value})
        if os.geteuid() != 0:
            raise click.ClickException("the daemon needs root")
        asyncio.run(run_daemon(config))
    except SamewireError as error:
        raise click.ClickException(str(error)) from error


def raise_file_limit() -> None:
    """Let the process open as many files as it may: at the usual 1024, a thousand clients of the API would leave
    none for the container runtime.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    daemon()
