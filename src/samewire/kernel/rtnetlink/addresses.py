"""Interface addresses (``linux/if_addr.h``)."""

from __future__ import annotations

import struct

import msgspec

from samewire.kernel.rtnetlink import codec
from samewire.kernel.rtnetlink.codec import Query, Request
from samewire.kernel.rtnetlink.families import check_address, kernel_family, show, version_of

RTM_NEWADDR = 20
RTM_DELADDR = 21
_RTM_GETADDR = 22

_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_IFA_FLAGS = 8
_IFA_F_NODAD = 0x02
_IFA_F_NOPREFIXROUTE = 0x200

_IFADDR = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, ifindex


class Address(msgspec.Struct, frozen=True):
    """An address of an interface; ``scope`` is 0 (global), 253 (link) or 254 (host)."""

    ifindex: int
    family: int
    address: bytes
    bits: int
    scope: int
    flags: int


def address_add(
    ifindex: int,
    address: bytes,
    bits: int,
    *,
    family: int,
    noprefixroute: bool = False,
) -> Request:
    """Give an interface an address; an existing one is brought to these flags.

    ``noprefixroute``: the kernel makes no route to the subnet. An IPv6 address is usable at once, without duplicate
    address detection.
    """
    flags = _IFA_F_NOPREFIXROUTE if noprefixroute else 0
    if family == 6:
        flags |= _IFA_F_NODAD
    body = _body(ifindex, address, bits, family) + codec.u32(_IFA_FLAGS, flags)
    operation = f"add address {show(address)}/{bits} to interface {ifindex}"
    return Request(RTM_NEWADDR, codec.NLM_F_CREATE | codec.NLM_F_REPLACE, body, operation)


def address_del(ifindex: int, address: bytes, bits: int, *, family: int) -> Request:
    """Take an address away; ``EADDRNOTAVAIL`` when it is not there."""
    operation = f"delete address {show(address)}/{bits} from interface {ifindex}"
    return Request(RTM_DELADDR, 0, _body(ifindex, address, bits, family), operation)


def address_dump(ifindex: int | None = None) -> Query[Address]:
    """The addresses of both families, of one interface or of all."""

    def decode(body: memoryview) -> Address | None:
        address = decode_address(body)
        return address if address is not None and ifindex in (None, address.ifindex) else None

    # The kernel can filter by index too, but then fails for an index that is gone; an empty answer is wanted.
    return Query(_RTM_GETADDR, _IFADDR.pack(0, 0, 0, 0, 0), "list addresses", decode)


def decode_address(body: memoryview) -> Address | None:
    """An RTM_NEWADDR or RTM_DELADDR body; ``None`` for other families than IPv4 and IPv6."""
    (family, bits, short_flags, scope, ifindex), found = codec.fixed(_IFADDR, body)
    version = version_of(family)
    if version is None:
        return None
    # IFA_LOCAL is the own address, IFA_ADDRESS the far one, on point-to-point links; IPv6 has often only the latter.
    address = codec.get_bytes(found, _IFA_LOCAL) or codec.get_bytes(found, _IFA_ADDRESS)
    flags = codec.get_u32(found, _IFA_FLAGS, short_flags)
    return Address(ifindex, version, address, bits, scope, flags)


def _body(ifindex: int, address: bytes, bits: int, family: int) -> bytes:
    check_address(address, family, bits)
    head = _IFADDR.pack(kernel_family(family), bits, 0, 0, ifindex)
    return head + codec.attribute(_IFA_LOCAL, address) + codec.attribute(_IFA_ADDRESS, address)
