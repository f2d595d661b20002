"""SCTP without a kernel that has it: packets over raw sockets, and the CRC32c of RFC 9260."""

from __future__ import annotations

import socket
from typing import Final

import msgspec

from tests.support.two_nodes import in_pod

SCTP: Final = 132
WAIT_S: Final = 20.0
_POLYNOMIAL: Final = 0x82F63B78


def crc32c(data: bytes) -> int:
    """RFC 9260, appendix A, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def segment(source_port: int, destination_port: int, body: bytes) -> bytes:
    """An SCTP packet whose checksum is right."""
    head = source_port.to_bytes(2, "big") + destination_port.to_bytes(2, "big") + b"\1\2\3\4"
    return head + crc32c(head + bytes(4) + body).to_bytes(4, "little") + body


class Arrived(msgspec.Struct, frozen=True):
    """An SCTP packet: who sent it, to which port, and what is in it."""

    source: tuple[str, int]
    port: int
    body: bytes


class RawSctp:
    """A raw socket in a namespace that sends SCTP packets and sees all that arrive, also those for others there.

    One with an address sends from it, and sees only what is for it.
    """

    def __init__(self, namespace: str, family: int, address: str = "") -> None:
        self.family = socket.AF_INET6 if family == 6 else socket.AF_INET
        self._socket: socket.socket = in_pod(
            namespace, lambda: socket.socket(self.family, socket.SOCK_RAW, SCTP)
        )
        self._socket.settimeout(WAIT_S)
        if address:
            self._socket.bind((address, 0))

    def __enter__(self) -> RawSctp:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """For select()."""
        return self._socket.fileno()

    def send(self, source_port: int, to: str, port: int, body: bytes) -> None:
        """Send a packet with a right checksum."""
        self._socket.sendto(segment(source_port, port, body), (to, 0))

    def receive(self, port: int) -> Arrived:
        """The next packet to a port, its checksum checked."""
        while True:
            data, peer = self._socket.recvfrom(2000)
            if self.family == socket.AF_INET:
                data = data[(data[0] & 15) * 4 :]
            if int.from_bytes(data[2:4], "big") == port:
                break
        assert crc32c(data[:8] + bytes(4) + data[12:]) == int.from_bytes(data[8:12], "little")
        return Arrived((peer[0], int.from_bytes(data[:2], "big")), port, data[12:])
