"""Configurations of the Windows plugins, read into Samewire's own keys and a `Dialect`. Pure.

Policies may be flat (HNS v1) or have Settings (HCN v2), whatever ``apiVersion`` says. Of what the plugins pass over
in silence, this passes over entries that are not of a policy at all; a fault within a policy is an error that names
its key, because a pod whose ACL was dropped would be open.
"""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Any, Final

from samewire.cni.dialects.names import AZURE, SDN_BRIDGE, SDN_OVERLAY, WIN_BRIDGE, WIN_OVERLAY, Dialect
from samewire.cni.fields import Fields, address, prefix
from samewire.hcn.flat import from_flat

PROTOCOLS: Final = {"1": "icmpv4", "2": "igmp", "6": "tcp", "17": "udp", "58": "icmpv6"}
MAPPED: Final = ("tcp", "udp")
AZURE_CNS: Final = "azure-cns"
DEFAULT_MAC_PREFIX: Final = "0E-2A"
MAX_PORT: Final = 2**16 - 1

_MAC_PREFIX = re.compile(r"[0-9A-Fa-f]{2}-[0-9A-Fa-f]{2}")
_DROPPED: Final = frozenset(
    {"policies", "additionalargs", "hcnpolicyargs", "ipmasq", "ipmasqnetwork", "network", "mtu"}
)


def read_dialect(plugin: str, conf: Fields) -> tuple[dict[str, Any], Dialect]:
    """Return the configuration in Samewire's keys, and what else the plugin would do.

    Raises CniError(INVALID_CONFIG) that names the key at fault.
    """
    dialect = _READERS[plugin](plugin, conf)
    value = {key: item for key, item in conf.value.items() if key.lower() not in _DROPPED}
    value["policies"] = [{"name": "EndpointPolicy", "value": policy} for policy in _policies(plugin, conf)]
    runtime = conf.child("runtimeConfig")
    if runtime:
        kept = {key: item for key, item in runtime.value.items() if key.lower() != "portmappings"}
        value = {key: item for key, item in value.items() if key.lower() != "runtimeconfig"}
        value["runtimeConfig"] = {**kept, "portMappings": _port_mappings(runtime)}
    ipam = conf.child("ipam")
    if ipam:
        value = {key: item for key, item in value.items() if key.lower() != "ipam"}
        value.update(_ipam(ipam, dialect))
    return value, dialect


def _win_bridge(plugin: str, conf: Fields) -> Dialect:
    _check_api_version(conf)
    conf.flag("ipMasq")  # of no effect in this plugin, but its type is checked
    return Dialect(
        plugin,
        second_gateway=True,
        spared=conf.parsed("ipMasqNetwork", prefix, ""),
        loopback_dsr=conf.flag("loopbackDSR"),
    )


def _win_overlay(plugin: str, conf: Fields) -> Dialect:
    _check_api_version(conf)
    mac_prefix = conf.text("endpointMacPrefix") or DEFAULT_MAC_PREFIX
    if not _MAC_PREFIX.fullmatch(mac_prefix):
        conf.fail(
            "endpointMacPrefix", f"{mac_prefix[:64]!r}: expected two bytes in the form {DEFAULT_MAC_PREFIX}"
        )
    if int(mac_prefix[:2], 16) & 1:
        conf.fail("endpointMacPrefix", f"{mac_prefix} is the prefix of group addresses")
    return Dialect(
        plugin,
        spare_own=conf.flag("ipMasq"),
        loopback_dsr=conf.flag("loopbackDSR"),
        provider_address=True,
        mac_prefix=mac_prefix,
    )


def _sdn(plugin: str, conf: Fields) -> Dialect:
    flags = conf.child("optionalFlags")
    for name in ("localRoutedPortMapping", "enableDualStack"):
        flags.flag(
            name
        )  # mapped ports are always routed locally here, and networks have the subnets they have
    gateways: tuple[str, ...] = ()
    if flags.flag("gatewayFromAdditionalRoutes"):
        routes = conf.child("ipam").objects("routes")
        gateways = tuple(gw for route in routes if (gw := route.parsed("GW", address, "")))
        if not gateways:
            conf.child("ipam").fail("routes", "has no GW for optionalFlags.gatewayFromAdditionalRoutes")
    return Dialect(
        plugin,
        second_gateway=flags.flag("forceBridgeGateway"),
        gateways=gateways,
        loopback_dsr=flags.flag("loopbackDSR") or conf.flag("loopbackDSR"),
        accept_host_ports=flags.flag("allowAclPortMapping"),
        qualify_search=True,
        creates_network=plugin == SDN_BRIDGE,
    )


