"""IP addresses and prefixes as the switch stores them.

An address is 16 bytes for both families; an IPv4 address stands in the first four and the rest is zero
(``bpf/layout.h``). Texts repeat a lot (the same exceptions and gateways on every pod), so parsing is cached.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import Final

import msgspec

from samewire.errors import Invalid
from samewire.inet import packed_ipv4

IPV4: Final = 4
IPV6: Final = 6
ADDRESS_BYTES: Final = 16
ZERO: Final = bytes(ADDRESS_BYTES)
NO_MAC: Final = bytes(6)
_LOOPBACK6: Final = bytes(15) + b"\x01"

_PAD: Final = bytes(12)
_OCTET: Final = "(0|[1-9][0-9]{0,2})"
_PLAIN_IPV4: Final = re.compile(rf"{_OCTET}\.{_OCTET}\.{_OCTET}\.{_OCTET}(?:/{_OCTET})?")
_ALL_ONES: Final = (1 << 128) - 1


def is_loopback(family: int, packed: bytes) -> bool:
    """Whether an address is 127.0.0.0/8's or ::1."""
    return packed[0] == 127 if family == IPV4 else packed == _LOOPBACK6


def address_bits(family: int) -> int:
    """The number of bits of an address: 32 or 128."""
    return 32 if family == IPV4 else 128


class Address(msgspec.Struct, frozen=True, order=True, gc=False):
    """One IP address: family 4 or 6 and its 16 bytes."""

    family: int
    packed: bytes

    def __str__(self) -> str:
        return address_text(self.family, self.packed)

    @property
    def host_prefix(self) -> Prefix:
        """The /32 or /128 of this address."""
        return Prefix(self.family, self.packed, address_bits(self.family))


class Prefix(msgspec.Struct, frozen=True, order=True, gc=False):
    """An IP prefix, or an interface address with its prefix length (then ``packed`` has host bits)."""

    family: int
    packed: bytes
    bits: int

    def __str__(self) -> str:
        return f"{address_text(self.family, self.packed)}/{self.bits}"

    @property
    def address(self) -> Address:
        """The address without the length."""
        return Address(self.family, self.packed)

    @property
    def network(self) -> Prefix:
        """The same prefix with its host bits cleared."""
        return Prefix(self.family, masked(self.packed, self.bits), self.bits)

    @property
    def broadcast(self) -> Prefix:
        """The address of all machines of an IPv4 prefix: its host bits set."""
        number = int.from_bytes(self.packed[:4], "big") | (1 << (32 - self.bits)) - 1
        return Prefix(IPV4, _padded(number.to_bytes(4, "big")), 32)

    def __contains__(self, other: Address | Prefix) -> bool:
        if self.family != other.family or (isinstance(other, Prefix) and other.bits < self.bits):
            return False
        return masked(other.packed, self.bits) == masked(self.packed, self.bits)


def masked(packed: bytes, bits: int) -> bytes:
    """The address with everything behind its first ``bits`` bits cleared."""
    mask = _ALL_ONES ^ (_ALL_ONES >> bits)
    return (int.from_bytes(packed, "big") & mask).to_bytes(ADDRESS_BYTES, "big")


@lru_cache(maxsize=65536)
def address_text(family: int, packed: bytes) -> str:
    """The usual text form of an address (RFC 5952 for IPv6)."""
    if family == IPV4:
        return ".".join(str(byte) for byte in packed[:4])
    return str(ipaddress.IPv6Address(packed))


@lru_cache(maxsize=65536)
def parse_address(text: str, path: str = "") -> Address:
    """An address from its text.

    Raises ``Invalid`` (naming ``path``) when the text is no IP address.
    """
    packed = packed_ipv4(text)
    if packed is not None:
        return Address(IPV4, packed + _PAD)
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        raise Invalid(path, f"{text!r} is not an IP address") from None
    return Address(parsed.version, _padded(parsed.packed))


@lru_cache(maxsize=65536)
def parse_interface(text: str, path: str = "") -> Prefix:
    """An address with a prefix length, host bits kept; a bare one gets /32 or /128. Raises ``Invalid``."""
    plain = _PLAIN_IPV4.fullmatch(text)
    if plain is not None:  # a twentieth of the general way: lists hold tens of thousands
        *octets, bits = (int(group or "32") for group in plain.groups())
        if max(octets) < 256 and bits <= 32:
            return Prefix(IPV4, bytes(octets) + _PAD, bits)
    try:
        parsed = ipaddress.ip_interface(text)
    except ValueError:
        raise Invalid(path, f"{text!r} is not an IP address or prefix") from None
    return Prefix(parsed.version, _padded(parsed.packed), parsed.network.prefixlen)


@lru_cache(maxsize=65536)
def parse_prefix(text: str, path: str = "") -> Prefix:
    """A prefix with its host bits cleared (real clients send 10.0.0.5/24); a bare address is a /32 or /128.

    Raises ``Invalid`` when the text is neither.
    """
    return parse_interface(text, path).network


@lru_cache(maxsize=65536)
def parse_mac(text: str, path: str = "") -> bytes:
    """Six bytes from ``00-15-5D-52-C0-00`` or the colon form. Raises ``Invalid``."""
    parts = text.replace(":", "-").split("-")
    try:
        packed = bytes(int(part, 16) for part in parts if len(part) == 2)
    except ValueError:
        packed = b""
    if len(parts) != 6 or len(packed) != 6:
        raise Invalid(path, f"{text!r} is not a MAC address of six bytes")
    return packed


def mac_text(mac: bytes) -> str:
    """The HNS form: upper case with dashes."""
    return mac.hex("-").upper()


def _padded(packed: bytes) -> bytes:
    return packed + _PAD if len(packed) == 4 else packed
