"""Health checks of the node's own network and of the networks' settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from samewire.counted import counted
from samewire.hcn.policies import RemoteSubnetRoute, select
from samewire.hcn.schema import Network, NetworkType
from samewire.trace.snapshot import Finding, Level, LinkInfo, Snapshot
from samewire.vfp.address import IPV4, IPV6, ZERO, mac_text, parse_address, parse_mac, parse_prefix
from samewire.vfp.compile.plan import BRIDGED
from samewire.vfp.model import NodeFacts

_APIPA: Final = "169.254.0.0/16"
_NODE_PORTS: Final = range(30000, 32768)
_STRICT: Final = 1
_ISOLATED: Final = frozenset({NetworkType.INTERNAL, NetworkType.PRIVATE})


def uplink(snapshot: Snapshot) -> Iterator[Finding]:
    """The node has a NIC, and it is up."""
    facts = snapshot.facts
    link = _link(snapshot, facts.uplink_ifindex)
    if not facts.uplink_ifindex and snapshot.configured_uplink:
        yield Finding(
            Level.ERROR,
            "uplink",
            facts.name,
            f"the NIC {snapshot.configured_uplink} of the configuration is not here: pods reach only each other on "
            "this node",
            "The daemon waits for it. Correct `uplink` in its configuration if the NIC is called otherwise, or "
            "leave it empty for the interface of the default route.",
        )
    elif not facts.uplink_ifindex:
        yield Finding(
            Level.ERROR,
            "uplink",
            facts.name,
            "the node has no uplink: pods reach only each other on this node",
            "Set `uplink` in the daemon's configuration, or give the node a default route.",
        )
    elif snapshot.links is not None and (link is None or not link.up):
        name = link.name if link else f"interface {facts.uplink_ifindex}"
        yield Finding(Level.ERROR, "uplink", name, "the uplink is down", f"ip link set {name} up")


def management_address(snapshot: Snapshot) -> Iterator[Finding]:
    """The address that peers and outside hosts see is a real one."""
    facts = snapshot.facts
    if facts.uplink_ifindex and not facts.addresses:
        yield Finding(
            Level.ERROR,
            "management-address",
            facts.name,
            "the node has no address: nothing can be translated or encapsulated",
            "Give the uplink an address (DHCP has not answered?).",
        )
    for prefix in facts.addresses:
        if prefix.family == IPV4 and prefix.address in parse_prefix(_APIPA):
            yield Finding(
                Level.ERROR,
                "management-address",
                str(prefix),
                "the address is an automatic private one (APIPA): no DHCP server has answered",
                "Repair DHCP or set the address; other nodes cannot reach this one.",
            )


def default_route(snapshot: Snapshot) -> Iterator[Finding]:
    """There is a way out, for the families that the node speaks."""
    facts = snapshot.facts
    if not facts.uplink_ifindex:
        return
    for family in sorted({prefix.family for prefix in facts.addresses}):
        if facts.gateway(family) == ZERO:
            yield Finding(
                Level.WARNING,
                "default-route",
                f"IPv{family}",
                f"the node has an IPv{family} address and no IPv{family} default route through the uplink: its pods "
                "reach nothing beyond the node's own subnet",
                "Add a default route, if anything beyond is to be reached.",
            )


def families(snapshot: Snapshot) -> Iterator[Finding]:
    """The node speaks the IP versions that its pods and its tunnels have."""
    facts = snapshot.facts
    if not facts.addresses:
        return
    routed = {
        network.id
        for network in snapshot.networks
        if network.type not in _ISOLATED and not _is_tagged(network, facts)
    }
    for family, mark in ((IPV4, "."), (IPV6, ":")):
        pods = [
            info
            for info in snapshot.endpoints
            if info.port and info.network_id in routed and any(mark in text for text in info.addresses)
        ]
        if pods and facts.address(family) == ZERO:
            yield Finding(
                Level.WARNING,
                "families",
                f"IPv{family}",
                f"endpoints with IPv{family} addresses: {len(pods)}, and the node has none: they cannot get out by it",
                f"Give the uplink an IPv{family} address, or take the family out of the network's subnets.",
            )
        tunnels = sum(
            parse_address(route.provider_address).family == family
            for network in snapshot.networks
            for route in select(network.policies, RemoteSubnetRoute)
        )
        if tunnels and facts.address(family) == ZERO:
            yield Finding(
                Level.ERROR,
                "remote-subnet",
                f"IPv{family}",
                f"{counted(tunnels, 'route')} to other nodes by IPv{family}, and the node has no such address: their "
                "pods are out of reach",
                f"Give the uplink its IPv{family} address back.",
            )


def _is_tagged(network: Network, facts: NodeFacts) -> bool:
    """Whether its pods are in a VLAN of the uplink's, in which the node has no part."""
    return network.type in BRIDGED and network.vlan not in (0, facts.uplink_vlan)


