"""Many connections at once: one process that holds them, one that answers at any number of addresses.

A backend of both families is known by its IPv4 address, with which its IPv6 address ends.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tests.support.node import Json, path_of

NO_TWINS: Final[Mapping[str, str]] = MappingProxyType({})
PODS6, FAR6 = "fd44::", "fd99::"

_LIMIT = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
"""

# Answers at whatever address it was asked at, with its name and that address.
_SERVER = (
    _LIMIT
    + """
import selectors, socket, sys
name, port = sys.argv[1], int(sys.argv[2])
watch = selectors.DefaultSelector()
listeners, datagrams = [], {}
for family, level, ask, at in ((socket.AF_INET, 0, 8, slice(8, 12)), (socket.AF_INET6, 41, 49, slice(0, 16))):
    listeners.append(socket.create_server(("", port), family=family, backlog=4096))
    udp = socket.socket(family, socket.SOCK_DGRAM)
    udp.setsockopt(level, ask, 1)  # IP_PKTINFO, IPV6_RECVPKTINFO
    if family == socket.AF_INET6:
        udp.setsockopt(level, socket.IPV6_V6ONLY, 1)
        udp.setsockopt(level, 78, 1)  # IPV6_FREEBIND: from an address that is a route's
    udp.bind(("", port))
    datagrams[udp] = family, at
for found in (*listeners, *datagrams):
    watch.register(found, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in watch.select():
        where = key.fileobj
        if where in listeners:
            watch.register(where.accept()[0], selectors.EVENT_READ)
        elif where in datagrams:
            family, at = datagrams[where]
            data, info, _, peer = where.recvmsg(2000, 200)
            (level, kind, found), = info
            here = found[at]
            source = bytes(4) + here + bytes(4) if family == socket.AF_INET else here + bytes(4)
            answer = f"{name} {socket.inet_ntop(family, here)}".encode()
            where.sendmsg([answer], [(level, kind, source)], 0, peer)
        else:
            try:
                data = where.recv(2000)
                if data:
                    where.sendall(f"{name} {where.getsockname()[0]}".encode())
            except OSError:
                data = b""
            if not data:
                watch.unregister(where)
                where.close()
"""
)

# Holds sockets in named crowds. A line of JSON is an order, a line of JSON the answer.
_CLIENT = (
    _LIMIT
    + """
import errno, json, os, selectors, socket, sys, time
if sys.argv[1]:
    with open(sys.argv[1], "w") as procs:
        procs.write(str(os.getpid()))
BOUND_S = 20.0  # nobody asks for what is never answered: a machine may stall
crowds = {}

def failed(error):
    return errno.errorcode.get(error.errno, "timeout")

def opened(order):
    udp = order["protocol"] == "udp"
    family = socket.AF_INET6 if ":" in order["host"] else socket.AF_INET
    one = socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
    one.settimeout(BOUND_S)
    try:
        if order["source"]:
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # its twin has the port, too
            one.bind(("", order["source"]))
        if order["connected"]:
            one.connect((order["host"], order["port"]))
    except OSError as error:
        one.close()
        return failed(error)
    one.setblocking(False)
    return one

def target(order):
    return (order["host"], order["port"])

def say(order, one):
    if order["connected"]:
        one.send(b"who")
    else:
        one.sendto(b"who", target(order))

def hear(order, one):
    data, peer = one.recvfrom(200)
    if not order["connected"] and peer[:2] != target(order):
        return f"{data.decode()} from {peer[0]}"
    return data.decode() or "closed"

def ask(sockets):
    answers = [None if isinstance(one, socket.socket) else one for _, one in sockets]
    with selectors.DefaultSelector() as watch:
        for number, (order, one) in enumerate(sockets):
            if answers[number] is None:
                try:
                    say(order, one)
                    watch.register(one, selectors.EVENT_READ, number)
                except OSError as error:
                    answers[number] = failed(error)
        end = time.monotonic() + BOUND_S
        while watch.get_map() and time.monotonic() < end:
            for key, _ in watch.select(end - time.monotonic()):
                try:
                    answers[key.data] = hear(*sockets[key.data])
                except OSError as error:
                    answers[key.data] = failed(error)
                watch.unregister(key.fileobj)
    return [answer or "timeout" for answer in answers]

def keep_asking(sockets, until):
    # Each socket asks again as soon as it is answered, whatever the others wait for.
    heard = [dict() for _ in sockets]
    due = [0.0] * len(sockets)  # when the answer must be there; 0: to be asked
    with selectors.DefaultSelector() as watch:
        for number, (_, one) in enumerate(sockets):
            watch.register(one, selectors.EVENT_READ, number)
        while not os.path.exists(until):
            now = time.monotonic()
            for key in list(watch.get_map().values()):
                number = key.data
                if due[number] and due[number] < now:
                    heard[number]["timeout"] = 1
                    due[number] = 0.0
                if not due[number]:
                    try:
                        say(*sockets[number])
                        due[number] = now + BOUND_S
                    except OSError as error:
                        heard[number][failed(error)] = 1
                        watch.unregister(key.fileobj)
            for key, _ in watch.select(0.01):
                try:
                    word = hear(*sockets[key.data])
                    heard[key.data][word] = heard[key.data].get(word, 0) + 1
                    due[key.data] = 0.0
                except OSError as error:
                    heard[key.data][failed(error)] = 1
                    watch.unregister(key.fileobj)
    return ["|".join(sorted(words)) for words in heard] + [str(max(max(words.values(), default=0) for words in heard))]

def again(order, one):
    try:
        one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # what it was told is read
        one.connect(target(order))
        return "connected"
    except OSError as error:
        return failed(error)

print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    name = order["crowd"]
    if order["do"] == "open":
        each = [{**order, "host": host} for host in order["hosts"] for _ in range(order["count"])]
        crowds[name] = [(one, opened(one)) for one in each]
    sockets = crowds[name]
    answer = []
    if order["do"] in ("open", "ask"):
        answer = ask(sockets)
    elif order["do"] == "keep asking":
        answer = keep_asking(sockets, order["until"])
    elif order["do"] == "again":
        answer = [again(*one) for one in sockets]
    elif order["do"] == "mend":
        answer = ask(sockets)
        for one, was in zip(sockets, answer):
            if " " not in was:
                again(*one)
        answer = ask(sockets)
    else:
        for _, one in crowds.pop(name):
            if isinstance(one, socket.socket):
                one.close()
    print(json.dumps(answer), flush=True)
"""
)


