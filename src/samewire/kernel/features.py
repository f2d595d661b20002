"""What this kernel can do, found by trying and remembered. Each probe names the kernel that brought the feature.

Version numbers decide nothing but the floor: distributions and stable kernels carry features back.
"""

from __future__ import annotations

import errno
import os
import re
from functools import lru_cache
from typing import Final

from samewire.errors import KernelError, Unsupported
from samewire.kernel.bpf.link import AttachType, BpfLink
from samewire.kernel.bpf.program import BpfProgram

FLOOR: Final = (6, 1)

_NO_INTERFACE: Final = 0x7FFFFFFF
_PASS: Final = bytes.fromhex("b700000000000000 9500000000000000")  # return 0
# return bpf_l4_csum_replace(skb, 34, 0, 0, BPF_F_IPV6 | BPF_F_PSEUDO_HDR)
_CHECKSUM: Final = bytes.fromhex(
    "b702000022000000 b703000000000000 b704000000000000 b705000090000000 850000000b000000 9500000000000000"
)


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


@lru_cache(maxsize=1)
def has_tcx() -> bool:
    """tcx links (Linux 6.6): an order shared with others, and replacement in place. Raises KernelError."""
    with BpfProgram.from_instructions("probe_tcx", _PASS) as program:
        try:
            BpfLink.attach(program, _NO_INTERFACE, AttachType.TCX_INGRESS).close()
        except KernelError as error:
            if error.errno == errno.EINVAL:  # the kind of link is unknown
                return False
            if error.errno != errno.ENODEV:  # the kind is known, and only the interface is missing
                raise
    return True


@lru_cache(maxsize=1)
def has_csum_ipv6() -> bool:
    """BPF_F_IPV6 of bpf_l4_csum_replace (Linux 6.16 and stable kernels of that time).

    With it the checksum of packets that the NIC has summed (CHECKSUM_COMPLETE) stays right. Raises KernelError.
    """
    with BpfProgram.from_instructions("probe_csum", _CHECKSUM) as program:
        result = program.test_run(bytes(64)).retval
    if result not in (0, -errno.EINVAL):
        raise KernelError("probe bpf_l4_csum_replace", abs(result))
    return result == 0
