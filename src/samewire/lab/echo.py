"""The echo server that stands in for a container whose image cannot run here.

A script of its own (``/usr/bin/python3 -I -S echo.py``), with so few imports that thirty start in a second or
two; nothing else of Samewire may be imported here. On every given port it answers, over IPv4 and IPv6:

* UDP: one line of JSON about the datagram, then the datagram's bytes;
* TCP: the same, once, when the first bytes arrive, then every byte as it came;
* HTTP/1.x on the same TCP ports, recognised by its first bytes: a JSON document that also has the method, the
  path and the headers.

The JSON says who answered (``hostname``, ``container``) and whom it saw (``client``: address and port,
``server``: the address and port that it was reached at). UDP answers leave from the address that was asked,
as a DNS server's must.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import socket
import sys
from typing import Any

HTTP_METHODS = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ")
_MAX_HEAD_BYTES = 64 * 1024
_READ_BYTES = 256 * 1024
# Not in Python 3.11's socket module: linux/in.h, linux/in6.h.
_IP_PKTINFO = 8
_IPV6_RECVPKTINFO = getattr(socket, "IPV6_RECVPKTINFO", 49)
_IPV6_PKTINFO = getattr(socket, "IPV6_PKTINFO", 50)
_ANCILLARY_BYTES = 256

Address = tuple[Any, ...]
Control = tuple[int, int, bytes]


class Server:
    """All listeners and connections of one process, in one selector loop."""

    def __init__(self, container: str) -> None:
        self.container = container
        self.hostname = socket.gethostname()
        self.selector = selectors.DefaultSelector()

    def listen(self, port: int, address: str = "") -> None:
        """Serve a port over TCP and UDP, on one address or on all of both families."""
        families = [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")]
        if address:
            families = [(socket.AF_INET6 if ":" in address else socket.AF_INET, address)]
        for family, host in families:
            self._listen_tcp(family, host, port)
            self._listen_udp(family, host, port)

    def _listen_tcp(self, family: int, host: str, port: int) -> None:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, port))
        listener.listen(128)
        listener.setblocking(False)
        self.selector.register(listener, selectors.EVENT_READ, self._accept)

    def _listen_udp(self, family: int, host: str, port: int) -> None:
        endpoint = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            endpoint.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            endpoint.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
        else:
            endpoint.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        endpoint.bind((host, port))
        endpoint.setblocking(False)
        self.selector.register(endpoint, selectors.EVENT_READ, self._datagram)

    def serve(self) -> None:
        """Serve until killed."""
        while True:
            for key, events in self.selector.select():
                key.data(key.fileobj, events)

    def about(self, protocol: str, client: Address, server: Address, **more: object) -> dict[str, object]:
        """The JSON document about one request."""
        return {
            "hostname": self.hostname,
            "container": self.container,
            "protocol": protocol,
            "client": {"address": _plain(client[0]), "port": client[1]},
            "server": {"address": _plain(server[0]), "port": server[1]},
            **more,
        }

    def _datagram(self, endpoint: socket.socket, _events: int) -> None:
        try:
            data, ancillary, _, client = endpoint.recvmsg(65535, _ANCILLARY_BYTES)
        except OSError:
            return  # an ICMP error for an earlier answer, reported here
        ours, reply_from = _asked_address(endpoint, ancillary)
        head = self.about("udp", client, (ours, endpoint.getsockname()[1]), received=len(data))
        try:
            endpoint.sendmsg([json.dumps(head).encode() + b"\n" + data], reply_from, 0, client)
        except OSError as error:
            print(f"udp answer to {client[0]}: {error}", file=sys.stderr, flush=True)

    def _accept(self, listener: socket.socket, _events: int) -> None:
        try:
            connection, client = listener.accept()
        except OSError:
            return  # reset between the select and here
        connection.setblocking(False)
        self.selector.register(connection, selectors.EVENT_READ, Connection(self, connection, client))


class Connection:
    """One TCP connection: undecided until its first bytes, then echo or HTTP."""

    def __init__(self, server: Server, connection: socket.socket, client: Address) -> None:
        self.server = server
        self.connection = connection
        self.client = client
        self.local = connection.getsockname()
        self.protocol = ""
        self.received = b""
        self.pending = b""
        self.body_left = 0
        self.ended = False

    def __call__(self, _socket: socket.socket, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                self._read()
            self._flush()
        except (OSError, ValueError):
            self._close()

    def _read(self) -> None:
        data = self.connection.recv(_READ_BYTES)
        if not data:
            self.ended = True
        elif self.protocol == "tcp":
            self.pending += data
        else:
            self.received += data
            if not self.protocol:
                self._decide()
            if self.protocol == "http":
                self._requests()

    def _decide(self) -> None:
        if any(method.startswith(self.received[: len(method)]) for method in HTTP_METHODS):
            if not any(self.received.startswith(method) for method in HTTP_METHODS):
                return  # so far only the beginning of a method
            self.protocol = "http"
            return
        self.protocol = "tcp"
        head = json.dumps(self.server.about("tcp", self.client, self.local)).encode() + b"\n"
        self.pending, self.received = head + self.received, b""

    def _requests(self) -> None:
        while True:
            skipped = min(self.body_left, len(self.received))
            self.received, self.body_left = self.received[skipped:], self.body_left - skipped
            head, separator, rest = self.received.partition(b"\r\n\r\n")
            if self.body_left or not separator:
                if len(self.received) > _MAX_HEAD_BYTES:
                    raise ValueError("endless request head")
                return
            self.received = rest
            self._answer(head.decode("latin-1").split("\r\n"))

    def _answer(self, lines: list[str]) -> None:
        method, path, version = [*lines[0].split(" ", 2), "", ""][:3]
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.strip()] = value.strip()
        lower = {name.lower(): value for name, value in headers.items()}
        self.body_left = int(lower.get("content-length", "0"))
        document = self.server.about(
            "http", self.client, self.local, method=method, path=path, headers=headers
        )
        body = json.dumps(document, indent=1).encode() + b"\n"
        keep = version == "HTTP/1.1" and lower.get("connection", "").lower() != "close"
        answer = (
            f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            f"Connection: {'keep-alive' if keep else 'close'}\r\n\r\n"
        )
        self.pending += answer.encode() + (b"" if method == "HEAD" else body)
        self.ended = self.ended or not keep

    def _flush(self) -> None:
        if self.pending:
            try:
                self.pending = self.pending[self.connection.send(self.pending) :]
            except BlockingIOError:
                pass
        if self.ended and not self.pending:
            self._close()
            return
        wanted = selectors.EVENT_WRITE if self.pending else selectors.EVENT_READ
        self.server.selector.modify(self.connection, wanted, self)

    def _close(self) -> None:
        self.server.selector.unregister(self.connection)
        self.connection.close()


def _asked_address(endpoint: socket.socket, ancillary: list[Control]) -> tuple[str, list[Control]]:
    """The address a datagram was sent to, and the control message that answers from it."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
            # struct in_pktinfo: ifindex, spec_dst, addr. Answer from spec_dst, by whatever interface routes.
            chosen = (level, kind, bytes(4) + data[4:8] + bytes(4))
            return socket.inet_ntop(socket.AF_INET, data[8:12]), [chosen]
        if level == socket.IPPROTO_IPV6 and kind == _IPV6_PKTINFO:
            address = data[:16]
            link_local = address[:2] == b"\xfe\x80"
            chosen = (level, kind, address + (data[16:20] if link_local else bytes(4)))
            return socket.inet_ntop(socket.AF_INET6, address), [chosen]
    return endpoint.getsockname()[0], []


def _plain(address: str) -> str:
    return address.partition("%")[0]


def main(arguments: list[str]) -> None:
    """``echo.py READY_FILE CONTAINER [ADDRESS@]PORT...``; a port that is taken is reported and left out."""
    ready_file, container, *ports = arguments
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # four sockets a port
    server = Server(container)
    for item in ports:
        address, _, port = item.rpartition("@")
        try:
            server.listen(int(port), address)
        except OSError as error:
            print(f"port {item}: {error}", file=sys.stderr, flush=True)
    os.close(os.open(ready_file, os.O_CREAT | os.O_WRONLY, 0o644))
    server.serve()


if __name__ == "__main__":
    main(sys.argv[1:])
