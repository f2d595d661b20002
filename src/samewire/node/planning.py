"""Which compiled objects and links a change of HNS objects touches. Pure.

An owner is what compiles on its own: the node, a network, an endpoint with a port (or a remote one), a route.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeAlias, cast

import msgspec

from samewire.errors import Invalid
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.loadbalancers import LoadBalancer
from samewire.hcn.numbered import numbered
from samewire.hcn.policies import RemoteSubnetRoute, VxlanPort, first, select
from samewire.hcn.policy_lists import PolicyList, identities, mapped_ports
from samewire.hcn.schema import Endpoint, Kind, NamespaceType, Network, Object, Route
from samewire.hcn.switch import Change, StoreView
from samewire.node.plan_acl import (
    policies_moved,
    proxies_changed,
    rules_changed,
    same_but_rules,
    sets_changed,
)
from samewire.node.plan_balancers import Prefixes, has_direct, touched_by_endpoint, touched_by_network
from samewire.vfp.address import parse_address, parse_prefix
from samewire.vfp.compile.link import check_overhead
from samewire.vfp.compile.plan import NetworkPlan, RemoteSubnets, plan_network
from samewire.vfp.compile.sets import has_sets
from samewire.vfp.model import NodeFacts

Owner: TypeAlias = tuple[str, str]

NODE: Final[Owner] = ("node", "")
_UDP: Final = 17
_NO_REMOTE: Final = RemoteSubnets(PolicyList())


class Steps(msgspec.Struct):
    """What has to be done for a set of changes.

    ``owners``: to compile anew (True) or to forget (False), in order. ``attach``: endpoints that get a link,
    ``new``: ids of those among them that are being created, ``detach``: ids of endpoints that lose theirs,
    ``relink``: those whose link may have to be changed.
    ``balancers``: load balancers, as ``owners`` (they have a path of their own: `samewire.node.balancers`); of those
    that nothing but their own change touches, ``were`` says what they were.
    ``everything``: of all objects, none of which keeps the others from it.
    """

    owners: dict[Owner, bool] = msgspec.field(default_factory=dict)
    attach: dict[str, Endpoint] = msgspec.field(default_factory=dict)
    new: set[str] = msgspec.field(default_factory=set)
    detach: dict[str, None] = msgspec.field(default_factory=dict)
    relink: dict[str, Endpoint] = msgspec.field(default_factory=dict)
    balancers: dict[str, bool] = msgspec.field(default_factory=dict)
    were: dict[str, LoadBalancer] = msgspec.field(default_factory=dict)
    everything: bool = False

    def recompile(self, endpoint: Endpoint, has_port: bool, view: StoreView) -> None:
        """Compile an endpoint again, if there is anything to compile."""
        if endpoint.id in self.attach or endpoint.id in self.detach:
            return
        if endpoint.is_remote or has_port or on_host(endpoint, view):
            self.owners[endpoint_owner(endpoint.id)] = True
        if has_port:
            self.relink[endpoint.id] = endpoint


def network_owner(network_id: str) -> Owner:
    """The owner of a network's own entries."""
    return "network", network_id


def remote_owner(network_id: str, prefix: str) -> Owner:
    """The owner of the entries of one of a network's remote subnets."""
    return "remote", f"{network_id}/{prefix}"


def sets_owner(network_id: str) -> Owner:
    """The owner of the entries of a network's IP sets."""
    return "sets", network_id


def endpoint_owner(endpoint_id: str) -> Owner:
    """The owner of an endpoint's entries."""
    return "endpoint", endpoint_id


def route_owner(route_id: str) -> Owner:
    """The owner of a route object's entries."""
    return "route", route_id


def balancer_owner(load_balancer_id: str) -> Owner:
    """The owner of the nexthops that a load balancer's backends are reached by with DSR."""
    return "loadbalancer", load_balancer_id


_STANDING: Final = {"node": 0, "network": 1, "remote": 1, "endpoint": 2, "route": 3}
_BY_NAME: Final = 1


