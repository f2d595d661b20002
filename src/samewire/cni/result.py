"""CNI results: decoded from any version of the specification, encoded to any.

Inside, a result has the shape of CNI 1.1.0. Older versions lack parts of it: 1.0.0 the MTU of interfaces
and all of a route but ``dst`` and ``gw``; 0.3.0 to 0.4.0 in addition want ``version`` beside each address;
0.1.0 and 0.2.0 know one address of each family (``ip4``, ``ip6``) with its routes, and no interfaces.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from samewire.cni.errors import CniCode, CniError
from samewire.cni.fields import Fields, address, cidr, family, prefix

SUPPORTED_VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""The versions of the CNI specification, oldest first."""

LATEST = SUPPORTED_VERSIONS[-1]
IMPLIED_VERSION = "0.1.0"
"""What a configuration without ``cniVersion`` means."""

_FLAT = frozenset(SUPPORTED_VERSIONS[:2])
_WITH_IP_VERSION = frozenset(SUPPORTED_VERSIONS[2:5])
_ROUTE_NUMBERS = ("mtu", "advmss", "priority", "table", "scope")
_U32 = 2**32 - 1


class Dns(msgspec.Struct, frozen=True):
    """Resolver settings: nameservers in order, the local domain, the search list, resolver options."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.nameservers or self.domain or self.search or self.options)


class Route(msgspec.Struct, frozen=True):
    """A route of the container. ``gw`` "" = the gateway of the addresses' network; None = not given."""

    dst: str
    gw: str = ""
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


class Interface(msgspec.Struct, frozen=True):
    """An interface that a plugin made; ``sandbox`` is the network namespace's file, "" on the host."""

    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    socket_path: str = ""
    pci_id: str = ""


class IpConfig(msgspec.Struct, frozen=True):
    """An address with its prefix length ("10.1.0.5/24"); ``interface`` is an index into the interfaces."""

    address: str
    gateway: str = ""
    interface: int | None = None


