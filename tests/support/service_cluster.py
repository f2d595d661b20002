"""A daemon with a directory of manifests, pods that answer, and clients that ask: for tests of services."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.support.node import (
    STALL_S,
    DaemonProcess,
    Json,
    NodeNet,
    daemon,
    in_namespace,
    overlay,
    path_of,
    poll,
    serving,
)

_SERVER = """
import selectors, socket, sys
name, port = sys.argv[1], int(sys.argv[2])
watch = selectors.DefaultSelector()
tcp = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.bind(("::", port))
for found in (tcp, udp):
    watch.register(found, selectors.EVENT_READ)
print("ready", flush=True)
def told(peer):
    return f"{name} {peer[0].removeprefix('::ffff:')}".encode()
while True:
    for key, _ in watch.select():
        where = key.fileobj
        if where is tcp:
            watch.register(tcp.accept()[0], selectors.EVENT_READ)
        elif where is udp:
            data, peer = udp.recvfrom(2000)
            udp.sendto(told(peer), peer)
        else:
            try:
                data = where.recv(2000)
                if data:
                    where.sendall(told(where.getpeername()))
            except OSError:
                data = b""
            if not data:
                watch.unregister(where)
                where.close()
"""

_CLIENT = """
import os, socket, sys
protocol, host, port, times, group = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
wait_s = float(sys.argv[6])
if group:
    open(group, "w").write(str(os.getpid()))
kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
for _ in range(times):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind) as peer:
        peer.settimeout(wait_s)
        try:
            peer.connect((host, port))
            peer.send(b"who")
            print(peer.recv(200).decode())
        except TimeoutError:
            print("timeout")
        except ConnectionRefusedError:
            print("refused")
        except OSError as error:
            print(error.strerror)
"""

_HELD = """
import socket, sys
protocol, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind) as peer:
    peer.settimeout(10)
    peer.connect((host, port))
    for line in sys.stdin:
        try:
            peer.send(b"who")
            answer = peer.recv(200).decode() or "closed"
        except TimeoutError:
            answer = "timeout"
        except OSError as error:
            answer = error.strerror
        print(answer, flush=True)
"""


class Cluster:
    """The node, its manifests and its pods."""

    def __init__(self, net: NodeNet, node: DaemonProcess, directory: Path, stack: ExitStack) -> None:
        self.net = net
        self.node = node
        self.directory = directory
        self._stack = stack
        self._addresses: dict[str, tuple[str, ...]] = {}
        self._conf: Json = {}

    def start(self) -> None:
        """Start the daemon, with a dual-stack overlay network."""
        self.node.start()
        self.node.request("POST", "/v2/networks", overlay("pods", "10.244.0.0/24", subnet6="fd44::/64"))
        self._conf = self.node.conf("pods", "10.244.0.0/24", "fd44::/64")

    def pod(self, name: str, *, port: int = 0) -> str:
        """A pod through CNI; with a port it answers there, TCP and UDP, with its name and the client's address."""
        namespace = self.net.pod()
        result = self.node.add(name, namespace, self._conf)
        self._addresses[name] = tuple(item["address"].partition("/")[0] for item in result["ips"])
        if port:
            self._stack.enter_context(server(namespace, name, port))
        return namespace

    def remove(self, name: str, namespace: str) -> None:
        """Take a pod off the network."""
        self.node.delete(name, namespace, self._conf)

    def address(self, name: str, family: int = 4) -> str:
        """A pod's address."""
        return next(a for a in self._addresses[name] if (":" in a) == (family == 6))

    def write(self, name: str, *objects: Json) -> None:
        """Put objects into a file, in one step."""
        value = {"apiVersion": "v1", "kind": "List", "items": objects}
        temporary = self.directory / f".{name}"
        temporary.write_text(json.dumps(value))
        temporary.rename(self.directory / f"{name}.json")

    def slices(self, service: str, *pods: str, port: int = 8080, **conditions: bool) -> list[Json]:
        """EndpointSlices of a service in both families, with pods of this node."""
        return [
            slice_of(
                service,
                *((self.address(pod, family), "node") for pod in pods),
                port=port,
                family=family,
                **conditions,
            )
            for family in (4, 6)
        ]

    def services(self) -> list[Json]:
        """What the daemon says of its services."""
        found: list[Json] = self.node.request("GET", "/v2/services?counts=1")
        return found

    def wait_for(self, what: str, **backends: list[str]) -> None:
        """Wait until services have just these backends (by name)."""

        def so() -> bool:
            found = {value["name"]: value for value in self.services()}
            return all(
                name in found and not found[name].get("error") and backends_of(found[name]) == set(wanted)
                for name, wanted in backends.items()
            )

        poll(what, so)

    def wait_for_pods(
        self, service: str, *pods: str, port: int = 8080, draining: tuple[str, ...] = ()
    ) -> None:
        """Wait until a dual-stack service has just these pods."""
        wanted = [f"{address}:{port}" for pod in pods for address in self._addresses[pod]]
        wanted += [f"{address}:{port}!" for pod in draining for address in self._addresses[pod]]
        self.wait_for(f"{service} has {pods}", **{service: wanted})


