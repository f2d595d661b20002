"""GET /v2/services: the services of this node, and what became of them in the switch."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from aiohttp import web

from samewire.errors import NotFound, Unavailable
from samewire.hcn.http_answers import list_response
from samewire.hcn.loadbalancers import BackendFlags, LoadBalancer, LoadBalancerBackend, PortMappingFlags
from samewire.node.config import NodeConfig
from samewire.node.node import Node
from samewire.trace.snapshot import BalancerInfo
from samewire.vfp.compile.places import pack
from samewire.vfp.constants import FlowFlag
from samewire.vfp.tables import Backend, Flow, ServiceCount

if TYPE_CHECKING:
    from samewire.kube.model import Key, Service
    from samewire.node.services import Services

_U32: Final = 4
_PROTOCOLS: Final = {6: "TCP", 17: "UDP", 132: "SCTP"}
_DRAINING: Final = int(BackendFlags.DRAINING)
_LOCAL: Final = int(BackendFlags.LOCAL)
_AT_A_TIME: Final = 500
_SECOND: Final = int(FlowFlag.SECOND)  # the other entry of a connection that has two


NOT_YET: Final = "not programmed yet"
"""In place of an error, until a service has been looked at for the first time."""


class BackendInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """One backend of a virtual address. ``missing``: a pod of this node, by its address, that is not here (any more):
    it gets no connections.
    """

    address: str
    port: int
    local: bool = False
    draining: bool = False
    missing: bool = False


class AddressInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """One virtual address and port; ``address`` is "" for a node port. ``id``: of the load balancer."""

    id: str
    address: str
    port: int
    protocol: str
    dsr: bool = False
    backends: tuple[BackendInfo, ...] = ()


class Tally(msgspec.Struct):
    """What the switch counted for a service. ``flows``: open now; the others since the service is there."""

    flows: int = 0
    connections: int = 0
    refused: int = 0
    ended: int = 0


class ServiceInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """One service. ``changed_s``: Unix time of its last change in the switch, ``latency_s``: how long that took.

    ``error``: why its present state is not in the switch.
    """

    namespace: str
    name: str
    type: str
    addresses: tuple[AddressInfo, ...] = ()
    changed_s: float = 0.0
    latency_s: float = 0.0
    error: str = ""
    tally: Tally | None = None


class Counts(NamedTuple):
    """By service number: its flows now, and its counters."""

    flows: Mapping[int, int]
    counters: Mapping[int, tuple[int, int, int]]


def service_routes(node: Node, services: Services | None) -> list[web.RouteDef]:
    """``/v2/services?name=[namespace/]name&counts=1``, for the daemon's application."""

    async def get_services(request: web.Request) -> web.Response:
        if services is None:
            raise Unavailable("the list of services", why_none(node.config))
        wanted = _select(services, request.query.get("name", ""))
        counts = await asyncio.to_thread(read_counts, node) if request.query.get("counts") else None

        def text_of(value: Service) -> bytes:
            return msgspec.json.encode(_info(node, services, value, counts))

        return await list_response(wanted, text_of)

    return [web.get("/v2/services", get_services)]


def why_none(config: NodeConfig) -> str:
    """Why a daemon without a proxy has none."""
    if config.has_source:
        return "proxy_mode is off: this node balances none, and their load balancers stay as they were"
    return "the daemon's configuration names no source (kubeconfig, in_cluster, manifests)"


def read_counts(node: Node) -> Counts:
    """Read what the switch has counted for all services. Raises KernelError."""
    maps = node.board.maps
    number_at = _offset(Backend, "service")
    owner = {key: _u32(value, number_at) for key, value in maps["sw_backends"].items()}
    backend_at, flags_at = _offset(Flow, "backend"), _offset(Flow, "flags")
    flows = Counter(
        owner[backend]
        for _, value in maps["sw_flows"].items()
        if (backend := value[backend_at : backend_at + _U32]) in owner and not value[flags_at] & _SECOND
    )
    found = maps["sw_service_counts"]
    counters = {}
    for key, value in found.items():
        parts = [ServiceCount.unpack(part[: ServiceCount.size]) for part in found.per_cpu_values(value)]
        counters[_u32(key, 0)] = (
            sum(part.connections for part in parts),
            sum(part.refused for part in parts),
            sum(part.ended for part in parts),
        )
    return Counts(flows, counters)


def failed(services: Services | None) -> dict[str, str]:
    """Why the present state of Services is not in the switch, by "namespace/name"."""
    if services is None:
        return {}
    found = services.proxy.figures.statuses.items()
    return {"/".join(key): status.error for key, status in found if status.error}


