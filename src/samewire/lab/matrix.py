"""The connectivity matrix of a lab: which probes, and what each must bring (pure).

Everything expected follows from the cluster file: a destination in ``nat_exceptions`` sees the pod's address,
any other beyond the pod network sees the node's; a pod and its own node talk without NAT; tenants reach their
own network only. Where there are many pods, a few of every node stand for all: of different workloads first.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence

import msgspec
from msgspec import Struct

from samewire.lab.addressing import family_of, within
from samewire.lab.cluster import NetworkType, Stack
from samewire.lab.names import DNS_PORT, KUBELET_PORT, OUTSIDE_PORT
from samewire.lab.plan import gateway, nat_exceptions, network_named
from samewire.lab.podspec import served_ports
from samewire.lab.probes import Expected, Probe
from samewire.lab.service_matrix import ServiceMatrix
from samewire.lab.state import LabState, NodeState, OutsideState, PodState

#: Columns in the order of the table; ``+`` is the payload larger than the MTU.
COLUMNS = ("tcp", "udp", "icmp", "tcp+", "udp+", "http")
_ALL = ("tcp", "udp", "icmp", "tcp+", "udp+")
_PODS_A_NODE = 3
LOOPBACK = "127.0.0.1"


class Target(Struct, frozen=True):
    """Something that answers: by which agent its namespace is watched, its address, and who it says it is."""

    agent: str
    address: str
    port: int
    hostname: str
    container: str = ""
    stand_in: bool = True


class Matrix:
    """All probes of a lab."""

    def __init__(self, state: LabState, pods_a_node: int = _PODS_A_NODE) -> None:
        self._state = state
        self._pods = [pod for pod in state.pods if not pod.pod.template.host_network]
        self._host_pods = [pod for pod in state.pods if pod.pod.template.host_network]
        self.chosen = self._representatives(pods_a_node)

    def probes(self) -> list[Probe]:
        """Every cell, in the order of the table."""
        return [
            *self._node_to_router(),
            *self._pod_to_pod(),
            *self._localhost(),
            *self._pod_to_outside(),
            *self._pod_to_node(),
            *self._node_to_pod(),
            *self._host_ports(),
            *self._other_tenants(),
            *ServiceMatrix(self._state, self.chosen).probes(),
        ]

    def _node_to_router(self) -> Iterator[Probe]:
        """That a node reaches the underlay at all; with it the switch knows its MAC address when the check asks."""
        for node in self._state.nodes:
            for address in node.plan.uplink.gateways:
                router = Target("", address, 0, "router")
                row = self._node_label(node.plan.name)
                yield from _probes("node to its router", row, node, router, (), ("icmp",))

    def _representatives(self, limit: int) -> list[PodState]:
        chosen: list[PodState] = []
        for network in self._state.cluster.networks:
            for node in self._state.nodes:
                here = [
                    p for p in self._pods if (p.pod.network, p.pod.node) == (network.name, node.plan.name)
                ]
                first = list({p.pod.owner: p for p in reversed(here)}.values())[::-1]
                rest = [p for p in here if p not in first]
                chosen += [*first, *rest][:limit]
        return chosen

    def _pod_to_pod(self) -> Iterator[Probe]:
        for source in self.chosen:
            for target in self.chosen:
                if source is target or source.pod.network != target.pod.network:
                    continue
                same = source.pod.node == target.pod.node
                category = "pod to pod, same node" if same else "pod to pod, other node"
                row = self._node_label(source.pod.node)
                if not same:
                    row += f" → {self._node_label(target.pod.node)}"
                for address in target.addresses:
                    own = _of_family(source.addresses, address)
                    yield from _probes(category, row, source, self._pod_target(target, address), own)

    def _localhost(self) -> Iterator[Probe]:
        """Containers of a pod by 127.0.0.1 and ::1; several containers of one pod share them."""
        many = [pod for pod in self._pods if len(pod.pod.template.containers) > 1 and pod not in self.chosen]
        for pod in [*self.chosen, *many]:
            row = self._node_label(pod.pod.node)
            for container in pod.pod.template.containers:
                ports = served_ports(container) if pod.pod.stands_in(container) else []
                for port in ports:
                    for address in ("127.0.0.1", "::1"):
                        name = container.name if self._only_one(pod, port) else ""
                        target = Target(pod.pod.key, address, port, pod.hostname, name)
                        own = (address,)
                        yield from _probes("containers by localhost", row, pod, target, own, ("http", "udp"))

    def _pod_to_outside(self) -> Iterator[Probe]:
        for pod in self.chosen:
            for host in self._state.outside:
                for address in host.plan.addresses:
                    excepted = self._excepted(pod, address)
                    sources = self._seen_beyond(pod, address)
                    category = "pod to outside, own address" if excepted else "pod to outside, node's address"
                    row = f"{self._node_label(pod.pod.node)} → {host.plan.name}"
                    target = Target(host.plan.name, address, OUTSIDE_PORT, host.plan.name)
                    if sources:
                        yield from _probes(category, row, pod, target, sources)

    def _pod_to_node(self) -> Iterator[Probe]:
        for pod in self.chosen:
            for node in self._state.nodes:
                own = node.plan.name == pod.pod.node
                if own and not self._reaches_host(pod.pod.network):
                    continue
                row = self._node_label(pod.pod.node)
                row += "" if own else f" → {self._node_label(node.plan.name)}"
                place = "own node" if own else "other node"
                for address in node.plan.addresses:
                    family_address = _of_family(pod.addresses, address)
                    sources = family_address if own else self._seen_beyond(pod, address)
                    if not sources:
                        continue
                    kubelet = Target(node.plan.name, address, KUBELET_PORT, node.plan.name)
                    dns = Target(node.plan.name, address, DNS_PORT, node.plan.name)
                    columns = ("tcp", "icmp", "tcp+", "udp+")
                    yield from _probes(f"pod to {place}", row, pod, kubelet, sources, columns)
                    yield from _probes(f"pod to DNS on {place}", row, pod, dns, sources, ("tcp", "udp"))
                    yield from self._host_network_targets(pod, node, row, address, sources)

    def _host_network_targets(
        self, pod: PodState, node: NodeState, row: str, address: str, sources: tuple[str, ...]
    ) -> Iterator[Probe]:
        for target in self._host_pods:
            if target.pod.node == node.plan.name:
                found = self._pod_target(target, address, agent=node.plan.name)
                if found.port and found.stand_in:
                    category = "pod to hostNetwork pod"
                    yield from _probes(category, row, pod, found, sources, ("tcp", "udp"))

    def _node_to_pod(self) -> Iterator[Probe]:
        for node in self._state.nodes:
            for pod in self.chosen:
                if not self._reaches_host(pod.pod.network):
                    continue
                row = self._node_label(node.plan.name)
                own = node.plan.name == pod.pod.node
                row += "" if own else f" → {self._node_label(pod.pod.node)}"
                category = (
                    "node (hostNetwork) to own pod" if own else "node (hostNetwork) to pod of other node"
                )
                for address in pod.addresses:
                    sources = self._node_addresses(node, pod.pod.network, address)
                    yield from _probes(category, row, node, self._pod_target(pod, address), sources)

    def _host_ports(self) -> Iterator[Probe]:
        for pod in self._pods:
            for container in pod.pod.template.containers:
                column = "" if pod.pod.stands_in(container) else "connect"
                for port in container.ports:
                    if port.host_port and port.protocol != "SCTP":
                        alone = not column and self._only_one(pod, port.container_port)
                        name = container.name if alone else ""
                        target = Target(pod.pod.key, port.host_ip, port.host_port, pod.hostname, name)
                        yield from self._host_port(pod, target, column or port.protocol.lower())

    def _host_port(self, pod: PodState, target: Target, column: str) -> Iterator[Probe]:
        """One hostPort at all addresses of the node that it is mapped at; ``target`` has the mapping's."""
        node = self._state.node(pod.pod.node)
        addresses = [
            address
            for address in (*node.plan.addresses, LOOPBACK)
            if _of_family(pod.addresses, address) and _is_mapped_at(target.address, address)
        ]
        for address in addresses:
            there = msgspec.structs.replace(target, address=address)
            if address != LOOPBACK:
                yield from self._host_port_at(pod, node, there, column)
            elif self._reaches_host(pod.pod.network):
                own = self._node_addresses(node, pod.pod.network, address)
                row, category = self._node_label(node.plan.name), "node to own hostPort by 127.0.0.1"
                yield from _probes(category, row, node, there, (*own, LOOPBACK), (column,))

    def _host_port_at(self, pod: PodState, node: NodeState, target: Target, column: str) -> Iterator[Probe]:
        """One hostPort at one address from everywhere."""
        row, columns = self._node_label(node.plan.name), (column,)
        for host in self._state.outside:
            sources = _of_family(host.plan.addresses, target.address)
            if sources:
                yield from _probes(
                    "outside to hostPort", f"{host.plan.name} → {row}", host, target, sources, columns
                )
        own = self._node_addresses(node, pod.pod.network, target.address)
        if self._reaches_host(pod.pod.network):
            yield from _probes("node to own hostPort", row, node, target, own, columns)
        # What a pod sees of a connection to itself is NATed, to its gateway or to an address of the node.
        gateways = [gateway(self._state.cluster, node.plan, prefix) for prefix in node.plan.pod_cidrs]
        itself = _of_family((*own, *gateways, *pod.addresses), target.address)
        yield from _probes("pod to its own hostPort", row, pod, target, itself, columns)
        for other in self.chosen:
            if other is pod or other.pod.network != pod.pod.network:
                continue
            remote = self._state.node(other.pod.node)
            far = remote.plan.name != node.plan.name
            sources = (
                *_of_family(other.addresses, target.address),
                *self._node_addresses(remote, other.pod.network, target.address),
            )
            if far or self._reaches_host(pod.pod.network):
                label = f"{self._node_label(other.pod.node)} → {row}" if far else row
                yield from _probes("pod to hostPort", label, other, target, sources, columns)

    def _other_tenants(self) -> Iterator[Probe]:
        """Addresses that only another network has: silence is expected."""
        for source in self.chosen:
            known = {a for pod in self._pods if pod.pod.network == source.pod.network for a in pod.addresses}
            for target in self._pods:
                if target.pod.network == source.pod.network:
                    continue
                for address in target.addresses:
                    found = self._pod_target(target, address)
                    if address not in known and found.port:
                        row = f"{source.pod.network} → {target.pod.network}"
                        silent = Expected(reachable=False)
                        for column in ("tcp", "udp", "icmp"):
                            yield _probe("other tenant's address", row, source, found, column, silent)

    def _pod_target(self, pod: PodState, address: str, agent: str = "") -> Target:
        """The first port of a stand-in; else the first declared port of a command; else none (ICMP only)."""
        agent = agent or pod.pod.key
        commanded = 0
        for container in pod.pod.template.containers:
            ports = served_ports(container)
            if ports and pod.pod.stands_in(container):
                name = container.name if self._only_one(pod, ports[0]) else ""
                return Target(agent, address, ports[0], pod.hostname, name)
            if ports and not commanded:
                commanded = ports[0]
        return Target(agent, address, commanded, pod.hostname, stand_in=False)

    def _only_one(self, pod: PodState, port: int) -> bool:
        """Whether one container serves a port where a pod is: two may have it, one for TCP and one for UDP, and a
        stand-in answers both.
        """
        sharing = [one for one in self._host_pods if one.pod.node == pod.pod.node]
        here = sharing if pod.pod.template.host_network else [pod]
        containers = [container for one in here for container in one.pod.template.containers]
        return sum(port in served_ports(container) for container in containers) < 2

    def _reaches_host(self, network: str) -> bool:
        found = network_named(self._state.cluster, network)
        return found.host_route or found.type is NetworkType.L2BRIDGE

    def _excepted(self, pod: PodState, address: str) -> bool:
        network = network_named(self._state.cluster, pod.pod.network)
        prefix = ipaddress.ip_network(address)
        exceptions = nat_exceptions(self._state.cluster, network)
        return any(within(prefix, ipaddress.ip_network(text)) for text in exceptions)

    def _seen_beyond(self, pod: PodState, address: str) -> tuple[str, ...]:
        """What a destination beyond the pod network sees as the source; empty: no such family."""
        own = _of_family(pod.addresses, address)
        node = _of_family(self._state.node(pod.pod.node).plan.addresses, address)
        if not own or not node:
            return ()
        return own if self._excepted(pod, address) else node

    def _node_addresses(self, node: NodeState, network: str, address: str) -> tuple[str, ...]:
        return _of_family((*node.plan.addresses, *node.pod_addresses.get(network, ())), address)

    def _node_label(self, name: str) -> str:
        node = self._state.node(name)
        return name if node.plan.stack is Stack.SAMEWIRE else f"{name} (kernel)"


