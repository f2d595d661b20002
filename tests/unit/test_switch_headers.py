"""The switch is built from the kernel's headers and libbpf's alone.

The C library's want <gnu/stubs-32.h> for a target that is not x86-64: with one of them the switch can be built only
where 32-bit libraries happen to be installed.
"""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

BPF = Path(__file__).resolve().parents[2] / "bpf"
OF_KERNEL = ("linux", "asm", "asm-generic", "bpf")


def test_no_header_of_the_c_library() -> None:
    include = Path("/usr/include")
    architecture = include / f"{platform.machine()}-linux-gnu"
    flags = ["--target=bpf", f"-I{architecture}", f"-I{BPF}"]
    # -MG lists a header that is not there as well.
    command = ["clang", "-M", "-MG", *flags, str(BPF / "switch.c")]
    rule = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    headers = [Path(word) for word in rule.replace("\\\n", " ").split()[2:]]
    ours = (BPF, *(root / name for root in (include, architecture) for name in OF_KERNEL))
    assert len(headers) > len(list(BPF.glob("*.h")))
    assert [header for header in headers if not any(header.is_relative_to(root) for root in ours)] == []
