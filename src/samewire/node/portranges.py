"""Sets of ports as ``ip_local_reserved_ports`` writes them: ``8080,49152-65535``. Pure.

A set is a number with one bit for each port: the pool has 16,384 of them, and is compared at every audit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from samewire.errors import Invalid

_BYTES: Final = 65536 // 8 + 1  # one bit more than there are ports
_SOME = re.compile(rb"[^\0]", re.DOTALL)
_BITS: Final = tuple(tuple(bit for bit in range(8) if byte >> bit & 1) for byte in range(256))
_WRITTEN: Final[dict[str, int]] = {}
"""The two texts that were made last: they are what will be read next, of a thousand ports or of one."""


def parse_ports(text: str) -> int:
    """The ports in a list of ports and ranges. Raises ``Invalid``."""
    if text in _WRITTEN:
        return _WRITTEN[text]
    ports = 0
    for item in filter(None, (part.strip() for part in text.split(","))):
        low, dash, high = item.partition("-")
        try:
            first, last = int(low), int(high if dash else low)
        except ValueError:
            raise Invalid("ports", f"{item!r} is neither a port nor a range") from None
        if not 0 <= first <= last <= 65535:
            raise Invalid("ports", f"{item!r} is no range within 0-65535")
        ports |= port_range(first, last)
    return ports


def port_range(first: int, last: int) -> int:
    """The ports from ``first`` to ``last``, both included."""
    return (1 << last + 1) - (1 << first)


def ranges_of(ports: int) -> Iterator[tuple[int, int]]:
    """The ranges of a set in order, each with its first port and its last."""
    edges = (ports ^ ports << 1).to_bytes(_BYTES, "little")  # where a range begins, and behind its end
    found = [8 * some.start() + bit for some in _SOME.finditer(edges) for bit in _BITS[edges[some.start()]]]
    for first, behind in zip(found[::2], found[1::2], strict=True):
        yield first, behind - 1


def ports_text(ports: int) -> str:
    """The shortest list for a set of ports."""
    for text, written in _WRITTEN.items():
        if written == ports:
            return text
    text = ",".join([str(first) if first == last else f"{first}-{last}" for first, last in ranges_of(ports)])
    if len(_WRITTEN) > 1:
        del _WRITTEN[next(iter(_WRITTEN))]
    _WRITTEN[text] = ports
    return text


def merged(present: str, ours: int, added_before: str) -> tuple[str, str]:
    """The setting with our ports in it, and the ports that are there because of us alone.

    ``present`` is the setting as found, ``added_before`` what an earlier call returned: those are not the
    administrator's, even if the ports we want have changed since.
    """
    admins = parse_ports(present) & ~parse_ports(added_before)
    added = ours & ~admins
    return ports_text(admins | added), ports_text(added)


def united(one: str, other: str) -> str:
    """The ports of two settings."""
    return one if one == other else ports_text(parse_ports(one) | parse_ports(other))


def restored(present: str, added: str) -> str:
    """The setting without what we added."""
    return ports_text(parse_ports(present) & ~parse_ports(added))
