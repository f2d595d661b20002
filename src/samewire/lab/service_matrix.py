"""The part of the matrix that is about Services: every client against every address (pure).

Who may answer follows from labels and declared ports, and from the traffic policies; what the far side sees is the
client's own address wherever nothing stands between that could not find the way back: it must be under the policy
Local, and between pods.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from samewire.lab.addressing import family_of
from samewire.lab.cluster import NetworkType, ProxyMode, Stack
from samewire.lab.plan import gateway
from samewire.lab.probes import Expected, Probe
from samewire.lab.services import Answerer, ServicePlan, ServicePortPlan, answerers, balanced_pods
from samewire.lab.state import LabState, NodeState, OutsideState, PodState

Client = PodState | NodeState | OutsideState


class Frontend(Struct, frozen=True):
    """An address and port of a Service. ``node``: whose node port it is, "" = a virtual address."""

    service: ServicePlan
    port: ServicePortPlan
    kind: str
    address: str
    number: int
    node: str = ""


class ServiceMatrix:
    """All probes of Services. ``clients``: the pods that stand for all."""

    def __init__(self, state: LabState, clients: Sequence[PodState]) -> None:
        self._state = state
        first = state.cluster.networks[0]
        self._pods = [pod for pod in clients if pod.pod.network == first.name]
        self._behind = balanced_pods(state.pods, first.name)
        self._reaches_host = first.host_route or first.type is NetworkType.L2BRIDGE
        self._balancers = [node for node in state.nodes if node.plan.stack is Stack.SAMEWIRE]

    def probes(self) -> Iterator[Probe]:
        """Every cell, Service by Service; none where no node balances."""
        for service in self._state.services if self._balancers else ():
            for port in service.ports:
                if port.protocol != "SCTP" and service.selector:
                    for frontend in self._frontends(service, port):
                        yield from self._of_frontend(frontend)

    def _frontends(self, service: ServicePlan, port: ServicePortPlan) -> Iterator[Frontend]:
        for address in service.cluster_ips:
            if service.has(address, port):
                yield Frontend(service, port, "ClusterIP", address, port.port)
        families = {family_of(address) for address in service.cluster_ips}
        balanced = {address for node in self._balancers for address in node.plan.addresses}
        others = {address for node in self._state.nodes for address in node.plan.addresses} - balanced
        others |= {address for host in self._state.outside for address in host.plan.addresses}
        if service.preserves:  # to the pod as it is, and a stand-in has no such address
            others |= set(service.ingress_ips)
        for address in service.external_ips:
            if family_of(address) in families and address not in others and service.has(address, port):
                yield Frontend(service, port, "external IP", address, port.port)
        for node in self._balancers if port.node_port else ():
            for address in node.plan.addresses:
                if family_of(address) in families:
                    yield Frontend(service, port, "NodePort", address, port.node_port, node.plan.name)

    def _of_frontend(self, frontend: Frontend) -> Iterator[Probe]:
        family = family_of(frontend.address)
        behind = answerers(frontend.service, frontend.port, self._behind, family)
        standing_in = [one for one in behind if _stands_in(one)]
        if len(standing_in) != len(behind):
            return  # a command answers as it likes
        for client, label in self._clients(frontend, behind):
            if self._may(frontend, client) is not None and not self._is_cut_off(frontend, client, behind):
                yield self._probe(frontend, client, label, behind, family)

    def _clients(self, frontend: Frontend, behind: Sequence[Answerer]) -> Iterator[tuple[Client, str]]:
        """Who asks, and as what."""
        family = family_of(frontend.address)
        keys = {one.pod.pod.key for one in behind}
        for pod in self._pods:
            on_balancer = self._is_balancer(pod.pod.node)
            if not any(family_of(address) == family for address in pod.addresses):
                continue
            if not on_balancer and not self._kernel_pod_reaches(frontend):
                continue
            label = "pod" if on_balancer else "pod of a kernel node"
            yield pod, "the backend itself" if pod.pod.key in keys else label
        for one in behind:
            if one.pod not in self._pods and self._is_own_pod(one.pod):
                yield one.pod, "the backend itself"
        for node in self._balancers if self._reaches_host else ():
            if node.plan.address(family):
                yield node, "node"
        if frontend.kind != "ClusterIP":
            for host in self._state.outside:
                if any(family_of(address) == family for address in host.plan.addresses):
                    yield host, "outside"

    def _probe(
        self, frontend: Frontend, client: Client, label: str, behind: Sequence[Answerer], family: int
    ) -> Probe:
        allowed = self._allowed(frontend, client, behind) if self._may(frontend, client) else ()
        if allowed:
            names = tuple(sorted({one.pod.hostname for one in allowed}))
            sources = self._sources(frontend, client, allowed, family)
            expected = Expected(True, hostnames=names, sources=sources)
        else:
            expected = Expected(reachable=False)
        policy = _policy(frontend)
        return Probe(
            category=f"service: {frontend.kind}{policy}",
            row=f"{label} → {frontend.service.key}:{frontend.number}",
            column=frontend.port.protocol.lower(),
            source=_name(client),
            target="",
            protocol=frontend.port.protocol.lower(),
            address=frontend.address,
            port=frontend.number,
            expected=expected,
        )

    def _may(self, frontend: Frontend, client: Client) -> bool | None:
        """Whether the Service's source ranges let a client in; None where that depends on the address it comes with."""
        service, family = frontend.service, family_of(frontend.address)
        ranges = [ipaddress.ip_network(text) for text in service.source_ranges if family_of(text) == family]
        if not ranges or frontend.address not in service.ingress_ips:
            return True
        addresses = client.addresses if isinstance(client, PodState) else client.plan.addresses
        if isinstance(client, PodState) and not self._is_balancer(client.pod.node):
            masqueraded = self._state.node(client.pod.node).plan.addresses
            addresses = (*addresses, *masqueraded)
        own = [ipaddress.ip_address(text) for text in addresses if family_of(text) == family]
        verdicts = {any(address in one for one in ranges) for address in own}
        return verdicts.pop() if len(verdicts) == 1 else None

    def _allowed(self, frontend: Frontend, client: Client, behind: Sequence[Answerer]) -> Sequence[Answerer]:
        """The backends that the traffic policies leave, and of those that everybody may use the near ones."""
        at = frontend.node or self._entry(client, frontend.address)
        if frontend.kind == "ClusterIP":
            local = frontend.service.internal_local
        else:
            inside = not isinstance(client, OutsideState) and _node_of(client) == at
            alone = frontend.service.preserves and frontend.kind == "NodePort"
            local = (frontend.service.external_local or alone) and not inside
        return _on(behind, at) if local else self._near(frontend.service.distribution, behind, at)

    def _near(self, distribution: str, behind: Sequence[Answerer], at: str) -> Sequence[Answerer]:
        """Those that the Service prefers for clients of a node, where there are any."""
        here = _on(behind, at) if distribution == "PreferSameNode" else []
        if here or not distribution:
            return here or behind
        zones = [self._zone(one.pod.pod.node) for one in behind]
        same = [one for one, zone in zip(behind, zones, strict=True) if zone == self._zone(at)]
        return same if same and all(zones) else behind

    def _zone(self, node: str) -> str:
        return self._state.node(node).plan.labels.get("topology.kubernetes.io/zone", "")

    def _is_cut_off(self, frontend: Frontend, client: Client, behind: Sequence[Answerer]) -> bool:
        """Whether a process of a pod's own node may be chosen for it, which has no way back to the pod."""
        if self._reaches_host or not isinstance(client, PodState) or not self._is_balancer(client.pod.node):
            return False
        here = _on(self._allowed(frontend, client, behind), client.pod.node)
        return any(one.pod.pod.template.host_network for one in here)

    def _entry(self, client: Client, address: str) -> str:
        """The node that balances for a client: its own, else the one that has the address, else the first that can."""
        own = "" if isinstance(client, OutsideState) else _node_of(client)
        having = [node for node in self._balancers if address in node.plan.addresses]
        return own if self._is_balancer(own) else (having or self._balancers)[0].plan.name

    def _sources(
        self, frontend: Frontend, client: Client, allowed: Iterable[Answerer], family: int
    ) -> tuple[str, ...]:
        """What the backend may see as the client; empty: whatever."""
        if self._state.cluster.services.proxy_mode is ProxyMode.USERSPACE:
            return ()
        if isinstance(client, OutsideState):
            own = client.plan.addresses
            if not frontend.service.external_local:
                return ()
        elif isinstance(client, PodState):
            if frontend.kind != "ClusterIP" or not self._is_balancer(client.pod.node):
                return ()
            own = client.addresses
            if any(one.pod.pod.key == client.pod.key for one in allowed):
                node = self._state.node(client.pod.node)
                own = (*own, *(gateway(self._state.cluster, node.plan, one) for one in node.plan.pod_cidrs))
            if any(one.pod.pod.template.host_network for one in allowed):
                return ()
        else:
            return ()
        return tuple(address for address in own if family_of(address) == family)

    def _kernel_pod_reaches(self, frontend: Frontend) -> bool:
        """Pods of a node without a proxy: by the overlay's route to cluster IPs, and as anybody outside. In an overlay
        that no host is part of nobody has an address there to masquerade one that is led to itself.
        """
        if frontend.kind != "ClusterIP":
            return True
        return self._state.cluster.networks[0].type is NetworkType.OVERLAY and self._reaches_host

    def _is_balancer(self, name: str) -> bool:
        return any(node.plan.name == name for node in self._balancers)

    def _is_own_pod(self, pod: PodState) -> bool:
        return not pod.pod.template.host_network and self._is_balancer(pod.pod.node)


def _on(behind: Iterable[Answerer], node: str) -> list[Answerer]:
    return [one for one in behind if one.pod.pod.node == node]


def _node_of(client: PodState | NodeState) -> str:
    return client.pod.node if isinstance(client, PodState) else client.plan.name


def _name(client: Client) -> str:
    return client.pod.key if isinstance(client, PodState) else client.plan.name


def _policy(frontend: Frontend) -> str:
    service = frontend.service
    local = service.internal_local if frontend.kind == "ClusterIP" else service.external_local
    return ", policy Local" if local else ""


def _stands_in(one: Answerer) -> bool:
    """Whether an echo server answers on that port, which says who it is."""
    for container in one.pod.pod.template.containers:
        if any(port.container_port == one.port for port in container.ports):
            return one.pod.pod.stands_in(container)
    return False
