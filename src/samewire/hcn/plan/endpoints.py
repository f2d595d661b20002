"""Endpoints: creation (attached or not), policies, deletion."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import cast

import msgspec

from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.modify import ModifySettingRequest, PolicySettings, PortSettings, RequestType
from samewire.hcn.normalise import check_endpoint
from samewire.hcn.normalise_policies import Scope, check_policies
from samewire.hcn.numbered import numbered
from samewire.hcn.plan.addresses import fill_addresses, is_network_address
from samewire.hcn.plan.context import (
    Context,
    created,
    deleted,
    get_endpoint,
    get_network,
    modified,
    refuse_existing,
)
from samewire.hcn.plan.macs import choose_mac
from samewire.hcn.plan.mapped_ports import with_ports
from samewire.hcn.plan.members import routes_without, without_endpoints
from samewire.hcn.plan.policies import Policies, add_policies, check_sets, remove_policies, without_policies
from samewire.hcn.plan.uplink import check_constraint, check_translation, check_vlans, on_one_wire
from samewire.hcn.policies import VLAN, PortMapping, SDNRoute, family_of, mapping_family
from samewire.hcn.policy_lists import (
    GIVEN,
    OF_OBJECT,
    PolicyList,
    mapped_places,
    mapped_ports,
    path_of,
    placed,
)
from samewire.hcn.schema import Endpoint, Kind, Namespace, NamespaceType, Network, NetworkType
from samewire.hcn.state import View
from samewire.hcn.switch import Change
from samewire.hcn.values import guid

_replace = msgspec.structs.replace

MADE_FOR_ENDPOINT = "samewire:attach"
"""Owner of a namespace object that came with its first endpoint, and goes with its last."""


def create_endpoint(context: Context, endpoint: Endpoint) -> list[Change]:
    """Plan the creation of an endpoint, not attached. Raises HcnError, Exhausted."""
    if endpoint.namespace_id:
        raise HcnError(
            HcnCode.INVALID_ENDPOINT,
            "$.HostComputeNamespace: is read only; add the endpoint to the namespace",
        )
    endpoint, replaced = prepare_endpoint(context, endpoint)
    return [*replaced, created(Kind.ENDPOINT, endpoint)]


def prepare_endpoint(context: Context, endpoint: Endpoint) -> tuple[Endpoint, list[Change]]:
    """Return a complete endpoint, and the deletion of remote ones whose address it takes. Raises HcnError,
    Exhausted.
    """
    if not endpoint.network_id:
        raise HcnError(HcnCode.NETWORK_NOT_FOUND, "$.HostComputeNetwork: an endpoint needs a network")
    network = get_network(context.view, guid(endpoint.network_id, "$.HostComputeNetwork"))
    endpoint = _replace(check_endpoint(endpoint), network_id=network.id)
    refuse_existing(context.view, Kind.ENDPOINT, endpoint.id)
    _check_given(context, network, endpoint, endpoint.policies, OF_OBJECT)
    endpoint = fill_addresses(context.pool, context.view, network, context.facts, endpoint)
    endpoint = _replace(endpoint, mac_address=choose_mac(context.view, network, endpoint))
    endpoint = with_ports(context, endpoint)
    _refuse_on_one_wire(context, network, endpoint)
    replaced = delete_endpoints(context.view, _replaced(context.view, endpoint), endpoint)
    _check_mappings(context.view, endpoint, numbered(endpoint.policies).group(PortMapping).numbers, OF_OBJECT)
    return endpoint, replaced


def modify_endpoint(context: Context, endpoint_id: str, request: ModifySettingRequest) -> list[Change]:
    """Plan a modify request for an endpoint: its policies, or its port. Refresh changes nothing: the switch
    is always as the object says. Raises HcnError.
    """
    before = get_endpoint(context.view, endpoint_id)
    if request.request_type is RequestType.REFRESH:
        return []
    if isinstance(request.settings, PortSettings):
        return _modify_port(before, request.request_type, request.settings)
    if not isinstance(request.settings, PolicySettings):
        raise HcnError(HcnCode.REQUEST_UNSUPPORTED, "$.ResourceType: an endpoint has Policy and Port")
    given = request.settings.policies
    if request.request_type is RequestType.UPDATE:
        checked = check_policies(given, Scope.ENDPOINT, GIVEN)
        policies = numbered(before.policies).updated(checked)
    elif request.request_type is RequestType.ADD:
        policies = add_policies(before.policies, given, Scope.ENDPOINT)
    elif request.request_type is RequestType.REMOVE:
        policies = remove_policies(before.policies, given, Scope.ENDPOINT)
    else:
        policies = without_policies(before.policies)
    if request.request_type in (RequestType.ADD, RequestType.UPDATE):
        network = get_network(context.view, before.network_id)
        _check_given(context, network, before, given, GIVEN)
    after = with_ports(context, _replace(before, policies=policies), before.policies)
    new = numbered(after.policies).difference(numbered(before.policies)).of(PortMapping).new
    kept = len(before.policies) if request.request_type is RequestType.ADD else 0
    _check_mappings(context.view, after, [number for number, _ in new], GIVEN, kept)
    return modified(Kind.ENDPOINT, before, after)


def _modify_port(endpoint: Endpoint, how: RequestType, settings: PortSettings) -> list[Change]:
    """Refuse a port of a virtual machine, which the switch has none of; leaving the port is detaching."""
    if how is RequestType.REMOVE:
        if not endpoint.namespace_id:
            raise HcnError(HcnCode.ENDPOINT_NOT_ATTACHED, f"endpoint {endpoint.id} is not attached")
        after = _replace(endpoint, namespace_id="", shared_containers=(), detached=True)
        return modified(Kind.ENDPOINT, endpoint, after)
    raise HcnError(
        HcnCode.PORT_NOT_FOUND,
        f"$.Settings.PortId: the switch has no port {settings.port_id[:64]!r}; endpoints get theirs with a namespace",
    )


def _check_given(
    context: Context, network: Network, endpoint: Endpoint, policies: Policies, path: str
) -> None:
    """Refuse what an endpoint of this network, on this node, cannot have; errors name the place in the list at
    ``path``. Raises HcnError.
    """
    for where, _ in placed(policies, PortMapping, path) if endpoint.is_remote else ():
        raise HcnError(
            HcnCode.INVALID_REMOTE_ENDPOINT_OPERATION, f"{where}: a remote endpoint has no port mappings"
        )
    # Now, and not when it is attached.
    for where, route in placed(policies, SDNRoute, path) if network.type is NetworkType.PRIVATE else ():
        if route.next_hop in ("", "0.0.0.0", "::"):
            raise HcnError(
                HcnCode.INVALID_POLICY,
                f"{where}.NextHop: a Private network has no path to the node; give a next hop",
            )
    check_vlans(network, placed(policies, VLAN, path), context.facts)
    check_translation(network, policies, context.facts, path)
    check_constraint(policies, context.facts, path)
    check_sets(network, policies, path)


def delete_endpoint(context: Context, endpoint_id: str) -> list[Change]:
    """Plan the deletion of an endpoint, attached or not. Raises HcnError (ENTITY_HAS_REFERENCES for one in
    a route).
    """
    endpoint = get_endpoint(context.view, endpoint_id)
    _refuse_referenced(context.view, endpoint)
    return delete_endpoints(context.view, [endpoint])


def delete_endpoints(
    view: View, endpoints: Iterable[Endpoint], successor: Endpoint | None = None
) -> list[Change]:
    """Plan the deletion of endpoints, and of the namespaces that were made for them and hold no other.

    Load balancers lose them as members: a pod goes when the runtime says so, and its proxy hears of it later. An
    endpoint that takes their place (``successor``) becomes a member instead. Routes that watch endpoints lose them,
    too.
    """
    going = {endpoint.id: endpoint for endpoint in endpoints}
    changes = [*without_endpoints(view, going, successor), *routes_without(view, going)]
    changes += [deleted(Kind.ENDPOINT, endpoint) for endpoint in going.values()]
    for namespace_id in dict.fromkeys(endpoint.namespace_id for endpoint in going.values()):
        namespace = view.namespace(namespace_id) if namespace_id else None
        if namespace and namespace.owner == MADE_FOR_ENDPOINT:
            rest = [other for other in view.endpoints_of_namespace(namespace_id) if other.id not in going]
            changes.extend([] if rest else [deleted(Kind.NAMESPACE, namespace)])
    return changes + [deleted(Kind.NAMESPACE, namespace) for namespace in _left_empty(view, going.values())]


def _left_empty(view: View, going: Iterable[Endpoint]) -> list[Namespace]:
    """The empty namespaces that were made for endpoints which had left them before they went."""
    containers = {endpoint.container_id for endpoint in going if endpoint.detached} - {""}
    return [
        namespace
        for namespace in (view.namespaces() if containers else ())
        if namespace.owner == MADE_FOR_ENDPOINT
        and any(item.data.resource_id in containers for item in namespace.resources)
        and not view.endpoints_of_namespace(namespace.id)
    ]


def attached(view: View, endpoint: Endpoint, namespace: Namespace) -> Endpoint:
    """Return an endpoint as a member of a namespace, with its interface's name chosen. Raises HcnError."""
    if endpoint.is_remote:
        raise HcnError(
            HcnCode.INVALID_REMOTE_ENDPOINT_OPERATION,
            f"endpoint {endpoint.id} is remote and cannot be attached",
        )
    if endpoint.namespace_id == namespace.id:
        raise HcnError(
            HcnCode.ENDPOINT_NAMESPACE_ALREADY_EXISTS, f"endpoint {endpoint.id} is in the namespace already"
        )
    if endpoint.namespace_id:
        raise HcnError(
            HcnCode.ENDPOINT_ALREADY_ATTACHED,
            f"This endpoint is already attached to the switch. ({endpoint.id})",
        )
    network = get_network(view, endpoint.network_id)
    zero = next((address for address in endpoint.addresses if is_network_address(network, address)), None)
    if zero is not None:
        raise HcnError(
            HcnCode.ADDR_INVALID_OR_RESERVED, f"endpoint {endpoint.id} has {zero}, its subnet's own address"
        )
    if namespace.type is NamespaceType.HOST_DEFAULT:
        return _replace(endpoint, namespace_id=namespace.id, detached=False)
    taken = {other.interface_name for other in view.endpoints_of_namespace(namespace.id)}
    name = endpoint.interface_name
    if name in taken and endpoint.detached and re.fullmatch(r"eth\d+", name):
        name = ""  # the name it had where it was before, chosen for that place
    if name in taken:
        raise HcnError(
            HcnCode.ENDPOINT_NAMESPACE_ALREADY_EXISTS,
            f"$.InterfaceName: the namespace has an endpoint {name} already",
        )
    if not name:
        name = next(free for number in range(len(taken) + 1) if (free := f"eth{number}") not in taken)
    return _replace(endpoint, namespace_id=namespace.id, interface_name=name, detached=False)


