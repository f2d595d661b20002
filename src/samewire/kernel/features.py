"""What this kernel can do, found by trying and remembered. Each probe names the kernel that brought the feature."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import Final

from samewire.errors import Unsupported

FLOOR: Final = (6, 1)
_TCX_SINCE: Final = (6, 6)
_CSUM_IPV6_SINCE: Final = (6, 16)


@lru_cache(maxsize=1)
def kernel_version() -> tuple[int, int]:
    """Major and minor version of the running kernel."""
    match = re.match(r"(\d+)\.(\d+)", os.uname().release)
    assert match is not None
    return int(match[1]), int(match[2])


def require_floor() -> None:
    """Raise ``Unsupported`` below the stated floor (bpf_loop, bpf_timer, the tunnel key's local address)."""
    if kernel_version() < FLOOR:
        raise Unsupported("the switch", f"Linux {FLOOR[0]}.{FLOOR[1]} or newer, this is {os.uname().release}")


def has_tcx() -> bool:
    """tcx links (6.6): an order shared with others, and replacement in place."""
    return kernel_version() >= _TCX_SINCE


def has_csum_ipv6() -> bool:
    """BPF_F_IPV6 of bpf_l4_csum_replace (6.16): right for CHECKSUM_COMPLETE packets too."""
    return kernel_version() >= _CSUM_IPV6_SINCE
