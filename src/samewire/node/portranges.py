"""Sets of ports as ``ip_local_reserved_ports`` writes them: ``8080,49152-65535``. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from samewire.errors import Invalid


def parse_ports(text: str) -> frozenset[int]:
    """The ports in a list of ports and ranges. Raises ``Invalid``."""
    ports: set[int] = set()
    for item in filter(None, (part.strip() for part in text.split(","))):
        low, dash, high = item.partition("-")
        try:
            first, last = int(low), int(high if dash else low)
        except ValueError:
            raise Invalid("ports", f"{item!r} is neither a port nor a range") from None
        if not 0 <= first <= last <= 65535:
            raise Invalid("ports", f"{item!r} is no range within 0-65535")
        ports.update(range(first, last + 1))
    return frozenset(ports)


def ports_text(ports: Iterable[int]) -> str:
    """The shortest list for a set of ports."""
    ranges: list[list[int]] = []
    for port in sorted(ports):
        if ranges and port == ranges[-1][1] + 1:
            ranges[-1][1] = port
        else:
            ranges.append([port, port])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def merged(present: str, ours: str, added_before: str) -> tuple[str, str]:
    """The setting with our ports in it, and the ports that are there because of us alone.

    ``present`` is the setting as found, ``added_before`` what an earlier call returned: those are not the
    administrator's, even if the ports we want have changed since.
    """
    admins = parse_ports(present) - parse_ports(added_before)
    added = parse_ports(ours) - admins
    return ports_text(admins | added), ports_text(added)


def restored(present: str, added: str) -> str:
    """The setting without what we added."""
    return ports_text(parse_ports(present) - parse_ports(added))
