"""The network between the nodes: a switch namespace with one Linux bridge a segment, a router namespace, the
nodes.

The bridges are the underlay's real L2 switches, with MAC tables that ``bridge fdb`` shows; the router has a
leg on every segment and a cable to every outside host, and no route to any pod. Nothing touches the namespace
that the lab is started from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from samewire.errors import Conflict
from samewire.lab.addressing import bare, family_of, on_underlay, router_addresses, segments
from samewire.lab.cluster import Stack
from samewire.lab.commands import bounded, ip_batch, netns_path, run, sysctls
from samewire.lab.names import node_netns
from samewire.lab.plan import NodePlan, OutsidePlan, Plan
from samewire.lab.services import routed_addresses, service_plans
from samewire.lab.state import NETNS, Lab

#: What a node calls its NIC.
UPLINK = "eth0"
#: The default route of a family.
DEFAULT = {4: "0.0.0.0/0", 6: "::/0"}
#: The router's address on the cable of every outside host; never seen on any other.
_CABLE_GATEWAYS = {4: "169.254.1.1", 6: "fe80::1"}
_PARALLEL = 4

# Duplicate address detection would keep every IPv6 address unusable for a second or two.
_BASE_SYSCTLS = {
    "ipv6.conf.default.accept_dad": 0,
    "ipv6.conf.all.accept_dad": 0,
    "ipv6.conf.default.accept_ra": 0,
    "ipv4.conf.default.rp_filter": 0,
    "ipv4.conf.all.rp_filter": 0,
}
_FORWARDING = {"ipv4.ip_forward": 1, "ipv6.conf.all.forwarding": 1, "ipv6.conf.default.forwarding": 1}


async def create_namespaces(lab: Lab, names: Sequence[str]) -> None:
    """Make named network namespaces, noted first; Conflict when one exists and is not this lab's."""
    for name in names:
        if Path(netns_path(name)).exists():
            raise Conflict(f"the network namespace {name} exists already and is not this lab's")
        lab.note(NETNS, name)
    await ip_batch(None, [f"netns add {name}" for name in names])
    await bounded(_PARALLEL, [_initialise(name) for name in names])


async def remove_namespaces(names: Iterable[str]) -> None:
    """Remove named network namespaces; those that are gone are no error."""
    present = [name for name in names if Path(netns_path(name)).exists()]
    await ip_batch(None, [f"netns del {name}" for name in present])


async def build(lab: Lab, plan: Plan) -> None:
    """Make the whole underlay: switch, router, node and outside namespaces, cabled and addressed."""
    roles = ["switch", "router", *(node.name for node in plan.nodes), *(host.name for host in plan.outside)]
    await create_namespaces(lab, [node_netns(plan.name, role) for role in roles])
    switch, router = node_netns(plan.name, "switch"), node_netns(plan.name, "router")
    await sysctls(switch, {"ipv6.conf.all.disable_ipv6": 1, "ipv6.conf.default.disable_ipv6": 1})
    await sysctls(router, _FORWARDING)
    await ip_batch(switch, _switch_commands(plan))
    await ip_batch(router, _router_commands(plan))
    await bounded(
        _PARALLEL, [ip_batch(node_netns(plan.name, name), lines) for name, lines in _leaf_commands(plan)]
    )


async def uplink_mac(netns: str) -> str:
    """The MAC address of a node's NIC."""
    links = json.loads(await run("ip", "-n", netns, "-json", "link", "show", UPLINK))
    return str(links[0]["address"])


async def learned_macs(cluster: str) -> dict[str, set[str]]:
    """Port -> MAC addresses that the underlay's switches have learned on it."""
    netns = node_netns(cluster, "switch")
    table = json.loads(await run("bridge", "-n", netns, "-json", "fdb", "show") or "[]")
    found: dict[str, set[str]] = {}
    for entry in table:
        if entry.get("state") not in {"permanent", "static"} and entry.get("master"):
            found.setdefault(entry["ifname"], set()).add(entry["mac"])
    return found


async def _initialise(name: str) -> None:
    await sysctls(name, _BASE_SYSCTLS)
    await ip_batch(name, ["link set lo up"])


