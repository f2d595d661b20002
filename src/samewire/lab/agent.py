"""The probe runner of ``lab check``: one process in one network namespace, doing all probes from there.

A script of its own (``/usr/bin/python3 -I -S agent.py``); nothing else of Samewire may be imported here. It
prints ``ready``, reads one line of JSON (a list of probes), prints a line of JSON for every probe as it ends
and ``{"done": true}`` after the last. Then it waits for another line and prints which ICMP echo requests it
has seen meanwhile, and from whom: an echo reply does not say what source address the far side saw, so the far
side itself must. It ends with its standard input.

A probe: ``id``, ``protocol`` (tcp, udp, icmp, http, connect), ``address``, ``port``, ``size`` (payload
bytes), ``timeout_s``, ``tries``. A result: ``id``, ``ok``, ``error``, ``tries`` used, ``reply`` (the echo
server's JSON).
"""

from __future__ import annotations

import collections
import json
import os
import queue
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

# Probes at once that have begun within the last second.
_FRESH = 8
_TRY_S = 1.0
_READ_BYTES = 256 * 1024
_TOKEN_BYTES = 16
_ECHO_REQUEST: dict[int, int] = {socket.AF_INET: 8, socket.AF_INET6: 128}
_ECHO_REPLY: dict[int, int] = {socket.AF_INET: 0, socket.AF_INET6: 129}
_RAW: dict[int, int] = {socket.AF_INET: socket.IPPROTO_ICMP, socket.AF_INET6: socket.IPPROTO_ICMPV6}


class Wrong(Exception):
    """An answer that is not the expected one."""