def vlans(snapshot: Snapshot) -> Iterator[Finding]:
    """Tags are on the wire as networks want them, and no device of the node waits for what is theirs."""
    facts = snapshot.facts
    for network in snapshot.networks:
        if not _is_tagged(network, facts):
            continue
        if facts.uplink_vlan:
            yield Finding(
                Level.ERROR,
                "vlan",
                network.name,
                f"the uplink is an interface of VLAN {facts.uplink_vlan}: the network's tag, VLAN {network.vlan}, is "
                "within that one",
                "Make the interface below the uplink, or the network anew in the uplink's own VLAN.",
            )
        elif network.vlan in facts.vlans:
            yield Finding(
                Level.WARNING,
                "vlan",
                network.name,
                f"a device of the node is in VLAN {network.vlan}, too: it does not see what goes to the network's "
                "endpoints, and they do not reach it on this node",
                "Expected where the node is to be in that VLAN beside its pods; they reach it by no way of this node.",
            )


def vnis(snapshot: Snapshot) -> Iterator[Finding]:
    """A VNI means one network, and its routes agree with it."""
    used = Counter(network.vni for network in snapshot.networks if network.vni)
    for network in snapshot.networks:
        if used[network.vni] > 1:
            yield Finding(
                Level.ERROR,
                "vni",
                network.name,
                f"VNI {network.vni} belongs to {used[network.vni]} networks; frames from the tunnel reach only one",
                "Give each overlay network a VSID of its own, the same one on every node.",
            )
        for route in select(network.policies, RemoteSubnetRoute):
            if route.isolation_id != network.vni:
                yield Finding(
                    Level.WARNING,
                    "vni",
                    f"{network.name} {route.destination_prefix}",
                    f"the route says VNI {route.isolation_id}, the network's subnets {network.vni}: the other node "
                    "answers with a VNI that is not expected here",
                    "Make the RemoteSubnetRoute's IsolationId that of the network's VSID policy.",
                )


def remote_subnets(snapshot: Snapshot) -> Iterator[Finding]:
    """What lives behind other nodes is not here as well."""
    own = {prefix.address for prefix in snapshot.facts.addresses}
    for network in snapshot.networks:
        subnets = [parse_prefix(subnet.ip_address_prefix) for subnet in network.subnets]
        for route in select(network.policies, RemoteSubnetRoute):
            prefix, name = (
                parse_prefix(route.destination_prefix),
                f"{network.name} {route.destination_prefix}",
            )
            if any(subnet in prefix for subnet in subnets):
                yield Finding(
                    Level.ERROR,
                    "remote-subnet",
                    name,
                    "the route covers the network's own subnet on this node",
                    "Two nodes have been given overlapping pod subnets; remove the route or renumber one of them.",
                )
            if parse_prefix(route.provider_address).address in own:
                yield Finding(
                    Level.ERROR,
                    "remote-subnet",
                    name,
                    f"the route leads to this node itself ({route.provider_address})",
                    "Remove the stale RemoteSubnetRoute: the subnet's node has changed its address.",
                )


def router_macs(snapshot: Snapshot) -> Iterator[Finding]:
    """Every node's router MAC is its own: kernels drop VXLAN frames whose inner source is their own MAC."""
    own = snapshot.facts.tunnel_mac
    for network in snapshot.networks:
        # A node may have one provider address of each family.
        owners: dict[tuple[bytes, int], set[str]] = {}
        for route in select(network.policies, RemoteSubnetRoute):
            mac, address = (
                parse_mac(route.distributed_router_mac_address),
                parse_address(route.provider_address),
            )
            owners.setdefault((mac, address.family), set()).add(str(address))
        for (mac, _), nodes in owners.items():
            if mac == own or len(nodes) > 1:
                who = "this node" if mac == own else "another node"
                yield Finding(
                    Level.ERROR,
                    "router-mac",
                    f"{network.name} {mac_text(mac)}",
                    f"the router MAC of {', '.join(sorted(nodes))} is also that of {who}; its frames are dropped as "
                    "the receiver's own",
                    "Use the DrMacAddress that each node publishes in its RemoteSubnetRoutes.",
                )


