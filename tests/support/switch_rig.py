"""The compiled switch on a bench: both objects loaded on one set of maps, run by PROG_TEST_RUN.

Everything runs on one thread that has a network namespace of its own, with a few devices in it: test runs name the
arrival device by its ifindex, which must exist there.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from samewire.kernel.bpf import BpfMap, BpfObject, SkbContext, TestRun
from samewire.node.tables import KernelTables
from samewire.vfp.address import ZERO
from samewire.vfp.constants import Arrival, Counter
from samewire.vfp.diff import Put, Remove
from samewire.vfp.record import Record
from samewire.vfp.tables import (
    TABLES,
    Affinity,
    AffinityKey,
    Count,
    Cursors,
    DropKey,
    Flow,
    FlowCount,
    FlowKey,
    Fragment,
    FragmentKey,
    Id,
    TraceInput,
    TraceOutput,
)

BUILT = Path(__file__).parents[2] / "src" / "samewire" / "_build"
DEVICES = 6
FLOWS = 4096
SLOTS = 8192
SMALL = 1024
# Tables that are emptied between plays: reading an empty one costs its size.
_LARGE = (
    "sw_services",
    "sw_backend_sets",
    "sw_backends",
    "sw_source_ranges",
    "sw_direct",
    "sw_affinity",
    "sw_service_counts",
    "sw_nexthops",
    "sw_endpoints",
)
FREE = FlowKey((ZERO, ZERO), (0, 0), 0, 0, 0)
_CLONE_NEWNET = 0x40000000

T = TypeVar("T")


class Run(msgspec.Struct, frozen=True):
    """What a program did with a frame: its verdict, the bytes, and the drop it counted, if any."""

    verdict: int
    frame: bytes
    drop: DropKey | None


class Traced(msgspec.Struct, frozen=True):
    """What the traced build says about a frame."""

    frame: bytes
    output: TraceOutput


class SwitchRig:
    """Load, fill the tables, run frames. Close it when done: nothing is pinned."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="switch-rig")
        self.devices: list[int] = self.call(self._set_up)

    def call(self, function: Callable[[], T]) -> T:
        """Run something on the rig's thread, inside its namespace."""
        return self._thread.submit(function).result()

    def _set_up(self) -> list[int]:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare: these tests need root")
        for i in range(DEVICES // 2):
            subprocess.run(
                ["ip", "link", "add", f"p{i}", "type", "veth", "peer", "name", f"q{i}"], check=True
            )
        sizes = {"sw_flows": FLOWS, "sw_flow_slots": SLOTS, "sw_flow_counts": 2 * SLOTS}
        sizes |= dict.fromkeys(_LARGE, SMALL)
        self.object = BpfObject(BUILT / "switch.o")
        self.object.set_constants({"sw_counted_slots": SLOTS})
        self.object.set_max_entries(sizes)
        self.object.load()
        self.traced = BpfObject(BUILT / "switch_trace.o")
        shared = {name: found for name, found in self.object.maps.items() if name in self.traced.map_names()}
        self.traced.reuse({name: found for name, found in shared.items() if name in TABLES})
        self.traced.load()
        text = subprocess.run(["ip", "-o", "link"], check=True, capture_output=True, text=True).stdout
        return [int(line.split(": ")[0]) for line in text.splitlines() if "@" in line.split(": ")[1]]

    def map(self, name: str) -> BpfMap:
        """A map by its name."""
        return self.object.maps[name]

    def load_tables(self, tables: Mapping[str, Mapping[Record, Record]]) -> None:
        """Empty every table, then fill these."""
        self.call(lambda: self._load_tables(tables))

    def _load_tables(self, tables: Mapping[str, Mapping[Record, Record]]) -> None:
        for name, table in TABLES.items():
            if (
                name
                in ("sw_flow_slots", "sw_flow_counts", "sw_cursors", "sw_counters", "sw_config", "sw_changes")
                or name not in self.object.maps
            ):
                continue
            current = self.map(name)
            for key, _ in list(current.items()):
                current.delete(key)
            for key_record, value in tables.get(name, {}).items():
                current.update(key_record.pack(), value.pack())
            assert table.value.size == current.value_size
        slots = self.map("sw_flow_slots")
        for slot, flow in list(slots.items()):
            if any(flow):
                slots.update(slot, bytes(FlowKey.size))
        self.map("sw_cursors").update(Id(0).pack(), Cursors(0, 0).pack())
        for key_record, value in tables.get("sw_config", {}).items():
            self.map("sw_config").update(key_record.pack(), value.pack())
        KernelTables(self.object.maps).changed()

    def put(self, name: str, key: Record, value: Record) -> None:
        """Write one entry."""
        self.call(lambda: KernelTables(self.object.maps).write([Put(name, key, value)]))

    def remove(self, name: str, key: Record) -> None:
        """Remove one entry."""
        self.call(lambda: KernelTables(self.object.maps).write([Remove(name, key)]))

    def adopt(
        self,
        flows: Mapping[FlowKey, Flow],
        fragments: Mapping[FragmentKey, Fragment],
        affinity: Mapping[AffinityKey, Affinity],
        counts: Mapping[tuple[FlowKey, int], tuple[int, int]],
    ) -> None:
        """Bring flows and the like to these: what a program would have done that cannot be run here."""
        present = self.table("sw_flows")
        for key, flow in present.items():
            assert isinstance(key, FlowKey)
            assert isinstance(flow, Flow)
            if key not in flows:
                self.remove("sw_flows", key)
                self.put("sw_flow_slots", Id(flow.slot), FREE)
        for key, flow in flows.items():
            slot = present[key].slot if key in present else self._free_slot()  # type: ignore[attr-defined]
            self.put("sw_flows", key, replace(flow, slot=slot))
            self.put("sw_flow_slots", Id(slot), key)
            for way in (0, 1):
                self.put("sw_flow_counts", Id(slot + way * SLOTS), FlowCount(*counts[key, way]))
        for name, fragment in fragments.items():
            self.put("sw_fragments", name, fragment)
        for client, stays in affinity.items():
            self.put("sw_affinity", client, stays)

    def flow_counts(self) -> dict[tuple[FlowKey, int], tuple[int, int]]:
        """Packets and bytes of every flow, in both directions."""
        found: dict[tuple[FlowKey, int], tuple[int, int]] = {}
        for key, flow in self.table("sw_flows").items():
            assert isinstance(key, FlowKey)
            assert isinstance(flow, Flow)
            for way in (0, 1):
                raw = self.map("sw_flow_counts").lookup(Id(flow.slot + way * SLOTS).pack())
                assert raw is not None
                count = FlowCount.unpack(raw)
                found[key, way] = count.packets, count.bytes
        return found

    def _free_slot(self) -> int:
        slots = self.map("sw_flow_slots")
        free = bytes(FlowKey.size)
        return next(slot for slot in range(SLOTS) if slots.lookup(Id(slot).pack()) == free)

    def run(self, frame: bytes, ifindex: int) -> Run:
        """Run the program on a frame that arrives by a device."""
        return self.call(lambda: self._run(frame, ifindex))

    def run_as(self, frame: bytes, context: SkbContext, *, summed: bool = False) -> TestRun:
        """The same for a frame as offloads make them."""
        program = self.object.programs["sw_ingress"]
        return self.call(lambda: program.test_run(frame, context, summed=summed))

    def _run(self, frame: bytes, ifindex: int) -> Run:
        drops = self.map("sw_drops")
        for key, _ in list(drops.items()):
            drops.delete(key)
        result = self.object.programs["sw_ingress"].test_run(frame, SkbContext(ifindex=ifindex))
        counted = [DropKey.unpack(key) for key, _ in drops.items()]
        assert len(counted) <= 1, counted
        return Run(result.retval, result.data, counted[0] if counted else None)

    def trace(self, frame: bytes, arrival: Arrival, ifindex: int, vni: int = 0) -> Traced:
        """Run the traced build on a frame: it changes nothing."""
        return self.call(lambda: self._trace(frame, arrival, ifindex, vni))

    def _trace(self, frame: bytes, arrival: Arrival, ifindex: int, vni: int) -> Traced:
        where = TraceInput(ifindex, vni, ZERO, arrival, 4)
        self.traced.maps["sw_trace_input"].update(Id(0).pack(), where.pack())
        result = self.traced.programs["sw_trace"].test_run(frame, SkbContext(ifindex=ifindex))
        raw = self.traced.maps["sw_trace_output"].lookup(Id(0).pack())
        assert raw is not None
        return Traced(result.data, TraceOutput.unpack(raw))

    def table(self, name: str) -> dict[Record, Record]:
        """A table's present content."""
        table = TABLES[name]
        items = self.call(lambda: list(self.map(name).items()))
        return {table.key.unpack(key): table.value.unpack(value) for key, value in items}

    def counter(self, counter: Counter) -> int:
        """A counter's sum over all CPUs."""
        found = self.map("sw_counters")
        raw = found.lookup(Id(counter).pack())
        assert raw is not None
        return sum(Count.unpack(value).value for value in found.per_cpu_values(raw))

    def close(self) -> None:
        """Free everything."""
        self.call(self.traced.close)
        self.call(self.object.close)
        self._thread.shutdown()


def now_tick() -> int:
    """The switch's clock (bpf_ktime_get_coarse_ns in ticks)."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> 30


def require_root() -> None:
    """These tests cannot run without root, and must not be skipped silently."""
    assert os.geteuid() == 0, "run the kernel tests as root"
