"""The other end of a tunnel, written by hand: it shows what a node puts on the wire, and answers echo requests."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from tests.support.node import NodeNet

_VNI_IS_THERE = 0x08
_ECHO, _ECHO_REPLY = 8, 0


class Seen(msgspec.Struct, frozen=True):
    """An echo request in its tunnel packet. MACs with colons."""

    vni: int
    source_mac: str
    destination_mac: str
    source: str
    destination: str


class TunnelPeer:
    """What has arrived so far."""

    def __init__(self, opened: socket.socket) -> None:
        self.seen: list[Seen] = []
        self._socket = opened

    def serve(self) -> None:
        """Answer until an empty datagram comes."""
        while True:
            data, sender = self._socket.recvfrom(9000)
            if not data:
                return
            frame = data[8:]
            if data[0] != _VNI_IS_THERE or frame[12:14] != b"\x08\x00" or frame[34] != _ECHO:
                continue
            vni = int.from_bytes(data[4:7], "big")
            macs = frame[6:12].hex(":"), frame[:6].hex(":")
            addresses = [socket.inet_ntoa(frame[at : at + 4]) for at in (26, 30)]
            self.seen.append(Seen(vni, *macs, *addresses))
            self._socket.sendto(data[:8] + _answer(frame), (sender[0], self._socket.getsockname()[1]))


def _answer(frame: bytes) -> bytes:
    """The frame that answers an echo request over IPv4."""
    ip = frame[14:26] + frame[30:34] + frame[26:30]  # the header's checksum is the same the other way around
    length = int.from_bytes(frame[16:18], "big")
    echo = bytearray(frame[34 : 14 + length])
    echo[0], echo[2:4] = _ECHO_REPLY, b"\0\0"
    total = sum(struct.unpack(f">{len(echo) // 2}H", bytes(echo[: len(echo) & ~1])))
    if len(echo) % 2:
        total += echo[-1] << 8
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    echo[2:4] = (~total & 0xFFFF).to_bytes(2, "big")
    return frame[6:12] + frame[:6] + frame[12:14] + ip + bytes(echo)


@contextmanager
def tunnel_peer(net: NodeNet, namespace: str, port: int = 4789) -> Iterator[TunnelPeer]:
    """A peer that listens in a namespace."""
    with net.inside(namespace):  # a socket is of the namespace in which it was made
        opened, last = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    with opened, last:
        opened.bind(("0.0.0.0", port))
        peer = TunnelPeer(opened)
        thread = threading.Thread(target=peer.serve)
        thread.start()
        try:
            yield peer
        finally:
            last.sendto(b"", ("127.0.0.1", port))
            thread.join()
