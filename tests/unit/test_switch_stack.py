"""The stack of the switch's programs, counted as the oldest supported kernel counts it.

Kernel 6.1 rounds each function's part up to 32 bytes and adds up the longest chain of calls, callbacks of bpf_loop and
timers included. A chain that is too long shows only there, as a program that does not load.
"""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "bpf" / "switch.c"
STACK = 512
FRAMES = 8


def _functions(directory: Path, trace: bool) -> tuple[dict[str, int], dict[str, set[str]]]:
    """Bytes of stack by function, and who refers to whom."""
    include = [f"-I/usr/include/{platform.machine()}-linux-gnu", f"-I{SOURCE.parent}"]
    flags = ["clang", "-O2", "-g", "--target=bpf", "-mcpu=v3", *include, "-fstack-usage"]
    flags += ["-DTRACE=1"] if trace else []
    built = directory / "switch.o"
    for kind, target in (("-c", built), ("-S", built.with_suffix(".s"))):
        subprocess.run([*flags, kind, str(SOURCE), "-o", str(target)], check=True)
    rows = [line.split("\t") for line in built.with_suffix(".su").read_text().splitlines()]
    sizes = {row[0].rpartition(":")[2]: int(row[1]) for row in rows}
    calls: dict[str, set[str]] = {name: set() for name in sizes}
    current = ""
    for line in built.with_suffix(".s").read_text().splitlines():
        label = re.match(r"(\w+):", line)
        if label and label[1] in sizes:
            current = label[1]
        called = re.search(r"\bcall (\w+)|= (\w+) ll", line)
        name = (called[1] or called[2]) if called else ""
        if current and name in sizes:
            calls[current].add(name)
    return sizes, calls


def _deepest(name: str, sizes: dict[str, int], calls: dict[str, set[str]]) -> tuple[int, list[str]]:
    below = max((_deepest(called, sizes, calls) for called in calls[name]), default=(0, []))
    own = (max(sizes[name], 1) + 31) // 32 * 32
    return own + below[0], [name, *below[1]]


@pytest.mark.parametrize("trace", [False, True], ids=["switch", "trace"])
def test_no_chain_is_too_long(tmp_path: Path, trace: bool) -> None:
    sizes, calls = _functions(tmp_path, trace)
    called = set().union(*calls.values())
    programs = [name for name in sizes if name.startswith("sw_") and name not in called]
    assert programs
    for program in programs:
        stack, chain = _deepest(program, sizes, calls)
        assert stack <= STACK, (stack, chain)
        assert len(chain) <= FRAMES, chain
