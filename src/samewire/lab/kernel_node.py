"""A node built the way stock Linux nodes are: Debian's CNI plugins and the kernel's own forwarding.

The independent peer of the lab: pods on the ``bridge`` plugin with ``host-local`` and ``portmap``; other
nodes' pods over kernel VXLAN with static ARP, FDB and onlink routes exactly as flannel's ``vxlan`` backend
programs them, or (L2Bridge) over host-gw routes; masquerade by iptables the way flannel writes it. On a range
of the underlay's own subnet the node answers ARP and ND for its pods with its own MAC (proxy ARP), which is
what an L2Bridge node looks like from the wire.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from samewire.lab.addressing import family_of, first_host, on_underlay, vxlan_overhead
from samewire.lab.cluster import Network, NetworkType, Stack
from samewire.lab.cni import DEBIAN_PLUGINS, Runtime, dns_section, host_local, port_mappings
from samewire.lab.commands import bridge_batch, in_netns, ip_batch, netns_path, run, sysctls
from samewire.lab.plan import nat_exceptions
from samewire.lab.podspec import DnsConfig
from samewire.lab.schedule import Pod
from samewire.lab.services import cluster_prefixes
from samewire.lab.stack import Attached, NodeContext, Vtep
from samewire.lab.underlay import UPLINK

_BRIDGE = "cni0"
_MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}


class KernelNode:
    """NodeStack of a stock Linux node. It carries one network (the cluster file's rules see to it)."""

    socket = ""

    def __init__(self, context: NodeContext) -> None:
        self._context = context
        self._node = context.node
        self._cluster = context.plan.cluster
        self._network: Network = self._cluster.networks[0]
        self._device = f"vxlan{self._network.vni}"
        self._mapping = asyncio.Lock()
        self._runtime = Runtime(context.netns, (DEBIAN_PLUGINS,))

    async def prepare(self) -> list[Vtep]:
        """Forwarding, masquerade, and the VXLAN device or the proxy settings of the uplink."""
        forwarding: dict[str, object] = {"ipv4.ip_forward": 1, "ipv6.conf.all.forwarding": 1}
        await sysctls(self._context.netns, {**forwarding, "ipv6.conf.default.forwarding": 1})
        await self._masquerade()
        mac = ""
        if self._network.type is NetworkType.OVERLAY:
            mac = await self._vxlan_device()
        elif self._on_underlay():
            await self._proxy()
        return [Vtep(self._network.name, self._node.name, self._node.addresses[0], mac, self._node.pod_cidrs)]

    async def connect(self, vteps: Sequence[Vtep]) -> None:
        """flannel's order a lease: ARP, FDB, route; host-gw: a route through the other node."""
        links, entries = [], []
        for vtep in vteps:
            for prefix in vtep.pod_cidrs:
                family = family_of(prefix)
                if self._network.type is NetworkType.OVERLAY:
                    base = _base(prefix)
                    links += [
                        f"neigh replace {base} lladdr {vtep.mac} dev {self._device} nud permanent",
                        f"route replace {prefix} via {base} dev {self._device} onlink",
                    ]
                elif on_underlay(self._cluster, prefix) is None:
                    peer = next(node for node in self._context.plan.nodes if node.name == vtep.node)
                    links.append(f"route replace {prefix} via {peer.address(family)} dev {UPLINK}")
            if vtep.mac:
                entries.append(
                    f"fdb replace {vtep.mac} dev {self._device} self permanent dst {vtep.provider_address}"
                )
        await bridge_batch(self._context.netns, entries)
        await ip_batch(self._context.netns, [*links, *self._service_routes(vteps)])

    async def add_pod(self, pod: Pod, netns: str, dns: DnsConfig) -> Attached:
        """ADD of ``bridge`` and ``portmap``; on the underlay, IPv6 needs a proxy entry an address."""
        arguments = {"portMappings": port_mappings(pod)}
        # The plugin makes its chains unless they are there: of two at once, one fails.
        async with self._mapping if arguments["portMappings"] else nullcontext():
            attached = await self._runtime.add(self._conflist(dns), pod, netns_path(netns), arguments)
        if self._on_underlay():
            entries = [f"neigh add proxy {a} dev {UPLINK}" for a in attached.addresses if family_of(a) == 6]
            await ip_batch(self._context.netns, entries)
        return attached

    async def settle(self, services: Mapping[str, bool], lacking: Collection[str]) -> None:
        """Nothing to wait for: Services are balanced elsewhere."""

    def host_addresses_in_pod_network(self, network: str) -> tuple[str, ...]:
        """The bridge's addresses (towards own pods) and the VXLAN device's (towards others')."""
        if network != self._network.name:
            return ()
        overlay = self._network.type is NetworkType.OVERLAY
        bases = [_base(prefix) for prefix in self._node.pod_cidrs] if overlay else []
        return (*(first_host(prefix) for prefix in self._node.pod_cidrs), *bases)

    def _service_routes(self, vteps: Sequence[Vtep]) -> list[str]:
        """Cluster IPs over the first samewire node: this one has no proxy."""
        plan = self._context.plan
        if self._network.type is not NetworkType.OVERLAY or not plan.services:
            return []
        balancers = {node.name for node in plan.nodes if node.stack is Stack.SAMEWIRE}
        vtep = next((vtep for vtep in vteps if vtep.node in balancers), None)
        bases = {family_of(prefix): _base(prefix) for prefix in (vtep.pod_cidrs if vtep else ())}
        return [
            f"route replace {prefix} via {bases[family_of(prefix)]} dev {self._device} onlink"
            for prefix in cluster_prefixes(plan.services, self._cluster.services.cluster_cidrs)
            if family_of(prefix) in bases
        ]

    async def _vxlan_device(self) -> str:
        """The VXLAN device with the base address of each pod prefix; returns its MAC address."""
        mtu = self._cluster.underlay.mtu - vxlan_overhead(self._cluster)
        network, device = self._network, self._device
        lines = [
            f"link add {device} mtu {mtu} type vxlan id {network.vni} dev {UPLINK} "
            f"local {self._node.addresses[0]} dstport {network.vxlan_port} nolearning",
            *(
                f"addr add {_base(prefix)}/{ipaddress.ip_network(prefix).max_prefixlen} dev {device}"
                for prefix in self._node.pod_cidrs
            ),
            f"link set {device} up",
        ]
        await ip_batch(self._context.netns, lines)
        links = json.loads(await run("ip", "-n", self._context.netns, "-json", "link", "show", device))
        return str(links[0]["address"])

    async def _proxy(self) -> None:
        """Answer for the pods' addresses on the uplink at once (the kernel would wait up to 0.8 s)."""
        settings: dict[str, object] = {
            f"ipv4.conf.{UPLINK}.proxy_arp": 1,
            f"ipv4.neigh.{UPLINK}.proxy_delay": 0,
            f"ipv6.conf.{UPLINK}.proxy_ndp": 1,
            f"ipv6.neigh.{UPLINK}.proxy_delay": 0,
        }
        await sysctls(self._context.netns, settings)

    async def _masquerade(self) -> None:
        """flannel's rules: pods' own addresses to the exceptions and multicast, the node's to the rest."""
        exceptions = nat_exceptions(self._cluster, self._network)
        for family in (4, 6):
            prefix = self._node.pod_cidr(family)
            if prefix is None or self._node.address(family) is None:
                continue
            kept = [text for text in exceptions if family_of(text) == family]
            rules = [
                "*nat",
                ":SAMEWIRE-LAB - [0:0]",
                "-A POSTROUTING -j SAMEWIRE-LAB",
                *(f"-A SAMEWIRE-LAB -s {prefix} -d {text} -j RETURN" for text in kept),
                f"-A SAMEWIRE-LAB -s {prefix} ! -d {_MULTICAST[family]} -j MASQUERADE --random-fully",
                "COMMIT",
            ]
            tool = "iptables-restore" if family == 4 else "ip6tables-restore"
            await in_netns(self._context.netns, tool, "--noflush", stdin="\n".join(rules) + "\n")

    def _on_underlay(self) -> bool:
        return on_underlay(self._cluster, self._node.pod_cidrs[0]) is not None

    def _conflist(self, dns: DnsConfig) -> dict[str, Any]:
        overlay = self._network.type is NetworkType.OVERLAY
        bridge = {
            "type": "bridge",
            "bridge": _BRIDGE,
            "isGateway": True,
            "hairpinMode": True,
            "mtu": self._cluster.underlay.mtu - (vxlan_overhead(self._cluster) if overlay else 0),
            "ipam": host_local(
                [{"subnet": prefix} for prefix in self._node.pod_cidrs], self._context.directory / "ipam"
            ),
            "dns": dns_section(dns),
        }
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
        return {"cniVersion": "1.0.0", "name": self._network.name, "plugins": [bridge, portmap]}


def _base(prefix: str) -> str:
    """The first address of a prefix: what flannel gives to the VXLAN device."""
    return str(ipaddress.ip_network(prefix).network_address)