class Pinger:
    """ICMP echo over one raw socket a family, shared by all probes; also notes the requests of others."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}
        self._reading = threading.Lock()
        self._sockets: dict[int, socket.socket] = {}
        self._waiting: dict[bytes, threading.Event] = {}
        self._identifier = os.getpid() & 0xFFFF
        for family, protocol in _RAW.items():
            raw = socket.socket(family, socket.SOCK_RAW, protocol)
            self._sockets[family] = raw
            threading.Thread(target=self._receive, args=(family, raw), daemon=True).start()

    def echo(self, address: str, sequence: int, token: bytes, timeout_s: float) -> bool:
        """Send one echo request and wait for its reply."""
        family = _family(address)
        event = self._waiting[token] = threading.Event()
        head = struct.pack("!BBHHH", _ECHO_REQUEST[family], 0, 0, self._identifier, sequence & 0xFFFF)
        packet = head + token
        if family == socket.AF_INET:  # the kernel fills in ICMPv6's checksum
            packet = packet[:2] + struct.pack("!H", _checksum(packet)) + packet[4:]
        self._sockets[family].sendto(packet, (address, 0))
        return event.wait(timeout_s)

    def seen(self) -> dict[str, str]:
        """The echo requests that have come: token -> source. Also those that nobody had the time to read yet."""
        for family, raw in self._sockets.items():
            self._read(family, raw)
        return dict(self._seen)

    def _receive(self, family: int, raw: socket.socket) -> None:
        while True:
            select.select([raw], [], [])
            self._read(family, raw)

    def _read(self, family: int, raw: socket.socket) -> None:
        """Take note of all that has come. One at a time: who finds nothing left knows that nobody is still at it."""
        with self._reading:
            while True:
                try:
                    data, sender = raw.recvfrom(65535, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    return
                if family == socket.AF_INET:
                    data = data[(data[0] & 15) * 4 :]
                kind, token = data[0], data[8:]
                if kind == _ECHO_REQUEST[family]:
                    self._seen[token.hex()] = sender[0].partition("%")[0]
                elif kind == _ECHO_REPLY[family] and token in self._waiting:
                    self._waiting[token].set()


def run_all(probes: list[dict[str, Any]], pinger: Pinger) -> Iterator[dict[str, Any]]:
    """Do all probes, and yield each result as it comes.

    A few at once. Those that have had no answer in their first second keep no other from beginning: where a machine is
    cut off there are hundreds of them, with nothing to do but to wait.
    """
    results: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    waiting = collections.deque(probes)
    began_s: dict[int, float] = {}

    def work(probe: dict[str, Any]) -> None:
        results.put(run_probe(probe, pinger))

    while waiting or began_s:
        now_s = time.monotonic()
        fresh = [at_s for at_s in began_s.values() if now_s - at_s < _TRY_S]
        for _ in range(min(_FRESH - len(fresh), len(waiting))):
            probe = waiting.popleft()
            fresh.append(now_s)
            began_s[probe["id"]] = now_s
            threading.Thread(target=work, args=(probe,), daemon=True).start()
        try:
            result = results.get(timeout=min(fresh) + _TRY_S - now_s if waiting else None)
        except queue.Empty:
            continue
        del began_s[result["id"]]
        yield result


def run_probe(probe: dict[str, Any], pinger: Pinger) -> dict[str, Any]:
    """Do one probe, with up to ``tries`` attempts.

    The last has what is left of its time, those before it a second each: what is lost is lost, but a slow machine may
    need much longer for an answer.
    """
    result: dict[str, Any] = {"id": probe["id"], "ok": False, "error": "", "tries": 0}
    first_s = min(_TRY_S, probe["timeout_s"] / probe["tries"])
    last_s = probe["timeout_s"] - first_s * (probe["tries"] - 1)
    for attempt in range(1, probe["tries"] + 1):
        result["tries"] = attempt
        try:
            timeout_s = last_s if attempt == probe["tries"] else first_s
            result.update(_attempt(probe, pinger, timeout_s), ok=True, error="")
            break
        except TimeoutError:
            result["error"] = "no answer"
        except OSError as error:
            result["error"] = error.strerror or str(error)
        except (Wrong, ValueError) as error:
            result["error"] = str(error)
    return result


def _attempt(probe: dict[str, Any], pinger: Pinger, timeout_s: float) -> dict[str, Any]:
    address, protocol = probe["address"], probe["protocol"]
    if protocol == "icmp":
        token = os.urandom(_TOKEN_BYTES)
        if not pinger.echo(address, probe["id"], token, timeout_s):
            raise TimeoutError
        return {"token": token.hex()}
    target = (address, probe["port"])
    if protocol == "udp":
        return {"reply": _udp(target, probe["size"], timeout_s)}
    with socket.create_connection(target, timeout_s) as connection:
        if protocol == "connect":
            return {}
        if protocol == "http":
            return {"reply": _http(connection, target)}
        return {"reply": _tcp(connection, probe["size"], timeout_s)}


def _udp(target: tuple[str, int], size: int, timeout_s: float) -> Any:
    payload = _payload(size)
    with socket.socket(_family(target[0]), socket.SOCK_DGRAM) as endpoint:
        endpoint.settimeout(timeout_s)
        endpoint.connect(target)
        endpoint.send(payload)
        head, _, body = endpoint.recv(65535).partition(b"\n")
    if body != payload:
        raise Wrong(f"{len(body)} bytes came back for {size}, or others")
    return json.loads(head)


def _tcp(connection: socket.socket, size: int, timeout_s: float) -> Any:
    """Send and receive at once: both sides' buffers together may be smaller than the payload."""
    payload = _payload(size)
    unsent, received = payload, b""
    deadline = time.monotonic() + timeout_s
    connection.setblocking(False)
    poller = select.poll()
    while True:
        poller.register(connection, select.POLLIN | (select.POLLOUT if unsent else 0))
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError
        try:
            if unsent:
                unsent = unsent[connection.send(unsent) :]
        except BlockingIOError:
            pass
        try:
            data = connection.recv(_READ_BYTES)
        except BlockingIOError:
            continue
        if not data:
            raise Wrong(f"closed after {len(received)} bytes")
        received += data
        head, newline, body = received.partition(b"\n")
        if newline and len(body) >= len(payload):
            if body != payload:
                raise Wrong("the echo differs from what was sent")
            return json.loads(head)


def _http(connection: socket.socket, target: tuple[str, int]) -> Any:
    host = f"[{target[0]}]" if ":" in target[0] else target[0]
    request = f"GET /check HTTP/1.1\r\nHost: {host}:{target[1]}\r\nConnection: close\r\n\r\n"
    connection.sendall(request.encode())
    answer = b""
    while data := connection.recv(_READ_BYTES):
        answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise Wrong(head[:60].decode("latin-1") or "empty answer")
    return json.loads(body)


def _payload(size: int) -> bytes:
    """Random, so that a byte in the wrong place is seen; its beginning is no HTTP method's."""
    return b"\x00" + os.urandom(size - 1)


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def main() -> None:
    """Serve one check."""
    pinger = Pinger()
    print("ready", flush=True)
    line = sys.stdin.readline()
    if not line:
        return
    for result in run_all(json.loads(line), pinger):
        print(json.dumps(result), flush=True)
    print(json.dumps({"done": True}), flush=True)
    if sys.stdin.readline():
        print(json.dumps(pinger.seen()), flush=True)


if __name__ == "__main__":
    main()