def _is_mapped_at(host_ip: str, address: str) -> bool:
    """Whether a hostPort with this hostIP ("" = none) is there at an address of the node."""
    return host_ip in {"", address, "0.0.0.0" if family_of(address) == 4 else "::"}


def agent_name(end: PodState | NodeState | OutsideState) -> str:
    """The name of the agent in a pod (``namespace/name``), a node or an outside host."""
    return end.pod.key if isinstance(end, PodState) else end.plan.name


def _probes(
    category: str,
    row: str,
    source: PodState | NodeState | OutsideState,
    target: Target,
    sources: tuple[str, ...],
    columns: Sequence[str] = _ALL,
) -> Iterator[Probe]:
    """The probes of one pair in the given columns, as far as the target can answer them."""
    for column in columns:
        if column == "icmp":
            expected = Expected(sources=sources)
        elif not target.port:
            continue
        elif target.stand_in:
            expected = Expected(True, target.hostname, target.container, sources)
        elif column == "tcp":
            column, expected = "connect", Expected()
        else:
            continue
        yield _probe(category, row, source, target, column, expected)


def _probe(
    category: str,
    row: str,
    source: PodState | NodeState | OutsideState,
    target: Target,
    column: str,
    expected: Expected,
) -> Probe:
    shown = "tcp" if column == "connect" else column
    return Probe(
        category=category,
        row=row,
        column=shown,
        source=agent_name(source),
        target=target.agent,
        protocol=column.rstrip("+"),
        address=target.address,
        port=0 if column == "icmp" else target.port,
        expected=expected,
    )


def _of_family(addresses: Sequence[str], like: str) -> tuple[str, ...]:
    return tuple(address for address in addresses if family_of(address) == family_of(like))
