"""Runtime state from old maps to new ones, when a build changed their layout.

Only what the programs themselves wrote and connections live on: flows with what was counted of them, fragments, host
sockets. Compiled tables are filled from the objects; other counters begin anew.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog

from samewire.errors import Invalid, KernelError
from samewire.kernel.bpf import BpfMap, UpdateFlag
from samewire.kernel.bpf.btf import BtfStruct, read_btf
from samewire.node.flowcounts import CountCopy
from samewire.node.layouts import Convert, converter
from samewire.node.switchboard import Switchboard
from samewire.vfp.tables import TABLES, AclSpace, Flow, FlowKey, Port

log = structlog.get_logger(__name__)

_PLAIN: Final = ("sw_fragments", "sw_sockets", "sw_affinity")
_MORE_PASSES: Final = 3
_SLOT: Final = next(field for field in Flow.fields if field.name == "slot")
_FREE_AT: Final = next(field for field in FlowKey.fields if field.name == "family").offset


class Migration:
    """Copies the content of a switchboard's old maps; may be called several times.

    What a new map has already is left as it is: it is more recent.
    """

    def __init__(self, board: Switchboard) -> None:
        self._board = board
        self._done: set[tuple[int, bytes]] = set()
        self._placed: dict[tuple[int, bytes], tuple[int, int]] = {}
        self._next_slot = 0
        self._converters: dict[str, Convert | None] = {}
        if board.sources:
            old, new = _structs(board.old_object), _structs(board.object_path)
            for table in TABLES.values():
                for record in (table.key, table.value):
                    if record.c_name:
                        self._converters[record.c_name] = converter(record.c_name, old, new)
        self._counts = CountCopy(board.maps["sw_flow_counts"], self._converter("sw_flow_count"))

    def copy(self) -> dict[str, int]:
        """Copy what has not been copied yet; returns how many entries of each map. Raises KernelError."""
        copied: dict[str, int] = {}
        for source in self._board.sources:
            if source.name == "sw_flows" or source.name in _PLAIN:
                copied[source.name] = sum(self._copy_map(source.name, old) for old in source.maps)
        return copied

    def copy_all(self) -> dict[str, int]:
        """The same, and what has come meanwhile: a pass over a large table takes seconds, and who is not in the new one
        when the programs are swapped is judged anew in the middle of the connection, which is its end.
        """
        copied = Counter(self.copy())
        for _ in range(_MORE_PASSES):
            more = self.copy()
            if not any(more.values()):
                break
            copied.update(more)
        return copied

    def old_rows(self, name: str) -> dict[bytes, bytes] | None:
        """What the map that is being replaced has, in the new layout; None when the map in use stays. Raises
        KernelError.
        """
        source = next((found for found in self._board.sources if found.name == name), None)
        if source is None:
            return None
        table = TABLES[name]
        key, value = self._converter(table.key.c_name), self._converter(table.value.c_name)
        if key is None or value is None:
            log.warning("the old map's content cannot be converted", map=name)
            return {}
        try:
            # The most recent map comes first in the list, and counts.
            return {key(k): value(v) for old in reversed(source.maps) for k, v in old.items()}
        except ValueError:
            log.warning("the old map is not of the saved object's layout", map=name)
            return {}

    def last_generation(self) -> int:
        """The highest one that the old maps know: flows that come from there must not be taken for ones that were
        judged under what is new. Raises KernelError.
        """
        rows = (
            TABLES[name].value.unpack(row)
            for name in ("sw_ports", "sw_acl_spaces")
            for row in (self.old_rows(name) or {}).values()
        )
        return max((row.generation for row in rows if isinstance(row, Port | AclSpace)), default=0)

    def _converter(self, c_name: str) -> Convert | None:
        """Plain integers stay what they are."""
        return self._converters.get(c_name) if c_name else bytes

    def _copy_map(self, name: str, old: BpfMap) -> int:
        table = TABLES[name]
        convert_key = self._converters.get(table.key.c_name)
        convert_value = self._converters.get(table.value.c_name)
        if convert_key is None or convert_value is None:
            log.warning("the old map's content cannot be converted", map=name)
            return 0
        new = self._board.maps[name]
        count = 0
        for key, value in old.items():
            if (old.id, key) in self._done:
                self._count_again(old, key)
                continue
            try:
                pair = convert_key(key), convert_value(value)
            except ValueError:
                log.warning("the old map is not of the saved object's layout", map=name)
                return count
            self._done.add((old.id, key))
            count += self._put_flow(new, old, key, *pair) if name == "sw_flows" else _put(new, *pair)
        return count

    def _count_again(self, old: BpfMap, key: bytes) -> None:
        """What the old programs have counted of a flow since it was copied."""
        slots = self._placed.get((old.id, key))
        if slots is not None:
            self._counts.carry(self._board.old_counts.get(old.id), *slots)

    def _put_flow(self, flows: BpfMap, old: BpfMap, old_key: bytes, key: bytes, value: bytes) -> bool:
        """A flow gets a free slot: every second one, which leaves room for the programs' own search."""
        slots = self._board.maps["sw_flow_slots"]
        while self._next_slot < slots.max_entries:
            index = self._next_slot.to_bytes(4, "little")
            held = slots.lookup(index)
            if held is not None and not held[_FREE_AT]:
                break
            self._next_slot += 2
        else:
            return False
        placed = bytearray(value)
        placed[_SLOT.offset : _SLOT.offset + _SLOT.size] = index
        if not _put(flows, key, bytes(placed)):
            return False
        slots.update(index, key)
        self._placed[old.id, old_key] = (_slot_of(value), self._next_slot)
        self._count_again(old, old_key)
        self._next_slot += 2
        return True


def _slot_of(flow: bytes) -> int:
    return int.from_bytes(flow[_SLOT.offset : _SLOT.offset + _SLOT.size], "little")


def _put(target: BpfMap, key: bytes, value: bytes) -> bool:
    """Insert unless something is there. A full map takes what it can."""
    try:
        target.update(key, value, UpdateFlag.NOEXIST)
    except KernelError as error:
        if error.errno in (errno.EEXIST, errno.E2BIG, errno.ENOMEM):
            return False
        raise
    return True


def _structs(path: Path) -> Mapping[str, BtfStruct]:
    """The structures of an object; none when it is missing or has no type information."""
    try:
        return read_btf(path).structs
    except (OSError, Invalid):
        return {}
