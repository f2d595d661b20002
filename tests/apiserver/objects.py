"""Objects as an API server has them, and a handler that writes down what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Generic

from samewire.kube.model import EndpointSlice, Key, Namespace, Node, ObjectT, Pod, Service
from samewire.kube.source import Batch, Change
from tests.apiserver.fake_store import Json

BOUND_S = 20.0


def service(namespace: str, name: str, port: int = 80, **spec: Any) -> Json:
    """A Service."""
    ports = [{"name": "http", "port": port, "protocol": "TCP", "targetPort": 8080}]
    return {
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
        "spec": {"ports": ports, **spec},
    }  # fmt: skip


def endpoint_slice(namespace: str, name: str, *addresses: str, **more: Any) -> Json:
    """An IPv4 EndpointSlice of the Service ``name``, by hand of nobody."""
    labels = {"kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": "samewire-test"}
    return {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": namespace, "name": f"{name}-abc", "labels": labels},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}} for address in addresses],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        **more,
    }  # fmt: skip


def plain(kind: str, name: str, namespace: str = "", **more: Any) -> Json:
    """A Node, Namespace or Pod."""
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **more}


RESOURCE_OF = {
    "Service": "services", "EndpointSlice": "endpointslices", "Node": "nodes", "Namespace": "namespaces", "Pod": "pods",
}  # fmt: skip
KIND_OF: dict[str, type] = {
    "Service": Service, "EndpointSlice": EndpointSlice, "Node": Node, "Namespace": Namespace, "Pod": Pod,
}  # fmt: skip


class Recorder(Generic[ObjectT]):
    """A handler that keeps its batches and the cache they add up to; it checks each batch against that."""

    def __init__(self) -> None:
        self.batches: list[Batch[ObjectT]] = []
        self.cache: dict[Key, ObjectT] = {}

    def __call__(self, batch: Batch[ObjectT]) -> None:
        assert batch.snapshot == (not self.batches), "the snapshot comes first, and once"
        self.batches.append(batch)
        for change in batch.changes:
            assert self.cache.get(change.key) == change.old, "a change starts from what was said before"
            assert change.old != change.new, "what did not change is not reported"
            if change.new is None:
                del self.cache[change.key]
            else:
                assert change.new.key == change.key
                self.cache[change.key] = change.new

    @property
    def changes(self) -> list[Change[ObjectT]]:
        """All changes after the snapshot."""
        return [change for batch in self.batches[1:] for change in batch.changes]


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait, within a bound, for something to become true."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + BOUND_S
    while not condition():
        assert loop.time() < end_s, f"did not happen: {what or condition}"
        await asyncio.sleep(0.005)
