"""From settings to a source."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from msgspec import Struct

from samewire.errors import Invalid
from samewire.kube.access import Access
from samewire.kube.admission import NODE_PORTS, Network
from samewire.kube.api_source import ApiSource
from samewire.kube.client import KubeClient
from samewire.kube.kubeconfig import in_cluster, load_kubeconfig
from samewire.kube.manifests import ManifestSource
from samewire.kube.model import Pod
from samewire.kube.reflector import Selector
from samewire.kube.source import Source


class SourceConfig(Struct, frozen=True, kw_only=True):
    """Where Kubernetes objects come from; exactly one of ``kubeconfig``, ``in_cluster`` and ``manifests``.

    ``kubeconfig``: a file, or several with colons between them. ``context``: of it, "" = its current one.
    ``pods_of_node``: only the Pods of this node are wanted; "" = all. ``service_cidrs``: where the cluster IPs of
    Services in manifests come from, the main family first. ``node_ports``: where their node ports come from, inclusive.
    """

    kubeconfig: str = ""
    context: str = ""
    in_cluster: bool = False
    manifests: str = ""
    pods_of_node: str = ""
    service_cidrs: tuple[str, ...] = ("10.96.0.0/12",)
    node_ports: tuple[int, int] = (NODE_PORTS[0], NODE_PORTS[-1])


def open_source(config: SourceConfig) -> Source:
    """A source that is not started yet; call it in the event loop it will live in. Raises ``Invalid``."""
    chosen = [key for key in ("kubeconfig", "in_cluster", "manifests") if getattr(config, key)]
    if len(chosen) != 1:
        found = " and ".join(chosen) or "none"
        raise Invalid(
            "kubeconfig", f"exactly one of kubeconfig, in_cluster and manifests must be given, not {found}"
        )
    if config.manifests:
        networks = tuple(map(_network, config.service_cidrs))
        low, high = config.node_ports
        return ManifestSource(Path(config.manifests), networks, config.pods_of_node, range(low, high + 1))
    selectors: dict[type, Selector] = {}
    if config.pods_of_node:
        selectors[Pod] = Selector(fields=f"spec.nodeName={config.pods_of_node}")
    return ApiSource(KubeClient(_access(config)), selectors)


def _access(config: SourceConfig) -> Access:
    if config.in_cluster:
        return in_cluster()
    return load_kubeconfig(config.kubeconfig, config.context)


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise Invalid("service_cidrs", str(error)) from None
