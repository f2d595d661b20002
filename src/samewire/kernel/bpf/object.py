"""An object file loaded through libbpf: programs and maps by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from samewire.kernel.bpf import _libbpf as b
from samewire.kernel.bpf.map import BpfMap
from samewire.kernel.bpf.program import BpfProgram


class BpfObject:
    """Open, adjust, load. Descriptors of its programs and maps are closed with it; pins keep them alive."""

    def __init__(self, path: Path) -> None:
        operation = f"open {path.name}"
        b.begin(operation)
        self._handle: int | None = b.check_pointer(
            b.lib.bpf_object__open_file(os.fsencode(path), None), operation
        )
        self.path = path
        self.programs: dict[str, BpfProgram] = {}
        self.maps: dict[str, BpfMap] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def map_names(self) -> list[str]:
        """The names of the maps that the object declares."""
        return list(self._map_handles())

    def set_max_entries(self, entries: Mapping[str, int]) -> None:
        """Override sizes before loading."""
        handles = self._map_handles()
        for name, count in entries.items():
            b.check(b.lib.bpf_map__set_max_entries(handles[name], count), f"set the size of {name}")

    def reuse(self, maps: Mapping[str, BpfMap]) -> None:
        """Load on these maps instead of new ones."""
        handles = self._map_handles()
        for name, existing in maps.items():
            b.check(b.lib.bpf_map__reuse_fd(handles[name], existing.fd), f"reuse map {name}")

    def declared_shape(self, name: str) -> tuple[int, int, int, int]:
        """Type, key size, value size and entries of a declared map, before or after loading."""
        handle = self._map_handles()[name]
        return (
            b.lib.bpf_map__type(handle),
            b.lib.bpf_map__key_size(handle),
            b.lib.bpf_map__value_size(handle),
            b.lib.bpf_map__max_entries(handle),
        )

    def load(self) -> None:
        """Create the maps and verify the programs. Raises KernelError with the verifier's log."""
        operation = f"load {self.path.name}"
        b.begin(operation)
        b.check(b.lib.bpf_object__load(self._handle), operation)
        self.maps = {
            name: BpfMap(b.lib.bpf_map__fd(handle), owned=False)
            for name, handle in self._map_handles().items()
        }
        self.programs = {
            b.lib.bpf_program__name(handle).decode(): BpfProgram(b.lib.bpf_program__fd(handle), owned=False)
            for handle in self._walk("bpf_object__next_program")
        }

    def close(self) -> None:
        """Close everything that is not pinned or attached."""
        if self._handle is not None:
            b.lib.bpf_object__close(self._handle)
            self._handle = None

    def _walk(self, function: str) -> list[int]:
        found: list[int] = []
        handle = getattr(b.lib, function)(self._handle, None)
        while handle:
            found.append(handle)
            handle = getattr(b.lib, function)(self._handle, handle)
        return found

    def _map_handles(self) -> dict[str, int]:
        return {b.lib.bpf_map__name(h).decode(): h for h in self._walk("bpf_object__next_map")}
