"""What the node is: its uplink, addresses, gateways and MTU, read from the kernel."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from samewire.hcn.switch import NodeFacts as HcnFacts
from samewire.kernel.features import has_csum_ipv6
from samewire.kernel.netns import cookie as netns_cookie
from samewire.kernel.rtnetlink import (
    Address as LinkAddress,
)
from samewire.kernel.rtnetlink import (
    Link,
    Netlink,
    Route,
    address_dump,
    learned_dump,
    link_dump,
    route_dump,
)
from samewire.kernel.rtnetlink.routes import TABLE_MAIN
from samewire.node.config import NodeConfig
from samewire.node.devices import Devices
from samewire.vfp.address import ZERO, Address, Prefix, address_text, mac_text
from samewire.vfp.model import FAMILIES, LINK_GROUP, NodeFacts

DEFAULT_MTU: Final = 1500

_SCOPE_GLOBAL: Final = 0
_IFA_SECONDARY: Final = 0x01  # IPv4: not the main address of its subnet; IPv6: temporary (RFC 8981)
_IFA_DADFAILED: Final = 0x08
_IFA_DEPRECATED: Final = 0x20


class Uplink(msgspec.Struct, frozen=True, kw_only=True):
    """The node's NIC and addresses; ``ifindex`` 0 while there is no NIC.

    ``addresses``: the uplink's own with their prefix lengths, main ones first, then those of other interfaces as
    host addresses (their subnets are not behind the uplink). ``local_prefixes``: what is in use on the node, for
    choosing a free subnet. ``vlan``: the tag of its frames (0: none); ``vlans``: those of the node's devices on it.
    ``subnets``: those that it is in. ``gateway_mtus``: of default routes that say one, by the gateway.
    """

    name: str = ""
    ifindex: int = 0
    mac: bytes = bytes(6)
    mtu: int = DEFAULT_MTU
    vlan: int = 0
    vlans: tuple[int, ...] = ()
    subnets: tuple[Prefix, ...] = ()
    addresses: tuple[Prefix, ...] = ()
    gateways: tuple[Address, ...] = ()
    gateway_mtus: Mapping[Address, int] = msgspec.field(default_factory=dict)
    local_prefixes: tuple[str, ...] = ()

    @property
    def management(self) -> tuple[str, ...]:
        """The uplink's main addresses, IPv4 first."""
        found = {prefix.family: address_text(prefix.family, prefix.packed) for prefix in self.addresses[::-1]}
        return tuple(found[family] for family in FAMILIES if family in found)


def read_uplink(netlink: Netlink, name: str) -> Uplink:
    """Read the uplink called ``name``, or that of the default route when it is empty. Raises KernelError."""
    links = {link.ifindex: link for link in netlink.dump(link_dump())}
    addresses = netlink.dump(address_dump())
    routes = [route for family in FAMILIES for route in netlink.dump(route_dump(family, TABLE_MAIN))]
    return choose_uplink(name, links.values(), addresses, routes)


def read_path_mtus(netlink: Netlink) -> dict[Address, int]:
    """What the kernel has learned of ways that are narrower than its interfaces, by the far end. Raises KernelError."""
    learned = [route for family in FAMILIES for route in netlink.dump(learned_dump(family))]
    return {Address(route.family, _padded(route.destination)): route.mtu for route in learned if route.mtu}


def choose_uplink(
    name: str, links: Iterable[Link], addresses: Sequence[LinkAddress], routes: Sequence[Route]
) -> Uplink:
    """The pure part of `read_uplink`."""
    by_index = {link.ifindex: link for link in links}
    ours = {link.ifindex for link in by_index.values() if link.group == LINK_GROUP}
    defaults = sorted(
        (route for route in routes if route.bits == 0 and route.kind == "unicast" and route.oif not in ours),
        key=lambda route: (route.family, route.metric),
    )
    nic = _nic(name, by_index, defaults)
    usable = [a for a in addresses if a.ifindex not in ours and _usable(a)]
    prefixes = _local_prefixes(usable, routes, ours)
    if nic is None:
        own = tuple(dict.fromkeys(_prefix(a).address.host_prefix for a in usable))
        return Uplink(name=name, addresses=own, local_prefixes=prefixes)
    on_nic = sorted((a for a in usable if a.ifindex == nic.ifindex), key=_main_first)
    elsewhere = [a for a in usable if a.ifindex != nic.ifindex]
    own = tuple(
        dict.fromkeys(
            [*map(_prefix, on_nic), *(_prefix(address).address.host_prefix for address in elsewhere)]
        )
    )
    gateways = _gateways(defaults, nic)
    tags = {link.vlan for link in by_index.values() if link.vlan and link.peer_ifindex == nic.ifindex}
    return Uplink(
        name=nic.name,
        ifindex=nic.ifindex,
        mac=nic.mac,
        mtu=nic.mtu,
        vlan=nic.vlan,
        vlans=tuple(sorted(tags)),
        subnets=tuple(dict.fromkeys(_prefix(address).network for address in on_nic)),
        addresses=own,
        gateways=tuple(gateways),
        gateway_mtus={gateway: mtu for gateway, mtu in gateways.items() if mtu},
        local_prefixes=prefixes,
    )


