"""The source whose objects come from a directory of manifests: no API server, the same interface.

Services get their cluster IPs, node ports and EndpointSlices here, from what else is in the directory: Pods with
``status.podIPs``, a Ready condition and ``spec.nodeName`` (whoever runs the pods writes them there, see
`write_objects`), and Nodes for their zones. EndpointSlices that are given count as
well, and so do Endpoints of Services without a selector.

The directory is looked at every so often: a look at a few files costs less than a library that waits for the kernel's
word about them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from samewire.kube.admission import NODE_PORTS, Network, admit
from samewire.kube.feed import Feed
from samewire.kube.manifest_files import ManifestDirectory
from samewire.kube.mirror import Endpoints, mirror
from samewire.kube.model import EndpointSlice, Key, Namespace, Node, Object, ObjectT, Pod, Service
from samewire.kube.slices import PodIndex, derive_slices
from samewire.kube.source import Batch, Counts, KindHealth
from samewire.kube.wire import API_VERSIONS

log = structlog.get_logger(__name__)

LOOK_INTERVAL_S: Final = 0.5

_ANY: Final = ("", "")

# What others refer to goes first: a Service is complete when its handlers hear of it.
_ORDER: Final = (Namespace, Node, Pod, EndpointSlice, Service)


class ManifestSource:
    """A `Source` on a directory. ``pods_of_node``: only the Pods of this node are handed over, "" = all."""

    def __init__(
        self,
        directory: Path,
        networks: Sequence[Network],
        pods_of_node: str = "",
        node_ports: range = NODE_PORTS,
        interval_s: float = LOOK_INTERVAL_S,
    ) -> None:
        self._directory = directory
        self._files = ManifestDirectory(directory)
        self._networks = tuple(networks)
        self._pods_of_node = pods_of_node
        self._node_ports = node_ports
        self._interval_s = interval_s
        clock = asyncio.get_running_loop().time
        self._feeds: dict[type, Feed[Any]] = {kind: Feed(kind, clock) for kind in _ORDER}
        self._watched: set[type] = set()
        self._task: asyncio.Task[None] | None = None

    def watch(self, kind: type[ObjectT], handler: Callable[[Batch[ObjectT]], None]) -> None:
        """See `Source.watch`."""
        self._watched.add(kind)
        self._feeds[kind].add_handler(handler)

    def objects(self, kind: type[ObjectT]) -> Mapping[Key, ObjectT]:
        """See `Source.objects`."""
        return self._feeds[kind].objects

    def health(self) -> tuple[KindHealth, ...]:
        """See `Source.health`."""
        return tuple(feed.health for kind, feed in self._feeds.items() if kind in self._watched)

    def counts(self) -> Mapping[str, Counts]:
        """See `Source.counts`."""
        return {kind.__name__: feed.counts for kind, feed in self._feeds.items() if kind in self._watched}

    async def start(self) -> None:
        """See `Source.start`."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="kube-manifests")

    async def wait_synced(self) -> None:
        """See `Source.wait_synced`."""
        for feed in self._feeds.values():
            await feed.synced.wait()

    async def close(self) -> None:
        """See `Source.close`."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                self.look()
            except OSError as error:
                self._lost(f"{self._directory}: {error.strerror or error}")
            except Exception as error:
                # A fault of ours must not freeze the source for good; the next change of a file may mend it.
                log.exception("manifests not read", directory=str(self._directory))
                self._lost(repr(error))
            await asyncio.sleep(self._interval_s)

    def look(self) -> None:
        """Take over what has changed in the directory now. Raises OSError if it cannot be read."""
        changed = self._files.scan()
        for feed in self._feeds.values():
            feed.contact(connected=True)
            feed.unread = {_ANY} if self._files.unread else set()
        if changed or not self._feeds[Service].synced.is_set():
            self._publish()

    def _publish(self) -> None:
        received_s = asyncio.get_running_loop().time()
        tables = self._tables()
        for kind in _ORDER:
            feed = self._feeds[kind]
            feed.counts.lists += 1
            feed.replace(tables[kind], received_s)

    def _tables(self) -> dict[type, dict[Key, Any]]:
        """All objects by kind, with everything that is derived."""
        contents = self._files.contents()
        tables: dict[type, dict[Key, Any]] = {kind: {} for kind in _ORDER}
        endpoints: dict[Key, Endpoints] = {}
        for content in contents:
            for item in content.others:
                if isinstance(item, Endpoints):
                    endpoints[item.key] = item
                else:
                    _add(tables[type(item)], item)
        services = {item.key: item for content in contents for item in content.services}
        admitted, refused = admit(services.values(), self._networks, self._node_ports)
        for key, reason in refused:
            self._feeds[Service].unreadable(key, reason)
        tables[Service] = {key: item.service for key, item in admitted.items()}
        pods = PodIndex(tables[Pod].values())
        nodes = {node.metadata.name: node for node in tables[Node].values()}
        for wanted in admitted.values():
            given = endpoints.get(wanted.key) if not wanted.spec.selector else None
            for item in mirror(given) if given is not None else derive_slices(wanted, pods, nodes):
                tables[EndpointSlice].setdefault(item.key, item)
        if self._pods_of_node:
            mine = tables[Pod].items()
            tables[Pod] = {key: pod for key, pod in mine if pod.spec.node_name == self._pods_of_node}
        return tables

    def _lost(self, reason: str) -> None:
        for feed in self._feeds.values():
            feed.lost(reason)


def write_objects(path: Path, objects: Iterable[Object]) -> None:
    """Write objects to a manifest file (a List in JSON) in one step, for a `ManifestSource` to read.

    This is how whoever runs the pods tells of them: Pods with name, labels, ``spec.node_name``, declared ports,
    ``status.pod_ips``, a Ready condition, and a deletion timestamp while they go away.
    """
    items = [
        {"apiVersion": API_VERSIONS[type(item)], "kind": type(item).__name__, **msgspec.to_builtins(item)}
        for item in objects
    ]
    text = msgspec.json.encode({"apiVersion": "v1", "kind": "List", "items": items})
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(text)
    draft.replace(path)


def _add(table: dict[Key, Any], item: Object) -> None:
    """A later file goes before an earlier one, but a Pod without an address never before one that has some."""
    known = table.get(item.key)
    if isinstance(item, Pod) and isinstance(known, Pod) and known.addresses and not item.addresses:
        return
    table[item.key] = item
