"""Load balancers compiled without a kernel: the tables as a node would fill them, seen as records."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Final

from samewire.hcn.loadbalancers import LoadBalancer, LoadBalancerBackend, LoadBalancerPortMapping
from samewire.hcn.policies import HostRoute, Policy, RemoteSubnetRoute
from samewire.hcn.schema import Endpoint, Network, NetworkType
from samewire.vfp.address import IPV4, IPV6, address_text, parse_interface, parse_mac
from samewire.vfp.compile.balanced import TABLES, Held, Rows
from samewire.vfp.compile.loadbalancer import Environment, LocalPort, compile_load_balancer
from samewire.vfp.compile.members import Member
from samewire.vfp.compile.places import Domain, Places
from samewire.vfp.model import NodeFacts
from samewire.vfp.numbers import MemoryNumbers
from samewire.vfp.record import Record
from samewire.vfp.tables import TABLES as ALL_TABLES
from samewire.vfp.tables import Backend, BackendChunkKey, Id, Service, ServiceKey
from tests.support import worlds

FACTS: Final = NodeFacts(
    name="node",
    uplink_ifindex=2,
    uplink_mac=b"\x02\0\0\0\0\x01",
    uplink_mtu=1500,
    addresses=(parse_interface("192.168.1.10/24"), parse_interface("fd00:1::10/64")),
    tunnel_ifindex=5,
)
VIP: Final = "10.96.0.10"


def _entries(held: Held) -> Iterator[tuple[str, bytes]]:
    return ((table, key) for table, keys in held.keys_by_table() for key in keys)


def pod_network(*policies: Policy) -> Network:
    """The pod network of a node: 10.244.1.0/24 here, 10.244.2.0/24 on another node."""
    remote = RemoteSubnetRoute(
        destination_prefix="10.244.2.0/24",
        isolation_id=4096,
        provider_address="192.168.1.11",
        distributed_router_mac_address="0E-2A-00-00-00-02",
    )
    return worlds.network(
        NetworkType.OVERLAY,
        "pods",
        ("10.244.1.0/24", "10.244.1.1"),
        policies=(HostRoute(), remote, *policies),
        vni=4096,
    )


def backend(address: str, port: int = 8080, flags: int = 0, **fields: Any) -> LoadBalancerBackend:
    """An explicit backend."""
    return LoadBalancerBackend(ip_address=address, port=port, flags=flags, **fields)


def balancer(*backends: LoadBalancerBackend, **fields: Any) -> LoadBalancer:
    """A load balancer of one VIP and port with these backends."""
    mapping = LoadBalancerPortMapping(protocol=6, internal_port=8080, external_port=80)
    return LoadBalancer(
        **{"id": "A", "frontend_vips": (VIP,), "port_mappings": (mapping,), "backends": backends, **fields}
    )


class Balancing:
    """The tables of one node while its load balancers come, change and go."""

    def __init__(self, *networks: Network, endpoints: tuple[Endpoint, ...] = ()) -> None:
        self.endpoints = {endpoint.id: endpoint for endpoint in endpoints}
        self.ports: dict[str, LocalPort] = {}
        self.rows: dict[str, Rows] = {table: {} for table in TABLES}
        self.held: dict[str, Held] = {}
        self.places = Places(networks, FACTS, MemoryNumbers())
        self._count = itertools.count(1)

    def endpoint(self, endpoint_id: str) -> Endpoint | None:
        return self.endpoints.get(endpoint_id)

    def endpoint_by_ip(self, network_id: str, ip: str) -> Endpoint | None:
        return next(
            (e for e in self.endpoints.values() if e.network_id == network_id and ip in e.addresses), None
        )

    def environment(self, value: LoadBalancer) -> Environment:
        """What a load balancer is compiled with."""
        domain = self.places.domain(value.network_id)
        return Environment(self, domain, self.rows, self._count.__next__, self._hop, self.ports.get, 4789)

    def put(self, value: LoadBalancer) -> None:
        """Create or change a load balancer."""
        before = self.held.get(value.id)
        compiled = compile_load_balancer(value, self.environment(value), before)
        self.remove(value.id)
        for table, rows in zip(TABLES, compiled.rows, strict=True):
            assert not rows.keys() & self.rows[table].keys()
            self.rows[table].update(rows)
        self.held[value.id] = compiled.held
        assert sorted(_entries(compiled.held)) == sorted(
            (table, key) for table, rows in zip(TABLES, compiled.rows, strict=True) for key in rows
        )

    def remove(self, load_balancer_id: str) -> None:
        """Remove one."""
        before = self.held.pop(load_balancer_id, None)
        for table, key in _entries(before) if before else ():
            del self.rows[table][key]

    def table(self, name: str) -> dict[Any, Any]:
        """A table as records."""
        shape = ALL_TABLES[name]
        return {shape.key.unpack(key): shape.value.unpack(row) for key, row in self.rows[name].items()}

    def tables(self) -> dict[str, dict[Record, Record]]:
        """All tables as records, for the simulator."""
        return {name: self.table(name) for name in TABLES}

    def services(self) -> dict[tuple[str, int, int], Service]:
        """The services by VIP ("" = node port), port and scope."""
        found = {}
        for key, value in self.table("sw_services").items():
            assert isinstance(key, ServiceKey)
            vip = address_text(key.family, key.address) if any(key.address) else ""
            found[vip, key.port, key.scope] = value
        return found

    def backends(self) -> dict[str, int]:
        """The ids of all backends, by address and port."""
        return {
            f"{_text(row)}:{row.port}": key.value
            for key, row in self.table("sw_backends").items()
            if isinstance(key, Id) and isinstance(row, Backend)
        }

    def members(self, service: Service) -> dict[int, int]:
        """The seeds of a service's members by backend id."""
        chunks = self.table("sw_backend_sets")
        return {
            place.backend: place.seed
            for chunk in range(service.chunks)
            for place in chunks[BackendChunkKey(service.set, chunk)].place
            if place.backend
        }

    def names(self, service: Service) -> set[str]:
        """The members of a service, by address and port."""
        ids = {number: name for name, number in self.backends().items()}
        return {ids[backend_id] for backend_id in self.members(service)}

    def _hop(self, member: Member, domain: Domain) -> int:
        return 77


def port_of(endpoint: Endpoint, ifindex: int) -> LocalPort:
    """The switch's port of an endpoint."""
    return LocalPort(ifindex, parse_mac(endpoint.mac_address, "$.MacAddress"))


def _text(row: Backend) -> str:
    return address_text(IPV6 if row.family == IPV6 else IPV4, row.address)
