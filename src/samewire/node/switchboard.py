"""The switch's programs and maps, pinned in the daemon's own bpffs.

::

    <bpf_dir>/maps/<name>       the maps in use
    <bpf_dir>/next/<name>       new maps of an upgrade that is under way
    <bpf_dir>/programs/<name>   the programs in use
    <bpf_dir>/links/...         attachments (`samewire.node.hooks`)
    <run_dir>/switch.o          the object that programs and maps came from

A start with the same object opens the pins and changes nothing. With another object, maps of the same layout are
kept and the programs are loaded on them; maps whose layout changed are made anew beside the old ones, the old ones'
content is copied, the programs are swapped by whoever attaches them, and what the old programs wrote meanwhile is
copied again. Every step can be interrupted and is taken up by the next start.
"""

from __future__ import annotations

import errno
import shutil
import struct
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec
import structlog

from samewire.errors import KernelError, NotFound, Unsupported
from samewire.kernel.bpf import BpfMap, BpfObject, BpfProgram, mount_bpffs
from samewire.kernel.closing import Closing
from samewire.vfp.constants import LAYOUT_VERSION

log = structlog.get_logger(__name__)

PROGRAMS: Final = ("sw_ingress", "sw_uplink_out", "sw_start_ageing")
"""What every build of the object has; the socket programs come on top."""

_DIRECTORIES: Final = ("maps", "programs", "links")
_PREFIX: Final = "sw_"
_ZERO: Final = bytes(4)
# A flow knows its place in sw_flow_slots: these make sense together only.
_FLOW_MAPS: Final = frozenset({"sw_flows", "sw_flow_slots", "sw_cursors"})
_BY_SLOT: Final = _FLOW_MAPS | {"sw_flow_counts"}
# Copies count for one number of sw_changes: where that begins anew, old ones would be true again some day.
_NUMBER: Final = "sw_changes"
_COPIES: Final = "sw_near_"


class Sources(msgspec.Struct):
    """Old maps whose content a new map takes over, the most recent first."""

    name: str
    maps: list[BpfMap]


