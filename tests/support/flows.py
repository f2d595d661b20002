"""Many connections kept open between two processes, and what becomes of them: run as a script in a namespace.

``serve PORT`` echoes TCP and UDP of both families, and swallows UDP at the port after it. ``talk
PROTOCOL,ADDRESS,PORT,COUNT...`` opens COUNT connections to each target (UDP: connected sockets), plays one round of
ping-pong a second on all of them, opens and closes a few new ones in each round, and writes one JSON object a round; it
ends when its stdin does. Nothing is asked twice: a datagram that is lost is an answer that is missing. Standard library
only.
"""

from __future__ import annotations

import json
import resource
import select
import selectors
import socket
import sys
import time
from typing import Any, NamedTuple

ROUND_S = 1.0
ANSWER_S = 10.0
NEW_A_ROUND = 2
_BUFFER = 1 << 20
_FILES = 4096


class Target(NamedTuple):
    """What a number of connections lead to."""

    protocol: str
    address: str
    port: int
    connections: int

    def __str__(self) -> str:
        return ",".join(map(str, tuple(self)))

    @classmethod
    def of(cls, text: str) -> Target:
        """From an argument."""
        protocol, address, port, connections = text.split(",")
        return cls(protocol, address, int(port), int(connections))

    def connect(self) -> socket.socket:
        """One connection more."""
        if self.protocol == "tcp":
            return socket.create_connection((self.address, self.port), timeout=ANSWER_S)
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        made = socket.socket(family, socket.SOCK_DGRAM)
        made.settimeout(ANSWER_S)
        made.connect((self.address, self.port))
        return made


def _datagrams(family: socket.AddressFamily, port: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind(("", port))
    return made


def serve(port: int) -> None:
    """Echo until killed."""
    selector = selectors.DefaultSelector()
    listeners, echoes, sinks = [], [], []
    for family in (socket.AF_INET, socket.AF_INET6):
        listeners.append(socket.create_server(("", port), family=family, backlog=1024))
        echoes.append(_datagrams(family, port))
        sinks.append(_datagrams(family, port + 1))
    for made in (*listeners, *echoes, *sinks):
        selector.register(made, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            peer = key.fileobj
            assert isinstance(peer, socket.socket)
            if peer in listeners:
                selector.register(peer.accept()[0], selectors.EVENT_READ)
            elif peer in echoes:
                peer.sendto(*peer.recvfrom(65536))
            elif peer in sinks:
                peer.recv(65536)
            else:
                _echo(selector, peer)


def _echo(selector: selectors.BaseSelector, peer: socket.socket) -> None:
    try:
        data = peer.recv(65536)
    except OSError:
        data = b""
    if data:
        peer.sendall(data)
    else:
        selector.unregister(peer)
        peer.close()


class Talker:
    """The connections of one process. ``broken``: what went wrong with them so far, in words."""

    def __init__(self, targets: list[Target]) -> None:
        self.targets = targets
        self.selector = selectors.DefaultSelector()
        self.sockets = [target.connect() for target in targets for _ in range(target.connections)]
        self.broken: dict[int, str] = {}
        for number, made in enumerate(self.sockets):
            made.setblocking(False)
            self.selector.register(made, selectors.EVENT_READ, number)

    def play(self, turn: int) -> int:
        """One round; how many flows gave back just what they were sent."""
        waiting: dict[int, bytes] = {}
        for number, made in enumerate(self.sockets):
            if number in self.broken:
                continue
            ping = f"{number}/{turn};".encode() * (1 + (number + turn) % 40)
            try:
                made.sendall(ping)
                waiting[number] = ping
            except OSError as error:
                self.broken[number] = f"round {turn}: {error}"
        asked = len(waiting)
        lost = self.hear(turn, waiting)
        self.broken.update(dict.fromkeys(waiting, f"round {turn}: no answer"))
        return asked - lost - len(waiting)

    def hear(self, turn: int, waiting: dict[int, bytes]) -> int:
        """Take the answers; how many were wrong. What stays in ``waiting`` has not answered."""
        wrong = 0
        deadline = time.monotonic() + ANSWER_S
        while waiting and time.monotonic() < deadline:
            for key, _ in self.selector.select(1.0):
                number: int = key.data
                fault = ""
                try:
                    data = self.sockets[number].recv(65536)
                    if not data:
                        fault = "closed"
                    elif not waiting.get(number, b"").startswith(data):
                        fault = f"got {data[:40]!r}"
                except OSError as error:
                    fault = str(error)
                if fault:
                    self.selector.unregister(self.sockets[number])
                    self.broken[number] = f"round {turn}: {fault}"
                    waiting.pop(number, None)
                    wrong += 1
                elif waiting[number] == data:
                    del waiting[number]
                else:
                    waiting[number] = waiting[number][len(data) :]
        return wrong

    def fresh(self) -> tuple[dict[str, list[int]], list[str]]:
        """A few new connections, closed again: the local ports of those that worked, by protocol, and what did not."""
        ports: dict[str, list[int]] = {"tcp": [], "udp": []}
        failures = []
        for target in self.targets * NEW_A_ROUND:
            try:
                with target.connect() as made:
                    made.sendall(b"new")
                    if made.recv(16) != b"new":
                        raise OSError("a wrong answer")
                    ports[target.protocol].append(made.getsockname()[1])
            except OSError as error:
                failures.append(f"{target}: {error}")
        return ports, failures


def talk(targets: list[Target]) -> None:
    """Play until stdin ends."""
    talker = Talker(targets)
    turn = 0
    while True:
        started = time.monotonic()
        answered = talker.play(turn)
        ports, failures = talker.fresh()
        line: dict[str, Any] = {
            "round": turn,
            "answered": answered,
            "broken": list(talker.broken.items())[:5],
            "new": ports,
            "new_failed": failures,
        }
        print(json.dumps(line), flush=True)
        turn += 1
        left = max(0.0, started + ROUND_S - time.monotonic())
        if select.select([sys.stdin], [], [], left)[0]:
            return


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        talk([Target.of(text) for text in sys.argv[2:]])
