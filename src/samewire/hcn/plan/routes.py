"""Route objects: SDN routes shared by endpoints."""

from __future__ import annotations

import msgspec

from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.normalise import check_route
from samewire.hcn.plan.context import (
    Context,
    created,
    deleted,
    get_endpoint,
    get_network,
    get_route,
    refuse_existing,
)
from samewire.hcn.schema import Kind, Route
from samewire.hcn.switch import Change


def create_route(context: Context, route: Route) -> list[Change]:
    """Plan the creation of a route object; its network may be left to its endpoints to say. One that watches endpoints
    and names none is, on a node with one network, for that. Raises HcnError.
    """
    route = check_route(route)
    refuse_existing(context.view, Kind.ROUTE, route.id)
    if not route.routes:
        raise HcnError(HcnCode.INVALID_JSON, "$.Routes: at least one route is required")
    endpoints = [get_endpoint(context.view, endpoint_id) for endpoint_id in route.endpoint_ids]
    networks = {endpoint.network_id for endpoint in endpoints} | (
        {route.network_id} if route.network_id else set()
    )
    if not networks and route.watches_endpoints:
        networks = {network.id for network in context.view.networks()}
    if len(networks) != 1:
        raise HcnError(
            HcnCode.INVALID_JSON_REFERENCE,
            "$.HostComputeEndpoints: all endpoints of a route are of one network, and it needs one",
        )
    network = get_network(context.view, networks.pop())
    for index, endpoint in enumerate(endpoints):
        if endpoint.is_remote:
            raise HcnError(
                HcnCode.ENDPOINT_NOT_LOCAL,
                f"$.HostComputeEndpoints[{index}]: endpoint {endpoint.id} is remote",
            )
    return [created(Kind.ROUTE, msgspec.structs.replace(route, network_id=network.id))]


def delete_route(context: Context, route_id: str) -> list[Change]:
    """Plan the deletion of a route object. Raises HcnError."""
    return [deleted(Kind.ROUTE, get_route(context.view, route_id))]
