"""Namespaces, and the endpoints and containers in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.modify import ContainerSettings, EndpointSettings, ModifySettingRequest, RequestType
from samewire.hcn.normalise import check_namespace
from samewire.hcn.plan.addresses import HOST_COMPARTMENT
from samewire.hcn.plan.context import (
    Context,
    created,
    deleted,
    get_endpoint,
    get_namespace,
    modified,
    refuse_existing,
)
from samewire.hcn.plan.endpoints import MADE_FOR_ENDPOINT, attached, prepare_endpoint
from samewire.hcn.schema import Endpoint, Kind, Namespace, NamespaceType, Resource, ResourceData, ResourceType
from samewire.hcn.state import Pending, View
from samewire.hcn.switch import Change
from samewire.hcn.values import guid

_replace = msgspec.structs.replace

DEFAULTS = frozenset({NamespaceType.HOST_DEFAULT, NamespaceType.GUEST_DEFAULT})


class NamespaceSpec(msgspec.Struct, frozen=True):
    """The network namespace an endpoint is made for: its file, and the runtime's container id."""

    netns_path: str
    container_id: str


def create_namespace(context: Context, namespace: Namespace) -> list[Change]:
    """Plan the creation of a namespace; endpoints among its resources are attached. Raises HcnError."""
    asked = [
        guid(item.data.resource_id, f"$.Resources[{index}].Data.Id")
        for index, item in enumerate(namespace.resources)
        if item.type is ResourceType.ENDPOINT
    ]
    containers = tuple(item for item in namespace.resources if item.type is ResourceType.CONTAINER)
    namespace = _new_namespace(context, _replace(namespace, resources=containers))
    changes = [created(Kind.NAMESPACE, namespace)]
    for endpoint_id in asked:
        changes.extend(_attach(Pending(context.view, changes), namespace, endpoint_id))
    return changes


def modify_namespace(context: Context, namespace_id: str, request: ModifySettingRequest) -> list[Change]:
    """Plan adding or removing an endpoint or a container. Refresh changes nothing. Raises HcnError."""
    namespace = get_namespace(context.view, namespace_id)
    if request.request_type is RequestType.REFRESH:
        return []
    settings, adds = request.settings, request.request_type is RequestType.ADD
    if not adds and request.request_type is not RequestType.REMOVE:
        raise HcnError(
            HcnCode.REQUEST_UNSUPPORTED, f"$.RequestType: {request.request_type.value} is not possible here"
        )
    if isinstance(settings, EndpointSettings):
        change = _attach if adds else _detach
        return change(context.view, namespace, guid(settings.endpoint_id, "$.Settings.EndpointId"))
    if isinstance(settings, ContainerSettings):
        return modified(Kind.NAMESPACE, namespace, _with_container(namespace, settings.container_id, adds))
    raise HcnError(HcnCode.REQUEST_UNSUPPORTED, "$.ResourceType: a namespace holds endpoints and containers")


def delete_namespace(context: Context, namespace_id: str) -> list[Change]:
    """Plan the deletion of a namespace without endpoints. Raises HcnError (ENTITY_HAS_REFERENCES with
    some).
    """
    namespace = get_namespace(context.view, namespace_id)
    endpoints = context.view.endpoints_of_namespace(namespace.id)
    if endpoints:
        raise HcnError(
            HcnCode.ENTITY_HAS_REFERENCES, f"namespace {namespace.id} still holds endpoint {endpoints[0].id}"
        )
    return [deleted(Kind.NAMESPACE, namespace)]


def create_attached_endpoint(
    context: Context, endpoint: Endpoint, spec: NamespaceSpec, interface_name: str
) -> tuple[Endpoint, list[Change]]:
    """Plan an endpoint that is a member of a namespace from the start; the namespace is made if there is
    none.

    Raises HcnError, Exhausted.
    """
    endpoint = _replace(
        endpoint, namespace_id="", interface_name=interface_name, container_id=spec.container_id
    )
    endpoint, changes = prepare_endpoint(context, endpoint)
    namespace = context.view.namespace_by_path(spec.netns_path)
    if namespace is None:
        made = Namespace(owner=MADE_FOR_ENDPOINT, netns_path=spec.netns_path)
        namespace = _new_namespace(context, _with_container(made, spec.container_id, True))
        changes.append(created(Kind.NAMESPACE, namespace))
    elif namespace.owner == MADE_FOR_ENDPOINT:
        changes.extend(
            modified(Kind.NAMESPACE, namespace, _with_container(namespace, spec.container_id, True))
        )
    endpoint = attached(context.view, endpoint, namespace)
    changes.append(created(Kind.ENDPOINT, endpoint))
    return endpoint, changes


