"""What an API server adds to a Service before anybody sees it, for Services that come from files (pure).

Cluster IPs and node ports are a function of the whole set of Services and of nothing else: every node that reads the
same files gives the same ones, without talking to the others. An address starts from a hash of the Service's key and
steps on while it is taken; so a new Service leaves the others alone unless two of them meet.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, field
from msgspec.structs import replace

from samewire.errors import Exhausted, Invalid
from samewire.kube.addresses import is_of_one_machine
from samewire.kube.model import Family, Key, Protocol, Service, ServicePort, ServiceSpec

NODE_PORTS: Final = range(30000, 32768)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_FAMILY: Final[dict[int, Family]] = {4: "IPv4", 6: "IPv6"}
_MOST_ADDRESSES: Final = 1 << 32


class WantedPort(Struct, frozen=True, rename="camel"):
    """A port of a manifest's Service, with what endpoints are derived from."""

    port: Annotated[int, Meta(ge=1, le=65535)]
    name: str = ""
    protocol: Protocol = "TCP"
    target_port: Annotated[int, Meta(ge=0, le=65535)] | str = 0


class WantedSpec(Struct, frozen=True, rename="camel"):
    """The part of a manifest's Service that only files need."""

    selector: dict[str, str] = field(default_factory=dict)
    ports: tuple[WantedPort, ...] = ()
    ip_family_policy: Literal["SingleStack", "PreferDualStack", "RequireDualStack"] = "SingleStack"
    allocate_load_balancer_node_ports: bool = True


class Wanted(Struct, frozen=True):
    """A Service as its manifest has it: what the model keeps, and the rest that endpoints are derived from."""

    service: Service
    spec: WantedSpec

    @property
    def key(self) -> Key:
        """(namespace, name)."""
        return self.service.key


def admit(
    wanted: Iterable[Wanted], networks: Sequence[Network], node_ports: range = NODE_PORTS
) -> tuple[dict[Key, Wanted], list[tuple[Key, str]]]:
    """The Services with what an API server fills in, and those that it would refuse, with the reason.

    ``networks``: where cluster IPs come from, main family first.
    """
    ordered = sorted(wanted, key=lambda item: item.key)
    taken = {address for item in ordered for address in _given(item.service.spec)}
    ports = _Ports(node_ports, _given_node_ports(ordered))
    owners: dict[str | int, Key] = {}
    admitted: dict[Key, Wanted] = {}
    refused: list[tuple[Key, str]] = []
    for item in ordered:
        try:
            _check_ports(item, node_ports)
            _check_addresses(item.service.spec)
            _claim(item, owners)
            spec = _node_ports(item, _addresses(item, networks, taken), ports)
        except (Invalid, Exhausted) as error:
            refused.append((item.key, str(error)))
        else:
            admitted[item.key] = replace(item, service=replace(item.service, spec=spec))
    return admitted, refused


def families(spec: ServiceSpec, policy: str, networks: Sequence[Network]) -> tuple[Family, ...]:
    """The IP families of a Service, in its order. Raises ``Invalid`` when it must have two and the cluster has one."""
    offered = tuple(dict.fromkeys(_FAMILY[network.version] for network in networks))
    given = tuple(dict.fromkeys(_FAMILY[ipaddress.ip_address(text).version] for text in _given(spec)))
    first = spec.ip_families or given or offered[:1]
    if policy == "SingleStack" and len(first) < 2:
        return first
    both = first + tuple(family for family in offered if family not in first)
    if policy == "RequireDualStack" and len(both) < 2:
        raise Invalid(
            "ipFamilyPolicy", "is RequireDualStack, and the cluster has one family of Service addresses"
        )
    return both


def _given(spec: ServiceSpec) -> tuple[str, ...]:
    found = spec.cluster_ips or ((spec.cluster_ip,) if spec.cluster_ip else ())
    # In one spelling: IPv6 has many for an address.
    return tuple(str(ipaddress.ip_address(address)) for address in found if address and address != "None")


def _given_node_ports(services: Iterable[Wanted]) -> set[int]:
    specs = [item.service.spec for item in services]
    return {port.node_port for spec in specs for port in spec.ports if port.node_port} | {
        spec.health_check_node_port for spec in specs if spec.health_check_node_port
    }


def _check_addresses(spec: ServiceSpec) -> None:
    """One of each family: of two addresses one would be lost."""
    addresses = _given(spec)
    if none := [text for text in addresses if not is_of_one_machine(text)]:
        raise Invalid("clusterIPs", f"{none[0]} cannot be the address of a host")
    given = [_FAMILY[ipaddress.ip_address(text).version] for text in addresses]
    if len(set(given)) < len(given):
        raise Invalid("clusterIPs", "one of each family at most")
    if len(set(spec.ip_families)) < len(spec.ip_families):
        raise Invalid("ipFamilies", "names one twice")
    if other := [family for family in given if spec.ip_families and family not in spec.ip_families]:
        raise Invalid("clusterIPs", f"there is one of {other[0]}, which is not in ipFamilies")


