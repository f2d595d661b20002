"""One service and its slices become HCN load balancers, one for each virtual address and port.

Each service compiles by itself: what it costs depends on nothing but that service.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from ipaddress import ip_address
from itertools import islice
from types import MappingProxyType
from typing import Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from samewire.hcn.loadbalancers import (
    BackendFlags,
    DistributionType,
    LoadBalancer,
    LoadBalancerBackend,
    LoadBalancerFlags,
    LoadBalancerPortMapping,
    NoEndpointsAction,
    PortMappingFlags,
    direct_mac,
)
from samewire.kube.addresses import is_of_one_machine
from samewire.kube.model import EndpointSlice, Key, Node, Service
from samewire.proxy.frontends import CLUSTER_IP, Frontend, Rules, VipKind, frontends, rules
from samewire.proxy.ids import OWNER, load_balancer_id, service_name
from samewire.proxy.members import Members, PortKey, collect, local_ready_addresses
from samewire.proxy.topology import Choice, Member, Place, choose

PROTOCOLS: Final = {"TCP": 6, "UDP": 17, "SCTP": 132}
DSR_ANNOTATION: Final = "samewire.io/dsr-provider-address"
MAX_AFFINITY_S: Final = 2**32 - 1
_SHOWN: Final = 3
_SHOWN_CHARACTERS: Final = 64

_EXTERNAL: Final = int(PortMappingFlags.VIP_EXTERNAL_IP)
_FLAGS: Final[Mapping[VipKind, int]] = {
    VipKind.CLUSTER_IP: 0,
    VipKind.NODE_PORT: int(PortMappingFlags.LOCAL_ROUTED_VIP) | _EXTERNAL,
    VipKind.EXTERNAL_IP: _EXTERNAL,
    VipKind.INGRESS: _EXTERNAL,
}
_PRESERVE: Final = int(PortMappingFlags.USE_MUX | PortMappingFlags.PRESERVE_DIP)
_LOCAL, _DRAINING, _LOCAL_ONLY = map(
    int, (BackendFlags.LOCAL, BackendFlags.DRAINING, BackendFlags.LOCAL_POLICY_ONLY)
)
# An enumeration's members cost a look-up of their own.
_INGRESS, _NODE_PORT = VipKind.INGRESS, VipKind.NODE_PORT
_BY_TUPLE, _BY_CLIENT = DistributionType.NONE, DistributionType.SOURCE_IP
_DROP, _REJECT = NoEndpointsAction.DROP, NoEndpointsAction.REJECT
_IPV6: Final = int(LoadBalancerFlags.ENABLE_IPV6)
_DSR: Final = int(LoadBalancerFlags.ENABLE_DIRECT_SERVER_RETURN)
_KEEP_DSR: Final = int(LoadBalancerFlags.KEEP_DIRECT_CONNECTIONS)


class DirectNode(NamedTuple):
    """A node that takes part in DSR. ``providers``: where its tunnels end, the one for all first. ``own``: its own
    addresses; what listens there is no endpoint of a network, and has no MAC in the tunnel.
    """

    providers: tuple[str, ...]
    own: frozenset[str] = frozenset()

    def provider(self, family: int) -> str:
        """The tunnel for a service's family: of the same one if there is such, so that the node itself is known as a
        client by its address.
        """
        return next((one for one in self.providers if (":" in one) == (family == 6)), self.providers[0])


class Settings(NamedTuple):
    """What the node adds. ``node_port_addresses``: the addresses at which node ports are reached, None = all.
    ``dsr``: for services that do not say. ``direct``: by name, the nodes that take part in DSR.
    """

    place: Place
    network_id: str = ""
    node_port_addresses: tuple[str, ...] | None = None
    dsr: bool = False
    direct: Mapping[str, DirectNode] = MappingProxyType({})


class Compiled(Struct, frozen=True, gc=False):
    """What a service wants. ``lacks_internal``, ``lacks_external``: a Local policy finds no endpoint here, while there
    are some elsewhere. ``health_check_port`` 0: no health check. ``refused``: what it does not get, and why.
    """

    load_balancers: tuple[LoadBalancer, ...] = ()
    health_check_port: int = 0
    local_endpoints: int = 0
    lacks_internal: bool = False
    lacks_external: bool = False
    refused: str = ""


NOTHING: Final = Compiled()

Before = Callable[[str], LoadBalancer | None]
OwnerOf = Callable[[str], Key | None]


def compile_service(
    key: Key,
    service: Service | None,
    slices: Iterable[EndpointSlice],
    settings: Settings,
    before: Before,
    *,
    moving: bool = False,
    owner_of: OwnerOf = lambda address: None,
) -> Compiled:
    """Compile one service; None, or one that is not ours, wants nothing.

    ``before`` gives a load balancer as it is now: its members that are still there, and no longer chosen, go on with
    the connections that they have. So do those that are not there, while endpoints are ``moving`` between slices.
    ``owner_of`` gives the service whose cluster IP an address is: nobody else gets it by an external IP, which whoever
    may write a Service may choose.
    """
    found = frontends(service) if service is not None else []
    if service is None or not found:
        return NOTHING
    unfit: dict[str, None] = {}
    members = collect(slices, settings.place.node, unfit)
    how = rules(service)
    choices = _choices(found, how, members, settings.place)
    builder = _Builder(key, service, how, members, settings, before, moving)
    built = []
    refused = dict.fromkeys(_unread(how, unfit))
    for frontend in found:
        if frontend.kind is not CLUSTER_IP and (reason := _refusal(key, frontend.address, owner_of)):
            refused[reason] = None
            continue
        vips = _vips(frontend, settings)
        if vips is not None:
            built.append(builder.build(frontend, vips, choices[frontend.port_key]))
    return Compiled(
        tuple(built),
        how.health_check_port,
        local_ready_addresses(members, found[0].family) if how.health_check_port and found else 0,
        how.internal_local and any(c.any_usable and not c.local for c in choices.values()),
        how.external_local and any(c.any_usable and not c.local for c in choices.values()),
        "; ".join(refused),
    )


def _refusal(key: Key, address: str, owner_of: OwnerOf) -> str:
    """Why an external or ingress IP is not this service's, "" where it is."""
    if (owner := owner_of(address)) not in (None, key):
        return f"{address} is the cluster IP of Service {'/'.join(owner)}"
    # API servers look at external IPs, but not at what is in a Service's status.
    if address and not is_of_one_machine(address):
        return f"{address} is no address of a machine"
    return ""