def _refuse_referenced(view: View, endpoint: Endpoint) -> None:
    routes = [route for route in view.routes_of_endpoint(endpoint.id) if not route.watches_endpoints]
    if routes:
        raise HcnError(HcnCode.ENTITY_HAS_REFERENCES, f"endpoint {endpoint.id} is in route {routes[0].id}")


def _refuse_on_one_wire(context: Context, network: Network, endpoint: Endpoint) -> None:
    """Refuse a local endpoint's address that one of another network on the same wire has. Raises HcnError."""
    if endpoint.is_remote:
        return
    for other in context.view.networks():
        if other.id == network.id or not on_one_wire(network, other, context.facts):
            continue
        for index, address in enumerate(endpoint.addresses):
            owner = context.view.endpoint_by_ip(other.id, address)
            if owner is not None and not owner.is_remote:
                raise _taken(index, address, owner)


def _taken(index: int, address: str, owner: Endpoint) -> HcnError:
    return HcnError(
        HcnCode.OBJECT_ALREADY_EXISTS,
        f"$.IpConfigurations[{index}].IpAddress: The object already exists. ({address}: {owner.id})",
    )


def _replaced(view: View, endpoint: Endpoint) -> list[Endpoint]:
    """Return the remote endpoints whose addresses a new local one takes over. Raises HcnError."""
    replaced: dict[str, Endpoint] = {}
    for index, address in enumerate(endpoint.addresses):
        other = view.endpoint_by_ip(endpoint.network_id, address)
        if other is None:
            continue
        if endpoint.is_remote or not other.is_remote:
            raise _taken(index, address, other)
        replaced[other.id] = other
    return list(replaced.values())


