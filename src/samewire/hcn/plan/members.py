"""Endpoints that load balancers and routes name, and that go or give way to another with their address."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from samewire.hcn.loadbalancers import LoadBalancer
from samewire.hcn.schema import Endpoint, Kind
from samewire.hcn.state import View
from samewire.hcn.switch import Change


def without_endpoints(
    view: View, going: Mapping[str, Endpoint], successor: Endpoint | None = None
) -> list[Change]:
    """Plan what the deletion of endpoints means for load balancers: they lose those members.

    Where ``successor`` takes over the address that a load balancer means, it takes over the membership, too: whoever
    wrote the load balancer meant that address, and need not hear of it.
    """
    named = {
        value.id: value for endpoint_id in going for value in view.load_balancers_of_endpoint(endpoint_id)
    }
    return [
        Change(Kind.LOADBALANCER, value.id, value, after)
        for value in named.values()
        if (after := _without(value, going, successor)) != value
    ]


def routes_without(view: View, going: Mapping[str, Endpoint]) -> list[Change]:
    """Plan what the deletion of endpoints means for the routes that watch endpoints: they name the others only."""
    named = {route.id: route for endpoint_id in going for route in view.routes_of_endpoint(endpoint_id)}
    return [
        Change(Kind.ROUTE, route.id, route, msgspec.structs.replace(route, endpoint_ids=rest))
        for route in named.values()
        if route.watches_endpoints
        for rest in [tuple(name for name in route.endpoint_ids if name not in going)]
    ]


def _without(value: LoadBalancer, going: Mapping[str, Endpoint], successor: Endpoint | None) -> LoadBalancer:
    def heir(endpoint_id: str) -> str:
        gone = going.get(endpoint_id)
        if gone is None:
            return endpoint_id
        if successor is None or not set(_means(value, gone)) & set(_means(value, successor)):
            return ""
        return successor.id

    def rest(ids: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(found for endpoint_id in ids if (found := heir(endpoint_id))))

    return msgspec.structs.replace(
        value,
        endpoint_ids=rest(value.endpoint_ids),
        local_endpoint_ids=rest(value.local_endpoint_ids),
        draining_endpoint_ids=rest(value.draining_endpoint_ids),
    )


def _means(value: LoadBalancer, endpoint: Endpoint) -> list[str]:
    """The addresses of an endpoint that are of a load balancer's family."""
    return [address for address in endpoint.addresses if (":" in address) == value.is_ipv6]
