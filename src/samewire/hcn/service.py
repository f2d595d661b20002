"""The HNS service: every change of the wanted objects goes through here, one at a time.

A change is planned on the objects in memory, made true by the switch, and only then written. Where a step
fails, the objects are as before and the caller gets the error. Reads see committed objects only (those of a large
batch when they are in the switch: `Store.commit_beside`), and never wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final, TypeVar

import msgspec
import structlog

from samewire.errors import NotFound, SamewireError
from samewire.hcn.eager import begin
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.loadbalancers import LoadBalancer
from samewire.hcn.modify import ModifySettingRequest
from samewire.hcn.notifications import Notifications
from samewire.hcn.plan import attach, endpoints, loadbalancers, namespaces, network_changes, networks, routes
from samewire.hcn.plan.addresses import Pool
from samewire.hcn.plan.attach import AttachRequest
from samewire.hcn.plan.context import (
    Context,
    get_endpoint,
    get_load_balancer,
    get_namespace,
    get_network,
    get_route,
)
from samewire.hcn.plan.namespaces import NamespaceSpec
from samewire.hcn.schema import Endpoint, Kind, Namespace, Network, Object, Route
from samewire.hcn.state import Pending, State
from samewire.hcn.store import Store
from samewire.hcn.switch import Change, EndpointStats, Switch

T = TypeVar("T")
Plan = Callable[[Context], Sequence[Change]]

log = structlog.get_logger(__name__)

_SLICE: Final = 512
"""Load balancers changed at a time: some 30 ms in which nobody else has a turn."""


_MANY: Final = 64
"""Changes that are worth a thread: SQLite needs no interpreter, and somebody may have other work for it."""


class HnsService:
    """Create, get, list, modify and delete HCN objects."""

    def __init__(self, store: Store, switch: Switch) -> None:
        self._store = store
        self._switch = switch
        self._pool = Pool()
        self._lock = asyncio.Lock()
        self._running: set[asyncio.Future[Any]] = set()
        self.notifications = Notifications()
        self._stopped = False

    @property
    def view(self) -> State:
        """The committed objects (a `samewire.hcn.switch.StoreView`)."""
        return self._store.state

    async def close(self) -> None:
        """Take no more changes, and wait for those that are under way."""
        self._stopped = True
        if self._running:
            await asyncio.wait(self._running)

    def get(self, kind: Kind, object_id: str) -> Object:
        """Return an object. Raises HcnError."""
        look_up: Callable[[State, str], Object] = _GETTERS[kind]
        return look_up(self.view, object_id.upper())

    async def create(self, kind: Kind, value: Object) -> Object:
        """Create an object of any kind and return it complete. Raises SamewireError."""
        changes = await self._change(lambda context: _CREATORS[kind](context, value))
        return _created(changes, kind)

    async def modify(self, kind: Kind, object_id: str, request: ModifySettingRequest) -> Object:
        """Modify an object and return it. Raises SamewireError (REQUEST_UNSUPPORTED for routes)."""
        modify = _MODIFIERS.get(kind)
        if modify is None:
            raise HcnError(HcnCode.REQUEST_UNSUPPORTED, f"{kind.value} cannot be modified; delete and create")
        try:
            await self._change(lambda context: modify(context, object_id.upper(), request))
        except NotFound as error:
            if kind is not Kind.NAMESPACE:
                raise
            raise HcnError(
                HcnCode.NAMESPACE_ATTACH_FAILED, f"the endpoint cannot be attached: {error}"
            ) from error
        return self.get(kind, object_id)

    async def modify_network(self, network_id: str, requests: Sequence[ModifySettingRequest]) -> None:
        """Modify a network by several requests at once: all of them, or none. Raises SamewireError."""
        await self._change(
            lambda context: network_changes.modify_network(context, network_id.upper(), *requests)
        )

    async def delete(self, kind: Kind, object_id: str) -> None:
        """Delete an object. Raises SamewireError."""
        await self._change(lambda context: _DELETERS[kind](context, object_id.upper()))

    async def create_network(self, network: Network) -> Network:
        """Create a network. Raises SamewireError."""
        return _as(Network, await self.create(Kind.NETWORK, network))

    async def create_endpoint(self, endpoint: Endpoint) -> Endpoint:
        """Create an endpoint of ``endpoint.network_id``. Raises SamewireError."""
        return _as(Endpoint, await self.create(Kind.ENDPOINT, endpoint))

    async def create_namespace(self, namespace: Namespace) -> Namespace:
        """Create a namespace. Raises SamewireError."""
        return _as(Namespace, await self.create(Kind.NAMESPACE, namespace))

    async def create_route(self, route: Route) -> Route:
        """Create a route object. Raises SamewireError."""
        return _as(Route, await self.create(Kind.ROUTE, route))

    async def create_load_balancer(self, value: LoadBalancer) -> LoadBalancer:
        """Create a load balancer. Raises SamewireError."""
        return _as(LoadBalancer, await self.create(Kind.LOADBALANCER, value))

    async def change_load_balancers(
        self, owner: str, put: Sequence[LoadBalancer], delete: Sequence[str] = ()
    ) -> dict[str, SamewireError]:
        """Change many load balancers of one owner; returns what went wrong, by id, and nothing else.

        ``put``: whole objects with ids of the caller's choosing (upper-case GUIDs); each is created, or replaces the
        one of its id. ``delete``: ids; what is not there is no error. An object that fails stays as it was and stops
        no other. Objects that are as wanted cost next to nothing, and the cost of the others does not depend on how
        many there are. VIPs may move from one object of the batch to another. Each object's change is all or
        nothing; the batch is not one change: it goes in slices, between which others have their turn, and readers see
        the objects whose slice is done.
        """
        return await self._to_the_end(self._batch(owner, put, delete))

    async def create_attached_endpoint(
        self, network_id: str, endpoint: Endpoint, namespace: NamespaceSpec, interface_name: str
    ) -> Endpoint:
        """Create an endpoint within a network namespace, in one change (what CNI ADD needs). Raises
        SamewireError.

        The namespace object of ``namespace.netns_path`` is made if there is none; it then goes with its
        last endpoint.
        """
        wanted = msgspec.structs.replace(endpoint, network_id=network_id)

        def plan(context: Context) -> Sequence[Change]:
            return namespaces.create_attached_endpoint(context, wanted, namespace, interface_name)[1]

        return _as(Endpoint, _created(await self._change(plan), Kind.ENDPOINT))

    async def delete_attached_endpoint(self, endpoint_id: str) -> None:
        """Delete an endpoint, and its namespace object if it came with an endpoint and this was the last.

        Raises SamewireError (HcnError ENDPOINT_NOT_FOUND when it is gone).
        """
        await self.delete(Kind.ENDPOINT, endpoint_id)

    async def attach(self, endpoint_id: str, request: AttachRequest) -> None:
        """Attach an endpoint to a container, a compartment or the node (v1). Raises SamewireError."""
        await self._change(lambda context: attach.attach_endpoint(context, endpoint_id.upper(), request))

    async def detach(self, endpoint_id: str, request: AttachRequest) -> None:
        """End an attachment (v1). Raises SamewireError."""
        await self._change(lambda context: attach.detach_endpoint(context, endpoint_id.upper(), request))

    def setting(self, name: str) -> Any:
        """Return a setting of the node that HNS only keeps, None when it is not set. Raises StoreError."""
        return self._store.setting(name)

    def set_setting(self, name: str, value: Any) -> None:
        """Keep a setting of the node; None forgets it. Raises StoreError."""
        self._store.set_setting(name, value)

    async def refresh_facts(self) -> None:
        """Bring the networks up to date with the node's own addresses (DR MAC, management address)."""
        await self._change(networks.refresh_networks)

    async def endpoint_stats(self, endpoint_id: str) -> EndpointStats:
        """Return an endpoint's counters. Raises SamewireError."""
        return await self._switch.endpoint_stats(get_endpoint(self.view, endpoint_id.upper()))

    async def _change(self, plan: Plan) -> Sequence[Change]:
        """Run a change to its end, even when the caller stops waiting: it must not be left half done."""
        return await self._to_the_end(self._transaction(plan))

    async def _to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        if self._stopped:
            work.close()
            raise HcnError(HcnCode.MANAGER_STOPPED, "the service is stopping; ask again when it is back")
        task = begin(work)
        if task.done():
            return task.result()
        self._running.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _finished(self, task: asyncio.Future[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as seen: the caller may have gone

    def _context(self) -> Context:
        return Context(self.view, self._switch.facts(), self._pool, self._switch.usable_ports)

    async def _transaction(self, plan: Plan) -> Sequence[Change]:
        async with self._lock:
            changes = plan(self._context())
            if not changes:
                return changes
            changes = namespaces.identified(changes, self.view, self._switch.netns_identity)
            self.notifications.before(changes)
            await self._make_true(changes)
            self.notifications.after(changes)
            return changes

    async def _batch(
        self, owner: str, put: Sequence[LoadBalancer], delete: Sequence[str]
    ) -> dict[str, SamewireError]:
        failures: dict[str, SamewireError] = {}
        again: list[LoadBalancer] = []
        for start in range(0, len(delete), _SLICE):
            if start:
                await asyncio.sleep(0)
            failed, _ = await self._batch_slice(owner, (), delete[start : start + _SLICE])
            failures.update(failed)
        for start in range(0, len(put), _SLICE):
            if start or delete:
                await asyncio.sleep(0)  # others have their turn
            part = put[start : start + _SLICE]
            failed, clashing = await self._batch_slice(owner, part, ())
            failures.update(failed)
            again += [value for value in part if value.id in clashing]
        if again and len(put) > _SLICE:  # others have given way meanwhile, or do so together with them
            for value in again:
                failures.pop(value.id, None)  # who names a port twice is here twice
            failed, _ = await self._batch_slice(owner, again, ())
            failures.update(failed)
        return failures

    async def _batch_slice(
        self, owner: str, put: Iterable[LoadBalancer], delete: Iterable[str]
    ) -> tuple[dict[str, SamewireError], set[str]]:
        """Change what can be; returns the errors, and the ids of those that clash with others."""
        async with self._lock:
            context = self._context()
            batch = loadbalancers.plan_batch(context, owner, put, delete)
            try:
                await self._make_true(batch.changes)
            except SamewireError:
                await self._one_by_one(batch)
        return batch.failures, batch.clashing

    async def _one_by_one(self, batch: loadbalancers.Batch) -> None:
        """A slice has failed: find out which object it was. A source VIP stays with a load balancer that stays."""
        for change in batch.changes:
            if isinstance(change.before, Endpoint) and any(
                self.view.is_source_vip(change.before.network_id, address)
                for address in change.before.addresses
            ):
                continue
            try:
                await self._make_true([change])
            except SamewireError as error:
                batch.failures[change.id] = error

    async def _make_true(self, changes: Sequence[Change]) -> None:
        """Change the switch, then the store. Raises SamewireError (nothing has changed then)."""
        if not changes:
            return
        await self._switch.apply(changes, Pending(self.view, changes))
        try:
            if len(changes) < _MANY:
                self._store.commit(changes)
            else:
                await self._store.commit_beside(changes)
        except Exception:  # a StoreError; whatever else it is, the switch must not be ahead of the store
            await self._take_back(changes)
            raise

    async def _take_back(self, changes: Sequence[Change]) -> None:
        """Undo in the switch what could not be written. If that fails too, the switch keeps it until these objects'
        next change, or the next start.
        """
        try:
            await self._switch.apply([change.inverse() for change in reversed(changes)], self.view)
        except SamewireError as error:
            log.error("a change that could not be stored could not be taken back", error=str(error))


def _created(changes: Sequence[Change], kind: Kind) -> Object:
    """Return the object of a kind that a plan creates."""
    return next(
        change.after
        for change in changes
        if change.kind is kind and change.before is None and change.after is not None
    )


def _as(wanted: type[T], value: object) -> T:
    if not isinstance(value, wanted):
        raise TypeError(f"expected {wanted.__name__}, got {type(value).__name__}")
    return value


_GETTERS: dict[Kind, Callable[[State, str], Any]] = {
    Kind.NETWORK: get_network,
    Kind.ENDPOINT: get_endpoint,
    Kind.NAMESPACE: get_namespace,
    Kind.ROUTE: get_route,
    Kind.LOADBALANCER: get_load_balancer,
}
_CREATORS: dict[Kind, Callable[[Context, Any], Sequence[Change]]] = {
    Kind.NETWORK: networks.create_network,
    Kind.ENDPOINT: endpoints.create_endpoint,
    Kind.NAMESPACE: namespaces.create_namespace,
    Kind.ROUTE: routes.create_route,
    Kind.LOADBALANCER: loadbalancers.create_load_balancer,
}
_MODIFIERS: dict[Kind, Callable[[Context, str, ModifySettingRequest], Sequence[Change]]] = {
    Kind.NETWORK: network_changes.modify_network,
    Kind.ENDPOINT: endpoints.modify_endpoint,
    Kind.NAMESPACE: namespaces.modify_namespace,
    Kind.LOADBALANCER: loadbalancers.modify_load_balancer,
}
_DELETERS: dict[Kind, Callable[[Context, str], Sequence[Change]]] = {
    Kind.NETWORK: networks.delete_network,
    Kind.ENDPOINT: endpoints.delete_endpoint,
    Kind.NAMESPACE: namespaces.delete_namespace,
    Kind.ROUTE: routes.delete_route,
    Kind.LOADBALANCER: loadbalancers.delete_load_balancer,
}