def _unread(how: Rules, unfit: Collection[str]) -> Iterator[str]:
    """What of the objects does not count, as nothing can be made of it."""
    if how.source_ranges.unread:
        yield f"loadBalancerSourceRanges: {_some(how.source_ranges.unread, 'is no prefix', 'are no prefixes')}"
    if unfit:
        yield f"endpoints: {_some(unfit, 'is no address of a machine', 'are no addresses of machines')}"


def _some(texts: Collection[str], one: str, many: str) -> str:
    """The first few of what may be thousands, chosen by whoever may write the object."""
    shown = ", ".join(f"{text[:_SHOWN_CHARACTERS]!r}" for text in islice(texts, _SHOWN))
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return f"{shown}{more} {one if len(texts) == 1 else many}"


def _choices(found: Iterable[Frontend], how: Rules, members: Members, place: Place) -> dict[PortKey, Choice]:
    """One choice for each service port and family, whatever the number of its addresses."""
    accessible: dict[PortKey, bool] = {}
    for frontend in found:
        if frontend.kind is not CLUSTER_IP:
            accessible[frontend.port_key] = True
        else:
            accessible.setdefault(frontend.port_key, False)
    internal, external = how.internal_local, how.external_local or how.preserve_destination
    choices = {}
    for key, outside in accessible.items():
        of_port = members.get(key, ())
        choices[key] = choose(
            of_port,
            place,
            uses_cluster=not internal or outside,
            uses_local=internal or (external and outside),
        )
    return choices


def _vips(frontend: Frontend, settings: Settings) -> tuple[str, ...] | None:
    """The addresses of a load balancer; None for a node port that is reached nowhere."""
    if frontend.address:
        return (frontend.address,)
    if settings.node_port_addresses is None:
        return ()
    six = frontend.family == 6
    return tuple(a for a in settings.node_port_addresses if (":" in a) == six) or None


