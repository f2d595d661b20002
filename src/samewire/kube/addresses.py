"""Addresses as Kubernetes reads them: `ipaddress` refuses what API servers have always taken, and may hold for ever."""

from __future__ import annotations

import re
from typing import Final

_LEADING_ZEROS: Final = re.compile(r"(^|\.)0+(?=[0-9])")


def decimal(text: str) -> str:
    """An address or prefix without leading zeros; ``010.96.0.10`` is 10.96.0.10, and nothing here is octal."""
    if ".0" in text or text[:1] == "0":
        return _LEADING_ZEROS.sub(r"\1", text)
    return text
