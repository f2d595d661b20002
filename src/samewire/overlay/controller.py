"""Keeps the ways to other nodes, of a network that was flannel's, as the annotations of those nodes say:
RemoteSubnetRoutes of an overlay (backend vxlan), SDNRoutes of a bridged network (backend host-gw).

Nodes that flannel serves join, leave and move beside this one, for as long as not all are taken over. Only prefixes
that an annotation has named are ever changed or taken away; what an HNS client has put for others stays. Which these
are is kept with the node's settings, so that a node that leaves while no daemon runs is not forgotten here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

import structlog

from samewire.errors import SamewireError
from samewire.hcn.modify import ModifySettingRequest, PolicySettings, RequestType
from samewire.hcn.policies import Policy, RemoteSubnetRoute, SDNRoute, select
from samewire.hcn.schema import Network, NetworkType
from samewire.hcn.service import HnsService
from samewire.kube.model import Node
from samewire.kube.source import Batch, Source
from samewire.overlay.flannel import canonical, next_hops, remote_subnets

log = structlog.get_logger(__name__)

Way = RemoteSubnetRoute | SDNRoute

_KINDS: Final[dict[NetworkType, type[Way]]] = {
    NetworkType.OVERLAY: RemoteSubnetRoute,
    NetworkType.L2BRIDGE: SDNRoute,
}
SETTING: Final = "flannel-subnets"
LOOK_S: Final = 1.0
"""How often to see whether the network is there, and still as it was left."""


class FlannelNodes:
    """The controller for the network of one name. Use from one event loop: `start`, and `close` before the source.

    ``node``: this node's name, whose own annotations say nothing to it.
    """

    def __init__(self, source: Source, service: HnsService, network: str, node: str) -> None:
        self._source = source
        self._service = service
        self._name = network
        self._node = node
        self._routes: dict[str, tuple[Way, ...]] = {}
        self._unreadable: dict[str, tuple[str, ...]] = {}
        self._done: Network | None = None
        self._synced = False
        self._trouble = ""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch and to write; the source may be started before or after."""
        self._source.watch(Node, self._on_nodes)
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop. What is written stays."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _on_nodes(self, batch: Batch[Node]) -> None:
        for change in batch.changes:
            name = change.key[1]
            if name == self._node:
                continue
            if change.new is not None:
                self._read(change.new)
            else:
                self._routes.pop(name, None)
                self._unreadable.pop(name, None)
        self._synced = True
        self._done = None
        self._wake.set()

    def _read(self, node: Node) -> None:
        """Note its ways. It keeps its place among the nodes: who comes first has a prefix that two of them claim."""
        name = node.metadata.name
        try:
            self._routes[name] = (*remote_subnets(node), *next_hops(node))
            self._unreadable.pop(name, None)
        except SamewireError as error:  # what the network has of it stays
            self._routes[name] = ()
            self._unreadable[name] = tuple(_readable(node.pod_cidrs))
            log.warning("a node's annotations cannot be read", node=name, error=str(error))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                await self._round()
                self._trouble = ""
            except SamewireError as error:  # it is tried again
                if str(error) != self._trouble:
                    log.error("the other nodes' subnets cannot be written", error=str(error))
                self._trouble = str(error)
            except Exception:  # a bug must not end it for good
                log.exception("the other nodes' subnets have not been written")
            # not wait_for: when the event and a cancellation meet, Python 3.11's forgets the cancellation
            timer = loop.call_later(LOOK_S, self._wake.set)
            await self._wake.wait()
            timer.cancel()
            self._wake.clear()

    async def _round(self) -> None:
        """Write what differs. Raises SamewireError."""
        network = self._service.view.network_by_name(self._name)
        if not self._synced or network is None or network is self._done:
            return
        kind = _KINDS.get(network.type)
        if kind is None:
            return
        wanted: dict[str, Way] = {}
        for policy in self._wanted(network, kind):
            wanted.setdefault(policy.destination_prefix, policy)
        present: dict[str, Way] = {
            policy.destination_prefix: policy for policy in select(network.policies, kind)
        }
        named = frozenset(self._service.setting(SETTING) or ())
        unread = any(one.unread for one in self._source.health() if one.kind == Node.__name__)
        # Then who is missing need not be gone.
        spared = named if unread else {prefix for some in self._unreadable.values() for prefix in some}
        put = [policy for prefix, policy in wanted.items() if present.get(prefix) != policy]
        going = (named - wanted.keys() - spared) | {policy.destination_prefix for policy in put}
        gone = [present[prefix] for prefix in sorted(going) if prefix in present]
        self._remember(named, named | wanted.keys())
        requests = [_request(RequestType.REMOVE, gone)] if gone else []
        requests += [_request(RequestType.ADD, put)] if put else []
        if requests:
            await self._service.modify_network(network.id, requests)
            log.info(
                "the other nodes' subnets",
                put=[policy.destination_prefix for policy in put],
                gone=[policy.destination_prefix for policy in gone],
            )
        self._remember(named | wanted.keys(), frozenset(wanted) | (named & spared))
        self._done = self._service.view.network_by_name(self._name) if not (requests or unread) else None

    def _wanted(self, network: Network, kind: type[Way]) -> Iterator[Way]:
        """Those of its kind and VNI, but for what would lead its own pods' addresses away: another node with a
        prefix that overlaps them is a mistake elsewhere.
        """
        own = [ip_network(subnet.ip_address_prefix) for subnet in network.subnets if subnet.ip_address_prefix]
        for routes in self._routes.values():
            for policy in routes:
                vni = policy.isolation_id if isinstance(policy, RemoteSubnetRoute) else network.vni
                if isinstance(policy, kind) and vni == network.vni and not _overlaps(policy, own):
                    yield policy

    def _remember(self, before: frozenset[str], prefixes: frozenset[str]) -> None:
        if before != prefixes:
            self._service.set_setting(SETTING, sorted(prefixes))


def _overlaps(policy: Way, own: Iterable[IPv4Network | IPv6Network]) -> bool:
    prefix = ip_network(policy.destination_prefix)
    return any(prefix.version == subnet.version and prefix.overlaps(subnet) for subnet in own)


def _readable(prefixes: Iterable[str]) -> Iterator[str]:
    for prefix in prefixes:
        with suppress(SamewireError):
            yield canonical(prefix)


def _request(how: RequestType, policies: Sequence[Way]) -> ModifySettingRequest:
    given: tuple[Policy, ...] = tuple(policies)
    return ModifySettingRequest(request_type=how, settings=PolicySettings(policies=given))
