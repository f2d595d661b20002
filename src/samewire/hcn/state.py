"""The objects in memory, with the indexes that make every look-up O(1): the authoritative view of what is
wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from samewire.hcn.frontends import frontend_keys, member_keys
from samewire.hcn.loadbalancers import LoadBalancer
from samewire.hcn.numbered import Keys, numbered
from samewire.hcn.policies import parse_prefix
from samewire.hcn.policy_lists import mapped_ports, sets_of
from samewire.hcn.schema import Endpoint, Kind, Namespace, Network, Object, Route
from samewire.hcn.switch import Change
from samewire.hcn.whereabouts import blocks_of, remote_keys

Key = tuple[str | int, ...]


def _network_keys(network: Network) -> list[Key]:
    return [("network-name", network.name)]


def _endpoint_keys(endpoint: Endpoint) -> list[Key]:
    keys: list[Key] = [("network", endpoint.network_id), ("mac", endpoint.network_id, endpoint.mac_address)]
    if endpoint.namespace_id:
        keys.append(("namespace", endpoint.namespace_id))
    if endpoint.container_id:
        keys.append(("container", endpoint.container_id))
    keys.extend(("ip", endpoint.network_id, entry.ip_address) for entry in endpoint.ip_configurations)
    keys.extend(remote_keys(endpoint))
    return keys


def _mapping_key(_: Endpoint, port: Any) -> Key:
    return "mapping", *port


def _set_key(endpoint: Endpoint, set_id: Any) -> Key:
    return "set", endpoint.network_id, set_id


_POLICY_KEYS: tuple[tuple[Keys, Callable[[Endpoint, Any], Key]], ...] = (
    (mapped_ports, _mapping_key),
    (sets_of, _set_key),
)
"""What an endpoint is found by for its policies, of which there may be thousands."""


def _policy_keys(endpoint: Endpoint | None, beside: Endpoint | None) -> Iterator[Key]:
    """The keys of an endpoint's policies that another state of it has not."""
    if endpoint is None:
        return
    policies = numbered(endpoint.policies)
    if beside is None:
        for keys, key in _POLICY_KEYS:
            for name in policies.by(keys):
                yield key(endpoint, name)
        return
    others = numbered(beside.policies)
    own = [policy for _, policy in policies.difference(others).new]
    for keys, key in _POLICY_KEYS:
        for name in dict.fromkeys(name for policy in own for name in keys(policy)):
            if name not in others.by(keys):
                yield key(endpoint, name)


def _moved_keys(kind: Kind, before: Object | None, after: Object | None) -> tuple[list[Key], list[Key]]:
    """The keys that an object loses, and those that it gets; most of a modified object's stay."""
    old = _KEYS[kind](before) if before is not None else []
    new = _KEYS[kind](after) if after is not None else []
    if old and new:
        had, has = set(old), set(new)
        old = [key for key in old if key not in has]
        new = [key for key in new if key not in had]
    if kind is Kind.LOADBALANCER:
        was, will = cast(LoadBalancer | None, before), cast(LoadBalancer | None, after)
        old += member_keys(was, will)
        new += member_keys(will, was)
    elif kind is Kind.ENDPOINT:
        one, other = cast(Endpoint | None, before), cast(Endpoint | None, after)
        old += _policy_keys(one, other)
        new += _policy_keys(other, one)
    return old, new


def _namespace_keys(namespace: Namespace) -> list[Key]:
    return [("path", namespace.netns_path)] if namespace.netns_path else []


def _route_keys(route: Route) -> list[Key]:
    return [
        ("network-routes", route.network_id),
        *(("endpoint-routes", endpoint_id) for endpoint_id in dict.fromkeys(route.endpoint_ids)),
    ]


def _load_balancer_keys(value: LoadBalancer) -> list[Key]:
    keys: list[Key] = [key for key, _ in frontend_keys(value)]
    if value.network_id:
        keys.append(("network-lbs", value.network_id))
    if value.source_vip:
        keys.append(("source-vip", value.network_id, value.source_vip))
    return keys


