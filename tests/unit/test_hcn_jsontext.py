"""JSON from strangers: every fault is INVALID_JSON, never another exception."""

from __future__ import annotations

import pytest

from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.jsontext import MAX_DEPTH, parse_json


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting"),
        (b'{"a":1} x', "Extra data"),
        (b'{"a":1,"a":2}', "'a' is given twice"),
        (b'{"b":{"a":1,"a":2}}', "'a' is given twice"),
        (b'"\xff"', "not UTF-8 at byte 1"),
        (b'"\\ud800"', "lone surrogate"),
        (b'{"\\udfff":1}', "lone surrogate"),
        (b"[" * 100_000, "nested deeper"),
        (b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2), "nested deeper"),
        (b'{"a":' * 2000 + b"1" + b"}" * 2000, "nested deeper"),
        (b"1" * 5000, "64 bits"),
        (b"18446744073709551616", "64 bits"),
        (b"-9223372036854775809", "64 bits"),
        (b"1e999", "too large"),
        (b"NaN", "NaN is not JSON"),
        (b"-Infinity", "not JSON"),
        (b'{"a":\x00}', "Expecting value"),
        (b"'a'", "Expecting value"),
    ],
)
def test_faults_are_invalid_json(data: bytes, says: str) -> None:
    with pytest.raises(HcnError) as caught:
        parse_json(data)
    assert caught.value.code is HcnCode.INVALID_JSON
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"{}", {}),
        (b"\xef\xbb\xbf{}", {}),
        (b"18446744073709551615", 2**64 - 1),
        (b"-9223372036854775808", -(2**63)),
        (b"1.5e3", 1500.0),
        (b'{"a":[true,null,"\\u00fc"]}', {"a": [True, None, "ü"]}),
        ('"ü"', "ü"),
    ],
)
def test_values_are_read(data: bytes | str, value: object) -> None:
    assert parse_json(data) == value


def test_the_deepest_allowed_nesting_is_read() -> None:
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)


def test_which_of_very_many_keys_is_given_twice_is_found_in_one_go() -> None:
    """To count each of them would take minutes, and the daemon does nothing else meanwhile."""
    keys = ",".join(f'"{number}":0' for number in range(100_000))
    with pytest.raises(HcnError, match="'99999' is given twice"):
        parse_json(f'{{{keys},"99999":0}}')
