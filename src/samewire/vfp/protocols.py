"""Names of IP protocols."""

from __future__ import annotations

from typing import Final

from samewire.vfp.constants import PROTOCOL_ANY

_NAMES: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp", PROTOCOL_ANY: "any"}


def protocol_text(protocol: int) -> str:
    """A protocol's usual name, or its number."""
    return _NAMES.get(protocol, str(protocol))
