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
name endpoints, are in a set of the endpoints' own, which is asked beside the scope. Sets of a few are named by their
content: most pods have the same. Very many have a name of their port's, and change where they are. Of very many
policies, an endpoint's or a network's, what is compiled is the difference from the last ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Final, NamedTuple, cast

import msgspec

from samewire.errors import Invalid
from samewire.hcn.numbered import numbered
from samewire.hcn.policies import Policy, SDNRoute
from samewire.hcn.policy_lists import PolicyList, path_of, placed
from samewire.hcn.schema import Endpoint, Network, NetworkType, Route, SdnRoute
from samewire.versions import Version
from samewire.vfp.address import ZERO, Address, Prefix, parse_address, parse_prefix
from samewire.vfp.compile.builder import Builder, gateway_nexthop, route_key, uplink_nexthop
from samewire.vfp.compile.edits import Latest
from samewire.vfp.compile.plan import Context, network_context
from samewire.vfp.compile.vlan import vlan_nexthop
from samewire.vfp.constants import OWN_ROUTE_KEY_BITS, SCOPE_UPLINK, RouteFlag, RouteKind
from samewire.vfp.hashes import hash64
from samewire.vfp.model import Compiled, HostBinding, NodeFacts, Numbers
from samewire.vfp.record import Record
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
_FEW: Final = 64
_CONTENTS: Final = 1 << 32
"""Names of sets below are numbers of ports, which no two have at a time, and which a restart leaves as they are."""

_Way = tuple[str, bool]


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


def sdn_routes(builder: Builder, network: Network, context: Context) -> None:
    """Add the routes of a network's SDNRoute policies, behind all others of its scope: they go before those."""
    policies = numbered(network.policies)
    if len(policies.of(SDNRoute)) > _FEW:
        others = {key: cast(RouteEntry, row) for key, row in builder.entries.get("sw_routes", {}).items()}
        place = _Place(context.scope, is_own=False)
        builder.versions["sw_routes"] = _very_many(builder, network.id, policies, others, context, place)
        return
    for path, policy in placed(policies, SDNRoute):
        _sdn_route(builder, policy, path, context)


def own_routes(
    builder: Builder, endpoint: Endpoint, routes: Iterable[Route], context: Context, port: int
) -> int:
    """Add the set of an endpoint's own routes: of its SDNRoute policies, and of the route objects that name it. Of two
    to the same prefix the last one counts.

    Returns the set's name, 0 = there are none. Raises ``Invalid``, ``Exhausted``.
    """
    policies = numbered(endpoint.policies)
    given = ((f"$.Routes[{i}]", entry) for route in routes for i, entry in enumerate(route.routes))
    if len(policies.of(SDNRoute)) > _FEW:
        place = _Place(port, is_own=True)
        named = {place.key(prefix): row for prefix, row in _found(builder, given, context).items()}
        rows = _very_many(builder, endpoint.id, policies, named, context, place)
        builder.versions["sw_own_routes"] = rows
        return port
    found = {
        **_found(builder, placed(policies, SDNRoute), context),
        **_found(builder, given, context),
    }
    if not found:
        return 0
    name, few = _own_set(tuple(found.items()))
    for key, value in few:
        builder.put("sw_own_routes", key, value)
    return name


def _found(
    builder: Builder, given: Iterable[tuple[str, SdnRoute | SDNRoute]], context: Context
) -> dict[Prefix, RouteEntry]:
    found = {}
    for path, entry in given:
        destination, target = _leads(builder, entry, path, context)
        found[destination] = target.entry(destination)
    return found


# Most pods of a node have the very same few routes.
@lru_cache(maxsize=128)
def _own_set(
    found: tuple[tuple[Prefix, RouteEntry], ...],
) -> tuple[int, tuple[tuple[OwnRouteKey, RouteEntry], ...]]:
    """A set's name and its entries."""
    rows = sorted(found)
    content = b"".join(bytes((p.family,)) + p.packed + value.pack() for p, value in rows)
    name = max(hash64(content), _CONTENTS)
    return name, tuple((_own_key(name, prefix), value) for prefix, value in rows)


def _own_key(name: int, prefix: Prefix) -> OwnRouteKey:
    low, high = name & 0xFFFFFFFF, name >> 32
    return OwnRouteKey(OWN_ROUTE_KEY_BITS + prefix.bits, low, high, prefix.family, prefix.packed)


