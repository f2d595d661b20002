"""Options and arguments that several commands have, in one wording."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

json_option: Final = click.option("--json", "as_document", is_flag=True, help="Print JSON.")
config_option: Final = click.option(
    "--config",
    "config_file",
    metavar="FILE",
    default="/etc/samewire/config.toml",
    show_default=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The daemon's configuration file, TOML or JSON (docs/guides/operating.md).",
)
proto_option: Final = click.option(
    "--proto",
    type=click.Choice(["tcp", "udp", "sctp", "icmp"]),
    help="Default: tcp with a port, icmp without.",
)
source_port_option: Final = click.option(
    "--source-port",
    metavar="PORT",
    type=click.IntRange(1, 65535),
    help="Of a connection that exists, to see how it fares.",
)


class KindOf(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic in newer versions only
    """One of these kinds of object, said in the plural or the singular."""

    name = "kind"

    def __init__(self, *kinds: str) -> None:
        self._kinds = kinds

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value).lower()
        found = next((kind for kind in self._kinds if text in (kind, kind.removesuffix("s"))), None)
        if found is None:
            self.fail(f"{value!r} is none of {', '.join(self._kinds)}", param, ctx)
        return found
