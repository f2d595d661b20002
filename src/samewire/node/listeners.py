"""For whose neighbour solicitations the uplink listens beside the node's own: IPv6 endpoints on its link.

A proxy entry has the kernel join the group of an address, say so to switches (MLD), and answer them when they ask, with
no process alive. It answers no solicitation by itself: the switch in eBPF does, or nobody.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from samewire.errors import NotFound
from samewire.kernel.rtnetlink import Netlink, proxy_add, proxy_del, proxy_dump, proxy_get
from samewire.kernel.rtnetlink.routes import PROTOCOL
from samewire.vfp.address import IPV6


class Listeners:
    """Makes and removes them; ours are marked, and those of others stay. All methods raise KernelError."""

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink

    def on(self, ifindex: int) -> dict[bytes, bool]:
        """The addresses that an interface listens for, and whether that is ours."""
        entries = self._netlink.dump(proxy_dump(IPV6))
        return {entry.address: entry.protocol == PROTOCOL for entry in entries if entry.ifindex == ifindex}

    def add(self, ifindex: int, addresses: Iterable[bytes]) -> None:
        """Listen for these, unless it does."""
        for address in addresses:
            if self._protocol(ifindex, address) is None:
                # EINVAL, ENOBUFS: the interface has no IPv6 at all.
                request = proxy_add(ifindex, address, family=IPV6)
                self._netlink.request(request.tolerating(errno.EINVAL, errno.ENOBUFS))

    def remove(self, ifindex: int, addresses: Iterable[bytes]) -> None:
        """Listen no more for those among these that are ours."""
        for address in addresses:
            if self._protocol(ifindex, address) == PROTOCOL:
                self._remove(ifindex, address)

    def leave_all_but(self, ifindex: int) -> list[bytes]:
        """Take ours away from every other interface (0: from all). Returns which were there."""
        entries = self._netlink.dump(proxy_dump(IPV6))
        others = [one for one in entries if one.protocol == PROTOCOL and one.ifindex != ifindex]
        for one in others:
            self._remove(one.ifindex, one.address)
        return [one.address for one in others]

    def _protocol(self, ifindex: int, address: bytes) -> int | None:
        """Who has made one, None if nobody; of one alone, as there may be hundreds."""
        try:
            return self._netlink.get(proxy_get(ifindex, address, family=IPV6)).protocol
        except NotFound:
            return None

    def _remove(self, ifindex: int, address: bytes) -> None:
        gone = proxy_del(ifindex, address, family=IPV6).tolerating(errno.ENOENT, errno.ENODEV)
        self._netlink.request(gone)
