"""Sets of ports as ``ip_local_reserved_ports`` writes them: ``8080,49152-65535``. Pure.

A set is a number with one bit for each port: the pool has 16,384 of them, and is compared at every audit.
"""

from __future__ import annotations

from samewire.errors import Invalid


def parse_ports(text: str) -> int:
    """The ports in a list of ports and ranges. Raises ``Invalid``."""
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


def ports_text(ports: int) -> str:
    """The shortest list for a set of ports."""
    ranges: list[str] = []
    start = 0
    while ports:
        gap = (ports & -ports).bit_length() - 1
        first, ports = start + gap, ports >> gap
        length = (~ports & (ports + 1)).bit_length() - 1
        start, ports = first + length, ports >> length
        ranges.append(str(first) if length == 1 else f"{first}-{start - 1}")
    return ",".join(ranges)


def merged(present: str, ours: str, added_before: str) -> tuple[str, str]:
    """The setting with our ports in it, and the ports that are there because of us alone.

    ``present`` is the setting as found, ``added_before`` what an earlier call returned: those are not the
    administrator's, even if the ports we want have changed since.
    """
    admins = parse_ports(present) & ~parse_ports(added_before)
    added = parse_ports(ours) & ~admins
    return ports_text(admins | added), ports_text(added)


def restored(present: str, added: str) -> str:
    """The setting without what we added."""
    return ports_text(parse_ports(present) & ~parse_ports(added))
