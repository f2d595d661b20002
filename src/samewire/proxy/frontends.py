"""Where a service is reached: its virtual addresses, and the rules that go with each.

The rules are kube-proxy's: see docs/guides/services.md for the table.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from samewire.kube.addresses import decimal, shortest
from samewire.kube.model import Service, ServicePort
from samewire.kube.source_ranges import SourceRanges, source_ranges
from samewire.proxy.members import MAX_PORT, PortKey

DEFAULT_AFFINITY_S: Final = 10800
PRESERVE_DESTINATION: Final = "true"

_NO_RANGES: Final = SourceRanges({}, ())


class VipKind(enum.StrEnum):
    """What a virtual address is. The value is part of the load balancer's id: never change it."""

    CLUSTER_IP = "cluster"
    NODE_PORT = "node-port"
    EXTERNAL_IP = "external"
    INGRESS = "ingress"


CLUSTER_IP: Final = VipKind.CLUSTER_IP


class Frontend(msgspec.Struct, frozen=True, gc=False):
    """One virtual address of one service port. ``address`` is "" for a node port: any address of the node.
    ``port_key``: what its members are filed under.
    """

    kind: VipKind
    family: int
    address: str
    port: int
    service_port: ServicePort
    port_key: PortKey


class Rules(NamedTuple):
    """What holds for all virtual addresses of a service. ``affinity_s`` 0: none."""

    internal_local: bool
    external_local: bool
    affinity_s: int
    source_ranges: SourceRanges
    preserve_destination: bool
    health_check_port: int


_LOCAL_OR_NOT: Final = {
    (internal, external): Rules(internal, external, 0, _NO_RANGES, False, 0)
    for internal in (False, True)
    for external in (False, True)
}


def is_ours(service: Service) -> bool:
    """Whether a service is to be balanced by this proxy at all."""
    labels = service.metadata.labels
    return labels.service_proxy_name is None and labels.headless is None and bool(service.cluster_ips)


def rules(service: Service) -> Rules:
    """The rules of a service."""
    spec = service.spec
    annotations = service.metadata.annotations
    if (
        spec.type == "ClusterIP"
        and spec.session_affinity == "None"
        and annotations.preserve_destination == ""
    ):
        return _LOCAL_OR_NOT[spec.internal_traffic_policy == "Local", _is_local_outside(service)]
    external_local = _is_local_outside(service)
    port = spec.health_check_node_port
    wants_check = external_local and spec.type == "LoadBalancer"
    return Rules(
        internal_local=spec.internal_traffic_policy == "Local",
        external_local=external_local,
        affinity_s=_affinity_s(service),
        source_ranges=source_ranges(service) if spec.type == "LoadBalancer" else _NO_RANGES,
        preserve_destination=annotations.preserve_destination == PRESERVE_DESTINATION,
        health_check_port=port if wants_check and 0 < port <= MAX_PORT else 0,
    )


def frontends(service: Service) -> list[Frontend]:
    """Every virtual address and port of a service, in the families in which it has a cluster IP; none if it is not
    ours.
    """
    spec = service.spec
    labels = service.metadata.labels
    if labels.service_proxy_name is not None or labels.headless is not None:
        return []
    ports = spec.ports
    found: list[Frontend] = []
    families: dict[int, None] = {}
    if spec.type == "ExternalName":
        return found
    for family, address in cluster_addresses(service):
        families[family] = None
        for port in ports:
            found.append(_frontend(CLUSTER_IP, family, address, port.port, port))
    if not found or (spec.type == "ClusterIP" and not spec.external_ips):
        return found
    for family in families:
        found += [
            _frontend(VipKind.NODE_PORT, family, "", port.node_port, port) for port in ports if port.node_port
        ]
    ingress, external = _outside(service, {frontend.address for frontend in found})
    found += _of_addresses(VipKind.EXTERNAL_IP, external, families, ports)
    found += _of_addresses(VipKind.INGRESS, ingress, families, ports)
    return found


def cluster_addresses(service: Service) -> list[tuple[int, str]]:
    """Family and one form of each cluster IP."""
    spec, found = service.spec, []
    if spec.type != "ExternalName":
        for address in spec.cluster_ips or (spec.cluster_ip,):
            if ":" in address:
                found.append((6, shortest(address)))
            elif address and address != "None":
                found.append((4, decimal(address)))
    return found


def outside_addresses(service: Service) -> list[str]:
    """The external and ingress IPs of a service, those that are no cluster IP of its own."""
    if not service.spec.external_ips and not service.status.load_balancer.ingress:
        return []
    ingress, external = _outside(service, {address for _, address in cluster_addresses(service)})
    return [address for _, address in (*ingress, *external)]


def _outside(service: Service, known: set[str]) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Ingress and external IPs. An address may be named in several ways; it counts once, as what most is asked of."""
    return list(_parsed(_ingress(service), known)), list(_parsed(service.spec.external_ips, known))


def _frontend(kind: VipKind, family: int, address: str, number: int, port: ServicePort) -> Frontend:
    return Frontend(kind, family, address, number, port, (port.name, port.protocol, family))


def _ingress(service: Service) -> Iterator[str]:
    """The addresses that a cloud's load balancer leaves in the packets it sends on."""
    for entry in service.status.load_balancer.ingress:
        if entry.ip and entry.ip_mode != "Proxy":
            yield entry.ip


def _parsed(texts: Iterable[str], known: set[str]) -> Iterator[tuple[int, str]]:
    """Family and shortest form of each address that is not known, which it is from then on; what is no address is left
    out.
    """
    for text in texts:
        try:
            address = ipaddress.ip_address(decimal(text))
        except ValueError:
            continue
        short = str(address)
        if short not in known:
            known.add(short)
            yield address.version, short


def _of_addresses(
    kind: VipKind, addresses: Iterable[tuple[int, str]], families: Iterable[int], ports: Iterable[ServicePort]
) -> list[Frontend]:
    wanted = set(families)
    return [
        _frontend(kind, family, address, port.port, port)
        for family, address in addresses
        if family in wanted
        for port in ports
    ]


def _is_local_outside(service: Service) -> bool:
    """Whether the external traffic policy is Local, and there is somebody outside who can come."""
    spec = service.spec
    return spec.external_traffic_policy == "Local" and (
        spec.type in ("LoadBalancer", "NodePort") or (spec.type == "ClusterIP" and bool(spec.external_ips))
    )


def _affinity_s(service: Service) -> int:
    if service.spec.session_affinity != "ClientIP":
        return 0
    config = service.spec.session_affinity_config
    seconds = config.client_ip.timeout_seconds if config and config.client_ip else None
    return DEFAULT_AFFINITY_S if seconds is None else seconds
