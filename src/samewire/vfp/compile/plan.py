"""What the compilers need to know of a network, worked out once per network and not once per endpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator
from functools import lru_cache
from typing import Final, NoReturn, cast

import msgspec

from samewire.errors import Exhausted, Invalid
from samewire.hcn.frontends import has_host_port
from samewire.hcn.numbered import numbered
from samewire.hcn.policies import (
    Policy,
    ProviderAddress,
    RemoteSubnetRoute,
    SDNRoute,
    SourceMacAddress,
    first,
    select,
)
from samewire.hcn.policy_lists import PolicyList, placed
from samewire.hcn.schema import Network, NetworkType
from samewire.vfp.address import (
    IPV4,
    NO_MAC,
    ZERO,
    Address,
    Prefix,
    address_bits,
    parse_address,
    parse_mac,
    parse_prefix,
)
from samewire.vfp.constants import SCOPE_MAX, SCOPE_UPLINK, RouteFlag, RouteKind
from samewire.vfp.model import VXLAN_OVERHEAD, NodeFacts, Numbers
from samewire.vfp.tables import Nexthop

# Networks whose endpoints have addresses of the underlay: they share the uplink's scope.
BRIDGED: Final = frozenset({NetworkType.L2BRIDGE, NetworkType.L2TUNNEL, NetworkType.TRANSPARENT})
WITHOUT_UPLINK: Final = frozenset({NetworkType.INTERNAL, NetworkType.PRIVATE})


class SubnetPlan(msgspec.Struct, frozen=True):
    """One subnet. ``underlay``: it overlaps the node's own subnet, or is a VLAN's, so its gateway is a real router."""

    prefix: Prefix
    gateway: Address | None
    underlay: bool


class RemoteSubnet(msgspec.Struct, frozen=True):
    """One RemoteSubnetRoute, parsed."""

    prefix: Prefix
    vni: int
    provider: Address
    router_mac: bytes


class RemoteSubnets:
    """The RemoteSubnetRoutes among a network's policies, found by address."""

    def __init__(self, policies: PolicyList) -> None:
        """Raises ``Invalid``, naming the field, for texts that are no addresses."""
        self._policies = policies
        if _UNREADABLE in policies.by(_remote_keys):
            _complain(policies)

    @property
    def all(self) -> Iterator[RemoteSubnet]:
        """All of them, in order."""
        return map(_remote_subnet, self._policies.of(RemoteSubnetRoute))

    def at(self, prefix: Prefix) -> RemoteSubnet | None:
        """The one of exactly that prefix."""
        return self._found(prefix, -1)

    def containing(self, address: Address) -> RemoteSubnet | None:
        """The longest one that contains ``address``."""
        lengths = self._policies.by(_remote_keys)
        for bits in range(address_bits(address.family), -1, -1):
            if (address.family, bits) in lengths:
                found = self.at(Prefix(address.family, address.packed, bits).network)
                if found is not None:
                    return found
        return None

    def behind(self, provider: Address) -> RemoteSubnet | None:
        """The first one behind that provider address."""
        return self._found(provider, 0)

    def _found(self, key: Prefix | Address, which: int) -> RemoteSubnet | None:
        numbers = self._policies.by(_remote_keys).get(key)
        return _remote_subnet(cast(RemoteSubnetRoute, self._policies.at(numbers[which]))) if numbers else None


class NetworkPlan(msgspec.Struct, frozen=True):
    """A network, parsed. ``mtu`` is that of its endpoints unless they say otherwise; ``shadowed`` are the prefixes of
    remote subnets to which the network or the node has a route of its own. ``source_mac``: that of its endpoints on the
    underlay, zero = the uplink's. ``vlan``: the tag of its frames on the uplink, 0 = none; the node has no part in a
    VLAN.
    """

    id: str
    type: NetworkType
    bridged: bool
    uplink: bool
    host_port: bool
    gateway_mac: bytes
    subnets: tuple[SubnetPlan, ...]
    provider: Address | None
    remote: RemoteSubnets
    shadowed: frozenset[Prefix]
    vni: int
    mtu: int
    source_mac: bytes
    vlan: int = 0

    def subnet_of(self, address: Address) -> SubnetPlan | None:
        """The subnet that contains ``address``."""
        return next((subnet for subnet in self.subnets if address in subnet.prefix), None)

    def bound(self, subnet: SubnetPlan) -> bool:
        """Whether the node holds the subnet's gateway address on samewire0."""
        return self.host_port and not subnet.underlay

    def local_provider(self, family: int, facts: NodeFacts) -> bytes:
        """The node's own provider address of that family, packed; zero when it has none."""
        if self.provider is not None and self.provider.family == family:
            return self.provider.packed
        return facts.address(family)


