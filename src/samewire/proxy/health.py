"""Whether this proxy does its work: the state behind ``/healthz`` and ``/livez``. Pure; times come from the caller.

As kube-proxy has it: healthy while it starts, and as long as no change waits longer than `TIMEOUT_S` to be programmed.
A service that cannot be programmed does not count: it has its own error. Not fit for new traffic (``/healthz`` only) is
a node that is being deleted.
"""

from __future__ import annotations

from samewire.kube.model import Node

TIMEOUT_S = 60.0
TO_BE_DELETED_TAINT = "ToBeDeletedByClusterAutoscaler"


class ProxyHealth:
    """Times are those of one clock, in seconds."""

    def __init__(self) -> None:
        self.node_eligible = True
        self.updated_s: float | None = None
        self._oldest_pending_s: float | None = None

    def queued(self, now_s: float) -> None:
        """A change has arrived."""
        if self._oldest_pending_s is None:
            self._oldest_pending_s = now_s

    def waiting(self, since_s: float) -> None:
        """Some of what had arrived is programmed; the oldest of the rest is there since then."""
        if self._oldest_pending_s is not None:
            self._oldest_pending_s = max(self._oldest_pending_s, since_s)

    def updated(self, now_s: float) -> None:
        """All changes that had arrived are programmed."""
        self._oldest_pending_s = None
        self.updated_s = now_s

    def healthy(self, now_s: float) -> bool:
        """Whether no change has waited for too long."""
        return self._oldest_pending_s is None or now_s - self._oldest_pending_s < TIMEOUT_S

    def set_node(self, node: Node | None) -> None:
        """Take over what is known of this node's object; None: it has been deleted."""
        self.node_eligible = (
            node is not None
            and not node.metadata.deletion_timestamp
            and all(taint.key != TO_BE_DELETED_TAINT for taint in node.spec.taints)
        )
