"""What the tools need of a node: a Protocol that the daemon implements, and the values that go through it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from samewire.hcn.policies import PortName, first
from samewire.hcn.query import state_of
from samewire.hcn.schema import Endpoint, Route
from samewire.hcn.switch import StoreView
from samewire.vfp.acl_names import AclNames
from samewire.vfp.constants import Arrival
from samewire.vfp.model import Entries, ProxyRule
from samewire.vfp.record import Record
from samewire.vfp.tables import DropEvent, TraceOutput


class PortInfo(Struct, frozen=True):
    """A pod's port: index and name of its host end."""

    ifindex: int
    interface: str


class EndpointInfo(Struct, frozen=True, kw_only=True):
    """An endpoint with everything that names it: what leads from a pod to its port and back.

    ``name`` is ``namespace/pod`` where a container runtime told it. ``port`` and ``host_interface`` are those of
    the host end, 0 and "" when it is not attached or remote; ``port_name`` is what a PortName policy calls that port;
    ``state`` is the HCN state; ``vlan`` the network's VLAN on the uplink, 0 for none.
    """

    id: str
    name: str = ""
    addresses: tuple[str, ...] = ()
    mac: str = ""
    network_id: str = ""
    network: str = ""
    network_type: str = ""
    port: int = 0
    host_interface: str = ""
    port_name: str = ""
    namespace_id: str = ""
    netns_path: str = ""
    interface: str = ""
    container_id: str = ""
    remote: bool = False
    state: int = 0
    vlan: int = 0

    @property
    def label(self) -> str:
        """The name that people know it by."""
        return self.name or self.id


class TraceRun(Struct, frozen=True):
    """What the traced build says about a frame: its record, and the frame as it leaves."""

    output: TraceOutput
    frame: bytes


class TraceContext(Protocol):
    """A node, as the tools see it. Methods raise SamewireError."""

    @property
    def node(self) -> str:
        """The node's name."""
        ...

    @property
    def flow_capacity(self) -> int:
        """How many entries the flow table has room for."""
        ...

    def endpoints(self) -> Sequence[EndpointInfo]:
        """Every endpoint, local and remote (`describe_endpoints` makes them). Called on the event loop."""
        ...

    def name_of_port(self, ifindex: int) -> str:
        """The interface name of a port or device, "" when there is none. Called on the event loop."""
        ...

    def balancer_owners(self) -> Mapping[int, str]:
        """The load balancers by the numbers of their services. Called on the event loop."""
        ...

    def routes(self, ifindex: int) -> Sequence[Route]:
        """The route objects that the pod at a port obeys, as they are compiled: of two to one prefix the last one
        counts. Called on the event loop.
        """
        ...

    def service_name(self, number: int) -> str:
        """What a service is called ("namespace/name:port" if Kubernetes has it), "" when nobody knows. Called on the
        event loop.
        """
        ...

    def acl_names(self, ifindex: int) -> AclNames:
        """What the numbers in a port's ACL tables stand for. Called from a worker thread."""
        ...

    def proxies(self, ifindex: int) -> Sequence[ProxyRule]:
        """Which new connections the own stack of a port's pod hands to a proxy. Called on the event loop."""
        ...

    def tables(self, names: Collection[str] = ()) -> Entries:
        """The content of tables as the kernel has them now; of all when none is named.

        Values of per-CPU tables are summed. Called from a worker thread.
        """
        ...

    def rows(self, name: str) -> Mapping[Record, Record]:
        """A table that is too large to be read whole: each look-up is one in the kernel. Raises NotFound."""
        ...

    def run_traced(
        self, frame: bytes, arrival: Arrival, ifindex: int, vni: int, family: int, tunnel_source: bytes
    ) -> TraceRun:
        """Run the traced build on a frame, on the live maps.

        ``ifindex``: the device it arrives on (a pod's host end, the uplink, ...); ``family`` and
        ``tunnel_source`` (16 bytes) belong to the tunnel key. Called from a worker thread, one call at a time.
        """
        ...

    def drop_events(self) -> AsyncGenerator[DropEvent, None]:
        """Every drop from now on, until it is closed or the daemon ends; several may be open at once.

        Called on the event loop.
        """
        ...


def describe_endpoints(view: StoreView, ports: Mapping[str, PortInfo]) -> list[EndpointInfo]:
    """The endpoints of the store, joined with their networks, namespaces and ``ports`` (by endpoint id)."""
    return [_describe(view, endpoint, ports.get(endpoint.id)) for endpoint in view.endpoints()]


def _describe(view: StoreView, endpoint: Endpoint, port: PortInfo | None) -> EndpointInfo:
    network = view.network(endpoint.network_id)
    namespace = view.namespace(endpoint.namespace_id) if endpoint.namespace_id else None
    named = first(endpoint.policies, PortName)
    return EndpointInfo(
        id=endpoint.id,
        name=endpoint.name,
        addresses=endpoint.addresses,
        mac=endpoint.mac_address,
        network_id=endpoint.network_id,
        network=network.name if network else "",
        network_type=network.type.value if network else "",
        port=port.ifindex if port else 0,
        host_interface=port.interface if port else "",
        port_name=named.name if named else "",
        namespace_id=endpoint.namespace_id,
        netns_path=namespace.netns_path if namespace else "",
        interface=endpoint.interface_name,
        container_id=endpoint.container_id,
        remote=endpoint.is_remote,
        state=int(state_of(view, endpoint)),
        vlan=network.vlan if network else 0,
    )
