"""Neighbours, proxies for them, and the interface's own unicast filter (``linux/neighbour.h``)."""

from __future__ import annotations

import struct

import msgspec

from samewire.errors import Invalid
from samewire.kernel.rtnetlink import codec
from samewire.kernel.rtnetlink.codec import Query, Request
from samewire.kernel.rtnetlink.families import check_address, kernel_family, show
from samewire.kernel.rtnetlink.routes import PROTOCOL

_RTM_NEWNEIGH = 28
_RTM_DELNEIGH = 29
_RTM_GETNEIGH = 30

_NDA_DST = 1
_NDA_LLADDR = 2
_NDA_PROTOCOL = 12
_NUD_PERMANENT = 0x80
_NTF_SELF = 0x02
_NTF_PROXY = 0x08
_AF_BRIDGE = 7

_NDMSG = struct.Struct("=BxxxiHBB")  # family, ifindex, state, flags, type
_REPLACE = codec.NLM_F_CREATE | codec.NLM_F_REPLACE


class FdbEntry(msgspec.Struct, frozen=True):
    """A link address that an interface takes in besides its own."""

    ifindex: int
    mac: bytes
    state: int
    flags: int


class Proxy(msgspec.Struct, frozen=True):
    """An address for which an interface listens to solicitations. ``protocol``: who has made it, 0 = not said."""

    ifindex: int
    address: bytes
    protocol: int


def neighbour_replace(ifindex: int, address: bytes, mac: bytes, *, family: int) -> Request:
    """A permanent ARP or ND entry, in the place of any other for the address."""
    body = _neighbour(ifindex, address, family, _NUD_PERMANENT) + _mac(mac)
    return Request(_RTM_NEWNEIGH, _REPLACE, body, f"set neighbour {show(address)} on interface {ifindex}")


def fdb_add_self(ifindex: int, mac: bytes) -> Request:
    """Let an interface take in frames for one more link address; ``EEXIST`` when it does already."""
    body = _NDMSG.pack(_AF_BRIDGE, ifindex, _NUD_PERMANENT, _NTF_SELF, 0) + _mac(mac)
    return Request(
        _RTM_NEWNEIGH, codec.NLM_F_CREATE | codec.NLM_F_EXCL, body, _fdb_words("add", ifindex, mac)
    )


def fdb_del_self(ifindex: int, mac: bytes) -> Request:
    """Undo :func:`fdb_add_self`; ``ENOENT`` when the address is not there."""
    body = _NDMSG.pack(_AF_BRIDGE, ifindex, _NUD_PERMANENT, _NTF_SELF, 0) + _mac(mac)
    return Request(_RTM_DELNEIGH, 0, body, _fdb_words("delete", ifindex, mac))


def fdb_dump(ifindex: int | None = None) -> Query[FdbEntry]:
    """The link addresses taken in, of one interface or of all (multicast groups are among them)."""

    def decode(body: memoryview) -> FdbEntry | None:
        (_family, index, state, flags, _type), found = codec.fixed(_NDMSG, body)
        if ifindex not in (None, index):
            return None
        return FdbEntry(index, codec.get_bytes(found, _NDA_LLADDR), state, flags)

    body = _NDMSG.pack(_AF_BRIDGE, 0, 0, 0, 0)
    return Query(_RTM_GETNEIGH, body, "list link addresses", decode)


def proxy_add(ifindex: int, address: bytes, *, family: int) -> Request:
    """Have an interface listen to the solicitations for an address; one that is there becomes ours."""
    body = _neighbour(ifindex, address, family, _NUD_PERMANENT, _NTF_PROXY)
    body += codec.attribute(_NDA_PROTOCOL, bytes([PROTOCOL]))
    words = f"add proxy for {show(address)} on interface {ifindex}"
    return Request(_RTM_NEWNEIGH, codec.NLM_F_CREATE, body, words)


def proxy_del(ifindex: int, address: bytes, *, family: int) -> Request:
    """Undo :func:`proxy_add`; ``ENOENT`` when it is not there."""
    body = _neighbour(ifindex, address, family, 0, _NTF_PROXY)
    return Request(_RTM_DELNEIGH, 0, body, f"delete proxy for {show(address)} on interface {ifindex}")


def proxy_dump(family: int) -> Query[Proxy]:
    """The proxies on all interfaces."""
    body = _NDMSG.pack(kernel_family(family), 0, 0, _NTF_PROXY, 0)
    return Query(_RTM_GETNEIGH, body, "list neighbour proxies", _decode_proxy)


def proxy_get(ifindex: int, address: bytes, *, family: int) -> Query[Proxy]:
    """One proxy, for :meth:`Netlink.get`."""
    words = f"read proxy for {show(address)} on interface {ifindex}"
    body = _neighbour(ifindex, address, family, 0, _NTF_PROXY)
    return Query(_RTM_GETNEIGH, body, words, _decode_proxy, show(address))


def _decode_proxy(body: memoryview) -> Proxy | None:
    (_family, index, _state, flags, _type), found = codec.fixed(_NDMSG, body)
    if not flags & _NTF_PROXY:
        return None
    protocol = codec.get_bytes(found, _NDA_PROTOCOL) or b"\0"
    return Proxy(index, codec.get_bytes(found, _NDA_DST), protocol[0])


def _neighbour(ifindex: int, address: bytes, family: int, state: int, flags: int = 0) -> bytes:
    check_address(address, family)
    head = _NDMSG.pack(kernel_family(family), ifindex, state, flags, 0)
    return head + codec.attribute(_NDA_DST, address)


def _mac(mac: bytes) -> bytes:
    if len(mac) != 6:
        raise Invalid("mac", f"{len(mac)} bytes are no Ethernet address")
    return codec.attribute(_NDA_LLADDR, mac)


def _fdb_words(verb: str, ifindex: int, mac: bytes) -> str:
    return f"{verb} link address {mac.hex(':')} on interface {ifindex}"
