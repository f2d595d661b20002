"""Packets on a device, as tcpdump shows them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.node import path_of


@contextmanager
def captured(namespace: str, device: str, expression: str, into: Path) -> Iterator[None]:
    """Packets of a device that fit, as tcpdump's lines in a file."""
    command = [
        "nsenter",
        f"--net={path_of(namespace)}",
        "tcpdump",
        "-l",
        "-n",
        "--immediate-mode",
        "-i",
        device,
        expression,
    ]
    with (
        into.open("w") as out,
        subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True) as process,
    ):
        try:
            assert process.stderr is not None
            while "listening on" not in process.stderr.readline():
                pass
            yield
        finally:
            process.terminate()