_KEYS = cast(
    dict[Kind, Callable[[Object], list[Key]]],
    {
        Kind.NETWORK: _network_keys,
        Kind.ENDPOINT: _endpoint_keys,
        Kind.NAMESPACE: _namespace_keys,
        Kind.ROUTE: _route_keys,
        Kind.LOADBALANCER: _load_balancer_keys,
    },
)


class View:
    """The typed look-ups of `samewire.hcn.switch.StoreView`, on top of `get`, `all` and `ids`."""

    def get(self, kind: Kind, object_id: str) -> Object | None:
        """Return one object, or None."""
        raise NotImplementedError

    def all(self, kind: Kind) -> list[Object]:
        """Return all objects of a kind in order of creation."""
        raise NotImplementedError

    def ids(self, key: Key) -> list[str]:
        """Return the ids under an index key."""
        raise NotImplementedError

    def trouble_of(self, object_id: str) -> str:
        """Return why an object cannot work, "" when nothing is known to be wrong with it."""
        raise NotImplementedError

    def network(self, network_id: str) -> Network | None:
        """Return a network, or None."""
        return cast(Network | None, self.get(Kind.NETWORK, network_id))

    def endpoint(self, endpoint_id: str) -> Endpoint | None:
        """Return an endpoint, or None."""
        return cast(Endpoint | None, self.get(Kind.ENDPOINT, endpoint_id))

    def namespace(self, namespace_id: str) -> Namespace | None:
        """Return a namespace, or None."""
        return cast(Namespace | None, self.get(Kind.NAMESPACE, namespace_id))

    def route(self, route_id: str) -> Route | None:
        """Return a route, or None."""
        return cast(Route | None, self.get(Kind.ROUTE, route_id))

    def load_balancer(self, load_balancer_id: str) -> LoadBalancer | None:
        """Return a load balancer, or None."""
        return cast(LoadBalancer | None, self.get(Kind.LOADBALANCER, load_balancer_id))

    def networks(self) -> list[Network]:
        """Return all networks."""
        return cast(list[Network], self.all(Kind.NETWORK))

    def endpoints(self) -> list[Endpoint]:
        """Return all endpoints."""
        return cast(list[Endpoint], self.all(Kind.ENDPOINT))

    def namespaces(self) -> list[Namespace]:
        """Return all namespaces."""
        return cast(list[Namespace], self.all(Kind.NAMESPACE))

    def routes(self) -> list[Route]:
        """Return all routes."""
        return cast(list[Route], self.all(Kind.ROUTE))

    def load_balancers(self) -> list[LoadBalancer]:
        """Return all load balancers."""
        return cast(list[LoadBalancer], self.all(Kind.LOADBALANCER))

    def load_balancers_of_network(self, network_id: str) -> list[LoadBalancer]:
        """Return the load balancers of a network."""
        return self.load_balancers_at(("network-lbs", network_id))

    def load_balancers_of_endpoint(self, endpoint_id: str) -> list[LoadBalancer]:
        """Return the load balancers that name an endpoint."""
        return self.load_balancers_at(("endpoint-lbs", endpoint_id))

    def load_balancers_with_backend(self, address: str) -> list[LoadBalancer]:
        """Return the load balancers that have an explicit backend of that address."""
        return self.load_balancers_at(("backend", address))

    def load_balancers_at(self, key: Key) -> list[LoadBalancer]:
        """Return the load balancers with a frontend (`samewire.hcn.frontends.frontend_keys`)."""
        return cast(list[LoadBalancer], [self.get(Kind.LOADBALANCER, found) for found in self.ids(key)])

    def is_source_vip(self, network_id: str, address: str) -> bool:
        """True for an address that load balancers of a network give to clients."""
        return bool(self.ids(("source-vip", network_id, address)))

    def endpoints_of_network(self, network_id: str) -> list[Endpoint]:
        """Return the endpoints of a network."""
        return self._endpoints(("network", network_id))

    def endpoints_of_namespace(self, namespace_id: str) -> list[Endpoint]:
        """Return the endpoints attached to a namespace."""
        return self._endpoints(("namespace", namespace_id))

    def endpoints_of_container(self, container_id: str) -> list[Endpoint]:
        """Return the endpoints made for a container id."""
        return self._endpoints(("container", container_id))

    def endpoints_of_mapping(self, protocol: int, external_port: int) -> list[Endpoint]:
        """Return the endpoints with a port mapping of that protocol and external port."""
        return self._endpoints(("mapping", protocol, external_port))

    def is_set_named(self, network_id: str, set_id: str) -> bool:
        """True for an IP set that policies of a network's endpoints name."""
        return bool(self.ids(("set", network_id, set_id)))

    def endpoints_of_mac(self, network_id: str, mac: str) -> list[Endpoint]:
        """Return the endpoints of a network that have a MAC address."""
        return self._endpoints(("mac", network_id, mac))

    def endpoint_by_ip(self, network_id: str, ip: str) -> Endpoint | None:
        """Return the endpoint that owns an address in a network, or None."""
        found = self.ids(("ip", network_id, ip))
        return self.endpoint(found[0]) if found else None

    def endpoints_minding_remote(self, network_id: str) -> list[Endpoint]:
        """Return the local endpoints of a network whose own entries depend on where other nodes' subnets are."""
        return self._endpoints(("minds-remote", network_id))

    def remote_endpoints_behind(self, network_id: str, provider_address: str) -> list[Endpoint]:
        """Return the remote endpoints that name a provider address."""
        return self._endpoints(("provider", network_id, provider_address))

    def remote_endpoints_in(self, network_id: str, prefix: str) -> list[Endpoint]:
        """Return the remote endpoints that have an address in a prefix, and maybe some beside it."""
        blocks = blocks_of(parse_prefix(prefix))
        if blocks is None:
            return [value for value in self.endpoints_of_network(network_id) if value.is_remote]
        return [value for block in blocks for value in self._endpoints(("block", network_id, block))]

    def namespace_by_path(self, netns_path: str) -> Namespace | None:
        """Return the namespace object of a network namespace file, or None."""
        found = self.ids(("path", netns_path))
        return self.namespace(found[0]) if found else None

    def network_by_name(self, name: str) -> Network | None:
        """Return the network of that exact name, or None."""
        found = self.ids(("network-name", name))
        return self.network(found[0]) if found else None

    def routes_of_network(self, network_id: str) -> list[Route]:
        """Return the routes of a network."""
        return self._routes(("network-routes", network_id))

    def routes_of_endpoint(self, endpoint_id: str) -> list[Route]:
        """Return the routes that name an endpoint."""
        return self._routes(("endpoint-routes", endpoint_id))

    def _endpoints(self, key: Key) -> list[Endpoint]:
        return cast(list[Endpoint], [self.get(Kind.ENDPOINT, found) for found in self.ids(key)])

    def _routes(self, key: Key) -> list[Route]:
        return cast(list[Route], [self.get(Kind.ROUTE, found) for found in self.ids(key)])


