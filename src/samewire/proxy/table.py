"""All services and their slices, indexed so that a change costs what it touches: one service."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from samewire.kube.model import EndpointSlice, Key, Service
from samewire.kube.source import Change
from samewire.proxy.frontends import cluster_addresses, outside_addresses


class ServiceTable:
    """Which slices and which addresses belong to which service. The objects are the source's."""

    def __init__(self) -> None:
        self._services: dict[Key, Service] = {}
        self._slices: dict[Key, tuple[EndpointSlice, ...]] = {}
        self._cluster_ips: dict[str, Key] = {}
        self._outside: dict[str, dict[Key, None]] = {}

    @property
    def services(self) -> Mapping[Key, Service]:
        """All services, read-only."""
        return self._services

    def slices(self, key: Key) -> tuple[EndpointSlice, ...]:
        """The slices of a service, in order of their names."""
        return self._slices.get(key, ())

    def owner_of(self, address: str) -> Key | None:
        """The service whose cluster IP an address is."""
        return self._cluster_ips.get(address)

    def change_services(self, changes: Iterable[Change[Service]]) -> list[Key]:
        """Take over changes of services; the keys whose load balancers may be others now."""
        touched = []
        for change in changes:
            touched.append(change.key)
            before = self._services.pop(change.key, None)
            if before is not None:
                self._give_up(change.key, before, touched)
            if change.new is not None:
                self._services[change.key] = change.new
                self._claim(change.key, change.new, touched)
        return touched

    def _claim(self, key: Key, service: Service, touched: list[Key]) -> None:
        """Note a service's addresses. Touches those that name its cluster IPs as their external ones."""
        for _, address in cluster_addresses(service):
            self._cluster_ips[address] = key
            touched += self._outside.get(address, ())
        for address in outside_addresses(service):
            self._outside.setdefault(address, {})[key] = None

    def _give_up(self, key: Key, service: Service, touched: list[Key]) -> None:
        """The reverse."""
        for _, address in cluster_addresses(service):
            if self._cluster_ips.get(address) == key:
                del self._cluster_ips[address]
            touched += self._outside.get(address, ())
        for address in outside_addresses(service):
            keys = self._outside[address]
            del keys[key]
            if not keys:
                del self._outside[address]

    def change_slices(self, changes: Iterable[Change[EndpointSlice]]) -> list[Key]:
        """Take over changes of slices; the keys of the services whose load balancers may be others now.

        A slice can move to another service. Those that another proxy looks after are as good as not there.
        """
        touched = []
        for change in changes:
            before, after = _owner(change.old), _owner(change.new)
            if before is not None:
                self._put(before, change.key[1], None)
                touched.append(before)
            if after is not None:
                self._put(after, change.key[1], change.new)
                if after != before:
                    touched.append(after)
        return touched

    def _put(self, key: Key, name: str, value: EndpointSlice | None) -> None:
        known = self._slices.get(key, ())
        if not known and value is not None:
            self._slices[key] = (value,)
            return
        kept = [piece for piece in known if piece.metadata.name != name]
        if value is not None:
            kept.append(value)
            kept.sort(key=_name)
        if kept:
            self._slices[key] = tuple(kept)
        else:
            self._slices.pop(key, None)


def _owner(piece: EndpointSlice | None) -> Key | None:
    if piece is None:
        return None
    labels = piece.metadata.labels
    if labels.service_proxy_name is not None or labels.headless is not None:
        return None
    return piece.service_key


def _name(piece: EndpointSlice) -> str:
    return piece.metadata.name
