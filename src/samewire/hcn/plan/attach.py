"""Attaching endpoints the v1 way: to containers, compartments, and the node itself."""

from __future__ import annotations

import enum

import msgspec

from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.plan.addresses import HOST_COMPARTMENT
from samewire.hcn.plan.context import Context, deleted, get_endpoint, modified
from samewire.hcn.plan.endpoints import MADE_FOR_ENDPOINT, attached
from samewire.hcn.plan.namespaces import host_namespace
from samewire.hcn.schema import Endpoint, Kind, Namespace, ResourceType
from samewire.hcn.state import View
from samewire.hcn.switch import Change

_replace = msgspec.structs.replace


class SystemType(enum.StrEnum):
    """What an endpoint is attached to."""

    CONTAINER = "Container"
    VIRTUAL_MACHINE = "VirtualMachine"
    HOST = "Host"


class AttachRequest(msgspec.Struct, frozen=True):
    """The body of v1's attach and detach requests."""

    container_id: str = ""
    system_type: SystemType = SystemType.CONTAINER
    compartment_id: int = 0


def attach_endpoint(context: Context, endpoint_id: str, request: AttachRequest) -> list[Change]:
    """Plan an attachment.

    Compartment 1 is the node itself. Another compartment is a namespace's number. A container is attached to
    the namespace that lists it, if one does; else only its id is noted. Raises HcnError.
    """
    endpoint = get_endpoint(context.view, endpoint_id)
    if endpoint.is_remote:
        raise HcnError(
            HcnCode.INVALID_REMOTE_ENDPOINT_OPERATION,
            f"endpoint {endpoint.id} is remote and cannot be attached",
        )
    after, changes = _placed(context, endpoint, request)
    if request.container_id:
        if _shares(endpoint, request.container_id):
            raise _already(endpoint)
        after = _replace(after, shared_containers=(*after.shared_containers, request.container_id))
    return [*changes, *modified(Kind.ENDPOINT, endpoint, _replace(after, detached=False))]


def detach_endpoint(context: Context, endpoint_id: str, request: AttachRequest) -> list[Change]:
    """Plan the end of an attachment: of one container, or of everything when none is named or left. Raises
    HcnError.
    """
    view = context.view
    endpoint = get_endpoint(view, endpoint_id)
    named = request.container_id.lower()
    if named and not _shares(endpoint, named) and not _is_member(view, endpoint, named):
        raise HcnError(
            HcnCode.ENDPOINT_NOT_ATTACHED,
            f"endpoint {endpoint.id} is not attached to container {request.container_id[:64]}",
        )
    rest = tuple(item for item in endpoint.shared_containers if item.lower() != named) if named else ()
    if rest:
        return modified(Kind.ENDPOINT, endpoint, _replace(endpoint, shared_containers=rest))
    if not endpoint.namespace_id and not endpoint.shared_containers:
        raise HcnError(HcnCode.ENDPOINT_NOT_ATTACHED, f"endpoint {endpoint.id} is not attached")
    return [
        *modified(Kind.ENDPOINT, endpoint, left(endpoint)),
        *_emptied(view, endpoint),
    ]


def left(endpoint: Endpoint) -> Endpoint:
    """Return an endpoint as it is when it has been attached to something and is no longer."""
    return _replace(endpoint, namespace_id="", shared_containers=(), detached=True)


def _placed(context: Context, endpoint: Endpoint, request: AttachRequest) -> tuple[Endpoint, list[Change]]:
    """Return the endpoint in the namespace it is to be attached to, and the creation of that."""
    if request.system_type is SystemType.HOST or request.compartment_id == HOST_COMPARTMENT:
        if endpoint.namespace_id:
            raise _already(endpoint)
        namespace, changes = host_namespace(context)
        return attached(context.view, endpoint, namespace), changes
    namespaces = context.view.namespaces()
    if request.compartment_id:
        found = next((item for item in namespaces if item.compartment_id == request.compartment_id), None)
        if found is None:
            raise HcnError(
                HcnCode.GCN_NETCOMPARTMENT_NOT_FOUND,
                f"$.CompartmentId: there is no compartment {request.compartment_id}",
            )
        return _joined(context.view, endpoint, found), []
    if not request.container_id and request.system_type is SystemType.VIRTUAL_MACHINE:
        raise HcnError(
            HcnCode.PORT_NOT_FOUND, "$.VirtualNicName: the switch has no ports of virtual machines"
        )
    if not request.container_id:
        raise HcnError(HcnCode.INVALID_ENDPOINT, "$.ContainerId: is required, or a CompartmentId")
    found = next((item for item in namespaces if _holds(item, request.container_id)), None)
    return (endpoint if found is None else _joined(context.view, endpoint, found)), []


def _joined(view: View, endpoint: Endpoint, namespace: Namespace) -> Endpoint:
    return endpoint if endpoint.namespace_id == namespace.id else attached(view, endpoint, namespace)


def _already(endpoint: Endpoint) -> HcnError:
    return HcnError(
        HcnCode.ENDPOINT_ALREADY_ATTACHED, f"This endpoint is already attached to the switch. ({endpoint.id})"
    )


def _shares(endpoint: Endpoint, container_id: str) -> bool:
    return any(item.lower() == container_id.lower() for item in endpoint.shared_containers)


def _is_member(view: View, endpoint: Endpoint, container_id: str) -> bool:
    namespace = view.namespace(endpoint.namespace_id) if endpoint.namespace_id else None
    return namespace is not None and _holds(namespace, container_id)


def _holds(namespace: Namespace, container_id: str) -> bool:
    return any(
        item.type is ResourceType.CONTAINER and item.data.resource_id.lower() == container_id.lower()
        for item in namespace.resources
    )


def _emptied(view: View, endpoint: Endpoint) -> list[Change]:
    """Return the deletion of the namespace that was made for the endpoint, if nothing else is in it."""
    namespace = view.namespace(endpoint.namespace_id) if endpoint.namespace_id else None
    if namespace is None or namespace.owner != MADE_FOR_ENDPOINT:
        return []
    rest = [item for item in view.endpoints_of_namespace(namespace.id) if item.id != endpoint.id]
    return [] if rest else [deleted(Kind.NAMESPACE, namespace)]
