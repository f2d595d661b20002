"""Internet checksums, updated the way the kernel updates them (include/net/checksum.h, net/core/utils.c).

Incremental updates keep a wrong checksum wrong and choose between the two zeros of one's complement arithmetic, so
the arithmetic is the kernel's own: 32-bit sums of words as they stand in memory.
"""

from __future__ import annotations

import struct

_MASK32 = 0xFFFFFFFF


def add(a: int, b: int) -> int:
    """csum_add(): 32-bit one's complement sum."""
    total = a + b
    return (total & _MASK32) + (total >> 32)


def fold(total: int) -> int:
    """csum_fold(): to 16 bits, inverted."""
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def partial(data: bytes) -> int:
    """csum_partial(), folded to 16 bits, of an even number of bytes as little-endian words."""
    total: int = sum(struct.unpack(f"<{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def replace(checksum: bytes, before: bytes, after: bytes) -> bytes:
    """csum_replace4(): two or four bytes that the checksum covers have changed."""
    old = int.from_bytes(before, "little")
    new = int.from_bytes(after, "little")
    total = add(~int.from_bytes(checksum, "little") & _MASK32, ~old & _MASK32)
    return fold(add(total, new)).to_bytes(2, "little")


def replace_by_difference(checksum: bytes, before: bytes, after: bytes) -> bytes:
    """bpf_csum_diff() and inet_proto_csum_replace_by_diff(): sixteen bytes have changed."""
    difference = add(partial(after), ~partial(before) & _MASK32)
    difference = (difference & 0xFFFF) + (difference >> 16)
    difference = (difference & 0xFFFF) + (difference >> 16)
    total = add(difference, ~int.from_bytes(checksum, "little") & _MASK32)
    return fold(total).to_bytes(2, "little")


def whole(data: bytes) -> bytes:
    """The checksum of an even number of bytes."""
    return fold(partial(data)).to_bytes(2, "little")