def standing(owner: Owner) -> tuple[int, str]:
    """Which of several owners has an entry: not the one that was changed last, which a restart does not know. Of two
    networks in one scope any, but always the same.
    """
    kind, name = owner
    rank = _STANDING.get(kind, 0)
    return rank, name if rank == _BY_NAME else ""


def netns_path(endpoint: Endpoint, view: StoreView) -> str:
    """Where the endpoint's interface belongs; empty when it is not attached to a network namespace."""
    if endpoint.is_remote or not endpoint.namespace_id:
        return ""
    namespace = view.namespace(endpoint.namespace_id)
    return namespace.netns_path if namespace is not None else ""


def on_host(endpoint: Endpoint, view: StoreView) -> bool:
    """Whether the endpoint is attached to the node itself: its addresses are the node's."""
    if endpoint.is_remote or not endpoint.namespace_id:
        return False
    namespace = view.namespace(endpoint.namespace_id)
    return namespace is not None and namespace.type is NamespaceType.HOST_DEFAULT


def plan_changes(
    changes: Sequence[Change], view: StoreView, facts: NodeFacts, has_port: Callable[[str], bool]
) -> Steps:
    """What the changes mean; ``view`` shows the objects as they will be. Raises Invalid, HcnError."""
    steps = Steps()
    for change in changes:
        if change.kind is Kind.ENDPOINT:
            _endpoint(steps, change, view, facts, has_port(change.id))
    for change in changes:
        if change.kind is Kind.NETWORK:
            _network(steps, change, view, facts, has_port)
        elif change.kind is Kind.ROUTE:
            steps.owners[route_owner(change.id)] = change.after is not None
            for value in (change.before, change.after):
                if isinstance(value, Route):
                    _named(steps, value, view, has_port)
    _balancers(steps, changes, view, facts)
    return steps


def _balancers(steps: Steps, changes: Sequence[Change], view: StoreView, facts: NodeFacts) -> None:
    """Load balancers that have changed, and those that others' changes touch."""
    touched: dict[str, None] = {}
    for change in changes:
        before, after = change.before, change.after
        if change.kind is Kind.LOADBALANCER:
            steps.balancers[change.id] = after is not None
            if isinstance(before, LoadBalancer):
                steps.were[change.id] = before
            has = isinstance(after, LoadBalancer) and has_direct(after)
            if has or (isinstance(before, LoadBalancer) and has_direct(before)):
                steps.owners[balancer_owner(change.id)] = has
        elif change.kind is Kind.ENDPOINT:
            touched.update(dict.fromkeys(touched_by_endpoint(change, view)))
        elif change.kind is Kind.NETWORK:
            old, new = (value if isinstance(value, Network) else None for value in (before, after))
            touched.update(dict.fromkeys(touched_by_network(old, new, view, facts)))
    for load_balancer_id in touched:
        steps.balancers.setdefault(load_balancer_id, True)
        steps.were.pop(load_balancer_id, None)
        if has_direct(view.load_balancer(load_balancer_id)):
            steps.owners.setdefault(balancer_owner(load_balancer_id), True)


def plan_everything(view: StoreView, has_port: Callable[[str], bool]) -> Steps:
    """Compile every object again: at start, and when the node's own addresses have changed."""
    steps = Steps(owners={NODE: True}, everything=True)
    for network in view.networks():
        steps.owners[network_owner(network.id)] = True
        steps.owners.update((remote_owner(network.id, prefix), True) for prefix in remote_subnets(network))
        if has_sets(network.policies):
            steps.owners[sets_owner(network.id)] = True
    for endpoint in view.endpoints():
        steps.recompile(endpoint, has_port(endpoint.id), view)
    for route in view.routes():
        steps.owners[route_owner(route.id)] = True
    for value in view.load_balancers():
        steps.balancers[value.id] = True
        if has_direct(value):
            steps.owners[balancer_owner(value.id)] = True
    return steps


