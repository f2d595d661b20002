"""CNI configurations: which is flannel's, and the one that stands in for it. Pure."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable
from typing import Any, Final

from samewire.cni.dialects.flannel import parse_env
from samewire.cni.dialects.names import FLANNEL, OWN
from samewire.errors import Invalid
from samewire.takeover.model import Found, OldConf, Subnet

NAME: Final = "00-samewire.conflist"
ASIDE: Final = ".before-samewire"
"""Behind the name of a configuration that was put aside: runtimes look at the ending."""
DATA_DIR: Final = "/var/lib/cni/networks"
IPV6_WINDOW: Final = 256
"""How many IPv6 addresses new pods may have while old ones are there: the bridge answers for each by itself."""

_COVERED: Final = ("portmap", "bandwidth")
_CAPABILITIES: Final = {"portMappings": True, "bandwidth": True, "dns": True, "ips": True, "mac": True}


def read_subnets(text: str) -> tuple[tuple[Subnet, ...], int]:
    """Return the prefixes in flanneld's file and its MTU. Raises Invalid."""
    env = parse_env(text)
    found = []
    try:
        for infix in ("", "IPV6_"):
            subnet, cluster = env.get(f"FLANNEL_{infix}SUBNET", ""), env.get(f"FLANNEL_{infix}NETWORK", "")
            if subnet:
                own = ipaddress.ip_interface(subnet).network
                found.append(Subnet(str(own), str(ipaddress.ip_network(cluster.partition(",")[0] or own))))
        return tuple(found), int(env.get("FLANNEL_MTU", "0"))
    except ValueError as error:
        raise Invalid("flannel's subnet file", str(error)) from error


def masquerades(text: str) -> bool:
    """Whether flanneld's file says that it masquerades for the pods."""
    return parse_env(text).get("FLANNEL_IPMASQ") == "true"


def read_conf(path: str, text: str) -> OldConf | None:
    """Return flannel's configuration, None for any other. Raises Invalid for what is no JSON object."""
    try:
        value = json.loads(text)
        plugins = value.get("plugins", [value])
        kinds = [plugin["type"] for plugin in plugins]
        return _flannels(path, text, value, plugins, kinds) if FLANNEL in kinds else None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Invalid(path, f"is no CNI configuration ({error}); remove or mend it") from error


def _flannels(
    path: str, text: str, value: dict[str, Any], plugins: list[dict[str, Any]], kinds: list[str]
) -> OldConf:
    plugin = plugins[kinds.index(FLANNEL)]
    delegate = plugin.get("delegate") or {}
    # flannel's own plugin takes it beside the delegate alone; on Windows, and in old ones, it is in there.
    ipam = plugin.get("ipam") or delegate.get("ipam") or {}
    others = [plugin for plugin in plugins if plugin["type"] not in (FLANNEL, *_COVERED)]
    return OldConf(
        path=path,
        name=value["name"],
        bridge=delegate.get("bridge") or "cni0",
        data_dir=ipam.get("dataDir") or DATA_DIR,
        version=value.get("cniVersion") or "0.3.1",
        delegate=delegate.get("type") or "bridge",
        mtu=delegate.get("mtu") or 0,
        dns=delegate.get("dns") or {},
        others=tuple(others),
        text=text,
    )


def is_ours(text: str) -> bool:
    """Whether a configuration is one of Samewire's."""
    try:
        return any(plugin.get("type") in OWN for plugin in json.loads(text).get("plugins", ()))
    except (ValueError, TypeError, AttributeError):
        return False


def conflist(found: Found, spared: Iterable[str]) -> str:
    """Return the configuration in flannel's place: the same network name and leases, and none of these addresses."""
    conf = found.conf
    assert conf is not None
    exceptions = [subnet.cluster for subnet in found.subnets]
    spared = set(spared)
    guests = bool(spared)
    plugin: dict[str, Any] = {
        "type": OWN[0],
        "capabilities": _CAPABILITIES,
        "ipam": {
            "type": "host-local",
            "dataDir": conf.data_dir,
            "ranges": [ranges(subnet, spared, window=guests) for subnet in found.subnets],
        },
        "policies": [
            {
                "name": "EndpointPolicy",
                "value": {"Type": "OutBoundNAT", "Settings": {"Exceptions": exceptions}},
            }
        ],
    }
    if conf.mtu or found.mtu:
        plugin["mtu"] = conf.mtu or found.mtu
    if conf.dns:
        plugin["dns"] = conf.dns
    value = {"cniVersion": conf.version, "name": conf.name, "plugins": [plugin, *conf.others]}
    return json.dumps(value, indent=2) + "\n"


def ranges(subnet: Subnet, spared: Iterable[str], *, window: bool) -> list[dict[str, str]]:
    """The ranges of host-local that leave these addresses out; ``window``: of IPv6 only `IPV6_WINDOW`."""
    network = ipaddress.ip_network(subnet.prefix)
    numbers = sorted(
        int(address)
        for address in map(ipaddress.ip_address, spared)
        if address.version == network.version and address in network
    )
    first, last = int(network.network_address) + 2, int(network.broadcast_address)
    last -= network.version == 4
    if network.version == 6 and window:
        last = min(last, first + IPV6_WINDOW + len(numbers) - 1)
    elif not numbers:
        return [{"subnet": subnet.prefix}]
    make = type(network.network_address)
    found = []
    for number in [*(n for n in numbers if first <= n <= last), last + 1]:
        if first < number:
            span = {"rangeStart": str(make(first)), "rangeEnd": str(make(number - 1))}
            found.append({"subnet": subnet.prefix, **span})
        first = number + 1
    return found
