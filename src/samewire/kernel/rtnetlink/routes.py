"""Routes (``linux/rtnetlink.h``)."""

from __future__ import annotations

import errno
import struct

import msgspec

from samewire.errors import Invalid
from samewire.kernel.rtnetlink import codec
from samewire.kernel.rtnetlink.codec import Query, Request
from samewire.kernel.rtnetlink.families import check_address, kernel_family, show, version_of

RTM_NEWROUTE = 24
RTM_DELROUTE = 25
_RTM_GETROUTE = 26

TABLE_MAIN = 254
TABLE_LOCAL = 255
PROTOCOL = 83
SCOPE_UNIVERSE = 0
SCOPE_LINK = 253
SCOPE_HOST = 254
_SCOPE_NOWHERE = 255

_RTA_DST = 1
_RTA_OIF = 4
_RTA_GATEWAY = 5
_RTA_PRIORITY = 6
_RTA_PREFSRC = 7
_RTA_METRICS = 8
_RTA_MULTIPATH = 9
_RTA_TABLE = 15
_RTA_VIA = 18
_RTA_EXPIRES = 23
_RTAX_MTU = 2
_NO_METRICS = memoryview(b"")
_STAND_IN_S = 60  # far longer than the kernel takes, however busy the machine
_RTM_F_CLONED = 0x200
_RTNH_F_DEAD = 1
_RTNH_F_ONLINK = 4
_RTNH_F_LINKDOWN = 16
_KINDS = {"unicast": 1, "local": 2, "broadcast": 3, "anycast": 4, "multicast": 5}
_KINDS |= {"blackhole": 6, "unreachable": 7, "prohibit": 8, "throw": 9}
_KIND_NAMES = {number: name for name, number in _KINDS.items()}

_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst bits, src bits, tos, table, protocol, scope, type, flags

_RTNEXTHOP = struct.Struct("=HBBi")  # length, flags, weight - 1, interface


class Route(msgspec.Struct, frozen=True):
    """A route with one next hop. ``destination`` is all zero for the default route, ``gateway`` and ``source``
    are empty when not set, ``oif`` is 0 when there is no interface, ``mtu`` (bytes) 0 when it is the interface's."""

    family: int
    destination: bytes
    bits: int
    oif: int
    gateway: bytes
    source: bytes
    onlink: bool
    scope: int
    table: int
    protocol: int
    kind: str
    metric: int
    mtu: int = 0


def route_replace(
    destination: bytes | None,
    bits: int,
    *,
    family: int,
    oif: int | None = None,
    gateway: bytes | None = None,
    source: bytes | None = None,
    onlink: bool = False,
    table: int = TABLE_MAIN,
    kind: str = "unicast",
    metric: int = 0,
    mtu: int = 0,
    expires_s: int = 0,
) -> Request:
    """Add a route, or put it in the place of the one with the same destination, table and metric.

    ``destination`` ``None`` with ``bits`` 0 is the default route. IPv4 takes a gateway of the other IP version
    too ("via inet6"). ``mtu`` is in bytes, 0 = the interface's. The scope is the one that ``ip route`` takes: link
    without a gateway, host for local routes, else universe. An IPv6 route with ``expires_s`` (seconds) goes by itself.
    """
    scope = _default_scope(family, gateway, kind)
    head = _head(destination, bits, family, table, PROTOCOL, scope, kind, onlink)
    body = head + _attributes(destination, family, table, oif, gateway, metric)
    if source is not None:
        check_address(source, family)
        body += codec.attribute(_RTA_PREFSRC, source)
    if mtu:
        body += codec.nested(_RTA_METRICS, codec.u32(_RTAX_MTU, mtu))
    if expires_s:
        body += codec.u32(_RTA_EXPIRES, expires_s)
    operation = f"set {_words(destination, bits, family, table)}"
    return Request(RTM_NEWROUTE, codec.NLM_F_CREATE | codec.NLM_F_REPLACE, body, operation)


def unless_taken(route: Request) -> Request:
    """A :func:`route_replace` that replaces nothing: ``EEXIST``, which is success, where its place is taken."""
    flags = codec.NLM_F_CREATE | codec.NLM_F_EXCL
    return msgspec.structs.replace(route, flags=flags).tolerating(errno.EEXIST)


def route_del(
    destination: bytes | None,
    bits: int,
    *,
    family: int,
    oif: int | None = None,
    table: int = TABLE_MAIN,
    protocol: int = PROTOCOL,
    metric: int = 0,
) -> Request:
    """Delete the route; ``ESRCH`` when it is not there. A route of another protocol is not touched
    (``protocol=0``: of any)."""
    head = _head(destination, bits, family, table, protocol, _SCOPE_NOWHERE, "", False)
    body = head + _attributes(destination, family, table, oif, None, metric)
    return Request(RTM_DELROUTE, 0, body, f"delete {_words(destination, bits, family, table)}")


def own_address(ifindex: int, address: bytes) -> Request:
    """Has an interface that is up take packets to its new IPv6 address at once.

    The kernel's own route for that is made by a work queue, milliseconds after :func:`address_add` has been answered;
    until then answers to what the address sends are lost. This one stands in for it, and goes by itself.
    """
    return route_replace(
        address, 128, family=6, oif=ifindex, table=TABLE_LOCAL, kind="local", expires_s=_STAND_IN_S
    )


def own_address_del(ifindex: int, address: bytes) -> Request:
    """Takes back :func:`own_address`, if it is still there."""
    route = route_del(address, 128, family=6, oif=ifindex, table=TABLE_LOCAL)
    return route.tolerating(errno.ESRCH)