@contextmanager
def service_cluster(net: NodeNet, directory: Path, **settings: Any) -> Iterator[Cluster]:
    """A cluster whose daemon, not started yet, has these settings and manifests below ``directory``."""
    manifests = directory / "manifests"
    manifests.mkdir()
    with ExitStack() as stack:
        node = stack.enter_context(daemon(net, directory, manifests=str(manifests), **settings))
        yield Cluster(net, node, manifests, stack)


def backends_of(value: Json) -> set[str]:
    """``address:port`` of all backends, with "!" for those that drain."""
    return {
        f"{backend['address']}:{backend['port']}{'!' if backend.get('draining') else ''}"
        for address in value.get("addresses", ())
        for backend in address.get("backends", ())
    }


def service(name: str, *ips: str, **spec: Any) -> Json:
    """A Service; one port, http, unless said otherwise."""
    ports = spec.pop("ports", [{"name": "http", "port": 80, "targetPort": 8080}])
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"clusterIP": ips[0], "clusterIPs": list(ips), "ports": ports, **spec},
    }


def slice_of(
    name: str, *endpoints: tuple[str, str], port: int = 8080, family: int = 0, **conditions: bool
) -> Json:
    """An EndpointSlice with endpoints as (address, node), for TCP and UDP."""
    six = family == 6 or (bool(endpoints) and ":" in endpoints[0][0])
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-{6 if six else 4}",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv6" if six else "IPv4",
        "ports": [
            {"name": "http", "port": port, "protocol": "TCP"},
            {"name": "udp", "port": port, "protocol": "UDP"},
        ],
        "endpoints": [
            {"addresses": [address], "nodeName": node, "conditions": {"ready": True, **conditions}}
            for address, node in endpoints
        ],
    }


@contextmanager
def server(namespace: str, name: str, port: int) -> Iterator[None]:
    """A server that answers with its name and the client's address."""
    with serving(namespace, _SERVER, name, port):
        yield


def ask(
    namespace: str,
    host: str,
    port: int,
    *,
    protocol: str = "tcp",
    times: int = 1,
    group: Path | None = None,
    wait_s: float = STALL_S,
) -> list[str]:
    """New connections one after the other: "server client", or "refused", "timeout", or another error. Who expects
    no answer, or asks again, need not wait for long (:data:`SHORT_S`).
    """
    procs = str(group / "cgroup.procs") if group else ""
    arguments = [protocol, host, str(port), str(times), procs, str(wait_s)]
    return in_namespace(namespace, sys.executable, "-c", _CLIENT, *arguments).stdout.splitlines()


def names(answers: list[str]) -> set[str]:
    """The servers that answered."""
    return {answer.split()[0] for answer in answers}


class Held:
    """A connection (or a UDP socket with one source port) that stays."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self) -> str:
        """One question on it; "server client" or an error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()


@contextmanager
def held(namespace: str, host: str, port: int, protocol: str = "tcp") -> Iterator[Held]:
    """A connection that stays until the end."""
    command = [
        "nsenter",
        f"--net={path_of(namespace)}",
        sys.executable,
        "-c",
        _HELD,
        protocol,
        host,
        str(port),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Held(process)
        finally:
            process.kill()
