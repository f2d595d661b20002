"""ICMP errors that say that a tunnel packet of this node's was longer than its way (RFC 1191, RFC 8201)."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final

from samewire.errors import KernelError
from samewire.kernel import faults
from samewire.kernel.closing import Closing
from samewire.kernel.packet_socket import Program, attach_filter

_OPERATION: Final = "listen to ICMP errors"
_ICMP_FILTER: Final = 1  # of IPPROTO_ICMP, and of IPPROTO_ICMPV6: types that are not wanted
_UNREACHABLE, _NEEDS_FRAGMENTATION, _TOO_BIG6 = 3, 4, 2
_UDP: Final = 17
_AT_ONCE: Final = 1024

# Classic BPF: loads, jump if equal, end; the header's length to the index, loads from there.
_BYTE, _HALF, _EQUAL, _DONE, _LENGTH, _BYTE_AT, _HALF_AT = 0x30, 0x28, 0x15, 0x06, 0xB1, 0x50, 0x48


class TooBigSocket(Closing):
    """Hears of them after, or while, the kernel learns from them. Give :attr:`sockets` to the event loop."""

    def __init__(self, udp_port: int) -> None:
        """Open in the caller's namespace; ``udp_port``: the tunnel's. Raises KernelError."""
        faults.check(_OPERATION)
        self.sockets: list[socket.socket] = []
        """One for each IP version that the kernel has."""
        try:
            self._open(socket.AF_INET, socket.IPPROTO_ICMP, _only(_UNREACHABLE, 1), _quoting4(udp_port))
            self._open(socket.AF_INET6, socket.IPPROTO_ICMPV6, _only(_TOO_BIG6, 8), _quoting6(udp_port))
        except OSError as error:
            self.close()
            raise KernelError(_OPERATION, error.errno or errno.EIO) from error

    def _open(self, family: int, protocol: int, types: bytes, program: Program) -> None:
        try:
            opened = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:
                return
            raise
        self.sockets.append(opened)
        opened.setblocking(False)
        opened.setsockopt(protocol, _ICMP_FILTER, types)
        attach_filter(opened, program)

    def receive(self) -> int:
        """How many have come since the last call. Does not wait."""
        return sum(_read(opened) for opened in self.sockets)

    def close(self) -> None:
        """Close; a second call does nothing."""
        for opened in self.sockets:
            opened.close()


def _only(kind: int, words: int) -> bytes:
    """``struct icmp_filter``, ``struct icmp6_filter``: a bit for each type to be left out."""
    blocked = (1 << 32 * words) - 1 & ~(1 << kind)
    return struct.pack(f"={words}I", *(blocked >> 32 * word & 0xFFFFFFFF for word in range(words)))


def _quoting4(port: int) -> Program:
    """Fragmentation needed, about a datagram to a port. Our own tunnel packets have no options."""
    return (
        (_LENGTH, 0, 0, 0),
        (_BYTE_AT, 0, 0, 1),
        (_EQUAL, 0, 5, _NEEDS_FRAGMENTATION),
        (_BYTE_AT, 0, 0, 8 + 9),
        (_EQUAL, 0, 3, _UDP),
        (_HALF_AT, 0, 0, 8 + 20 + 2),
        (_EQUAL, 0, 1, port),
        (_DONE, 0, 0, 1),
        (_DONE, 0, 0, 0),
    )


def _quoting6(port: int) -> Program:
    """The same of IPv6, where the socket sees no IP header."""
    return (
        (_BYTE, 0, 0, 8 + 6),
        (_EQUAL, 0, 3, _UDP),
        (_HALF, 0, 0, 8 + 40 + 2),
        (_EQUAL, 0, 1, port),
        (_DONE, 0, 0, 1),
        (_DONE, 0, 0, 0),
    )


def _read(opened: socket.socket) -> int:
    for count in range(_AT_ONCE):
        try:
            opened.recv(1)
        except BlockingIOError:
            return count
    return _AT_ONCE
