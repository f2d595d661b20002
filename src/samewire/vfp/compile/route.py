"""SDN routes: where a prefix of a network's scope goes.

The same three fields come as an SDNRoute object, as an SDNRoute policy of an endpoint and (without
NeedEncap) as a route of a subnet. What the next hop is decides:

- none, one of the node's own addresses, or a gateway that samewire0 holds: the node's own stack ("through the
  host path", what NeedEncap asks for);
- the gateway of the network otherwise: the node's default gateway;
- an address behind a RemoteSubnetRoute, or its provider address: that tunnel;
- anything else: that router on the underlay.

Those of a network, of routes that name no endpoints and of routes that watch endpoints belong to the scope, so they
hold for every endpoint of the network; bridged networks share one. Those of an endpoint's policies, and of routes that
name endpoints, are in a set of the endpoints' own, which is asked beside the scope.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import msgspec

from samewire.errors import Invalid
from samewire.hcn.policies import Policy, SDNRoute
from samewire.hcn.policy_lists import placed
from samewire.hcn.schema import Network, NetworkType, Route, SdnRoute
from samewire.vfp.address import ZERO, Address, Prefix, parse_address, parse_prefix
from samewire.vfp.compile.builder import Builder, gateway_nexthop, uplink_nexthop
from samewire.vfp.compile.plan import Context, network_context
from samewire.vfp.compile.vlan import vlan_nexthop
from samewire.vfp.constants import OWN_ROUTE_KEY_BITS, SCOPE_UPLINK, RouteFlag, RouteKind
from samewire.vfp.hashes import hash64
from samewire.vfp.model import Compiled, HostBinding, NodeFacts, Numbers
from samewire.vfp.tables import Id, OwnRouteKey
from samewire.vfp.tables import Route as RouteEntry


class _Target(msgspec.Struct, frozen=True):
    """Where a route leads."""

    kind: RouteKind
    nexthop: int = 0
    flags: int = 0
    scope: int = SCOPE_UPLINK

    def entry(self, destination: Prefix) -> RouteEntry:
        """As the switch has it."""
        return RouteEntry(self.kind, self.flags, self.scope, self.nexthop, destination.bits)


_HOST = _Target(RouteKind.HOST)


def compile_route(route: Route, network: Network, facts: NodeFacts, numbers: Numbers) -> Compiled:
    """What a route object adds for a whole network: nothing where it is its endpoints'.

    Raises ``Invalid`` (naming the field), ``Exhausted``.
    """
    context = network_context(network, facts, numbers)
    builder = Builder()
    for i, entry in enumerate(route.routes):
        _sdn_route(builder, entry, f"$.Routes[{i}]", context)
    if route.is_of_endpoints:
        return Compiled({})  # it is compiled with them; here it has been checked, attached or not
    return Compiled(builder.entries, HostBinding(forwards=builder.forwards))


def sdn_routes(builder: Builder, policies: Iterable[Policy], context: Context) -> None:
    """Add the routes of the SDNRoute policies in an object's list of policies."""
    for path, policy in placed(policies, SDNRoute):
        _sdn_route(builder, policy, path, context)


def own_routes(
    builder: Builder, policies: Iterable[Policy], routes: Iterable[Route], context: Context
) -> int:
    """Add the set of an endpoint's own routes: of its SDNRoute policies, and of the route objects that name it. Of two
    to the same prefix the last one counts.

    Returns the set's name, 0 = there are none. Raises ``Invalid``, ``Exhausted``.
    """
    found: dict[Prefix, RouteEntry] = {}
    given: list[tuple[str, SdnRoute | SDNRoute]] = [*placed(policies, SDNRoute)]
    given += ((f"$.Routes[{i}]", entry) for route in routes for i, entry in enumerate(route.routes))
    for path, entry in given:
        destination, target = _leads(builder, entry, path, context)
        found[destination] = target.entry(destination)
    if not found:
        return 0
    name, rows = _own_set(tuple(found.items()))
    for key, value in rows:
        builder.put("sw_own_routes", key, value)
    return name