def _check_ports(item: Wanted, node_ports: range) -> None:
    spec = item.service.spec
    if not spec.ports and spec.type != "ExternalName" and spec.cluster_ip != "None":
        raise Invalid("ports", "is required")
    if len({port.name for port in spec.ports}) < len(spec.ports):
        raise Invalid("ports", "each of several needs a name of its own")
    if spec.type == "ClusterIP" and any(port.node_port for port in spec.ports):
        raise Invalid("nodePort", "a ClusterIP has none")
    for number in sorted(_given_node_ports([item])):
        if number not in node_ports:
            raise Invalid("nodePort", f"{number} is not within {node_ports[0]} to {node_ports[-1]}")
    for target in (port.target_port for port in item.spec.ports):
        if isinstance(target, str) and target.isdecimal() and not 1 <= int(target) <= 65535:
            raise Invalid("targetPort", f"{target} is not within 1 to 65535")
    for name, numbers in (
        ("ports", [f"{port.port}/{port.protocol}" for port in spec.ports]),
        ("nodePort", [f"{port.node_port}/{port.protocol}" for port in spec.ports if port.node_port]),
    ):
        if twice := [number for number in numbers if numbers.count(number) > 1]:
            raise Invalid(name, f"{twice[0]} is there twice")


def _claim(item: Wanted, owners: dict[str | int, Key]) -> None:
    """Note the addresses and node ports that a Service names. Raises ``Invalid`` where another has one of them."""
    claims: list[tuple[str, str | int]] = [("clusterIP", address) for address in _given(item.service.spec)]
    claims += [("nodePort", port) for port in sorted(_given_node_ports([item]))]
    for name, claimed in claims:
        if (owner := owners.get(claimed, item.key)) != item.key:
            raise Invalid(name, f"{claimed} is that of Service {'/'.join(owner)}")
    owners.update({claimed: item.key for _, claimed in claims})


def _addresses(item: Wanted, networks: Sequence[Network], taken: set[str]) -> ServiceSpec:
    spec = item.service.spec
    if spec.type == "ExternalName":
        return spec
    wanted = families(spec, item.spec.ip_family_policy, networks)
    if spec.cluster_ip == "None":
        return replace(spec, cluster_ips=("None",), ip_families=wanted)
    given = {_FAMILY[ipaddress.ip_address(text).version]: text for text in _given(spec)}
    found = tuple(given.get(family) or _address(item.key, family, networks, taken) for family in wanted)
    return replace(spec, cluster_ip=found[0], cluster_ips=found, ip_families=wanted)


def _address(key: Key, family: Family, networks: Sequence[Network], taken: set[str]) -> str:
    network = next((item for item in networks if _FAMILY[item.version] == family), None)
    if network is None:
        raise Invalid("ipFamilies", f"asks for {family}, and the cluster has no such Service addresses")
    # As in Kubernetes, the low addresses are left to those who choose one themselves (DNS, for instance).
    size = min(network.num_addresses, _MOST_ADDRESSES)
    low = min(max(16, size // 16), 256) if size > 32 else 1
    free = range(low, size - 1)

    def is_free(offset: int) -> bool:
        return str(network[offset]) not in taken

    address = str(network[_choose(f"{key}/{family}", free, is_free, f"Service addresses {network}")])
    taken.add(address)
    return address


class _Ports:
    """The node ports of one admission."""

    def __init__(self, offered: range, taken: set[int]) -> None:
        self._offered = offered
        self._taken = taken

    def allocate(self, name: str) -> int:
        found = _choose(name, self._offered, lambda port: port not in self._taken, "node ports")
        self._taken.add(found)
        return found


def _node_ports(item: Wanted, spec: ServiceSpec, ports: _Ports) -> ServiceSpec:
    balanced = spec.type == "LoadBalancer"
    if spec.type != "NodePort" and not (balanced and item.spec.allocate_load_balancer_node_ports):
        return spec

    def with_port(port: ServicePort) -> ServicePort:
        name = f"{item.key}/{port.protocol}/{port.port}"
        return port if port.node_port else replace(port, node_port=ports.allocate(name))

    policy = spec.external_traffic_policy or "Cluster"
    health = spec.health_check_node_port
    if balanced and policy == "Local" and not health:
        health = ports.allocate(f"{item.key}/health")
    return replace(
        spec,
        ports=tuple(with_port(port) for port in spec.ports),
        external_traffic_policy=policy,
        health_check_node_port=health,
    )


def _choose(name: str, offered: range, is_free: Callable[[int], bool], resource: str) -> int:
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    for step in range(len(offered)):
        found = offered[(start + step) % len(offered)]
        if is_free(found):
            return found
    raise Exhausted(resource, f"all {len(offered)} are taken")
