"""The load balancers' part of the tables: what is wanted, as the bytes that are in the kernel, and how it changes.

They have a path of their own because there are so many: nothing here is a record, nothing is shared between owners,
and a change costs what the changed object has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from typing import Final, Protocol

import msgspec
import structlog

from samewire.errors import Conflict, KernelError, SamewireError
from samewire.hcn.loadbalancers import LoadBalancer
from samewire.hcn.schema import Endpoint, Network
from samewire.node.hostsockets import end_orphans
from samewire.node.numbers import StoreNumbers
from samewire.node.tables import KernelTables
from samewire.vfp.compile.balanced import (
    TABLES,
    TARGET_BYTES,
    Held,
    HeldPort,
    Rows,
    backends_by_service,
    highest_number,
    number_of,
)
from samewire.vfp.compile.direct import compile_direct, direct_vni, hop_key
from samewire.vfp.compile.loadbalancer import (
    Environment,
    LocalPort,
    adopt,
    compile_load_balancer,
)
from samewire.vfp.compile.members import Member
from samewire.vfp.compile.membership import Edit, edit_members
from samewire.vfp.compile.places import Domain, Places
from samewire.vfp.model import Compiled, NodeFacts

log = structlog.get_logger(__name__)

COUNTS: Final = "sw_service_counts"
_UDP: Final = 17
_SCTP: Final = 132


class BalancerView(Protocol):
    """The objects that load balancers are compiled from."""

    def load_balancer(self, load_balancer_id: str) -> LoadBalancer | None: ...
    def load_balancers(self) -> Iterable[LoadBalancer]: ...
    def endpoint(self, endpoint_id: str) -> Endpoint | None: ...
    def endpoint_by_ip(self, network_id: str, ip: str) -> Endpoint | None: ...
    def networks(self) -> Iterable[Network]: ...


class BalancerChange(msgspec.Struct):
    """A planned change. ``puts`` and ``removals`` by table, in order; ``held``: what load balancers have afterwards;
    ``gone``: keys of the services that are no more; ``datagrams``: whether backends for UDP may go.
    """

    puts: dict[str, Rows]
    removals: dict[str, list[bytes]]
    held: dict[str, Held | None]
    gone: list[bytes]
    datagrams: bool


_NONE: Final[Mapping[str, LoadBalancer]] = {}
NO_CHANGE: Final = BalancerChange({}, {}, {}, [], False)


class Balancers:
    """What all load balancers want. Use with the switch's lock held."""

    def __init__(
        self, tables: KernelTables, numbers: StoreNumbers, port: Callable[[str], LocalPort | None]
    ) -> None:
        self.rows: dict[str, Rows] = {table: {} for table in TABLES}
        self.sctp_ports = 0
        """How many of the ports that load balancers have are SCTP's."""
        self._held: dict[str, Held] = {}
        self._doubted: set[str] = set()
        self._tables = tables
        self._numbers = numbers
        self._port = port
        self._places: Places | None = None
        self._facts: NodeFacts | None = None

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, load_balancer_id: str) -> bool:
        """Whether a load balancer is in the tables; one that could not be compiled at the start is not."""
        return load_balancer_id in self._held

    def doubt(self, load_balancer_ids: Iterable[str]) -> None:
        """A change has failed, perhaps one back to what the objects are: the next one compiles these whole."""
        self._doubted.update(load_balancer_ids)

    def forget_places(self) -> None:
        """A network has changed: where addresses are has to be worked out anew."""
        self._places = None

    def moved(self, view: BalancerView, before: NodeFacts, after: NodeFacts) -> bool:
        """Whether new facts about the node say that some address is elsewhere than it was. Raises Invalid."""
        old, new = (Places(view.networks(), facts, self._numbers.silent) for facts in (before, after))
        return not old.same(new)

    def plan(
        self,
        wanted: Mapping[str, bool],
        view: BalancerView,
        facts: NodeFacts,
        were: Mapping[str, LoadBalancer] = _NONE,
    ) -> BalancerChange:
        """Compile load balancers anew (True), or forget them (False). Nothing changes yet. Raises SamewireError.

        ``were``: what those were that nothing but their own change touches: of their members, those are compiled that
        have moved, where they are few.
        """
        if not wanted:
            return NO_CHANGE
        self._numbers.begin()  # what is asked for here is no owner's
        puts: dict[str, Rows] = {table: {} for table in TABLES}
        held: dict[str, Held | None] = {}
        stale: dict[str, set[bytes]] = {table: set() for table in TABLES}
        environment = cache(lambda network_id: self._environment(network_id, view, facts))
        edits: list[Edit] = []
        for load_balancer_id, compile_it in wanted.items():
            before = self._held.get(load_balancer_id)
            value = view.load_balancer(load_balancer_id) if compile_it else None
            last = were.get(load_balancer_id) if load_balancer_id not in self._doubted else None
            edit = _edit(last, value, environment, before)
            if edit is not None:
                held[load_balancer_id] = edit.held
                edits.append(edit)
                continue
            for table, keys in before.keys_by_table() if before is not None else ():
                stale[table].update(keys)
            if value is None:
                held[load_balancer_id] = None
                continue
            compiled = compile_load_balancer(value, environment(value.network_id), before)
            held[load_balancer_id] = compiled.held
            _enter(puts, compiled.rows)
        changed, removals = self._moves(puts, stale, edits)
        datagrams = bool(removals["sw_backends"]) and self._served_udp(held)
        return BalancerChange(changed, removals, held, self._gone(held), datagrams)

    def _moves(
        self, puts: Mapping[str, Rows], stale: Mapping[str, set[bytes]], edits: Iterable[Edit]
    ) -> tuple[dict[str, Rows], dict[str, list[bytes]]]:
        """What is to be written and what to be removed, by table. Raises Conflict."""
        changed = {table: self._changed(table, put, stale[table]) for table, put in puts.items()}
        removals = {table: list(keys - puts[table].keys()) for table, keys in stale.items()}
        for edit in edits:
            for table in TABLES:
                changed[table].update(edit.puts[table])
                removals[table] += edit.removals[table]
        return changed, removals

    def _served_udp(self, load_balancer_ids: Iterable[str]) -> bool:
        return any(
            port.protocol == _UDP for found in load_balancer_ids for port in _ports(self._held.get(found))
        )

    def _gone(self, held: Mapping[str, Held | None]) -> list[bytes]:
        before = {port.service for found in held for port in _ports(self._held.get(found))}
        if before:
            before.difference_update(port.service for now in held.values() for port in _ports(now))
        return [number.to_bytes(4, "little") for number in before]

    def _changed(self, table: str, rows: Rows, stale: Collection[bytes] = ()) -> Rows:
        """Those of the rows that differ from the present ones. Raises Conflict for one that is there and not ``stale``:
        it is somebody else's.
        """
        present = self.rows[table]
        if present.keys().isdisjoint(rows):
            return rows
        for key in (present.keys() & rows.keys()).difference(stale):
            raise Conflict(f"another load balancer has the entry {key.hex()} of {table}")
        return {key: row for key, row in rows.items() if present.get(key) != row}

    def write_puts(self, change: BalancerChange) -> None:
        """Write what is new, the pointed-at before the pointing. Raises KernelError."""
        for table, rows in change.puts.items():
            if rows:
                self._tables.write_rows(table, rows)

    def write_removals(self, change: BalancerChange) -> None:
        """Remove what is no longer wanted, the pointing before the pointed-at. Raises KernelError."""
        for table, keys in reversed(change.removals.items()):
            if keys:
                self._tables.remove_rows(table, keys)

    def accept(self, change: BalancerChange) -> None:
        """The change is made: it is what is wanted from now on."""
        if change is NO_CHANGE:
            return
        removed = change.removals["sw_backends"] if change.datagrams else ()
        targets = {row[:TARGET_BYTES] for key in removed if (row := self.rows["sw_backends"].get(key))}
        for table in TABLES:
            rows = self.rows[table]
            for key in change.removals[table]:
                rows.pop(key, None)
            rows.update(change.puts[table])
        self._doubted.difference_update(change.held)
        for load_balancer_id, held in change.held.items():
            self.sctp_ports += _sctp_ports(held) - _sctp_ports(self._held.get(load_balancer_id))
            if held is None:
                self._held.pop(load_balancer_id, None)
            else:
                self._held[load_balancer_id] = held
        try:
            if change.gone:
                self._tables.remove_rows(COUNTS, change.gone)
        except KernelError as error:
            log.warning("counts of removed services stay until the next audit", error=str(error))
        if targets:
            end_orphans(self._tables, targets)

    def take_back(self, change: BalancerChange) -> None:
        """Give the kernel back what it had before a change that has not been accepted. Raises KernelError."""
        if change is NO_CHANGE:
            return
        for table in TABLES:
            rows = self.rows[table]
            touched = (*change.puts[table], *change.removals[table])
            self._tables.write_rows(table, {key: rows[key] for key in touched if key in rows})
        for table in reversed(TABLES):
            new = [key for key in change.puts[table] if key not in self.rows[table]]
            self._tables.remove_rows(table, new)

    def restore(
        self,
        view: BalancerView,
        facts: NodeFacts,
        old_rows: Callable[[str], Rows | None],
        failed: Callable[[str, SamewireError], None],
    ) -> None:
        """Take over at start what the kernel has, and write what it lacks. Raises KernelError.

        ``old_rows``: what a table had whose map is new, None for those that are not. What is there too much is left to
        the audit. A load balancer that cannot be compiled is told to ``failed``.
        """
        kernel: dict[str, Rows] = {table: dict(self._tables.rows(table)) for table in TABLES}
        known = {table: old_rows(table) or kernel[table] for table in TABLES}
        self._numbers.begin()
        self._numbers.start_above(max(highest_number(kernel), highest_number(known)))
        by_service = backends_by_service(known["sw_backends"])
        lacks: dict[str, Rows] = {table: {} for table in TABLES}
        environments: dict[str, Environment] = {}
        for value in view.load_balancers():
            try:
                env = environments.get(value.network_id)
                if env is None:
                    env = self._environment(value.network_id, view, facts)._replace(rows=known)
                    environments[value.network_id] = env
                compiled = compile_load_balancer(value, env, adopt(value, env, by_service))
                for table, rows in zip(TABLES, compiled.rows, strict=True):
                    self._changed(table, rows)
                for table, rows in zip(TABLES, compiled.rows, strict=True):
                    lacks[table].update(self._take_over(self.rows[table], rows, known[table], kernel[table]))
                self._held[value.id] = compiled.held
                self.sctp_ports += _sctp_ports(compiled.held)
            except SamewireError as error:  # one bad object must not keep the node down
                failed(value.id, error)
        for table in TABLES:
            self._tables.write_rows(table, lacks[table])

    @staticmethod
    def _take_over(wanted: Rows, rows: Rows, known: Rows, kernel: Rows) -> Rows:
        """Enter rows into what is wanted; returns those that the kernel lacks.

        What is known already is moved over as it is: there is never twice as much in memory.
        """
        lacks = {}
        for key, row in rows.items():
            before = known.pop(key, None)
            wanted[key] = before if before == row else row
            if (before if known is kernel else kernel.get(key)) != row:
                lacks[key] = row
        return lacks

    def direct_hops(self, value: LoadBalancer, view: BalancerView, facts: NodeFacts) -> Compiled:
        """The nexthops that a load balancer's backends are reached by with DSR. Raises SamewireError."""
        return compile_direct(value, self._domain(value.network_id, view, facts))

    def services_of(self, load_balancer_id: str) -> tuple[int, ...]:
        """The service numbers of a load balancer, as they are in counters and flows."""
        held = self._held.get(load_balancer_id)
        return tuple(port.service for port in held.ports) if held is not None else ()

    def targets_of(self, load_balancer_id: str) -> list[bytes]:
        """Address and port of each backend that a load balancer has in the switch."""
        held, rows = self._held.get(load_balancer_id), self.rows["sw_backends"]
        return [rows[key][:TARGET_BYTES] for port in _ports(held) for key in port.backends]

    def owners(self) -> dict[int, str]:
        """The load balancers by the numbers of their services and sets."""
        return {
            number: load_balancer_id
            for load_balancer_id, held in self._held.items()
            for port in held.ports
            for number in (port.service, port.all.set, port.local.set)
            if number
        }

    def number_of(self, table: str, key: bytes) -> int:
        """The number of the service or set that a wanted entry is about, 0 when it is not wanted."""
        row = self.rows[table].get(key)
        return number_of(table, key, row) if row is not None else 0

    def _environment(self, network_id: str, view: BalancerView, facts: NodeFacts) -> Environment:
        return Environment(
            view=view,
            domain=self._domain(network_id, view, facts),
            rows=self.rows,
            number=self._numbers.fresh,
            hop=self._hop,
            port=self._port,
            vxlan_port=facts.vxlan_port,
        )

    def _domain(self, network_id: str, view: BalancerView, facts: NodeFacts) -> Domain:
        if self._places is None or self._facts is not facts:
            self._places, self._facts = Places(view.networks(), facts, self._numbers), facts
        return self._places.domain(network_id)

    def _hop(self, member: Member, domain: Domain) -> int:
        if not direct_vni(domain, member.scope):
            return 0
        return self._numbers.silent.number("nexthop", hop_key(member))


def _edit(
    last: LoadBalancer | None,
    value: LoadBalancer | None,
    environment: Callable[[str], Environment],
    before: Held | None,
) -> Edit | None:
    if last is None or value is None or before is None:
        return None
    return edit_members(last, value, environment(value.network_id), before)


def _enter(puts: Mapping[str, Rows], compiled: Iterable[Rows]) -> None:
    """Add the rows of one load balancer, table by table. Raises Conflict where another of the change has one."""
    for (table, put), rows in zip(puts.items(), compiled, strict=True):
        if not rows:
            continue
        size = len(put) + len(rows)
        put.update(rows)
        if len(put) != size:
            raise Conflict(f"two load balancers have the same entry of {table}")


def _ports(held: Held | None) -> tuple[HeldPort, ...]:
    return held.ports if held is not None else ()


def _sctp_ports(held: Held | None) -> int:
    return sum(port.protocol == _SCTP for port in _ports(held))