def _check_mappings(view: View, endpoint: Endpoint, new: Iterable[int], path: str, kept: int = 0) -> None:
    """Refuse new policies, by their numbers, that map a node port a second time, or to an address that the endpoint
    has not; ``path`` is that of the list that they were given in, which comes after ``kept`` others in the
    endpoint's. Raises HcnError (PORT_ALREADY_EXISTS, MAPPING_NOT_SUPPORTED).

    One that outbound NAT uses, too, may be mapped, as on Windows: NAT takes a port for a connection to one remote
    address and port, and another one where a mapped connection from there is.
    """
    own = numbered(endpoint.policies)
    families = set(map(family_of, endpoint.addresses))
    for mine in new:
        policy = cast(PortMapping, own.at(mine))
        family = mapping_family(policy, endpoint.addresses)
        if family not in families:
            where = path_of(own, mine, path, kept)
            raise HcnError(
                HcnCode.MAPPING_NOT_SUPPORTED,
                f"{where}: the endpoint has no IPv{family} address for this PortMapping",
            )
        elsewhere = view.endpoints_of_mapping(policy.protocol, policy.external_port)
        for other in (*(other for other in elsewhere if other.id != endpoint.id), endpoint):
            policies = numbered(other.policies)
            for number in _at_the_same_place(policies, policy):
                theirs = cast(PortMapping, policies.at(number))
                itself = other is endpoint and number == mine
                if itself or family != mapping_family(theirs, other.addresses):
                    continue
                raise HcnError(
                    HcnCode.PORT_ALREADY_EXISTS,
                    f"{path_of(own, mine, path, kept)}.ExternalPort: port {policy.external_port} of protocol "
                    f"{policy.protocol} is mapped to port {theirs.internal_port} of endpoint {other.id}",
                )


def _at_the_same_place(policies: PolicyList, mapping: PortMapping) -> Iterator[int]:
    """The numbers of the mappings of the same port of the node, at the same address or at every one."""
    port = mapping.protocol, mapping.external_port
    if not mapping.vip:
        yield from policies.by(mapped_ports).get(port, ())
        return
    for vip in (mapping.vip, ""):
        yield from policies.by(mapped_places).get((*port, vip), ())
