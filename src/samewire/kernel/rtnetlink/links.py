"""Network interfaces (``linux/if_link.h``, ``linux/veth.h``)."""

from __future__ import annotations

import struct
import sys

import msgspec

from samewire.errors import Invalid
from samewire.kernel.rtnetlink import codec
from samewire.kernel.rtnetlink.codec import Query, Request

RTM_NEWLINK = 16
RTM_DELLINK = 17
_RTM_GETLINK = 18
_RTM_SETLINK = 19

IFF_UP = 0x1
_IFF_NOARP = 0x80

_IFLA_ADDRESS = 1
_IFLA_IFNAME = 3
_IFLA_MTU = 4
_IFLA_LINK = 5
_IFLA_LINKINFO = 18
_IFLA_IFALIAS = 20
_IFLA_STATS64 = 23
_IFLA_GROUP = 27
_IFLA_NET_NS_FD = 28
_IFLA_NUM_TX_QUEUES = 31
_IFLA_NUM_RX_QUEUES = 32
_IFLA_LINK_NETNSID = 37
_IFLA_INFO_KIND = 1
_IFLA_INFO_DATA = 2
_VETH_INFO_PEER = 1
_IFLA_VLAN_ID = 1
_IFLA_VXLAN_LEARNING = 7
_IFLA_VXLAN_PORT = 15
_IFLA_VXLAN_UDP_ZERO_CSUM6_RX = 20
_IFLA_VXLAN_COLLECT_METADATA = 25

_IFINFO = struct.Struct("=BxHiII")  # family, device type, index, flags, change mask
_STATS64 = struct.Struct("=8Q")  # rx/tx packets, rx/tx bytes, rx/tx errors, rx/tx dropped
_CREATE = codec.NLM_F_CREATE | codec.NLM_F_EXCL
_NO_INTERFACE = _IFINFO.pack(0, 0, 0, 0, 0)
_ONE_QUEUE = (codec.u32(_IFLA_NUM_TX_QUEUES, 1), codec.u32(_IFLA_NUM_RX_QUEUES, 1))


class LinkStats(msgspec.Struct, frozen=True):
    """Counters since the interface was made."""

    rx_packets: int = 0
    tx_packets: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0
    rx_dropped: int = 0
    tx_dropped: int = 0
    tx_errors: int = 0


class Link(msgspec.Struct, frozen=True):
    """An interface. ``peer_ifindex`` (0: none) is the other end of a veth, in the namespace with the local id
    ``peer_netnsid`` (-1: the same namespace). ``vlan``: the 802.1Q tag of a VLAN's interface (0: it is none)."""

    ifindex: int
    name: str
    mac: bytes
    mtu: int
    flags: int
    up: bool
    kind: str
    group: int
    alias: str
    peer_ifindex: int
    peer_netnsid: int
    stats: LinkStats
    vlan: int = 0


def veth_add(
    name: str,
    peer_name: str,
    *,
    peer_netns_fd: int | None = None,
    mac: bytes | None = None,
    peer_mac: bytes | None = None,
    mtu: int | None = None,
    peer_mtu: int | None = None,
    group: int = 0,
    peer_group: int = 0,
    up: bool = False,
) -> Request:
    """A pair of interfaces. Fails with ``EEXIST`` when a name is taken.

    Each end has one queue: by default it would have one a CPU, which a veth without XDP has no use for, and the
    pair would take 1.6 times as long to make on two CPUs.

    Two things need a :func:`link_set` afterwards: the alias, which the kernel ignores at creation, and setting
    the peer up, which it refuses (``ENOTCONN``: it configures the peer before it joins the two).
    """
    peer = [*_properties(peer_name, peer_mac, peer_mtu, peer_group), *_ONE_QUEUE]
    if peer_netns_fd is not None:
        peer.append(codec.u32(_IFLA_NET_NS_FD, peer_netns_fd))
    data = codec.nested(_VETH_INFO_PEER, _NO_INTERFACE, *peer)
    return _add("veth", name, [*_properties(name, mac, mtu, group), *_ONE_QUEUE], data, up)


def vxlan_external_add(
    name: str, *, port: int, mac: bytes | None = None, mtu: int | None = None, group: int = 0
) -> Request:
    """The one VXLAN interface whose tunnel header is set and read by programs ("external").

    It learns nothing and takes IPv6 packets without UDP checksum, as RFC 6935 allows. Fails with ``EEXIST``
    when the name is taken or another external interface of the namespace has the port.
    """
    data = b"".join(
        [
            codec.u8(_IFLA_VXLAN_COLLECT_METADATA, 1),
            codec.u8(_IFLA_VXLAN_LEARNING, 0),
            codec.u8(_IFLA_VXLAN_UDP_ZERO_CSUM6_RX, 1),
            codec.be16(_IFLA_VXLAN_PORT, port),
        ]
    )
    return _add("vxlan", name, _properties(name, mac, mtu, group), data, up=False)


def link_set(
    link: int | str,
    *,
    up: bool | None = None,
    mtu: int | None = None,
    mac: bytes | None = None,
    new_name: str | None = None,
    netns_fd: int | None = None,
    group: int | None = None,
    alias: str | None = None,
    arp: bool | None = None,
) -> Request:
    """Change what is given and nothing else. A new name needs the interface given by its index.

    Raises Invalid.
    """
    flags = change = 0
    if up is not None:
        flags, change = flags | (IFF_UP if up else 0), change | IFF_UP
    if arp is not None:
        flags, change = flags | (0 if arp else _IFF_NOARP), change | _IFF_NOARP
    attributes: list[bytes] = []
    if new_name is not None:
        if isinstance(link, str):
            raise Invalid("new_name", f"renaming {link!r} needs its interface index")
        attributes.append(codec.interface_name(_IFLA_IFNAME, new_name))
    if mtu is not None:
        attributes.append(codec.u32(_IFLA_MTU, mtu))
    if mac is not None:
        attributes.append(codec.attribute(_IFLA_ADDRESS, mac))
    if netns_fd is not None:
        attributes.append(codec.u32(_IFLA_NET_NS_FD, netns_fd))
    if group is not None:
        attributes.append(codec.u32(_IFLA_GROUP, group))
    if alias is not None:
        attributes.append(codec.attribute(_IFLA_IFALIAS, alias.encode()))
    body = _select(link, flags, change) + b"".join(attributes)
    return Request(_RTM_SETLINK, 0, body, f"change interface {link}")