class State(View):
    """All objects, changed only by `apply`."""

    def __init__(self) -> None:
        self._objects: dict[Kind, dict[str, Object]] = {kind: {} for kind in Kind}
        # A batch of a proxy looks up thousands of these, several times each.
        self._load_balancers = cast(dict[str, LoadBalancer], self._objects[Kind.LOADBALANCER])
        # Most keys have one id: then the id itself stands for the set.
        self._index: dict[Key, str | dict[str, None]] = {}
        self._troubles: dict[str, str] = {}

    def note_troubles(self, troubles: Mapping[str, str]) -> None:
        """Take over what was found to be wrong with objects, by id: all that there is."""
        self._troubles = dict(troubles)

    def trouble_of(self, object_id: str) -> str:
        """Return why an object cannot work, "" when nothing is known to be wrong with it."""
        return self._troubles.get(object_id, "")

    def get(self, kind: Kind, object_id: str) -> Object | None:
        """Return one object, or None."""
        return self._objects[kind].get(object_id)

    def load_balancer(self, load_balancer_id: str) -> LoadBalancer | None:
        """Return a load balancer, or None."""
        return self._load_balancers.get(load_balancer_id)

    def all(self, kind: Kind) -> list[Object]:
        """Return all objects of a kind in order of creation."""
        return list(self._objects[kind].values())

    def ids(self, key: Key) -> list[str]:
        """Return the ids under an index key."""
        found = self._index.get(key)
        if found is None:
            return []
        return [found] if isinstance(found, str) else list(found)

    def apply(self, changes: Iterable[Change]) -> None:
        """Make changes that have been validated and written."""
        for change in changes:
            kind, object_id, after = change.kind, change.id, change.after
            old, new = _moved_keys(kind, change.before, after)
            for key in old:
                self._leave(key, object_id)
            if self._troubles and (after is None or _place(change.before) != _place(after)):
                self._troubles.pop(object_id, None)  # it was about that, or about where the endpoint was
            if after is None:
                del self._objects[kind][object_id]
            else:
                self._objects[kind][object_id] = after
                for key in new:
                    self._enter(key, object_id)

    def _enter(self, key: Key, object_id: str) -> None:
        found = self._index.setdefault(key, object_id)
        if isinstance(found, dict):
            found[object_id] = None
        elif found != object_id:
            self._index[key] = {found: None, object_id: None}

    def _leave(self, key: Key, object_id: str) -> None:
        found = self._index[key]
        if isinstance(found, dict) and len(found) > 1:
            del found[object_id]
        else:
            del self._index[key]


