"""v1 objects as v2 JSON, which `samewire.hcn.codec` reads. Fields that are not known are carried over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from samewire.hcn.errors import HcnCode, HcnError, fail
from samewire.hcn.readers import integer, read_bool, read_text, shape
from samewire.hcn.schema import EndpointFlags, Kind
from samewire.hcn.state import View

JsonObject = dict[str, Any]

MARKS: dict[Kind, frozenset[str]] = {
    Kind.NETWORK: frozenset(
        {
            "subnets",
            "networkadaptername",
            "sourcemac",
            "macpools",
            "dnssuffix",
            "dnsserverlist",
            "automaticdns",
        }
    ),
    Kind.ENDPOINT: frozenset(
        {
            *("virtualnetwork", "virtualnetworkname", "ipaddress", "ipv6address", "gatewayaddress"),
            *(
                "gatewayaddressv6",
                "prefixlength",
                "dnssuffix",
                "dnsserverlist",
                "dnsdomain",
                "isremoteendpoint",
            ),
        }
    ),
    Kind.NAMESPACE: frozenset({"isdefault", "resourcelist"}),
    Kind.LOADBALANCER: frozenset({"references"}),
    Kind.ROUTE: frozenset({"references"}),
}
"""Fields (lower case) that only v1 has: with them, and without a SchemaVersion, an object is in v1 shape."""

READ_ONLY: dict[Kind, frozenset[str]] = {
    Kind.NETWORK: frozenset(
        {
            *("managementip", "currentendpointcount", "drmacaddress", "ipv6", "natname", "layeredon"),
            *("maxconcurrentendpoints", "totalendpoints", "activityid", "resources", "extensions"),
        }
    ),
    Kind.ENDPOINT: frozenset({"namespace", "sharedcontainers", "type", "activityid", "resources"}),
    Kind.NAMESPACE: frozenset({"compartmentid", "resourcelist"}),
}
"""Fields (lower case) that the service writes; clients send them back."""

DEFAULT_ROUTES = {False: "0.0.0.0/0", True: "::/0"}

ANY_SUBNET = frozenset(DEFAULT_ROUTES.values())
"""What Docker has as a network's subnet when its user gave none: HNS chooses."""


def is_v1(kind: Kind, body: Any) -> bool:
    """True if the JSON of an object is in v1 shape: it says so, or says nothing and has v1's fields."""
    if kind not in MARKS or not isinstance(body, dict):
        return False
    names = {key.lower(): item for key, item in body.items()}
    version = names.get("schemaversion")
    if isinstance(version, dict):
        major = next((item for key, item in version.items() if key.lower() == "major"), None)
        return integer(major) == 1
    return bool(names.keys() & MARKS[kind])


def to_v2(kind: Kind, body: Any, view: View) -> JsonObject:
    """Return the v2 JSON of a v1 object. Raises HcnError."""
    fields = Fields(body, READ_ONLY[kind])
    result = _READERS[kind](fields, view)
    return {**fields.rest(), **{key: item for key, item in result.items() if item not in (None, "", [])}}


