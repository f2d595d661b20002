"""From a configuration and what IPAM and the network say to the attachment to make, and to the result. Pure."""

from __future__ import annotations

from ipaddress import ip_interface

import msgspec

from samewire.cni.backend import Address, Attached, AttachRequest, CheckRequest, NetworkInfo, check_failed
from samewire.cni.conf import Attachment, NetConf
from samewire.cni.environment import Environment
from samewire.cni.errors import CniCode, CniError
from samewire.cni.fields import family, mac
from samewire.cni.policies import checked, masqueraded, port_mappings
from samewire.cni.result import Dns, Interface, IpConfig, Result, Route
from samewire.hcn.policies import QOS, Policy, parse_prefix
from samewire.hcn.policy_base import parse_ip

MIN_MTU6 = 1280
"""Bytes; the kernel takes IPv6 off an interface with less (RFC 8200, section 5)."""

DEFAULTS = {4: "0.0.0.0/0", 6: "::/0"}

_PLAIN = {"mtu": (0,), "advmss": (0,), "table": (0, 254), "scope": (0,)}
"""What routes have in any case: no size of their own, the main table, no scope but that of the world."""

ROUTED_TYPES = frozenset({"Overlay", "NAT", "Internal"})
"""Networks whose only router is the switch, at the network's gateway address."""


def plan_attach(
    environment: Environment, conf: NetConf, wanted: Attachment, network: NetworkInfo, ipam: Result | None
) -> AttachRequest:
    """Return the attachment to make. ``ipam`` is None without an address manager.

    Raises CniError(INVALID_CONFIG) where the configuration does not fit the network.
    """
    if ipam is None:
        addresses = tuple(_requested(ip, network) for ip in wanted.ips)
    else:
        addresses = tuple(_allocated(ip, network) for ip in ipam.ips)
    for item in addresses:
        _check_gateway(item, conf, network)
        if 0 < wanted.mtu < MIN_MTU6 and family(item.ip) == 6:
            raise CniError(
                CniCode.INVALID_CONFIG,
                f"mtu: must be at least {MIN_MTU6} bytes with an IPv6 address, got {wanted.mtu}",
            )
    return AttachRequest(
        network=conf.name,
        container_id=environment.container_id,
        interface_name=environment.interface_name,
        netns_path=environment.netns_path,
        addresses=addresses,
        routes=_routes(wanted, addresses, network, ipam.routes if ipam else ()),
        mac=wanted.mac,
        mtu=wanted.mtu,
        policies=_policies(wanted, addresses, network),
        dns=merge_dns(wanted, ipam, network),
        pod_namespace=environment.args.pod_namespace,
        pod_name=environment.args.pod_name,
    )


def merge_dns(wanted: Attachment, ipam: Result | None, network: NetworkInfo) -> Dns:
    """Return the resolver settings: the configuration's, else IPAM's, else the network's; runtimeConfig over it."""
    return wanted.runtime_dns.over(wanted.dns or (ipam.dns if ipam else Dns()) or network.dns)


def add_result(request: AttachRequest, made: Attached, previous: Result) -> Result:
    """Return the result of ADD: what came before in the chain, then the host's end and the container's end."""
    first = len(previous.interfaces)
    interfaces = (
        Interface(made.host_interface, made.host_mac, made.mtu),
        Interface(request.interface_name, made.mac, made.mtu, request.netns_path),
    )
    ips = tuple(IpConfig(item.cidr, item.gateway, first + 1) for item in made.addresses)
    known = set(previous.routes)
    routes = tuple(route for route in made.routes if route not in known)
    return Result(
        (*previous.interfaces, *interfaces),
        (*previous.ips, *ips),
        (*previous.routes, *routes),
        request.dns or previous.dns,
    )


def plan_check(environment: Environment, conf: NetConf, previous: Result) -> CheckRequest:
    """Return what CHECK compares. Raises CniError(CHECK_FAILED) when the result lacks the interface."""
    index = next(
        (
            number
            for number, item in enumerate(previous.interfaces)
            if item.name == environment.interface_name and item.sandbox
        ),
        None,
    )
    if index is None:
        raise check_failed(f"prevResult has no interface {environment.interface_name} in a sandbox")
    inside = previous.interfaces[index]
    if inside.sandbox != environment.netns_path:
        raise check_failed(f"prevResult has sandbox {inside.sandbox}, CNI_NETNS is {environment.netns_path}")
    # ADD puts the host's end right before the container's.
    before = previous.interfaces[index - 1] if index else None
    return CheckRequest(
        network=conf.name,
        container_id=environment.container_id,
        interface_name=environment.interface_name,
        netns_path=environment.netns_path,
        host_interface=before.name if before and not before.sandbox else "",
        mac=previous_mac(inside),
        mtu=inside.mtu,
        addresses=tuple(_address(ip) for ip in previous.ips if ip.interface == index),
        routes=previous.routes,
    )