def _endpoint(steps: Steps, change: Change, view: StoreView, facts: NodeFacts, has_port: bool) -> None:
    before, after = _as_endpoint(change.before), _as_endpoint(change.after)
    owner = endpoint_owner(change.id)
    place = netns_path(after, view) if after is not None else ""
    moved = before is not None and after is not None and _place_key(before) != _place_key(after)
    if has_port and (not place or moved):
        steps.detach[change.id] = None
    if after is None or not (after.is_remote or place or on_host(after, view)):
        steps.owners[owner] = False
        return
    if before is None or before.policies != after.policies:
        _check_ports(after, facts)
    if place and (not has_port or before is None or before.policies != after.policies):
        check_overhead(after, facts)
    steps.owners[owner] = True
    if place and (not has_port or moved):
        steps.attach[change.id] = after
        if before is None:
            steps.new.add(change.id)
    elif place:
        steps.relink[change.id] = after


def _check_ports(endpoint: Endpoint, facts: NodeFacts) -> None:
    """A host port must not take the tunnels' packets away from the node."""
    mapped = numbered(endpoint.policies).by(mapped_ports)
    if (_UDP, facts.vxlan_port) in mapped or (0, facts.vxlan_port) in mapped:
        raise Invalid("$.Policies", f"UDP port {facts.vxlan_port} is that of this node's tunnels")


def _place_key(endpoint: Endpoint) -> tuple[str, str]:
    return endpoint.namespace_id, endpoint.interface_name


def _network(
    steps: Steps, change: Change, view: StoreView, facts: NodeFacts, has_port: Callable[[str], bool]
) -> None:
    before, after = (value if isinstance(value, Network) else None for value in (change.before, change.after))
    if sets_changed(before, after):
        steps.owners[sets_owner(change.id)] = after is not None and has_sets(after.policies)
    if before is not None and after is not None and same_but_rules(before, after):
        if rules_changed(before, after):
            _local_endpoints(steps, change.id, view, has_port)
        return
    steps.owners[network_owner(change.id)] = after is not None
    if after is None:
        steps.owners.update((remote_owner(change.id, text), False) for text in remote_subnets(before))
        return
    port = first(after.policies, VxlanPort)
    if port is not None and port.port != facts.vxlan_port:
        raise Invalid(
            "$.Policies", f"VxlanPort {port.port}: this node's tunnels use UDP port {facts.vxlan_port}"
        )
    if before is None or before.ipams != after.ipams:
        _check_subnets(after, facts)
    if before is None:
        steps.owners.update((remote_owner(change.id, text), True) for text in remote_subnets(after))
        return
    _network_moved(steps, before, after, view, facts, has_port)


def _network_moved(
    steps: Steps,
    before: Network,
    after: Network,
    view: StoreView,
    facts: NodeFacts,
    has_port: Callable[[str], bool],
) -> None:
    """What a change of a network that stays means for its remote subnets, endpoints and routes."""
    old, new = _without_remote(before, facts), _without_remote(after, facts)
    for prefix, there in _moved_subnets(before, after, facts, all_of_them=old != new).items():
        steps.owners[remote_owner(after.id, prefix)] = there
    if old != new or rules_changed(before, after) or proxies_changed(before, after):
        touched: Iterable[Endpoint] = view.endpoints_of_network(after.id)
    else:
        touched = _touched_by_remote(before, after, view, facts)
    for endpoint in touched:
        steps.recompile(endpoint, has_port(endpoint.id), view)
    for route in view.routes_of_network(after.id):
        if old != new or any(entry.next_hop for entry in route.routes):
            steps.owners[route_owner(route.id)] = True
            _named(steps, route, view, has_port)


def _named(steps: Steps, route: Route, view: StoreView, has_port: Callable[[str], bool]) -> None:
    """A route that only some endpoints obey is theirs: they are compiled again, and their flows judged again."""
    for endpoint_id in route.endpoint_ids if route.is_of_endpoints else ():
        endpoint = view.endpoint(endpoint_id)
        if endpoint is not None:
            steps.recompile(endpoint, has_port(endpoint_id), view)


