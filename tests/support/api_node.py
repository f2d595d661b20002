"""A node whose Services come from an API server over HTTP, with backends of which there are as many as one likes."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from tests.apiserver.fake_server import FakeServer
from tests.support.crowd import FAR6, PODS6, answering, endpoint, ipv4_of, ipv6_of
from tests.support.node import (
    NODE_IP,
    NODE_IP6,
    DaemonProcess,
    Json,
    NodeNet,
    daemon,
    ip,
    node_net,
    overlay,
    poll,
)
from tests.support.service_cluster import service

T = TypeVar("T")

PORT: Final = 8080
VIP: Final = "10.96.0.10"
NODE_PORT: Final = 30080
PORTS: Final = [
    {"name": "http", "port": 80, "protocol": "TCP", "nodePort": NODE_PORT},
    {"name": "udp", "port": 80, "protocol": "UDP", "nodePort": NODE_PORT},
]
SLICE_PORTS: Final = [{"name": port["name"], "port": PORT, "protocol": port["protocol"]} for port in PORTS]
SUBNET, SUBNET6 = "10.244.0.0/24", f"{PODS6}/64"
TWINS: Final = {VIP: "fd00:96::10", NODE_IP: NODE_IP6, "127.0.0.1": "::1"}
"""What the services and the node have in IPv6, by what they have in IPv4."""


def far(number: int) -> str:
    """An address outside the node; all of them are answered."""
    return f"10.99.{number // 250}.{number % 250 + 1}"


class Api:
    """An API server in a thread of its own, inside the node's namespace: at 127.0.0.1 there."""

    def __init__(self, net: NodeNet) -> None:
        self.server = FakeServer()
        self._net = net
        self._port = 0
        self._stack: AsyncExitStack | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._net.inside():
            self._loop.run_forever()

    def call(self, function: Callable[[], T]) -> T:
        """Run a function where the server runs."""

        async def run() -> T:
            return function()

        return self._wait(run())

    def up(self) -> None:
        """Listen, always at the same port."""
        self._wait(self._open())

    def down(self) -> None:
        """Close the port and all connections."""
        self._wait(self._close())

    def close(self) -> None:
        """The end."""
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def put(self, resource: str, *items: Json) -> None:
        """Create or replace objects, one after the other."""
        for item in items:
            self.call(partial(self.server.store.put, resource, item))

    def delete(self, resource: str, *names: str) -> None:
        """Delete objects."""
        for name in names:
            self.call(partial(self.server.store.delete, resource, ("default", name)))

    def names(self, resource: str) -> list[str]:
        """The names of all objects."""
        return self.call(lambda: [key[1] for key in self.server.store.objects.get(resource, {})])

    def asked(self, verb: str, resource: str) -> int:
        """How many requests there have been."""
        return self.call(
            lambda: sum(seen.verb == verb and seen.resource == resource for seen in self.server.seen)
        )

    async def _open(self) -> None:
        self._stack = AsyncExitStack()
        await self._stack.enter_async_context(self.server.serve(port=self._port))
        self._port = int(self.server.url.rpartition(":")[2])

    async def _close(self) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            await stack.aclose()

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)