class _Place(NamedTuple):
    """Where an object's routes stand: in a set of its own, by its name, or in a scope, by its number."""

    number: int
    is_own: bool

    def key(self, prefix: Prefix) -> Record:
        """Of a route to a prefix."""
        return _own_key(self.number, prefix) if self.is_own else route_key(self.number, prefix)


class _Last(NamedTuple):
    """What very many routes were compiled from: policies, and ``others`` beside them."""

    place: _Place
    others: dict[Record, RouteEntry]
    targets: dict[_Way, _Target]
    policies: PolicyList
    rows: Version[Record, Record]


def _very_many(
    builder: Builder,
    object_id: str,
    policies: PolicyList,
    others: dict[Record, RouteEntry],
    context: Context,
    place: _Place,
) -> Version[Record, Record]:
    """All routes of a place: the last ones with what differs, where all ways lead where they led. Each way is looked
    at, of the routes only those that come or go. In a set of its own ``others`` go before those of policies, in a
    scope behind.
    """
    targets: dict[_Way, _Target] = {}
    for way, numbers in policies.by(_ways).items():
        first = cast(SDNRoute, policies.at(numbers[0]))
        _, targets[cast(_Way, way)] = _leads(builder, first, path_of(policies, numbers[0]), context)
    last = _LAST.get(object_id)
    if (
        last is not None
        and (last.place, last.others) == (place, others)
        and _lead_there(targets, last.targets)
    ):
        moved = policies.difference(last.policies).of(SDNRoute)
        prefixes = {prefix for _, policy in moved.gone for prefix in _destinations(policy)}
        prefixes |= {_destination(policies, number) for number, _ in moved.new}
        there = last.rows
    else:
        there = Version(dict[Record, Record](others))
        prefixes = {_destination(policies, number) for number in policies.group(SDNRoute).numbers}
    changes: dict[Record, Record | None] = {}
    for prefix in prefixes:
        key = place.key(prefix)
        other = others.get(key)
        own = _of_policies(prefix, policies, targets)
        changes[key] = (other or own) if place.is_own else (own or other)
    rows = there.changed(changes) if changes else there
    _LAST.keep(object_id, _Last(place, others, targets, policies, rows))
    return rows


def _lead_there(targets: dict[_Way, _Target], before: dict[_Way, _Target]) -> bool:
    """Whether ways lead where they led, as far as they were there."""
    return all(before.get(way, target) == target for way, target in targets.items())


def _of_policies(prefix: Prefix, policies: PolicyList, targets: dict[_Way, _Target]) -> RouteEntry | None:
    """The last one of the policies' routes to a prefix, None when there is none."""
    numbers = policies.by(_destinations).get(prefix)
    if not numbers:
        return None
    (way,) = _ways(policies.at(numbers[-1]))
    return targets[way].entry(prefix)


def _ways(policy: Policy) -> tuple[_Way, ...]:
    """What decides where an SDNRoute leads: its next hop, and whether it is for IPv6."""
    return ((policy.next_hop, ":" in policy.destination_prefix),) if isinstance(policy, SDNRoute) else ()


def _destinations(policy: Policy) -> tuple[Prefix, ...]:
    """The destination of an SDNRoute, if it can be read."""
    try:
        return (parse_prefix(policy.destination_prefix),) if isinstance(policy, SDNRoute) else ()
    except Invalid:
        return ()


def _destination(policies: PolicyList, number: int) -> Prefix:
    """The destination of one that has to be readable. Raises ``Invalid``, naming the field."""
    policy = cast(SDNRoute, policies.at(number))
    return parse_prefix(policy.destination_prefix, f"{path_of(policies, number)}.DestinationPrefix")


_LAST: Final[Latest[_Last]] = Latest(256)
"""By endpoint or network; ids that are alike cost time only."""


def host_prefixes(network: Network, context: Context) -> list[Prefix]:
    """The prefixes that SDNRoute policies of a network send through the node's own stack: not its endpoints, even
    where they are in its subnets. One that leads nowhere, as the node is now, is no matter of who asks for these.
    """
    found = []
    for path, policy in placed(network.policies, SDNRoute):
        with suppress(Invalid):
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