class _Builder(Struct, frozen=True, gc=False):
    """Makes the load balancers of one service."""

    key: Key
    service: Service
    how: Rules
    members: Members
    settings: Settings
    before: Before
    moving: bool

    def build(self, frontend: Frontend, vips: tuple[str, ...], choice: Choice) -> LoadBalancer:
        """The load balancer of one frontend."""
        port, how = frontend.service_port, self.how
        lb_id = load_balancer_id(
            self.key, frontend.kind, frontend.address, frontend.family, frontend.port, port.protocol
        )
        preserve = how.preserve_destination and frontend.kind is _INGRESS
        external = frontend.kind is not CLUSTER_IP
        # As winkernel has it: who probes this node's port is not answered by another node.
        only_here = how.preserve_destination and frontend.kind in (_INGRESS, _NODE_PORT)
        external_local = external and (how.external_local or only_here)
        internal_local = how.internal_local and not external
        before = self.before(lb_id)
        flags = self._flags(frontend, external, preserve, before)
        if internal_local:
            backends = _backends(choice.local or (), ())
        else:
            backends = _backends(choice.cluster or (), (choice.local or ()) if external_local else ())
        backends = self._with_draining(before, frontend, backends)
        if flags & (_DSR | _KEEP_DSR) and self.settings.direct:
            backends = self._direct(frontend, backends)
        name = service_name(self.key, port.name)
        mapping = _mapping(
            PROTOCOLS[port.protocol],
            backends[0].port if backends else 0,
            frontend.port,
            _BY_CLIENT if how.affinity_s else _BY_TUPLE,
            _FLAGS[frontend.kind] | (_PRESERVE if preserve else 0),
        )
        return LoadBalancer(
            id=lb_id,
            name=name,
            owner=OWNER,
            network_id=self.settings.network_id,
            frontend_vips=vips,
            port_mappings=(mapping,),
            flags=flags,
            backends=backends,
            affinity_timeout=min(how.affinity_s, MAX_AFFINITY_S),
            source_ranges=how.source_ranges.by_family.get(frontend.family, ())
            if frontend.kind is _INGRESS
            else (),
            no_endpoints_action=_DROP if choice.any_usable else _REJECT,
            internal_traffic_policy_local=internal_local,
            external_traffic_policy_local=external_local,
            service_name=name,
        )

    def _flags(self, frontend: Frontend, external: bool, preserve: bool, before: LoadBalancer | None) -> int:
        asked = self.service.metadata.annotations.dsr
        wants = asked == "true" if asked else self.settings.dsr
        direct = 0
        if external and (wants or preserve):
            direct = _DSR
        elif before is not None and before.flags & (_DSR | _KEEP_DSR):
            direct = _KEEP_DSR
        return direct | (_IPV6 if frontend.family == 6 else 0)

    def _direct(
        self, frontend: Frontend, backends: tuple[LoadBalancerBackend, ...]
    ) -> tuple[LoadBalancerBackend, ...]:
        """Say of backends on nodes that take part in DSR how they are reached."""
        nodes = {(m.address, m.port): m.node for m in self._listed(frontend.port_key) if not m.local}
        direct = self.settings.direct
        return tuple(
            replace(
                backend,
                provider_address=node.provider(frontend.family),
                mac_address=_direct_mac(backend.ip_address),
            )
            if (node := direct.get(nodes.get((backend.ip_address, backend.port), "")))
            and backend.ip_address not in node.own
            else backend
            for backend in backends
        )

    def _with_draining(
        self, before: LoadBalancer | None, frontend: Frontend, backends: tuple[LoadBalancerBackend, ...]
    ) -> tuple[LoadBalancerBackend, ...]:
        """Add what was a backend, is there still and gets no more connections.

        UDP has no end of a connection that one could wait for: such a backend keeps its clients only while it serves.
        """
        if before is None or not before.backends:
            return backends
        used = {(backend.ip_address, backend.port) for backend in backends}
        left = {key: b.target_id for b in before.backends if (key := (b.ip_address, b.port)) not in used}
        if not left:
            return backends
        datagrams = frontend.service_port.protocol == "UDP"
        kept, listed = [], set()
        for member in self._listed(frontend.port_key):
            at = (member.address, member.port)
            listed.add(at)
            if (member.serving or not datagrams) and left.get(at) in ("", member.uid):
                del left[at]
                kept.append(_backend(member, _DRAINING))
        if self.moving:
            gone = left.keys() - listed
            stays = (b for b in before.backends if (b.ip_address, b.port) in gone)
            kept += [replace(b, flags=b.flags & _LOCAL | _DRAINING) for b in stays]
        return (*backends, *kept)

    def _listed(self, port_key: PortKey) -> Iterator[Member]:
        """The members of a port, and those under names that no port has: while a port is renamed, the Service has the
        new name and the slices still have the old one, or the other way round.
        """
        yield from self.members.get(port_key, ())
        named = {port.name for port in self.service.spec.ports}
        for other, of_port in self.members.items():
            if other[0] not in named and other[1:] == port_key[1:]:
                yield from of_port


@lru_cache(maxsize=4096)
def _mapping(
    protocol: int, internal_port: int, external_port: int, distribution: DistributionType, flags: int
) -> LoadBalancerPortMapping:
    """Most services have the same few: they share them."""
    return LoadBalancerPortMapping(
        protocol=protocol,
        internal_port=internal_port,
        external_port=external_port,
        distribution_type=distribution,
        flags=flags,
    )


def direct_node(node: Node) -> DirectNode | None:
    """How a node takes part in DSR, by its annotation; None for one that does not."""
    texts = node.metadata.annotations.get(DSR_ANNOTATION, "").split(",")
    providers = tuple(filter(None, (_address(text.strip()) for text in texts)))
    if not providers:
        return None
    own = (_address(item.address) for item in node.status.addresses)
    return DirectNode(providers, frozenset((*providers, *filter(None, own))))


def _address(text: str) -> str:
    """The shortest form of an address, "" for what is none."""
    try:
        return str(ip_address(text)) if text else ""
    except ValueError:
        return ""


def _direct_mac(address: str) -> str:
    return direct_mac(ip_address(address).packed).hex("-").upper()


def _backends(cluster: Iterable[Member], local: Iterable[Member]) -> tuple[LoadBalancerBackend, ...]:
    """Backends for the policy Cluster, and those that only the policy Local uses."""
    found = [
        LoadBalancerBackend(
            ip_address=member.address,
            port=member.port,
            flags=_LOCAL if member.local else 0,
            target_id=member.uid,
        )
        for member in cluster
    ]
    if local:
        known = set(cluster)
        found += [_backend(member, _LOCAL_ONLY) for member in local if member not in known]
    return tuple(found)


def _backend(member: Member, flags: int) -> LoadBalancerBackend:
    return LoadBalancerBackend(
        ip_address=member.address,
        port=member.port,
        flags=flags | (_LOCAL if member.local else 0),
        target_id=member.uid,
    )
