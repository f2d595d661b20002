"""What the cluster says of a service, and nobody here has ever been able to read."""

from __future__ import annotations

from collections.abc import Iterable

from samewire.kube.model import EndpointSlice, Key, Service
from samewire.kube.source import KindHealth
from samewire.proxy.table import ServiceTable


def may_be_unread(key: Key, table: ServiceTable, kinds: Iterable[KindHealth]) -> bool:
    """Whether what a service lacks, itself or all of its endpoints, may be among what has never been read."""
    if key in table.services and any(piece.endpoints for piece in table.slices(key)):
        return False
    return any(_may_hide(kind, key) for kind in kinds)


def _may_hide(kind: KindHealth, key: Key) -> bool:
    """Slices are their services' by a label, and of the same namespace."""
    namespace, name = key
    if kind.kind == EndpointSlice.__name__:
        return any(found in ("", namespace) for found, _ in kind.unread)
    if kind.kind == Service.__name__:
        return any(found in ("", namespace) and called in ("", name) for found, called in kind.unread)
    return False