def _azure(plugin: str, conf: Fields) -> Dialect:
    windows = conf.child("windowsSettings")
    return Dialect(
        plugin,
        loopback_dsr=windows.flag("enableLoopbackDSR"),
        qualify_search=True,
        creates_network=True,
        adapter=conf.text("adapterName"),
    )


_READERS: Final = {
    WIN_BRIDGE: _win_bridge,
    WIN_OVERLAY: _win_overlay,
    SDN_BRIDGE: _sdn,
    SDN_OVERLAY: _sdn,
    AZURE: _azure,
}


def _check_api_version(conf: Fields) -> None:
    version = conf.optional_number("apiVersion", MAX_PORT)
    if version not in (None, 0, 1, 2):
        conf.fail("apiVersion", f"{version} is not 1 (HNS) or 2 (HCN)")


def _policies(plugin: str, conf: Fields) -> list[dict[str, Any]]:
    """Return the policies in v2 form, those of AdditionalArgs behind those of ``policies``."""
    found = []
    for entry in conf.objects("policies"):
        if entry.text("name").lower() == "endpointpolicy":
            found += _policy(entry)
    if plugin in (SDN_BRIDGE, SDN_OVERLAY, AZURE):
        for entry in conf.objects("AdditionalArgs"):
            if "policy" in entry.text("name").lower():
                found += _policy(entry)
    for entry in conf.objects("HcnPolicyArgs"):
        found += _as_v2(entry)
    return found


def _policy(entry: Fields) -> list[dict[str, Any]]:
    value = entry.get("value")
    return _as_v2(Fields(value, entry.key("value"))) if isinstance(value, dict) else []


def _as_v2(value: Fields) -> list[dict[str, Any]]:
    kind = value.text("Type")
    if not kind:
        return []
    if kind.lower() == "loopbackdsr":
        own = value.parsed("IPAddress", address)
        return [{"Type": "OutBoundNAT", "Settings": {"Destinations": [own]}}]
    settings = value.get("Settings")
    return [{"Type": kind, "Settings": settings}] if settings is not None else [from_flat(value.value)]


def _port_mappings(runtime: Fields) -> list[dict[str, Any]]:
    """Return the mappings that can be made, in Samewire's form; as the plugins do, others are passed over."""
    found = []
    for item in runtime.objects("portMappings"):
        number = item.get("protocol")
        name = str(number if number is not None else "tcp").lower() or "tcp"
        protocol = PROTOCOLS.get(name, name)
        ports = [item.get(key) for key in ("hostPort", "containerPort")]
        if protocol in MAPPED and all(type(port) is int and 0 < port <= MAX_PORT for port in ports):
            mapping = {"hostPort": ports[0], "containerPort": ports[1], "protocol": protocol}
            host = item.text("hostIP")
            found.append({**mapping, "hostIP": host} if host else mapping)
    return found


def _ipam(ipam: Fields, dialect: Dialect) -> dict[str, Any]:
    """Return the ``ipam`` for an address manager; without a type HNS allocates, from the network's subnets.

    The first addresses of the subnet are nobody's where one of them is the gateway instead of the network's own.
    """
    kind = ipam.text("type")
    if not kind:
        fixed = ipam.parsed("ipAddress", address, "")
        return {"args": {"cni": {"ips": [fixed]}}} if fixed else {}
    if kind == AZURE_CNS:
        ipam.fail(
            "type", f"{AZURE_CNS} is a service of Azure's own nodes; name host-local, azure-vnet-ipam or none"
        )
    subnet = ipam.parsed("subnet", prefix, "")
    if kind != "host-local":
        return {"ipam": ipam.value}
    value = {key: item for key, item in ipam.value.items() if key.lower() != "routes"}
    value["routes"] = [route.value for route in ipam.objects("routes") if route.get("dst") is not None]
    if (dialect.second_gateway or dialect.gateways) and subnet and not ipam.text("rangeStart"):
        network = ip_network(subnet)
        if network.num_addresses > 4:
            value["rangeStart"] = str(network[3])
    return {"ipam": value}