def _moved_subnets(
    before: Network, after: Network, facts: NodeFacts, *, all_of_them: bool = False
) -> dict[str, bool]:
    """The remote subnets that a change of a network has brought, altered (True) or taken (False), by prefix."""
    gone, new = policies_moved(before, after, RemoteSubnetRoute)
    moved = dict.fromkeys(remote_subnets(after), True) if all_of_them else {}
    moved |= {policy.destination_prefix: False for policy in gone}
    moved |= {policy.destination_prefix: True for policy in new}
    for prefix in plan_network(before, facts).shadowed ^ plan_network(after, facts).shadowed:
        moved[str(prefix)] = _remote_subnet(after, str(prefix)) is not None
    return moved


def remote_subnets(network: Network | None) -> dict[str, RemoteSubnetRoute]:
    """A network's remote subnets by prefix."""
    policies = select(network.policies if network is not None else (), RemoteSubnetRoute)
    return {policy.destination_prefix: policy for policy in policies}


def _remote_subnet(network: Network, prefix: str) -> RemoteSubnetRoute | None:
    policies = numbered(network.policies)
    numbers = policies.by(identities).get(prefix)
    return cast(RemoteSubnetRoute, policies.at(numbers[0])) if numbers else None


def _touched_by_remote(
    before: Network, after: Network, view: StoreView, facts: NodeFacts
) -> Iterable[Endpoint]:
    """The endpoints that a change of remote subnets concerns: a node that joins is none of the others'.

    Those with an address in one, those behind its provider, and local ones that mind.
    """
    moved = _moved_subnets(before, after, facts)
    if not moved:
        return ()
    old, new = plan_network(before, facts).remote, plan_network(after, facts).remote
    found = {endpoint.id: endpoint for endpoint in view.endpoints_minding_remote(after.id)}
    there = [_remote_subnet(network, prefix) for network in (before, after) for prefix in moved]
    providers = {policy.provider_address for policy in there if policy is not None}
    # First all of the one state, then all of the other: each knows its difference from the other (`versions`).
    was, will = ({text: subnets.behind(parse_address(text)) for text in providers} for subnets in (old, new))
    for provider in providers:
        if was[provider] != will[provider]:
            found.update((one.id, one) for one in view.remote_endpoints_behind(after.id, provider))
    prefixes = Prefixes([parse_prefix(prefix) for prefix in moved])
    for prefix in moved:
        for one in view.remote_endpoints_in(after.id, prefix):
            if any(address in prefixes for address in one.addresses):
                found[one.id] = one
    return found.values()


def _local_endpoints(steps: Steps, network_id: str, view: StoreView, has_port: Callable[[str], bool]) -> None:
    for endpoint in view.endpoints_of_network(network_id):
        if not endpoint.is_remote:
            steps.recompile(endpoint, has_port(endpoint.id), view)


def _check_subnets(network: Network, facts: NodeFacts) -> None:
    """A subnet bound to the host must not be the underlay's own: samewire0 would have the router's address.

    The node may have the gateway's address already, and the subnet's first: those of the bridge and the tunnel of the
    network that this one takes the place of.
    """
    plan = plan_network(network, facts)
    for subnet in plan.subnets:
        for own in facts.addresses:
            if own in (subnet.prefix.address.host_prefix, subnet.gateway and subnet.gateway.host_prefix):
                continue
            if plan.bound(subnet) and (own in subnet.prefix or subnet.prefix in own.network):
                raise HcnError(
                    HcnCode.INVALID_SUBNET, f"$.Ipams: {subnet.prefix} overlaps the node's own {own}"
                )


def _without_remote(network: Network, facts: NodeFacts) -> NetworkPlan:
    """What a network means for its own endpoints: other nodes' subnets do not matter to them."""
    return msgspec.structs.replace(plan_network(network, facts), remote=_NO_REMOTE, shadowed=frozenset())


def _as_endpoint(value: Object | None) -> Endpoint | None:
    return value if isinstance(value, Endpoint) else None
