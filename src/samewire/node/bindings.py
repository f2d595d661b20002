"""What the objects together want of the node's own stack, with the owners of each wish. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Final, TypeAlias

import msgspec

from samewire.vfp.address import IPV6, Address, Prefix, address_text
from samewire.vfp.model import HostBinding, HostRoute


class WantedAddress(msgspec.Struct, frozen=True, order=True):
    """An address on samewire0."""

    prefix: Prefix


class WantedFilter(msgspec.Struct, frozen=True, order=True):
    """A MAC address that the uplink must let in."""

    mac: bytes


class WantedListener(msgspec.Struct, frozen=True, order=True):
    """An IPv6 address for whose neighbour solicitations the uplink listens."""

    address: bytes


class WantedForwarding(msgspec.Struct, frozen=True, order=True):
    """The node passes on what arrives on samewire0 (IPv4)."""


class WantedReservation(msgspec.Struct, frozen=True, order=True):
    """A port that the kernel must not hand to the node's sockets: it is an endpoint's."""

    port: int


Wish: TypeAlias = (
    WantedAddress | HostRoute | WantedFilter | WantedListener | WantedForwarding | WantedReservation
)
_NOTHING: Final = HostBinding()
_KINDS: Final = (
    WantedAddress,
    HostRoute,
    WantedFilter,
    WantedListener,
    WantedForwarding,
    WantedReservation,
)


class BindingChange(msgspec.Struct, frozen=True):
    """One step: ``add`` or remove a wish. A route of another source replaces the one to its destination."""

    add: bool
    wish: Wish


def in_order(steps: Iterable[BindingChange]) -> list[BindingChange]:
    """Steps of several owners as they can be made: additions (addresses before the routes that use them as a source),
    then removals in reverse.
    """
    by_rank = sorted(steps, key=lambda step: _rank(step.wish))
    return [step for step in by_rank if step.add] + [step for step in reversed(by_rank) if not step.add]


class HostBindings:
    """Wishes by owner and owners by wish: a wish goes with its last owner."""

    def __init__(self) -> None:
        self._held: dict[Hashable, HostBinding] = {}
        self._owners: dict[Wish, dict[Hashable, None]] = {}
        self._routes: dict[Prefix, dict[HostRoute, None]] = {}  # by destination

    def held(self, owner: Hashable) -> HostBinding:
        """What one owner wants."""
        return self._held.get(owner, _NOTHING)

    def wants(self, wish: Wish) -> bool:
        """Whether a wish is in force."""
        return self._in_force(wish)

    def mentions(self, prefix: Prefix) -> bool:
        """Whether an address or a route of that prefix is wanted."""
        return prefix in self._routes or WantedAddress(prefix) in self._owners

    def wanted(self) -> set[Wish]:
        """Everything that is wanted; of several routes to one destination the one in force."""
        return {wish for wish in self._owners if self._in_force(wish)}

    def replace(self, owner: Hashable, binding: HostBinding) -> list[BindingChange]:
        """Make ``binding`` what ``owner`` wants. Returns the steps: additions (addresses before routes that
        use them as a source), then removals in reverse.
        """
        held = self.held(owner)
        before, after = set(wishes(held, binding.mapped_ports)), set(wishes(binding, held.mapped_ports))
        touched = before ^ after
        was = {wish for wish in self._around(touched) if self._in_force(wish)}
        for wish in after - before:
            self._enter(owner, wish)
        for wish in before - after:
            self._leave(owner, wish)
        if binding != _NOTHING:
            self._held[owner] = binding
        else:
            self._held.pop(owner, None)
        now = {wish for wish in self._around(touched) if self._in_force(wish)}
        replaced = {wish.destination for wish in now if isinstance(wish, HostRoute)}
        gone = [
            wish
            for wish in sorted(was - now, key=_rank, reverse=True)
            if not (isinstance(wish, HostRoute) and wish.destination in replaced)
        ]
        return [
            *(BindingChange(True, wish) for wish in sorted(now - was, key=_rank)),
            *(BindingChange(False, wish) for wish in gone),
        ]

    def _enter(self, owner: Hashable, wish: Wish) -> None:
        self._owners.setdefault(wish, {})[owner] = None
        if isinstance(wish, HostRoute):
            self._routes.setdefault(wish.destination, {})[wish] = None

    def _leave(self, owner: Hashable, wish: Wish) -> None:
        owners = self._owners[wish]
        del owners[owner]
        if owners:
            return
        del self._owners[wish]
        if isinstance(wish, HostRoute):
            rivals = self._routes[wish.destination]
            del rivals[wish]
            if not rivals:
                del self._routes[wish.destination]

    def _around(self, touched: Iterable[Wish]) -> set[Wish]:
        """The wishes, and for routes all wishes for the same destination."""
        found = set(touched)
        for wish in touched:
            if isinstance(wish, HostRoute):
                found.update(self._routes.get(wish.destination, ()))
        return found

    def _in_force(self, wish: Wish) -> bool:
        """Whether somebody wants it, and (for a route) nobody prefers another source: the least one wins, so
        that the order of owners does not matter.
        """
        if wish not in self._owners:
            return False
        return not isinstance(wish, HostRoute) or min(self._routes[wish.destination], key=_source) == wish


def wishes(binding: HostBinding, but: frozenset[int] = frozenset()) -> Iterator[Wish]:
    """The single wishes of a binding, but for some of the mapped ports (its reserved ports are the node's alone and
    not shared).
    """
    yield from (WantedAddress(prefix) for prefix in binding.addresses)
    yield from binding.routes
    yield from (WantedFilter(mac) for mac in binding.nic_filters)
    yield from map(WantedListener, binding.listens)
    yield from map(WantedReservation, binding.mapped_ports - but)
    if binding.forwards:
        yield WantedForwarding()


def words(wish: Wish) -> str:
    """How a wish is called in logs and differences."""
    match wish:
        case WantedAddress(prefix):
            return f"address {prefix}"
        case WantedListener(listened):
            return f"proxy for {address_text(IPV6, listened)}"
        case WantedFilter(mac):
            return f"link address {mac.hex(':')}"
        case WantedForwarding():
            return "forwarding"
        case WantedReservation(port):
            return f"reservation of port {port}"
    return f"route {wish.destination} from {wish.source or 'any'}"


def reservations(wanted: Iterable[Wish]) -> int:
    """The ports among wishes, as a set of `samewire.node.portranges`."""
    ports = 0
    for wish in wanted:
        if isinstance(wish, WantedReservation):
            ports |= 1 << wish.port
    return ports


def _source(route: HostRoute) -> tuple[bool, Address | None]:
    return route.source is None, route.source


def _rank(wish: Wish) -> tuple[int, Wish]:
    return _KINDS.index(type(wish)), wish
