"""Traffic between namespaces with plain sockets: exchanges, echo requests, capture. Bounded waits, no sleeps."""

from __future__ import annotations

import errno
import itertools
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Final

import msgspec

from samewire.kernel.netns import NetNamespace
from samewire.vfp.simulate import checksum
from tests.support.netlab import Space

TIMEOUT_S: Final = 20.0  # a machine may stand still for seconds
_ETH_P_ALL: Final = 3
_PACKET_OUTGOING: Final = 4
_PACKET_IGNORE_OUTGOING: Final = 23
_SOL_PACKET: Final = 263
_IDS = itertools.count(1)


def family_of(address: str) -> socket.AddressFamily:
    """AF_INET or AF_INET6."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def too_long(opened: socket.socket, size: int) -> bool:
    """Whether the kernel knows that this does not fit."""
    try:
        opened.send(bytes(size))
    except OSError as error:
        return error.errno == errno.EMSGSIZE
    return False


class Seen(msgspec.Struct, frozen=True):
    """An exchange: who the server saw, and who the client thinks it talked to."""

    client: tuple[str, int]
    server: tuple[str, int]


def bound(space: Space, kind: int, address: str, port: int = 0) -> socket.socket:
    """A bound socket; TCP listens."""
    opened = space.socket(family_of(address), kind)
    opened.settimeout(TIMEOUT_S)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.bind((address, port))
    if kind == socket.SOCK_STREAM:
        opened.listen(64)
    return opened


@contextmanager
def tcp_pair(
    client: Space, server: Space, to: str, port: int, *, at: tuple[str, int] | None = None, source: int = 0
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection ``client`` -> ``to:port`` accepted at ``at`` (default: the same), both ends."""
    with bound(server, socket.SOCK_STREAM, *(at or (to, port))) as listening:
        near = client.socket(family_of(to), socket.SOCK_STREAM)
        near.settimeout(TIMEOUT_S)
        if source:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            near.bind(("", source))
        try:
            near.connect((to, port))
            far, _ = listening.accept()
        except BaseException:
            near.close()
            raise
    far.settimeout(TIMEOUT_S)
    with near, far:
        yield near, far


