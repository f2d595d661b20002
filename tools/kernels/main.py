"""Run the core of the kernel tests (``pytest -m kernelcore``) on Debian's own kernels under qemu.

    tools/kernels/run [SERIES ...]      default: 6.1 6.12

Exit status 0: every test passed on every kernel.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import debian
import machine

SERIES = ("6.1", "6.12")
LIMIT_S = 60 * 60.0  # a kernel
REPOSITORY = Path(__file__).resolve().parents[2]


def main(wanted: list[str]) -> int:
    """Test on each series in turn; go on after a failure so that one run shows all of them."""
    unknown = [series for series in wanted if series not in SERIES]
    if unknown:
        print(f"usage: tools/kernels/run [{'|'.join(SERIES)}]", file=sys.stderr)
        return 2
    results: list[tuple[str, str, int]] = []
    for series in wanted or SERIES:
        kernel = debian.kernel(series, REPOSITORY / "build" / "kernels")
        print(f"--- Debian kernel {kernel.release}", flush=True)
        began = time.monotonic()
        status = machine.run(kernel, REPOSITORY, Path(sys.executable), LIMIT_S)
        results.append((kernel.release, f"{time.monotonic() - began:.0f} s", status))
    print("---")
    for release, took, status in results:
        print(f"{release:32} {'passed' if status == 0 else f'FAILED (status {status})'} in {took}")
    return 0 if all(status == 0 for _, _, status in results) else 1


if __name__ == "__main__":
    # A run that is told to stop takes its virtual machine with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main(sys.argv[1:]))
    except debian.NoKernel as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
