"""The one request that comes by the thousand, answered without the machinery of the others.

Clients of HCN enumerate and then query each object. Where such a request has come whole, is written as clients write
it, and nothing else is under way on its connection, its answer is a look-up: aiohttp's way from bytes to a handler and
back takes five times as long. Anything unusual goes that way (`Reads.answer` returns None), and so does every error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE

from samewire.errors import SamewireError
from samewire.hcn.query import Rendered, parse_query
from samewire.hcn.schema import Kind
from samewire.hcn.service import HnsService

_GUID: Final = rb"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
_KINDS: Final = b"|".join(kind.value.encode() for kind in Kind)
_HEADER: Final = (
    rb"(?i:(?:Host|Accept|Accept-Encoding|User-Agent|Content-Type): ?[ -~]{0,256}"
    rb"|Content-Length: ?(?P<length>[0-9]{1,4})|Connection: ?(?:keep-alive|(?P<close>close)))\r\n"
)
_REQUEST: Final = re.compile(
    rb"(?:GET /v2/(?P<get>" + _KINDS + rb")/(?P<get_id>" + _GUID + rb")"
    rb"|POST /v2/(?P<post>" + _KINDS + rb")/(?P<post_id>" + _GUID + rb")/query)"
    rb" HTTP/1\.1\r\n(?:" + _HEADER + rb"){1,8}\r\n"
)
_LENGTH: Final = re.compile(rb"\r\nContent-Length: *([0-9]{1,15})\r\n", re.IGNORECASE)
_ENCODING: Final = re.compile(rb"\r\n(?:Transfer-Encoding|Upgrade|Expect):", re.IGNORECASE)


class Reads:
    """Answers to reads of single objects, from what is committed."""

    def __init__(self, service: HnsService, rendered: Mapping[Kind, Rendered]) -> None:
        self._service = service
        self._rendered = rendered

    def answer(self, data: bytes) -> tuple[bytes, bool] | None:
        """Return the whole answer to one whole request, and whether the connection ends with it; None when it is for
        others to answer.
        """
        found = _REQUEST.match(data)
        if found is None:
            return None
        body = data[found.end() :]
        lengths = data[: found.end()].lower().count(b"\r\ncontent-length:")
        if lengths > 1 or len(body) != int(found["length"] or 0) or not _is_plain(found["get"], body):
            return None
        kind = Kind((found["get"] or found["post"]).decode())
        view = self._service.view
        value = view.get(kind, (found["get_id"] or found["post_id"]).decode().upper())
        if value is None:
            return None
        text = self._rendered[kind].json(view, value)
        head = (
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(text)}\r\nDate: {rfc822_formatted_time()}\r\nServer: {SERVER_SOFTWARE}\r\n"
        )
        end = "Connection: close\r\n\r\n" if found["close"] else "\r\n"
        return (head + end).encode() + text, bool(found["close"])


def _is_plain(get: bytes | None, body: bytes) -> bool:
    """Whether a request asks for an object as the newest schema shows it, without details."""
    if not body:
        return True
    if get:
        return False
    try:
        query = parse_query(body)
    except SamewireError:
        return False
    return query.major == 2 and not query.detailed


def missing(data: bytes) -> int | None:
    """How many bytes of its body a chunk lacks that begins with a request; None when that cannot be told."""
    head, found, body = data.partition(b"\r\n\r\n")
    if not found or _ENCODING.search(head):
        return None
    length = _LENGTH.search(head + b"\r\n")
    rest = int(length[1]) - len(body) if length else -len(body)
    return rest if rest >= 0 else None