def missing_network(node: Node, services: Services | None) -> str:
    """The network whose pods are the clients if it is not here: until it is no Service is written."""
    name = node.config.proxy_network if services is not None else ""
    return name if name and node.store.state.network_by_name(name) is None else ""


async def describe_balancers(node: Node) -> tuple[BalancerInfo, ...]:
    """Every load balancer, for the doctor. There may be very many: others have their turn."""
    state, found = node.store.state, []
    for number, value in enumerate(tuple(state.load_balancers())):
        if number % _AT_A_TIME == 0:
            await asyncio.sleep(0)
        found.append((value, _balancer(node, value)))
    # What has been deleted meanwhile lacks nothing.
    return tuple(info for value, info in found if info.present or state.load_balancer(value.id) is value)


def _balancer(node: Node, value: LoadBalancer) -> BalancerInfo:
    lost = missing_backends(node, value)
    idle = {b for b in value.backends if b.flags & _DRAINING or b in lost}
    return BalancerInfo(
        value.service_name or value.name or value.id,
        value.frontend_vips,
        tuple((one.protocol, one.external_port) for one in value.port_mappings),
        not any(one.flags & PortMappingFlags.VIP_EXTERNAL_IP for one in value.port_mappings),
        value.id in node.switch.balancers,
        len(value.backends) + len(value.endpoint_ids) - len(idle),
        tuple(f"{b.ip_address} port {b.port}" for b in lost),
    )


def _select(services: Services, name: str) -> list[Service]:
    from samewire.proxy.frontends import is_ours

    found: Iterable[tuple[Key, Service]] = services.proxy.table.services.items()
    if name:
        namespace, slash, rest = name.rpartition("/")
        found = [(key, v) for key, v in found if key[1] == rest and (not slash or key[0] == namespace)]
        if not found:
            raise NotFound("service", name)
    return [value for _, value in sorted(found, key=lambda item: item[0]) if is_ours(value)]


def _info(node: Node, services: Services, value: Service, counts: Counts | None) -> ServiceInfo:
    key = value.key
    balancers = [
        found
        for lb_id in services.proxy.load_balancer_ids(key)
        if (found := services.load_balancer(lb_id)) is not None
    ]
    status = services.proxy.figures.statuses.get(key)
    return ServiceInfo(
        namespace=key[0],
        name=key[1],
        type=value.spec.type,
        addresses=tuple([_address(node, found) for found in balancers]),
        changed_s=status.changed_s if status else 0.0,
        latency_s=status.latency_s if status else 0.0,
        error=status.error if status else NOT_YET if value.spec.ports else "",
        tally=None if counts is None else _tally(node, balancers, counts),
    )


def _address(node: Node, value: LoadBalancer) -> AddressInfo:
    mapping = value.port_mappings[0]
    missing = missing_backends(node, value)
    return AddressInfo(
        id=value.id,
        address=", ".join(value.frontend_vips),
        port=mapping.external_port,
        protocol=_PROTOCOLS.get(mapping.protocol, str(mapping.protocol)),
        dsr=bool(value.flags & 1),
        backends=tuple(
            BackendInfo(b.ip_address, b.port, bool(b.flags & _LOCAL), bool(b.flags & _DRAINING), b in missing)
            for b in value.backends
        ),
    )


def missing_backends(node: Node, value: LoadBalancer) -> Collection[LoadBalancerBackend]:
    """The backends that the switch has left out: pods of this node that are not here."""
    balancers = node.switch.balancers
    if value.id not in balancers or value is not node.service.view.load_balancer(value.id):
        return ()  # there is an error; or, in user mode, they are the relay's
    present = set(balancers.targets_of(value.id))
    if len(present) == len(value.backends):
        return ()
    return {b for b in value.backends if pack(b.ip_address) + b.port.to_bytes(2, "big") not in present}


def _tally(node: Node, balancers: Iterable[LoadBalancer], counts: Counts) -> Tally:
    found = Tally()
    for value in balancers:
        for number in node.switch.balancers.services_of(value.id):
            connections, refused, ended = counts.counters.get(number, (0, 0, 0))
            found.flows += counts.flows.get(number, 0)
            found.connections += connections
            found.refused += refused
            found.ended += ended
    return found


def _offset(kind: type[Backend] | type[Flow], name: str) -> int:
    return next(field.offset for field in kind.fields if field.name == name)


def _u32(value: bytes, at: int) -> int:
    return int.from_bytes(value[at : at + _U32], "little")
