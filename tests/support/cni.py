"""A CNI backend in memory, and calls of the plugin, for tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from samewire.cni.backend import Address, Attached, AttachRequest, CheckRequest, NetworkInfo, check_failed
from samewire.cni.result import Dns
from samewire.cni.verbs import CniPlugin, Reply
from samewire.errors import Conflict, NotFound

OVERLAY = NetworkInfo(
    subnets=("10.1.0.0/24", "fd00:1::/64"),
    gateways=("10.1.0.1", "fd00:1::1"),
    mtu=1450,
    dns=Dns(nameservers=("10.96.0.10",), domain="net.example"),
    type="Overlay",
)


class FakeBackend:
    """Attachments in a dictionary. ``fail`` holds the errors that methods raise once, by name.

    ``dead`` are attachments that another ADD replaces. ``gate``, where set, makes attach wait for it, when it has
    put its key into ``arrivals``; ``most_active`` and ``overlaps`` say who ran at once.
    """

    def __init__(self) -> None:
        self.networks: dict[str, NetworkInfo] = {"net": OVERLAY}
        self.attachments: dict[tuple[str, str], AttachRequest] = {}
        self.calls: list[str] = []
        self.created: list[dict[str, Any]] = []
        self.checked: list[CheckRequest] = []
        self.dead: set[tuple[str, str]] = set()
        self.fail: dict[str, Exception] = {}
        self.gate: asyncio.Event | None = None
        self.arrivals: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.active: list[tuple[str, str]] = []
        self.most_active = 0
        self.overlaps = 0

    async def ensure_network(self, name: str, network: dict[str, Any] | None) -> NetworkInfo:
        self._step("ensure_network")
        if name not in self.networks:
            if network is None:
                raise NotFound("network", name)
            self.created.append(network)
            self.networks[name] = OVERLAY
        return self.networks[name]

    async def attach(self, request: AttachRequest) -> Attached:
        key = (request.container_id, request.interface_name)
        self.overlaps += key in self.active
        self.active.append(key)
        self.most_active = max(self.most_active, len(self.active))
        try:
            self.arrivals.put_nowait(key)
            if self.gate is not None:
                await self.gate.wait()
            await asyncio.sleep(0)
            self._step("attach")
            self._refuse(key)
            self.attachments[key] = request
        finally:
            self.active.remove(key)
        return self._made(request)

    def _refuse(self, key: tuple[str, str]) -> None:
        if key in self.attachments:
            raise Conflict(f"{key[0]} has an interface {key[1]} already")

    async def refuse_attached(self, container_id: str, interface_name: str, netns_path: str) -> bool:
        self._step("refuse_attached")
        self._refuse((container_id, interface_name))
        return (container_id, interface_name) in self.dead

    def _made(self, request: AttachRequest) -> Attached:
        return Attached(
            host_interface="sw0123456789a",
            host_mac="0e:00:00:00:00:01",
            mac=request.mac or "0e:2a:0a:01:00:02",
            mtu=request.mtu or 1450,
            addresses=request.addresses or self._own_addresses(request.network),
            routes=request.routes,
        )

    async def find(
        self, container_id: str, interface_name: str, netns_path: str
    ) -> tuple[str, Attached] | None:
        self._step("find")
        found = self.attachments.get((container_id, interface_name))
        if found is None or netns_path not in ("", found.netns_path):
            return None
        return found.network, self._made(found)

    async def namespace_path(self, namespace_id: str) -> str:
        self._step("namespace_path")
        return f"/run/netns/{namespace_id[:8]}"

    async def detach(self, container_id: str, interface_name: str) -> None:
        self.overlaps += (container_id, interface_name) in self.active
        self._step("detach")
        self.attachments.pop((container_id, interface_name), None)
        self.dead.discard((container_id, interface_name))

    async def check(self, request: CheckRequest) -> None:
        self._step("check")
        self.checked.append(request)
        if (request.container_id, request.interface_name) not in self.attachments:
            raise check_failed("no such interface")

    async def list_attachments(self, network: str) -> list[tuple[str, str]]:
        self._step("list_attachments")
        return [key for key, request in self.attachments.items() if request.network == network]

    async def status(self) -> None:
        self._step("status")

    def _own_addresses(self, network: str) -> tuple[Address, ...]:
        return (Address("10.1.0.77", 24, "10.1.0.1"),) if self.networks[network].subnets else ()

    def _step(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fail:
            raise self.fail.pop(name)


def variables(verb: str, container: str = "pod1", interface: str = "eth0", **more: str) -> dict[str, str]:
    """The environment of a call."""
    found = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_IFNAME": interface}
    found["CNI_NETNS"] = f"/run/netns/{container}"
    return {**found, "CNI_PATH": "/usr/lib/cni", **more}


def valid_attachments(*attachments: dict[str, str]) -> dict[str, Any]:
    """What GC is told of those to keep."""
    return {"cni.dev/valid-attachments": list(attachments)}


class Runtime:
    """Calls a plugin as a runtime does, with one configuration."""

    def __init__(self, plugin: CniPlugin, conf: Mapping[str, Any]) -> None:
        self.plugin = plugin
        self.conf = dict(conf)

    async def reply(self, verb: str, container: str = "pod1", interface: str = "eth0", **more: Any) -> Reply:
        """Call with keys added to the configuration (``env`` = variables to add)."""
        env = more.pop("env", {})
        stdin = json.dumps({**self.conf, **more}).encode()
        return await self.plugin.handle(variables(verb, container, interface, **env), stdin)

    async def ok(self, verb: str, container: str = "pod1", interface: str = "eth0", **more: Any) -> Any:
        """Call, expect success; returns the decoded output, None for none."""
        reply = await self.reply(verb, container, interface, **more)
        assert reply.status == 0, reply.output
        return json.loads(reply.output) if reply.output else None

    async def error(self, verb: str, container: str = "pod1", interface: str = "eth0", **more: Any) -> Any:
        """Call, expect an error; returns it."""
        reply = await self.reply(verb, container, interface, **more)
        assert reply.status == 1, reply.output
        found = json.loads(reply.output)
        assert set(found) >= {"cniVersion", "code", "msg"}
        assert found["code"] == reply.code != 0
        return found