class Context(msgspec.Struct, frozen=True):
    """What every compiler of something inside a network works with."""

    plan: NetworkPlan
    scope: int
    facts: NodeFacts
    numbers: Numbers

    @property
    def routed_flags(self) -> int:
        """Flags of routes out of the network: only one with its own scope counts as a hop."""
        return 0 if self.plan.bridged else RouteFlag.DECREMENT

    def nexthop(self, key: str) -> int:
        """The number of a nexthop (the keys are listed at `Numbers`)."""
        return self.numbers.number("nexthop", key)

    def remote_nexthop(self, remote: RemoteSubnet) -> int:
        """The nexthop of a RemoteSubnetRoute; its number stays when the provider address changes."""
        return self.nexthop(f"tunnel/{self.plan.id}/{remote.prefix}")

    def tunnel_mtu(self, provider: Address) -> int:
        """How long a packet in the tunnel to a provider address may be, in bytes."""
        return self.facts.mtu_to(provider) - VXLAN_OVERHEAD[provider.family]

    def tunnel(self, provider: Address, vni: int, router_mac: bytes) -> Nexthop:
        """A nexthop behind a provider address."""
        return Nexthop(
            kind=RouteKind.TUNNEL,
            family=provider.family,
            mtu=self.tunnel_mtu(provider),
            ifindex=self.facts.tunnel_ifindex,
            vni=vni,
            address=provider.packed,
            local=self.plan.local_provider(provider.family, self.facts),
            mac=router_mac,
        )


def network_context(network: Network, facts: NodeFacts, numbers: Numbers) -> Context:
    """The context of a network. Raises ``Invalid``, ``Exhausted`` (32,763 scopes have been used up)."""
    plan = plan_network(network, facts)
    scope = SCOPE_UPLINK
    if plan.vlan or not plan.bridged:
        scope = numbers.number("scope", f"vlan/{plan.vlan}" if plan.vlan else network.id)
        if not SCOPE_UPLINK < scope <= SCOPE_MAX:
            raise Exhausted("network scopes", f"number {scope} does not fit 1..{SCOPE_MAX}")
    return Context(plan, scope, facts, numbers)


_MEMO: dict[str, tuple[tuple[Network, NodeFacts, NetworkPlan], ...]] = {}
_MEMO_SIZE: Final = 256
_STATES: Final = 2  # a change asks about a network as it was and as it will be, in turns


def plan_network(network: Network, facts: NodeFacts) -> NetworkPlan:
    """The plan of a network; remembered while the very same objects are passed in.

    Raises ``Invalid``, naming the field, for texts that are no addresses.
    """
    known = _MEMO.get(network.id, ())
    for of_network, of_facts, found in known:
        if of_network is network and of_facts is facts:
            return found
    plan = _plan(network, facts)
    if len(_MEMO) >= _MEMO_SIZE:
        _MEMO.clear()
    _MEMO[network.id] = ((network, facts, plan), *known[: _STATES - 1])
    return plan


@lru_cache(maxsize=256)
def gateway_mac(network_id: str) -> bytes:
    """The MAC of the gateway on all host ends of a network: locally administered, the same on every node, so
    that pods' neighbour entries never go stale.
    """
    return b"\x02SW" + hashlib.blake2b(network_id.upper().encode(), digest_size=3).digest()


