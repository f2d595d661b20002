"""The node's own stack, as the objects want it: addresses and routes on samewire0, filters of the uplink."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterable
from operator import itemgetter

from samewire.errors import NotFound
from samewire.kernel import sysctl
from samewire.kernel.rtnetlink import (
    Netlink,
    Request,
    address_add,
    address_del,
    address_dump,
    fdb_dump,
    own_address,
    own_address_del,
    route_del,
    route_dump,
    route_replace,
)
from samewire.kernel.rtnetlink.routes import TABLE_MAIN
from samewire.node.bindings import (
    BindingChange,
    WantedAddress,
    WantedFilter,
    WantedForwarding,
    WantedListener,
    WantedReservation,
    Wish,
)
from samewire.node.devices import HOST, reserved_ports
from samewire.node.facts import short
from samewire.node.listeners import Listeners
from samewire.node.nicfilters import NicFilters
from samewire.node.portranges import parse_ports, ranges_of
from samewire.vfp.address import ZERO, Address, Prefix
from samewire.vfp.model import FAMILIES, HostRoute

_PROTOCOL_KERNEL = 2
_SCOPE_GLOBAL = 0
# Not 0, which the node's own routes have: a route of ours must never take the place of one of them. Theirs wins.
_METRIC = 21367
_FORWARDING = ("net", "ipv4", "conf", HOST, "forwarding")


class HostNet:
    """Applies and reads back what `samewire.node.bindings` wants."""

    def __init__(
        self,
        netlink: Netlink,
        host_ifindex: int,
        filters: NicFilters,
        reserve: Callable[[int], None],
    ) -> None:
        """``reserve`` is given what is reserved beside what always is: a set of `samewire.node.portranges`."""
        self._netlink = netlink
        self._filters = filters
        self._listeners = Listeners(netlink)
        self._reserve = reserve
        self.host = host_ifindex
        self.uplink = 0
        self.mapped = 0
        """The endpoints' ports that are reserved, as a set of `samewire.node.portranges`."""
        self._owed: set[HostRoute] = set()
        """What goes with the last address of samewire0 and is to be put back, by the next change if this one cannot."""

    def apply(self, changes: Iterable[BindingChange]) -> None:
        """Make the steps in order; what is there (or gone) already is fine. Raises KernelError, StoreError.

        With the last IPv4 address of samewire0 the kernel removes all its routes, also those that have another source
        or none and stay wanted: they are put back.
        """
        steps = list(changes)
        if not steps:
            return
        gone = {step.wish for step in steps if not step.add}
        sources = {wish.prefix.address for wish in gone if isinstance(wish, WantedAddress)}
        if sources:
            self._owed |= {route for route in self._routes() if route.source not in sources}
        self._owed -= gone
        try:
            requests = [request for step in steps for request in self._requests(step)]
            if requests:
                self._netlink.batch(requests)
            for step in steps:
                if isinstance(step.wish, WantedForwarding):
                    sysctl.write(_FORWARDING, int(step.add))
            self._filter(steps)
            self._listen(steps)
            self._reserve_ports(steps)
        finally:
            self._put_back()

    def _put_back(self) -> None:
        lost = self._owed - self._routes() if self._owed else set()
        if lost:
            self._netlink.batch([self._route(route, add=True) for route in lost])
        self._owed = set()

    def adopt(self, wanted: Iterable[Wish]) -> None:
        """At the start: filters that an earlier daemon has made are ours. Raises KernelError, StoreError."""
        self.leave_others()
        wished = {wish.mac for wish in wanted if isinstance(wish, WantedFilter)}
        if wished and self.uplink:
            self._filters.adopt(self.uplink, wished & self._let_in())

    def leave_others(self) -> None:
        """Take our filters away from what was the uplink. Raises KernelError, StoreError."""
        self._filters.leave_all_but(self.uplink)
        self._listeners.leave_all_but(self.uplink)

    def _filter(self, steps: list[BindingChange]) -> None:
        if not self.uplink:
            return
        for add, change in ((True, self._filters.add), (False, self._filters.remove)):
            macs = [
                step.wish.mac for step in steps if isinstance(step.wish, WantedFilter) and step.add == add
            ]
            if macs:
                change(self.uplink, macs)

    def _listen(self, steps: list[BindingChange]) -> None:
        if not self.uplink:
            return
        for add, change in ((True, self._listeners.add), (False, self._listeners.remove)):
            found = [s.wish.address for s in steps if isinstance(s.wish, WantedListener) and s.add == add]
            if found:
                change(self.uplink, found)

    def _let_in(self) -> set[bytes]:
        return {entry.mac for entry in self._netlink.dump(fdb_dump(self.uplink))}

    def _reserve_ports(self, steps: list[BindingChange]) -> None:
        ours = [(step.wish.port, step.add) for step in steps if isinstance(step.wish, WantedReservation)]
        if not ours:
            return
        mapped = self.mapped
        for port, add in sorted(ours, key=itemgetter(1)):  # what one owner has left another may have taken
            mapped = mapped | 1 << port if add else mapped & ~(1 << port)
        self._reserve(mapped)
        self.mapped = mapped

    def missing(self, wanted: Iterable[Wish]) -> list[BindingChange]:
        """The steps from what is there to what is wanted. Raises KernelError.

        Of the filters that are not wanted, those are left alone that are not ours.
        """
        present = self._present()
        wished = set(wanted)
        steps = [BindingChange(True, wish) for wish in wished - present if not self._has_filter(wish)]
        surplus = (present - wished) - self._of_others(present)
        replaced = {step.wish.destination for step in steps if isinstance(step.wish, HostRoute)}
        steps.sort(key=lambda step: not isinstance(step.wish, WantedAddress))
        gone = [w for w in surplus if not (isinstance(w, HostRoute) and w.destination in replaced)]
        gone.sort(key=lambda wish: isinstance(wish, WantedAddress))
        return [*steps, *(BindingChange(False, wish) for wish in gone)]

    def _of_others(self, present: set[Wish]) -> set[Wish]:
        if not self.uplink:
            return set()
        ours, heard = self._filters.of(self.uplink), self._listeners.on(self.uplink)
        return {
            wish
            for wish in present
            if (isinstance(wish, WantedFilter) and wish.mac not in ours)
            or (isinstance(wish, WantedListener) and not heard.get(wish.address))
        }

    def _has_filter(self, wish: Wish) -> bool:
        """Without an uplink there is nothing to filter."""
        return isinstance(wish, WantedFilter | WantedListener) and not self.uplink

    def _present(self) -> set[Wish]:
        found: set[Wish] = set()
        for address in self._netlink.dump(address_dump(self.host)):
            if address.scope == _SCOPE_GLOBAL:
                found.add(WantedAddress(_prefix(address.family, address.address, address.bits)))
        found.update(self._routes())
        with contextlib.suppress(NotFound):  # samewire0 is gone or renamed: that is the devices' matter
            if sysctl.read(_FORWARDING) == "1":
                found.add(WantedForwarding())
        for first, last in ranges_of(self.mapped & parse_ports(reserved_ports())):
            found.update(map(WantedReservation, range(first, last + 1)))
        if self.uplink:
            found.update(map(WantedFilter, self._let_in()))
            found.update(map(WantedListener, self._listeners.on(self.uplink)))
        return found

    def _routes(self) -> set[HostRoute]:
        found = set()
        for family in FAMILIES:
            for route in self._netlink.dump(route_dump(family, TABLE_MAIN)):
                if route.oif == self.host and route.protocol != _PROTOCOL_KERNEL:
                    source = Address(family, route.source.ljust(len(ZERO), b"\0")) if route.source else None
                    found.add(HostRoute(_prefix(family, route.destination, route.bits), source, route.mtu))
        return found

    def _requests(self, change: BindingChange) -> list[Request]:
        match change.wish:
            case WantedAddress(prefix):
                return self._address(prefix, change.add)
            case HostRoute() as route:
                return [self._route(route, change.add)]
        return []

    def _address(self, prefix: Prefix, add: bool) -> list[Request]:
        packed = short(prefix.packed, prefix.family)
        if add:
            request = address_add(self.host, packed, prefix.bits, family=prefix.family, noprefixroute=True)
            return [request, own_address(self.host, packed)] if prefix.family == 6 else [request]
        request = address_del(self.host, packed, prefix.bits, family=prefix.family)
        request = request.tolerating(errno.EADDRNOTAVAIL)
        return [request, own_address_del(self.host, packed)] if prefix.family == 6 else [request]

    def _route(self, route: HostRoute, add: bool) -> Request:
        destination = route.destination
        packed = short(destination.packed, destination.family)
        if add:
            source = short(route.source.packed, destination.family) if route.source is not None else None
            return route_replace(
                packed,
                destination.bits,
                family=destination.family,
                oif=self.host,
                source=source,
                metric=_METRIC,
                mtu=route.mtu,
            )
        return route_del(packed, destination.bits, family=destination.family, oif=self.host).tolerating(
            errno.ESRCH
        )


def _prefix(family: int, packed: bytes, bits: int) -> Prefix:
    return Prefix(family, packed.ljust(len(ZERO), b"\0"), bits)