class Fields:
    """The fields of a JSON object by lower-case name; `take` removes them."""

    def __init__(self, body: Any, without: frozenset[str] = frozenset()) -> None:
        if not isinstance(body, dict):
            fail("$", f"expected an object, got {shape(body)}")
        self._fields = {key.lower(): (key, item) for key, item in body.items()}
        if len(self._fields) != len(body):
            fail("$", "two keys differ only in case")
        for name in (*without, "schemaversion"):
            self._fields.pop(name, None)

    def take(self, name: str) -> Any:
        """Remove and return a field, None when it is absent."""
        return self._fields.pop(name.lower(), (name, None))[1]

    def text(self, name: str) -> str:
        """Remove and return a text, "" when it is absent."""
        value = self.take(name)
        return "" if value is None else read_text(value, f"$.{name}")

    def texts(self, name: str) -> list[str]:
        """Remove and return comma-separated text as a list."""
        value = self.take(name)
        items = value if isinstance(value, list) else [] if value is None else [value]
        return [
            part.strip() for item in items for part in read_text(item, f"$.{name}").split(",") if part.strip()
        ]

    def flag(self, name: str) -> bool:
        """Remove and return a boolean, False when it is absent."""
        value = self.take(name)
        return False if value is None else read_bool(value, f"$.{name}")

    def items(self, name: str) -> list[JsonObject]:
        """Remove and return a list of objects, [] when it is absent."""
        value = self.take(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            fail(f"$.{name}", "expected an array of objects")
        return value

    def rest(self) -> JsonObject:
        """Return what has not been taken, as it was spelled."""
        return dict(self._fields.values())


def _network(fields: Fields, _: View) -> JsonObject:
    policies = fields.items("Policies")
    isolation = [policy for policy in policies if _type(policy) == "vsid"]
    added: list[JsonObject] = []
    for name, kind, setting in (
        ("NetworkAdapterName", "NetAdapterName", "NetworkAdapterName"),
        ("SourceMac", "SourceMacAddress", "SourceMacAddress"),
    ):
        text = fields.text(name)
        if text and not any(_type(policy) == kind.lower() for policy in policies):
            added.append({"Type": kind, "Settings": {setting: text}})
    if fields.flag("AutomaticDNS"):
        added.append({"Type": "AutomaticDNS", "Settings": {"Enable": True}})
    subnets = [_subnet(item, isolation) for item in fields.items("Subnets")]
    subnets = [subnet for subnet in subnets if subnet["IpAddressPrefix"] not in ANY_SUBNET]
    pools = fields.items("MacPools")
    return {
        "Policies": [policy for policy in policies if not subnets or policy not in isolation] + added,
        "Ipams": [{"Type": "Static", "Subnets": subnets}] if subnets else None,
        "MacPool": {"Ranges": pools} if pools else None,
        "Dns": _dns("", fields.texts("DNSSuffix"), fields.texts("DNSServerList")),
    }


def _type(policy: JsonObject) -> str:
    return next((str(item).lower() for key, item in policy.items() if key.lower() == "type"), "")


def _subnet(body: JsonObject, isolation: list[JsonObject]) -> JsonObject:
    fields = Fields(body, frozenset({"objecttype", "state"}))
    prefix, gateway = fields.text("AddressPrefix"), fields.text("GatewayAddress")
    own = fields.items("Policies")
    if isolation and not any(_type(policy) == "vsid" for policy in own):
        own = own + isolation
    routes = [_default_route(gateway)] if gateway else []
    return {**fields.rest(), "IpAddressPrefix": prefix, "Policies": own, "Routes": routes}


def _default_route(gateway: str) -> JsonObject:
    return {"NextHop": gateway, "DestinationPrefix": DEFAULT_ROUTES[":" in gateway]}


def _dns(domain: str, search: list[str], servers: list[str]) -> JsonObject | None:
    found = {"Domain": domain, "Search": search, "ServerList": servers}
    return found if any(found.values()) else None


def _endpoint(fields: Fields, view: View) -> JsonObject:
    addresses = [
        {"IpAddress": address, "PrefixLength": length or None}
        for address, length in (
            (fields.text("IPAddress"), fields.take("PrefixLength")),
            (fields.text("IPv6Address"), fields.take("IPv6PrefixLength")),
        )
        if address
    ]
    gateways = [fields.text("GatewayAddress"), fields.text("GatewayAddressV6")]
    policies = fields.items("Policies")
    overhead = fields.take("EncapOverhead")
    if overhead and not any(_type(policy) == "encapoverhead" for policy in policies):
        policies = [*policies, {"Type": "EncapOverhead", "Settings": {"Overhead": overhead}}]
    dns = _dns(fields.text("DNSDomain"), fields.texts("DNSSuffix"), fields.texts("DNSServerList"))
    return {
        "HostComputeNetwork": _network_id(fields, view),
        "IpConfigurations": addresses,
        "Routes": [_default_route(gateway) for gateway in gateways if gateway],
        "Policies": policies,
        "Dns": dns,
        "Flags": _flags(fields),
    }


def _flags(fields: Fields) -> int:
    flags = integer(fields.take("Flags") or 0)
    if flags is None:
        fail("$.Flags", "expected a number")
    for name, flag in (
        ("IsRemoteEndpoint", EndpointFlags.REMOTE_ENDPOINT),
        ("DisableICC", EndpointFlags.DISABLE_INTER_COMPUTE_COMMUNICATION),
        ("EnableLowMetric", EndpointFlags.ENABLE_LOW_INTERFACE_METRIC),
    ):
        if fields.flag(name):
            flags |= flag
    return int(flags)


def _network_id(fields: Fields, view: View) -> str:
    network_id, name = fields.text("VirtualNetwork"), fields.text("VirtualNetworkName")
    if network_id or not name:
        return network_id
    network = view.network_by_name(name)
    if network is None:
        raise HcnError(
            HcnCode.NETWORK_NOT_FOUND, f"$.VirtualNetworkName: The network was not found. ({name[:64]})"
        )
    return network.id


def _namespace(fields: Fields, _: View) -> JsonObject:
    return {"Type": "HostDefault" if fields.flag("IsDefault") else None}


_READERS: dict[Kind, Callable[[Fields, View], JsonObject]] = {
    Kind.NETWORK: _network,
    Kind.ENDPOINT: _endpoint,
    Kind.NAMESPACE: _namespace,
}
