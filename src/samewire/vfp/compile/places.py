"""Where an address of a load balancer's backend is: in which scope, and whether on this node. Pure."""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Protocol

from samewire.hcn.frontends import has_host_port
from samewire.hcn.schema import Network
from samewire.inet import packed_ipv4
from samewire.vfp.address import IPV4, ZERO, Prefix
from samewire.vfp.compile.plan import Context, NetworkPlan, network_context, plan_network
from samewire.vfp.compile.route import host_prefixes
from samewire.vfp.constants import SCOPE_UPLINK
from samewire.vfp.model import FAMILIES, NodeFacts, Numbers

_PAD: Final = bytes(12)


class Near(enum.IntEnum):
    """How an address relates to this node."""

    ELSEWHERE = 0
    POD = 1
    """In a subnet whose addresses are all pods of this node."""
    UNDERLAY = 2
    """In a subnet of the underlay that has pods of this node and other hosts."""


ELSEWHERE: Final = Near.ELSEWHERE


class Place(NamedTuple):
    """Where an address is. ``network_id`` is empty on the underlay."""

    scope: int
    network_id: str
    near: Near


OUT_THERE: Final = Place(SCOPE_UPLINK, "", Near.ELSEWHERE)

# Longest first: prefix length, and the places by the address's leading bits.
_Lengths = list[tuple[int, dict[int, Place]]]


def pack(text: str) -> bytes:
    """The 16 bytes of an address in canonical form."""
    packed = packed_ipv4(text) if ":" not in text else None
    return packed + _PAD if packed is not None else ipaddress.IPv6Address(text).packed


class Scoped(Protocol):
    """What is in a scope."""

    @property
    def scope(self) -> int: ...


class Domain(NamedTuple):
    """What the load balancers of one network (or those of none) have to know.

    ``network`` and ``scope``: the one that the load balancers name; ``sources``: the node's own address by scope and
    family; ``contexts``: the networks by scope.
    """

    network: Network | None
    scope: int
    lengths: dict[int, _Lengths]
    sources: dict[tuple[int, int], bytes]
    contexts: dict[int, Context]

    def finder(self, family: int) -> Callable[[bytes], Place]:
        """What tells the places of a family's addresses."""
        bits = 32 if family == IPV4 else 128
        octets = bits // 8
        look_ups = [(bits - length, places.get) for length, places in self.lengths[family]]
        read = int.from_bytes

        def find(packed: bytes) -> Place:
            number = read(packed[:octets])
            for shift, look_up in look_ups:
                found = look_up(number >> shift)
                if found is not None:
                    return found
            return OUT_THERE

        return find

    def source(self, family: int, backends: Iterable[Scoped]) -> bytes:
        """The node's own address in the first network among the backends' scopes; zero on the underlay."""
        for backend in backends:
            if backend.scope != SCOPE_UPLINK:
                return self.sources.get((backend.scope, family), ZERO)
        return ZERO


class Places:
    """The domains of a node. Made anew when a network or the node's own addresses change."""

    def __init__(self, networks: Iterable[Network], facts: NodeFacts, numbers: Numbers) -> None:
        """Raises Invalid, Exhausted."""
        self._facts = facts
        self._numbers = numbers
        self._networks = {network.id: network for network in networks}
        self._domains: dict[str, Domain] = {}

    def domain(self, network_id: str) -> Domain:
        """The domain of a network; "" = that of load balancers without one. Raises Invalid, Exhausted."""
        found = self._domains.get(network_id)
        if found is None:
            found = self._domains[network_id] = self._make(network_id)
        return found

    def same(self, other: Places) -> bool:
        """Whether all addresses are in the same places, for the same networks. Raises Invalid, Exhausted."""
        pairs = ((self.domain(name), other.domain(name)) for name in ("", *self._networks))
        return all(
            (one.scope, one.lengths, one.sources) == (two.scope, two.lengths, two.sources)
            for one, two in pairs
        )

    def _is_known(self, network: Network) -> bool:
        return has_host_port(network) and plan_network(network, self._facts).host_port

    def _make(self, network_id: str) -> Domain:
        own = self._networks.get(network_id)
        # Tenants' networks are not for everybody: their addresses may mean something else elsewhere.
        members = (
            [own] if own else [network for network in self._networks.values() if self._is_known(network)]
        )
        prefixes: list[tuple[Prefix, Place]] = []
        sources: dict[tuple[int, int], bytes] = {}
        contexts: dict[int, Context] = {}
        for network in members:
            context = network_context(network, self._facts, self._numbers)
            contexts.setdefault(context.scope, context)
            prefixes += _prefixes(network, context.plan, context.scope)
            elsewhere = Place(context.scope, network.id, Near.ELSEWHERE)
            prefixes += [(prefix, elsewhere) for prefix in host_prefixes(network, context)]
            for family, address in _sources(context.plan):
                sources.setdefault((context.scope, family), address)
        scope = next(iter(contexts)) if own else SCOPE_UPLINK
        lengths = {family: _lengths(family, prefixes) for family in FAMILIES}
        return Domain(own, scope, lengths, sources, contexts)


def _prefixes(network: Network, plan: NetworkPlan, scope: int) -> Iterable[tuple[Prefix, Place]]:
    for remote in plan.remote.all:
        yield remote.prefix, Place(scope, network.id, Near.ELSEWHERE)
    for subnet in plan.subnets:
        near = Near.UNDERLAY if subnet.underlay else Near.POD
        yield subnet.prefix, Place(scope, network.id, near)


def _sources(plan: NetworkPlan) -> Iterable[tuple[int, bytes]]:
    if plan.bridged:
        return
    for subnet in plan.subnets:
        if subnet.gateway is not None and plan.bound(subnet):
            yield subnet.gateway.family, subnet.gateway.packed


def _lengths(family: int, prefixes: Iterable[tuple[Prefix, Place]]) -> _Lengths:
    bits = 32 if family == IPV4 else 128
    found: dict[int, dict[int, Place]] = {}
    for prefix, place in prefixes:
        if prefix.family == family:
            number = int.from_bytes(prefix.packed[: bits // 8]) >> (bits - prefix.bits)
            found.setdefault(prefix.bits, {})[number] = place
    return sorted(found.items(), reverse=True)
