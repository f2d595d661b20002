"""Packets of one interface in both directions, and frames to any, by AF_PACKET sockets (packet(7)).

A pod's host end shows one direction only, because the switch delivers into the pod's namespace directly: open the
socket on the pod's own interface, inside its namespace.
"""

from __future__ import annotations

import ctypes
import errno
import select
import socket
import struct
import time
from typing import Final, TypeAlias

import msgspec

from samewire.errors import KernelError, NotFound
from samewire.kernel import faults
from samewire.kernel.closing import Closing
from samewire.kernel.netns import run_in

_ETH_P_ALL: Final = 0x0003
_SOL_PACKET: Final = 263
_PACKET_STATISTICS: Final = 6
_PACKET_OUTGOING: Final = 4
_SO_TIMESTAMPNS: Final = 35  # of the generic ABI; the socket module has no name for these two
_SO_RCVBUFFORCE: Final = 33
_BUFFER_BYTES: Final = 16 << 20
_LARGEST_FRAME: Final = 1 << 19  # above the largest segment that an interface can be told to build (BIG TCP)
_CONTROL_BYTES: Final = 128
_SO_ATTACH_FILTER: Final = 26
_INSTRUCTION: Final = struct.Struct("=HBBI")  # struct sock_filter: code, jumps if true and if false, operand
_HEADERS_BYTES: Final = 96
_TIMESPEC: Final = struct.Struct("@ll")

Program: TypeAlias = tuple[tuple[int, int, int, int], ...]
"""Of classic BPF: code, jumps if true and if false, operand."""


class CapturedPacket(msgspec.Struct, frozen=True):
    """A frame with its time (ns since 1970) and direction, as seen from the interface."""

    time_ns: int
    data: bytes
    outgoing: bool


class PacketSocket(Closing):
    """Sees every frame that the interface sends and receives, from its opening on. A context manager."""

    def __init__(self, interface: str, netns_fd: int | None = None, udp_port: int = 0) -> None:
        """Open on ``interface`` of the namespace (None: the caller's own). ``udp_port``: only datagrams that arrive for
        this port, their headers alone.

        Raises NotFound when there is no such interface, KernelError when it may not be opened.
        """
        operation = f"capture on {interface}"
        faults.check(operation)
        try:
            self._socket = (
                _open(interface, udp_port)
                if netns_fd is None
                else run_in(netns_fd, lambda: _open(interface, udp_port))
            )
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ENXIO):
                raise NotFound("interface", interface) from error
            raise KernelError(operation, error.errno or errno.EIO) from error
        self._interface = interface
        self._received = self._dropped = 0

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._socket.fileno()

    def receive(self, timeout_s: float | None = None) -> CapturedPacket | None:
        """The next frame; None when none came in time (``timeout_s`` None: wait for ever).

        Raises NotFound when the interface has been removed or set down, KernelError.
        """
        waiting = select.poll()  # select() has no place for descriptors from 1024 on
        waiting.register(self._socket, select.POLLIN)
        if not waiting.poll(None if timeout_s is None else timeout_s * 1000):
            return None
        try:
            data, control, _, address = self._socket.recvmsg(_LARGEST_FRAME, _CONTROL_BYTES)
        except OSError as error:
            if error.errno == errno.ENETDOWN:
                raise NotFound("interface", self._interface) from error
            raise KernelError(f"capture on {self._interface}", error.errno or errno.EIO) from error
        return CapturedPacket(_time_ns(control), data, address[2] == _PACKET_OUTGOING)

    def statistics(self) -> tuple[int, int]:
        """Frames seen since the opening, and how many of them were lost because nobody read them in time."""
        raw = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        seen, dropped = struct.unpack("@II", raw)  # the kernel starts at zero again with each call
        self._received += seen
        self._dropped += dropped
        return self._received, self._dropped

    def close(self) -> None:
        """Close; a second call does nothing."""
        self._socket.close()


class FrameSender(Closing):
    """Puts frames on interfaces of the caller's namespace. Kept open: the kernel waits for all CPUs at the close."""

    def __init__(self) -> None:
        """Raises KernelError."""
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        except OSError as error:
            raise KernelError("open a packet socket", error.errno or errno.EIO) from error
        self._socket.setblocking(False)

    def send(self, ifindex: int, frame: bytes) -> None:
        """Send a whole Ethernet frame. Raises KernelError (ENETDOWN while the interface is down)."""
        try:
            self._socket.sendto(frame, (socket.if_indextoname(ifindex), 0))
        except OSError as error:
            raise KernelError(f"send a frame on interface {ifindex}", error.errno or errno.EIO) from error

    def close(self) -> None:
        """Close; a second call does nothing."""
        self._socket.close()


def _open(interface: str, udp_port: int) -> socket.socket:
    # Protocol 0 first: else frames of every interface queue up between socket() and bind().
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        if udp_port:
            attach_filter(opened, _arriving_at(udp_port))
        opened.bind((interface, _ETH_P_ALL))
    except BaseException:
        opened.close()
        raise
    return opened


def attach_filter(opened: socket.socket, instructions: Program) -> None:
    """Have a socket take what a classic BPF program says. Raises OSError."""
    code = b"".join(_INSTRUCTION.pack(*one) for one in instructions)
    kept = ctypes.create_string_buffer(code, len(code))  # the kernel copies it
    program = struct.pack("@HP", len(instructions), ctypes.addressof(kept))
    opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def _arriving_at(port: int) -> Program:
    """A classic BPF program (socket-filter in the kernel's documentation) that takes a port's datagrams to this host.

    Fragments but the first have no port, and are not taken.
    """
    byte, half, indexed_half, header_length, equal, any_bit, done = 0x30, 0x28, 0x48, 0xB1, 0x15, 0x45, 0x06
    return (
        (byte, 0, 0, 0xFFFFF004),  # the packet's type:
        (equal, 0, 15, 0),  # for this host
        (half, 0, 0, 12),
        (equal, 0, 7, 0x0800),
        (byte, 0, 0, 23),
        (equal, 0, 11, 17),
        (half, 0, 0, 20),
        (any_bit, 9, 0, 0x1FFF),
        (header_length, 0, 0, 14),
        (indexed_half, 0, 0, 16),
        (equal, 5, 6, port),
        (equal, 0, 5, 0x86DD),
        (byte, 0, 0, 20),
        (equal, 0, 3, 17),
        (half, 0, 0, 56),
        (equal, 0, 1, port),
        (done, 0, 0, _HEADERS_BYTES),
        (done, 0, 0, 0),
    )


def _time_ns(control: list[tuple[int, int, bytes]]) -> int:
    for level, kind, value in control:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
            seconds, nanoseconds = _TIMESPEC.unpack_from(value)
            return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return time.time_ns()
