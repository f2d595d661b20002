"""The members of a service: its EndpointSlices, by service port."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from samewire.kube.model import Endpoint, EndpointSlice
from samewire.proxy.topology import Member

MAX_PORT: Final = 2**16 - 1

_FAMILIES: Final = {"IPv4": 4, "IPv6": 6}


PortKey = tuple[str, str, int]
"""What joins a service's port with those of its slices: name, protocol, family (4 or 6)."""

Members = Mapping[PortKey, tuple[Member, ...]]


def collect(slices: Iterable[EndpointSlice], node: str) -> Members:
    """All members, those of a port in order of address and port.

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
                key = (member.address, number)
                before = of_port.get(key)
                if before is None or (member.local, member.ready) > (before.local, before.ready):
                    of_port[key] = member
    return {key: tuple([of_port[at] for at in sorted(of_port)]) for key, of_port in found.items()}


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
    conditions = endpoint.conditions
    ready = conditions.ready is not False
    serving = ready if conditions.serving is None else conditions.serving
    local = endpoint.node_name == node
    hints, target = endpoint.hints, endpoint.target_ref
    uid = target.uid if target is not None else ""
    if hints is None:
        return Member(
            endpoint.addresses[0],
            port,
            ready,
            serving,
            conditions.terminating is True,
            local,
            node=endpoint.node_name or "",
            uid=uid,
        )
    return Member(
        endpoint.addresses[0],
        port,
        ready,
        serving,
        conditions.terminating is True,
        local,
        tuple([hint.name for hint in hints.for_zones]),
        tuple([hint.name for hint in hints.for_nodes]),
        endpoint.node_name or "",
        uid,
    )
