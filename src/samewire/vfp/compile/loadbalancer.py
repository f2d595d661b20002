"""Load balancers: services, backend sets and backends, straight to the bytes that the kernel sees.

There may be fifty thousand of them, so they do not go through records and their owners: a load balancer's entries are
its own, and what it had before (`Held`) says what has to go. Numbers are kept as long as what they stand for: a member
that stays keeps its backend id, and so its connections.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Final, NamedTuple
from zlib import crc32

import msgspec

from samewire.errors import Invalid
from samewire.hcn.frontends import reach
from samewire.hcn.loadbalancers import (
    DistributionType,
    LoadBalancer,
    LoadBalancerFlags,
    LoadBalancerPortMapping,
    NoEndpointsAction,
    PortMappingFlags,
    direct_mac,
)
from samewire.vfp.address import ZERO, parse_prefix
from samewire.vfp.compile.balanced import (
    CHUNK_BYTES,
    FREE,
    ID,
    NO_SET,
    SERVICE_HEAD,
    TARGET_BYTES,
    Held,
    HeldPort,
    Rows,
    Tables,
    Variant,
    known_backends,
    pack_backend,
    pack_chunk_key,
    pack_direct,
    pack_portmap,
    pack_range,
    pack_service,
    pack_service_key,
)
from samewire.vfp.compile.members import DRAINING, LOCAL, LOCAL_POLICY_ONLY, EndpointView, Member, members
from samewire.vfp.compile.places import Domain, pack
from samewire.vfp.constants import (
    CHUNK_BACKENDS,
    SCOPE_ANY,
    SCOPE_HOST,
    SCOPE_OUTSIDE,
    SOURCE_RANGE_KEY_BITS,
    TICK_S,
    BackendFlag,
    ServiceFlag,
)

_UDP: Final = 17
# Plain integers: arithmetic of enumerations would cost more than all the rest.
_REJECT, _RANGES, _BY_CLIENT, _BY_PROTOCOL, _DSR, _PRESERVE, _LOCAL_SET = map(
    int,
    (
        ServiceFlag.REJECT,
        ServiceFlag.SOURCE_RANGES,
        ServiceFlag.BY_CLIENT,
        ServiceFlag.BY_PROTOCOL,
        ServiceFlag.DSR,
        ServiceFlag.PRESERVE,
        ServiceFlag.LOCAL,
    ),
)
_DISTRIBUTIONS: Final = {
    DistributionType.NONE: 0,
    DistributionType.SOURCE_IP: _BY_CLIENT,
    DistributionType.SOURCE_IP_PROTOCOL: _BY_PROTOCOL,
}
_WANTS_DSR: Final = int(LoadBalancerFlags.ENABLE_DIRECT_SERVER_RETURN)
_HAS_DSR: Final = _WANTS_DSR | int(LoadBalancerFlags.KEEP_DIRECT_CONNECTIONS)
_WANTS_PRESERVE: Final = int(PortMappingFlags.PRESERVE_DIP)
_pack_id = ID.pack
pack_place = struct.Struct("=4sI").pack  # a backend's key and its seed
places_of = struct.Struct("=4s4x").iter_unpack
_KEPT, _LOCAL_ONLY = int(BackendFlag.DRAINING), int(BackendFlag.LOCAL_ONLY)
NOT_FOR_ALL: Final = DRAINING | LOCAL_POLICY_ONLY
"""No new connections under the policy Cluster."""
HERE: Final = LOCAL | DRAINING
"""Of these LOCAL alone: new connections under the policy Local."""


class Compiled(msgspec.Struct, frozen=True, gc=False):
    """What a load balancer wants: the rows of each of `TABLES`, in that order."""

    held: Held
    rows: tuple[Rows, Rows, Rows, Rows, Rows]


class LocalPort(NamedTuple):
    """The switch's port of a local endpoint, for the receiving side of DSR."""

    ifindex: int
    mac: bytes


class Environment(NamedTuple):
    """What a compilation works with. ``rows`` are the present ones, to which a `Held` refers; ``number`` gives a new
    number, never used before; ``hop`` the nexthop that reaches a member by DSR, 0 = none; ``port`` that of an endpoint
    that is on this node.
    """

    view: EndpointView
    domain: Domain
    rows: Tables
    number: Callable[[], int]
    hop: Callable[[Member, Domain], int]
    port: Callable[[str], LocalPort | None]
    vxlan_port: int = 0


