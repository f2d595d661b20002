"""An API server with nothing but Services, for a node's daemon to list and to watch: a process of its own.

``python -m benchmarks.api_server PORT SERVICES ENDPOINTS ADDRESS FIRST-PORT PORTS``: SERVICES Services of one port with
ENDPOINTS endpoints each, and last of all ``zz-probe``, whose PORTS ports from FIRST-PORT on lead to ADDRESS for TCP and
UDP. It reads commands, one a line, and answers each when its events are written:

* ``flip N``: Service N loses an endpoint, or gets it back;
* ``burst RATE SECONDS``: that many flips a second, over all Services in turn; answers how many it were.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import sys
from typing import Any

import msgspec
from aiohttp import web

Json = dict[str, Any]

FIRST_VIP = ipaddress.IPv4Address("10.100.0.0")
PROBE_VIP = "10.99.0.1"
PROBE = "zz-probe"  # last by name, too: in that order a start takes Services
FIRST_BACKEND = ipaddress.IPv4Address("10.244.128.1")
BACKENDS = 32_000
PAGE = 500
NAMESPACE = "bench"

_encode = msgspec.json.Encoder().encode

KINDS = {
    "services": "Service", "endpointslices": "EndpointSlice", "nodes": "Node", "namespaces": "Namespace", "pods": "Pod",
}  # fmt: skip


class Cluster:
    """The objects, by resource, and who watches them."""

    def __init__(self, services: int, endpoints: int, address: str, ports: range) -> None:
        self.version = 1
        self.endpoints = endpoints
        self.flipped: set[int] = set()
        self.watches: dict[str, set[asyncio.Queue[bytes]]] = {"services": set(), "endpointslices": set()}
        self.objects: dict[str, list[Json]] = {
            "services": [*(_service(n) for n in range(services)), _probe(ports)],
            "endpointslices": [
                *(self.slice(n) for n in range(services)),
                _slice(PROBE, [address], _ports(ports), 1),
            ],
            "nodes": [],
            "pods": [],
            "namespaces": [],
        }

    def slice(self, number: int) -> Json:
        """The slice of one Service as it is now."""
        count = self.endpoints - (number in self.flipped)
        first = number * self.endpoints
        found = [str(FIRST_BACKEND + (first + n) % BACKENDS) for n in range(count)]
        return _slice(f"svc-{number}", found, [{"name": "", "protocol": "TCP", "port": 8080}], self.version)

    def flip(self, number: int) -> None:
        """Take an endpoint away, or give it back, and tell the watches."""
        self.version += 1
        self.flipped ^= {number}
        item = self.slice(number)
        self.objects["endpointslices"][number] = item
        line = _encode({"type": "MODIFIED", "object": item}) + b"\n"
        for queue in self.watches["endpointslices"]:
            queue.put_nowait(line)


def _metadata(name: str, version: int, **more: object) -> Json:
    return {"name": name, "namespace": NAMESPACE, "uid": name, "resourceVersion": str(version), **more}


def _service(number: int) -> Json:
    vip = str(FIRST_VIP + number)
    spec = {"type": "ClusterIP", "clusterIP": vip, "clusterIPs": [vip], "ipFamilies": ["IPv4"]}
    ports = [{"port": 80, "protocol": "TCP", "targetPort": 8080}]
    return {"metadata": _metadata(f"svc-{number}", 1), "spec": {**spec, "ports": ports}}


def _probe(ports: range) -> Json:
    spec = {"type": "ClusterIP", "clusterIP": PROBE_VIP, "clusterIPs": [PROBE_VIP], "ipFamilies": ["IPv4"]}
    return {"metadata": _metadata(PROBE, 1), "spec": {**spec, "ports": _ports(ports)}}


def _ports(ports: range) -> list[Json]:
    return [
        {"name": f"{protocol.lower()}-{port}", "protocol": protocol, "port": port}
        for port in ports
        for protocol in ("TCP", "UDP")
    ]


def _slice(service: str, addresses: list[str], ports: list[Json], version: int) -> Json:
    labels = {"kubernetes.io/service-name": service}
    ready = {"ready": True, "serving": True, "terminating": False}
    endpoints = [{"addresses": [one], "conditions": ready} for one in addresses]
    return {
        "metadata": _metadata(f"{service}-1", version, labels=labels),
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": ports,
    }


def application(cluster: Cluster) -> web.Application:
    """The five resources that a node's daemon asks for."""

    async def answer(request: web.Request) -> web.StreamResponse:
        resource = request.match_info["resource"]
        if request.query.get("watch"):
            return await _watch(cluster, request, resource)
        items = cluster.objects[resource]
        start = int(request.query.get("continue") or 0)
        limit = int(request.query.get("limit") or PAGE)
        metadata: Json = {"resourceVersion": str(cluster.version)}
        if start + limit < len(items):
            metadata["continue"] = str(start + limit)
        body = {"kind": f"{KINDS[resource]}List", "metadata": metadata, "items": items[start : start + limit]}
        return web.Response(body=_encode(body), content_type="application/json")

    app = web.Application()
    app.router.add_get("/api/v1/{resource}", answer)
    app.router.add_get("/apis/discovery.k8s.io/v1/{resource}", answer)
    return app


async def _watch(cluster: Cluster, request: web.Request, resource: str) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    cluster.watches.setdefault(resource, set()).add(queue)
    try:
        while True:
            lines = [await queue.get()]
            while not queue.empty():
                lines.append(queue.get_nowait())
            await response.write(b"".join(lines))
    finally:
        cluster.watches[resource].discard(queue)


async def _burst(cluster: Cluster, rate: int, seconds: float) -> int:
    """Flips at an even pace, in portions of a hundredth of a second."""
    loop = asyncio.get_running_loop()
    began, services, done = loop.time(), len(cluster.objects["endpointslices"]) - 1, 0
    for number in itertools.cycle(range(services)):
        if done >= rate * seconds:
            return done
        cluster.flip(number)
        done += 1
        ahead_s = began + done / rate - loop.time()
        if ahead_s > 0.01:
            await asyncio.sleep(ahead_s)
    return done


async def main(arguments: list[str]) -> None:
    """Serve until stdin ends."""
    port, services, endpoints, address, first_port, ports = arguments
    last = int(first_port) + int(ports)
    cluster = Cluster(int(services), int(endpoints), address, range(int(first_port), last))
    runner = web.AppRunner(application(cluster), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(port)).start()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    print("ready", flush=True)
    while words := (await reader.readline()).decode().split():
        if words[0] == "flip":
            cluster.flip(int(words[1]))
            print("done", flush=True)
        else:
            print(await _burst(cluster, int(words[1]), float(words[2])), flush=True)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
