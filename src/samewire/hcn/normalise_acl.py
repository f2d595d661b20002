"""Canonical forms of the policies that filter and redirect: lists of protocols, addresses, sets and ports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import msgspec

from samewire.hcn import values
from samewire.hcn.errors import HcnCode, HcnError
from samewire.hcn.policies import (
    ACL,
    L4WFPPROXY,
    AclRule,
    FilterTuple,
    L4Proxy,
    NetworkACL,
    Policy,
    PolicyBase,
    ProxyExceptions,
    SetPolicy,
    SetType,
    TierAcl,
    acl_ports,
    acl_protocols,
    family_of,
    is_prefix,
)
from samewire.hcn.policies_proxy import user_of_sid
from samewire.hcn.policy_base import text_items
from samewire.hcn.readers import PROTOCOLS

_replace = msgspec.structs.replace
T = TypeVar("T", bound=AclRule | FilterTuple)

TCP, UDP = 6, 17
MAX_PORT = 2**16 - 1


def _fail(path: str, message: str, code: HcnCode = HcnCode.INVALID_POLICY) -> NoReturn:
    raise HcnError(code, f"{path}: {message}")


def check_acl(policy: ACL) -> ACL:
    """Return the canonical form of an ACL. Raises HcnError."""
    return _tuple(policy, "Settings")


def check_network_acl(policy: NetworkACL) -> NetworkACL:
    """Return the canonical form of a NetworkACL. Raises HcnError."""
    return _tuple(policy, "Settings")


def check_tier(policy: TierAcl) -> TierAcl:
    """Return the canonical form of a tier of ACLs. Raises HcnError."""
    values.name(policy.name, "Settings.Name", HcnCode.INVALID_POLICY)
    rules = tuple(
        _tuple(rule, f"Settings.TierAclRules[{index}]") for index, rule in enumerate(policy.tier_acl_rules)
    )
    return _replace(policy, tier_acl_rules=rules)


def check_set(policy: SetPolicy) -> SetPolicy:
    """Return the canonical form of a set. Raises HcnError."""
    if not policy.set_id or "," in policy.set_id or policy.set_id != policy.set_id.strip():
        _fail("Settings.Id", "must be a name without commas and outer spaces")
    values.name(policy.set_id, "Settings.Id", HcnCode.INVALID_POLICY)
    if not _is_set_id(policy.set_id):
        _fail("Settings.Id", f"{policy.set_id} could not be told from an address in an ACL")
    values.name(policy.name, "Settings.Name", HcnCode.INVALID_POLICY)
    items = text_items(policy.values)
    if policy.policy_type is SetType.IPSET:
        items = [values.address_or_prefix(item, "Settings.Values") for item in items]
    elif any(is_prefix(item) for item in items):
        _fail("Settings.Values", "a NESTEDIPSET holds the Ids of other sets, not addresses")
    return _replace(policy, values=",".join(items))


def check_l4_proxy(policy: L4Proxy) -> L4Proxy:
    """Return the canonical form of an L4Proxy policy. Raises HcnError."""
    if policy.protocol not in (TCP, UDP):
        _fail("Settings.Protocol", f"only TCP ({TCP}) and UDP ({UDP}) can be redirected")
    if policy.port:
        _port(policy.port, "Settings.Port")
    address, port = split_address_port(policy.destination)
    address = values.station_ip(address, "Settings.Destination")
    destination = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    _port(port, "Settings.Destination")
    if policy.ip and family_of(values.address_or_prefix(policy.ip, "Settings.IP")) != family_of(address):
        _fail("Settings.IP", f"{policy.ip} and the proxy's address {address} differ in IP version")
    return _replace(
        policy,
        ip=values.address_or_prefix(policy.ip, "Settings.IP") if policy.ip else "",
        exceptions=_addresses(policy.exceptions, "Settings.Exceptions"),
        destination=destination,
    )


def split_address_port(text: str) -> tuple[str, str]:
    """Return address and port of ``10.0.0.1:80`` or ``[fd00::1]:80``. Raises HcnError."""
    address, colon, port = text.rpartition(":")
    if not colon or address.endswith(":"):
        _fail("Settings.Destination", f"expected address:port such as [fd00::1]:80, got {text[:64]!r}")
    return address.removeprefix("[").removesuffix("]"), port


def check_wfp_proxy(policy: L4WFPPROXY) -> L4WFPPROXY:
    """Return the canonical form of an L4WFPPROXY policy. Raises HcnError."""
    if not (policy.inbound_proxy_port or policy.outbound_proxy_port):
        _fail("Settings.OutboundProxyPort", "the policy needs an InboundProxyPort or an OutboundProxyPort")
    for name, text in (
        ("InboundProxyPort", policy.inbound_proxy_port),
        ("OutboundProxyPort", policy.outbound_proxy_port),
    ):
        if text:
            _port(text, f"Settings.{name}")
    if policy.user_sid:
        _parsed(user_of_sid, policy.user_sid, "Settings.UserSID")
    wanted = policy.filter_tuple
    if wanted:
        wanted = _tuple(wanted, "Settings.FilterTuple", with_sets=False)
        if TCP not in (acl_protocols(wanted.protocols) or (TCP,)):
            _fail("Settings.FilterTuple.Protocols", f"only TCP ({TCP}) can be handed to a proxy in the pod")
    return _replace(
        policy,
        filter_tuple=wanted,
        inbound_exceptions=_exceptions(policy.inbound_exceptions, "Settings.InboundExceptions"),
        outbound_exceptions=_exceptions(policy.outbound_exceptions, "Settings.OutboundExceptions"),
    )


def _exceptions(given: ProxyExceptions | None, path: str) -> ProxyExceptions | None:
    if given is None:
        return None
    for index, text in enumerate(given.port_exceptions):
        _parsed(acl_ports, text, f"{path}.PortExceptions[{index}]")
    return _replace(
        given, ip_address_exceptions=_addresses(given.ip_address_exceptions, f"{path}.IpAddressExceptions")
    )


def _tuple(rule: T, path: str, with_sets: bool = True) -> T:
    """Return a rule with its lists in canonical form."""
    protocols = ",".join(str(PROTOCOLS.get(item.lower(), item)) for item in text_items(rule.protocols))
    _parsed(acl_protocols, protocols, f"{path}.Protocols")
    _parsed(acl_ports, rule.local_ports, f"{path}.LocalPorts")
    _parsed(acl_ports, rule.remote_ports, f"{path}.RemotePorts")
    return _replace(
        rule,
        protocols=protocols,
        local_addresses=_address_list(rule.local_addresses, f"{path}.LocalAddresses", with_sets),
        remote_addresses=_address_list(rule.remote_addresses, f"{path}.RemoteAddresses", with_sets),
    )


def _parsed(parse: Callable[[str], object], text: str, path: str) -> None:
    try:
        parse(text)
    except ValueError as error:
        _fail(path, str(error))


def _address_list(text: str, path: str, with_sets: bool) -> str:
    """Return an address list in canonical form; an item that cannot be an address is the id of a set."""
    return ",".join(
        item if with_sets and _is_set_id(item) else values.address_or_prefix(item, path)
        for item in text_items(text)
    )


def _is_set_id(item: str) -> bool:
    """True for a name. What looks like an address with a mistake in it is meant to be refused."""
    return not ("/" in item or ":" in item or set(item) <= _NUMBERS)


_NUMBERS = frozenset("0123456789.")


def _addresses(items: tuple[str, ...], path: str) -> tuple[str, ...]:
    return tuple(
        values.address_or_prefix(item, f"{path}[{index}]") for index, item in enumerate(items) if item
    )


def _port(text: str, path: str) -> None:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= MAX_PORT):
        _fail(path, f"expected a port from 1 to {MAX_PORT}, got {text[:32]!r}")


CHECKS: dict[type[PolicyBase], Callable[[Any], Policy]] = {
    ACL: check_acl,
    NetworkACL: check_network_acl,
    TierAcl: check_tier,
    SetPolicy: check_set,
    L4Proxy: check_l4_proxy,
    L4WFPPROXY: check_wfp_proxy,
}
