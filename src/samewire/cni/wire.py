"""What goes over cni.sock.

The client (`native/samewire-cni.c`, `cni/twin.py`) sends each environment variable that starts with ``CNI_``
as ``KEY=VALUE`` and a zero byte, then one more zero byte, then its stdin as it came, and closes its side. The
answer is the exit status in decimal and a line feed, then what to print.
"""

from __future__ import annotations

from samewire.cni.errors import CniCode, CniError

MAX_REQUEST = 1 << 20
"""Bytes; the client sends no more either."""

MAX_VARIABLES = 64


def decode_request(data: bytes) -> tuple[dict[str, str], bytes]:
    """Return the variables and the stdin in a request. Raises CniError."""
    if data.startswith(b"\0"):
        return {}, data[1:]
    head, end, stdin = data.partition(b"\0\0")
    items = head.split(b"\0", MAX_VARIABLES)
    if len(items) > MAX_VARIABLES:
        raise CniError(CniCode.IO_FAILURE, f"the request has more than {MAX_VARIABLES} variables")
    if not end:
        raise CniError(CniCode.IO_FAILURE, "the request ends within the environment")
    return dict(map(_variable, items)), stdin


def encode_reply(status: int, output: bytes) -> bytes:
    """Return the answer for a client that is to print ``output`` and exit with ``status``."""
    return b"%d\n%b" % (status, output)


def _variable(item: bytes) -> tuple[str, str]:
    raw, equals, value = item.partition(b"=")
    name = raw.decode(errors="backslashreplace")
    if not equals or not name.startswith("CNI_"):
        raise CniError(CniCode.IO_FAILURE, f"the request has {name[:64]!r} for an environment variable")
    try:
        return name, value.decode()
    except UnicodeDecodeError:
        raise CniError(CniCode.INVALID_ENVIRONMENT, f"{name[:64]} is not UTF-8") from None
