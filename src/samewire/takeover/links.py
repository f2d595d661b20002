"""flannel's devices, the bridge with its pods, and the other nodes, from what iproute2 prints. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from msgspec import Struct

from samewire.takeover.model import Bridge, Guest, Hop, Remote, Subnet, Tunnel

Json = dict[str, Any]

_TUNNEL: Final = re.compile(r"flannel(-v6)?\.[0-9]+")
_OTHER_BACKENDS: Final = {
    "flannel-wg": "wireguard",
    "flannel-wg-v6": "wireguard",
    "flannel0": "udp",
    "flannel.ipip": "ipip",
}
IPVS: Final = "kube-ipvs0"
"""What holds the services' addresses in kube-proxy's ipvs mode."""
_PERMANENT: Final = "PERMANENT"
_DEFAULT_PORT: Final = 8472
PROTOCOL: Final = 83
"""Of the routes that Samewire makes."""


class Listing(Struct, frozen=True, kw_only=True):
    """What ``ip -d -j address``, ``ip -j route`` (both families), ``ip -j neigh``, ``bridge -j fdb`` and
    ``ip -6 -j neigh show proxy`` print.

    ``inside``: by the id that the node has for a namespace its name, and what ``ip -j address`` prints in it.
    """

    links: list[Json]
    routes: list[Json]
    neighbours: list[Json]
    fdb: list[Json]
    proxies: list[Json] = []
    inside: Mapping[int, tuple[str, list[Json]]] = {}


def tunnels(listing: Listing) -> tuple[Tunnel, ...]:
    """flannel's VXLAN devices."""
    found = []
    for link in listing.links:
        info = link.get("linkinfo", {})
        if info.get("info_kind") == "vxlan" and _TUNNEL.fullmatch(link["ifname"]):
            data = info.get("info_data", {})
            found.append(
                Tunnel(
                    name=link["ifname"],
                    vni=data.get("id", 0),
                    port=data.get("port", _DEFAULT_PORT),
                    up="UP" in link.get("flags", ()),
                    addresses=_addresses(link),
                )
            )
    return tuple(found)


def devices(listing: Listing) -> tuple[str, ...]:
    """All bridges, and flannel's tunnels, by name."""
    bridges = [
        link["ifname"] for link in listing.links if link.get("linkinfo", {}).get("info_kind") == "bridge"
    ]
    return tuple(sorted([*bridges, *(tunnel.name for tunnel in tunnels(listing))]))


def backend(listing: Listing, subnets: Iterable[Subnet]) -> str:
    """What else than VXLAN alone, or host-gw alone, carries packets to pods of other nodes, "" for nothing: another
    device of flannel's, or routes beside its VXLAN devices (``DirectRouting``).
    """
    for link in listing.links:
        if link["ifname"] in _OTHER_BACKENDS:
            return _OTHER_BACKENDS[link["ifname"]]
    beside = hops(listing, subnets) if tunnels(listing) else ()
    return f"DirectRouting ({beside[0].prefix} via {beside[0].via})" if beside else ""


def hops(listing: Listing, subnets: Iterable[Subnet]) -> tuple[Hop, ...]:
    """The other nodes' pods that are reached by routes on the nodes' own link."""
    routes = _hop_routes(listing, subnets)
    return tuple(sorted(Hop(_prefix(route["dst"]), route["gateway"]) for route in routes))


def nics(listing: Listing, subnets: Iterable[Subnet]) -> tuple[str, ...]:
    """The NICs by which flannel reaches other nodes: that of its tunnels, or those of its routes."""
    found = {route["dev"] for route in _hop_routes(listing, subnets)}
    owners = {one["local"]: link["ifname"] for link in listing.links for one in link.get("addr_info", ())}
    for link in listing.links:
        if _TUNNEL.fullmatch(link["ifname"]):
            data = link.get("linkinfo", {}).get("info_data", {})
            found.add(data.get("link") or owners.get(data.get("local") or data.get("local6")))
    return tuple(sorted(found - {None, "lo"}))


def _hop_routes(listing: Listing, subnets: Iterable[Subnet]) -> list[Json]:
    found = []
    clusters = [ipaddress.ip_network(subnet.cluster) for subnet in subnets]
    for route in listing.routes:
        device = route.get("dev", "")
        if "gateway" not in route or route["dst"] == "default" or route.get("protocol") == str(PROTOCOL):
            continue
        if _TUNNEL.fullmatch(device) or device.startswith("samewire"):
            continue
        prefix = ipaddress.ip_network(route["dst"])
        if any(
            prefix.version == cluster.version and _within(prefix, cluster) and prefix != cluster
            for cluster in clusters
        ):
            found.append(route)
    return found