def route_dump(family: int, table: int | None = None, oif: int | None = None) -> Query[Route]:
    """The routes of one IP version, of one table or of all, by one interface (``ENODEV`` when it is gone) or by any. Of
    a multipath route the first next hop counts, which of those by one interface may be another one.
    """
    body = _RTMSG.pack(kernel_family(family), 0, 0, 0, 0, 0, 0, 0, 0)
    for kind, wanted in ((_RTA_TABLE, table), (_RTA_OIF, oif)):
        body += codec.u32(kind, wanted) if wanted is not None else b""
    return Query(_RTM_GETROUTE, body, f"list IPv{family} routes", decode_route)


def learned_dump(family: int) -> Query[Route]:
    """What the kernel has learned of the ways to single addresses, path MTUs (RFC 1191, RFC 8201) among it. Nothing
    announces it, and it goes by itself.
    """
    head = _RTMSG.pack(kernel_family(family), 0, 0, 0, 0, 0, 0, 0, _RTM_F_CLONED)
    return Query(_RTM_GETROUTE, head, f"list learned IPv{family} routes", decode_route)


def decode_route(body: memoryview) -> Route | None:
    """An RTM_NEWROUTE or RTM_DELROUTE body; ``None`` for other families. Of several next hops it is the first that
    is up, or the first.
    """
    head, found = codec.fixed(_RTMSG, body)
    family, bits, _source_bits, _tos, table, protocol, scope, kind, flags = head
    version = version_of(family)
    if version is None:
        return None
    if _RTA_MULTIPATH in found:
        found = {**found, **_first_hop(found[_RTA_MULTIPATH])}
    gateway = codec.get_bytes(found, _RTA_GATEWAY) or codec.get_bytes(found, _RTA_VIA)[2:]
    return Route(
        family=version,
        destination=codec.get_bytes(found, _RTA_DST) or bytes(4 if version == 4 else 16),
        bits=bits,
        oif=codec.get_u32(found, _RTA_OIF, 0),
        gateway=gateway,
        source=codec.get_bytes(found, _RTA_PREFSRC),
        onlink=bool(flags & _RTNH_F_ONLINK),
        scope=scope,
        table=codec.get_u32(found, _RTA_TABLE, table),
        protocol=protocol,
        kind=_KIND_NAMES.get(kind, str(kind)),
        metric=codec.get_u32(found, _RTA_PRIORITY, 0),
        mtu=codec.get_u32(codec.attributes(found.get(_RTA_METRICS, _NO_METRICS)), _RTAX_MTU, 0),
    )


def _first_hop(data: memoryview) -> dict[int, memoryview]:
    """The interface and gateway of the next hop that a multipath route goes by, as attributes of the route."""
    hops = []
    while len(data) >= _RTNEXTHOP.size:
        length, flags, _weight, _oif = _RTNEXTHOP.unpack_from(data)
        if not _RTNEXTHOP.size <= length <= len(data):
            raise codec.malformed(f"a next hop of {length} bytes in {len(data)}")
        oif = data[_RTNEXTHOP.size - 4 : _RTNEXTHOP.size]
        found = {_RTA_OIF: oif, **codec.attributes(data[_RTNEXTHOP.size : length])}
        hops.append((bool(flags & (_RTNH_F_DEAD | _RTNH_F_LINKDOWN)), found))
        data = data[(length + 3) & ~3 :]
    if not hops:
        raise codec.malformed("a multipath route without next hops")
    return min(hops, key=lambda hop: hop[0])[1]


def _default_scope(family: int, gateway: bytes | None, kind: str) -> int:
    if family == 6:
        return SCOPE_UNIVERSE  # IPv6 has no route scopes
    if kind == "local":
        return SCOPE_HOST
    return SCOPE_LINK if kind == "unicast" and gateway is None else SCOPE_UNIVERSE


def _head(
    destination: bytes | None,
    bits: int,
    family: int,
    table: int,
    protocol: int,
    scope: int,
    kind: str,
    onlink: bool,
) -> bytes:
    if destination is None:
        if bits:
            raise Invalid("bits", f"a default route has 0 bits, not {bits}")
    else:
        check_address(destination, family, bits)
    if kind and kind not in _KINDS:
        raise Invalid("kind", f"{kind!r} must be one of {', '.join(_KINDS)}")
    short_table = table if table < 256 else 0  # RTA_TABLE holds the whole number
    number = _KINDS[kind] if kind else 0
    flags = _RTNH_F_ONLINK if onlink else 0
    return _RTMSG.pack(kernel_family(family), bits, 0, 0, short_table, protocol, scope, number, flags)


def _attributes(
    destination: bytes | None, family: int, table: int, oif: int | None, gateway: bytes | None, metric: int
) -> bytes:
    attributes = [codec.u32(_RTA_TABLE, table)]
    if destination is not None:
        attributes.append(codec.attribute(_RTA_DST, destination))
    if oif is not None:
        attributes.append(codec.u32(_RTA_OIF, oif))
    if metric:
        attributes.append(codec.u32(_RTA_PRIORITY, metric))
    if gateway is not None:
        via = 4 if len(gateway) == 4 else 6
        check_address(gateway, via)
        if via == family:
            attributes.append(codec.attribute(_RTA_GATEWAY, gateway))
        else:
            attributes.append(codec.attribute(_RTA_VIA, struct.pack("=H", kernel_family(via)) + gateway))
    return b"".join(attributes)


def _words(destination: bytes | None, bits: int, family: int, table: int) -> str:
    where = f"IPv{family} default route" if destination is None else f"route {show(destination)}/{bits}"
    return where if table == TABLE_MAIN else f"{where} in table {table}"
