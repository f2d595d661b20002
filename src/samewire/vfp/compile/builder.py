"""The entries of one owner while they are being collected, and the few shapes that several compilers need."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from samewire.versions import Version
from samewire.vfp.address import NO_MAC, Address, Prefix
from samewire.vfp.constants import ROUTE_KEY_BITS, SCOPE_HOST, RouteKind
from samewire.vfp.model import Compiled, HostBinding, NodeFacts, Numbers, Shared
from samewire.vfp.record import Record
from samewire.vfp.tables import Nexthop, Route, RouteKey


class Builder:
    """Collects entries; putting a key twice keeps the last value. ``forwards``: the node has to pass on some of it.
    ``versions``: tables that are made of the last ones. ``shared``: what is needed beside them, by name.
    """

    def __init__(self) -> None:
        self.entries: dict[str, dict[Record, Record]] = {}
        self.versions: dict[str, Version[Record, Record]] = {}
        self.forwards = False
        self.shared: dict[int, Shared] = {}

    def put(self, table: str, key: Record, value: Record) -> None:
        """Add or replace one entry."""
        rows = self.entries.get(table)
        if rows is None:
            self.entries[table] = {key: value}
        else:
            rows[key] = value

    def route(
        self,
        scope: int,
        prefix: Prefix,
        kind: RouteKind,
        *,
        nexthop: int = 0,
        flags: int = 0,
        target_scope: int = 0,
    ) -> None:
        """Add a route of ``scope``; ``prefix`` must have no host bits."""
        self.put(
            "sw_routes", route_key(scope, prefix), Route(kind, flags, target_scope, nexthop, prefix.bits)
        )

    def compiled(self, binding: HostBinding) -> Compiled:
        """What has been collected."""
        entries = {**self.entries, **self.versions} if self.versions else self.entries
        return Compiled(entries, binding, shared=tuple(self.shared.values()))

    def from_host(self, prefix: Prefix, scope: int) -> None:
        """Say that the host means the network ``scope`` by these addresses."""
        self.route(SCOPE_HOST, prefix, RouteKind.SCOPE, target_scope=scope)


def route_key(scope: int, prefix: Prefix) -> RouteKey:
    """Of a route in a scope; ``prefix`` must have no host bits."""
    return RouteKey(ROUTE_KEY_BITS + prefix.bits, scope, prefix.family, prefix.packed)


def digest(parts: Iterable[bytes]) -> str:
    """A name for some content: equal content, equal name."""
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()


def gateway_nexthop(family: int, numbers: Numbers) -> int:
    """The nexthop of the node's default gateway; `compile_node` owns its entry and edits it in place."""
    return numbers.number("nexthop", f"uplink/gateway/{family}")


def onlink_nexthop(family: int, numbers: Numbers) -> int:
    """The nexthop of destinations on the underlay's own subnets; `compile_node` owns its entry."""
    return numbers.number("nexthop", f"uplink/onlink/{family}")


def uplink_nexthop(facts: NodeFacts, gateway: Address, vlan: int = 0) -> Nexthop:
    """A nexthop on the uplink; a zero gateway stands for the packet's own destination. ``vlan``: with such a tag."""
    return Nexthop(
        kind=RouteKind.UPLINK,
        family=gateway.family,
        mtu=facts.mtu_to(gateway),
        ifindex=facts.uplink_ifindex,
        vni=vlan,
        address=gateway.packed,
        local=facts.address(gateway.family),
        mac=NO_MAC,
    )