def _place(value: Object | None) -> str:
    return value.namespace_id if isinstance(value, Endpoint) else ""


class Pending(View):
    """A state as it will be after some changes, at a cost proportional to the changes."""

    def __init__(self, base: View, changes: Sequence[Change]) -> None:
        self._base = base
        self._after: dict[Kind, dict[str, Object | None]] = {kind: {} for kind in Kind}
        self._gone: dict[Key, set[str]] = {}
        self._new: dict[Key, dict[str, None]] = {}
        self._indexed = False
        for change in changes:
            self._after[change.kind][change.id] = change.after

    def get(self, kind: Kind, object_id: str) -> Object | None:
        """Return one object as it will be, or None."""
        if object_id in self._after[kind]:
            return self._after[kind][object_id]
        return self._base.get(kind, object_id)

    def trouble_of(self, object_id: str) -> str:
        """Return why an object cannot work, as far as is known now."""
        return self._base.trouble_of(object_id)

    def all(self, kind: Kind) -> list[Object]:
        """Return all objects of a kind as they will be."""
        merged: dict[str, Object | None] = {value.id: value for value in self._base.all(kind)}
        merged.update(self._after[kind])
        return [value for value in merged.values() if value is not None]

    def ids(self, key: Key) -> list[str]:
        """Return the ids that will be under an index key."""
        if not self._indexed:  # a batch of load balancers of pods elsewhere never asks
            self._index_changes()
        gone = self._gone.get(key, ())
        return [found for found in self._base.ids(key) if found not in gone] + list(self._new.get(key, ()))

    def load_balancers_at(self, key: Key) -> list[LoadBalancer]:
        """Return the load balancers with a frontend; those that do not change need no index of the changes."""
        if not self._after[Kind.LOADBALANCER]:
            return self._base.load_balancers_at(key)
        return super().load_balancers_at(key)

    def _routes(self, key: Key) -> list[Route]:
        """Those under a key; routes that do not change need no index of the changes either."""
        return super()._routes(key) if self._after[Kind.ROUTE] else self._base._routes(key)

    def _index_changes(self) -> None:
        self._indexed = True
        for kind, objects in self._after.items():
            for object_id, after in objects.items():
                before = self._base.get(kind, object_id)
                old, new = _moved_keys(kind, before, after)
                for key in old:
                    self._gone.setdefault(key, set()).add(object_id)
                for key in new:
                    self._new.setdefault(key, {})[object_id] = None