class Switchboard(Closing):
    """Maps and programs of the switch, by name. A context manager."""

    def __init__(
        self,
        bpf_dir: Path,
        object_path: Path,
        entries: Mapping[str, int],
        left_out: Collection[str] = (),
        constants: Mapping[str, int] | None = None,
    ) -> None:
        """Open what is pinned, or load the object; nothing is attached yet.

        ``entries``: sizes that differ from those the object declares. ``left_out``: programs that are not needed, and
        not loaded. ``constants``: of the object; those of pinned programs are not looked at, so the size of a map must
        differ where they do. Raises KernelError, OSError.
        """
        self._dir = bpf_dir
        self.object_path = object_path
        self._saved_object = bpf_dir.parent / "switch.o"
        self.maps: dict[str, BpfMap] = {}
        self.programs: dict[str, BpfProgram] = {}
        self.sources: list[Sources] = []
        self.old_counts: dict[int, BpfMap] = {}
        """By the ids of the old flow tables among `sources`: where their flows' packets are counted."""
        self._fresh: list[str] = []
        self._opened: list[BpfMap | BpfProgram] = []
        """By their pins, until it is decided which of them stay."""
        self._object = BpfObject(object_path)
        try:
            for name in _DIRECTORIES:
                (bpf_dir / name).mkdir(mode=0o700, exist_ok=True)
            self._object.set_max_entries(entries)
            self._object.set_constants(constants or {})
            self._object.leave_out(left_out)
            self._needed = {*PROGRAMS, *self._object.program_names()} - set(left_out)
            if not self._open_pinned():
                self._load()
            self._opened.clear()
        except BaseException:
            for opened in self._opened:
                opened.close()
            self.close()
            raise

    @property
    def upgrading(self) -> bool:
        """Whether there are new programs to attach, maps to fill, and `commit` to be called at the end."""
        return bool(self._fresh) or not self._unchanged

    @property
    def old_object(self) -> Path:
        """The object that `sources` came from; may be missing."""
        return self._saved_object

    @property
    def last_uplink(self) -> int:
        """The interface that whoever wrote the tables last took for the uplink; 0: none."""
        sources = [found for source in self.sources if source.name == "sw_config" for found in source.maps]
        for found in (*sources, self.maps["sw_config"]):
            value = found.lookup(_ZERO)
            if value and struct.unpack_from("=I", value)[0]:
                return int(struct.unpack_from("=4xI", value)[0])
        return 0

    def commit(self) -> None:
        """Make the new maps and programs the pinned ones. Call when everything attached runs them.

        Raises KernelError, OSError.
        """
        next_dir = self._dir / "next"
        for name in sorted(self._fresh, key=lambda name: name != "sw_config"):
            (next_dir / name).rename(self._dir / "maps" / name)
        if next_dir.exists():
            _remove_pins(next_dir)
        for name, program in self.programs.items():
            path = self._dir / "programs" / name
            path.unlink(missing_ok=True)
            program.pin(path)
        for directory, found in (("maps", self.maps.keys()), ("programs", self.programs.keys())):
            for path in (self._dir / directory).iterdir():
                if path.name not in found:
                    path.unlink()
        new = self._saved_object.with_name("switch.o.new")
        shutil.copyfile(self.object_path, new)
        new.rename(self._saved_object)
        self._fresh = []
        self._unchanged = True
        self._close_sources()

    def unpinned(self) -> list[str]:
        """Maps and programs whose pin is gone: somebody removed it, or unmounted the bpffs."""
        return [name for path, name, _ in self._pins() if not path.exists()]

    def pin_again(self) -> None:
        """Give back the pins that are gone, with the bpffs if need be. Raises KernelError."""
        mount_bpffs(self._dir)
        try:
            for name in _DIRECTORIES:
                (self._dir / name).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise KernelError(f"make directories in {self._dir}", error.errno or errno.EIO) from error
        for path, _, pinned in self._pins():
            if not path.exists():
                pinned.pin(path)

    def close(self) -> None:
        """Close every descriptor; what is pinned or attached stays."""
        self._close_sources()
        _close_all(self.maps, self.programs)
        self._object.close()

    def _pins(self) -> Iterator[tuple[Path, str, BpfMap | BpfProgram]]:
        yield from ((self._dir / "maps" / name, name, found) for name, found in self.maps.items())
        yield from ((self._dir / "programs" / name, name, found) for name, found in self.programs.items())

    def _open_pinned(self) -> bool:
        """Open everything by its pin if it all came from this very object and nothing is missing."""
        self._unchanged = False
        if (self._dir / "next").exists() or not _same_content(self._saved_object, self.object_path):
            return False
        maps: dict[str, BpfMap] = {}
        programs: dict[str, BpfProgram] = {}
        try:
            for name in self._names():
                maps[name] = self._open_map(self._dir / "maps" / name)
            for path in sorted((self._dir / "programs").iterdir()):
                programs[path.name] = BpfProgram.open_pinned(path)
                self._opened.append(programs[path.name])
        except NotFound:
            complete = False
        else:
            complete = programs.keys() >= self._needed and all(
                self._fits(name, found) for name, found in maps.items()
            )
        if not complete:
            _close_all(maps, programs)
            return False
        self.maps, self.programs, self._unchanged = maps, programs, True
        return True

    def _load(self) -> None:
        """Load the programs on the pinned maps that fit and on new ones for the rest."""
        kept: dict[str, BpfMap] = {}
        current, following = self._pinned("maps"), self._pinned("next")
        usable = {
            **(current if _version(current) in (None, LAYOUT_VERSION) else {}),
            **(following if _version(following) in (None, LAYOUT_VERSION) else {}),
        }
        for name in self._names():
            found = usable.get(name)
            if found is not None and self._fits(name, found):
                kept[name] = found
        if not kept.keys() >= _FLOW_MAPS:
            kept = {name: found for name, found in kept.items() if name not in _BY_SLOT}
        if _NUMBER not in kept:
            kept = {name: found for name, found in kept.items() if not name.startswith(_COPIES)}
        self._object.reuse(kept)
        self._object.load()
        next_dir = self._dir / "next"
        next_dir.mkdir(mode=0o700, exist_ok=True)
        self._fresh = [name for name in kept if kept[name] is following.get(name)]
        for name in self._names():
            if name in kept:
                self.maps[name] = kept[name]
                continue
            self.maps[name] = self._object.maps[name]
            (next_dir / name).unlink(missing_ok=True)
            self.maps[name].pin(next_dir / name)
            self._fresh.append(name)
        self.programs = dict(self._object.programs)
        missing = set(PROGRAMS) - self.programs.keys()
        if missing:
            raise Unsupported("this switch object", f"the programs {', '.join(sorted(missing))}")
        self._keep_sources(current, following)

    def _keep_sources(self, current: Mapping[str, BpfMap], following: Mapping[str, BpfMap]) -> None:
        for name, chosen in self.maps.items():
            old = [pinned[name] for pinned in (following, current) if pinned.get(name, chosen) is not chosen]
            if old:
                self.sources.append(Sources(name, old))
        for pinned in (following, current):
            if pinned.keys() >= _BY_SLOT:
                self.old_counts[pinned["sw_flows"].id] = pinned["sw_flow_counts"]
        left = {id(found) for found in self.maps.values()}
        left |= {id(found) for source in self.sources for found in source.maps}
        for found in (*current.values(), *following.values()):
            if id(found) not in left:
                found.close()
        if self.sources:
            log.info("map layouts have changed", maps=[source.name for source in self.sources])

    def _pinned(self, directory: str) -> dict[str, BpfMap]:
        path = self._dir / directory
        if not path.exists():
            return {}
        return {pin.name: self._open_map(pin) for pin in sorted(path.iterdir())}

    def _open_map(self, path: Path) -> BpfMap:
        found = BpfMap.open_pinned(path)
        self._opened.append(found)
        return found

    def _names(self) -> list[str]:
        """The maps that are ours to pin (not the object's own data sections)."""
        return [name for name in self._object.map_names() if name.startswith(_PREFIX)]

    def _fits(self, name: str, found: BpfMap) -> bool:
        return found.shape[:4] == self._object.declared_shape(name)

    def _close_sources(self) -> None:
        for source in self.sources:
            for found in source.maps:
                found.close()
        self.sources, self.old_counts = [], {}


def _close_all(maps: Mapping[str, BpfMap], programs: Mapping[str, BpfProgram]) -> None:
    for found in maps.values():
        found.close()
    for program in programs.values():
        program.close()


def _version(maps: Mapping[str, BpfMap]) -> int | None:
    """The layout version that a set of maps was filled with; None when it was not."""
    config = maps.get("sw_config")
    value = config.lookup(_ZERO) if config is not None else None
    return (struct.unpack_from("=I", value)[0] or None) if value else None


def _same_content(one: Path, other: Path) -> bool:
    return one.exists() and one.read_bytes() == other.read_bytes()


def _remove_pins(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
