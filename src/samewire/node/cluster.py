"""What the daemon reads of a cluster, and what it keeps of the cluster's other nodes.

Imported only when the configuration names a source: a node without one does not pay for it.
"""

from __future__ import annotations

from typing import Any

from samewire.kube.model import EndpointSlice, Service
from samewire.kube.model import Node as KubeNode
from samewire.kube.open import SourceConfig, open_source
from samewire.kube.source import Batch, Source
from samewire.node.config import NodeConfig


async def listen(config: NodeConfig) -> Source:
    """Open the source and begin to list what is wanted of it: that can be done while the node still comes up.

    Raises Invalid when the source cannot be opened.
    """
    source = open_source(_source_config(config))
    if config.balances:
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
        pods_of_node=config.kubernetes_name,
        service_cidrs=config.service_cidrs,
        node_ports=config.node_port_range,
    )
