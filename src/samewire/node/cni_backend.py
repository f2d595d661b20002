"""The node's side of CNI: endpoints made, compared and removed through the HNS service."""

from __future__ import annotations

import operator
from typing import Any, Final

import msgspec

from samewire.cni.backend import (
    Address,
    Attached,
    AttachRequest,
    CheckRequest,
    NetworkInfo,
    bad_netns,
)
from samewire.cni.errors import CniCode, CniError
from samewire.cni.result import Dns, Route
from samewire.errors import Conflict, NotFound, SamewireError, Unavailable
from samewire.hcn.codec import decode_object
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.plan.namespaces import NamespaceSpec
from samewire.hcn.policies import AutomaticDNS, InterfaceParameters, first
from samewire.hcn.schema import Dns as HcnDns
from samewire.hcn.schema import Endpoint, IpConfiguration, Kind, Network, RouteEntry
from samewire.hcn.values import MAX_NAME
from samewire.kernel.netns import NetNamespace
from samewire.node.check import check_attachment
from samewire.node.node import Node
from samewire.node.ports import PortState
from samewire.node.resolver import node_dns
from samewire.vfp.address import ZERO, address_text
from samewire.vfp.compile.plan import plan_network
from samewire.vfp.model import PortLink

_DEFAULTS: Final = {4: ("0.0.0.0/0", "0.0.0.0"), 6: ("::/0", "::")}


