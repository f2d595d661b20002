"""The configuration of host-local and its order of allocation. Pure.

The rules are those of the reference plugin: a network has range sets, an attachment gets one address of each;
a set is a list of ranges of one family, walked round robin from the address behind the last one given.
Addresses are whole numbers here.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import combinations

import msgspec
from msgspec import Struct

from samewire.cni.conf import NetConf
from samewire.cni.fields import Fields, address, family
from samewire.cni.result import Route, at_least, decode_result
from samewire.hcn.policy_base import parse_ip

DEFAULT_DATA_DIR = "/var/lib/cni/networks"


def _number(text: str) -> int:
    return int(parse_ip(text))


class Range(Struct, frozen=True):
    """Addresses ``start`` to ``end`` (both included) of a subnet; the gateway is never given out."""

    family: int
    network: int
    prefix_length: int
    start: int
    end: int
    gateway: str

    def __contains__(self, number: int) -> bool:
        return self.start <= number <= self.end

    def __str__(self) -> str:
        return f"{to_text(self.family, self.start)}-{to_text(self.family, self.end)}"


class RangeSet(Struct, frozen=True):
    """Ranges of one family."""

    ranges: tuple[Range, ...]

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.ranges[0].family

    def range_for(self, text: str) -> Range | None:
        """Return the range that has an address, or None."""
        if family(text) != self.family:
            return None
        number = _number(text)
        return next((item for item in self.ranges if number in item), None)

    def candidates(self, last: str) -> Iterator[tuple[str, Range]]:
        """Yield the addresses to try, each once: from the one behind ``last`` round to it.

        An address that is in no range counts as none: then it starts with the first.
        """
        start = self.range_for(last) if last else None
        if start is None:
            spans = [(item, item.start, item.end) for item in self.ranges]
        else:
            number, at = _number(last), self.ranges.index(start)
            others = (*self.ranges[at + 1 :], *self.ranges[:at])
            spans = [
                (start, number + 1, start.end),
                *((item, item.start, item.end) for item in others),
                (start, start.start, number),
            ]
        for item, first, final in spans:
            gateway = _number(item.gateway)
            for number in range(first, final + 1):
                if number != gateway:
                    yield to_text(item.family, number), item

    def __str__(self) -> str:
        return ",".join(str(item) for item in self.ranges)


class HostLocalConf(Struct, frozen=True):
    """What host-local reads of a configuration. ``resolv_conf`` "" = none."""

    directory: str
    sets: tuple[RangeSet, ...]
    routes: tuple[Route, ...]
    resolv_conf: str


def decode_directory(conf: NetConf) -> str:
    """Return the directory of a network's addresses. Raises CniError(INVALID_CONFIG)."""
    ipam = conf.fields.child("ipam")
    data_dir = ipam.text("dataDir") or DEFAULT_DATA_DIR
    if not data_dir.startswith("/") or "\0" in data_dir:
        ipam.fail("dataDir", f"{data_dir[:64]!r} is not an absolute path")
    return f"{data_dir.rstrip('/')}/{conf.name}"


@lru_cache(maxsize=64)
def decode_host_local(conf: NetConf) -> HostLocalConf:
    """Return the configuration of host-local. Raises CniError(INVALID_CONFIG)."""
    runtime = conf.fields.child("runtimeConfig")
    relevant = {"ipam": conf.fields.get("ipam"), "runtimeConfig": {"ipRanges": runtime.get("ipRanges")}}
    return _decode(conf.cni_version, conf.name, msgspec.json.encode(relevant))


# The pods of a node have one configuration, but for what else is in runtimeConfig; reading it takes longer than
# giving out an address.
@lru_cache(maxsize=64)
def _decode(version: str, name: str, relevant: bytes) -> HostLocalConf:
    conf = NetConf(version, name, "host-local", msgspec.json.decode(relevant))
    ipam = conf.fields.child("ipam")
    sets = _decode_sets(conf)
    if not sets:
        ipam.fail("ranges", "no IP ranges specified")
    families = [item.family for item in sets]
    if len(set(families)) < len(families) and not at_least(version, "0.3.0"):
        ipam.fail("ranges", f"CNI {version} does not support more than 1 address per family")
    for one, two in combinations(range(len(sets)), 2):
        if any(overlap(a, b) for a in sets[one].ranges for b in sets[two].ranges):
            ipam.fail("ranges", f"range set {one} overlaps with {two}")
    routes = decode_result({"routes": ipam.get("routes")}, "1.1.0", ipam.path).routes
    return HostLocalConf(decode_directory(conf), sets, routes, ipam.text("resolvConf"))


def overlap(one: Range, two: Range) -> bool:
    """Whether two ranges have an address in common."""
    return one.family == two.family and one.start <= two.end and two.start <= one.end


def to_text(version: int, number: int) -> str:
    """Return an address in its shortest form."""
    return str(IPv4Address(number) if version == 4 else IPv6Address(number))


def _decode_sets(conf: NetConf) -> tuple[RangeSet, ...]:
    """Return the sets in the order of the reference plugin: runtimeConfig's, the plain subnet's, ranges'."""
    ipam = conf.fields.child("ipam")
    found = [
        _decode_set(conf.fields.child("runtimeConfig"), "ipRanges", index, item)
        for index, item in enumerate(conf.fields.child("runtimeConfig").lists("ipRanges"))
    ]
    if ipam.text("subnet"):
        found.append(RangeSet((_decode_range(ipam),)))
    found += [_decode_set(ipam, "ranges", index, item) for index, item in enumerate(ipam.lists("ranges"))]
    return tuple(found)


def _decode_set(fields: Fields, key: str, index: int, items: list[Fields]) -> RangeSet:
    name = f"{key}[{index}]"
    if not items:
        fields.fail(name, "empty range set")
    ranges = tuple(_decode_range(item) for item in items)
    if len({item.family for item in ranges}) > 1:
        fields.fail(name, "mixed address families")
    for one, two in combinations(ranges, 2):
        if overlap(one, two):
            fields.fail(name, f"subnets {one} and {two} overlap")
    return RangeSet(ranges)


def _decode_range(fields: Fields) -> Range:
    network = ip_network(fields.parsed("subnet", _subnet))
    if network.prefixlen > network.max_prefixlen - 2:
        fields.fail("subnet", f"network {network} too small to allocate from")
    base, broadcast = int(network.network_address), int(network.broadcast_address)
    # IPv4 keeps the broadcast address back; an explicit rangeEnd may still name it, as in the reference plugin.
    limits = {"rangeStart": base + 1, "rangeEnd": broadcast - (1 if network.version == 4 else 0)}
    for name in limits:
        text = fields.parsed(name, address, "")
        if text and (family(text) != network.version or ip_address(text) not in network):
            fields.fail(name, f"{text} not in network {network}")
        limits[name] = _number(text) if text else limits[name]
    start, end = limits.values()
    if start > end:
        fields.fail("rangeStart", f"the range would start behind its end {to_text(network.version, end)}")
    gateway = fields.parsed("gateway", address, "") or to_text(network.version, base + 1)
    if family(gateway) != network.version:
        fields.fail("gateway", f"{gateway} and subnet {network} differ in IP version")
    return Range(network.version, base, network.prefixlen, start, end, gateway)


def _subnet(text: str) -> str:
    """Return a subnet such as 10.1.0.0/24. Raises ValueError, also for host bits."""
    network = ip_network(text) if "/" in text and "%" not in text else None
    if network is None or (isinstance(network, IPv6Network) and network.network_address.ipv4_mapped):
        raise ValueError(f"{text[:64]!r} is not a subnet such as 10.1.0.0/24")
    return str(network)