def tunnel_device(snapshot: Snapshot) -> Iterator[Finding]:
    """Overlay networks have their VXLAN device, and nobody else has its UDP port; also before there is one, as on a
    node that is to be taken over.
    """
    overlays = [network for network in snapshot.networks if network.type is NetworkType.OVERLAY]
    facts = snapshot.facts
    link = _link(snapshot, facts.tunnel_ifindex)
    if snapshot.links is None or (link.up if link else not overlays):
        return
    others = [found.name for found in snapshot.links if found.kind == "vxlan" and not found.ours]
    taken = f"; {', '.join(others)} may hold UDP port {facts.vxlan_port}" if others else ""
    unreachable = (snapshot.kernel_stats or {}).get("Udp.NoPorts", 0)
    lost = f"; {unreachable} UDP datagrams came to ports that nobody listens on" if unreachable else ""
    lack = f"{_names(overlays)} cannot reach other nodes" if overlays else "no overlay network can be made"
    yield Finding(
        Level.ERROR,
        "tunnel",
        link.name if link else "swvxlan0",
        f"the VXLAN device is {'down' if link else 'missing'}: {lack}{taken}{lost}",
        "Remove what has the UDP port: another VXLAN device (did flannel, Cilium or Calico leave one?) or a program "
        "(`ss -lunp`). Or choose another `vxlan_port` on all nodes. From a flannel that still runs, `samewire "
        "takeover` takes it.",
    )


def tunnel_traffic(snapshot: Snapshot) -> Iterator[Finding]:
    """What other nodes send through the tunnel gets in, and what this one sends gets out."""
    seen, port = snapshot.tunnel, snapshot.facts.vxlan_port
    link = _link(snapshot, snapshot.facts.tunnel_ifindex)
    if seen is None or link is None or not link.up:
        return
    if seen.arrived and not seen.received:
        yield Finding(
            Level.ERROR,
            "tunnel",
            link.name,
            f"{counted(seen.arrived, 'frame')} of other nodes came to this node's UDP port {port} while the doctor "
            "looked, and none came out of the tunnel: a firewall of this node drops them",
            f"Let UDP port {port} in from the other nodes (`nft list ruleset`, `iptables -S INPUT`; firewalld and ufw "
            "need to be told).",
        )
    if seen.failed:
        yield Finding(
            Level.WARNING,
            "tunnel",
            link.name,
            f"{counted(seen.failed, 'frame')} to other nodes could not be sent while the doctor looked",
            "Is there a route to their addresses (`ip route get`), and does a firewall of this node drop UDP port "
            f"{port} on its way out (`nft list ruleset`, hook output)?",
        )


def reverse_path_filter(snapshot: Snapshot) -> Iterator[Finding]:
    """Strict reverse path filtering does not eat what the switch hands to the node."""
    host = _link(snapshot, snapshot.facts.host_ifindex)
    nic = _link(snapshot, snapshot.facts.uplink_ifindex)
    if host is not None and _rp_filter(snapshot, host.name) == _STRICT:
        yield Finding(
            Level.ERROR,
            "rp-filter",
            host.name,
            "reverse path filtering is strict: packets of pods whose network the node has no route for are dropped",
            f"sysctl -w net.ipv4.conf.{host.name}.rp_filter=2",
        )
    eaten = (snapshot.kernel_stats or {}).get("TcpExt.IPReversePathFilter", 0)
    if nic is not None and eaten and _rp_filter(snapshot, nic.name) == _STRICT:
        yield Finding(
            Level.WARNING,
            "rp-filter",
            nic.name,
            f"reverse path filtering is strict and has dropped {counted(eaten, 'packet')}: answers that come back "
            "another way (several uplinks, direct server return) are lost",
            f"sysctl -w net.ipv4.conf.{nic.name}.rp_filter=2, if the way back is meant to differ",
        )


def node_ports(snapshot: Snapshot) -> Iterator[Finding]:
    """The NAT pool leaves Kubernetes' NodePort range alone."""
    low, high = snapshot.facts.nat_port_low, snapshot.facts.nat_port_high
    if low <= _NODE_PORTS[-1] and high >= _NODE_PORTS[0]:
        yield Finding(
            Level.WARNING,
            "nat-range",
            f"{low}-{high}",
            "the NAT pool overlaps the NodePort range 30000-32767: a translated connection may hold a service's port",
            "Choose `nat_ports` outside of it (default 49152-65535).",
        )


def _link(snapshot: Snapshot, ifindex: int) -> LinkInfo | None:
    return next((link for link in snapshot.links or () if ifindex and link.ifindex == ifindex), None)


def _rp_filter(snapshot: Snapshot, interface: str) -> int:
    """What is in force: the higher of the device's own setting and the one for all."""
    values = [snapshot.sysctls.get(f"net/ipv4/conf/{name}/rp_filter", "0") for name in ("all", interface)]
    return max(int(value) if value.isdigit() else 0 for value in values)


def _names(networks: list[Network]) -> str:
    return ", ".join(network.name or network.id for network in networks)
