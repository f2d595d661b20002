"""Which load balancers a change of other objects touches. Pure."""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from samewire.errors import Invalid
from samewire.hcn.loadbalancers import LoadBalancer
from samewire.hcn.policies import RemoteSubnetRoute, SDNRoute, select
from samewire.hcn.schema import Endpoint, Kind, Network
from samewire.hcn.switch import Change, StoreView
from samewire.node.plan_acl import policies_moved
from samewire.vfp.address import IPV4, Prefix, parse_prefix
from samewire.vfp.compile.plan import NetworkPlan, plan_network
from samewire.vfp.model import NodeFacts


def has_direct(value: LoadBalancer | None) -> bool:
    """Whether some backend can be reached by DSR: then there are nexthops to compile."""
    return value is not None and any(backend.mac_address for backend in value.backends)


def touched_by_endpoint(change: Change, view: StoreView) -> Iterator[str]:
    """The load balancers that name an endpoint, or have one of its addresses as a backend."""
    for value in view.load_balancers_of_endpoint(change.id):
        yield value.id
    addresses: dict[str, None] = {}
    for endpoint in (change.before, change.after):
        if isinstance(endpoint, Endpoint):
            addresses.update(dict.fromkeys(endpoint.addresses))
    for address in addresses:
        for value in view.load_balancers_with_backend(address):
            yield value.id


def touched_by_link(endpoint_id: str, view: StoreView) -> dict[str, bool]:
    """The load balancers to compile anew when only an endpoint's link is made again, or has gone."""
    endpoint = view.endpoint(endpoint_id)
    change = Change(Kind.ENDPOINT, endpoint_id, endpoint, endpoint)
    return dict.fromkeys(touched_by_endpoint(change, view), True)


def touched_by_network(
    before: Network | None, after: Network | None, view: StoreView, facts: NodeFacts
) -> Iterator[str]:
    """The load balancers with a backend in a prefix that has changed; all of the network if it has changed otherwise,
    and those of no network whose backends are reached by DSR on the underlay if a network there has.

    A node that joins is a new prefix: fifty thousand services are none of its business.
    """
    network = after or before
    if network is None:
        return
    old, new = _plan(before, facts), _plan(after, facts)
    whole = (old is None) != (new is None) or _rest(old) != _rest(new)
    if whole:
        prefixes = Prefixes(_prefixes(before, old) | _prefixes(after, new))
    else:
        prefixes = Prefixes(_moved(before, after, old, new))
    if not whole and not prefixes:
        return
    underlay = whole and any(plan is not None and plan.bridged for plan in (old, new))
    for value in view.load_balancers():
        if value.network_id == network.id:
            if whole or _has_backend(value, prefixes):
                yield value.id
        elif not value.network_id and (_has_backend(value, prefixes) or (underlay and has_direct(value))):
            yield value.id


def _plan(network: Network | None, facts: NodeFacts) -> NetworkPlan | None:
    try:
        return plan_network(network, facts) if network is not None else None
    except Invalid:
        return None


def _rest(plan: NetworkPlan | None) -> tuple[object, ...]:
    """What matters to load balancers beside the prefixes."""
    return () if plan is None else (plan.host_port, plan.subnets, plan.vni, plan.vlan, plan.provider)


def _prefixes(network: Network | None, plan: NetworkPlan | None) -> set[Prefix]:
    if network is None or plan is None:
        return set()
    own = {remote.prefix for remote in plan.remote.all} | {subnet.prefix for subnet in plan.subnets}
    return own | _destinations(select(network.policies, SDNRoute))


def _destinations(routes: Iterable[SDNRoute]) -> set[Prefix]:
    """Where SDN routes lead: perhaps to the node, out of what the network has there otherwise."""
    return {parse_prefix(route.destination_prefix) for route in routes}


def _moved(
    before: Network | None, after: Network | None, old: NetworkPlan | None, new: NetworkPlan | None
) -> set[Prefix]:
    """The prefixes that one of two plans has, and the other has not."""
    routes = (policy for side in policies_moved(before, after, RemoteSubnetRoute) for policy in side)
    named = {parse_prefix(policy.destination_prefix) for policy in routes}
    moved = {prefix for prefix in named if _has(old, prefix)} ^ {
        prefix for prefix in named if _has(new, prefix)
    }
    return moved | _destinations(route for side in policies_moved(before, after, SDNRoute) for route in side)


def _has(plan: NetworkPlan | None, prefix: Prefix) -> bool:
    if plan is None:
        return False
    return plan.remote.at(prefix) is not None or any(subnet.prefix == prefix for subnet in plan.subnets)


_FEW: Final = 16


class Prefixes:
    """Prefixes that are asked about very many addresses: the cost depends on how many lengths there are."""

    def __init__(self, prefixes: Collection[Prefix]) -> None:
        self._four: dict[int, set[int]] = {}
        self._six: dict[int, set[int]] = {}
        for prefix in prefixes:
            bits, kept, size = (32, self._four, 4) if prefix.family == IPV4 else (128, self._six, 16)
            shift = bits - prefix.bits
            kept.setdefault(shift, set()).add(int.from_bytes(prefix.packed[:size]) >> shift)
        # The first octets as text: a node that joins is one prefix, and most addresses need not be read.
        few = len(prefixes) <= _FEW
        self._starts = (
            tuple(_octets(prefix) for prefix in prefixes if prefix.family == IPV4) if few else ("",)
        )

    def __bool__(self) -> bool:
        return bool(self._four or self._six)

    def __contains__(self, address: str) -> bool:
        """Whether an address, in a form that has been checked, is in one of them."""
        if ":" in address:
            lengths = self._six
            if not lengths:
                return False
            number = int.from_bytes(socket.inet_pton(socket.AF_INET6, address))
        elif address.startswith(self._starts):
            lengths, number = self._four, int.from_bytes(socket.inet_aton(address))
        else:
            return False
        for shift, found in lengths.items():  # noqa: SIM110  # a generator costs as much as all the rest
            if number >> shift in found:
                return True
        return False


def _octets(prefix: Prefix) -> str:
    """What the addresses of an IPv4 prefix begin with, as far as that is whole octets."""
    return "".join(f"{byte}." for byte in prefix.packed[: min(prefix.bits // 8, 3)])


def _has_backend(value: LoadBalancer, prefixes: Prefixes) -> bool:
    return any(backend.ip_address in prefixes for backend in value.backends)