class ApiNode:
    """A node with its API server, a network, and far addresses that answer."""

    def __init__(self, net: NodeNet, api: Api, node: DaemonProcess, stack: ExitStack) -> None:
        self.net = net
        self.api = api
        self.node = node
        self._stack = stack
        self._markers = 0
        self._pods = itertools.count(2)
        for prefix in ("10.99.0.0/16", f"{FAR6}/64"):
            ip("route", "add", "local", prefix, "dev", "lo", netns_name=net.router)
        stack.enter_context(answering(net.router, "far", PORT))
        node.start()
        node.request("POST", "/v2/networks", overlay("pods", SUBNET, subnet6=SUBNET6))

    def pod(self, name: str, *, server: str = "", address: str = "") -> tuple[str, str]:
        """A pod; namespace and address. ``server``: the name under which it answers."""
        namespace = self.net.pod()
        wanted = address or f"10.244.0.{next(self._pods)}"
        addresses = [f"{wanted}/24", f"{ipv6_of(wanted)}/64"]
        found = self.node.add(name, namespace, self._conf(addresses))["ips"]
        assert [item["address"] for item in found] == addresses
        if server:
            self._stack.enter_context(answering(namespace, server, PORT))
        return namespace, wanted

    def remove(self, name: str, namespace: str) -> None:
        """Take a pod off the network."""
        self.node.delete(name, namespace, self._conf([]))

    def _conf(self, addresses: list[str]) -> Json:
        made = self.node.conf("pods", SUBNET, SUBNET6)
        nat = {"Type": "OutBoundNAT", "Settings": {"Exceptions": [SUBNET6]}}
        made["policies"].append({"name": "EndpointPolicy", "value": nat})
        return {**made, "capabilities": {"ips": True}, "runtimeConfig": {"ips": addresses}}

    def service(self, name: str = "web", vip: str = VIP, **spec: Any) -> None:
        """Put a Service, of both families if its address has a twin; ``annotations``, or fields of its spec."""
        annotations = spec.pop("annotations", {})
        vips = [vip, TWINS[vip]] if vip in TWINS else [vip]
        made = service(name, *vips, **{"ports": PORTS, "type": "NodePort", **spec})
        made["metadata"]["annotations"] = annotations
        self.api.put("services", made)

    def endpoints(self, piece: str, *endpoints: Json, of: str = "web") -> None:
        """Put one slice of a service in each family."""
        self.api.put("endpointslices", *slices_of(piece, endpoints, of))

    def remove_endpoints(self, piece: str, of: str = "web") -> None:
        """Delete them."""
        self.api.delete("endpointslices", *(made["metadata"]["name"] for made in slices_of(piece, (), of)))

    def wait_for(self, *backends: str, draining: Iterable[str] = (), of: str = "web") -> None:
        """Wait until a service has just these backends, all of its addresses and protocols."""
        ready = {f"{address}:{PORT}" for address in backends}
        wanted = ready | {f"{address}:{PORT}!" for address in draining}

        def so() -> bool:
            found = [one for one in self.node.request("GET", "/v2/services") if one["name"] == of]
            return any(
                not one.get("error")
                and len(one.get("addresses", ())) > 0
                and all(_backends(address) == wanted for address in one["addresses"])
                for one in found
            )

        poll(f"{of} has {len(wanted)} backends", so)

    def settle(self) -> None:
        """Wait until everything that has been put is in the switch: a service that comes after it is."""
        self._markers += 1
        name = f"marker{self._markers}"
        self.service(name, f"10.97.{self._markers // 250}.{self._markers % 250 + 1}", type="ClusterIP")
        self.endpoints("all", endpoint(far(0)), of=name)  # which comes by another watch than the service
        self.wait_for(far(0), of=name)
        self.api.delete("services", name)
        self.remove_endpoints("all", name)
        poll("the marker is gone", lambda: not self._has(name))

    def _has(self, name: str) -> bool:
        return any(one["name"] == name for one in self.node.request("GET", "/v2/services"))

    def connected(self) -> bool:
        """Whether the daemon watches all of its kinds."""
        text: str = self.node.request("GET", "/v2/metrics")
        values = re.findall(r"^samewire_kubernetes_connected{.*} (\S+)$", text, re.MULTILINE)
        assert values
        return all(float(value) for value in values)

    def clear(self) -> None:
        """Delete all Services, and wait until the switch has none."""
        self.api.delete("services", *self.api.names("services"))
        self.api.delete("endpointslices", *self.api.names("endpointslices"))
        poll("no services", lambda: not self.node.table("sw_services"))

    def tables(self) -> dict[str, Any]:
        """What services have in the switch."""
        return {name: self.node.table(name) for name in ("sw_services", "sw_backend_sets", "sw_backends")}


def _backends(address: Json) -> set[str]:
    return {
        f"{ipv4_of(one['address'])}:{one['port']}{'!' if one.get('draining') else ''}"
        for one in address.get("backends", ())
    }


def slices_of(piece: str, endpoints: Iterable[Json], of: str = "web") -> list[Json]:
    """An EndpointSlice of a service in each family."""
    four = list(endpoints)
    six = [{**one, "addresses": list(map(ipv6_of, one["addresses"]))} for one in four]
    return [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{of}-{piece}-{family.lower()}",
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": of},
            },
            "addressType": family,
            "ports": SLICE_PORTS,
            "endpoints": found,
        }
        for family, found in (("IPv4", four), ("IPv6", six))
    ]


@contextmanager
def api_node(directory: Path, group: Path) -> Iterator[ApiNode]:
    """Everything, up; gone afterwards."""
    with ExitStack() as stack:
        net = stack.enter_context(node_net())
        api = Api(net)
        stack.callback(api.close)
        api.up()
        kubeconfig = directory / "kubeconfig"
        kubeconfig.write_text(json.dumps(_kubeconfig(api.server.url)))
        settings = {"kubeconfig": str(kubeconfig), "host_cgroup": str(group)}
        node = stack.enter_context(daemon(net, directory, **settings))
        yield ApiNode(net, api, node, stack)


def _kubeconfig(url: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
