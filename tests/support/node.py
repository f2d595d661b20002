"""A node for tests: its own network namespace with an uplink, pods, and the daemon in it."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from samewire.kernel import netns
from samewire.kernel.bpf import unmount_bpffs
from samewire.kernel.netns import NetNamespace
from tests.support.proxy import pid_behind

Json = dict[str, Any]

PREFIX = f"swnode-{os.getpid()}"
UPLINK_SUBNET = "192.168.77.0/24"
NODE_IP, ROUTER_IP = "192.168.77.2", "192.168.77.1"
NODE_IP6, ROUTER_IP6 = "fd77::2", "fd77::1"
_CLONE_NEWNET = 0x40000000
_COUNTER = itertools.count(1)
STALL_S = 20.0  # a machine may stand still for seconds: a bound of what must come
SHORT_S = 1.0  # of what must not
_libc = ctypes.CDLL(None, use_errno=True)


def ip(*arguments: str, netns_name: str = "") -> str:
    """Run ``ip``; its output."""
    command = ["ip", *(["-n", netns_name] if netns_name else []), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def ip_json(*arguments: str, netns_name: str = "") -> list[Json]:
    """Run ``ip -j``; what it says, without the empty objects that it puts in some lists."""
    text = ip("-j", *arguments, netns_name=netns_name)
    return [item for item in json.loads(text or "[]") if item]


def poll(what: str, condition: Callable[[], bool], timeout_s: float = STALL_S) -> None:
    """Wait until something is so, or fail."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s} s")
        time.sleep(0.02)


class NodeNet:
    """A node's namespace with ``eth0`` towards a router's, and any number of pods."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.node = self.namespace("n")
        self.router = self.namespace("r")
        for name in (self.node, self.router):
            # A link-local address under detection keeps the kernel from asking for neighbours for a second or two.
            in_namespace(name, "sysctl", "-q", "-w", "net.ipv6.conf.default.accept_dad=0")
        ip("link", "add", "eth0", "netns", self.node, "type", "veth", "peer", "eth0", "netns", self.router)
        for name, addresses in (
            (self.node, (f"{NODE_IP}/24", f"{NODE_IP6}/64")),
            (self.router, (f"{ROUTER_IP}/24", f"{ROUTER_IP6}/64")),
        ):
            for address in addresses:
                extra = ["nodad"] if ":" in address else []
                ip("address", "add", address, "dev", "eth0", *extra, netns_name=name)
            ip("link", "set", "lo", "up", netns_name=name)
            ip("link", "set", "eth0", "up", netns_name=name)
        ip("route", "add", "default", "via", ROUTER_IP, netns_name=self.node)
        ip("route", "add", "default", "via", ROUTER_IP6, netns_name=self.node)

    def namespace(self, kind: str) -> str:
        """A new namespace; its name."""
        name = f"{PREFIX}-{kind}{next(_COUNTER)}"
        netns.create(f"/run/netns/{name}").close()
        self._stack.callback(remove_namespace, name)
        return name

    def pod(self) -> str:
        """A pod's namespace with loopback up; its name."""
        name = self.namespace("p")
        ip("link", "set", "lo", "up", netns_name=name)
        return name

    @contextmanager
    def inside(self, name: str = "") -> Iterator[None]:
        """Run in a namespace (the node's), with the calling thread and those it starts."""
        with (
            NetNamespace("/proc/thread-self/ns/net") as own,
            NetNamespace(path_of(name or self.node)) as there,
        ):
            assert _libc.setns(there.fd, _CLONE_NEWNET) == 0
            try:
                yield
            finally:
                assert _libc.setns(own.fd, _CLONE_NEWNET) == 0


@contextmanager
def node_net() -> Iterator[NodeNet]:
    """A node's network, removed afterwards."""
    with ExitStack() as stack:
        yield NodeNet(stack)


def path_of(name: str) -> str:
    """The file of a namespace."""
    return f"/run/netns/{name}"


def remove_namespace(name: str) -> None:
    """Remove it, unless a test has done so."""
    if Path(path_of(name)).exists():
        netns.delete(path_of(name))


