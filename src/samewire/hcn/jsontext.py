"""Reading JSON text from strangers: strict, bounded, and every fault is a clean INVALID_JSON."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

from samewire.hcn.errors import HcnCode, HcnError

MAX_DEPTH = 64
MAX_DIGITS = 20
INTEGERS = range(-(2**63), 2**64)


def parse_json(data: bytes | str) -> Any:
    """Return the value of JSON text. Raises HcnError(INVALID_JSON).

    Refused: invalid UTF-8 and lone surrogates, a key given twice in an object, nesting deeper than
    `MAX_DEPTH`, integers beyond 64 bits, infinities and NaN, and anything that follows the value. A byte
    order mark is skipped.
    """
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        value = _DECODER.decode(text)
    except UnicodeDecodeError as error:
        raise HcnError(HcnCode.INVALID_JSON, f"$: not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise HcnError(HcnCode.INVALID_JSON, f"$: nested deeper than {MAX_DEPTH}") from None
    except ValueError as error:
        raise HcnError(HcnCode.INVALID_JSON, f"$: {error}") from None
    _check(value, 0)
    return value


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the key {twice!r} is given twice in one object")
    return result


def _integer(text: str) -> int:
    number = int(text) if len(text) <= MAX_DIGITS else None
    if number is None or number not in INTEGERS:
        raise ValueError(f"the number {text[:24]} does not fit into 64 bits")
    return number


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:24]} is too large")
    return number


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_int=_integer, parse_float=_float, parse_constant=_constant
)


def _check(value: Any, depth: int) -> None:
    """Refuse what cannot be written again: deep nesting, text that is not Unicode."""
    if depth > MAX_DEPTH:
        raise HcnError(HcnCode.INVALID_JSON, f"$: nested deeper than {MAX_DEPTH}")
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key)
            _check(item, depth + 1)


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise HcnError(HcnCode.INVALID_JSON, "$: text with a lone surrogate") from None