def _switch_commands(plan: Plan) -> list[str]:
    mtu = plan.cluster.underlay.mtu
    lines = []
    for segment in range(len(segments(plan.cluster))):
        bridge = f"seg{segment}"
        lines += [
            f"link add {bridge} mtu {mtu} type bridge forward_delay 0 stp_state 0 mcast_snooping 0",
            f"link set {bridge} up",
            *_cable(f"router{segment}", bridge, mtu, f"seg{segment}", node_netns(plan.name, "router")),
        ]
    for node in plan.nodes:
        bridge = f"seg{node.uplink.segment}"
        lines += _cable(node.port, bridge, mtu, UPLINK, node_netns(plan.name, node.name))
        lines.append(f"link set {node.port} alias {node.name}")
    for index, host in enumerate(plan.outside):
        for leg in host.legs:
            port, bridge = f"out{index}s{leg.segment}", f"seg{leg.segment}"
            lines += _cable(port, bridge, mtu, bridge, node_netns(plan.name, host.name))
    return lines


def _cable(port: str, bridge: str, mtu: int, peer: str, peer_netns: str) -> list[str]:
    return [
        f"link add {port} mtu {mtu} type veth peer name {peer} mtu {mtu} netns {peer_netns}",
        f"link set {port} master {bridge} up",
    ]


def _router_commands(plan: Plan) -> list[str]:
    lines = []
    for segment in range(len(segments(plan.cluster))):
        lines += _addressed(f"seg{segment}", router_addresses(plan.cluster, segment))
    for index, host in enumerate(plan.outside):
        port, netns = f"out{index}", node_netns(plan.name, host.name)
        mtu = plan.cluster.underlay.mtu
        lines.append(f"link add {port} mtu {mtu} type veth peer name {UPLINK} mtu {mtu} netns {netns}")
        for address in host.addresses:
            family = family_of(address)
            length = "32" if family == 4 else "64"
            lines += _addressed(port, [f"{_CABLE_GATEWAYS[family]}/{length}"])
            lines.append(f"route add {address} dev {port}")
    return [*lines, *service_routes(plan)]


def service_routes(plan: Plan) -> list[str]:
    """Addresses of Services that the world beyond knows: to the first samewire node, as a cloud would send them. One
    that a machine of the lab has is there already.
    """
    balancer = next((node for node in plan.nodes if node.stack is Stack.SAMEWIRE), None)
    if balancer is None:
        return []
    services = service_plans(plan.services, plan.cluster.services.cluster_cidrs)
    own = {address for node in plan.nodes for address in (*node.addresses, *node.uplink.gateways)}
    own |= {address for host in plan.outside for address in host.addresses}
    return [
        f"route add {address} via {via}"
        for address in routed_addresses(services)
        if address not in own and (via := balancer.address(family_of(address)))
    ]


def _leaf_commands(plan: Plan) -> list[tuple[str, list[str]]]:
    jobs = []
    for node in plan.nodes:
        lines = _addressed(UPLINK, node.uplink.addresses)
        lines += [f"route add {DEFAULT[family_of(via)]} via {via}" for via in node.uplink.gateways]
        jobs.append((node.name, lines))
    jobs += [(host.name, _outside_commands(plan, host)) for host in plan.outside]
    return jobs


def _outside_commands(plan: Plan, host: OutsidePlan) -> list[str]:
    lines = []
    for address in host.addresses:
        family, gateway = family_of(address), _CABLE_GATEWAYS[family_of(address)]
        lines += _addressed(UPLINK, [f"{address}/{32 if family == 4 else 128}"])
        lines.append(f"route add {DEFAULT[family]} via {gateway} dev {UPLINK} onlink")
    for leg in host.legs:
        # Host routes only: nodes themselves are still reached over the router, as from any other host
        # outside.
        port = f"seg{leg.segment}"
        lines += _addressed(
            port, [f"{bare(text)}/{32 if family_of(text) == 4 else 128}" for text in leg.addresses]
        )
        for node in plan.nodes:
            if node.uplink.segment == leg.segment:
                lines += _pod_routes(plan, node, host, port)
    return lines


def _pod_routes(plan: Plan, node: NodePlan, host: OutsidePlan, port: str) -> list[str]:
    lines = []
    for prefix in node.pod_cidrs:
        family = family_of(prefix)
        via = node.address(family)
        source = next((address for address in host.addresses if family_of(address) == family), None)
        if via and source and on_underlay(plan.cluster, prefix) is None:
            lines.append(f"route add {prefix} via {via} dev {port} onlink src {source}")
    return lines


def _addressed(device: str, addresses: Iterable[str]) -> list[str]:
    lines = []
    for address in addresses:
        nodad = " nodad" if ":" in address else ""
        lines.append(f"addr add {address} dev {device}{nodad}")
    return [*lines, f"link set {device} up"]
