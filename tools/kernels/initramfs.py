"""The initramfs: busybox, the modules that reach the host's files, and the first process."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

BUSYBOX = Path("/usr/bin/busybox")
# What the first process needs before it can see the shared root; names as in modprobe.
BOOT_MODULES = ("virtio_pci", "virtiofs", "overlay")


def _index(modules: Path) -> dict[str, tuple[str, list[str]]]:
    """``modules.dep`` as name -> (file, the files it needs, outermost first)."""
    index: dict[str, tuple[str, list[str]]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, needs = line.partition(":")
        index[Path(path).stem.replace("-", "_")] = (path, needs.split())
    return index


def boot_modules(modules: Path) -> list[Path]:
    """The files of BOOT_MODULES and of all they need, in the order to insert them; built-in ones have none."""
    index = _index(modules)
    ordered: list[str] = []
    for name in BOOT_MODULES:
        if name in index:
            path, needs = index[name]
            ordered += [*reversed(needs), path]
    return [modules / path for path in dict.fromkeys(ordered)]


def _entry(
    number: int, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)
) -> bytes:
    """One member of a "newc" cpio archive."""
    encoded = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4)


def build(target: Path, modules: Path, init: str) -> None:
    """Write the archive: ``init`` is the text of the first process, ``modules`` a ``/lib/modules/RELEASE``."""
    members: list[tuple[str, int, bytes, tuple[int, int]]] = [
        (name, 0o040755, b"", (0, 0)) for name in ("bin", "dev", "mod", "proc", "sys", "host", "over", "root")
    ]
    members.append(("dev/console", 0o020600, b"", (5, 1)))
    members.append(("bin/busybox", 0o100755, BUSYBOX.read_bytes(), (0, 0)))
    members.append(("init", 0o100755, init.encode(), (0, 0)))
    for order, module in enumerate(boot_modules(modules)):
        members.append((f"mod/{order:02}-{module.name}", 0o100644, module.read_bytes(), (0, 0)))
    archive = b"".join(_entry(number, *member) for number, member in enumerate(members, start=1))
    archive += _entry(0, "TRAILER!!!", 0)
    with gzip.open(target, "wb", compresslevel=1) as packed:
        packed.write(archive)


def fill(template: str, values: dict[str, str]) -> str:
    """Replace ``@NAME@`` in the text of the first process; a name without a value is a KeyError."""
    return re.sub(r"@([A-Z_]+)@", lambda match: values[match[1]], template)
