"""The members of a service: its EndpointSlices, by service port."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from samewire.kube.addresses import decimal, is_of_one_machine, shortest
from samewire.kube.model import Endpoint, EndpointSlice, Hint
from samewire.proxy.topology import Member

MAX_PORT: Final = 2**16 - 1

_FAMILIES: Final = {"IPv4": 4, "IPv6": 6}


PortKey = tuple[str, str, int]
"""What joins a service's port with those of its slices: name, protocol, family (4 or 6)."""

Members = Mapping[PortKey, tuple[Member, ...]]


def collect(slices: Iterable[EndpointSlice], node: str, unfit: dict[str, None] | None = None) -> Members:
    """All members, those of a port in order of address and port. ``unfit`` gets the addresses that are no machine's,
    which are left out: API servers take none of them, and one of them would keep the others from being written.

    An endpoint that two slices show counts once: the local one, else the one that is ready (it is moving from one slice
    to the other). A port without a number means every port and cannot be behind a VIP; it is left out, as are slices of
    host names.
    """
    found: dict[PortKey, dict[tuple[str, int], Member]] = {}
    for piece in slices:
        family = _FAMILIES.get(piece.address_type)
        if family is None or not piece.endpoints:
            continue
        six = family == 6
        for port in piece.ports:
            number = port.port
            if port.name is None or number is None or not 0 < number <= MAX_PORT:
                continue
            of_port = found.setdefault((port.name, port.protocol or "TCP", family), {})
            for endpoint in piece.endpoints:
                if not endpoint.addresses or (":" in endpoint.addresses[0]) is not six:
                    continue
                member = _member(endpoint, number, node)
                if not is_of_one_machine(member.address):
                    if unfit is not None:
                        unfit[member.address] = None
                    continue
                key = (member.address, number)
                before = of_port.setdefault(key, member)
                if before is not member and (member.local, member.ready) > (before.local, before.ready):
                    of_port[key] = member
    ordered = {}
    for port_key, of_port in found.items():
        ordered[port_key] = tuple(map(of_port.__getitem__, sorted(of_port)))
    return ordered


def local_ready_addresses(members: Members, family: int) -> int:
    """How many of this node's addresses are ready: what a health check reports."""
    return len(
        {
            member.address
            for key, of_port in members.items()
            if key[2] == family
            for member in of_port
            if member.ready and member.local
        }
    )


def _member(endpoint: Endpoint, port: int, node: str) -> Member:
    conditions, hints, target = endpoint.conditions, endpoint.hints, endpoint.target_ref
    address = endpoint.addresses[0]
    return Member(
        shortest(address) if ":" in address else decimal(address),
        port,
        conditions.ready is not False,
        conditions.serving is not False,
        conditions.terminating is True,
        endpoint.node_name == node,
        _names(hints.for_zones) if hints is not None else (),
        _names(hints.for_nodes) if hints is not None else (),
        endpoint.node_name or "",
        target.uid if target is not None else "",
    )


def _names(hints: Iterable[Hint]) -> tuple[str, ...]:
    return tuple([hint.name for hint in hints])
