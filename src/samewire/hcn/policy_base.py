"""What all HCN policies are: a type and its settings."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from samewire.hcn.base import Wire
from samewire.inet import packed_ipv4


class PolicyBase(Wire, frozen=True, kw_only=True, tag_field="Type", tag=lambda name: name):
    """Base of all policies; the class name is the HCN type name.

    ``extra`` holds the unknown fields of ``Settings``, ``beside`` those next to ``Type`` and ``Settings``.
    """

    beside: tuple[tuple[str, str], ...] = ()


@lru_cache(maxsize=65536)
def parse_prefix(text: str) -> IPv4Network | IPv6Network:
    """Return an address or prefix as a network; host bits are cleared. Raises ValueError."""
    return ip_network(text, strict=False)


@lru_cache(maxsize=4096)
def parse_ip(text: str) -> IPv4Address | IPv6Address:
    """Return an address; the steps of a change all ask for the same few. Raises ValueError."""
    packed = packed_ipv4(text)
    return IPv4Address(packed) if packed is not None else ip_address(text)


def text_items(text: str) -> list[str]:
    """Return the items of comma-separated text, without empty ones and spaces."""
    return [item for raw in text.split(",") if (item := raw.strip())]
