"""PortMapping policies: ports of the node that lead to an endpoint.

The entries of very many are not made anew when one comes or goes: they are the last ones, and what differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, cast

from samewire.errors import Invalid
from samewire.hcn.numbered import numbered
from samewire.hcn.policies import NatFlags, Policy, PortMapping, mapping_family
from samewire.hcn.policy_lists import PolicyList, mapped_places, path_of
from samewire.hcn.schema import Endpoint
from samewire.versions import Version
from samewire.vfp.address import ZERO, Prefix, parse_address
from samewire.vfp.compile.builder import Builder
from samewire.vfp.compile.edits import Latest
from samewire.vfp.record import Record
from samewire.vfp.tables import Portmap, PortmapKey

_RESERVED = int(
    NatFlags.EXTERNAL_PORT_RESERVED
)  # a plain integer: enumerations' arithmetic costs ten times as much
_FEW: Final = 64
"""So many are compiled as fast as it is found out what differs."""


class _Place(NamedTuple):
    """Where mappings lead, and what they look like that say nothing of their family."""

    addresses: tuple[str, ...]
    own: tuple[Prefix, ...]
    scope: int
    port: int

    def entry(self, policies: PolicyList, number: int, policy: PortMapping) -> tuple[PortmapKey, Portmap]:
        """One mapping of an endpoint's policies. Raises ``Invalid``, naming the field."""
        if not policy.internal_port or not policy.external_port:
            path = path_of(policies, number)
            raise Invalid(path, "a PortMapping needs InternalPort and ExternalPort, both 1..65535")
        if not 1 <= policy.protocol <= 255:
            path = path_of(policies, number)
            raise Invalid(f"{path}.Protocol", f"{policy.protocol} is no IP protocol (1..255)")
        vip = parse_address(policy.vip, f"{path_of(policies, number)}.VIP").packed if policy.vip else ZERO
        family = mapping_family(policy, self.addresses)
        for own in self.own:
            if own.family == family:
                key = PortmapKey(vip, policy.external_port, policy.protocol, family)
                return key, Portmap(self.port, self.scope, policy.internal_port, own.packed)
        path = path_of(policies, number)
        raise Invalid(path, f"the endpoint has no IPv{family} address for this PortMapping")


class _Last(NamedTuple):
    place: _Place
    policies: PolicyList
    rows: Version[Record, Record]


def compile_portmaps(
    builder: Builder, endpoint: Endpoint, own: tuple[Prefix, ...], scope: int, port: int
) -> frozenset[int]:
    """Add the mappings of an endpoint with these addresses. Raises ``Invalid``, naming the field.

    Returns the node's ports that are the endpoint's, but for those that the caller says it has reserved itself: a
    connection of the node's own from such a port would have its answers taken to the pod.
    """
    policies = numbered(endpoint.policies)
    group = policies.group(PortMapping)
    if not group.items:
        return frozenset()
    place = _Place(endpoint.addresses, own, scope, port)
    if len(group.items) <= _FEW:
        for number, policy in zip(group.numbers, group.items, strict=True):
            builder.put("sw_portmaps", *place.entry(policies, number, policy))
        return frozenset([policy.external_port for policy in group.items if not policy.flags & _RESERVED])
    rows = _rows(_LAST.get(endpoint.id), policies, place)
    _LAST.keep(endpoint.id, _Last(place, policies, rows))
    builder.versions["sw_portmaps"] = rows
    return frozenset(cast(Iterable[int], policies.by(_kept_back)))


def _rows(last: _Last | None, policies: PolicyList, place: _Place) -> Version[Record, Record]:
    """All entries: those of the last policies, where they lead to the same place, with what differs. Of the
    mappings of a port at an address all are looked at: the last one counts.
    """
    if last is None or last.place != place:
        group = policies.group(PortMapping)
        pairs = zip(group.numbers, group.items, strict=True)
        return Version(dict(place.entry(policies, number, policy) for number, policy in pairs))
    moved = policies.difference(last.policies).of(PortMapping).items()
    where = dict.fromkeys(found for policy in moved for found in mapped_places(policy))
    changes: dict[Record, Record | None] = {key: None for key, _ in _mapped(where, last.policies, place)}
    changes.update(_mapped(where, policies, place))
    return last.rows.changed(changes) if changes else last.rows


def _mapped(
    where: Iterable[tuple[int, int, str]], policies: PolicyList, place: _Place
) -> Iterator[tuple[PortmapKey, Portmap]]:
    index = policies.by(mapped_places)
    for found in where:
        for number in index.get(found, ()):
            yield place.entry(policies, number, cast(PortMapping, policies.at(number)))


def _kept_back(policy: Policy) -> tuple[int, ...]:
    if isinstance(policy, PortMapping) and not policy.flags & _RESERVED:
        return (policy.external_port,)
    return ()


_LAST: Final[Latest[_Last]] = Latest(256)
"""By endpoint."""