def identified(changes: Sequence[Change], view: View, identity: Callable[[str], str]) -> Sequence[Change]:
    """Return changes in which each namespace that an endpoint joins says which network namespace it is now."""
    pending = Pending(view, changes)
    joined: dict[str, Namespace] = {}
    for change in changes:
        after, before = change.after, change.before
        if not isinstance(after, Endpoint) or not after.namespace_id or after.is_remote:
            continue
        if isinstance(before, Endpoint) and before.namespace_id == after.namespace_id:
            continue
        namespace = pending.namespace(after.namespace_id)
        if namespace is not None and namespace.netns_path:
            joined[namespace.id] = namespace
    for namespace in joined.values():
        now = identity(namespace.netns_path)
        if now and now != namespace.netns_identity:
            changes = _with_identity(changes, namespace, now)
    return changes


def _with_identity(changes: Sequence[Change], namespace: Namespace, identity: str) -> Sequence[Change]:
    after = _replace(namespace, netns_identity=identity)
    if any(change.kind is Kind.NAMESPACE and change.id == namespace.id for change in changes):
        return [
            _replace(change, after=after)
            if change.kind is Kind.NAMESPACE and change.id == namespace.id
            else change
            for change in changes
        ]
    return [*modified(Kind.NAMESPACE, namespace, after), *changes]


def host_namespace(context: Context) -> tuple[Namespace, list[Change]]:
    """Return the namespace that stands for the node itself, and its creation when there is none."""
    for namespace in context.view.namespaces():
        if namespace.type is NamespaceType.HOST_DEFAULT:
            return namespace, []
    made = _new_namespace(context, Namespace(owner=MADE_FOR_ENDPOINT, type=NamespaceType.HOST_DEFAULT))
    return made, [created(Kind.NAMESPACE, made)]


def _new_namespace(context: Context, namespace: Namespace) -> Namespace:
    """Return a complete namespace whose id, path and type clash with no other. Raises HcnError."""
    view = context.view
    namespace = check_namespace(namespace)
    refuse_existing(view, Kind.NAMESPACE, namespace.id)
    if namespace.netns_path and view.namespace_by_path(namespace.netns_path) is not None:
        raise HcnError(
            HcnCode.OBJECT_ALREADY_EXISTS, f"$.NetnsPath: {namespace.netns_path} is that of another namespace"
        )
    for other in view.namespaces() if namespace.type in DEFAULTS else ():
        if other.type is namespace.type:
            raise HcnError(
                HcnCode.GCN_DEFAULTNAMESPACE_EXISTS, f"$.Type: namespace {other.id} is the default"
            )
    if namespace.type is NamespaceType.HOST_DEFAULT:
        if namespace.netns_path:
            raise HcnError(HcnCode.INVALID_JSON, "$.NetnsPath: a HostDefault namespace is the node itself")
        return _replace(namespace, compartment_id=HOST_COMPARTMENT)
    return _replace(namespace, compartment_id=context.pool.compartment(view))


def _attach(view: View, namespace: Namespace, endpoint_id: str) -> list[Change]:
    endpoint = get_endpoint(view, endpoint_id)
    return modified(Kind.ENDPOINT, endpoint, attached(view, endpoint, namespace))


def _detach(view: View, namespace: Namespace, endpoint_id: str) -> list[Change]:
    endpoint = get_endpoint(view, endpoint_id)
    if endpoint.namespace_id != namespace.id:
        raise HcnError(
            HcnCode.ENDPOINT_NOT_ATTACHED, f"endpoint {endpoint.id} is not in namespace {namespace.id}"
        )
    return modified(
        Kind.ENDPOINT, endpoint, _replace(endpoint, namespace_id="", shared_containers=(), detached=True)
    )


def _with_container(namespace: Namespace, container_id: str, present: bool) -> Namespace:
    """Return a namespace with or without a container; saying it twice changes nothing."""
    rest = tuple(item for item in namespace.resources if item.data.resource_id != container_id)
    if not present:
        return _replace(namespace, resources=rest)
    if rest != namespace.resources or not container_id:
        return namespace
    resource = Resource(type=ResourceType.CONTAINER, data=ResourceData(resource_id=container_id))
    return _replace(namespace, resources=(*rest, resource))