def link_del(link: int | str) -> Request:
    """Remove an interface (a veth goes with its peer). Takes ~25 ms each: for many use :func:`link_del_group`."""
    return Request(RTM_DELLINK, 0, _select(link), f"delete interface {link}")


def link_del_group(group: int) -> Request:
    """Remove all interfaces of a group at once; ``ENODEV`` when there are none. Raises Invalid."""
    if group == 0:
        raise Invalid("group", "0 is the group of every unmarked interface")
    return Request(
        RTM_DELLINK, 0, _ifinfo() + codec.u32(_IFLA_GROUP, group), f"delete interfaces of group {group}"
    )


def link_get(link: int | str) -> Query[Link]:
    """One interface, for :meth:`Netlink.get`."""
    return Query(_RTM_GETLINK, _select(link), f"read interface {link}", decode_link, str(link))


def link_settle(link: int | str) -> Query[bool]:
    """Has the kernel get to an interface's carrier now, as every question about it does since Linux 6.8; true."""
    return Query(_RTM_GETLINK, _select(link), f"read interface {link}", lambda _: True, str(link))


def link_dump() -> Query[Link]:
    """All interfaces of the namespace."""
    return Query(_RTM_GETLINK, _ifinfo(), "list interfaces", decode_link)


def decode_link(body: memoryview) -> Link:
    """An RTM_NEWLINK or RTM_DELLINK body."""
    (_family, _type, ifindex, flags, _change), found = codec.fixed(_IFINFO, body)
    info = codec.attributes(found.get(_IFLA_LINKINFO, memoryview(b"")))
    counters = found.get(_IFLA_STATS64, memoryview(b""))
    stats = LinkStats()
    if len(counters) >= _STATS64.size:
        rx, tx, rx_bytes, tx_bytes, _, tx_errors, rx_dropped, tx_dropped = _STATS64.unpack_from(counters)
        stats = LinkStats(rx, tx, rx_bytes, tx_bytes, rx_dropped, tx_dropped, tx_errors)
    netnsid = codec.get_u32(found, _IFLA_LINK_NETNSID, 0xFFFFFFFF)
    return Link(
        ifindex=ifindex,
        name=codec.get_text(found, _IFLA_IFNAME),
        mac=codec.get_bytes(found, _IFLA_ADDRESS),
        mtu=codec.get_u32(found, _IFLA_MTU, 0),
        flags=flags,
        up=bool(flags & IFF_UP),
        kind=codec.get_text(info, _IFLA_INFO_KIND),
        group=codec.get_u32(found, _IFLA_GROUP, 0),
        alias=codec.get_text(found, _IFLA_IFALIAS),
        peer_ifindex=codec.get_u32(found, _IFLA_LINK, 0),
        peer_netnsid=-1 if netnsid == 0xFFFFFFFF else netnsid,
        stats=stats,
        vlan=_vlan(info),
    )


def _vlan(info: dict[int, memoryview]) -> int:
    if codec.get_text(info, _IFLA_INFO_KIND) != "vlan":
        return 0
    data = codec.attributes(info.get(_IFLA_INFO_DATA, memoryview(b"")))
    return int.from_bytes(codec.get_bytes(data, _IFLA_VLAN_ID), sys.byteorder)


def decode_ends(body: memoryview) -> tuple[int, int]:
    """The indexes of a veth and of its other end, in an RTM_NEWLINK body."""
    if len(body) < _IFINFO.size:
        raise codec.malformed(f"body of {len(body)} bytes where {_IFINFO.size} are due")
    return _IFINFO.unpack_from(body)[2], codec.first_u32(body, _IFINFO.size, _IFLA_LINK, 0)


def _add(kind: str, name: str, properties: list[bytes], data: bytes, up: bool) -> Request:
    info = codec.nested(
        _IFLA_LINKINFO, codec.text(_IFLA_INFO_KIND, kind), codec.nested(_IFLA_INFO_DATA, data)
    )
    head = _ifinfo(flags=IFF_UP if up else 0, change=IFF_UP)
    return Request(RTM_NEWLINK, _CREATE, head + b"".join(properties) + info, f"create {kind} {name}")


def _properties(name: str, mac: bytes | None, mtu: int | None, group: int) -> list[bytes]:
    attributes = [codec.interface_name(_IFLA_IFNAME, name)]
    if mac is not None:
        attributes.append(codec.attribute(_IFLA_ADDRESS, mac))
    if mtu is not None:
        attributes.append(codec.u32(_IFLA_MTU, mtu))
    if group:
        attributes.append(codec.u32(_IFLA_GROUP, group))
    return attributes


def _ifinfo(ifindex: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return _IFINFO.pack(0, 0, ifindex, flags, change)


def _select(link: int | str, flags: int = 0, change: int = 0) -> bytes:
    if isinstance(link, int):
        if link <= 0:
            raise Invalid("ifindex", f"{link} is no interface index")
        return _ifinfo(link, flags, change)
    return _ifinfo(0, flags, change) + codec.interface_name(_IFLA_IFNAME, link)
