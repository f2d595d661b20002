"""Which host ports exclude each other (pure)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

Claim = tuple[str, int, str]
"""Protocol, number and address of a host port."""

EVERY: Final = "0.0.0.0"
_WILDCARDS: Final = frozenset({EVERY, "::"})


class HostPorts:
    """Host ports that somebody has. One is taken by its own address, and where either is for every one."""

    def __init__(self, claims: Iterable[Claim] = ()) -> None:
        self._addresses: dict[tuple[str, int], set[str]] = {}
        self.update(claims)

    def __contains__(self, claim: Claim) -> bool:
        """Whether it is taken."""
        protocol, number, address = claim
        there = self._addresses.get((protocol, number), set())
        return address in there or bool(there and _WILDCARDS & {address, *there})

    def update(self, claims: Iterable[Claim]) -> None:
        """These are taken from now on."""
        for protocol, number, address in claims:
            self._addresses.setdefault((protocol, number), set()).add(address)
