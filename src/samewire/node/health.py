"""What ``/v2/health`` says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import samewire
from samewire.node.node import Node
from samewire.trace.doctor_source import NOTHING_LOCAL

if TYPE_CHECKING:
    from samewire.kube.source import KindHealth, Source


def health(node: Node, source: Source | None) -> dict[str, Any]:
    """The node's state in a few lines. ``status`` is ``ok`` or ``degraded``.

    ``kubernetes``: by kind of objects, how well it is known; empty where none are read.
    """
    last = node.auditor.last
    kept = node.store.trouble()
    problems = [*([kept] if kept else []), *([node.trouble] if node.trouble else []), *last.failed]
    if not node.uplink.ifindex:
        problems.append(node.no_uplink)
    if not node.devices.tunnel_up:
        problems.append(node.no_tunnel)
    problems += [f"endpoint {endpoint_id}: {reason}" for endpoint_id, reason in node.auditor.degraded.items()]
    kinds = source.health() if source is not None else ()
    problems += [f"{kind.kind}s cannot be followed: {kind.error}" for kind in kinds if kind.lost]
    if unknown := unknown_name(node, source):
        problems.append(f"the cluster has no Node {unknown} (node_name): {NOTHING_LOCAL}")
    return {
        "status": "degraded" if problems else "ok",
        "name": node.config.name,
        "version": samewire.__version__,
        "uplink": {
            "name": node.uplink.name,
            "mtu": node.uplink.mtu,
            "addresses": [str(prefix) for prefix in node.uplink.addresses],
        },
        "ports": len(node.switch.ports),
        "problems": problems,
        "degraded_endpoints": node.auditor.degraded,
        "kubernetes": {kind.kind: _known(kind) for kind in kinds},
        "last_audit": {
            "at_unix_s": last.at_unix_s,
            "duration_s": last.duration_s,
            "differences": len(last.differences),
            "repaired": last.repaired,
        },
    }


def unknown_name(node: Node, source: Source | None) -> str:
    """This node's name in Kubernetes if it is nobody's: no endpoint is local then, and nothing else would tell."""
    from samewire.kube.model import Node as KubeNode

    if source is None or not node.config.balances:
        return ""
    name, nodes = node.config.kubernetes_name, source.objects(KubeNode)
    return "" if not nodes or ("", name) in nodes else name


def _known(kind: KindHealth) -> dict[str, Any]:
    return {
        "synced": kind.synced,
        "connected": kind.connected,
        "objects": kind.objects,
        "error": kind.error,
    }
