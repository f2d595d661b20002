"""The node's own Samewire devices: ``samewire0`` with its other end ``samewire1``, and ``swvxlan0``.

Made once and kept: a restart finds them and changes nothing that is right already. They carry the link group and
alias of everything that is ours; a device of one of those names without the mark belongs to somebody else, and is
left alone.
"""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path
from typing import Final

import msgspec

from samewire.errors import Conflict, KernelError, NotFound, Unavailable
from samewire.kernel import sysctl
from samewire.kernel.rtnetlink import (
    Link,
    Netlink,
    link_del,
    link_dump,
    link_get,
    link_set,
    veth_add,
    vxlan_external_add,
)
from samewire.node.keepsakes import Keepsakes, load_keepsakes, mac_bytes, save_keepsakes
from samewire.node.portranges import merged, restored, united
from samewire.vfp.model import LINK_ALIAS, LINK_GROUP

HOST: Final = "samewire0"
HOST_PEER: Final = "samewire1"
TUNNEL: Final = "swvxlan0"
OWN_DEVICES: Final = (HOST, HOST_PEER, TUNNEL)

# No limit of its own: the switch compares each packet with its path before it gets here.
_TUNNEL_MTU: Final = 65485
_RESERVED_PORTS: Final = ("net", "ipv4", "ip_local_reserved_ports")
_LONGEST_BYTES: Final = 6 * 32768  # every other port
_LOOSE: Final = 2
_IFF_NOARP: Final = 0x80

# What only these devices need. samewire0: the source of what the switch hands over may be routed elsewhere (an
# overlay that the host is no part of), so loose rp_filter; nothing is to be forwarded from or to our devices (of
# samewire0 `HostNet` sees to it, for networks may want it); no link-local address and no announcements of IPv6 on any
# of them.
_SETTINGS: Final[dict[str, tuple[tuple[str, str, int], ...]]] = {
    HOST: (
        ("ipv4", "rp_filter", _LOOSE),
        ("ipv6", "addr_gen_mode", 1),
        ("ipv6", "accept_ra", 0),
        ("ipv6", "forwarding", 0),
    ),
    HOST_PEER: (("ipv4", "forwarding", 0), ("ipv6", "disable_ipv6", 1)),
    TUNNEL: (("ipv4", "forwarding", 0), ("ipv6", "disable_ipv6", 1)),
}


class Devices(msgspec.Struct, frozen=True, kw_only=True):
    """Indexes and MACs of the node's own devices. ``tunnel_up``: whether the tunnel's UDP port is ours."""

    host_ifindex: int
    host_mac: bytes
    host_peer_ifindex: int
    host_peer_mac: bytes
    tunnel_ifindex: int
    tunnel_mac: bytes
    tunnel_up: bool = True


def ensure_devices(
    netlink: Netlink, state_dir: Path, *, vxlan_port: int, mtu: int, tunnel_needed: bool = True
) -> Devices:
    """Make the devices what they should be. Raises Conflict (a name is taken), KernelError, Unavailable.

    Without ``tunnel_needed`` a taken VXLAN port leaves the tunnel down, and is no error.
    """
    own = {"host_mac": HOST, "host_peer_mac": HOST_PEER, "tunnel_mac": TUNNEL}
    present = {field: link.mac.hex(":") for field, name in own.items() if (link := _own_link(netlink, name))}
    keepsakes = load_keepsakes(state_dir, **present)
    host, peer = _ensure_pair(netlink, keepsakes, mtu)
    tunnel = _ensure_tunnel(netlink, keepsakes, vxlan_port, needed=tunnel_needed)
    if keepsakes.vxlan_port != vxlan_port:
        save_keepsakes(state_dir, msgspec.structs.replace(keepsakes, vxlan_port=vxlan_port))
    return Devices(
        host_ifindex=host.ifindex,
        host_mac=host.mac,
        host_peer_ifindex=peer.ifindex,
        host_peer_mac=peer.mac,
        tunnel_ifindex=tunnel.ifindex,
        tunnel_mac=tunnel.mac,
        tunnel_up=tunnel.up,
    )


def reserve_ports(state_dir: Path, ports: int) -> None:
    """Take ``ports`` out of what the kernel hands to sockets, beside the administrator's own.

    Raises KernelError, Unavailable.
    """
    keepsakes = load_keepsakes(state_dir)
    before = keepsakes.reserved_ports_added
    present = reserved_ports()
    wanted, added = merged(present, ports, before)
    # What is added is noted before it is there, and what goes until it has gone: what is there and not noted is the
    # administrator's, also for who starts after a crash.
    noted = united(before, added)
    if noted != before:
        save_keepsakes(state_dir, msgspec.structs.replace(keepsakes, reserved_ports_added=noted))
    if wanted != present:
        sysctl.write(_RESERVED_PORTS, wanted)
    if added != noted:
        with contextlib.suppress(Unavailable):  # too much noted does no harm, and DEL works on a full disk
            save_keepsakes(state_dir, msgspec.structs.replace(keepsakes, reserved_ports_added=added))


