"""Services of Kubernetes on this node: controller and health servers, put together.

Imported only where this node balances services: others do not pay for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable
from typing import Final

from samewire.errors import Unavailable
from samewire.hcn.loadbalancers import LoadBalancer
from samewire.kube.source import Source
from samewire.node.node import Node
from samewire.proxy.controller import ServiceProxy
from samewire.proxy.healthserver import HealthServer
from samewire.proxy.relay import Relay
from samewire.proxy.userspace import RelayWriter
from samewire.proxy.writer import HnsWriter
from samewire.vfp.address import address_text


class Services:
    """Everything about services on one node, from a source that listens already. Make it in the event loop; `start`,
    and `close` before the node; the source is closed by who opened it, before.
    """

    def __init__(self, node: Node, source: Source) -> None:
        config = node.config
        self.node: Final = node
        self.source: Final = source
        addresses = _addresses_of(node)
        direct = HnsWriter(node.service, config.proxy_network, config.node_port_addresses, addresses)
        self._relay: Final = Relay(config.relay_socket)
        self._in_switch: Final = config.proxy_mode == "kernel"
        relayed = RelayWriter(direct, self._relay, addresses)
        self._writer: Final = direct if self._in_switch else relayed
        self.proxy: Final = ServiceProxy(self.source, self._writer, config.kubernetes_name, dsr=config.dsr)
        relayed.on_lost = self.proxy.write_again
        self._relayed: Final = None if self._in_switch else relayed
        node.on_new_facts = self._on_new_facts
        at = direct.node_port_addresses
        self.health: Final = HealthServer(self.proxy.health, config.healthz_address, at)
        self.proxy.on_checks = lambda: self.health.update(self.proxy.checks)
        self.proxy.on_complete = self._on_complete
        self._stopping: asyncio.Task[None] | None = None

    def _on_new_facts(self) -> None:
        self.proxy.look_again()
        if self._relayed is not None:
            self._relayed.look_again()

    def _on_complete(self) -> None:
        # What a start makes stays: no change waits for a look at all of it.
        gc.freeze()
        if self._in_switch:  # a relay of an earlier life in user mode: nobody is sent to it any more
            self._stopping = asyncio.create_task(self._relay.stop())

    def load_balancer(self, load_balancer_id: str) -> LoadBalancer | None:
        """A load balancer as the services want it: in user mode with their backends, not the relay."""
        return self._writer.get(load_balancer_id)

    async def start(self) -> None:
        """Begin to watch, to write and to answer. Raises Invalid."""
        if self._relayed is not None:
            with contextlib.suppress(Unavailable):  # it hangs, or has just ended: it carries nothing
                await self._relayed.recall()
        await self.health.start()
        self.proxy.start()

    async def close(self) -> None:
        """Stop. Services stay in the switch."""
        await self.proxy.close()
        await self.health.close()
        if self._stopping is not None:
            await self._stopping
        await self._relay.close()


def _addresses_of(node: Node) -> Callable[[], list[str]]:
    def addresses() -> list[str]:
        return [address_text(prefix.family, prefix.packed) for prefix in node.uplink.addresses]

    return addresses
