"""All services and their slices, indexed so that a change costs what it touches: one service."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from samewire.kube.model import EndpointSlice, Key, Service
from samewire.kube.source import Change


class ServiceTable:
    """Which slices belong to which service. Holds references only; the objects are the source's."""

    def __init__(self) -> None:
        self._services: dict[Key, Service] = {}
        self._slices: dict[Key, tuple[EndpointSlice, ...]] = {}

    @property
    def services(self) -> Mapping[Key, Service]:
        """All services, read-only."""
        return self._services

    def slices(self, key: Key) -> tuple[EndpointSlice, ...]:
        """The slices of a service, in order of their names."""
        return self._slices.get(key, ())

    def change_services(self, changes: Iterable[Change[Service]]) -> list[Key]:
        """Take over changes of services; the keys whose load balancers may be others now."""
        touched = []
        for change in changes:
            if change.new is None:
                self._services.pop(change.key, None)
            else:
                self._services[change.key] = change.new
            touched.append(change.key)
        return touched

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