# Most pods of a node have the very same few routes.
@lru_cache(maxsize=128)
def _own_set(
    found: tuple[tuple[Prefix, RouteEntry], ...],
) -> tuple[int, tuple[tuple[OwnRouteKey, RouteEntry], ...]]:
    """A set's name and its entries."""
    rows = sorted(found)
    name = hash64(b"".join(bytes((p.family,)) + p.packed + value.pack() for p, value in rows))
    low, high = name & 0xFFFFFFFF, name >> 32
    keys = (OwnRouteKey(OWN_ROUTE_KEY_BITS + p.bits, low, high, p.family, p.packed) for p, _ in rows)
    return name, tuple(zip(keys, (value for _, value in rows), strict=True))


def host_prefixes(network: Network, context: Context) -> list[Prefix]:
    """The prefixes that SDNRoute policies of a network send through the node's own stack: not its endpoints, even
    where they are in its subnets. Raises ``Invalid``.
    """
    found = []
    for path, policy in placed(network.policies, SDNRoute):
        destination = parse_prefix(policy.destination_prefix, f"{path}.DestinationPrefix")
        if _target(Builder(), policy.next_hop, destination, path, context) is _HOST:
            found.append(destination)
    return found


def subnet_routes(builder: Builder, network: Network, context: Context) -> None:
    """Add the routes of a network's subnets, but not the default ones, which name the gateway."""
    for i, ipam in enumerate(network.ipams):
        for j, subnet in enumerate(ipam.subnets):
            for k, entry in enumerate(subnet.routes):
                if not entry.destination_prefix or not entry.next_hop:
                    continue
                path = f"$.Ipams[{i}].Subnets[{j}].Routes[{k}]"
                destination = parse_prefix(entry.destination_prefix, f"{path}.DestinationPrefix")
                if destination.bits:
                    _add(
                        builder,
                        destination,
                        _target(builder, entry.next_hop, destination, path, context),
                        context,
                    )


def _sdn_route(builder: Builder, entry: SdnRoute | SDNRoute, path: str, context: Context) -> None:
    destination, target = _leads(builder, entry, path, context)
    _add(builder, destination, target, context)


def _leads(
    builder: Builder, entry: SdnRoute | SDNRoute, path: str, context: Context
) -> tuple[Prefix, _Target]:
    destination = parse_prefix(entry.destination_prefix, f"{path}.DestinationPrefix")
    target = _target(builder, entry.next_hop, destination, path, context)
    if target is _HOST and context.plan.type is NetworkType.PRIVATE:
        raise Invalid(f"{path}.NextHop", "a Private network has no path to the node")
    builder.forwards |= target is _HOST
    return destination, target


def _add(builder: Builder, destination: Prefix, target: _Target, context: Context) -> None:
    builder.route(
        context.scope,
        destination,
        target.kind,
        nexthop=target.nexthop,
        flags=target.flags,
        target_scope=target.scope,
    )


def _target(builder: Builder, next_hop: str, destination: Prefix, path: str, context: Context) -> _Target:
    if not next_hop:
        return _HOST
    plan = context.plan
    via = parse_address(next_hop, f"{path}.NextHop")
    if via.packed == ZERO:
        return _HOST
    if via.family != destination.family:
        raise Invalid(f"{path}.NextHop", f"{via} is not of the family of {destination}")
    subnet = next((subnet for subnet in plan.subnets if subnet.gateway == via), None)
    if _is_own(via, context.facts) or (subnet is not None and plan.bound(subnet)):
        return _HOST
    remote = plan.remote.containing(via) or plan.remote.behind(via)
    if remote is not None:
        return _Target(RouteKind.TUNNEL, context.remote_nexthop(remote), RouteFlag.DECREMENT)
    if not plan.uplink:
        raise Invalid(f"{path}.NextHop", f"a network of type {plan.type} cannot reach {via}")
    if plan.vlan:
        if subnet is None:
            raise Invalid(
                f"{path}.NextHop",
                f"in VLAN {plan.vlan} endpoints find routers by ARP and ND themselves: {via} has to be in their own "
                "Routes",
            )
        return _Target(RouteKind.UPLINK, vlan_nexthop(context), scope=context.scope)
    if subnet is not None and not subnet.underlay:
        number = gateway_nexthop(via.family, context.numbers)
    else:
        number = context.nexthop(f"uplink/via/{via}")
        builder.put("sw_nexthops", Id(number), uplink_nexthop(context.facts, via))
    return _Target(RouteKind.UPLINK, number, context.routed_flags)


def _is_own(address: Address, facts: NodeFacts) -> bool:
    return any(own.address == address for own in facts.addresses)