class NodeBackend:
    """Implements `samewire.cni.backend.CniBackend`."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._service = node.service
        self._view = node.store.state
        self._known: tuple[tuple[object, ...], NetworkInfo] | None = None
        with NetNamespace("/proc/thread-self/ns/net") as own:
            self._own_netns = own.identity

    async def ensure_network(self, name: str, network: dict[str, Any] | None) -> NetworkInfo:
        """Return what is known of a network, made from ``network`` if need be. Raises NotFound."""
        found = self._view.network_by_name(name)
        if found is None and network is not None:
            found = await self._create_network(name, network)
        if found is None:
            raise NotFound("network", name)
        return self._info(found)

    async def attach(self, request: AttachRequest) -> Attached:
        """Make the interface with its endpoint, all or nothing. Raises SamewireError."""
        network = self._view.network_by_name(request.network)
        if network is None:
            raise NotFound("network", request.network)
        with self._pod_netns(request.netns_path) as netns:  # open all the time: every step asks which it is
            return await self._attach(network, request, netns.hold().identity)

    async def _attach(self, network: Network, request: AttachRequest, identity: tuple[int, int]) -> Attached:
        for endpoint in self._stale(request.netns_path, request.interface_name, identity):
            await self._delete(endpoint)
        half_made = self._attachments(request.container_id, request.interface_name)
        self._refuse_complete(half_made)
        for endpoint in half_made:
            await self._delete(endpoint)
        try:
            made = await self._service.create_attached_endpoint(
                network.id,
                _endpoint(request),
                NamespaceSpec(request.netns_path, request.container_id),
                request.interface_name,
            )
        except HcnError as error:
            if error.code is not HcnCode.NETWORK_NOT_FOUND:
                raise
            raise NotFound("network", request.network) from error  # it was deleted meanwhile: as if before
        state = self._node.switch.ports.get(made.id)
        if state is None:  # somebody is removing it, or its network: if that fails, it must not come back
            await self._delete(made)
            raise Unavailable(f"endpoint {made.id}", "it was removed as soon as it was made; try again")
        return _attached(state.link)

    async def refuse_attached(self, container_id: str, interface_name: str, netns_path: str) -> bool:
        """Raise Conflict for a complete attachment; return whether there is one that `attach` would replace."""
        found = self._attachments(container_id, interface_name)
        if not found:
            return False
        with self._pod_netns(netns_path) as netns:
            stale = self._stale(netns_path, interface_name, netns.identity)
        self._refuse_complete([endpoint for endpoint in found if endpoint not in stale])
        return True

    async def find(
        self, container_id: str, interface_name: str, netns_path: str
    ) -> tuple[str, Attached] | None:
        """Return the network's name and the interface of a complete attachment, None when there is none."""
        identity = None
        if netns_path:
            with self._pod_netns(netns_path) as netns:
                identity = netns.identity
        for endpoint in self._attachments(container_id, interface_name):
            state = self._node.switch.ports.get(endpoint.id)
            network = self._view.network(endpoint.network_id)
            if state is not None and network is not None and identity in (None, state.identity):
                return network.name, _attached(state.link)
        return None

    async def namespace_path(self, namespace_id: str) -> str:
        """Return the file of an HCN namespace's network namespace. Raises CniError."""
        found = self._view.namespace(namespace_id.upper())
        if found is None or not found.netns_path:
            raise bad_netns(namespace_id, "there is no HCN namespace of that id with a NetnsPath")
        return found.netns_path

    async def detach(self, container_id: str, interface_name: str) -> None:
        """Remove an attachment, in whichever network; none is fine."""
        for endpoint in self._attachments(container_id, interface_name):
            await self._delete(endpoint)

    async def check(self, request: CheckRequest) -> None:
        """Compare an attachment with the kernel."""
        async with self._node.switch.lock:
            found = self._attachments(request.container_id, request.interface_name)
            endpoint = found[0] if found else None
            state: PortState | None = self._node.switch.ports.get(endpoint.id) if endpoint else None
            check_attachment(request, endpoint, state, self._node.switch)

    async def list_attachments(self, network: str) -> list[tuple[str, str]]:
        """Return the attachments that CNI made in a network."""
        found = self._view.network_by_name(network)
        if found is None:
            return []
        return [
            (endpoint.container_id, endpoint.interface_name)
            for endpoint in self._view.endpoints_of_network(found.id)
            if endpoint.container_id and endpoint.namespace_id
        ]

    async def status(self) -> None:
        """Return when attachments can be made. Raises CniError otherwise."""
        if not self._node.uplink.ifindex:
            name = self._node.config.uplink or "of the default route"
            raise CniError(CniCode.LIMITED_CONNECTIVITY, f"the uplink {name} is missing")
        kept = self._node.store.trouble()
        if kept:
            raise CniError(CniCode.NOT_AVAILABLE, kept)

    async def _create_network(self, name: str, network: dict[str, Any]) -> Network:
        wanted = decode_object(Kind.NETWORK, network)
        assert isinstance(wanted, Network)
        try:
            return await self._service.create_network(msgspec.structs.replace(wanted, name=name))
        except HcnError as error:
            found = self._view.network_by_name(name)
            if error.code is not HcnCode.NETWORK_ALREADY_EXISTS or found is None:
                raise
            return found  # another ADD was faster

    def _info(self, network: Network) -> NetworkInfo:
        """What is known of a network: the pods of a node are all of one, which seldom changes."""
        origin = (network, self._node.switch.node_facts, self._node.uplink)
        known = self._known
        if known is not None and all(map(operator.is_, known[0], origin)):
            return known[1]
        info = self._make_info(network)
        self._known = (origin, info) if _automatic_dns(network) is None else None
        return info

    def _make_info(self, network: Network) -> NetworkInfo:
        subnets = [subnet for subnet in network.subnets if subnet.ip_address_prefix]
        return NetworkInfo(
            subnets=tuple(subnet.ip_address_prefix for subnet in subnets),
            gateways=tuple(subnet.gateway for subnet in subnets),
            mtu=plan_network(network, self._node.switch.node_facts).mtu,
            dns=_cni_dns(network.dns or _automatic_dns(network)),
            type=network.type.value,
            management_ip=next(iter(self._node.uplink.management), ""),
        )

    def _attachments(self, container_id: str, interface_name: str) -> list[Endpoint]:
        return [
            endpoint
            for endpoint in self._view.endpoints_of_container(container_id)
            if endpoint.interface_name == interface_name
        ]

    def _refuse_complete(self, endpoints: list[Endpoint]) -> None:
        for endpoint in endpoints:
            if self._node.switch.ports.get(endpoint.id) is not None:
                raise Conflict(
                    f"container {endpoint.container_id} has an interface {endpoint.interface_name} already"
                )

    async def _delete(self, endpoint: Endpoint) -> None:
        """Remove an endpoint. Somebody else may be about to, the DEL of another container for one: then it is gone."""
        try:
            await self._service.delete_attached_endpoint(endpoint.id)
        except HcnError as error:
            if error.code is not HcnCode.ENDPOINT_NOT_FOUND:
                raise

    def _stale(self, path: str, interface_name: str, identity: tuple[int, int]) -> list[Endpoint]:
        """Endpoints of a namespace that has died, whose path is that of a new one."""
        namespace = self._view.namespace_by_path(path)
        found = self._view.endpoints_of_namespace(namespace.id) if namespace is not None else ()
        return [
            endpoint
            for endpoint in found
            if endpoint.container_id
            and endpoint.interface_name == interface_name
            and ((state := self._node.switch.ports.get(endpoint.id)) is None or state.identity != identity)
        ]

    def _pod_netns(self, path: str) -> NetNamespace:
        """The network namespace of a pod, opened; the caller closes it. Raises CniError when it is none."""
        try:
            netns = NetNamespace(path)
        except SamewireError as error:
            raise bad_netns(path, str(error)) from error
        try:
            own = netns.identity == self._own_netns
        except SamewireError as error:
            netns.close()
            raise bad_netns(path, str(error)) from error
        if own:
            netns.close()
            raise bad_netns(path, "it is the node's own")
        return netns