def _gateways(defaults: Iterable[Route], nic: Link) -> dict[Address, int]:
    """Those of its best default routes, IPv4 first, with the routes' MTUs."""
    found: dict[int, tuple[Address, int]] = {}
    for route in defaults:
        if route.oif == nic.ifindex and any(route.gateway) and len(route.gateway) == _bytes(route.family):
            found.setdefault(route.family, (Address(route.family, _padded(route.gateway)), route.mtu))
    return dict(found[family] for family in FAMILIES if family in found)


def underlay(uplink: Uplink, last: Iterable[Prefix]) -> tuple[Prefix, ...]:
    """The uplink's subnets; of a family of which it has no address (yet, or for a moment), those that it had last.

    Else a network on the underlay would look like one with a subnet of its own, and the node take the router's address
    for its own: it would then refuse the default route that DHCP brings.
    """
    families = {prefix.family for prefix in uplink.subnets}
    return (*uplink.subnets, *(prefix for prefix in last if prefix.family not in families))


def node_facts(
    config: NodeConfig,
    uplink: Uplink,
    devices: Devices,
    subnets: tuple[Prefix, ...],
    path_mtus: Mapping[Address, int],
) -> NodeFacts:
    """The facts for the compilers. ``subnets``: see `underlay`."""
    return NodeFacts(
        name=config.name,
        uplink_ifindex=uplink.ifindex,
        uplink_mac=uplink.mac,
        uplink_mtu=uplink.mtu,
        addresses=uplink.addresses,
        gateways=uplink.gateways,
        tunnel_ifindex=devices.tunnel_ifindex,
        tunnel_mac=devices.tunnel_mac,
        host_ifindex=devices.host_ifindex,
        host_mac=devices.host_mac,
        host_peer_ifindex=devices.host_peer_ifindex,
        host_peer_mac=devices.host_peer_mac,
        nat_port_low=config.nat_ports[0],
        nat_port_high=config.nat_ports[1],
        vxlan_port=config.vxlan_port,
        flow_slots=config.flow_slots,
        csum_ipv6=has_csum_ipv6(),
        acl_allow_unmatched=config.acl_unmatched == "allow",
        netns=netns_cookie() & 0xFFFFFFFF,
        uplink_vlan=uplink.vlan,
        vlans=uplink.vlans,
        underlay=subnets,
        path_mtus={
            **path_mtus,
            **{hop: min(mtu, path_mtus.get(hop, mtu)) for hop, mtu in uplink.gateway_mtus.items()},
        },
    )


def hcn_facts(uplink: Uplink, devices: Devices) -> HcnFacts:
    """The facts for the HNS service."""
    return HcnFacts(
        dr_mac=mac_text(devices.tunnel_mac) if devices.tunnel_up else "",
        management_ips=uplink.management,
        uplink=uplink.name,
        mtu=uplink.mtu,
        local_prefixes=uplink.local_prefixes,
        uplink_vlan=uplink.vlan,
        uplink_ifindex=uplink.ifindex,
    )


def short(packed: bytes, family: int) -> bytes:
    """An address as the kernel wants it: 4 or 16 bytes."""
    return packed[: _bytes(family)]


def _nic(name: str, links: dict[int, Link], defaults: Sequence[Route]) -> Link | None:
    if name:
        return next((link for link in links.values() if link.name == name), None)
    return next((links[route.oif] for route in defaults if route.oif in links), None)


def _usable(address: LinkAddress) -> bool:
    if address.scope != _SCOPE_GLOBAL or address.flags & _IFA_DADFAILED:
        return False
    return not ipaddress.ip_address(address.address).is_loopback


def _main_first(address: LinkAddress) -> tuple[int, bool, bool]:
    """Stable: the kernel lists addresses of a kind in the order it prefers them."""
    return address.family, bool(address.flags & _IFA_DEPRECATED), bool(address.flags & _IFA_SECONDARY)


def _local_prefixes(
    addresses: Iterable[LinkAddress], routes: Iterable[Route], ours: set[int]
) -> tuple[str, ...]:
    found = {str(_prefix(address).network) for address in addresses}
    found.update(
        str(Prefix(route.family, _padded(route.destination), route.bits))
        for route in routes
        if route.bits and route.oif not in ours and route.kind != "multicast"
    )
    return tuple(sorted(found))


def _prefix(address: LinkAddress) -> Prefix:
    return Prefix(address.family, _padded(address.address), address.bits)


def _padded(packed: bytes) -> bytes:
    return packed.ljust(len(ZERO), b"\0")


def _bytes(family: int) -> int:
    return 4 if family == 4 else 16
