"""Many connections kept open between two processes, and what becomes of them: run as a script in a namespace.

``serve ADDRESS PORT`` echoes TCP and swallows UDP. ``talk ADDRESS PORT COUNT`` opens COUNT connections, plays one
round of ping-pong a second on all of them, opens and closes a few new ones in each round, and writes one JSON object
a round; it ends when its stdin does. Standard library only.
"""

from __future__ import annotations

import json
import select
import selectors
import socket
import sys
import time
from typing import Any

ROUND_S = 1.0
ANSWER_S = 10.0
NEW_A_ROUND = 4


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def serve(address: str, port: int) -> None:
    """Echo until killed."""
    selector = selectors.DefaultSelector()
    listener = socket.create_server((address, port), family=_family(address), backlog=1024)
    sink = socket.socket(_family(address), socket.SOCK_DGRAM)
    sink.bind((address, port))
    for made in (listener, sink):
        selector.register(made, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            peer = key.fileobj
            assert isinstance(peer, socket.socket)
            if peer is listener:
                selector.register(listener.accept()[0], selectors.EVENT_READ)
            elif peer is sink:
                sink.recv(65536)
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

    def __init__(self, address: str, port: int, count: int) -> None:
        self.target = address, port
        self.selector = selectors.DefaultSelector()
        self.sockets = [self.connect() for _ in range(count)]
        self.broken: dict[int, str] = {}
        for number, made in enumerate(self.sockets):
            made.setblocking(False)
            self.selector.register(made, selectors.EVENT_READ, number)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.target, timeout=ANSWER_S)

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

    def fresh(self) -> tuple[list[int], list[str]]:
        """A few new connections, closed again: the local ports of those that worked, and what did not."""
        ports, failures = [], []
        for _ in range(NEW_A_ROUND):
            try:
                with self.connect() as made:
                    made.sendall(b"new")
                    if made.recv(16) != b"new":
                        raise OSError("a wrong answer")
                    ports.append(made.getsockname()[1])
            except OSError as error:
                failures.append(str(error))
        return ports, failures


def talk(address: str, port: int, count: int) -> None:
    """Play until stdin ends."""
    talker = Talker(address, port, count)
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
    if sys.argv[1] == "serve":
        serve(sys.argv[2], int(sys.argv[3]))
    else:
        talk(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