def _endpoint(request: AttachRequest) -> Endpoint:
    policies = request.policies
    if request.mtu:
        policies = (*policies, InterfaceParameters(mtu=request.mtu))
    pod = f"{request.pod_namespace}/{request.pod_name}" if request.pod_name else ""
    return Endpoint(
        name=request.endpoint_name or pod.lstrip("/")[:MAX_NAME],  # of people; a pod's may be longer
        ip_configurations=tuple(
            IpConfiguration(ip_address=item.ip, prefix_length=item.prefix_length)
            for item in request.addresses
        ),
        routes=_routes(request),
        mac_address=request.mac,
        policies=policies,
        dns=HcnDns(
            domain=request.dns.domain,
            search=request.dns.search,
            server_list=request.dns.nameservers,
            options=request.dns.options,
        )
        if request.dns
        else None,
    )


def _routes(request: AttachRequest) -> tuple[RouteEntry, ...]:
    """The routes asked for. Where no default route is, that too must be said: HNS would add one."""
    gateways = {_family(item.ip): item.gateway for item in request.addresses if item.gateway}
    routes = [
        RouteEntry(
            destination_prefix=route.dst,
            next_hop=route.gw or gateways.get(_family(route.dst), ""),
            metric=route.priority or 0,
        )
        for route in request.routes
    ]
    defaults = {_family(route.dst) for route in request.routes if route.dst.endswith("/0")}
    for family in sorted({_family(item.ip) for item in request.addresses} - defaults):
        prefix, none = _DEFAULTS[family]
        routes.append(RouteEntry(destination_prefix=prefix, next_hop=none))
    return tuple(routes)


def _attached(link: PortLink) -> Attached:
    gateways = {
        route.gateway.family: str(route.gateway)
        for route in link.routes
        if route.gateway is not None and not route.destination.bits
    }
    return Attached(
        host_interface=link.host_name,
        host_mac=link.host_mac.hex(":"),
        mac=link.mac.hex(":"),
        mtu=link.mtu,
        addresses=tuple(
            Address(address_text(prefix.family, prefix.packed), prefix.bits, gateways.get(prefix.family, ""))
            for prefix in link.addresses
        ),
        routes=tuple(
            Route(
                dst=str(route.destination),
                gw=str(route.gateway) if route.gateway is not None and route.gateway.packed != ZERO else "",
                priority=route.metric or None,
            )
            for route in link.routes
        ),
    )


def _automatic_dns(network: Network) -> HcnDns | None:
    """The node's own settings, on a network that is to have them."""
    policy = first(network.policies, AutomaticDNS)
    return node_dns() if policy is not None and policy.enable else None


def _cni_dns(dns: HcnDns | None) -> Dns:
    if dns is None:
        return Dns()
    return Dns(dns.server_list, dns.domain, dns.search, dns.options)


def _family(text: str) -> int:
    return 6 if ":" in text else 4
