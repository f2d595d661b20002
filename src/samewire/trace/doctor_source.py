"""Health checks of where Services come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from samewire.trace.snapshot import Finding, Level, Snapshot

NOTHING_LOCAL: Final = "no endpoint of a Service counts as this node's"

_REMEDY: Final = (
    "Look at the API server's address and the credentials in the kubeconfig, and at what they may do: list and "
    "watch Services, EndpointSlices and Nodes (deploy/kubernetes/rbac.yaml). With manifests: at the directory."
)


def sources(snapshot: Snapshot) -> Iterator[Finding]:
    """Every kind of Kubernetes objects can be followed."""
    for lost in snapshot.lost_sources:
        what = (
            "changes do not arrive; what was known stays"
            if lost.synced
            else "not known at all, and no Service is written before all kinds are"
        )
        yield Finding(
            Level.WARNING if lost.synced else Level.ERROR,
            "kubernetes",
            f"{lost.kind}s",
            f"{what}: {lost.error}",
            _REMEDY,
        )


def network(snapshot: Snapshot) -> Iterator[Finding]:
    """The network that Services are for is there."""
    if snapshot.missing_network:
        yield Finding(
            Level.WARNING,
            "service",
            "proxy_network",
            f"there is no network {snapshot.missing_network} on this node: until there is, no change of a Service "
            "is written",
            "Expected before the node's first pod, or the takeover, makes it. If it stays, is `proxy_network` in the "
            "daemon's configuration the `name` in /etc/cni/net.d? `samewire get networks`.",
        )


def own_name(snapshot: Snapshot) -> Iterator[Finding]:
    """The cluster knows this node by the name that it has here."""
    if snapshot.unknown_name:
        yield Finding(
            Level.ERROR,
            "kubernetes",
            "node_name",
            f"the cluster has no Node {snapshot.unknown_name}: {NOTHING_LOCAL}",
            "Set `node_name` in the daemon's configuration to what `kubectl get nodes` calls this one.",
        )
