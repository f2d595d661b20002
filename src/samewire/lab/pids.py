"""Which process a pid file means: the one that wrote it, while it runs, and never another one that has its id by now.

Beside ``<name>.pid`` a process leaves ``<name>.started``: when it began, in ticks since the boot (proc(5),
``starttime``). With that an id means one process for ever.
"""

from __future__ import annotations

from pathlib import Path

from samewire.errors import NotFound


def read_pid(directory: Path, process: str) -> int:
    """The process id that a started process wrote; NotFound before it did."""
    text = _read(directory / f"{process}.pid")
    if not text.endswith("\n"):
        raise NotFound("process", f"{directory.name}/{process}")
    return int(text)


def is_running(directory: Path, process: str) -> bool:
    """Does a process run that wrote its id? One that only waits to be reaped does not."""
    fields = _read(Path(f"/proc/{read_pid(directory, process)}/stat")).rpartition(")")[2].split()
    return bool(fields) and fields[0] != "Z" and fields[19] == _read(directory / f"{process}.started").strip()


def running_pid(directory: Path, process: str) -> int:
    """The id of a process that runs; NotFound before it was started and after it has ended."""
    if not is_running(directory, process):
        raise NotFound("running process", f"{directory.name}/{process}")
    return read_pid(directory, process)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