def _within(inner: ipaddress.IPv4Network | ipaddress.IPv6Network, outer: Any) -> bool:
    return inner.network_address in outer and inner.prefixlen >= outer.prefixlen


def remotes(listing: Listing, devices: Iterable[Tunnel]) -> tuple[Remote, ...]:
    """The other nodes' pods: flannel has a route, a neighbour and a forwarding entry for each."""
    found = []
    for device in devices:
        macs = {n["dst"]: n["lladdr"] for n in _of(listing.neighbours, device.name) if "lladdr" in n}
        ends = {e["mac"]: e["dst"] for e in _ofdev(listing.fdb, device.name) if "dst" in e}
        for route in _of(listing.routes, device.name):
            mac = macs.get(route.get("gateway", ""), "")
            if mac in ends:
                found.append(Remote(_prefix(route["dst"]), ends[mac], mac))
    return tuple(sorted(found))


def restoring(listing: Listing, devices: Iterable[Tunnel], bridge: Bridge | None) -> tuple[str, ...]:
    """Lines for ``ip -batch`` that give the devices' routes and neighbours back after they were down."""
    lines = []
    for device in devices:
        for entry in _of(listing.neighbours, device.name):
            if _PERMANENT in entry.get("state", ()) and "lladdr" in entry:
                what = f"{entry['dst']} lladdr {entry['lladdr']} dev {device.name}"
                lines.append(f"neigh replace {what} nud permanent")
        for address in device.addresses:
            if ":" in address and not address.startswith("fe80"):
                lines.append(f"address replace {address} dev {device.name} nodad")
        for route in _of(listing.routes, device.name):
            if "gateway" in route:
                lines.append(
                    f"route replace {_prefix(route['dst'])} via {route['gateway']} dev {device.name} onlink"
                )
    for gateway in bridge.gateways if bridge else ():
        own = ipaddress.ip_interface(gateway)
        source = f" src {own.ip}" if own.version == 4 else " metric 256"
        lines.append(f"route replace {own.network} dev {bridge.name if bridge else ''} proto kernel{source}")
    return tuple(lines)


def bridge_of(
    listing: Listing, name: str, subnets: Iterable[Subnet], leases: Mapping[str, str]
) -> Bridge | None:
    """The old pods' bridge with what is plugged into it, None when there is none."""
    link = next((link for link in listing.links if link["ifname"] == name), None)
    if link is None or link.get("linkinfo", {}).get("info_kind") != "bridge":
        return None
    prefixes = [ipaddress.ip_network(subnet.prefix) for subnet in subnets]
    gateways = [
        address for address in _addresses(link) if ipaddress.ip_interface(address).network in prefixes
    ]
    ports = [port for port in listing.links if port.get("master") == name]
    guests = tuple(sorted(_guest(listing, port, leases) for port in ports))
    return Bridge(
        name=name,
        gateways=tuple(gateways),
        guests=guests,
        routes=tuple(r["dst"] for r in _of(listing.routes, name) if r.get("protocol") == str(PROTOCOL)),
        proxied=tuple(entry["dst"] for entry in _of(listing.proxies, name)),
    )


def _guest(listing: Listing, port: Json, leases: Mapping[str, str]) -> Guest:
    netns, inside = listing.inside.get(port.get("link_netnsid", -1), ("", []))
    own = next((link for link in inside if link.get("link_index") == port["ifindex"]), None)
    addresses = tuple(text.partition("/")[0] for text in _addresses(own)) if own else ()
    container = next((leases[address] for address in addresses if address in leases), "")
    return Guest(port["ifname"], addresses, netns, container)


def _addresses(link: Json) -> tuple[str, ...]:
    """Global ones, with prefix length."""
    return tuple(
        f"{one['local']}/{one['prefixlen']}"
        for one in link.get("addr_info", ())
        if one.get("scope") == "global" and "local" in one
    )


def _of(items: Iterable[Json], device: str) -> list[Json]:
    return [item for item in items if item.get("dev") == device]


def _ofdev(items: Iterable[Json], device: str) -> list[Json]:
    """bridge(8) says ``ifname`` where ip(8) says ``dev``."""
    return [item for item in items if item.get("ifname") == device]


def _prefix(text: str) -> str:
    return str(ipaddress.ip_network(text))
