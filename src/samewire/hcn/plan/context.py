"""What all planning functions are given, and the look-ups that fail with the right code."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.loadbalancers import LoadBalancer
from samewire.hcn.plan.addresses import Pool
from samewire.hcn.schema import Endpoint, Kind, Namespace, Network, Object, Route
from samewire.hcn.state import View
from samewire.hcn.switch import Change, NodeFacts


class Context(msgspec.Struct, frozen=True):
    """The objects as they are, the node, and where addresses and ports come from (``usable_ports``: see
    `samewire.hcn.switch.Switch`).
    """

    view: View
    facts: NodeFacts
    pool: Pool
    usable_ports: Callable[[], Callable[[int, int], bool]]


def get_network(view: View, network_id: str) -> Network:
    """Return a network. Raises HcnError(NETWORK_NOT_FOUND)."""
    found = view.network(network_id)
    if found is None:
        raise HcnError(HcnCode.NETWORK_NOT_FOUND, f"The network was not found. ({network_id})")
    return found


def get_endpoint(view: View, endpoint_id: str) -> Endpoint:
    """Return an endpoint. Raises HcnError(ENDPOINT_NOT_FOUND)."""
    found = view.endpoint(endpoint_id)
    if found is None:
        raise HcnError(HcnCode.ENDPOINT_NOT_FOUND, f"The endpoint was not found. ({endpoint_id})")
    return found


def get_namespace(view: View, namespace_id: str) -> Namespace:
    """Return a namespace. Raises HcnError(ERROR_NOT_FOUND); clients match on the text."""
    found = view.namespace(namespace_id)
    if found is None:
        raise HcnError(HcnCode.ERROR_NOT_FOUND, f"Element not found. (namespace {namespace_id})")
    return found


def get_route(view: View, route_id: str) -> Route:
    """Return a route. Raises HcnError(ERROR_NOT_FOUND)."""
    found = view.route(route_id)
    if found is None:
        raise HcnError(HcnCode.ERROR_NOT_FOUND, f"Element not found. (route {route_id})")
    return found


def get_load_balancer(view: View, load_balancer_id: str) -> LoadBalancer:
    """Return a load balancer. Raises HcnError(ERROR_NOT_FOUND)."""
    found = view.load_balancer(load_balancer_id)
    if found is None:
        raise HcnError(HcnCode.ERROR_NOT_FOUND, f"Element not found. (load balancer {load_balancer_id})")
    return found


def refuse_existing(view: View, kind: Kind, object_id: str) -> None:
    """Refuse an id that is taken. Raises HcnError."""
    if view.get(kind, object_id) is not None:
        code = HcnCode.NETWORK_ALREADY_EXISTS if kind is Kind.NETWORK else HcnCode.OBJECT_ALREADY_EXISTS
        raise HcnError(code, f"The object already exists. ({kind.value}/{object_id})")


def created(kind: Kind, value: Object) -> Change:
    """Return the creation of an object."""
    return Change(kind, value.id, None, value)


def deleted(kind: Kind, value: Object) -> Change:
    """Return the deletion of an object."""
    return Change(kind, value.id, value, None)


def modified(kind: Kind, before: Object, after: Object) -> list[Change]:
    """Return the change of an object; nothing when it stays as it is."""
    return [Change(kind, before.id, before, after)] if before != after else []
