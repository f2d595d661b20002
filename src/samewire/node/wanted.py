"""What all objects together want of the kernel, and who wants what."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final, cast

import msgspec
from msgspec.structs import replace

from samewire.node.bindings import BindingChange, HostBindings
from samewire.node.planning import Owner, standing
from samewire.vfp.compile.acl_table import Known, Table, was_edited
from samewire.vfp.diff import JUDGED_BY, Operation, Put, Remove, is_early, is_late, ordered
from samewire.vfp.model import Compiled, Entries, Shared
from samewire.vfp.ownership import Ownership
from samewire.vfp.record import Record
from samewire.vfp.tables import AclSpace, Port, PortmapKey, RouteKey

_SCTP: Final = 132
_VECTORS: Final = "sw_acl_vectors"
_JUDGED: Final = ("sw_ports", "sw_acl_spaces")  # flows keep their generations
_JUDGED_BY: Final = ("sw_acl_", "sw_set_", "sw_ports", "sw_routes", *JUDGED_BY)
_LEADING: Final = frozenset({"node", "network", "remote", "route"})
"""Owners whose routes are for all of a scope. Those of endpoints lead to their own addresses."""


class Changes(msgspec.Struct):
    """What has to be done for changes of several owners: ``first`` as it is, before ``operations``. ``scopes``: those
    with other routes, whoever's packets obey them.
    """

    scopes: set[int] = msgspec.field(default_factory=set)
    first: list[Operation] = msgspec.field(default_factory=list)
    operations: dict[tuple[str, Record, bool], Operation] = msgspec.field(default_factory=dict)
    bindings: list[BindingChange] = msgspec.field(default_factory=list)

    def puts(self) -> list[Operation]:
        """What comes before what is to be active by then, in order."""
        return [*self.first, *(step for step in ordered(self.operations.values()) if is_early(step))]

    def removals(self) -> list[Operation]:
        """All other operations, in order."""
        return [step for step in ordered(self.operations.values()) if not is_early(step)]

    def enter(self, operations: Iterable[Operation]) -> None:
        """Add operations; the last one for an entry counts (of those behind all removals, the last of them)."""
        self.operations.update({(step.table, step.key, is_late(step)): step for step in operations})

    def enter_first(self, operations: Iterable[Operation]) -> None:
        """Add operations that come before all others. Of what tables share, vectors, they may need one that another
        owner's operations are to write, or to remove.
        """
        for place, step in list(self.operations.items()):
            if step.table == _VECTORS and isinstance(step, Put):
                self.first.append(self.operations.pop(place))
        for step in operations:
            self.operations.pop((step.table, step.key, is_late(step)), None)
            self.first.append(step)


class Wanted:
    """What all objects together want: table entries and the node's own stack, with their owners."""

    def __init__(self, present: Entries) -> None:
        """``present``: the ports that the kernel has, with those whose tables were edited by an earlier process."""
        self.entries = Ownership(standing)
        self.bindings = HostBindings()
        self.sctp_ports = 0
        """How many of the ports that endpoints have of the node's are SCTP's."""
        self._shared: dict[int, Shared] = {}
        self._users: dict[int, dict[Owner, None]] = {}
        self._several: set[int] = set()
        """What has or had several users: no one's own, even for the last of those who change together."""
        self._needs: dict[Owner, tuple[Shared, ...]] = {}
        self._edited = frozenset(
            port.acl_table[direction]
            for port in present.get("sw_ports", {}).values()
            for direction in (0, 1)
            if isinstance(port, Port) and was_edited(port, direction)
        )

    def replace(self, owner: Owner, compiled: Compiled, changes: Changes) -> None:
        """Make ``compiled`` what ``owner`` wants; adds what has to be done for it to ``changes``."""
        before = self._needs.pop(owner, ())
        for part in compiled.shared:
            users = self._users.setdefault(part.name, {})
            users[owner] = None
            if len(users) > 1:
                self._several.add(part.name)
            now = self._shared.get(part.name)
            edited = now is not None and now is not part
            self._shared[part.name] = part
            for step in _way(now, part):
                operations = self.entries.replace(shared_owner(part.name), step.entries, step.edit)
                if edited:  # all of it before the port's new generation
                    changes.enter_first(operations)
                else:
                    changes.enter(operations)
        if compiled.shared:
            self._needs[owner] = compiled.shared
        self.sctp_ports += _sctp_ports(compiled.entries) - _sctp_ports(self.entries.entries(owner))
        operations = self.entries.replace(owner, compiled.entries, compiled.edit)
        if owner[0] in _LEADING:
            changes.scopes.update(step.key.scope for step in operations if isinstance(step.key, RouteKey))
        changes.enter(operations)
        for name in {part.name for part in before} - {part.name for part in compiled.shared}:
            changes.enter(self._leave(owner, name))
        changes.bindings += self.bindings.replace(owner, compiled.binding)

    def held(self, owner: Owner) -> Compiled:
        """What an owner wants now."""
        shared = self._needs.get(owner, ())
        return Compiled(self.entries.entries(owner), self.bindings.held(owner), shared=shared)

    def left_over(self, changes: Changes) -> list[Operation]:
        """How to get rid of what was there only on the way, when changes have been taken back."""
        tables = self.entries.tables()
        return [
            Remove(step.table, step.key)
            for step in changes.first
            if step.key not in tables.get(step.table, {})
        ]

    def again(self, repairs: Iterable[Operation], generation: int) -> list[Operation]:
        """What has flows judged once more, if repairs concern what they were judged by: a process that ended in the
        middle of a change may have left rules that nobody decided.
        """
        if not any(step.table.startswith(_JUDGED_BY) for step in repairs):
            return []
        tables = self.entries.tables()
        return [
            Put(table, key, replace(value, generation=generation))
            for table in _JUDGED
            for key, value in tables.get(table, {}).items()
            if isinstance(value, Port | AclSpace)
        ]

    def led_again(self, scopes: Collection[int], generation: int) -> list[Operation]:
        """What has the flows of ports judged once more, in scopes whose routes are others: they may lead elsewhere."""
        ports = self.entries.tables().get("sw_ports", {}) if scopes else {}
        return [
            Put("sw_ports", key, replace(port, generation=generation))
            for key, port in ports.items()
            if isinstance(port, Port) and port.scope in scopes
        ]

    def acl_tables(self, owner: Owner) -> Known:
        """The tables that there are, for an endpoint that is to be compiled."""
        tables = cast(dict[int, Table], self._shared)
        port = next(iter(self.entries.entries(owner).get("sw_ports", {}).values()), None)
        incoming, outgoing = port.acl_table if isinstance(port, Port) else (0, 0)
        alone = [0 if name in self._several else name for name in (incoming, outgoing)]
        if incoming == outgoing:
            alone = [0, 0]
        return Known(tables, self._edited, (tables.get(alone[0]), tables.get(alone[1])))

    def _leave(self, owner: Owner, name: int) -> list[Operation]:
        users = self._users[name]
        del users[owner]
        if users:
            return []
        del self._users[name], self._shared[name]
        self._several.discard(name)
        return self.entries.remove(shared_owner(name))


def _sctp_ports(entries: Entries) -> int:
    mapped = entries.get("sw_portmaps", ())
    return sum(isinstance(key, PortmapKey) and key.protocol == _SCTP for key in mapped)


def judged_again(compiled: Compiled, generation: int) -> Compiled:
    """The same with another generation of its ports and IP sets."""
    moved = {
        table: {
            key: replace(value, generation=generation) if isinstance(value, Port | AclSpace) else value
            for key, value in compiled.entries[table].items()
        }
        for table in _JUDGED
        if table in compiled.entries
    }
    return replace(compiled, entries={**compiled.entries, **moved})


def _way(now: Shared | None, part: Shared) -> Sequence[Compiled]:
    """The steps from one edition of shared entries to another: back the way that was taken, when it was the last."""
    if now is part:
        return ()
    edit = now.steps[0].edit if now is not None else None
    if now is not None and edit is not None and edit.base is part.steps[-1].entries:
        return *reversed(now.steps[:-1]), part.steps[-1]
    return part.steps


def shared_owner(name: int) -> Owner:
    """The owner of entries that go with the last who needs them."""
    return "shared", f"{name:016x}"