def reserved_ports() -> str:
    """The setting as it is now. Raises KernelError."""
    return sysctl.read(_RESERVED_PORTS, _LONGEST_BYTES)


def give_ports_back(keepsakes: Keepsakes) -> None:
    """Leave only the administrator's reserved ports. Raises KernelError."""
    present = reserved_ports()
    left = restored(present, keepsakes.reserved_ports_added)
    if left != present:
        sysctl.write(_RESERVED_PORTS, left)


def find_link(netlink: Netlink, name: str | int) -> Link | None:
    """A link, or None when there is none. Raises KernelError."""
    try:
        return netlink.get(link_get(name))
    except NotFound:
        return None


def wrong_settings(name: str) -> list[str]:
    """The settings of one of our devices that are not as they should be. Raises KernelError."""
    return [
        f"{family}.{key}"
        for family, key, value in _SETTINGS[name]
        if _read(name, family, key) not in (value, None)
    ]


def _ensure_pair(netlink: Netlink, keepsakes: Keepsakes, mtu: int) -> tuple[Link, Link]:
    host, peer = _own_link(netlink, HOST), _own_link(netlink, HOST_PEER)
    if host is None or peer is None or host.peer_ifindex != peer.ifindex:
        # Renamed or moved away, one end or both: what is left has our mark, and goes with its other end.
        for link in (host, peer):
            if link is not None:
                netlink.request(link_del(link.ifindex).tolerating(errno.ENODEV))
        # Both are ours from the first moment: a daemon that is killed right after this can be started again.
        netlink.request(veth_add(HOST, HOST_PEER, group=LINK_GROUP, peer_group=LINK_GROUP))
        sysctl.write(("net", "ipv4", "conf", HOST, "forwarding"), 0)  # it begins with what the node has
        host, peer = netlink.get(link_get(HOST)), netlink.get(link_get(HOST_PEER))
    host_mac, peer_mac = mac_bytes(keepsakes.host_mac), mac_bytes(keepsakes.host_peer_mac)
    # Without ARP: whatever is sent towards the switch needs no address resolution.
    return _bring(netlink, host, host_mac, mtu, arp=False), _bring(netlink, peer, peer_mac, mtu)


def _ensure_tunnel(netlink: Netlink, keepsakes: Keepsakes, port: int, *, needed: bool) -> Link:
    mac = mac_bytes(keepsakes.tunnel_mac)
    tunnel = _own_link(netlink, TUNNEL)
    if tunnel is not None and (tunnel.kind != "vxlan" or keepsakes.vxlan_port not in (0, port)):
        netlink.request(link_del(tunnel.ifindex))
        tunnel = None
    if tunnel is None:
        for link in netlink.dump(link_dump()):
            if link.kind == "vxlan" and link.group == LINK_GROUP:  # renamed: it has our port
                netlink.request(link_del(link.ifindex))
        netlink.request(vxlan_external_add(TUNNEL, port=port, mac=mac, mtu=_TUNNEL_MTU, group=LINK_GROUP))
        tunnel = netlink.get(link_get(TUNNEL))
    try:
        return _bring(netlink, tunnel, mac, _TUNNEL_MTU)
    except KernelError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        if not needed:
            return netlink.get(link_get(tunnel.ifindex))
        raise Conflict(f"UDP port {port} (vxlan_port) is in use by another device or program") from error


def _bring(netlink: Netlink, link: Link, mac: bytes, mtu: int, *, arp: bool = True) -> Link:
    """Give a device its properties where they differ, and set it up last."""
    as_it_should = (mac, mtu, LINK_GROUP, LINK_ALIAS, arp)
    if (link.mac, link.mtu, link.group, link.alias, not link.flags & _IFF_NOARP) != as_it_should:
        netlink.request(link_set(link.ifindex, mac=mac, mtu=mtu, group=LINK_GROUP, alias=LINK_ALIAS, arp=arp))
    for family, key, value in _SETTINGS[link.name]:
        if _read(link.name, family, key) not in (value, None):
            sysctl.write(("net", family, "conf", link.name, key), value)
    if not link.up:
        netlink.request(link_set(link.ifindex, up=True))
    return netlink.get(link_get(link.ifindex))


def _own_link(netlink: Netlink, name: str) -> Link | None:
    link = find_link(netlink, name)
    if link is not None and link.group != LINK_GROUP and link.alias != LINK_ALIAS:
        raise Conflict(f"an interface {name} is there that Samewire did not make")
    return link


def _read(name: str, family: str, key: str) -> int | None:
    """A setting's value; None when the kernel has no such setting (IPv6 switched off)."""
    try:
        return int(sysctl.read(("net", family, "conf", name, key)))
    except NotFound:
        return None
    except ValueError as error:
        raise KernelError(f"read {family}.{key} of {name}", 22, str(error)) from error