def previous_mac(interface: Interface) -> str:
    """Return the MAC address that a result says an interface has, "" where it does not. Raises
    CniError(CHECK_FAILED) when it can be no pod's.
    """
    try:
        return mac(interface.mac) if interface.mac else ""
    except ValueError as error:
        raise check_failed(f"prevResult: {error}") from None


def _address(ip: IpConfig) -> Address:
    text, _, length = ip.address.partition("/")
    return Address(text, int(length), ip.gateway)


def _allocated(ip: IpConfig, network: NetworkInfo) -> Address:
    """Return an address of IPAM; one without a gateway gets that of its subnet."""
    found = _address(ip)
    return (
        found if found.gateway else msgspec.structs.replace(found, gateway=_subnet_of(found.ip, network)[1])
    )


def _requested(ip: str, network: NetworkInfo) -> Address:
    """Return an address that runtimeConfig asks for where there is no IPAM."""
    text, _, length = ip.partition("/")
    subnet, gateway = _subnet_of(text, network)
    if not length and not subnet:
        raise CniError(CniCode.INVALID_CONFIG, f"runtimeConfig.ips: {ip} is in no subnet of the network")
    return Address(text, int(length or subnet.rpartition("/")[2]), gateway)


def _subnet_of(ip: str, network: NetworkInfo) -> tuple[str, str]:
    """Return the subnet that has an address and its gateway, two empty texts when none has."""
    number = parse_ip(ip)
    pairs = zip(network.subnets, network.gateways, strict=True)
    return next((pair for pair in pairs if number in parse_prefix(pair[0])), ("", ""))


def _check_gateway(item: Address, conf: NetConf, network: NetworkInfo) -> None:
    """Refuse a gateway that nobody would answer for: the pod would come up without a way out."""
    own = _subnet_of(item.ip, network)[1]
    if network.type in ROUTED_TYPES and own and item.gateway and item.gateway != own:
        raise CniError(
            CniCode.INVALID_CONFIG,
            f"ipam: the gateway {item.gateway} of {item.cidr} is not that of network {conf.name}, {own}",
        )


def _routes(
    wanted: Attachment, addresses: tuple[Address, ...], network: NetworkInfo, given: tuple[Route, ...]
) -> tuple[Route, ...]:
    """Return the routes to make: IPAM's, and a default one for each family where it is due.

    A default route that came before in the chain stays the only one of its family.
    """
    _check_attributes(given)
    taken = {route.dst for route in wanted.previous.routes if route.dst in DEFAULTS.values()}
    routes = [route for route in given if route.dst not in taken]
    for version, gateway in _gateways(addresses, network).items():
        default = DEFAULTS[version]
        theirs = [route for route in given if family(route.dst) == version]
        due = wanted.default_gateway if wanted.default_gateway is not None else not theirs
        if due and default not in taken and not any(route.dst == default for route in theirs):
            routes.append(Route(default, gateway))
    return tuple(routes)


def _check_attributes(routes: tuple[Route, ...]) -> None:
    """Refuse what CNI 1.1 can say of a route and an endpoint's routes cannot: in another table it would mean another
    thing.
    """
    for route in routes:
        for name, plain in _PLAIN.items():
            value = getattr(route, name)
            if value is not None and value not in plain:
                raise CniError(
                    CniCode.UNSUPPORTED_FIELD,
                    f"ipam: {name} {value} of the route to {route.dst} cannot be set",
                )


def _gateways(addresses: tuple[Address, ...], network: NetworkInfo) -> dict[int, str]:
    """Return the gateway of each family: of the addresses, or of the network where it will choose them."""
    found: dict[int, str] = {}
    for gateway in [item.gateway for item in addresses] if addresses else network.gateways:
        if gateway:
            found.setdefault(family(gateway), gateway)
    return found


def _policies(wanted: Attachment, addresses: tuple[Address, ...], network: NetworkInfo) -> tuple[Policy, ...]:
    """Return the configuration's policies with those that its other keys and runtimeConfig ask for."""
    if not (wanted.qos or wanted.host_ports or wanted.masquerade or wanted.masquerade_except):
        return wanted.policies
    policies = list(wanted.policies)
    if wanted.qos:
        policies = [policy for policy in policies if not isinstance(policy, QOS)] + [wanted.qos]
    prefixes = [item.cidr for item in addresses] or list(network.subnets)
    families = sorted({family(item) for item in prefixes})
    policies += port_mappings(wanted.host_ports, families)
    spared = list(wanted.masquerade_except)
    if wanted.masquerade:
        own = network.subnets or [str(ip_interface(item).network) for item in prefixes]
        spared = [*dict.fromkeys([*own, *spared])]
    return checked(masqueraded(policies, spared), "policies")
