"""Many connections at once: one process that holds them, one that answers at any number of addresses."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.node import Json, path_of

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
tcp = socket.create_server(("0.0.0.0", port), backlog=4096)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
udp.bind(("0.0.0.0", port))
for found in (tcp, udp):
    watch.register(found, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in watch.select():
        where = key.fileobj
        if where is tcp:
            watch.register(tcp.accept()[0], selectors.EVENT_READ)
        elif where is udp:
            data, info, _, peer = udp.recvmsg(2000, 200)
            here = info[0][2][8:12]
            source = [(socket.IPPROTO_IP, 8, bytes(4) + here + bytes(4))]
            udp.sendmsg([f"{name} {socket.inet_ntoa(here)}".encode()], source, 0, peer)
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
    if not order["connected"] and peer != target(order):
        return f"{data.decode()} from {peer[0]}"
    return data.decode() or "closed"

def ask(order, sockets):
    answers = [None if isinstance(one, socket.socket) else one for one in sockets]
    with selectors.DefaultSelector() as watch:
        for number, one in enumerate(sockets):
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
                    answers[key.data] = hear(order, key.fileobj)
                except OSError as error:
                    answers[key.data] = failed(error)
                watch.unregister(key.fileobj)
    return [answer or "timeout" for answer in answers]

def keep_asking(order, sockets, until):
    # Each socket asks again as soon as it is answered, whatever the others wait for.
    heard = [dict() for _ in sockets]
    due = [0.0] * len(sockets)  # when the answer must be there; 0: to be asked
    with selectors.DefaultSelector() as watch:
        for number, one in enumerate(sockets):
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
                        say(order, key.fileobj)
                        due[number] = now + BOUND_S
                    except OSError as error:
                        heard[number][failed(error)] = 1
                        watch.unregister(key.fileobj)
            for key, _ in watch.select(0.01):
                try:
                    word = hear(order, key.fileobj)
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
        crowds[name] = (order, [opened(order) for _ in range(order["count"])])
    held, sockets = crowds[name]
    answer = []
    if order["do"] in ("open", "ask"):
        answer = ask(held, sockets)
    elif order["do"] == "keep asking":
        answer = keep_asking(held, sockets, order["until"])
    elif order["do"] == "again":
        answer = [again(held, one) for one in sockets]
    elif order["do"] == "mend":
        answer = ask(held, sockets)
        for one, was in zip(sockets, answer):
            if " " not in was:
                again(held, one)
        answer = ask(held, sockets)
    else:
        for one in crowds.pop(name)[1]:
            if isinstance(one, socket.socket):
                one.close()
    print(json.dumps(answer), flush=True)
"""
)


class Crowds:
    """A process that holds sockets in crowds. Answers are "name address" of who answered, or an error's name
    ("ECONNRESET"), or "timeout"; one for each socket, in order.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
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
        """Sockets to an address, each of which has asked once."""
        self._number += 1
        crowd = Crowd(self, str(self._number))
        order = {"host": host, "port": port, "protocol": protocol, "connected": connected, "source": source}
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
        return {answer.split()[1] for answer in self.first}

    def expect(self, *ended: str, ends_with: frozenset[str] = frozenset({"ECONNRESET"})) -> None:
        """Every socket gets the answer that it got first, but those of backends that have ``ended``: they end."""
        now = self.ask()
        wrong = [
            (before, after)
            for before, after in zip(self.first, now, strict=True)
            if (after not in ends_with if before.split()[1] in ended else after != before)
        ]
        assert not wrong, f"{len(wrong)} of {len(now)} moved or ended: {wrong[:5]}"


@contextmanager
def crowds(namespace: str, group: Path | None = None) -> Iterator[Crowds]:
    """A process in a namespace (and a control group) that holds sockets."""
    with _process(namespace, _CLIENT, str(group / "cgroup.procs") if group else "") as process:
        yield Crowds(process)


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