def compile_load_balancer(value: LoadBalancer, env: Environment, before: Held | None) -> Compiled:
    """Compile one load balancer, given what it had. Raises Invalid."""
    job = _Job(value, env, before)
    for mapping in value.port_mappings:
        job.add(mapping)
    return job.done()


class _Job:
    """The compilation of one load balancer."""

    __slots__ = (
        "backends",
        "before",
        "direct",
        "env",
        "family",
        "ports",
        "ranges",
        "services",
        "sets",
        "value",
        "vips",
    )

    def __init__(self, value: LoadBalancer, env: Environment, before: Held | None) -> None:
        self.value = value
        self.env = env
        self.before = {(port.protocol, port.port): port for port in before.ports} if before else {}
        self.family = 6 if value.is_ipv6 else 4
        self.vips = list(map(pack, value.frontend_vips)) or [ZERO]
        self.backends: Rows = {}
        self.sets: Rows = {}
        self.ranges: Rows = {}
        self.services: Rows = {}
        self.direct: Rows = {}
        self.ports: list[HeldPort] = []

    def done(self) -> Compiled:
        held = Held(tuple(self.services), tuple(self.ports), tuple(self.ranges), tuple(self.direct))
        return Compiled(held, (self.backends, self.sets, self.ranges, self.services, self.direct))

    def add(self, mapping: LoadBalancerPortMapping) -> None:
        """Add one port mapping."""
        value, env = self.value, self.env
        seen = reach(value, mapping, env.domain.network)
        if seen.outside and mapping.protocol == _UDP and mapping.external_port == env.vxlan_port:
            path = f"$.PortMappings[{value.port_mappings.index(mapping)}]"
            raise Invalid(path, f"UDP port {env.vxlan_port} is that of this node's tunnels")
        known = self.before.get((mapping.protocol, mapping.external_port))
        service = known.service if known else env.number()
        found = members(value, mapping.internal_port, env.domain, env.view)
        keys, who, everybody = self._backends(service, found, known)
        external = value.external_traffic_policy_local and seen.outside
        internal = value.internal_traffic_policy_local
        all_set = local_set = NO_SET
        if not (internal and (external or not seen.outside)):
            all_set = self._set(known.all if known else NO_SET, mapping.protocol, everybody)
        if internal or external:
            local = {k: m.target for k, m in zip(keys, found, strict=True) if m.flags & HERE == LOCAL}
            local_set = self._set(known.local if known else NO_SET, mapping.protocol, local)
        flags = _service_flags(value, mapping)
        source = self._source(found)
        ticks = _affinity_ticks(value, mapping)
        inside = local_set if internal else all_set
        own = flags | (_LOCAL_SET if internal else 0)
        entry = pack_service(service, inside.set, inside.chunks, own, ticks, source)
        for key in self.service_keys(mapping, self.inside(seen.host)):
            self.services[key] = entry
        if seen.outside:
            outside = local_set if external else all_set
            if outside is not inside:
                own = flags | (_LOCAL_SET if external else 0)
                entry = pack_service(service, outside.set, outside.chunks, own, ticks, source)
            for key in self.service_keys(mapping, (SCOPE_OUTSIDE,)):
                self.services[key] = entry
        if value.source_ranges:
            self._source_ranges(service)
        if receives(value, mapping):
            self._receive(mapping, found, preserve=bool(flags & _PRESERVE))
        port = (mapping.protocol, mapping.external_port, service, all_set, local_set, tuple(keys))
        self.ports.append(HeldPort(*port, tuple(who) if any(who) else None))

    def inside(self, host: bool) -> tuple[int, ...]:
        """The scopes of clients that are pods, or the node."""
        if not self.value.network_id:
            return (SCOPE_ANY,)
        inside = self.env.domain.scope
        return (inside, SCOPE_HOST) if host else (inside,)

    def service_keys(self, mapping: LoadBalancerPortMapping, scopes: Iterable[int]) -> list[bytes]:
        """The keys of a mapping in these scopes."""
        port, protocol, family = mapping.external_port.to_bytes(2, "big"), mapping.protocol, self.family
        keys = []
        for scope in scopes:
            for vip in self.vips:
                keys.append(pack_service_key(vip, port, protocol, family, scope))
        return keys

    def _backends(
        self, service: int, found: list[Member], known: HeldPort | None
    ) -> tuple[list[bytes], list[str], dict[bytes, bytes]]:
        """The backends' entries; returns their keys and who they are, in the order of ``found``, and the targets by key
        of those that get new connections under the policy Cluster.
        """
        env, family, rows, number = self.env, self.family, self.backends, self.env.number
        old = known_backends(known, env.rows["sw_backends"]) if known else None
        keys: list[bytes] = []
        who: list[str] = []
        everybody: dict[bytes, bytes] = {}
        for member in found:
            target = member.target
            identity = member.endpoint or member.tenant
            key = None
            if old:
                key = old.pop((target, identity), None)
                # Of whom nothing was known may be the one that now is.
                if key is None and not member.endpoint:
                    key = old.pop((target, ""), None)
            if key is None:
                key = _pack_id(number())
            rows[key] = backend_row(member, family, service, env)
            keys.append(key)
            who.append(identity)
            if not member.flags & NOT_FOR_ALL:
                everybody[key] = target
        return keys, who, everybody

    def _set(self, before: Variant, protocol: int, chosen: dict[bytes, bytes]) -> Variant:
        """The chunks of a set of keys with their targets. Who is in it stays where it is, as far as the set's size
        allows.

        A seed is a checksum of address, port and protocol: the same on every node, and different for all members of
        a service (checksums of texts that differ within 32 bits do).
        """
        number = before.set or self.env.number()
        chunks = -(-len(chosen) // CHUNK_BACKENDS)
        places = self._places(before, chunks, chosen) if before.chunks else chosen
        data = b"".join([pack_place(key, crc32(chosen[key], protocol)) if key else FREE for key in places])
        for chunk in range(chunks):
            part = data[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES]
            self.sets[pack_chunk_key(number, chunk)] = part.ljust(CHUNK_BYTES, b"\0")
        return Variant(number, chunks)

    def _places(self, before: Variant, chunks: int, chosen: dict[bytes, bytes]) -> list[bytes]:
        """The keys in the order of their places; empty where nobody is."""
        rows = self.env.rows["sw_backend_sets"]
        old: list[bytes] = []
        for key in before.chunk_keys()[:chunks]:
            row = rows.get(key)
            old += [place for (place,) in places_of(row)] if row else [b""] * CHUNK_BACKENDS
        places = [key if key in chosen else b"" for key in old]
        taken = set(places)
        if len(places) - places.count(b"") > len(taken - {b""}):  # after a change that was cut off
            places = [key if key and key not in places[:place] else b"" for place, key in enumerate(places)]
        new = iter([key for key in chosen if key not in taken])
        places = [key or next(new, b"") for key in places]
        return [*places, *new]

    def _source(self, found: list[Member]) -> bytes:
        if self.value.source_vip:
            return pack(self.value.source_vip)
        return self.env.domain.source(self.family, found)

    def _source_ranges(self, service: int) -> None:
        for index, text in enumerate(self.value.source_ranges):
            prefix = parse_prefix(text, f"$.SourceRanges[{index}]")
            if prefix.family == self.family:
                bits = SOURCE_RANGE_KEY_BITS + prefix.bits
                self.ranges[pack_range(bits, service, self.family, prefix.packed)] = _ONE

    def _receive(self, mapping: LoadBalancerPortMapping, found: list[Member], *, preserve: bool) -> None:
        """What reaches the members that are here by DSR: packets to the VIP, and to the endpoint's own MAC or the one
        that stands for its address.
        """
        port = mapping.external_port.to_bytes(2, "big")
        for member in found:
            local = self.env.port(member.endpoint) if member.endpoint else None
            if local is None:
                continue
            macs = {local.mac, direct_mac(member.target[: 4 if self.family == 4 else 16])}
            for vip, mac in product(self.vips, macs):
                key = pack_direct(vip, port, mapping.protocol, self.family, mac)
                address, internal = (vip, port) if preserve else (member.target[:16], member.target[16:])
                self.direct[key] = pack_portmap(local.ifindex, member.scope, internal, address)


def backend_row(member: Member, family: int, service: int, env: Environment) -> bytes:
    """The entry of a backend."""
    kept = (_KEPT if member.flags & DRAINING else 0) | (
        _LOCAL_ONLY if member.flags & LOCAL_POLICY_ONLY else 0
    )
    hop = env.hop(member, env.domain) if member.mac else 0
    target = member.target
    return pack_backend(target[:16], target[16:], family, kept, service, hop, member.scope)


def receives(value: LoadBalancer, mapping: LoadBalancerPortMapping) -> bool:
    """Whether members that are here get packets to the VIP by DSR."""
    return bool(value.flags & _HAS_DSR or mapping.flags & _WANTS_PRESERVE)


_ONE: Final = ID.pack(1)


def adopt(value: LoadBalancer, env: Environment, by_service: Mapping[int, list[bytes]]) -> Held:
    """What a load balancer had before a restart, from ``env.rows`` as the kernel has them, so that numbers stay.

    ``by_service``: the keys of the backends of each service. What is not found gets new numbers.
    """
    services = env.rows["sw_services"]
    job = _Job(value, env, None)
    ports = []
    for mapping in value.port_mappings:
        seen = reach(value, mapping, env.domain.network)
        keys = job.service_keys(mapping, job.inside(seen.host)), job.service_keys(mapping, (SCOPE_OUTSIDE,))
        inside, outside = (next((services[key] for key in some if key in services), None) for some in keys)
        entry = inside or outside
        if entry is None:
            continue
        service = SERVICE_HEAD.unpack_from(entry)[0]
        found: dict[bool, Variant] = {}
        for row, local in (
            (outside if seen.outside else None, value.external_traffic_policy_local),
            (inside, value.internal_traffic_policy_local),
        ):
            if row is not None:
                head = SERVICE_HEAD.unpack_from(row)
                found[local] = Variant(head[1], head[2])
        identities = {
            m.target: m.identity for m in members(value, mapping.internal_port, env.domain, env.view)
        }
        # One that gets connections comes last, and wins over one for the same target that a crash has left.
        placed = {key for variant in found.values() for key in _placed(variant, env.rows["sw_backend_sets"])}
        present = [key for key in by_service.get(service, ()) if key in env.rows["sw_backends"]]
        backends = tuple(sorted(present, key=placed.__contains__))
        who = tuple([identities.get(env.rows["sw_backends"][key][:TARGET_BYTES], "") for key in backends])
        sets = found.get(False, NO_SET), found.get(True, NO_SET)
        ports.append(
            HeldPort(
                mapping.protocol, mapping.external_port, service, *sets, backends, who if any(who) else None
            )
        )
    return Held((), tuple(ports), (), ())


def _placed(variant: Variant, rows: Mapping[bytes, bytes]) -> Iterable[bytes]:
    """The keys of a set's members."""
    for key in variant.chunk_keys():
        yield from (place for (place,) in places_of(rows.get(key, b"")))


def _service_flags(value: LoadBalancer, mapping: LoadBalancerPortMapping) -> int:
    flags = 0
    if value.no_endpoints_action is NoEndpointsAction.REJECT:
        flags |= _REJECT
    if value.source_ranges:
        flags |= _RANGES
    # With a timeout clients are remembered. One whose time is over may get any backend, not always the same again.
    if not _affinity_ticks(value, mapping):
        flags |= _DISTRIBUTIONS[mapping.distribution_type]
    if value.flags & _WANTS_DSR:
        flags |= _DSR
    if mapping.flags & _WANTS_PRESERVE:
        flags |= _PRESERVE
    return flags


def _affinity_ticks(value: LoadBalancer, mapping: LoadBalancerPortMapping) -> int:
    if not value.affinity_timeout or mapping.distribution_type is DistributionType.NONE:
        return 0
    # Rather a tick too long than a client that comes back in time and is moved.
    return math.ceil(value.affinity_timeout / TICK_S)
