"""A node without the daemon: the switch loaded and attached, its tables filled by the real compilers, pods with
real interfaces. For tests that want to see packets go through.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from samewire.hcn.policies import Policy
from samewire.hcn.schema import Endpoint, IpConfiguration, Network
from samewire.kernel import sysctl
from samewire.kernel.bpf import BpfLink, BpfMap, BpfObject, BpfProgram, SkbContext
from samewire.kernel.bpf.link import AttachType
from samewire.kernel.features import has_csum_ipv6, has_tcx
from samewire.kernel.netns import cookie as netns_cookie
from samewire.kernel.rtnetlink import (
    Request,
    address_add,
    bpf_filter_replace,
    clsact_add,
    link_get,
    link_set,
    neighbour_replace,
    route_replace,
    veth_add,
    vxlan_external_add,
)
from samewire.node.hooks import SOCKETS
from samewire.node.links import shaper
from samewire.node.tables import KernelTables
from samewire.vfp.address import Prefix, parse_address, parse_interface
from samewire.vfp.compile import compile_endpoint, compile_link, compile_node
from samewire.vfp.constants import LOOPBACK, Counter, Layer, Reason
from samewire.vfp.diff import Operation, Put
from samewire.vfp.model import HostBinding, NodeFacts, PortLink
from samewire.vfp.numbers import MemoryNumbers
from samewire.vfp.ownership import Ownership
from samewire.vfp.record import Record
from samewire.vfp.tables import TABLES, Config, Count, DropKey, Flow, FlowKey, Id
from tests.support.compiled import whole_network
from tests.support.netlab import Lab, Space, Wire, poll

BUILT: Final = Path(__file__).parents[2] / "src" / "samewire" / "_build"
NAT_PORTS: Final = (50000, 50127)
AGEING_AGAIN: Final = 5  # bpf/ageing.h


def short(prefix: Prefix) -> bytes:
    """The packed address as the kernel wants it."""
    return prefix.packed[: 4 if prefix.family == 4 else 16]


class Pod(msgspec.Struct):
    """A pod: its namespace, endpoint, and the ifindex of its port."""

    space: Space
    endpoint: Endpoint
    network: Network
    link: PortLink
    port: int

    @property
    def ip(self) -> str:
        """Its IPv4 address."""
        return next(a for a in self.endpoint.addresses if ":" not in a)

    @property
    def ip6(self) -> str:
        """Its IPv6 address."""
        return next(a for a in self.endpoint.addresses if ":" in a)

    @property
    def mac(self) -> bytes:
        """The MAC of its interface."""
        return self.link.mac

    def address(self, family: int) -> str:
        """Its address of one family."""
        return self.ip if family == 4 else self.ip6


class Node:
    """A namespace with an uplink on a wire, Samewire's own devices, and the switch."""

    def __init__(
        self,
        lab: Lab,
        wire: Wire,
        *addresses: str,
        gateways: Sequence[str] = (),
        flows: int = 4096,
        nat_ports: tuple[int, int] = NAT_PORTS,
        idle: dict[str, int] | None = None,
        mtu: int = 1500,
        counted: bool = False,
    ) -> None:
        self.lab = lab
        self.space = lab.space("node")
        self.flows, self.slots = flows, 4 * flows
        self.idle = idle or {}
        self.wire_port = wire.plug(self.space, "eth0", mtu)
        self.space.address("eth0", *addresses)
        for gateway in gateways:
            self.space.ip("route", "add", "default", "via", gateway)
        self.numbers = MemoryNumbers()
        self.owned = Ownership()
        self.generation = 1
        self.pods: list[Pod] = []
        self._make_devices()
        self._load(counted)
        self.facts = self._facts(addresses, gateways, nat_ports, mtu)
        self._attach()
        compiled = compile_node(self.facts, self.numbers)
        self.apply(self.owned.replace("node", compiled.everything()))
        self.bind(compiled.binding)

    def _make_devices(self) -> None:
        netlink = self.space.netlink
        netlink.request(veth_add("samewire0", "samewire1"))
        netlink.request(vxlan_external_add("swvxlan0", port=4789, mtu=65485))
        netlink.request(link_set("samewire0", arp=False))
        for family, where, key, value in (
            ("ipv4", "samewire0", "rp_filter", 2),
            ("ipv6", "samewire0", "addr_gen_mode", 1),
            ("ipv6", "samewire1", "disable_ipv6", 1),
            ("ipv6", "swvxlan0", "disable_ipv6", 1),
        ):
            self.space.set(family, "conf", where, key, value=value)
        for name in ("samewire0", "samewire1", "swvxlan0"):
            netlink.request(link_set(name, up=True))

    def _load(self, counted: bool) -> None:
        self.object = BpfObject(BUILT / "switch.o")
        self.lab.stack.callback(self.object.close)
        sizes = {"sw_flows": self.flows, "sw_flow_slots": self.slots}
        if counted:
            sizes["sw_flow_counts"] = 2 * self.slots
            self.object.set_constants({"sw_counted_slots": self.slots})
        self.object.set_max_entries(sizes)
        self.object.load()

    def _facts(
        self, addresses: Sequence[str], gateways: Sequence[str], nat_ports: tuple[int, int], mtu: int
    ) -> NodeFacts:
        link = {
            name: self.space.netlink.get(link_get(name))
            for name in ("eth0", "samewire0", "samewire1", "swvxlan0")
        }
        return NodeFacts(
            name="node",
            uplink_ifindex=link["eth0"].ifindex,
            uplink_mac=link["eth0"].mac,
            uplink_mtu=mtu,
            addresses=tuple(parse_interface(text) for text in addresses),
            gateways=tuple(parse_address(text) for text in gateways),
            tunnel_ifindex=link["swvxlan0"].ifindex,
            tunnel_mac=link["swvxlan0"].mac,
            host_ifindex=link["samewire0"].ifindex,
            host_mac=link["samewire0"].mac,
            host_peer_ifindex=link["samewire1"].ifindex,
            host_peer_mac=link["samewire1"].mac,
            nat_port_low=nat_ports[0],
            nat_port_high=nat_ports[1],
            flow_slots=self.slots,
            csum_ipv6=has_csum_ipv6(),
            netns=self.space.run(netns_cookie) & 0xFFFFFFFF,
        )

    def _attach(self) -> None:
        netlink, facts = self.space.netlink, self.facts
        netlink.batch(self.hook(facts.tunnel_ifindex) + self.hook(facts.host_peer_ifindex))
        uplink = facts.uplink_ifindex
        out = self.program("sw_uplink_out")
        if has_tcx():
            for program, kind in (
                (self.program("sw_ingress"), AttachType.TCX_INGRESS),
                (out, AttachType.TCX_EGRESS),
            ):
                link = self.space.run(partial(BpfLink.attach, program, uplink, kind))
                self.lab.stack.callback(link.close)
        else:
            egress = bpf_filter_replace(uplink, "egress", out.fd, "sw_uplink_out")
            netlink.batch([*self.hook(uplink), egress])

    def hook(self, ifindex: int) -> list[Request]:
        """What attaches the program to the ingress of a device."""
        return [
            clsact_add(ifindex),
            bpf_filter_replace(ifindex, "ingress", self.program("sw_ingress").fd, "sw_ingress"),
        ]

    def attach_loopback(self) -> None:
        """Attach to lo what looks at packets from the node to itself, and have it take what comes back."""
        for key, value in (("accept_local", 1), ("route_localnet", 1), ("rp_filter", 2)):
            self.space.set("ipv4", "conf", "lo", key, value=value)
        out = self.program("sw_uplink_out")
        if has_tcx():
            link = self.space.run(partial(BpfLink.attach, out, LOOPBACK, AttachType.TCX_EGRESS))
            self.lab.stack.callback(link.close)
        else:
            egress = bpf_filter_replace(LOOPBACK, "egress", out.fd, "sw_uplink_out")
            self.space.netlink.batch([clsact_add(LOOPBACK), egress])

    def attach_sockets(self, cgroup: Path) -> None:
        """Attach the socket programs to a cgroup."""
        directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name, kind in SOCKETS.items():
                link = BpfLink.attach(self.program(name), directory, kind)
                self.lab.stack.callback(link.close)
        finally:
            os.close(directory)

    def program(self, name: str) -> BpfProgram:
        """A loaded program."""
        return self.object.programs[name]

    def map(self, name: str) -> BpfMap:
        """A table as the kernel has it."""
        return self.object.maps[name]

    def start_ageing(self) -> None:
        """Start the timer that needs no process; as the daemon, ask again while the kernel has no memory for it."""
        program = self.program("sw_start_ageing")
        results: list[int] = []

        def answered() -> bool:
            results.append(self.space.run(lambda: program.test_run(bytes(64), SkbContext())).retval)
            return results[-1] != AGEING_AGAIN

        poll("memory for the timer", answered)
        assert results[-1] == 0

    def apply(self, operations: Sequence[Operation]) -> None:
        """Write operations to the tables, in their order."""
        KernelTables(self.object.maps).write(
            Put(operation.table, operation.key, replace(operation.value, **self.idle))
            if isinstance(operation, Put) and isinstance(operation.value, Config)
            else operation
            for operation in operations
        )

    def bind(self, binding: HostBinding) -> None:
        """Give the node's own stack what an object wants of it."""
        host = self.facts.host_ifindex
        requests = [
            address_add(host, short(prefix), prefix.bits, family=prefix.family, noprefixroute=True)
            for prefix in binding.addresses
        ]
        for route in binding.routes:
            source = route.source
            requests.append(
                route_replace(
                    short(route.destination),
                    route.destination.bits,
                    family=route.destination.family,
                    oif=host,
                    source=source.packed[: 4 if source.family == 4 else 16] if source else None,
                )
            )
        self.space.netlink.batch(requests)
        if binding.reserved_ports:
            path = ("net", "ipv4", "ip_local_reserved_ports")
            self.space.run(lambda: sysctl.write(path, binding.reserved_ports))

    def network(self, network: Network) -> Network:
        """Add a network, or change it; returns it."""
        compiled = whole_network(network, self.facts, self.numbers)
        self.apply(self.owned.replace(("network", network.id), compiled.everything()))
        self.bind(compiled.binding)
        return network

    def pod(self, network: Network, *addresses: str, policies: Sequence[Policy] = (), mac: str = "") -> Pod:
        """Add a pod to a network."""
        number = len(self.pods) + 1
        key = self.facts.uplink_mac[-2:].hex()
        endpoint = Endpoint(
            id=f"{number:08x}-{key}-0000-0000-000000000000",
            network_id=network.id,
            mac_address=mac or f"0E-2A-{key[:2]}-{key[2:]}-00-{number:02X}",
            policies=tuple(policies),
            ip_configurations=tuple(IpConfiguration(ip_address=address) for address in addresses),
        )
        space = self.lab.space(f"pod{number}")
        link = compile_link(endpoint, network, self.facts, space.name)
        port = self._veth(link, space)
        pod = Pod(space, endpoint, network, link, port)
        self.pods.append(pod)
        self._compile(pod)
        self.space.netlink.batch([*self.hook(port), link_set(port, up=True)])
        self._configure(pod)
        return pod

    def policies(self, pod: Pod, *policies: Policy) -> None:
        """Change a pod's policies."""
        pod.endpoint = replace(pod.endpoint, policies=tuple(policies))
        pod.link = compile_link(pod.endpoint, pod.network, self.facts, pod.space.name)
        self._compile(pod)

    def remote(self, network: Network, endpoint: Endpoint) -> None:
        """Add a remote endpoint."""
        compiled = compile_endpoint(endpoint, network, self.facts, self.numbers, 0, 0)
        self.apply(self.owned.replace(("endpoint", endpoint.id), compiled.entries))

    def _compile(self, pod: Pod) -> None:
        self.generation += 1
        compiled = compile_endpoint(
            pod.endpoint, pod.network, self.facts, self.numbers, pod.port, self.generation
        )
        self.apply(self.owned.replace(("endpoint", pod.endpoint.id), compiled.everything()))
        self.bind(compiled.binding)

    def _veth(self, link: PortLink, space: Space) -> int:
        self.space.netlink.request(
            veth_add(
                link.host_name,
                link.interface_name,
                peer_netns_fd=space.ns.fd,
                mac=link.host_mac,
                peer_mac=link.mac,
                mtu=link.mtu,
                peer_mtu=link.mtu,
            )
        )
        self.space.set("ipv6", "conf", link.host_name, "disable_ipv6", value=1)
        port = self.space.ifindex(link.host_name)
        if link.rate_bytes_per_s:
            self.space.netlink.request(shaper(port, link.rate_bytes_per_s, link.burst_bytes))
        return port

    def _configure(self, pod: Pod) -> None:
        link, netlink = pod.link, pod.space.netlink
        peer = pod.space.ifindex(link.interface_name)
        requests = [link_set(peer, up=True)]
        if link.outgoing_rate_bytes_per_s:
            requests.append(shaper(peer, link.outgoing_rate_bytes_per_s, link.outgoing_burst_bytes))
        requests += [address_add(peer, short(own), own.bits, family=own.family) for own in link.addresses]
        for route in link.routes:
            gateway = route.gateway
            requests.append(
                route_replace(
                    short(route.destination) if route.destination.bits else None,
                    route.destination.bits,
                    family=route.destination.family,
                    oif=peer,
                    gateway=gateway.packed[: 4 if gateway.family == 4 else 16] if gateway else None,
                    onlink=True,
                )
            )
        requests += [
            neighbour_replace(
                peer,
                item.address.packed[: 4 if item.address.family == 4 else 16],
                item.mac,
                family=item.address.family,
            )
            for item in link.neighbours
        ]
        netlink.batch(requests)
        self._await_ipv6(pod)

    def _await_ipv6(self, pod: Pod) -> None:
        """A carrier comes up by one of the kernel's work queues, and IPv6 addresses are not served before."""
        table = Path("/proc/thread-self/net/ipv6_route")

        def own() -> set[tuple[str, str]]:
            lines = [line.split() for line in pod.space.run(table.read_text).splitlines()]
            return {(words[0], words[-1]) for words in lines if words[1] == "80"}

        wanted = {
            (address.packed.hex(), pod.link.interface_name)
            for address in pod.link.addresses
            if address.family == 6
        }
        poll(f"{pod.endpoint.id} has IPv6", lambda: wanted <= own())

    def table(self, name: str) -> dict[Record, Record]:
        """A table's present content."""
        table = TABLES[name]
        return {table.key.unpack(k): table.value.unpack(v) for k, v in self.map(name).items()}

    def flow_table(self) -> dict[FlowKey, Flow]:
        """The flows."""
        return {FlowKey.unpack(key): Flow.unpack(value) for key, value in self.map("sw_flows").items()}

    def occupied_slots(self) -> int:
        """Slots of the flow table in use."""
        return sum(1 for _, value in self.map("sw_flow_slots").items() if value[-2])

    def counter(self, counter: Counter) -> int:
        """A counter's sum over all CPUs."""
        found = self.map("sw_counters")
        raw = found.lookup(Id(counter).pack())
        assert raw is not None
        return sum(Count.unpack(value).value for value in found.per_cpu_values(raw))

    def drops(self) -> dict[tuple[int, Layer, Reason], int]:
        """Dropped packets by (port, layer, reason)."""
        found, result = self.map("sw_drops"), dict[tuple[int, Layer, Reason], int]()
        for raw, value in found.items():
            key = DropKey.unpack(raw)
            count = sum(Count.unpack(one).value for one in found.per_cpu_values(value))
            where = (key.port, Layer(key.layer), Reason(key.reason))
            result[where] = result.get(where, 0) + count
        return result

    def dropped(self, port: int, layer: Layer, reason: Reason) -> int:
        """The count of one kind."""
        return self.drops().get((port, layer, reason), 0)
