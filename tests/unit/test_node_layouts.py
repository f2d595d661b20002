"""Bytes of one build's structures become those of another's."""

from __future__ import annotations

import pytest

from samewire.kernel.bpf.btf import BtfField, BtfStruct
from samewire.node.layouts import converter


def struct(name: str, size: int, **fields: tuple[int, int]) -> dict[str, BtfStruct]:
    return {
        name: BtfStruct(name, size, tuple(BtfField(key, at, length) for key, (at, length) in fields.items()))
    }


OLD = struct("s", 8, a=(0, 4), b=(4, 2), reserved=(6, 2))


def test_the_same_layout_is_a_copy() -> None:
    convert = converter("s", OLD, OLD)
    assert convert is not None
    assert convert(b"AAAABB\0\0") == b"AAAABB\0\0"


def test_a_new_member_is_zero_and_others_move() -> None:
    convert = converter("s", OLD, struct("s", 12, b=(0, 2), new=(4, 4), a=(8, 4)))
    assert convert is not None
    assert convert(b"AAAABB\0\0") == b"BB\0\0\0\0\0\0AAAA"


def test_an_integer_may_grow() -> None:
    convert = converter("s", OLD, struct("s", 8, a=(0, 4), b=(4, 4)))
    assert convert is not None
    assert convert(bytes([1, 0, 0, 0, 7, 1, 9, 9])) == bytes([1, 0, 0, 0, 7, 1, 0, 0])


def test_a_removed_member_is_dropped() -> None:
    convert = converter("s", OLD, struct("s", 2, b=(0, 2)))
    assert convert is not None
    assert convert(b"AAAABB\0\0") == b"BB"


def test_what_cannot_be_converted() -> None:
    assert converter("s", OLD, struct("s", 4, a=(0, 2), b=(2, 2))) is None  # shrank
    assert converter("s", struct("s", 32, a=(0, 32)), struct("s", 48, a=(0, 48))) is None  # an array grew
    assert converter("s", {}, OLD) is None
    assert converter("s", OLD, {}) is None


def test_a_changed_part_of_it_cannot_be_converted() -> None:
    old = {**struct("s", 4, a=(0, 4)), **struct("sw_action", 4, x=(0, 4))}
    new = {**struct("s", 4, a=(0, 4)), **struct("sw_action", 4, y=(0, 4))}
    assert converter("s", old, new) is None


def test_bytes_of_another_size_are_refused() -> None:
    convert = converter("s", OLD, OLD)
    assert convert is not None
    with pytest.raises(ValueError, match="8 are due"):
        convert(b"short")
