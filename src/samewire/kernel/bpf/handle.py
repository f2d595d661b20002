"""A descriptor of something of BPF: pinning, and closing what is ours."""

from __future__ import annotations

import os
from pathlib import Path

from samewire.kernel.bpf import _libbpf as b
from samewire.kernel.closing import Closing


class Handle(Closing):
    """A context manager. ``owned`` descriptors are closed by ``close()``; those of a loaded object belong to it."""

    def __init__(self, fd: int, kind: str, name: str = "", *, owned: bool = True) -> None:
        self.fd = fd
        self.name = name
        self._kind = kind
        self._owned = owned

    def pin(self, path: Path) -> None:
        """Pin it, so that it outlives this process. Raises KernelError."""
        operation = f"pin {self._kind} {self.name or path.name}"
        b.begin(operation)
        b.check(b.lib.bpf_obj_pin(self.fd, os.fsencode(path)), operation)

    def close(self) -> None:
        """Close an owned descriptor; a second call does nothing."""
        if self._owned:
            b.close(self.fd)
        self.fd = -1
