"""Changes as they happen: a socket subscribed to the kernel's announcements."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Callable, Collection

import msgspec

from samewire.errors import KernelError
from samewire.kernel.closing import Closing
from samewire.kernel.rtnetlink import addresses, codec, links, routes
from samewire.kernel.rtnetlink.sieve import Names, sieve
from samewire.kernel.rtnetlink.socket import NETLINK_ADD_MEMBERSHIP, SOL_NETLINK, open_socket

GROUP_LINK = 1
GROUP_IPV4_ADDRESS = 5
GROUP_IPV4_ROUTE = 7
GROUP_IPV6_ADDRESS = 9
GROUP_IPV6_ROUTE = 11
ALL_GROUPS = (GROUP_LINK, GROUP_IPV4_ADDRESS, GROUP_IPV4_ROUTE, GROUP_IPV6_ADDRESS, GROUP_IPV6_ROUTE)

_DATAGRAM_BYTES = 64 << 10
_AT_ONCE = 1024  # datagrams: a routing daemon announces faster than they are read, and others want their turn
_SO_ATTACH_FILTER = 26
_INSTRUCTION_BYTES = 8


class LinkNew(msgspec.Struct, frozen=True):
    """An interface appeared or changed."""

    link: links.Link


class LinkGone(msgspec.Struct, frozen=True):
    """An interface was removed from this namespace (deleted or moved away)."""

    ifindex: int
    name: str


class AddressChanged(msgspec.Struct, frozen=True):
    """An address was set (``present``) or removed."""

    address: addresses.Address
    present: bool


class RouteChanged(msgspec.Struct, frozen=True):
    """A route was set (``present``) or removed."""

    route: routes.Route
    present: bool


class Overrun(msgspec.Struct, frozen=True):
    """Announcements were lost because they were not read in time: read the whole state again."""


Event = LinkNew | LinkGone | AddressChanged | RouteChanged | Overrun


class LinkMonitor(Closing):
    """A subscription; give :meth:`fileno` to the event loop and call :meth:`receive` when it is readable.

    Of routes those in the main table are told.
    """

    def __init__(
        self,
        netns_fd: int | None = None,
        groups: Collection[int] = ALL_GROUPS,
        *,
        quiet: Names | None = None,
    ) -> None:
        """Subscribe in the namespace ``netns_fd`` (``None``: the caller's own) to these ``GROUP_*``.

        Of interfaces with ``quiet`` names only two things are told: that one is set down, and that one is gone.
        """
        self._socket = open_socket(netns_fd)
        try:
            self._socket.setblocking(False)
            self._attach(sieve(quiet))
            for group in groups:
                self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        except OSError as error:
            self._socket.close()
            raise KernelError("subscribe to netlink", error.errno or errno.EIO) from error

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._socket.fileno()

    def receive(self) -> list[Event]:
        """What was announced since the last call, in order; empty when nothing was. Does not wait. Of very much it is
        the beginning: the descriptor stays readable. Raises KernelError.
        """
        events: list[Event] = []
        for _ in range(_AT_ONCE):
            try:
                data = self._socket.recv(_DATAGRAM_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelError("receive from netlink", error.errno or errno.EIO) from error
                events.append(Overrun())
                continue
            for message in codec.messages(memoryview(data)):
                event = _event(message)
                if event is not None:
                    events.append(event)
        return events

    def _attach(self, program: bytes) -> None:
        text = ctypes.create_string_buffer(program)
        count = len(program) // _INSTRUCTION_BYTES
        self._socket.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", count, ctypes.addressof(text))
        )

    def close(self) -> None:
        """End the subscription; a second call does nothing."""
        self._socket.close()


def _event(message: codec.Message) -> Event | None:
    decode = _DECODERS.get(message.type)
    return decode(message.body) if decode is not None else None


def _link(present: bool) -> Callable[[memoryview], Event | None]:
    def decode(body: memoryview) -> Event | None:
        # Bridge ports announce themselves in the same group under their own family, with their bridge's view.
        if not body or body[0] != 0:
            return None
        link = links.decode_link(body)
        return LinkNew(link) if present else LinkGone(link.ifindex, link.name)

    return decode


def _address(present: bool) -> Callable[[memoryview], Event | None]:
    def decode(body: memoryview) -> Event | None:
        address = addresses.decode_address(body)
        return None if address is None else AddressChanged(address, present)

    return decode


def _route(present: bool) -> Callable[[memoryview], Event | None]:
    def decode(body: memoryview) -> Event | None:
        route = routes.decode_route(body)
        return None if route is None else RouteChanged(route, present)

    return decode


_DECODERS: dict[int, Callable[[memoryview], Event | None]] = {
    links.RTM_NEWLINK: _link(True),
    links.RTM_DELLINK: _link(False),
    addresses.RTM_NEWADDR: _address(True),
    addresses.RTM_DELADDR: _address(False),
    routes.RTM_NEWROUTE: _route(True),
    routes.RTM_DELROUTE: _route(False),
}
