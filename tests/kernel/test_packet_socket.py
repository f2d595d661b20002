"""Packet sockets that take one port's datagrams, with real packets."""

from __future__ import annotations

import os
import resource
import socket
from contextlib import ExitStack
from typing import Final

import pytest

from samewire.kernel.packet_socket import PacketSocket
from tests.support.netlab import Space

pytestmark = pytest.mark.root

PORT: Final = 4789
NEAR, FAR, OTHER = ("10.0.0.1", "fd00::1"), ("10.0.0.2", "fd00::2"), ("10.0.0.3", "fd00::3")
FOUR_NOPS: Final = b"\1\1\1\1"
PATIENCE_S: Final = 10.0
FD_SETSIZE: Final = 1024


def wired(stack: ExitStack) -> tuple[Space, Space]:
    near, far = Space(stack, "n"), Space(stack, "f")
    near.ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", far.name)
    for space, addresses in ((near, NEAR), (far, FAR)):
        for address, bits in zip(addresses, (24, 64), strict=True):
            space.ip("address", "add", f"{address}/{bits}", "dev", "eth0", *(["nodad"] if bits == 64 else []))
        space.ip("link", "set", "eth0", "up")
    for address in OTHER:  # somebody else's frames, on a wire that everybody sees
        near.ip("neighbour", "add", address, "lladdr", "02:00:00:00:00:99", "dev", "eth0")
    return near, far


def test_datagrams_that_arrive_for_a_port_and_nothing_else() -> None:
    with ExitStack() as stack:
        near, far = wired(stack)
        watching = stack.enter_context(PacketSocket("eth0", far.ns.fd, udp_port=PORT))
        sender = stack.enter_context(near.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sender6 = stack.enter_context(near.socket(socket.AF_INET6, socket.SOCK_DGRAM))
        with_options = stack.enter_context(near.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with_options.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, FOUR_NOPS)
        from_port = stack.enter_context(near.socket(socket.AF_INET, socket.SOCK_DGRAM))
        from_port.bind(("", PORT))
        stream = stack.enter_context(near.socket(socket.AF_INET, socket.SOCK_STREAM))
        outgoing = stack.enter_context(far.socket(socket.AF_INET, socket.SOCK_DGRAM))

        stream.setblocking(False)
        stream.connect_ex((FAR[0], PORT))
        outgoing.sendto(b"leaves", (NEAR[0], PORT))
        from_port.sendto(b"comes from the port", (FAR[0], PORT + 1))
        for other, one in zip(OTHER, (sender, sender6), strict=True):
            one.sendto(b"is for another host", (other, PORT))
        for to, one in zip(FAR, (sender, sender6), strict=True):
            one.sendto(b"is for another port", (to, PORT + 1))
        with_options.sendto(b"with options", (FAR[0], PORT))
        sender.sendto(b"over IPv4", (FAR[0], PORT))
        sender6.sendto(b"over IPv6" + bytes(1000), (FAR[1], PORT))

        expected = {b"with options", b"over IPv4", b"over IPv6"}
        taken: list[bytes] = []
        while not all(any(word in data for data in taken) for word in expected):
            packet = watching.receive(PATIENCE_S)
            assert packet is not None
            taken.append(packet.data)
        assert len(taken) == len(expected)
        assert max(map(len, taken)) < 100, "headers alone"


def test_a_process_with_very_many_files() -> None:
    """Clients of the daemon's API may have all low numbers, and select() has no place for others."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 2 * FD_SETSIZE), before[1]))
        near, far = wired(stack)
        for _ in range(FD_SETSIZE):
            stack.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        watching = stack.enter_context(PacketSocket("eth0", far.ns.fd, udp_port=PORT))
        assert watching.fileno() >= FD_SETSIZE
        assert watching.receive(0) is None
        with near.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"arrives", (FAR[0], PORT))
        frame = watching.receive(PATIENCE_S)
        assert frame is not None
        assert frame.data.endswith(b"arrives")
