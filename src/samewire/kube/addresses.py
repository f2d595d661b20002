"""Addresses as Kubernetes reads them: `ipaddress` refuses what API servers have always taken, and may hold for ever."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from samewire.inet import packed_ipv4, packed_ipv6

# May be shorter, or in lower case: others of fewer than eight groups are as they should be.
_ODD: Final = re.compile(r"[^0-9a-f:]|(?:^|:)0")
_LEADING_ZEROS: Final = re.compile(r"(^|\.)0+(?=[0-9])")

# Nearly all: a start asks for each endpoint.
_PLAIN_IPV4: Final = frozenset(range(1, 224)) - {127, 169}
_LINK_LOCAL_IPV4: Final = bytes((169, 254))
_NOBODYS_IPV4: Final = frozenset((bytes(4), bytes((255,) * 4)))
_NOBODYS_IPV6: Final = frozenset((bytes(6), bytes((0, 0, 0, 0, 0, 1))))


def decimal(text: str) -> str:
    """An address or prefix without leading zeros; ``010.96.0.10`` is 10.96.0.10, and nothing here is octal."""
    if ".0" in text or text[:1] == "0":
        return _LEADING_ZEROS.sub(r"\1", text)
    return text


def shortest(text: str) -> str:
    """An IPv6 address in its one form; API servers keep it as it was written. What is no address comes back as it is,
    and is refused later, by its name.
    """
    if text.count(":") < 7 and not _ODD.search(text):
        return text
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError:
        return text


def is_of_one_machine(text: str) -> bool:
    """Whether others reach one machine at an address, the same from everywhere: it is one, and not unspecified,
    loopback, link-local, multicast or broadcast. Who may write an EndpointSlice would else choose a node's own.
    """
    if ":" not in text:
        four = packed_ipv4(text)
        if four is None:
            return False
        if four[0] in _PLAIN_IPV4:
            return True
        return not (
            four[0] == 127 or 224 <= four[0] < 240 or four[:2] == _LINK_LOCAL_IPV4 or four in _NOBODYS_IPV4
        )
    six = packed_ipv6(text)
    if six is None or six[0] == 0xFF or (six[0] == 0xFE and six[1] & 0xC0 == 0x80):
        return False
    # Of an IPv4 address in IPv6's clothes, and of :: and ::1.
    return any(six[:10]) or not (six[10:12] == b"\xff\xff" or six[10:] in _NOBODYS_IPV6)
