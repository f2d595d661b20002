"""Machines in a VLAN, on kernels that have no devices for that, and frames with the tags that they have on the wire."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from samewire.kernel.bpf import BpfObject
from samewire.kernel.netns import NetNamespace
from samewire.kernel.rtnetlink import bpf_filter_replace, clsact_add
from tests.support.netlab import Lab, Space
from tests.support.traffic import TIMEOUT_S, Sniffer

_SOL_PACKET: Final = 263
_PACKET_AUXDATA: Final = 8
_TAG_VALID: Final = 1 << 4
_AUXDATA: Final = struct.Struct("=IIIHHHH")


class Tagged(msgspec.Struct, frozen=True):
    """A frame without its tag, and the tag's VLAN (None: it had no tag)."""

    frame: bytes
    vlan: int | None


class TagSniffer(Sniffer):
    """The frames that an interface receives, with the tags that the kernel has taken off them."""

    def __init__(self, space: Space | NetNamespace, ifname: str) -> None:
        super().__init__(space, ifname, outgoing=False)
        self.socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)

    def __enter__(self) -> TagSniffer:
        return self

    def tagged(self) -> list[Tagged]:
        """What has come since the last call."""
        found = []
        while True:
            try:
                found.append(self._receive())
            except BlockingIOError:
                return found

    def wait_tagged(self, wanted: Callable[[Tagged], bool]) -> Tagged:
        """The next frame that is wanted."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            if not select.select([self.socket], [], [], TIMEOUT_S)[0]:
                break
            found = self._receive()
            if wanted(found):
                return found
        raise TimeoutError("no such frame")

    def _receive(self) -> Tagged:
        data, ancillary, _, _ = self.socket.recvmsg(65535, socket.CMSG_SPACE(_AUXDATA.size))
        for level, kind, raw in ancillary:
            if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA):
                status, _, _, _, _, tci, _ = _AUXDATA.unpack_from(raw)
                return Tagged(data, tci & 0xFFF if status & _TAG_VALID else None)
        return Tagged(data, None)


def join_vlan(lab: Lab, space: Space, ifname: str, vlan: int, program: Path) -> None:
    """Put all that an interface sends and receives into a VLAN. ``program``: tests/kernel/programs/vlan.c, compiled."""
    loaded = BpfObject(program)
    lab.stack.callback(loaded.close)
    loaded.load()
    loaded.maps["t_vlan"].update((0).to_bytes(4, "little"), vlan.to_bytes(4, "little"))
    ifindex = space.ifindex(ifname)
    space.netlink.batch(
        [
            clsact_add(ifindex),
            bpf_filter_replace(ifindex, "ingress", loaded.programs["t_untag"].fd, "t_untag"),
            bpf_filter_replace(ifindex, "egress", loaded.programs["t_tag"].fd, "t_tag"),
        ]
    )


def with_tag(frame: bytes, vlan: int) -> bytes:
    """A frame with a tag in it, to be sent as it is."""
    return frame[:12] + b"\x81\0" + vlan.to_bytes(2, "big") + frame[12:]
