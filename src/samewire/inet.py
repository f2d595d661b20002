"""Addresses from text, by the C library.

`inet_pton` is arithmetic on its argument, although Python keeps it beside what opens sockets: so the pure core may have
this one function of ``socket``, and nothing else of it.
"""

from __future__ import annotations

from socket import AF_INET, AF_INET6, inet_pton


def packed_ipv4(text: str) -> bytes | None:
    """Return the four bytes of an IPv4 address, None for any other text: a tenth of what `ipaddress` takes."""
    try:
        return inet_pton(AF_INET, text)
    except (OSError, ValueError):
        return None


def packed_ipv6(text: str) -> bytes | None:
    """Return the sixteen bytes of an IPv6 address, None for any other text."""
    try:
        return inet_pton(AF_INET6, text)
    except (OSError, ValueError):
        return None