def echo_over(near: socket.socket, far: socket.socket, size: int = 100) -> None:
    """Bytes in both directions of a connection, while neither end waits for the other."""
    data = bytes(range(256)) * (size // 256 + 1)
    for one, other in ((near, far), (far, near)):
        stream(one, other, data[:size])


def stream(source: socket.socket, sink: socket.socket, data: bytes) -> float:
    """Send all of it and compare what arrives; returns the seconds it took."""
    view, got = memoryview(data), bytearray()
    began = time.monotonic()
    source.setblocking(False)
    try:
        while len(got) < len(data):
            readable, writable, _ = select.select([sink], [source] if view else [], [], TIMEOUT_S)
            assert readable or writable, f"stalled after {len(got)} of {len(data)} bytes"
            if writable:
                view = view[source.send(view[: 1 << 18]) :]
            if readable:
                got += sink.recv(1 << 18)
    finally:
        source.settimeout(TIMEOUT_S)
    assert bytes(got) == data
    return time.monotonic() - began


def tcp(
    client: Space, server: Space, to: str, port: int, *, at: tuple[str, int] | None = None, size: int = 100
) -> Seen:
    """One TCP connection with data both ways."""
    with tcp_pair(client, server, to, port, at=at) as (near, far):
        echo_over(near, far, size)
        return Seen(far.getpeername()[:2], near.getpeername()[:2])


def udp(
    client: Space, server: Space, to: str, port: int, *, at: tuple[str, int] | None = None, size: int = 100
) -> Seen:
    """One UDP datagram and its answer."""
    with (
        bound(server, socket.SOCK_DGRAM, *(at or (to, port))) as far,
        client.socket(family_of(to), socket.SOCK_DGRAM) as near,
    ):
        near.settimeout(TIMEOUT_S)
        payload = bytes(range(256)) * (size // 256 + 1)
        near.sendto(payload[:size], (to, port))
        data, sender = far.recvfrom(65535)
        assert data == payload[:size]
        far.sendto(payload[:size], sender)
        answer, replier = near.recvfrom(65535)
        assert answer == payload[:size]
        return Seen(sender[:2], replier[:2])


class Icmp(msgspec.Struct, frozen=True):
    """An ICMP message as a raw socket got it: who sent it, type, code, the word behind, what follows."""

    source: str
    type: int
    code: int
    word: int
    payload: bytes


class IcmpSocket:
    """A raw ICMP socket of one family in a namespace. A context manager."""

    def __init__(self, space: Space, family: int, wait_s: float = TIMEOUT_S) -> None:
        self.family = family
        self._wait_s = wait_s
        protocol = socket.IPPROTO_ICMP if family == 4 else socket.IPPROTO_ICMPV6
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        self.socket = space.socket(kind, socket.SOCK_RAW, protocol)
        self.socket.settimeout(wait_s)

    def __enter__(self) -> IcmpSocket:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def request(self, to: str, identifier: int, sequence: int = 1, size: int = 56, ttl: int = 64) -> None:
        """Send an echo request."""
        option = (
            (socket.IPPROTO_IP, socket.IP_TTL)
            if self.family == 4
            else (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)
        )
        self.socket.setsockopt(*option, ttl)
        message = struct.pack("!BBHHH", 8 if self.family == 4 else 128, 0, 0, identifier, sequence)
        message += bytes(size)
        if self.family == 4:
            message = message[:2] + checksum.whole(message + bytes(len(message) % 2)) + message[4:]
        self.socket.sendto(message, (to, 0))

    def receive(self, wanted: Callable[[Icmp], bool]) -> Icmp:
        """The next message that is wanted."""
        deadline = time.monotonic() + self._wait_s
        while time.monotonic() < deadline:
            data, sender = self.socket.recvfrom(65535)
            if self.family == 4:
                data = data[(data[0] & 0xF) * 4 :]
            kind, code, _, word = struct.unpack_from("!BBHI", data)
            message = Icmp(sender[0].partition("%")[0], kind, code, word, data[8:])
            if wanted(message):
                return message
        raise TimeoutError("no such ICMP message")

    def reply(self, identifier: int, sequence: int = 1) -> Icmp:
        """The reply to an echo request of ours."""
        kind = 0 if self.family == 4 else 129
        return self.receive(lambda m: m.type == kind and m.word == identifier << 16 | sequence)


def ping(
    space: Space, to: str, *, identifier: int = 0, size: int = 56, ttl: int = 64, wait_s: float = TIMEOUT_S
) -> Icmp:
    """Echo request and reply; raises TimeoutError when none comes."""
    identifier = identifier or next(_IDS) % 40000 + 1
    with IcmpSocket(space, ip_address(to).version, wait_s) as opened:
        opened.request(to, identifier, size=size, ttl=ttl)
        return opened.reply(identifier)


class Sniffer:
    """Every frame that an interface sends or receives (or only receives). A context manager."""

    def __init__(self, space: Space | NetNamespace, ifname: str, *, outgoing: bool = True) -> None:
        def opened() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            if not outgoing:
                made.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            made.bind((ifname, 0))
            return made

        self.socket = space.run(opened)
        self.socket.setblocking(False)

    def __enter__(self) -> Sniffer:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def frames(self) -> list[bytes]:
        """What has come since the last call."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(65535))
            except BlockingIOError:
                return found

    def wait(self, wanted: Callable[[bytes], bool]) -> bytes:
        """The next frame that is wanted."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            if not select.select([self.socket], [], [], TIMEOUT_S)[0]:
                break
            frame = self.socket.recv(65535)
            if wanted(frame):
                return frame
        raise TimeoutError("no such frame")


def inject(space: Space, ifname: str, frame: bytes) -> None:
    """Send a frame as it is."""

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind((ifname, 0))
            raw.send(frame)

    space.run(send)
