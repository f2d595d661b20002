"""A few members more or less of a load balancer with very many: what that changes of its entries, and nothing else.

What comes out is what a compilation of the whole gives. Where that may depend on the other members (one address twice,
whose network's address clients get, ports that receive by DSR) there is no shorter way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar
from zlib import crc32

from msgspec.structs import replace

from samewire.hcn.loadbalancers import LoadBalancer, LoadBalancerPortMapping, direct_mac
from samewire.hcn.numbered import alike
from samewire.vfp.address import ZERO
from samewire.vfp.compile.balanced import (
    CHUNK_BYTES,
    FREE,
    ID,
    SERVICE_HEAD,
    TABLES,
    TARGET_BYTES,
    Held,
    HeldPort,
    Rows,
    Variant,
    pack_chunk_key,
    pack_direct,
    scope_of,
)
from samewire.vfp.compile.loadbalancer import (
    HERE,
    NOT_FOR_ALL,
    Environment,
    backend_row,
    pack_place,
    places_of,
    receives,
)
from samewire.vfp.compile.members import LOCAL, Member, members
from samewire.vfp.compile.places import pack
from samewire.vfp.constants import CHUNK_BACKENDS, SCOPE_UPLINK

T = TypeVar("T")

_FEW: Final = 64
"""So many members are compiled as fast as it is found out what differs."""
_NOBODY: Final = FREE[: ID.size]
_PLACE: Final = len(FREE)


class Edit(NamedTuple):
    """What a load balancer has afterwards, and what has to be put and removed for it, by table."""

    held: Held
    puts: dict[str, Rows]
    removals: dict[str, list[bytes]]


class _Moved(NamedTuple):
    """Where the members that go were in a list, and where those are that come; ``size``: of the list as it was.
    ``only_come``: the load balancer with no other members than these.
    """

    gone: Sequence[int]
    come: Sequence[int]
    size: int
    only_come: LoadBalancer

    def carried_out(self, items: Iterable[T], new: Iterable[T]) -> tuple[T, ...]:
        """What stands for each member as it was, made what stands for each as it is."""
        made = list(items)
        for place in reversed(self.gone):
            del made[place]
        for place, item in zip(self.come, new, strict=True):
            made.insert(place, item)
        return tuple(made)


def edit_members(last: LoadBalancer, value: LoadBalancer, env: Environment, before: Held) -> Edit | None:
    """Compile a load balancer that was ``last`` and had ``before``, if all that differs are a few members; else, and
    where that takes a compilation of the whole, None.
    """
    if len(last.endpoint_ids) <= _FEW and len(last.backends) <= _FEW:
        return None
    moved = _moved(last, value)
    if moved is None or len(before.ports) != len(value.port_mappings):
        return None
    job = _Job(value, moved, env, Edit(before, {t: {} for t in TABLES}, {t: [] for t in TABLES}))
    ports = []
    for port, mapping in zip(before.ports, value.port_mappings, strict=True):
        edited = job.port(port, mapping)
        if edited is None:
            return None
        ports.append(edited)
    return job.edit._replace(held=replace(before, ports=tuple(ports)))


def _moved(last: LoadBalancer, value: LoadBalancer) -> _Moved | None:
    if replace(last, endpoint_ids=value.endpoint_ids, backends=value.backends) != value:
        return None
    ids, backends = value.endpoint_ids, value.backends
    if last.endpoint_ids and ids and not last.backends and not backends:
        places = _places(last.endpoint_ids, ids)
        if places is None:
            return None
        only_come = replace(value, endpoint_ids=tuple([ids[place] for place in places[1]]))
        return _Moved(*places, len(last.endpoint_ids), only_come)
    places = _places(last.backends, backends)
    if places is None or last.endpoint_ids or ids:
        return None
    gone, come = (
        [last.backends[place] for place in places[0]],
        tuple([backends[place] for place in places[1]]),
    )
    for items in (last.backends, backends):
        addresses = [item.ip_address for item in items]
        if any(addresses.count(item.ip_address) > 1 for item in (*gone, *come)):
            return None
    return _Moved(*places, len(last.backends), replace(value, backends=come))


def _places(old: tuple[Any, ...], new: tuple[Any, ...]) -> tuple[Sequence[int], Sequence[int]] | None:
    """Where in a list items are that another has not, and where in the other those that this one has not; None where
    they are many, or the rest is in another order.
    """
    start, end = alike(old, new)
    gone: Sequence[int] = range(start, len(old) - end)
    come: Sequence[int] = range(start, len(new) - end)
    if len(gone) + len(come) > CHUNK_BACKENDS:
        was, will = set(old[start : len(old) - end]), set(new[start : len(new) - end])
        staying = [old[place] for place in gone if old[place] in will]
        if staying != [new[place] for place in come if new[place] in was]:
            return None
        gone = [place for place in gone if old[place] not in will]
        come = [place for place in come if new[place] not in was]
    return (gone, come) if len(gone) + len(come) <= CHUNK_BACKENDS else None


class _Job(NamedTuple):
    value: LoadBalancer
    moved: _Moved
    env: Environment
    edit: Edit

    def port(self, port: HeldPort, mapping: LoadBalancerPortMapping) -> HeldPort | None:
        """What a port mapping has afterwards; None where it has to be compiled whole."""
        moved, env, rows = self.moved, self.env, self.env.rows["sw_backends"]
        come = members(moved.only_come, mapping.internal_port, env.domain, env.view)
        if len(port.backends) != moved.size or len(come) != len(moved.come):
            return None  # some are not to be found: who is in which place is not known
        gone = [port.backends[place] for place in moved.gone]
        identities = port.identities or ("",) * moved.size
        if not self._alone(port, mapping, [rows[key] for key in gone], come):
            return None
        new = self._keys(dict(zip(gone, [identities[place] for place in moved.gone], strict=True)), come)
        backends = moved.carried_out(port.backends, new)
        who = moved.carried_out(identities, (member.identity for member in come))
        targets = {key: member.target for key, member in zip(new, come, strict=True)}
        for_all = [key for key, member in zip(new, come, strict=True) if not member.flags & NOT_FOR_ALL]
        for_local = [key for key, member in zip(new, come, strict=True) if member.flags & HERE == LOCAL]
        variants = []
        for variant, coming in ((port.all, for_all), (port.local, for_local)):
            places = _Places(variant, mapping.protocol, backends, targets, env)
            edited = places.edited(gone, coming, self.edit) if variant.set else variant
            if edited is None:
                return None
            self._point(port.service, variant, edited)
            variants.append(edited)
        for key, member in zip(new, come, strict=True):
            family = 6 if self.value.is_ipv6 else 4
            self.edit.puts["sw_backends"][key] = backend_row(member, family, port.service, env)
        self.edit.removals["sw_backends"].extend([key for key in gone if key not in targets])
        return replace(
            port,
            all=variants[0],
            local=variants[1],
            backends=backends,
            identities=who if any(who) else None,
        )

    def _alone(
        self,
        port: HeldPort,
        mapping: LoadBalancerPortMapping,
        gone: Collection[bytes],
        come: Collection[Member],
    ) -> bool:
        """Whether nothing else depends on the members that go and come."""
        moved, env = self.moved, self.env
        if receives(self.value, mapping) and (
            any(self._received(mapping, row) for row in gone)
            or any(env.port(member.endpoint) for member in come)
        ):
            return False
        scopes = {*map(scope_of, gone), *(member.scope for member in come)}
        if self.value.source_vip or scopes <= {SCOPE_UPLINK}:
            return True
        first = env.rows["sw_backends"][port.backends[0]]
        stays = 0 not in moved.gone and 0 not in moved.come
        return stays and scope_of(first) != SCOPE_UPLINK  # of whose network clients get an address

    def _keys(self, gone: Mapping[bytes, str], come: Iterable[Member]) -> list[bytes]:
        """The keys of members that come. One that was there with other flags keeps its own, and so does one of whom
        nothing was known. ``gone``: who those are that go.
        """
        rows = self.env.rows["sw_backends"]
        known = {(rows[key][:TARGET_BYTES], who): key for key, who in gone.items()}
        keys = []
        for member in come:
            key = known.pop((member.target, member.identity), None)
            if key is None and not member.endpoint:
                key = known.pop((member.target, ""), None)
            keys.append(key if key is not None else ID.pack(self.env.number()))
        return keys

    def _received(self, mapping: LoadBalancerPortMapping, row: bytes) -> bool:
        """Whether a member was here; its link may have gone with it."""
        value = self.value
        family, size = (6, 16) if value.is_ipv6 else (4, 4)
        vip = pack(value.frontend_vips[0]) if value.frontend_vips else ZERO
        port = mapping.external_port.to_bytes(2, "big")
        key = pack_direct(vip, port, mapping.protocol, family, direct_mac(row[:size]))
        return key in self.env.rows["sw_direct"]

    def _point(self, service: int, before: Variant, after: Variant) -> None:
        """Have the services that lead to a set know its size."""
        if before.chunks == after.chunks:
            return
        head, rows = SERVICE_HEAD.pack(service, after.set, after.chunks), self.env.rows["sw_services"]
        for key in self.edit.held.services:
            row = rows[key]
            if SERVICE_HEAD.unpack_from(row)[:2] == (service, after.set):
                self.edit.puts["sw_services"][key] = head + row[SERVICE_HEAD.size :]


class _Places(NamedTuple):
    """A set being changed: who is in it stays where it is, as far as the set's size allows."""

    variant: Variant
    protocol: int
    order: tuple[bytes, ...]
    new: dict[bytes, bytes]
    env: Environment

    def edited(self, gone: Collection[bytes], coming: Sequence[bytes], edit: Edit) -> Variant | None:
        """The set without some and with others; None for one that is, or was, empty."""
        number, rows = self.variant.set, self.env.rows["sw_backend_sets"]
        data = b"".join([rows.get(key, b"") for key in self.variant.chunk_keys()])
        places = [key for (key,) in places_of(data)]
        if not places or len(places) != self.variant.chunks * CHUNK_BACKENDS:
            return None
        left = [places.index(key) for key in gone if key in places and key not in coming]
        coming = [key for key in coming if key not in places]
        size = len(places) - places.count(_NOBODY) - len(left) + len(coming)
        chunks = -(-size // CHUNK_BACKENDS)
        if not chunks:
            return None
        for place in left:
            places[place] = _NOBODY
        end = chunks * CHUNK_BACKENDS
        waiting = [*coming, *(key for key in places[end:] if key != _NOBODY)]
        places = places[:end] + [_NOBODY] * (end - len(places))
        image = bytearray(data[: chunks * CHUNK_BYTES].ljust(chunks * CHUNK_BYTES, b"\0"))
        changed = {place: FREE for place in left if place < end}
        place = -1
        for key in sorted(waiting, key=self.order.index):
            place = places.index(_NOBODY, place + 1)
            changed[place] = pack_place(key, crc32(self._target(key), self.protocol))
        for place, entry in changed.items():
            image[place * _PLACE : (place + 1) * _PLACE] = entry
        for chunk in {place // CHUNK_BACKENDS for place in changed}:
            row = bytes(image[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES])
            edit.puts["sw_backend_sets"][pack_chunk_key(number, chunk)] = row
        edit.removals["sw_backend_sets"] += self.variant.chunk_keys()[chunks:]
        return Variant(number, chunks)

    def _target(self, key: bytes) -> bytes:
        return self.new.get(key) or self.env.rows["sw_backends"][key][:TARGET_BYTES]
