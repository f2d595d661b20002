"""Load balancers: one at a time as HNS does, and in batches for a proxy that has very many."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import msgspec

from samewire.errors import SamewireError
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.frontends import FrontendKey, Reach, clash, frontend_keys, reach
from samewire.hcn.loadbalancers import (
    LoadBalancer,
    LoadBalancerBackend,
    LoadBalancerPortMapping,
    LoadBalancerSettings,
)
from samewire.hcn.modify import EndpointSettings, ModifySettingRequest, RequestType
from samewire.hcn.normalise_lb import check_backends, check_load_balancer, guids, port_exists, station
from samewire.hcn.numbered import alike
from samewire.hcn.plan.context import (
    Context,
    created,
    deleted,
    get_endpoint,
    get_load_balancer,
    get_network,
    modified,
    refuse_existing,
)
from samewire.hcn.plan.source_vips import SourceVips
from samewire.hcn.schema import Kind
from samewire.hcn.state import View
from samewire.hcn.switch import Change

_replace = msgspec.structs.replace

Wanted = dict[str, LoadBalancer | None]
Claim = tuple[FrontendKey, LoadBalancerPortMapping, list[LoadBalancer]]
"""What a load balancer wants, by which mapping, and who has it now."""


class Batch(NamedTuple):
    """The changes of a batch, the errors of the objects that are left out, and which of those may be possible
    later, when others of the batch have given way.
    """

    changes: list[Change]
    failures: dict[str, SamewireError]
    clashing: set[str]


def create_load_balancer(context: Context, value: LoadBalancer) -> list[Change]:
    """Plan the creation of a load balancer. Raises HcnError."""
    value = _complete(context.view, value)
    refuse_existing(context.view, Kind.LOADBALANCER, value.id)
    _refuse_clash(context.view, value)
    sources = SourceVips(context)
    value = sources.complete(value)
    return sources.around([created(Kind.LOADBALANCER, value)])


def modify_load_balancer(
    context: Context, load_balancer_id: str, request: ModifySettingRequest
) -> list[Change]:
    """Plan a modification: a whole object instead of the present one, or parts of it. Refresh changes nothing.
    Raises HcnError.
    """
    before = get_load_balancer(context.view, load_balancer_id)
    if request.request_type is RequestType.REFRESH:
        return []
    settings = request.settings
    if isinstance(settings, LoadBalancer):
        after = _replace(settings, id=before.id)
    elif isinstance(settings, LoadBalancerSettings):
        after = _changed(before, request.request_type, settings)
    elif isinstance(settings, EndpointSettings):
        wanted = LoadBalancerSettings(endpoint_ids=(settings.endpoint_id,))
        after = _changed(before, request.request_type, wanted)
    else:
        raise HcnError(HcnCode.REQUEST_UNSUPPORTED, "$.ResourceType: that is no part of a load balancer")
    after = _complete(context.view, after, before)
    _refuse_clash(context.view, after)
    sources = SourceVips(context)
    return sources.around(modified(Kind.LOADBALANCER, before, sources.complete(after)))


def delete_load_balancer(context: Context, load_balancer_id: str) -> list[Change]:
    """Plan the deletion of a load balancer. Raises HcnError."""
    value = get_load_balancer(context.view, load_balancer_id)
    return SourceVips(context).around([deleted(Kind.LOADBALANCER, value)])


def plan_batch(context: Context, owner: str, put: Iterable[LoadBalancer], delete: Iterable[str]) -> Batch:
    """Plan a batch: ``put`` are created or replace the object of their id, as if all at one moment.

    What cannot be done is left out, and stops nothing else. Deleting what is not there is no error.
    """
    view = context.view
    sources = SourceVips(context)
    wanted: Wanted = {}
    failures: dict[str, SamewireError] = {}
    for load_balancer_id in delete:
        before = view.load_balancer(load_balancer_id)
        if before is not None and before.owner != owner:
            failures[load_balancer_id] = _foreign(before)
        elif before is not None:
            wanted[load_balancer_id] = None
    for value in put:
        before = view.load_balancer(value.id)
        if value.owner == owner and before == value:
            continue  # what is there has been checked
        try:
            value = _complete(view, value if value.owner == owner else _replace(value, owner=owner), before)
            if before is None:
                before = view.load_balancer(value.id)  # by the canonical form of the id
            if before is not None and before.owner != owner:
                raise _foreign(before)
            value = sources.complete(value)
        except SamewireError as error:
            failures[value.id] = error
        else:
            if before != value:
                wanted[value.id] = value
    clashing = _drop_clashing(view, wanted, failures)
    changes = [
        Change(Kind.LOADBALANCER, object_id, view.load_balancer(object_id), after)
        for object_id, after in wanted.items()
    ]
    return Batch(sources.around(changes), failures, clashing)


def _foreign(value: LoadBalancer) -> HcnError:
    return HcnError(
        HcnCode.OBJECT_ALREADY_EXISTS,
        f"The object already exists. (load balancer {value.id} of {value.owner!r})",
    )


def _complete(view: View, value: LoadBalancer, before: LoadBalancer | None = None) -> LoadBalancer:
    """Return the canonical form, with references checked and the network that the endpoints say. Raises HcnError.

    ``before``: the present object; members that it has are known to be possible.
    """
    value = check_load_balancer(value, before)
    if value.endpoint_ids:
        value = _with_endpoints(view, value, before)
    elif value.local_endpoint_ids or value.draining_endpoint_ids:
        _check_subsets(value)
    if value.network_id:
        get_network(view, value.network_id)
    _check_vips(view, value)
    return value


def _with_endpoints(view: View, value: LoadBalancer, before: LoadBalancer | None) -> LoadBalancer:
    v6 = value.is_ipv6
    network_id = value.network_id
    known: Collection[str] = ()
    start, ids = 0, value.endpoint_ids
    if before is not None and (before.network_id, before.is_ipv6) == (network_id, v6):
        known = frozenset(before.endpoint_ids)
        start, end = alike(before.endpoint_ids, ids)
        ids = ids[start : len(ids) - end]
    for index, endpoint_id in enumerate(ids, start):
        if endpoint_id in known:
            continue
        endpoint = get_endpoint(view, endpoint_id)
        path = f"$.HostComputeEndpoints[{index}]"
        if network_id and endpoint.network_id != network_id:
            raise HcnError(
                HcnCode.INVALID_JSON_REFERENCE, f"{path}: endpoint {endpoint_id} is of another network"
            )
        network_id = endpoint.network_id
        if not any((":" in address) == v6 for address in endpoint.addresses):
            raise HcnError(
                HcnCode.INVALID_IP, f"{path}: endpoint {endpoint_id} has no IPv{6 if v6 else 4} address"
            )
    _check_subsets(value)
    return value if value.network_id == network_id else _replace(value, network_id=network_id)


def _check_subsets(value: LoadBalancer) -> None:
    members = set(value.endpoint_ids)
    for name, ids in (
        ("LocalEndpoints", value.local_endpoint_ids),
        ("DrainingEndpoints", value.draining_endpoint_ids),
    ):
        for index, endpoint_id in enumerate(ids):
            if endpoint_id not in members:
                raise HcnError(
                    HcnCode.INVALID_JSON_REFERENCE, f"$.{name}[{index}]: is not among HostComputeEndpoints"
                )


def _check_vips(view: View, value: LoadBalancer) -> None:
    """Refuse a VIP that is the address of a pod. (Remote endpoints may stand for VIPs: kube-proxy makes such.)"""
    networks = [value.network_id] if value.network_id else [network.id for network in view.networks()]
    for index, vip in enumerate(value.frontend_vips):
        for network_id in networks:
            owner = view.endpoint_by_ip(network_id, vip)
            if owner is not None and not owner.is_remote:
                raise HcnError(
                    HcnCode.ADDR_INVALID_OR_RESERVED,
                    f"$.FrontendVIPs[{index}]: {vip} is the address of endpoint {owner.id}",
                )


def _reach(view: View, value: LoadBalancer, mapping: LoadBalancerPortMapping) -> Reach:
    return reach(value, mapping, view.network(value.network_id) if value.network_id else None)


def _refuse_clash(view: View, value: LoadBalancer) -> None:
    """Refuse a VIP and port that another load balancer has. Raises HcnError(PORT_ALREADY_EXISTS)."""
    for key, mapping in frontend_keys(value):
        others = [other for other in view.load_balancers_at(key) if other.id != value.id]
        _refuse(view, value, key, mapping, others)


def _refuse(
    view: View,
    value: LoadBalancer,
    key: FrontendKey,
    mapping: LoadBalancerPortMapping,
    others: Iterable[LoadBalancer],
) -> None:
    for other in others:
        theirs = next(m for k, m in frontend_keys(other) if k == key)
        if clash(value, _reach(view, value, mapping), other, _reach(view, other, theirs)):
            raise port_exists("$.PortMappings", mapping.protocol, mapping.external_port, other)


def _drop_clashing(view: View, wanted: Wanted, failures: dict[str, SamewireError]) -> set[str]:
    """Leave out of a batch what clashes with what will be there; returns their ids.

    What is left out keeps what it had, which may be what another wanted to take over: so from the beginning.
    """
    dropped: set[str] = set()
    while True:
        clashing = _clashing(view, wanted)
        if not clashing:
            return dropped
        failures.update(clashing)
        for object_id in clashing:
            del wanted[object_id]
        dropped.update(clashing)


def _clashing(view: View, wanted: Wanted) -> dict[str, HcnError]:
    """What cannot be beside the others. Who has an address and port and keeps it goes before who wants it: else an
    object that claims it would hold up every change of the one that has it. Of several that have it the first goes.
    """
    claims: list[tuple[LoadBalancer, list[Claim]]] = []
    kept: dict[FrontendKey, list[LoadBalancer]] = {}
    for value in wanted.values():
        if value is None:
            continue
        mine = [(key, mapping, view.load_balancers_at(key)) for key, mapping in frontend_keys(value)]
        claims.append((value, mine))
        for key, _, present in mine:
            if present and any(other.id == value.id for other in present):
                kept.setdefault(key, []).append(value)
    clashing: dict[str, HcnError] = {}
    claimed: dict[FrontendKey, list[LoadBalancer]] = {}
    for value, mine in claims:
        try:
            for key, mapping, present in mine:
                others = [other for other in present if other.id not in wanted] if present else []
                others += claimed.get(key, ())
                keeping = kept.get(key)
                if keeping and all(other is not value for other in keeping):
                    others += keeping
                if others:
                    _refuse(view, value, key, mapping, others)
        except HcnError as error:
            clashing[value.id] = error
        else:
            for key, _, _ in mine:
                claimed.setdefault(key, []).append(value)
    return clashing


def _changed(before: LoadBalancer, request: RequestType, settings: LoadBalancerSettings) -> LoadBalancer:
    if request not in (RequestType.ADD, RequestType.REMOVE, RequestType.UPDATE):
        raise HcnError(HcnCode.REQUEST_UNSUPPORTED, f"$.RequestType: {request.value} is not possible here")
    settings = _canonical(settings)
    changes = {}
    for field in ("endpoint_ids", "frontend_vips", "port_mappings", "backends"):
        given = getattr(settings, field)
        if given is not None:
            changes[field] = _merged(getattr(before, field), given, request)
    after = _replace(before, **changes)
    members = set(after.endpoint_ids)
    return _replace(
        after,
        local_endpoint_ids=tuple(item for item in after.local_endpoint_ids if item in members),
        draining_endpoint_ids=tuple(item for item in after.draining_endpoint_ids if item in members),
    )


def _canonical(settings: LoadBalancerSettings) -> LoadBalancerSettings:
    """What is given, spelled as load balancers have it. Raises HcnError."""
    ids, vips, backends = settings.endpoint_ids, settings.frontend_vips, settings.backends
    changes: dict[str, object] = {}
    if ids is not None:
        changes["endpoint_ids"] = guids(ids, "$.Settings.HostComputeEndpoints")
    if vips is not None:
        places = (f"$.Settings.FrontendVIPs[{index}]" for index in range(len(vips)))
        changes["frontend_vips"] = tuple(
            station(vip, path) for vip, path in zip(vips, places, strict=True) if vip
        )
    if backends is not None:
        changes["backends"] = check_backends(backends, "$.Settings.Backends")
    return _replace(settings, **changes)


def _merged(present: Sequence[object], given: Sequence[object], request: RequestType) -> tuple[object, ...]:
    if request is RequestType.UPDATE:
        return tuple(given)
    if request is RequestType.ADD:
        known = frozenset(present)
        return (*present, *(item for item in given if item not in known))
    gone = frozenset(map(_identity, given))
    return tuple(item for item in present if _identity(item) not in gone)


def _identity(item: object) -> object:
    """What is there once: of backends an address and port, whatever else is said of them."""
    return (item.ip_address, item.port) if isinstance(item, LoadBalancerBackend) else item
