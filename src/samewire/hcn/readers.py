"""Reading single JSON values the way HNS clients write them: numbers as text, enumerations as numbers,
named flags.

Every reader takes a value and the path it was found at, and raises HcnError.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, cast

import msgspec

from samewire.hcn.errors import HcnCode, fail
from samewire.hcn.schema import NetworkType

Read = Callable[[Any, str], Any]

NETWORK_MODES = ("NAT", "ICS", "Transparent", "L2Bridge", "L2Tunnel", "Overlay", "Private", "Internal")
"""Network types by number: the schema's order, some of which are not implemented here."""

ICS_MODES = frozenset({"ics", "1", "constrainedics"})
"""Internet connection sharing by name or number, lower case."""

PROTOCOLS = {"icmpv4": 1, "igmp": 2, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132}


def shape(value: Any) -> str:
    """Return what a JSON value is, in words."""
    names = {dict: "an object", list: "an array", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def read_text(value: Any, path: str) -> str:
    """Text, or a number as its text."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        fail(path, f"expected text, got {shape(value)}")
    return str(value)


def read_list_text(value: Any, path: str) -> str:
    """Comma-separated text, for which some clients send a JSON array."""
    if isinstance(value, list):
        return ",".join(read_text(item, f"{path}[{index}]") for index, item in enumerate(value))
    return read_text(value, path)


def read_bool(value: Any, path: str) -> bool:
    """A boolean, 0 or 1, or either as text."""
    text = str(value).lower()
    if not isinstance(value, bool | int | str) or text not in ("true", "false", "1", "0"):
        fail(path, f"expected true or false, got {value!r:.40}")
    return text in ("true", "1")


def int_reader(bounds: msgspec.Meta) -> Read:
    """A whole number within bounds, or its decimal digits."""
    low, high = cast(int, bounds.ge), cast(int, bounds.le)

    def read(value: Any, path: str) -> int:
        number = integer(value)
        if number is None or not low <= number <= high:
            fail(path, f"expected a whole number from {low} to {high}, got {value!r:.40}")
        return number

    return read


def integer(value: Any) -> int | None:
    """Return a whole number given as one or as decimal digits, else None."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and len(value) <= 20 and value.isascii() and value.isdigit():
        return int(value)
    return None


def enum_reader(wanted: type[enum.Enum], otherwise: HcnCode = HcnCode.INVALID_JSON) -> Read:
    """A member of an enumeration by its name in any case, or by its number in the schema; ``otherwise`` is the
    error's code.
    """
    members = list(wanted)
    names = {str(member.value).lower(): member for member in members}
    numbers = NETWORK_MODES if wanted is NetworkType else [member.value for member in members]
    names |= {
        str(number): names[name.lower()] for number, name in enumerate(numbers) if name.lower() in names
    }
    code = HcnCode.INVALID_NETWORK_TYPE if wanted is NetworkType else otherwise
    shared = ICS_MODES if wanted is NetworkType else frozenset()

    def read(value: Any, path: str) -> enum.Enum:
        text = str(value).lower()
        if text in shared:
            fail(path, "internet connection sharing is disabled here; use NAT", HcnCode.ICS_DISABLED)
        if not isinstance(value, str | int) or text not in names:
            expected = ", ".join(str(member.value) for member in members)
            fail(path, f"expected one of {expected}, got {value!r:.40}", code)
        return names[text]

    return read


def flags_reader(names: type[enum.IntFlag]) -> Read:
    """Flags as a number, or as the schema's names separated by commas."""
    bits = {member.name.replace("_", "").lower(): member.value for member in names if member.name}

    def read(value: Any, path: str) -> int:
        number = integer(value)
        if number is None and isinstance(value, str):
            words = [word.strip().lower() for word in value.split(",")]
            if all(word in bits or word == "none" for word in words):
                number = sum({bits.get(word, 0) for word in words})
        if number is None or not 0 <= number < 2**32:
            fail(path, f"expected flags as a number or as names ({', '.join(bits)}), got {value!r:.40}")
        return number

    return read


def read_protocol(value: Any, path: str) -> int:
    """An IP protocol by number or by the schema's name."""
    number = PROTOCOLS.get(value.lower()) if isinstance(value, str) else None
    if number is None:
        number = integer(value)
    if number is None or not 0 <= number < 2**32:
        fail(path, f"expected a protocol number, got {value!r:.40}", HcnCode.INVALID_POLICY)
    return number


def int_enum_reader(wanted: type[enum.IntEnum]) -> Read:
    """A member of a numbered enumeration by its number, or by its name in any case."""
    names = {member.name.replace("_", "").lower(): member for member in wanted}

    def read(value: Any, path: str) -> enum.IntEnum:
        number = integer(value)
        if number is None and isinstance(value, str):
            number = names.get(value.lower())
        if number is None or number not in wanted._value2member_map_:
            expected = ", ".join(f"{member.value} ({member.name.replace('_', '')})" for member in wanted)
            fail(path, f"expected one of {expected}, got {value!r:.40}")
        return wanted(number)

    return read


def list_reader(read: Read) -> Read:
    """An array of what another reader reads. Texts that are null are passed over: PowerShell has one in an array
    of nothing.
    """

    def read_list(value: Any, path: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            fail(path, f"expected an array, got {shape(value)}")
        return tuple(
            read(item, f"{path}[{index}]")
            for index, item in enumerate(value)
            if item is not None or read is not read_text
        )

    return read_list
