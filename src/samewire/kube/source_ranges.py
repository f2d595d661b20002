"""Which clients a Service's load balancer lets in.

As kube-proxy has it, what is no prefix does not count. But where nothing is left, it lets everybody in; whoever wrote
ranges wanted to keep some out, and so here a family whose ranges may all be among what cannot be read has none let in.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from samewire.kube.addresses import decimal
from samewire.kube.model import Service

_NOBODY: Final = {4: ("0.0.0.0/32",), 6: ("::/128",)}
# An address without a length is no range, and Python would take a mask for one.
_PREFIX: Final = re.compile(r"[0-9A-Fa-f.:]+/[0-9]{1,3}")


class SourceRanges(NamedTuple):
    """``by_family``: the prefixes, by 4 and 6; a family without any lets all in. ``unread``: what is no prefix."""

    by_family: dict[int, tuple[str, ...]]
    unread: tuple[str, ...]


def source_ranges(service: Service) -> SourceRanges:
    """The field; the annotation that it replaced counts only without it. Spaces around a range are allowed."""
    given: Iterable[str] = service.spec.load_balancer_source_ranges
    given = given or service.metadata.annotations.load_balancer_source_ranges.split(",")
    found: dict[int, tuple[str, ...]] = {}
    unread: dict[str, None] = {}
    for text in filter(None, map(str.strip, given)):
        try:
            network = _prefix(text)
        except ValueError:
            unread[text] = None
        else:
            found[network.version] = (*found.get(network.version, ()), str(network))
    return SourceRanges(_NOBODY | found if unread else found, tuple(unread))


def _prefix(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    if not _PREFIX.fullmatch(text):
        raise ValueError
    return ipaddress.ip_network(decimal(text), strict=False)
