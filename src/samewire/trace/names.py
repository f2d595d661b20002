"""From whatever people call a pod to its endpoint, and from table numbers to names. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence

from samewire.errors import Conflict, NotFound
from samewire.trace.context import EndpointInfo
from samewire.vfp.constants import Arrival, Layer, Reason

_PREFIX_LENGTH = 6


class Names:
    """What turns numbers into names: the endpoints by their ports, and the names of devices."""

    def __init__(self, endpoints: Iterable[EndpointInfo], interface: Callable[[int], str]) -> None:
        self._by_port = {info.port: info for info in endpoints if info.port}
        self.interface = interface

    def endpoint(self, ifindex: int) -> EndpointInfo | None:
        """The endpoint behind a port."""
        return self._by_port.get(ifindex)

    def label(self, ifindex: int) -> str:
        """Its name, "" where there is none."""
        info = self._by_port.get(ifindex)
        return info.label if info else ""

    def port(self, ifindex: int) -> str:
        """The endpoint's name, else the device's."""
        return self.label(ifindex) or self.interface(ifindex)


def find_endpoint(endpoints: Sequence[EndpointInfo], query: str) -> EndpointInfo:
    """The one endpoint meant by its name (``namespace/pod``), ID, an address, container id, interface, index, or the
    name of its port.

    The pod's name without its namespace and the beginning of an ID or container id (6 characters and more) do as
    well when they are unique. Raises NotFound, Conflict (naming the candidates).
    """
    word = _canonical(query)
    tests: tuple[Callable[[EndpointInfo], bool], ...] = (
        lambda info: word == info.id.lower(),
        lambda info: word == info.name.lower(),
        lambda info: word in info.addresses,
        lambda info: info.port != 0 and word in (info.host_interface, str(info.port)),
        lambda info: info.port != 0 and word == info.port_name.lower(),
        lambda info: word == info.name.lower().rpartition("/")[2],
        lambda info: word == info.container_id.lower(),
        lambda info: (
            len(word) >= _PREFIX_LENGTH
            and (info.id.lower().startswith(word) or info.container_id.lower().startswith(word))
        ),
    )
    for test in tests:
        found = [info for info in endpoints if word and test(info)]
        if len(found) > 1:
            found = [info for info in found if not info.remote] or found
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(f"{info.label} ({info.network} {info.id})" for info in found)
            raise Conflict(f"{query!r} could be any of {names}; use the ID")
    raise NotFound("endpoint", query)


def endpoint_of_port(endpoints: Sequence[EndpointInfo], ifindex: int) -> EndpointInfo | None:
    """The endpoint behind a port, None for the uplink and others that belong to the node."""
    return next((info for info in endpoints if info.port and info.port == ifindex), None)


def _canonical(query: str) -> str:
    word = query.strip().lower()
    try:
        return str(ipaddress.ip_address(word))
    except ValueError:
        return word


def member_name(kind: type[Layer] | type[Reason] | type[Arrival], value: int) -> str:
    """What a number of the switch is called, or the number."""
    return kind(value).name.lower() if value in kind._value2member_map_ else str(value)