def in_namespace(name: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command inside a namespace."""
    line = ["nsenter", f"--net={path_of(name)}", *command]
    done = subprocess.run(line, check=False, capture_output=True, text=True)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(line)}: {done.stdout}{done.stderr}")
    return done


@contextmanager
def serving(name: str, code: str, *arguments: str | int) -> Iterator[None]:
    """A Python program inside a namespace that says "ready" when it is."""
    command = ["nsenter", f"--net={path_of(name)}", sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield
        finally:
            process.kill()


def bound_s(comes: bool) -> float:
    """How long to wait for what comes, or must not."""
    return STALL_S if comes else SHORT_S


def can_ping(name: str, target: str, *, count: int = 1, wait_s: float = STALL_S) -> bool:
    """Whether an echo comes back; who expects none, or asks again, need not wait for long (:data:`SHORT_S`)."""
    done = in_namespace(name, "ping", "-n", "-c", str(count), "-W", str(wait_s), target, check=False)
    return done.returncode == 0


def overlay(name: str = "pods", subnet: str = "10.244.0.0/24", vni: int = 4096, subnet6: str = "") -> Json:
    """An overlay network that the host is part of."""
    prefixes = [subnet, *([subnet6] if subnet6 else [])]
    return {
        "Name": name,
        "Type": "Overlay",
        "SchemaVersion": {"Major": 2, "Minor": 0},
        "Policies": [{"Type": "HostRoute", "Settings": {}}],
        "Ipams": [{"Subnets": [_subnet(prefix, vni) for prefix in prefixes]}],
    }


def _subnet(prefix: str, vni: int) -> Json:
    base = prefix.partition("/")[0]
    if ":" in base:
        gateway, default = f"{base}1", "::/0"
    else:
        gateway, default = f"{base.rpartition('.')[0]}.1", "0.0.0.0/0"
    return {
        "IpAddressPrefix": prefix,
        "Routes": [{"NextHop": gateway, "DestinationPrefix": default}],
        "Policies": [{"Type": "VSID", "Settings": {"IsolationId": vni}}],
    }


class DaemonProcess:
    """``samewire daemon`` as a process in a node's namespace."""

    def __init__(self, net: NodeNet, directory: Path, **settings: Any) -> None:
        self.net = net
        self.directory = directory
        self.run_dir = directory / "run"
        self.state_dir = directory / "state"
        self.log = directory / "daemon.log"
        self.config = directory / "config.json"
        self.plugin_path = "/usr/lib/cni"
        self.under: list[str] = []  # a command that runs it
        values = {
            "name": "node",
            "uplink": "eth0",
            "run_dir": str(self.run_dir),
            "state_dir": str(self.state_dir),
        }
        self.config.write_text(json.dumps({**values, **settings}))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, env: Mapping[str, str] | None = None, *, wait: bool = True) -> Self:
        """Start it and wait until it serves."""
        self.spawn(env)
        if wait:
            poll("the daemon serves", self.serves)
            if not self.running:
                raise AssertionError(f"the daemon ended: {self.tail()}")
        return self

    def spawn(self, env: Mapping[str, str] | None = None) -> None:
        """Start it."""
        command = ["nsenter", f"--net={path_of(self.net.node)}", *self.under]
        command += [sys.executable, "-m", "samewire.cli.daemon"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(env or {})},
            )

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process is not None
        return self.process.pid

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it; its exit status."""
        process, self.process = self.process, None
        if process is None:
            return 0
        if process.poll() is None:
            process.send_signal(how)
        try:
            return process.wait(STALL_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the daemon does not end: {self.tail()}") from None

    def wait_dead(self) -> int:
        """Wait until it has ended by itself; its exit status."""
        assert self.process is not None
        status = self.process.wait(STALL_S)
        self.process = None
        return status

    def remove(self) -> None:
        """End it, with its relay, which goes on without it, and remove its mount."""
        if self.running:
            self.stop(signal.SIGKILL)
        with suppress(OSError):
            os.kill(pid_behind(self.run_dir / "relay.sock"), signal.SIGKILL)
        if (self.run_dir / "bpf").exists():
            unmount_bpffs(self.run_dir / "bpf")
        shutil.rmtree(self.run_dir, ignore_errors=True)

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-3000:]

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """One HTTP request; the decoded answer. Raises AssertionError with the daemon's words."""
        status, answer = self.ask(method, path, body)
        assert status < 400, f"{method} {path}: {status}: {answer}"
        return answer

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """One HTTP request; status and decoded answer."""
        text = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(text)}\r\n\r\n"
        )
        answer = exchange(self.run_dir / "samewire.sock", head.encode() + text, half_close=False)
        top, _, rest = answer.partition(b"\r\n\r\n")
        status = int(top.split()[1])
        return status, json.loads(rest) if rest.startswith((b"{", b"[")) else rest.decode()

    def differences(self) -> list[Json]:
        """What ``samewire diff`` would show."""
        found: list[Json] = self.request("GET", "/v2/switch/diff")["differences"]
        return found

    def table(self, name: str) -> list[Json]:
        """The entries of one table."""
        found: list[Json] = self.request("GET", f"/v2/switch/tables?name={name}")[name]
        return found

    def endpoints(self) -> list[Json]:
        """All endpoints."""
        found: list[Json] = self.request("GET", "/v2/endpoints")
        return found

    def serves(self) -> bool:
        """Whether it serves, or has ended."""
        if not self.running:
            return True
        try:
            return self.ask("GET", "/v2/health")[0] == 200
        except (OSError, IndexError, ValueError):
            return False

    def cni(
        self, verb: str, container: str, pod: str, conf: Json, *, interface: str = "eth0"
    ) -> tuple[int, Json]:
        """One CNI call over the socket; exit status and what is printed."""
        variables = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": path_of(pod) if pod else "",
            "CNI_IFNAME": interface,
            "CNI_PATH": self.plugin_path,
        }
        head = b"".join(f"{key}={value}\0".encode() for key, value in variables.items()) + b"\0"
        answer = exchange(self.run_dir / "cni.sock", head + json.dumps(conf).encode(), half_close=True)
        status, _, printed = answer.partition(b"\n")
        if not status:
            raise ConnectionResetError("the daemon closed the connection without an answer")
        return int(status), json.loads(printed) if printed else {}

    def add(self, container: str, pod: str, conf: Json) -> Json:
        """ADD that must succeed; its result."""
        status, result = self.cni("ADD", container, pod, conf)
        assert status == 0, f"{result} {self.tail()}"
        return result

    def delete(self, container: str, pod: str, conf: Json) -> None:
        """DEL that must succeed."""
        status, result = self.cni("DEL", container, pod, conf)
        assert status == 0, f"{result} {self.tail()}"

    def conf(self, name: str = "pods", *ranges: str, **more: Any) -> Json:
        """A CNI configuration with built-in address management and OutBoundNAT."""
        subnets = ranges or ("10.244.0.0/24",)
        return {
            "cniVersion": "1.1.0",
            "name": name,
            "type": "samewire-cni",
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": subnet}] for subnet in subnets],
                "routes": [{"dst": "::/0" if ":" in subnet else "0.0.0.0/0"} for subnet in subnets],
                "dataDir": str(self.directory / "ipam"),
            },
            "policies": [
                {
                    "name": "EndpointPolicy",
                    "value": {"Type": "OutBoundNAT", "Settings": {"Exceptions": ["10.244.0.0/16"]}},
                }
            ],
            **more,
        }


@contextmanager
def daemon(net: NodeNet, directory: Path, **settings: Any) -> Iterator[DaemonProcess]:
    """A daemon that has not been started; it and its mount are gone afterwards."""
    process = DaemonProcess(net, directory, **settings)
    try:
        yield process
    finally:
        process.remove()


def exchange(path: Path, data: bytes, *, half_close: bool) -> bytes:
    """Send to a unix socket and read to the end."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))  # waits for room: with a timeout, a full queue is an error
        peer.settimeout(STALL_S)
        peer.sendall(data)
        if half_close:
            peer.shutdown(socket.SHUT_WR)
        answer = bytearray()
        while piece := peer.recv(65536):
            answer += piece
        return bytes(answer)