class Crowds:
    """A process that holds sockets in crowds. Answers are "name address" of who answered, or an error's name
    ("ECONNRESET"), or "timeout"; one for each socket, in order.
    """

    def __init__(self, process: subprocess.Popen[str], twins: Mapping[str, str]) -> None:
        self._process = process
        self._twins = twins
        self._number = 0

    def open(
        self,
        count: int,
        host: str,
        port: int,
        protocol: str = "tcp",
        *,
        connected: bool = True,
        source: int = 0,
    ) -> Crowd:
        """Sockets to an address, half of them to its twin if it has one (rounded up), each of which has asked once."""
        self._number += 1
        crowd = Crowd(self, str(self._number))
        hosts = [host, self._twins[host]] if host in self._twins else [host]
        count = -(-count // len(hosts))
        order = {"hosts": hosts, "port": port, "protocol": protocol, "connected": connected, "source": source}
        crowd.first = self.order(do="open", crowd=crowd.name, count=count, **order)
        return crowd

    def order(self, **order: object) -> list[str]:
        """Give an order."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: list[str] = json.loads(self._process.stdout.readline())
        return answer


class Crowd:
    """Some sockets. ``first``: what each was answered when it was opened. A context manager."""

    def __init__(self, crowds: Crowds, name: str) -> None:
        self._crowds = crowds
        self.name = name
        self.first: list[str] = []

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self._crowds.order(do="close", crowd=self.name)

    def ask(self) -> list[str]:
        """Ask on every socket."""
        return self._crowds.order(do="ask", crowd=self.name)

    @contextmanager
    def asking(self, flag: Path) -> Iterator[list[str]]:
        """Ask all the time while something happens; afterwards the list has what each socket has heard, different
        answers with "|" between them. ``flag``: a file that is not there yet.
        """
        heard: list[str] = []

        def work() -> None:
            heard.extend(self._crowds.order(do="keep asking", crowd=self.name, until=str(flag)))

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield heard
        finally:
            flag.touch()
            thread.join()
        assert int(heard.pop()) > 10

    def connect_again(self) -> list[str]:
        """Connect every socket again: "connected", or an error's name."""
        return self._crowds.order(do="again", crowd=self.name)

    def mend(self) -> list[str]:
        """Ask on every socket; connect those again that cannot, and ask again."""
        return self._crowds.order(do="mend", crowd=self.name)

    @property
    def addresses(self) -> set[str]:
        """The addresses of those who answered first."""
        return set(map(who, self.first))

    def expect(self, *ended: str, ends_with: frozenset[str] = frozenset({"ECONNRESET"})) -> None:
        """Every socket gets the answer that it got first, but those of backends that have ``ended``: they end."""
        now = self.ask()
        wrong = [
            (before, after)
            for before, after in zip(self.first, now, strict=True)
            if (after not in ends_with if who(before) in ended else after != before)
        ]
        assert not wrong, f"{len(wrong)} of {len(now)} moved or ended: {wrong[:5]}"


@contextmanager
def crowds(
    namespace: str, group: Path | None = None, twins: Mapping[str, str] = NO_TWINS
) -> Iterator[Crowds]:
    """A process in a namespace (and a control group) that holds sockets. ``twins``: IPv6 addresses by the IPv4
    addresses that mean the same.
    """
    with _process(namespace, _CLIENT, str(group / "cgroup.procs") if group else "") as process:
        yield Crowds(process, twins)


@contextmanager
def answering(namespace: str, name: str, port: int) -> Iterator[None]:
    """A server at every address of a namespace, TCP and UDP."""
    with _process(namespace, _SERVER, name, str(port)):
        yield


@contextmanager
def _process(namespace: str, program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = ["nsenter", f"--net={path_of(namespace)}", sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def endpoint(address: str, *, node: str = "far", uid: str = "", going: bool = False) -> Json:
    """An endpoint of a slice; ``going``: it terminates and still serves."""
    conditions = {"ready": not going, "serving": True, "terminating": going}
    named = {"targetRef": {"kind": "Pod", "uid": uid}} if uid else {}
    return {"addresses": [address], "nodeName": node, "conditions": conditions, **named}


def ipv6_of(address: str) -> str:
    """The IPv6 address of a backend."""
    return str(IPv6Address(f"{FAR6 if address.startswith('10.99.') else PODS6}{address}"))


def ipv4_of(address: str) -> str:
    """The address by which a backend is known; that of anybody else as it is."""
    if not address.startswith((PODS6, FAR6)):
        return address
    return str(IPv4Address(int(IPv6Address(address)) & 0xFFFFFFFF))


def who(answer: str) -> str:
    """Who answered, by its address."""
    return ipv4_of(answer.split()[1])
