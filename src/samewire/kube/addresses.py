"""Addresses as Kubernetes reads them: `ipaddress` refuses what API servers have always taken, and may hold for ever."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

# May be shorter, or in lower case: others of fewer than eight groups are as they should be.
_ODD: Final = re.compile(r"[^0-9a-f:]|(?:^|:)0")
_LEADING_ZEROS: Final = re.compile(r"(^|\.)0+(?=[0-9])")


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
