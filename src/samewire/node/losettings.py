"""What lo must take: packets that the switch hands to it, from the node itself or in a VIP's name.

What the stack loops back is not asked for any of this, so these settings mean nothing to anybody else. What they were
before is noted in the run directory, which goes with a reboot as they do, and is given back.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Final

import msgspec

from samewire.errors import KernelError
from samewire.kernel import sysctl

FILE_NAME: Final = "lo.json"
# rp_filter: all's may be strict, and the greater one counts. A VIP is not routed to lo, the node's own address is.
_SETTINGS: Final = {"accept_local": "1", "route_localnet": "1", "rp_filter": "2"}
# What the kernel says of them, and takes.
_NUMBER: Final = re.compile(r"-?[0-9]{1,9}")


class LoSettings:
    """Sets them and gives them back. All methods raise SamewireError."""

    def __init__(self, run_dir: Path) -> None:
        self._file = run_dir / FILE_NAME

    def are_set(self) -> bool:
        """Whether lo takes what it is handed."""
        return all(sysctl.read(_path(name)) == value for name, value in _SETTINGS.items())

    def set(self) -> None:
        """Have lo take it. What was there before is noted first: a crash in between loses nothing. Somebody who has
        changed it since wants that back, and not what was there still earlier.
        """
        present = {name: sysctl.read(_path(name)) for name in _SETTINGS}
        wrong = {name: was for name, was in present.items() if was != _SETTINGS[name]}
        if not wrong:
            return
        kept = self._kept()
        if (noted := {**kept, **wrong}) != kept:
            self._keep(noted)
        for name in wrong:
            sysctl.write(_path(name), _SETTINGS[name])

    def give_back(self) -> bool:
        """Make them what they were, but for those that somebody has changed since. Returns whether any was noted."""
        kept = self._kept()
        for name, was in kept.items():
            if sysctl.read(_path(name)) == _SETTINGS.get(name):
                sysctl.write(_path(name), was)
        try:
            self._file.unlink(missing_ok=True)
        except OSError as error:
            raise KernelError(f"remove {self._file}", error.errno or errno.EIO) from error
        return bool(kept)

    def _kept(self) -> dict[str, str]:
        """What was noted; nothing where nobody can tell any more, be it of one alone. What another build has noted
        besides is its own.
        """
        try:
            noted = msgspec.json.decode(self._file.read_bytes(), type=dict[str, str])
        except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
            return {}
        except OSError as error:
            raise KernelError(f"read {self._file}", error.errno or errno.EIO) from error
        return {name: was for name, was in noted.items() if name in _SETTINGS and _NUMBER.fullmatch(was)}

    def _keep(self, values: dict[str, str]) -> None:
        new = self._file.with_name(f"{FILE_NAME}.new")
        try:
            new.write_bytes(msgspec.json.encode(values))
            new.rename(self._file)
        except OSError as error:
            raise KernelError(f"write {self._file}", error.errno or errno.EIO) from error


def _path(name: str) -> tuple[str, ...]:
    return "net", "ipv4", "conf", "lo", name
