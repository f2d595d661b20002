"""What a reboot of the node means for the objects written before it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from samewire.hcn.plan.members import without_endpoints
from samewire.hcn.schema import Endpoint, Kind, Namespace, Network, NetworkFlags, Route
from samewire.hcn.state import State
from samewire.hcn.switch import Change


def read_boot_id() -> str:
    """Return the kernel's id of the present boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def netns_alive(path: str) -> bool:
    """True if a path is a network namespace that can have outlived a reboot of the node, by being made anew.

    A path below /proc names a process, and after a reboot that is another one.
    """
    try:
        return not path.startswith("/proc/") and os.stat(path).st_dev == os.stat("/proc/self/ns/net").st_dev
    except OSError:
        return False


def casualties(state: State, old: Iterable[tuple[Kind, str]], alive: Callable[[str], bool]) -> list[Change]:
    """Return the deletions that a reboot means for the objects written before it."""
    endpoints: dict[str, Endpoint] = {}
    load_balancers: dict[str, Change] = {}
    routes: dict[str, Route | None] = {}
    holders: list[Network | Namespace] = []
    for kind, object_id in old:
        value = state.get(kind, object_id)
        if isinstance(value, Network) and value.flags & NetworkFlags.ENABLE_NON_PERSISTENT:
            routes.update((route.id, None) for route in state.routes_of_network(value.id))
            endpoints.update((endpoint.id, endpoint) for endpoint in state.endpoints_of_network(value.id))
            load_balancers.update(
                (gone.id, Change(Kind.LOADBALANCER, gone.id, gone, None))
                for gone in state.load_balancers_of_network(value.id)
            )
            holders.append(value)
        elif isinstance(value, Namespace) and value.netns_path and not alive(value.netns_path):
            endpoints.update((endpoint.id, endpoint) for endpoint in state.endpoints_of_namespace(value.id))
            holders.append(value)
    for route in [route for endpoint_id in endpoints for route in state.routes_of_endpoint(endpoint_id)]:
        rest = tuple(endpoint_id for endpoint_id in route.endpoint_ids if endpoint_id not in endpoints)
        # a route without endpoints is one for the whole network, which only those are that watch endpoints
        stays = rest or route.watches_endpoints
        routes.setdefault(route.id, msgspec.structs.replace(route, endpoint_ids=rest) if stays else None)
    for change in without_endpoints(state, endpoints):
        load_balancers.setdefault(change.id, change)
    return [
        *load_balancers.values(),
        *(Change(Kind.ROUTE, route_id, state.route(route_id), after) for route_id, after in routes.items()),
        *(Change(Kind.ENDPOINT, endpoint.id, endpoint, None) for endpoint in endpoints.values()),
        *(Change(_kind_of(holder), holder.id, holder, None) for holder in holders),
    ]


def _kind_of(holder: Network | Namespace) -> Kind:
    return Kind.NETWORK if isinstance(holder, Network) else Kind.NAMESPACE
