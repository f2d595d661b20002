"""Every record survives packing, for any values of its fields."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samewire.vfp.address import Address, Prefix, masked, parse_address, parse_prefix
from samewire.vfp.record import Record
from samewire.vfp.tables import RECORDS, Count, Id

_BITS = {"B": 8, "H": 16, "I": 32, "Q": 64, "2s": 16}


def _values(hint: Any) -> st.SearchStrategy[Any]:
    if isinstance(hint, type):
        return records(hint)
    if get_origin(hint) is tuple:
        return st.tuples(*map(_values, get_args(hint)))
    inner, code = get_args(hint)
    if get_origin(inner) is tuple:
        return st.tuples(*[_values(get_args(inner)[0])] * code)
    if code in _BITS:
        return st.integers(0, 2 ** _BITS[code] - 1)
    size = int(code.removesuffix("s"))
    return st.binary(min_size=size, max_size=size)


def records(cls: type[Record]) -> st.SearchStrategy[Record]:
    """Any record of a class."""
    hints = get_type_hints(cls, include_extras=True)
    fields = {
        name: _values(hints[name])
        for name in cls.__struct_fields__
        if get_origin(hints[name]) in (tuple, Annotated) or isinstance(hints[name], type)
    }
    assert set(fields) == {name for name in cls.__annotations__ if get_origin(hints[name]) is not ClassVar}
    return st.builds(cls, **fields)


@pytest.mark.parametrize("cls", [*RECORDS, Id, Count], ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_round_trip(cls: type[Record], data: st.DataObject) -> None:
    record = data.draw(records(cls))
    packed = record.pack()
    assert len(packed) == cls.size
    assert cls.unpack(packed) == record
    assert hash(cls.unpack(packed)) == hash(record)
    for field in cls.fields:
        if field.name == "reserved":
            assert not any(packed[field.offset : field.offset + field.size])


@given(st.ip_addresses())
def test_address_text_round_trip(address: Any) -> None:
    parsed = parse_address(str(address))
    assert parsed.family == address.version
    assert parsed.packed[: len(address.packed)] == address.packed
    assert not any(parsed.packed[len(address.packed) :])
    assert str(parsed) == str(address)
    assert parse_prefix(str(parsed)) == parsed.host_prefix


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16), st.integers(0, 128))
def test_prefix_contains_what_shares_its_bits(one: bytes, two: bytes, bits: int) -> None:
    prefix = Prefix(6, one, bits)
    shared = int.from_bytes(one, "big") ^ int.from_bytes(two, "big")
    assert (Address(6, two) in prefix) == (shared >> (128 - bits) == 0)
    assert Address(6, masked(one, bits)) in prefix
    assert prefix.network in prefix
    assert Address(4, one) not in prefix
