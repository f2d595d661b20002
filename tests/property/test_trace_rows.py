"""Packed rows are the table that they were made of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samewire.trace.rows import PackedRows
from samewire.vfp.record import Record
from samewire.vfp.tables import Count, DropKey, Flow, FlowKey
from tests.property.test_vfp_records import records


@given(st.dictionaries(records(FlowKey), records(Flow), max_size=20), records(FlowKey))
def test_they_are_the_rows(rows: dict[Record, Record], other: Record) -> None:
    packed = PackedRows.of(FlowKey, Flow, rows)
    assert PackedRows.of(FlowKey, Flow, packed) is packed
    assert len(packed) == len(rows)
    assert list(packed) == list(rows)
    assert list(packed.items()) == list(rows.items())
    assert packed == rows
    for key, flow in rows.items():
        assert key in packed
        assert packed[key] == flow
        assert packed.packed(key.pack()) == (key, flow)
    assert (other in packed) == (other in rows)
    assert packed.get(other) == rows.get(other)
    assert DropKey(0, 0, 0, 0, 0) not in packed


@given(st.dictionaries(records(FlowKey), records(Flow), max_size=20))
def test_the_highest_number_comes_first(rows: dict[Record, Record]) -> None:
    packed = PackedRows.of(FlowKey, Flow, rows)
    for member in ("seen_tick", "peer_scope", "flags"):
        found = [packed.packed(key) for key in packed.highest_first(member)]
        numbers = [getattr(flow, member) for _, flow in found]
        assert numbers == sorted(numbers, reverse=True)
        assert dict(found) == rows


def test_a_key_that_is_not_there() -> None:
    with pytest.raises(KeyError):
        PackedRows(FlowKey, Count, ())[FlowKey((bytes(16), bytes(16)), (0, 0), 0, 4, 6)]
