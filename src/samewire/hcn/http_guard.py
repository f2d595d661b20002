"""Who may use the HTTP API: on the unix socket the kernel's word on the peer, on TCP a token.

The TCP listener is for programs that know no unix sockets: Windows binaries under Wine. It is off unless configured,
and on loopback only, because whoever has the token is root of this node's network.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

from aiohttp import web

from samewire.errors import Unavailable

TOKEN_BYTES = 32
MAX_TOKEN_BYTES = 4096

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Forbidden(web.HTTPForbidden):
    """The peer is nobody we serve."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason=reason)


def guard(allowed_uids: Collection[int], token: str = "") -> Any:
    """The middleware. User id 0 and ``allowed_uids`` may use the unix socket; over TCP, who sends ``token`` as
    ``Authorization: Bearer`` (nobody when it is empty).
    """
    uids = frozenset({0, *allowed_uids})
    wanted = f"Bearer {token}".encode()

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        peer = request.transport.get_extra_info("socket") if request.transport else None
        if peer is None or peer.family == socket.AF_UNIX:
            uid = peer_uid(peer)
            if uid not in uids:
                raise Forbidden(f"user id {uid} may not use this socket")
        elif not token or not hmac.compare_digest(_bytes(request.headers.get("Authorization", "")), wanted):
            raise Forbidden("the token is missing or wrong: send it as Authorization: Bearer TOKEN")
        return await handler(request)

    return check


def _bytes(header: str) -> bytes:
    """A header as it came: what is no UTF-8 of it, aiohttp has as surrogates."""
    return header.encode(errors="surrogateescape")


def read_token(path: Path) -> str:
    """The token in a file; a new one is written (mode 0600) when there is no file. Raises Unavailable."""
    try:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            found = path.read_bytes()[:MAX_TOKEN_BYTES].decode("ascii").strip()
        else:
            found = secrets.token_hex(TOKEN_BYTES)
            with os.fdopen(descriptor, "w") as file:
                file.write(found + "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise Unavailable(str(path), f"no token can be had from it: {error}") from error
    if not found:
        raise Unavailable(str(path), "is empty; remove it, and a new token is made")
    return found


def peer_uid(peer: Any) -> int:
    """The user id of the process that connected, -1 when the connection is gone."""
    if peer is None:
        return -1
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])
