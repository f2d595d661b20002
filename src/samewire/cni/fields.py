"""Reading a CNI configuration's JSON: keys in any case, null for "not given", every fault names its key.

Go programs decode JSON keys without regard to case, and configurations in the field rely on it (``Policies``,
``Nameservers``); a key in its exact spelling goes first.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv6Address, ip_interface, ip_network
from typing import Any, NoReturn

from samewire.cni.errors import CniCode, CniError
from samewire.hcn.policy_base import parse_ip

_MAC = re.compile(r"[0-9a-f]{2}([-:])[0-9a-f]{2}(?:\1[0-9a-f]{2}){4}")


@lru_cache(maxsize=4096)
def address(text: str) -> str:
    """Return an IP address in its shortest form. Raises ValueError."""
    if "%" in text:
        raise ValueError(f"{text[:64]!r} is not an IP address")
    parsed = parse_ip(text)
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return str(mapped or parsed)


@lru_cache(maxsize=4096)
def cidr(text: str) -> str:
    """Return an address with its prefix length, such as 10.1.0.5/24. Raises ValueError."""
    if "/" not in text or "%" in text:
        raise ValueError(f"{text[:64]!r} is not an address with a prefix length")
    return ip_interface(text).with_prefixlen


@lru_cache(maxsize=4096)
def prefix(text: str) -> str:
    """Return a prefix such as 10.1.0.0/24; its host bits are cleared. Raises ValueError."""
    if "/" not in text or "%" in text:
        raise ValueError(f"{text[:64]!r} is not a prefix")
    return str(ip_network(text, strict=False))


def prefix_list(text: str) -> str:
    """Return comma-separated prefixes in canonical form. Raises ValueError."""
    return ",".join(prefix(item.strip()) for item in text.split(","))


@lru_cache(maxsize=4096)
def mac(text: str) -> str:
    """Return the MAC address of one station, such as 0e:2a:0a:01:00:05. Raises ValueError."""
    lower = text.lower()
    if not _MAC.fullmatch(lower) or int(lower[:2], 16) & 1 or not lower.strip("0:-"):
        raise ValueError(f"{text[:64]!r} is not the MAC address of one station")
    return lower.replace("-", ":")


def family(text: str) -> int:
    """Return 4 or 6 for an address or prefix in canonical form."""
    return 6 if ":" in text else 4


class Fields:
    """The keys of one JSON object, ``path`` being the key it stands under ("" = the top).

    Every method raises CniError(INVALID_CONFIG) for a value of the wrong shape. An empty object is false.
    """

    def __init__(self, value: Any, path: str = "") -> None:
        self.path = path
        if not isinstance(value, dict):
            raise CniError(
                CniCode.INVALID_CONFIG, f"{path or 'configuration'}: expected an object, got {shape(value)}"
            )
        self.value: dict[str, Any] = value
        self._lowered: dict[str, Any] | None = None

    def __bool__(self) -> bool:
        return bool(self.value)

    def key(self, name: str) -> str:
        """Return the full name of a key, for messages."""
        return f"{self.path}.{name}" if self.path else name

    def fail(self, name: str, message: str) -> NoReturn:
        """Raise the error of one key."""
        raise CniError(CniCode.INVALID_CONFIG, f"{self.key(name)}: {message}")

    def get(self, name: str) -> Any:
        """Return the value of a key, None when it is not given."""
        return self.value[name] if name in self.value else self._any_case().get(name.lower())

    def given(self, name: str) -> bool:
        """Return whether a key is there, be it with null: so Go programs write a list without entries."""
        return name in self.value or name.lower() in self._any_case()

    def text(self, name: str) -> str:
        """Return a text, "" when it is not given."""
        value = self.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            self.fail(name, f"expected a string, got {shape(value)}")
        return value

    def required_text(self, name: str) -> str:
        """Return a text that must be given and not empty."""
        value = self.text(name)
        if not value:
            self.fail(name, "is required")
        return value

    def parsed(self, name: str, parse: Callable[[str], str], default: str | None = None) -> str:
        """Return a text in the canonical form of its kind; required without a default."""
        value = self.text(name) if default is not None else self.required_text(name)
        return self._parse(name, value, parse) if value else default or ""

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of texts without the empty ones, () when it is not given."""
        return self.parsed_texts(name, str)

    def parsed_texts(self, name: str, parse: Callable[[str], str]) -> tuple[str, ...]:
        """Return a list of texts in the canonical form of their kind, without the empty ones."""
        found = []
        for index, item in enumerate(self._list(name)):
            if not isinstance(item, str):
                self.fail(f"{name}[{index}]", f"expected a string, got {shape(item)}")
            if item:
                found.append(self._parse(f"{name}[{index}]", item, parse))
        return tuple(found)

    def flag(self, name: str) -> bool:
        """Return true or false, false when it is not given."""
        return self.optional_flag(name) or False

    def optional_flag(self, name: str) -> bool | None:
        """Return true or false, None when it is not given."""
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            self.fail(name, f"expected true or false, got {shape(value)}")
        return value

    def number(self, name: str, maximum: int) -> int:
        """Return a whole number from 0 to ``maximum``, 0 when it is not given."""
        return self.optional_number(name, maximum) or 0

    def optional_number(self, name: str, maximum: int) -> int | None:
        """Return a whole number from 0 to ``maximum``, None when it is not given."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool):
            self.fail(name, f"expected a whole number, got {shape(value)}")
        if not 0 <= value <= maximum:
            self.fail(name, f"must be from 0 to {maximum}, got {value}")
        return value

    def child(self, name: str) -> Fields:
        """Return the keys of an object, none when it is not given."""
        value = self.get(name)
        return Fields({} if value is None else value, self.key(name))

    def objects(self, name: str) -> list[Fields]:
        """Return a list of objects, none when it is not given."""
        return [Fields(item, f"{self.key(name)}[{index}]") for index, item in enumerate(self._list(name))]

    def lists(self, name: str) -> list[list[Fields]]:
        """Return a list of lists of objects, none when it is not given."""
        outer = Fields({f"{name}[{index}]": item for index, item in enumerate(self._list(name))}, self.path)
        return [outer.objects(key) for key in outer.value]

    def _any_case(self) -> dict[str, Any]:
        if self._lowered is None:
            self._lowered = {key.lower(): item for key, item in self.value.items()}
        return self._lowered

    def _list(self, name: str) -> list[Any]:
        value = self.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            self.fail(name, f"expected a list, got {shape(value)}")
        return value

    def _parse(self, name: str, value: str, parse: Callable[[str], str]) -> str:
        try:
            return parse(value)
        except ValueError as error:
            self.fail(name, str(error))


def shape(value: Any) -> str:
    """Return what a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"the number {value!r:.24}")
