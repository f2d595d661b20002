"""Canonical forms of the values HCN carries as text: GUIDs, MACs, addresses, prefixes, names."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from ipaddress import ip_address, ip_network
from socket import AF_INET, inet_pton

from samewire.hcn.errors import HcnCode, fail
from samewire.hcn.policy_base import parse_ip

ZERO_GUID = "00000000-0000-0000-0000-000000000000"
MAX_NAME = 256
MAX_PATH = 4096

_GUID_VERSION_4 = 4 << 76 | 2 << 62  # RFC 9562, section 5.4
_GUID_RANDOM = 2**128 - 1 & ~(0xF << 76 | 3 << 62)
_GUID = re.compile(r"[0-9A-F]{8}-(?:[0-9A-F]{4}-){3}[0-9A-F]{12}")
is_guid = _GUID.fullmatch  # in upper case, without braces
_MAC = re.compile(r"[0-9A-F]{2}([-:]?)[0-9A-F]{2}(?:\1[0-9A-F]{2}){4}")
# Linux takes quotes and asterisks, too; in a rule of nf_tables they would end the name, and match others.
_IFNAME = re.compile(r"[^\s/:\"*\\\x00-\x1f\x7f]{1,15}")
_DOMAIN = re.compile(r"[A-Za-z0-9_.-]{1,253}")
_OPTION = re.compile(r"[\x21-\x7e]{1,255}")


def new_guid() -> str:
    """Return a new random id."""
    text = f"{int.from_bytes(os.urandom(16)) & _GUID_RANDOM | _GUID_VERSION_4:032X}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def guid(text: str, path: str) -> str:
    """Return a GUID in upper case, without braces. Raises HcnError."""
    if is_guid(text):
        return text
    plain = text.upper().removeprefix("{").removesuffix("}")
    if not is_guid(plain):
        fail(path, f"{text[:64]!r} is not a GUID", HcnCode.GUID_CONVERSION_FAILURE)
    return plain


def guid_or_new(text: str, path: str) -> str:
    """Return a GUID in upper case; a new one for nothing or the zero GUID. Raises HcnError."""
    plain = guid(text, path) if text else ZERO_GUID
    return new_guid() if plain == ZERO_GUID else plain


# What these three refuse they raise: only what is returned is remembered, and a refused text may be of any length.
@lru_cache(maxsize=4096)
def _mac(text: str) -> str:
    upper = text.upper()
    if not _MAC.fullmatch(upper):
        raise ValueError
    digits = upper.replace("-", "").replace(":", "")
    return "-".join(digits[index : index + 2] for index in range(0, 12, 2))


def mac(text: str, path: str, code: HcnCode = HcnCode.INVALID_POLICY) -> str:
    """Return a unicast MAC address with dashes, in upper case. Raises HcnError."""
    try:
        canonical = _mac(text)
    except ValueError:
        fail(path, f"{text[:64]!r} is not a MAC address such as 00-15-5D-52-C0-00", code)
    if int(canonical[1], 16) & 1 or canonical == "00-00-00-00-00-00":
        fail(path, f"{canonical} is not the MAC address of one station", code)
    return canonical


@lru_cache(maxsize=4096)
def _ip(text: str) -> str:
    if "%" in text:
        raise ValueError
    return str(parse_ip(text))


def ip(text: str, path: str) -> str:
    """Return an IP address in its shortest form. Raises HcnError(INVALID_IP)."""
    try:
        return _ip(text)
    except ValueError:
        fail(path, f"{text[:64]!r} is not an IP address", HcnCode.INVALID_IP)


def optional_ip(text: str, path: str) -> str:
    """Return an IP address in its shortest form, or "". Raises HcnError(INVALID_IP)."""
    return ip(text, path) if text else ""


@lru_cache(maxsize=4096)
def _of_a_station(canonical: str) -> bool:
    parsed = parse_ip(canonical)
    return not (parsed.is_unspecified or parsed.is_multicast or canonical == "255.255.255.255")


def station_ip(text: str, path: str) -> str:
    """Return an address that one host can have: not unspecified, not multicast, not broadcast. Raises
    HcnError.
    """
    canonical = ip(text, path)
    if not _of_a_station(canonical):
        fail(path, f"{canonical} cannot be the address of a host", HcnCode.INVALID_IP)
    return canonical


@lru_cache(maxsize=4096)
def _prefix(text: str) -> tuple[str, bool]:
    """Return a prefix with its host bits cleared, and whether there were any. Raises ValueError."""
    if "%" in text or text.count("/") > 1:
        raise ValueError
    network = ip_network(text, strict=False)
    host = text.partition("/")[0]
    return str(network), ip_address(host) != network.network_address


def _is_plain_ipv4(text: str) -> bool:
    """True for an IPv4 address or prefix that is in canonical form beyond doubt. Lists of tens of thousands
    are looked at in one go, and the general way takes ten times as long.
    """
    host, slash, length = text.partition("/")
    try:
        packed = inet_pton(AF_INET, host)
    except (OSError, ValueError):
        return False
    if not slash:
        return True
    bits = _LENGTHS.get(length)
    return bits is not None and not int.from_bytes(packed) & ((1 << 32 - bits) - 1)


_LENGTHS = {str(length): length for length in range(33)}


def prefix(text: str, path: str) -> str:
    """Return a prefix in canonical form; host bits are refused. Raises HcnError(INVALID_PREFIX)."""
    canonical, has_host_bits = _known_prefix(text, path)
    if has_host_bits:
        fail(path, f"{text} has host bits set; the prefix is {canonical}", HcnCode.INVALID_PREFIX)
    return canonical


def _known_prefix(text: str, path: str) -> tuple[str, bool]:
    try:
        return _prefix(text)
    except ValueError:
        fail(path, f"{text[:64]!r} is not a prefix such as 10.244.1.0/24", HcnCode.INVALID_PREFIX)


def destination(text: str, path: str) -> str:
    """Return where an SDN route leads, without its host bits: clients give the address of a metadata
    service with the length of its subnet. Raises HcnError(INVALID_PREFIX).
    """
    return _known_prefix(text, path)[0]


def address_or_prefix(text: str, path: str) -> str:
    """Return an item of an address list: an address stays one, a prefix loses its host bits. Raises
    HcnError.
    """
    if _is_plain_ipv4(text):
        return text
    try:
        canonical, _ = _prefix(text)
    except ValueError:
        fail(path, f"{text[:64]!r} is neither an address nor a prefix", HcnCode.INVALID_PREFIX)
    return canonical if "/" in text else ip(text, path)


def name(text: str, path: str, code: HcnCode) -> str:
    """Return a name that can be shown on one line. Raises HcnError."""
    if len(text) > MAX_NAME or not text.isprintable():
        fail(path, f"expected at most {MAX_NAME} printable characters", code)
    return text


def interface_name(text: str, path: str, code: HcnCode = HcnCode.INVALID_ENDPOINT) -> str:
    """Return a valid Linux interface name, or "". Raises HcnError."""
    if text and (not _IFNAME.fullmatch(text) or text in (".", "..") or len(text.encode()) > 15):
        what = 'at most 15 bytes, none of / : " * \\ or space'
        fail(path, f"{text[:64]!r} is not an interface name ({what})", code)
    return text


def netns_path(text: str, path: str) -> str:
    """Return the absolute path of a network namespace file, or "". Raises HcnError."""
    if text and (not text.startswith("/") or len(text) >= MAX_PATH or not text.isprintable()):
        fail(path, "expected an absolute path", HcnCode.INVALID_JSON)
    return text


def domain(text: str, path: str) -> str:
    """Return a DNS domain fit for resolv.conf. Raises HcnError."""
    if not _DOMAIN.fullmatch(text):
        fail(path, f"{text[:64]!r} is not a DNS domain", HcnCode.INVALID_JSON)
    return text


def resolver_option(text: str, path: str) -> str:
    """Return a resolver option fit for resolv.conf. Raises HcnError."""
    if not _OPTION.fullmatch(text):
        fail(path, f"{text[:64]!r} is not a resolver option", HcnCode.INVALID_JSON)
    return text
