"""Connected UDP sockets of a network namespace, and an end for one of them (sock_diag(7); ``linux/inet_diag.h``).

An ended socket is no longer connected: a waiting recv() fails with ECONNABORTED, a send() with EDESTADDRREQ.
"""

from __future__ import annotations

import errno
import socket
import struct
from functools import partial
from typing import Final

import msgspec

from samewire.kernel.rtnetlink.codec import Query, Request, malformed
from samewire.kernel.rtnetlink.socket import Netlink

_NETLINK_SOCK_DIAG: Final = 4
_BY_FAMILY: Final = 20
_DESTROY: Final = 21
_ESTABLISHED: Final = 1  # how sock_diag calls a UDP socket that is connected
_REQUEST: Final = struct.Struct("=BBBBI")  # family, protocol, extensions, padding, states
_MESSAGE_HEAD: Final = 4  # family, state, timer, retransmissions
_NAME: Final = struct.Struct(">HH16s16s")  # ports, addresses
_NAME_BYTES: Final = 48  # the same, then interface and cookie in host order
_COOKIE_AT: Final = 40
_MAPPED: Final = bytes(10) + b"\xff\xff"


class ConnectedSocket(msgspec.Struct, frozen=True):
    """A connected UDP socket. ``peer``: packed address, IPv4 also where the socket's own family is IPv6. ``port``: the
    peer's. ``cookie``: as `bpf_get_socket_cookie` has it. ``family`` and ``name`` are what the kernel finds it by.
    """

    cookie: int
    peer: bytes
    port: int
    family: int
    name: bytes


class SocketDiagnosis:
    """A connection to sock_diag of the caller's network namespace. A context manager; not for two threads at once."""

    def __init__(self) -> None:
        """Raises KernelError."""
        self._netlink = Netlink(protocol=_NETLINK_SOCK_DIAG)

    def __enter__(self) -> SocketDiagnosis:
        return self

    def __exit__(self, *_: object) -> None:
        self._netlink.close()

    def connected_udp(self, port: int = 0) -> list[ConnectedSocket]:
        """All connected UDP sockets, of both families, or those whose peer has a port. Raises KernelError."""
        found: list[ConnectedSocket] = []
        name = _NAME.pack(0, port, b"", b"").ljust(_NAME_BYTES, b"\0")  # the kernel looks at the ports in it
        for family in (socket.AF_INET, socket.AF_INET6):
            body = _REQUEST.pack(family, socket.IPPROTO_UDP, 0, 0, 1 << _ESTABLISHED) + name
            query = Query(_BY_FAMILY, body, "list connected sockets", partial(_decode, family))
            found += self._netlink.dump(query)
        return found

    def end(self, found: ConnectedSocket) -> bool:
        """End one; False when it is gone by itself. Raises KernelError."""
        body = _REQUEST.pack(found.family, socket.IPPROTO_UDP, 0, 0, 1 << _ESTABLISHED) + found.name
        gone = frozenset({errno.ENOENT, errno.ESTALE})
        return not self._netlink.request(Request(_DESTROY, 0, body, "end a connected socket", gone))


def _decode(family: int, body: memoryview) -> ConnectedSocket:
    name = bytes(body[_MESSAGE_HEAD : _MESSAGE_HEAD + _NAME_BYTES])
    if len(name) < _NAME_BYTES:
        raise malformed(f"socket of {len(body)} bytes")
    _, port, _, peer = _NAME.unpack_from(name)
    if family == socket.AF_INET:
        peer = peer[:4]
    elif peer.startswith(_MAPPED):
        peer = peer[len(_MAPPED) :]
    low, high = struct.unpack_from("=II", name, _COOKIE_AT)
    return ConnectedSocket(high << 32 | low, peer, port, family, name)
