"""Keeps the HCN load balancers of this node as the Services and EndpointSlices want them.

A batch of the source only marks services dirty. One task compiles what is dirty, and hands the difference to the HNS
service; what arrives meanwhile is the next round, so that bursts coalesce and nothing waits for a timer. Nothing is
touched before every kind is known completely, and a source that cannot be reached changes nothing. A service that fails
is tried again alone, later and later; the others go on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Final

import structlog

from samewire.errors import SamewireError
from samewire.hcn.loadbalancers import LoadBalancer
from samewire.kube.model import EndpointSlice, Key, Node, Service
from samewire.kube.source import Batch, Source
from samewire.proxy.batches import Writer, Writing, write
from samewire.proxy.compile import Compiled, Settings, compile_service, direct_node
from samewire.proxy.figures import Figures, trigger_time_s
from samewire.proxy.health import ProxyHealth
from samewire.proxy.healthserver import Check
from samewire.proxy.ids import service_key
from samewire.proxy.rearranged import Rearranged
from samewire.proxy.table import ServiceTable
from samewire.proxy.topology import Place
from samewire.proxy.unread import may_be_unread

log = structlog.get_logger(__name__)

BATCH: Final = 500
"""Services in one change of the HNS service: what others wait for at most."""
FIRST_RETRY_S: Final = 0.05
LAST_RETRY_S: Final = 30.0
MAX_DOUBLINGS: Final = 10  # a service may fail for weeks: the power has a limit, too
NETWORK_RETRY_S: Final = 1.0
MAX_TRIGGERS: Final = 100
"""Trigger times kept of one service that waits."""
VERIFY_S: Final = 30.0
"""How often it is checked that nobody has deleted a load balancer of ours."""
_UNREAD: Final = "stays as it was: not all that is there has been read since the start"


class ServiceProxy:
    """The controller. Use from one event loop: `start`, and `close` before the source."""

    def __init__(self, source: Source, writer: Writer, node: str, *, dsr: bool = False) -> None:
        self.table = ServiceTable()
        self.figures = Figures()
        self.health = ProxyHealth()
        self.checks: dict[Key, Check] = {}
        self.on_checks: Callable[[], None] = lambda: None
        """Called when `checks` has changed."""
        self.on_complete: Callable[[], None] = lambda: None
        """Called once, when everything that a start has found is written."""
        self._source = source
        self._writer = writer
        self._settings = Settings(Place(node, ""), dsr=dsr)
        self._dirty: dict[Key, float] = {}
        self._retries: dict[Key, float] = {}
        self._triggers: dict[Key, list[float]] = {}
        self._written: dict[Key, tuple[str, ...]] = {}
        self._left: set[Key] = set()
        self._rearranged = Rearranged(lambda key: self._mark([key], _now()))
        self._unsynced = {Service, EndpointSlice, Node}
        self._adopted = False
        self._writing = False
        self._born_s = time.time()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to watch and to write; the source may be started before or after."""
        self._source.watch(Service, self._on_services)
        self._source.watch(EndpointSlice, self._on_slices)
        self._source.watch(Node, self._on_nodes)
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._look_after())]

    async def close(self) -> None:
        """Stop. What is written stays."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._rearranged.close()

    def look_again(self) -> None:
        """The network, or the addresses of node ports, may be others now."""
        self._wake.set()

    def write_again(self) -> None:
        """What is written may not be what was wanted any more: compare, and write what differs."""
        self._mark(self.table.services, _now())

    @property
    def idle(self) -> bool:
        """Whether everything that is known is written, but for services that failed."""
        return self._adopted and not self._dirty and not self._writing

    def load_balancer_ids(self, key: Key) -> tuple[str, ...]:
        """The ids of a service's load balancers."""
        return self._written.get(key, ())

    def _on_services(self, batch: Batch[Service]) -> None:
        self.figures.service_changes += len(batch.changes)
        self._mark(self.table.change_services(batch.changes), batch.received_s)
        self._have(Service)

    def _on_slices(self, batch: Batch[EndpointSlice]) -> None:
        self.figures.slice_changes += len(batch.changes)
        self._rearranged.note(batch.changes)
        self._mark(self.table.change_slices(batch.changes), batch.received_s)
        for change in batch.changes:
            piece = change.new
            if piece is not None and piece.metadata.annotations.last_change_trigger_time:
                self._note_trigger(piece)
        self._have(EndpointSlice)

    def _on_nodes(self, batch: Batch[Node]) -> None:
        direct = dict(self._settings.direct)
        wanted = self._settings
        for change in batch.changes:
            name = change.key[1]
            if change.new is not None and (node := direct_node(change.new)):
                direct[name] = node
            else:
                direct.pop(name, None)
            if name == self._settings.place.node:
                self.health.set_node(change.new)
                wanted = wanted._replace(place=Place(name, change.new.zone if change.new is not None else ""))
        wanted = wanted._replace(direct=direct)
        if wanted != self._settings:
            self._settings = wanted
            self._mark(self.table.services, batch.received_s)
        self._have(Node)

    def _note_trigger(self, piece: EndpointSlice) -> None:
        at_s = trigger_time_s(piece.metadata.annotations.last_change_trigger_time)
        key = piece.service_key
        if at_s > self._born_s and key in self._dirty:  # not that of a headless Service, which nobody writes
            known = self._triggers.setdefault(key, [])
            if len(known) < MAX_TRIGGERS:
                known.append(at_s)

    def _mark(self, keys: Iterable[Key], received_s: float) -> None:
        for key in keys:
            self._dirty.setdefault(key, received_s)
        if self._dirty:
            self._queued()
            self.figures.last_queued_s = time.time()
        self.figures.services_pending = len(self._dirty)
        self._wake.set()

    def _have(self, kind: type) -> None:
        self._unsynced.discard(kind)
        if self._dirty:
            self._queued()
        self._wake.set()

    def _queued(self) -> None:
        """Something waits to be written. While a kind is not known yet that says nothing about us."""
        if not self._unsynced:
            self.health.queued(time.monotonic())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                wait_s = await self._round()
            except Exception:  # a bug must not end the proxy for good
                log.exception("services have not been written")
                wait_s = NETWORK_RETRY_S
            # not wait_for: when the event and a cancellation meet, Python 3.11's forgets the cancellation
            timer = loop.call_later(wait_s, self._wake.set)
            await self._wake.wait()
            timer.cancel()
            self._wake.clear()

    async def _round(self) -> float:
        """Write what is dirty and due; returns after how many seconds to look again at the latest."""
        if self._unsynced or not self._find_network():
            return NETWORK_RETRY_S
        if not self._adopted:
            self._adopt()
        self._take_up_again()
        self._writing = True
        try:
            await self._write_all()
        finally:
            self._writing = False
        if self.health.updated_s is None:
            self.on_complete()
        self.health.updated(time.monotonic())
        return max(min(self._retries.values()) - _now(), 0.0) if self._retries else VERIFY_S

    def _take_up_again(self) -> None:
        """Services that have failed, and are due."""
        now = _now()
        for key in [key for key, due_s in self._retries.items() if due_s <= now]:
            self._dirty.setdefault(key, now)
            del self._retries[key]

    def _find_network(self) -> bool:
        network_id = self._writer.network_id()
        if network_id is None:
            return False
        wanted = self._settings._replace(
            network_id=network_id, node_port_addresses=self._writer.node_port_addresses()
        )
        if wanted != self._settings:
            self._settings = wanted
            self._mark(self.table.services, _now())
        return True

    def _adopt(self) -> None:
        """Take over what an earlier life left; what of it no service wants any more goes with this first round."""
        left: dict[Key, list[str]] = {}
        for value in self._writer.owned():
            left.setdefault(service_key(value.service_name) or ("", value.id), []).append(value.id)
        self._written = {key: tuple(ids) for key, ids in left.items()}
        self._left = set(left)
        self._mark(left, _now())
        # Of two that claim an address, every node takes the same one.
        self._dirty = dict(sorted(self._dirty.items()))
        self._adopted = True

    async def _write_all(self) -> None:
        """Batch after batch; while one is on its way to the disk, the next is compiled."""
        batch = self._compile_some()
        while batch is not None:
            following = writing = None
            try:
                writing = asyncio.create_task(write(self._writer, batch)) if self._dirty else None
                if writing is not None:
                    await asyncio.sleep(0)  # it begins
                    following = self._compile_some(batch.keys)
                failed = await (writing or write(self._writer, batch))
                self._finish(batch, failed)
            except BaseException:
                if writing is not None:
                    writing.cancel()  # nobody waits for it any more
                if following is not None:
                    self._dirty = {**following.keys, **self._dirty}
                raise
            self._take_up_again()
            self.health.waiting(next(iter(self._dirty.values()), time.monotonic()))
            if following is None and not self._dirty:
                return
            await asyncio.sleep(0)
            batch = following or self._compile_some()

    def _compile_some(self, busy: Collection[Key] = ()) -> Writing | None:
        """Compile one batch of dirty services; None if there are none. Those that are ``busy`` have to wait: what they
        become depends on what they are.
        """
        keys = dict(islice(((key, since) for key, since in self._dirty.items() if key not in busy), BATCH))
        if not keys:
            return None
        batch = Writing(time.perf_counter(), keys, {}, {}, [], [])
        for key in keys:
            del self._dirty[key]
            self._retries.pop(key, None)
            if key in self._triggers:
                batch.triggers[key] = self._triggers.pop(key)
        for key in keys:
            if self._stays(key):
                self._failed(key, _UNREAD)
                continue
            try:
                compiled = batch.compiled[key] = self._compile(key)
            except Exception as error:  # one service that we cannot make sense of must not stop the others
                log.exception("a service cannot be compiled", service="/".join(key))
                self._failed(key, f"{type(error).__name__}: {error}")
                continue
            self._difference(key, compiled, batch.puts, batch.deletes)
        return batch

    def _stays(self, key: Key) -> bool:
        """Whether what an earlier life has written of a service is not touched yet."""
        if key in self._left and not may_be_unread(key, self.table, self._source.health()):
            self._left.discard(key)
        return key in self._left

    def _compile(self, key: Key) -> Compiled:
        service, slices = self.table.services.get(key), self.table.slices(key)
        moving = self._rearranged.lasts(key, slices)
        return compile_service(
            key,
            service,
            slices,
            self._settings,
            self._writer.get,
            moving=moving,
            owner_of=self.table.owner_of,
        )

    def _difference(self, key: Key, wanted: Compiled, puts: list[LoadBalancer], deletes: list[str]) -> None:
        ids = set()
        for value in wanted.load_balancers:
            ids.add(value.id)
            if self._writer.get(value.id) != value:
                puts.append(value)
        deletes += [lb_id for lb_id in self._written.get(key, ()) if lb_id not in ids]

    def _finish(self, batch: Writing, failed: Mapping[str, SamewireError]) -> None:
        """A batch has been written, but for what failed."""
        self._record(batch, failed)
        if len(self._retries) <= BATCH and any(lb_id not in failed for lb_id in batch.deletes):
            self._retries = dict.fromkeys(self._retries, 0.0)  # the address that one waits for may be free
        self._observe(batch.triggers)
        self.figures.syncs.observe(time.perf_counter() - batch.began_s)
        self.figures.last_sync_s = time.time()
        self.figures.services_pending = len(self._dirty)

    def _record(self, batch: Writing, failed: Mapping[str, SamewireError]) -> None:
        now, wall_s = _now(), time.time()
        keys, compiled = batch.keys, batch.compiled
        changed = {value.id for value in batch.puts}.union(batch.deletes)
        checks_before = len(self.checks)
        checks_changed = False
        for key, wanted in compiled.items():
            ids = tuple([value.id for value in wanted.load_balancers])
            before = self._written.get(key, ())
            errors = [str(failed[lb_id]) for lb_id in {*ids, *before} if lb_id in failed] if failed else []
            touched = not changed.isdisjoint(ids) or not changed.isdisjoint(before)
            checks_changed |= self._check(key, wanted)
            if errors:
                known = dict.fromkeys((*ids, *before))
                self._written[key] = tuple(lb_id for lb_id in known if self._writer.get(lb_id) is not None)
                self._failed(key, "; ".join(sorted(filter(None, (*errors, wanted.refused)))))
                continue
            if ids or wanted.refused:
                self._written[key] = ids
                self._succeeded(key, wanted.refused, touched, wall_s, now - keys[key])
            else:
                self._written.pop(key, None)
                self.figures.forget(key)
        if checks_changed or len(self.checks) != checks_before:
            self.on_checks()

    def _check(self, key: Key, wanted: Compiled) -> bool:
        """Note a service's health check; whether that has changed anything."""
        self.figures.note_local(key, wanted.lacks_internal, wanted.lacks_external)
        if not wanted.health_check_port:
            return self.checks.pop(key, None) is not None
        check = Check(wanted.health_check_port, wanted.local_endpoints)
        changed = self.checks.get(key) != check
        self.checks[key] = check
        return changed

    def _succeeded(self, key: Key, refused: str, touched: bool, wall_s: float, latency_s: float) -> None:
        """What is ``refused`` is not tried again: only another Service or slice could change that."""
        status = self.figures.lacks(key, refused)
        status.attempts = 0
        if touched:
            status.changed_s, status.latency_s = wall_s, latency_s
            if self.health.updated_s is not None:  # what a start finds is no change
                self.figures.changes.observe(latency_s)

    def _failed(self, key: Key, error: str) -> None:
        status = self.figures.lacks(key, error, again=True)
        status.attempts += 1
        delay_s = min(FIRST_RETRY_S * 2 ** min(status.attempts - 1, MAX_DOUBLINGS), LAST_RETRY_S)
        self._retries[key] = _now() + delay_s

    def _observe(self, triggers: Mapping[Key, Sequence[float]]) -> None:
        now = time.time()
        for key, times in triggers.items():
            if key not in self._retries:
                for at_s in times:
                    self.figures.programming.observe(max(now - at_s, 0.0))

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(VERIFY_S)
            await self._verify()

    async def _verify(self) -> None:
        """Services that have lost a load balancer are written again. Changes go on between some and the next."""
        get = self._writer.get
        written = iter(list(self._written.items()))
        while some := list(islice(written, BATCH)):
            lost = [key for key, ids in some if any(get(lb_id) is None for lb_id in ids)]
            self._mark([key for key in lost if key not in self._retries], _now())
            await asyncio.sleep(0)


def _now() -> float:
    return asyncio.get_running_loop().time()
