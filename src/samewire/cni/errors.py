"""CNI errors: a number from the CNI specification, a short text and a longer one.

`to_cni_error` is the one place that turns Samewire's errors into CNI codes.
"""

from __future__ import annotations

import enum

from samewire.errors import (
    Conflict,
    Exhausted,
    Invalid,
    KernelError,
    NotFound,
    SamewireError,
    Unavailable,
    Unsupported,
)
from samewire.hcn.errors import HcnError


class CniCode(enum.IntEnum):
    """Error codes: 1 to 99 as CNI 1.1 section 5 has them, 100 and up are Samewire's own.

    `UNKNOWN_CONTAINER` tells the runtime that it need not call DEL; Samewire never says so.
    """

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODING_FAILURE = 6
    INVALID_CONFIG = 7
    TRY_AGAIN = 11
    NOT_AVAILABLE = 50
    LIMITED_CONNECTIVITY = 51

    HOST_FAILURE = 100
    NOT_FOUND = 101
    CONFLICT = 102
    EXHAUSTED = 103
    UNSUPPORTED = 104
    HNS_REFUSED = 105
    IPAM_PLUGIN = 106
    CHECK_FAILED = 107
    INTERNAL = 999


class CniError(SamewireError):
    """A CNI request that fails with a code for the runtime. ``details`` is the longer text, "" for none.

    ``code`` is a `CniCode`, or any number when the error is passed on from another plugin.
    """

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(f"{message}: {details}" if details else message)
        self.code = code
        self.message = message
        self.details = details


CODES: tuple[tuple[type[SamewireError], CniCode], ...] = (
    (Invalid, CniCode.INVALID_CONFIG),
    (NotFound, CniCode.NOT_FOUND),
    (Conflict, CniCode.CONFLICT),
    (Exhausted, CniCode.EXHAUSTED),
    (Unsupported, CniCode.UNSUPPORTED),
    (Unavailable, CniCode.TRY_AGAIN),
    (KernelError, CniCode.HOST_FAILURE),
    (HcnError, CniCode.HNS_REFUSED),
    (SamewireError, CniCode.HOST_FAILURE),
)
"""The code of each class of errors; the first that fits counts."""


def to_cni_error(error: SamewireError) -> CniError:
    """Return an error as the runtime sees it; a `CniError` stays as it is."""
    if isinstance(error, CniError):
        return error
    code = next(code for kind, code in CODES if isinstance(error, kind))
    details = f"HRESULT {error.code:#010x} {error.code.name}" if isinstance(error, HcnError) else ""
    return CniError(code, str(error), details)
