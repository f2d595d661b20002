"""The simulator's checksums against their definition (RFC 1071, RFC 1624): sums without end-around carries lost."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samewire.vfp.simulate import checksum

WORDS = st.lists(st.integers(0, 0xFFFF), min_size=9, max_size=40)


def defined(data: bytes) -> bytes:
    """One's complement of the one's complement sum; of zero only what is zero throughout."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    return struct.pack(">H", 0xFFFF - (total % 0xFFFF or (0xFFFF if total else 0)))


@pytest.mark.parametrize(
    ("total", "folded"),
    [
        (0, 0xFFFF),
        (0xFFFF, 0),
        (0x1_0000, 0xFFFE),
        (0xFFFF_0001, 0xFFFE),
        (0xFFFF_FFFF, 0),
        (0x1_FFFF, 0xFFFE),
    ],
)
def test_both_carries_of_a_fold_count(total: int, folded: int) -> None:
    assert checksum.fold(total) == folded


@given(WORDS)
def test_of_a_whole_packet(words: list[int]) -> None:
    data = struct.pack(f">{len(words)}H", *words)
    assert checksum.whole(data) == defined(data)


@given(WORDS, st.integers(0, 2**32 - 1), st.binary(min_size=16, max_size=16))
def test_of_what_has_changed(words: list[int], four: int, sixteen: bytes) -> None:
    """The first word stays, and is not zero: what a sum of zero becomes is left open by the definition."""
    before = struct.pack(f">{len(words) + 1}H", 0x4500, *words)
    after = before[:2] + four.to_bytes(4, "big") + before[6:]
    changed = checksum.replace(defined(before), before[2:6], after[2:6])
    assert changed == defined(after)
    after = before[:2] + sixteen + before[18:]
    changed = checksum.replace_by_difference(defined(before), before[2:18], after[2:18])
    assert changed == defined(after)
