"""Two pods of a node on a network of both families, with servers that say who they are."""

from __future__ import annotations

import ctypes
import socket
import struct
import subprocess
import threading
from contextlib import ExitStack
from typing import Any

from samewire.hcn.codec import decode_modify, decode_object
from samewire.hcn.schema import Kind
from samewire.kernel.netns import NetNamespace
from samewire.node.node import Node
from tests.support.node import STALL_S, NodeNet, path_of

SUBNETS = {
    "10.50.0.0/24": {"NextHop": "10.50.0.1", "DestinationPrefix": "0.0.0.0/0"},
    "fd50::/64": {"NextHop": "fd50::1", "DestinationPrefix": "::/0"},
}
A, B = {4: "10.50.0.10", 6: "fd50::10"}, {4: "10.50.0.11", 6: "fd50::11"}
_ORIGINAL = 80  # SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST
_libc = ctypes.CDLL(None)


class Listener:
    """A TCP or UDP server in a pod that says who it is and, of a connection, what it was meant for."""

    def __init__(
        self, netns: str, name: str, port: int, stack: ExitStack, kind: int = socket.SOCK_STREAM
    ) -> None:
        self.name = name
        with NetNamespace(path_of(netns)) as space:
            self.socket = space.run(lambda: socket.socket(socket.AF_INET6, kind))
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(("::", port))
        stream = kind == socket.SOCK_STREAM
        if stream:
            self.socket.listen()
        self._kept: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept if stream else self._answer)
        self._thread.start()
        stack.callback(self._close)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self._kept.append(connection)
            peer = connection.getpeername()[0].removeprefix("::ffff:")
            connection.sendall(f"{self.name} {original(connection)} {peer}\n".encode())

    def _answer(self) -> None:
        while True:
            try:
                _, client = self.socket.recvfrom(100)
            except OSError:
                return
            if not client:
                return
            self.socket.sendto(self.name.encode(), client)

    def _close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR) if self.socket.type == socket.SOCK_STREAM else self._wake()
        self._thread.join()
        for connection in [*self._kept, self.socket]:
            connection.close()

    def _wake(self) -> None:
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def original(connection: socket.socket) -> str:
    """What the kernel says a connection was meant for; "-" when it knows of no translation."""
    four = connection.getsockname()[0].startswith("::ffff:")
    try:
        if four:
            raw = connection.getsockopt(socket.SOL_IP, _ORIGINAL, 16)
            return f"{socket.inet_ntop(socket.AF_INET, raw[4:8])}:{struct.unpack_from('>H', raw, 2)[0]}"
        raw = connection.getsockopt(socket.IPPROTO_IPV6, _ORIGINAL, 28)
        return f"{socket.inet_ntop(socket.AF_INET6, raw[8:24])}:{struct.unpack_from('>H', raw, 2)[0]}"
    except OSError:
        return "-"


class World:
    """Two pods, ``a`` with the proxy's rules and ``b``, on a network of both families."""

    def __init__(self, node: Node, net: NodeNet, stack: ExitStack) -> None:
        self.node, self.net, self.stack = node, net, stack
        self.a, self.b = net.pod(), net.pod()
        self.spaces: dict[str, str] = {}

    async def start(self) -> None:
        network = {
            "Name": "n",
            "Type": "Internal",
            "Ipams": [
                {"Subnets": [{"IpAddressPrefix": p, "Routes": [route]} for p, route in SUBNETS.items()]}
            ],
        }
        self.network = (await self.node.service.create(Kind.NETWORK, decode_object(Kind.NETWORK, network))).id
        self.endpoint = await self.pod(self.a, A)
        self.other = await self.pod(self.b, B)

    async def pod(
        self, netns: str, addresses: dict[int, str], *policies: dict[str, Any], flags: int = 0
    ) -> str:
        service = self.node.service
        space = await service.create(
            Kind.NAMESPACE, decode_object(Kind.NAMESPACE, {"NetnsPath": path_of(netns)})
        )
        body = {
            "HostComputeNetwork": self.network,
            "IpConfigurations": [{"IpAddress": address} for address in addresses.values()],
            "Policies": list(policies),
            "Flags": flags,
        }
        made = await service.create(Kind.ENDPOINT, decode_object(Kind.ENDPOINT, body))
        self.spaces[made.id] = space.id
        await self.member("Add", made.id)
        return made.id

    async def member(self, how: str, endpoint: str) -> None:
        body = {"ResourceType": "Endpoint", "RequestType": how, "Settings": {"EndpointId": endpoint}}
        await self.node.service.modify(
            Kind.NAMESPACE, self.spaces[endpoint], decode_modify(Kind.NAMESPACE, body)
        )

    async def policies(self, how: str, *policies: dict[str, Any], kind: Kind = Kind.ENDPOINT) -> None:
        body = {"ResourceType": "Policy", "RequestType": how, "Settings": {"Policies": list(policies)}}
        where = self.endpoint if kind is Kind.ENDPOINT else self.network
        await self.node.service.modify(kind, where, decode_modify(kind, body))

    def listen(self, netns: str, name: str, port: int, kind: int = socket.SOCK_STREAM) -> None:
        Listener(netns, name, port, self.stack, kind)

    def open(
        self, netns: str, address: str, port: int, user: int = 0, wait_s: float = STALL_S
    ) -> socket.socket:
        """A connection; its first line is what answered."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET

        def as_user() -> socket.socket:
            _libc.setfsuid(user)  # of this thread alone, which ends with this function
            return socket.socket(family, socket.SOCK_STREAM)

        with NetNamespace(path_of(netns)) as space:
            made = space.run(as_user)
        self.stack.callback(made.close)
        made.settimeout(wait_s)
        made.connect((address, port))
        return made

    def ask(self, netns: str, address: str, port: int, user: int = 0, wait_s: float = STALL_S) -> str:
        """Who answers, and what for."""
        with self.open(netns, address, port, user, wait_s) as made:
            return said(made)

    def ask_datagram(self, netns: str, address: str, port: int) -> str:
        with NetNamespace(path_of(netns)) as space:
            made = space.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with made:
            made.settimeout(STALL_S)
            made.connect((address, port))
            made.send(b"?")
            return made.recv(100).decode()

    def tables(self, netns: str) -> list[str]:
        command = ["nsenter", f"--net={path_of(netns)}", "nft", "list", "tables"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def said(connection: socket.socket) -> str:
    with connection.makefile() as lines:
        return lines.readline().strip()