class Result(msgspec.Struct, frozen=True):
    """What ADD returns, and prevResult says, in the shape of CNI 1.1.0."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IpConfig, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = Dns()


def decode_result(value: Any, version: str, path: str) -> Result:
    """Return the result in a parsed JSON value; ``version`` counts where it names none itself.

    ``path`` is the key it stands under, for messages. Raises CniError(INVALID_CONFIG).
    """
    fields = Fields(value, path)
    version = fields.text("cniVersion") or version
    if version not in SUPPORTED_VERSIONS:
        fields.fail("cniVersion", f"{version!r:.40} is not a version of CNI that Samewire knows")
    if version in _FLAT:
        return _decode_flat(fields)
    interfaces = tuple(_decode_interface(item) for item in fields.objects("interfaces"))
    return Result(
        interfaces,
        tuple(_decode_ip(item, len(interfaces)) for item in fields.objects("ips")),
        tuple(_decode_route(item) for item in fields.objects("routes")),
        decode_dns(fields.child("dns")),
    )


def decode_dns(fields: Fields) -> Dns:
    """Return the resolver settings of a ``dns`` object. Raises CniError(INVALID_CONFIG)."""
    return Dns(
        fields.texts("nameservers"), fields.text("domain"), fields.texts("search"), fields.texts("options")
    )


def encode_result(result: Result, version: str) -> dict[str, Any]:
    """Return the JSON object of a result in one version of the specification.

    Raises CniError(INCOMPATIBLE_VERSION) where that version cannot express it: 0.2.0 and below need an address.
    """
    value: dict[str, Any] = {"cniVersion": version}
    if version in _FLAT:
        value.update(_encode_flat(result))
    else:
        _put(value, "interfaces", [_encode_interface(item, version) for item in result.interfaces])
        _put(value, "ips", [_encode_ip(item, version) for item in result.ips])
        _put(value, "routes", [_encode_route(item, version) for item in result.routes])
    _put(value, "dns", encode_dns(result.dns))
    return value


def encode_dns(dns: Dns) -> dict[str, Any]:
    """Return the JSON object of resolver settings; what is not set is left out."""
    value: dict[str, Any] = {}
    _put(value, "nameservers", list(dns.nameservers))
    _put(value, "domain", dns.domain)
    _put(value, "search", list(dns.search))
    _put(value, "options", list(dns.options))
    return value


def encode_error(error: CniError, version: str) -> dict[str, Any]:
    """Return the JSON object of an error."""
    value: dict[str, Any] = {"cniVersion": version, "code": int(error.code), "msg": error.message}
    _put(value, "details", error.details)
    return value


@cache
def at_least(version: str, minimum: str) -> bool:
    """Whether a supported version is ``minimum`` or later."""
    return SUPPORTED_VERSIONS.index(version) >= SUPPORTED_VERSIONS.index(minimum)


def _put(value: dict[str, Any], name: str, item: Any) -> None:
    if item:
        value[name] = item


def _decode_interface(fields: Fields) -> Interface:
    return Interface(
        fields.required_text("name"),
        fields.text("mac"),
        fields.number("mtu", _U32),
        fields.text("sandbox"),
        fields.text("socketPath"),
        fields.text("pciID"),
    )


def _decode_ip(fields: Fields, interfaces: int) -> IpConfig:
    index = fields.optional_number("interface", _U32)
    if index is not None and index >= interfaces:
        fields.fail("interface", f"{index} is not the index of one of {interfaces} interfaces")
    return IpConfig(fields.parsed("address", cidr), fields.parsed("gateway", address, ""), index)


def _decode_route(fields: Fields) -> Route:
    dst, gateway = fields.parsed("dst", prefix), fields.parsed("gw", address, "")
    if gateway and family(gateway) != family(dst):
        fields.fail("gw", f"{gateway} and dst {dst} differ in IP version")
    return Route(dst, gateway, *(fields.optional_number(name, _U32) for name in _ROUTE_NUMBERS))


def _decode_flat(fields: Fields) -> Result:
    ips, routes = [], []
    for name in ("ip4", "ip6"):
        item = fields.child(name)
        if item:
            ips.append(IpConfig(item.parsed("ip", cidr), item.parsed("gateway", address, "")))
            routes += [_decode_route(route) for route in item.objects("routes")]
    return Result((), tuple(ips), tuple(routes), decode_dns(fields.child("dns")))


def _encode_interface(item: Interface, version: str) -> dict[str, Any]:
    value: dict[str, Any] = {"name": item.name}
    _put(value, "mac", item.mac)
    if at_least(version, "1.1.0"):
        _put(value, "mtu", item.mtu)
    _put(value, "sandbox", item.sandbox)
    if at_least(version, "1.1.0"):
        _put(value, "socketPath", item.socket_path)
        _put(value, "pciID", item.pci_id)
    return value


def _encode_ip(item: IpConfig, version: str) -> dict[str, Any]:
    value: dict[str, Any] = {}
    if version in _WITH_IP_VERSION:
        value["version"] = str(family(item.address))
    value["address"] = item.address
    _put(value, "gateway", item.gateway)
    if item.interface is not None:
        value["interface"] = item.interface
    return value


def _encode_route(route: Route, version: str) -> dict[str, Any]:
    value: dict[str, Any] = {"dst": route.dst}
    _put(value, "gw", route.gw)
    if at_least(version, "1.1.0"):
        numbers = {name: getattr(route, name) for name in _ROUTE_NUMBERS}
        value.update({name: number for name, number in numbers.items() if number is not None})
    return value


def _encode_flat(result: Result) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, version in (("ip4", 4), ("ip6", 6)):
        first = next((item for item in result.ips if family(item.address) == version), None)
        if first is not None:
            value[name] = {"ip": first.address}
            _put(value[name], "gateway", first.gateway)
            routes = [
                _encode_route(route, "0.2.0") for route in result.routes if family(route.dst) == version
            ]
            _put(value[name], "routes", routes)
    if not value:
        raise CniError(
            CniCode.INCOMPATIBLE_VERSION, "a result without addresses has no form in CNI 0.2.0 and below"
        )
    return value
