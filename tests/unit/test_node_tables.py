"""The compiled tables: whatever the programs remember of (bpf/near.h) is followed by a new number of sw_changes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, cast

import pytest

from samewire.errors import KernelError
from samewire.kernel.bpf import BpfMap
from samewire.node.tables import KernelTables
from samewire.vfp.diff import Operation, Put, Remove
from samewire.vfp.tables import AclSpace, Hash, Id, Vni


class Memory:
    """A map in memory; ``broken`` refuses every write."""

    def __init__(self, log: list[str], name: str, broken: bool) -> None:
        self.rows: dict[bytes, bytes] = {}
        self._log, self._name, self._broken = log, name, broken

    def lookup(self, key: bytes) -> bytes | None:
        return self.rows.get(key)

    def update(self, key: bytes, value: bytes, *_: Any) -> None:
        self._write()
        self.rows[key] = value

    def delete(self, key: bytes) -> None:
        self._write()
        self.rows.pop(key, None)

    def delete_batch(self, keys: Collection[bytes]) -> None:
        self._write()

    def update_batch(self, rows: Mapping[bytes, bytes]) -> None:
        self._write()

    def _write(self) -> None:
        if self._broken:
            raise KernelError(f"write {self._name}", 12)
        self._log.append(self._name)


class Kernel:
    """Tables in memory, and in which order they were written."""

    def __init__(self, broken: Iterable[str] = ()) -> None:
        self.log: list[str] = []
        names = ("sw_changes", "sw_ports", "sw_acl_spaces", "sw_nexthops", "sw_vnis", "sw_backends")
        self.maps = {name: Memory(self.log, name, name in broken) for name in names}
        self.tables = KernelTables(cast(Mapping[str, BpfMap], self.maps))

    @property
    def number(self) -> int:
        return Id.unpack(self.maps["sw_changes"].rows.get(bytes(4), bytes(4))).value


SPACE = Put("sw_acl_spaces", Hash(1), AclSpace(1, 1))
VNI = Put("sw_vnis", Id(1), Vni(1))


@pytest.mark.parametrize(
    ("operations", "written"),
    [
        ([SPACE, VNI], ["sw_acl_spaces", "sw_vnis", "sw_changes"]),
        ([VNI, Remove("sw_ports", Id(1))], ["sw_vnis", "sw_ports", "sw_changes"]),
        ([Remove("sw_nexthops", Id(1))], ["sw_nexthops", "sw_changes"]),
        ([VNI], ["sw_vnis"]),
    ],
)
def test_a_change_is_announced_once_and_last(operations: list[Operation], written: list[str]) -> None:
    kernel = Kernel()
    kernel.tables.write(operations)
    assert kernel.log == written
    assert kernel.number == written.count("sw_changes")


@pytest.mark.parametrize("count", [1, 40])
def test_backends_that_move_or_go_are_announced(count: int) -> None:
    """A packet may have met one in its old network after the routes to the new one had been announced."""
    kernel = Kernel()
    keys = [Id(number).pack() for number in range(count)]
    kernel.tables.write_rows("sw_backends", dict.fromkeys(keys, b""))
    assert kernel.log[-1] == "sw_changes"
    assert kernel.number == 1
    kernel.tables.remove_rows("sw_backends", keys)
    assert kernel.log[-1] == "sw_changes"
    assert kernel.number == 2
    kernel.tables.write_rows("sw_backends", {})
    assert kernel.number == 2


def test_a_change_that_fails_half_way_is_announced_too() -> None:
    kernel = Kernel(broken=["sw_vnis"])
    with pytest.raises(KernelError):
        kernel.tables.write([SPACE, VNI])
    assert kernel.log == ["sw_acl_spaces", "sw_changes"]


def test_numbers_begin_anew_at_the_end() -> None:
    kernel = Kernel()
    kernel.maps["sw_changes"].rows[bytes(4)] = Id(0xFFFFFFFF).pack()
    kernel.tables.changed()
    assert kernel.number == 0
