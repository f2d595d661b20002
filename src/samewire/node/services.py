"""Services of Kubernetes on this node: source, controllers and health servers, put together.

Imported only when the configuration names a source: a node without one does not pay for it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, Final

from samewire.kube.model import EndpointSlice, Service
from samewire.kube.model import Node as KubeNode
from samewire.kube.open import SourceConfig, open_source
from samewire.kube.source import Batch, KindHealth, Source
from samewire.node.config import NodeConfig
from samewire.node.node import Node
from samewire.overlay.controller import FlannelNodes
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
        writer = direct if self._in_switch else relayed
        self.proxy: Final = ServiceProxy(self.source, writer, config.node_name or config.name, dsr=config.dsr)
        self._others: Final = (
            FlannelNodes(source, node.service, config.proxy_network, config.node_name or config.name)
            if config.proxy_network
            else None
        )
        relayed.on_lost = self.proxy.write_again
        self._relayed: Final = None if self._in_switch else relayed
        node.on_new_facts = self._on_new_facts
        self.health: Final = HealthServer(self.proxy.health, config.healthz_address)
        self.proxy.on_checks = lambda: self.health.update(self.proxy.checks)
        self.proxy.on_complete = (
            gc.freeze
        )  # what a start makes stays: no change waits for a look at all of it

    def _on_new_facts(self) -> None:
        self.proxy.look_again()
        if self._relayed is not None:
            self._relayed.look_again()

    def lost(self) -> tuple[KindHealth, ...]:
        """The kinds of Kubernetes objects that cannot be followed at this moment."""
        return tuple(health for health in self.source.health() if health.lost)

    async def start(self) -> None:
        """Begin to watch, to write and to answer. Raises Invalid."""
        await self.health.start()
        if self._in_switch:
            await self._relay.stop()  # one of an earlier life in user mode
        self.proxy.start()
        if self._others is not None:
            self._others.start()

    async def close(self) -> None:
        """Stop. Services and the ways to other nodes stay in the switch."""
        if self._others is not None:
            await self._others.close()
        await self.proxy.close()
        await self.health.close()
        await self._relay.close()


async def listen(config: NodeConfig) -> Source:
    """Open the source and begin to list what services are made of: that can be done while the node still comes up.

    Raises Invalid when the source cannot be opened.
    """
    source = open_source(_source_config(config))
    source.watch(Service, _leave_it)
    source.watch(EndpointSlice, _leave_it)
    source.watch(KubeNode, _leave_it)
    await source.start()
    return source


def _leave_it(batch: Batch[Any]) -> None:
    """The source keeps what is in it for handlers that come later."""


def _source_config(config: NodeConfig) -> SourceConfig:
    return SourceConfig(
        kubeconfig=config.kubeconfig,
        context=config.kube_context,
        in_cluster=config.in_cluster,
        manifests=config.manifests,
        pods_of_node=config.node_name or config.name,
        service_cidrs=config.service_cidrs,
        node_ports=config.node_port_range,
    )


def _addresses_of(node: Node) -> Callable[[], list[str]]:
    def addresses() -> list[str]:
        return [address_text(prefix.family, prefix.packed) for prefix in node.uplink.addresses]

    return addresses
