"""The attachment, result and comparison of a call in another plugin's dialect. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, Final

import msgspec

from samewire.cni.backend import Address, Attached, AttachRequest, CheckRequest, NetworkInfo, check_failed
from samewire.cni.conf import Attachment, NetConf
from samewire.cni.dialects.names import AZURE, WIN_OVERLAY, Dialect
from samewire.cni.environment import Environment
from samewire.cni.errors import CniCode, CniError
from samewire.cni.fields import family
from samewire.cni.plan import DEFAULTS, plan_attach, previous_mac
from samewire.cni.policies import checked
from samewire.cni.result import Dns, Interface, IpConfig, Result
from samewire.hcn.policies import OutBoundNAT, Policy, ProviderAddress
from samewire.hcn.policies_acl import ACL, AclAction, AclDirection

ACCEPT_PRIORITY: Final = 1000
NON_PERSISTENT: Final = 8
_NO_ROUTE: Final = ("0.0.0.0", "::")


def network_object(conf: NetConf, dialect: Dialect, allocated: Result | None) -> dict[str, Any] | None:
    """Return the HCN network that the plugin would make where there is none, None when it makes none.

    Its subnets are those of ``ipam.subnet``, else of the addresses that IPAM gave.
    """
    if not dialect.creates_network:
        return None
    subnet = conf.fields.child("ipam").text("subnet")
    pairs = [(subnet, "")] if subnet else []
    if not pairs and allocated is not None:
        pairs = [(str(ip_interface(ip.address).network), ip.gateway) for ip in allocated.ips]
    if not pairs:
        return None
    value: dict[str, Any] = {"Type": dialect.network_types[0]}
    value["Ipams"] = [{"Type": "Static", "Subnets": [_subnet(*pair) for pair in pairs]}]
    if dialect.plugin == AZURE:
        value["Flags"] = NON_PERSISTENT
    if dialect.adapter:
        value["Policies"] = [{"Type": "NetAdapterName", "Settings": {"NetworkAdapterName": dialect.adapter}}]
    return value


def check_network_type(conf: NetConf, dialect: Dialect, network: NetworkInfo) -> None:
    """Raise CniError(INVALID_CONFIG) where the plugin does not attach to networks of this type."""
    if network.type not in dialect.network_types:
        wanted = " or ".join(dialect.network_types)
        raise CniError(
            CniCode.INVALID_CONFIG,
            f"name: network {conf.name} has type {network.type}; {dialect.plugin} needs {wanted}",
        )


def plan_dialect(
    environment: Environment,
    conf: NetConf,
    dialect: Dialect,
    wanted: Attachment,
    network: NetworkInfo,
    ipam: Result | None,
) -> AttachRequest:
    """Return the attachment as the plugin would make it. Raises CniError(INVALID_CONFIG)."""
    check_network_type(conf, dialect, network)
    if ipam is not None:
        ipam = _with_gateways(ipam, dialect, network)
    none = ipam is not None and any(route.gw in _NO_ROUTE and route.gw for route in ipam.routes)
    if ipam is not None:
        ipam = msgspec.structs.replace(
            ipam, routes=tuple(route for route in ipam.routes if route.dst not in DEFAULTS.values())
        )
    wanted = msgspec.structs.replace(
        wanted,
        default_gateway=not none,
        dns=_dns(wanted.dns, dialect, environment.args.pod_namespace),
    )
    plan = plan_attach(environment, conf, wanted, network, ipam)
    more = _extra_policies(dialect, wanted, plan.addresses, network)
    name = dialect.endpoint_name(environment.container_id, environment.interface_name, conf.name)
    return msgspec.structs.replace(
        plan,
        endpoint_name=name,
        mac=plan.mac or _mac(dialect, plan.addresses),
        policies=(*plan.policies, *checked(more, "policies")),
    )


def dialect_result(
    conf: NetConf, dialect: Dialect, environment: Environment, made: Attached, dns: Dns, previous: Result
) -> Result:
    """Return the result in the plugin's shape: one interface, named as its endpoint, without a sandbox.

    azure-vnet names the interface as the container does, and says its routes.
    """
    azure = dialect.plugin == AZURE
    name = environment.interface_name
    if not azure:
        name = dialect.endpoint_name(environment.container_id, name, conf.name)
    interface = Interface(name, made.mac.replace(":", "-").upper())
    ips = tuple(IpConfig(item.cidr, item.gateway) for item in made.addresses)
    routes = made.routes if azure else ()
    return Result(
        (*previous.interfaces, interface),
        (*previous.ips, *ips),
        (*previous.routes, *routes),
        dns or previous.dns,
    )


def plan_dialect_check(
    environment: Environment, conf: NetConf, dialect: Dialect, previous: Result
) -> CheckRequest:
    """Return what CHECK compares, which the plugins never did. Raises CniError(CHECK_FAILED)."""
    name = environment.interface_name
    if dialect.plugin != AZURE:
        name = dialect.endpoint_name(environment.container_id, name, conf.name)
    interface = next((item for item in previous.interfaces if item.name == name), None)
    if interface is None:
        # CNI 0.2.0 and below have no interfaces in their results.
        if previous.interfaces:
            raise check_failed(f"prevResult has no interface {name}")
        interface = Interface(name)
    return CheckRequest(
        network=conf.name,
        container_id=environment.container_id,
        interface_name=environment.interface_name,
        netns_path=environment.netns_path,
        mac=previous_mac(interface),
        addresses=tuple(_address(ip) for ip in previous.ips if ip.interface is None),
        routes=previous.routes,
    )


def _subnet(prefix: str, gateway: str) -> dict[str, Any]:
    network = ip_network(prefix, strict=False)
    route = {"NextHop": gateway or str(network[1]), "DestinationPrefix": DEFAULTS[network.version]}
    return {"IpAddressPrefix": str(network), "Routes": [route]}


def _with_gateways(ipam: Result, dialect: Dialect, network: NetworkInfo) -> Result:
    """Return what IPAM gave with the gateways and prefix lengths that the plugin takes."""
    ips = []
    for item in ipam.ips:
        version = family(item.address)
        if dialect.plugin == WIN_OVERLAY and version != 4:
            raise CniError(CniCode.INVALID_CONFIG, f"ipam: win-overlay is for IPv4 only, not {item.address}")
        own = ip_interface(item.address)
        subnet = _subnet_of(own.ip.compressed, network)
        gateway = item.gateway if dialect.plugin == AZURE else ""
        if dialect.second_gateway and version == 4 and own.network.num_addresses > 4:
            gateway = str(own.network[2])
        gateway = next((gw for gw in dialect.gateways if family(gw) == version), gateway)
        bits = subnet.rpartition("/")[2] or str(own.network.prefixlen)
        ips.append(IpConfig(f"{own.ip}/{bits}", gateway, item.interface))
    return msgspec.structs.replace(ipam, ips=tuple(ips))


def _subnet_of(ip: str, network: NetworkInfo) -> str:
    number = ip_address(ip)
    return next((subnet for subnet in network.subnets if number in ip_network(subnet, strict=False)), "")


def _dns(dns: Dns, dialect: Dialect, pod_namespace: str) -> Dns:
    if not (dialect.qualify_search and pod_namespace and dns.search):
        return dns
    first, *rest = dns.search
    return Dns(dns.nameservers, dns.domain, (f"{pod_namespace}.{first}", *rest), dns.options)


def _mac(dialect: Dialect, addresses: tuple[Address, ...]) -> str:
    """Return the MAC made of the prefix and the IPv4 address, "" without one."""
    if not dialect.mac_prefix:
        return ""
    own = next((item.ip for item in addresses if family(item.ip) == 4), "")
    return f"{dialect.mac_prefix.replace('-', ':').lower()}:{ip_address(own).packed.hex(':')}" if own else ""


def _extra_policies(
    dialect: Dialect, wanted: Attachment, addresses: tuple[Address, ...], network: NetworkInfo
) -> list[Policy]:
    """Return the policies that the plugin adds. An exception that is listed already is not added once more."""
    more: list[Policy] = []
    spared = [dialect.spared] if dialect.spared else []
    if dialect.spare_own:
        spared += network.subnets
    listed = {
        item for policy in wanted.policies if isinstance(policy, OutBoundNAT) for item in policy.exceptions
    }
    more += [OutBoundNAT(exceptions=(item,)) for item in spared if item not in listed]
    if dialect.loopback_dsr:
        more += [OutBoundNAT(destinations=(item.ip,)) for item in addresses]
    if dialect.provider_address and network.management_ip and not _has_provider(wanted.policies):
        more.append(ProviderAddress(provider_address=network.management_ip))
    if dialect.accept_host_ports:
        more += [
            ACL(
                action=AclAction.ALLOW,
                direction=AclDirection.IN,
                protocols=str(port.protocol),
                local_ports=str(port.container_port),
                priority=ACCEPT_PRIORITY,
            )
            for port in wanted.host_ports
        ]
    return more


def _has_provider(policies: Iterable[Policy]) -> bool:
    return any(isinstance(policy, ProviderAddress) for policy in policies)


def _address(ip: IpConfig) -> Address:
    text, _, length = ip.address.partition("/")
    return Address(text, int(length), ip.gateway)
