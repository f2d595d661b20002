"""An object file loaded through libbpf: programs and maps by name."""

from __future__ import annotations

import ctypes as ct
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from samewire.errors import Conflict, Invalid, NotFound
from samewire.kernel.bpf import _libbpf as b
from samewire.kernel.bpf.elf import Elf
from samewire.kernel.bpf.map import BpfMap
from samewire.kernel.bpf.program import BpfProgram
from samewire.kernel.closing import Closing


class BpfObject(Closing):
    """Open, adjust, load. Descriptors of its programs and maps are closed with it; pins keep them alive."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises KernelError with libbpf's words when it is no BPF object or is not there."""
        operation = f"open {path.name}"
        b.begin(operation)
        with b.capture_log():
            self._handle: int | None = b.check_pointer(
                b.lib.bpf_object__open_file(os.fsencode(path), None), operation
            )
        self.path = path
        self.programs: dict[str, BpfProgram] = {}
        self._left_out: set[str] = set()
        self.maps: dict[str, BpfMap] = {}

    def map_names(self) -> list[str]:
        """The names of the maps that the object declares."""
        return list(self._map_handles())

    def program_names(self) -> list[str]:
        """The names of the programs that the object holds."""
        return list(self._program_handles())

    def set_max_entries(self, entries: Mapping[str, int]) -> None:
        """Override sizes before loading. Raises NotFound for a map that the object does not declare."""
        for name, count in entries.items():
            result = b.lib.bpf_map__set_max_entries(self._map_handle(name), count)
            b.check(result, f"set the size of {name}")

    def set_constants(self, values: Mapping[str, int]) -> None:
        """Give ``const volatile`` variables their values before loading; the verifier then knows them.

        Integers of the variable's own size, signed or unsigned. Raises NotFound for a name that is no such
        variable, Invalid for a value that does not fit.
        """
        variables = Elf.read(self.path).variables(".rodata")
        for name, value in values.items():
            if name not in variables:
                raise NotFound(f"constant in {self.path.name}", name)
            offset, size = variables[name]
            try:
                data = value.to_bytes(size, "little", signed=value < 0)
            except OverflowError as error:
                raise Invalid(name, f"{value} does not fit into {size} bytes") from error
            self._write_rodata(offset, data)

    def reuse(self, maps: Mapping[str, BpfMap]) -> None:
        """Load on these maps instead of new ones; their number of entries may differ from the declared one.

        Raises Conflict when type, key size or value size differ (libbpf itself does not look).
        """
        for name, existing in maps.items():
            declared, present = self.declared_shape(name)[:3], existing.shape[:3]
            if declared != present:
                raise Conflict(f"map {name}: (type, key size, value size) is {present}, not {declared}")
            b.check(b.lib.bpf_map__reuse_fd(self._map_handle(name), existing.fd), f"reuse map {name}")

    def declared_shape(self, name: str) -> tuple[int, int, int, int]:
        """Type, key size, value size and entries of a declared map, before or after loading."""
        handle = self._map_handle(name)
        return (
            b.lib.bpf_map__type(handle),
            b.lib.bpf_map__key_size(handle),
            b.lib.bpf_map__value_size(handle),
            b.lib.bpf_map__max_entries(handle),
        )

    def leave_out(self, names: Collection[str]) -> None:
        """Do not load these programs: the verifier's time for them is saved. Call before `load`."""
        for name, handle in self._program_handles().items():
            if name in names:
                b.check(b.lib.bpf_program__set_autoload(handle, False), f"leave out {name}")
                self._left_out.add(name)

    def load(self) -> None:
        """Create the maps and verify the programs. Raises KernelError with the verifier's log."""
        operation = f"load {self.path.name}"
        b.begin(operation)
        with b.capture_log():
            b.check(b.lib.bpf_object__load(self._handle), operation)
        self.maps = {
            name: BpfMap(b.lib.bpf_map__fd(handle), owned=False)
            for name, handle in self._map_handles().items()
        }
        self.programs = {
            name: BpfProgram(b.lib.bpf_program__fd(handle), owned=False)
            for name, handle in self._program_handles().items()
            if name not in self._left_out
        }

    def close(self) -> None:
        """Close everything that is not pinned or attached. A second call does nothing."""
        if self._handle is None:
            return
        for loaded_map in self.maps.values():
            loaded_map.close()  # its number may soon belong to another file
        for program in self.programs.values():
            program.close()
        b.lib.bpf_object__close(self._handle)
        self._handle = None

    def _write_rodata(self, offset: int, data: bytes) -> None:
        for handle in self._walk("bpf_object__next_map"):
            # libbpf calls it "<object>.rodata".
            if b.lib.bpf_map__is_internal(handle) and b.lib.bpf_map__name(handle).endswith(b".rodata"):
                size = ct.c_size_t()
                start = b.lib.bpf_map__initial_value(handle, ct.byref(size))
                ct.memmove(start + offset, data, len(data))
                return

    def _walk(self, function: str) -> list[int]:
        found: list[int] = []
        handle = getattr(b.lib, function)(self._handle, None)
        while handle:
            found.append(handle)
            handle = getattr(b.lib, function)(self._handle, handle)
        return found

    def _map_handle(self, name: str) -> int:
        handle = self._map_handles().get(name)
        if handle is None:
            raise NotFound(f"map in {self.path.name}", name)
        return handle

    def _map_handles(self) -> dict[str, int]:
        return {b.lib.bpf_map__name(h).decode(): h for h in self._walk("bpf_object__next_map")}

    def _program_handles(self) -> dict[str, int]:
        return {b.lib.bpf_program__name(h).decode(): h for h in self._walk("bpf_object__next_program")}
