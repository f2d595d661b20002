"""Ports of the node that nobody uses: neither a socket nor anyone for whom the kernel keeps them back."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from samewire.errors import KernelError
from samewire.node.devices import reserved_ports
from samewire.node.portranges import parse_ports

_TYPES = {
    socket.IPPROTO_TCP: socket.SOCK_STREAM,
    socket.IPPROTO_UDP: socket.SOCK_DGRAM,
    socket.IPPROTO_SCTP: socket.SOCK_STREAM,
}
_ABSENT = (
    errno.EAFNOSUPPORT,
    errno.EADDRNOTAVAIL,
    errno.EPROTONOSUPPORT,
)  # a node without IPv6, a kernel without SCTP


def usable_ports() -> Callable[[int, int], bool]:
    """Return what says of a protocol (TCP, UDP or SCTP) and a port that no socket of the node has it, at whichever
    address, and that it is not reserved: for outbound NAT, for node ports, for another mapping, or by the
    administrator. What is reserved is read now, and not again. Both raise KernelError.
    """
    reserved = parse_ports(reserved_ports())
    return lambda protocol, port: not reserved >> port & 1 and not _in_use(protocol, port)


def _in_use(protocol: int, port: int) -> bool:
    """Whether a socket has a port: binding it for all addresses of both families fails then."""
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family, _TYPES[protocol], protocol) as probe:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return True
            if error.errno not in _ABSENT:
                raise KernelError(f"look whether port {port} is in use", error.errno or 0) from error
    return False