def _plan(network: Network, facts: NodeFacts) -> NetworkPlan:
    policy = first(network.policies, ProviderAddress)
    provider = parse_address(policy.provider_address, "$.Policies") if policy else None
    source = first(network.policies, SourceMacAddress)
    bridged = network.type in BRIDGED
    vlan = network.vlan if bridged and network.vlan != facts.uplink_vlan else 0
    subnets, remote = _subnets(network, facts, vlan), RemoteSubnets(numbered(network.policies))
    own = _own_destinations(network, subnets, facts) if next(remote.all, None) is not None else ()
    return NetworkPlan(
        id=network.id,
        type=network.type,
        bridged=bridged,
        uplink=network.type not in WITHOUT_UPLINK,
        host_port=has_host_port(network) and not vlan,
        gateway_mac=gateway_mac(network.id),
        subnets=subnets,
        provider=provider,
        remote=remote,
        shadowed=frozenset(prefix for prefix in own if remote.at(prefix) is not None),
        vni=network.vni,
        mtu=facts.uplink_mtu - _overhead(network, provider, facts),
        source_mac=parse_mac(source.source_mac_address, "$.Policies") if source and bridged else NO_MAC,
        vlan=vlan,
    )


def _own_destinations(network: Network, subnets: tuple[SubnetPlan, ...], facts: NodeFacts) -> set[Prefix]:
    """Where the network and the node have routes to, remote subnets aside."""
    own = {subnet.prefix for subnet in subnets}
    own.update(subnet.gateway.host_prefix for subnet in subnets if subnet.gateway is not None)
    own.update(address.network for address in facts.addresses)
    own.update(address.address.host_prefix for address in facts.addresses)
    own.update(Prefix(gateway.family, ZERO, 0) for gateway in facts.gateways)
    texts = [policy.destination_prefix for policy in select(network.policies, SDNRoute)]
    texts += [route.destination_prefix for subnet in network.subnets for route in subnet.routes]
    own.update(parse_prefix(text, "DestinationPrefix") for text in texts if text)
    return own


def _overhead(network: Network, provider: Address | None, facts: NodeFacts) -> int:
    if network.type is not NetworkType.OVERLAY:
        return 0
    if provider is not None:
        return VXLAN_OVERHEAD[provider.family]
    return VXLAN_OVERHEAD[facts.addresses[0].family if facts.addresses else IPV4]


def _subnets(network: Network, facts: NodeFacts, vlan: int) -> tuple[SubnetPlan, ...]:
    plans = []
    for i, ipam in enumerate(network.ipams):
        for j, subnet in enumerate(ipam.subnets):
            path = f"$.Ipams[{i}].Subnets[{j}]"
            if not subnet.ip_address_prefix:
                continue
            prefix = parse_prefix(subnet.ip_address_prefix, f"{path}.IpAddressPrefix")
            gateway = parse_address(subnet.gateway, f"{path}.Routes") if subnet.gateway else None
            if gateway is not None and (gateway.packed == ZERO or gateway.family != prefix.family):
                gateway = None
            shared = network.type in BRIDGED and any(
                own.network in prefix or prefix in own.network for own in (*facts.addresses, *facts.underlay)
            )
            plans.append(SubnetPlan(prefix, gateway, shared or bool(vlan)))
    return tuple(plans)


_UNREADABLE: Final = "unreadable"


def _remote_keys(policy: Policy) -> tuple[Hashable, ...]:
    """What a RemoteSubnetRoute is found by: its prefix, its provider address, its family and length."""
    if not isinstance(policy, RemoteSubnetRoute):
        return ()
    try:
        remote = _remote_subnet(policy)
    except Invalid:
        return (_UNREADABLE,)
    return remote.prefix, remote.provider, (remote.prefix.family, remote.prefix.bits)


def _complain(policies: PolicyList) -> NoReturn:
    """Raise ``Invalid`` for the first that cannot be read."""
    for path, policy in placed(policies, RemoteSubnetRoute):
        try:
            _remote_subnet(policy)
        except Invalid as error:
            raise Invalid(f"{path}.{error.path}", error.message) from None
    raise AssertionError("all can be read")


@lru_cache(maxsize=16384)
def _remote_subnet(policy: RemoteSubnetRoute) -> RemoteSubnet:
    """One policy, parsed: all the others of a network are what they were when one more comes. Raises ``Invalid``."""
    provider = parse_address(policy.provider_address, "ProviderAddress")
    if provider.packed == ZERO:
        raise Invalid("ProviderAddress", "the unspecified address is no provider address")
    return RemoteSubnet(
        parse_prefix(policy.destination_prefix, "DestinationPrefix"),
        policy.isolation_id,
        provider,
        parse_mac(policy.distributed_router_mac_address, "DistributedRouterMacAddress"),
    )
