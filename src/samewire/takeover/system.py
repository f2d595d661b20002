"""The node's own tools: iproute2, iptables, nftables."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any, Final

from samewire.errors import KernelError, Unavailable

_TIMEOUT_S: Final = 60.0


def run(argv: Sequence[str], stdin: str = "") -> str:
    """Run a command; return what it prints, where bytes that are no UTF-8 (a rule's comment has any) are \\xNN.

    Raises Unavailable when it is not there, KernelError when it fails.
    """
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise Unavailable(argv[0], "it is not installed on this node") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(argv[0], f"does not end in {_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        raise KernelError(" ".join(argv), 5, done.stderr.strip())
    return done.stdout


def run_json(*argv: str) -> list[dict[str, Any]]:
    """Run a command that prints a JSON list; return what is in it. Raises as `run` does."""
    found = json.loads(run(argv) or "[]")
    return [item for item in found if item]  # iproute2 leaves an empty object for what it filters out


def has(tool: str) -> bool:
    """Whether a tool is installed."""
    return shutil.which(tool) is not None


def processes(names: Sequence[str]) -> list[str]:
    """Those of these programs that run in this network namespace, with their process ids."""
    own = os.readlink("/proc/thread-self/ns/net")
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                name = file.read().strip()
            if name in names and os.readlink(f"/proc/{pid}/ns/net") == own:
                found.append(f"{name} (process {pid})")
        except OSError:
            continue  # it has ended
    return sorted(found)
