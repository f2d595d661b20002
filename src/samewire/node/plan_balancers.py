"""Which load balancers a change of other objects touches. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from samewire.errors import Invalid
from samewire.hcn.loadbalancers import LoadBalancer
from samewire.hcn.schema import Endpoint, Kind, Network
from samewire.hcn.switch import Change, StoreView
from samewire.vfp.address import Address, Prefix, parse_address
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
    """The load balancers with a backend in a prefix that has changed; all of the network if it has changed otherwise.

    A node that joins is a new prefix: fifty thousand services are none of its business.
    """
    network = after or before
    if network is None:
        return
    old, new = _plan(before, facts), _plan(after, facts)
    whole = (old is None) != (new is None) or _rest(old) != _rest(new)
    prefixes = _prefixes(old) | _prefixes(new) if whole else _prefixes(old) ^ _prefixes(new)
    for value in view.load_balancers():
        if value.network_id == network.id:
            if whole or _has_backend(value, prefixes):
                yield value.id
        elif not value.network_id and _has_backend(value, prefixes):
            yield value.id


def _plan(network: Network | None, facts: NodeFacts) -> NetworkPlan | None:
    try:
        return plan_network(network, facts) if network is not None else None
    except Invalid:
        return None


def _rest(plan: NetworkPlan | None) -> tuple[object, ...]:
    """What matters to load balancers beside the prefixes."""
    return () if plan is None else (plan.host_port, plan.subnets, plan.vni)


def _prefixes(plan: NetworkPlan | None) -> set[Prefix]:
    if plan is None:
        return set()
    return {remote.prefix for remote in plan.remote.all} | {subnet.prefix for subnet in plan.subnets}


def _has_backend(value: LoadBalancer, prefixes: Iterable[Prefix]) -> bool:
    return any(parse(backend.ip_address) in prefix for backend in value.backends for prefix in prefixes)


def parse(text: str) -> Address:
    """An address that has been checked."""
    return parse_address(text, "$.Backends")
