"""The MACs that a NIC lets in for endpoints on its link.

Such a filter carries no mark in the kernel. So each is noted in the store before it is made, and what stands there
without a note is somebody else's: it stays. A daemon that is killed between two steps finds its own by the notes.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Final

from samewire.hcn.store import Store
from samewire.kernel.rtnetlink import Netlink, fdb_add_self, fdb_del_self

_KIND: Final = "filter"


class NicFilters:
    """Makes and removes filters, and knows which are ours. All methods raise KernelError and StoreError."""

    def __init__(self, store: Store, netlink: Netlink) -> None:
        self._store = store
        self._netlink = netlink
        keys = (key.partition("/") for key in store.numbers(_KIND))
        self._noted = {(int(ifindex), bytes.fromhex(mac)) for ifindex, _, mac in keys}

    def of(self, ifindex: int) -> set[bytes]:
        """What a NIC lets in for us, as far as is noted."""
        return {mac for noted, mac in self._noted if noted == ifindex}

    def adopt(self, ifindex: int, macs: Iterable[bytes]) -> None:
        """Take filters for ours that are there: a daemon that made no notes has made them, if there is none at all."""
        if not self._noted:
            for mac in macs:
                self._note(ifindex, mac)

    def add(self, ifindex: int, macs: Iterable[bytes]) -> None:
        """Let frames for these in. What somebody else has there already is not noted."""
        for mac in macs:
            is_ours = (ifindex, mac) in self._noted
            self._note(ifindex, mac)
            if self._netlink.request(fdb_add_self(ifindex, mac).tolerating(errno.EEXIST)) and not is_ours:
                self._forget(ifindex, mac)

    def remove(self, ifindex: int, macs: Iterable[bytes]) -> list[bytes]:
        """Take those among these away that are ours. Returns which were there."""
        found = []
        for mac in macs:
            if (ifindex, mac) not in self._noted:
                continue
            # EINVAL: since a reboot the number is that of a device without link addresses, a tunnel's.
            gone = fdb_del_self(ifindex, mac).tolerating(errno.ENOENT, errno.ENODEV, errno.EINVAL)
            if not self._netlink.request(gone):
                found.append(mac)
            self._forget(ifindex, mac)
        return found

    def leave_all_but(self, ifindex: int) -> list[bytes]:
        """Take ours away from every other NIC (0: from all). Returns which were there."""
        others = sorted((other, mac) for other, mac in self._noted if other != ifindex)
        return [gone for other, mac in others for gone in self.remove(other, [mac])]

    def _note(self, ifindex: int, mac: bytes) -> None:
        self._store.allocate_number(_KIND, _key(ifindex, mac))
        self._noted.add((ifindex, mac))

    def _forget(self, ifindex: int, mac: bytes) -> None:
        self._store.release_number(_KIND, _key(ifindex, mac))
        self._noted.discard((ifindex, mac))


def _key(ifindex: int, mac: bytes) -> str:
    return f"{ifindex}/{mac.hex()}"
