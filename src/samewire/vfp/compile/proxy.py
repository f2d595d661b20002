"""L4WFPPROXY and L4Proxy policies -> which new connections a pod's own stack hands to a proxy.

Order: L4WFPPROXY policies by the Priority of their FilterTuple, then the endpoint's L4Proxy policies, then the
network's; the first match decides. A rule is of one IP version, and of TCP unless an L4Proxy says UDP.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from typing import Any, Final

from samewire.hcn.policies import (
    L4WFPPROXY,
    FilterTuple,
    L4Proxy,
    Policy,
    ProxyExceptions,
    acl_ports,
    select,
)
from samewire.hcn.policies_proxy import proxy_destination, user_of_sid
from samewire.hcn.policy_base import text_items
from samewire.hcn.policy_lists import named
from samewire.vfp.address import IPV4, Prefix, parse_address, parse_prefix
from samewire.vfp.model import ProxyRule

Ports = tuple[tuple[int, int], ...]

_TCP: Final = 6
_ALL_PORTS: Final[Ports] = ((0, 65535),)


def compile_proxies(
    network: Sequence[Policy], endpoint: Sequence[Policy], addresses: Iterable[Prefix]
) -> tuple[ProxyRule, ...]:
    """The rules of an endpoint that has these addresses. Raises ``Invalid``."""
    own = tuple(addresses)
    families = sorted({prefix.family for prefix in own})
    sidecars = named(endpoint, L4WFPPROXY)
    sidecars.sort(key=lambda item: item[1].filter_tuple.priority if item[1].filter_tuple else 0)
    rules = [rule for i, policy in sidecars for rule in _sidecar(f"policy {i}", policy, families)]
    for where, policies in (("policy", endpoint), ("network policy", network)):
        for i, policy in named(policies, L4Proxy):
            rules += _elsewhere(f"{where} {i}", policy, own)
    return tuple(rules)


def proxies_translated(network: Iterable[Policy], endpoint: Iterable[Policy]) -> tuple[str, ...]:
    """The addresses of the proxies that shall see the node's address as the client's."""
    found = [policy for policies in (endpoint, network) for policy in select(policies, L4Proxy)]
    return tuple(proxy_destination(policy)[0] for policy in found if policy.outbound_nat)


def _sidecar(name: str, policy: L4WFPPROXY, families: Iterable[int]) -> Iterator[ProxyRule]:
    """A proxy in the pod itself."""
    wanted = policy.filter_tuple or FilterTuple()
    user = user_of_sid(policy.user_sid) if policy.user_sid else None
    for outbound, port, excepted in (
        (False, policy.inbound_proxy_port, policy.inbound_exceptions),
        (True, policy.outbound_proxy_port, policy.outbound_exceptions),
    ):
        for family in families if port else ():
            local, remote = _ends(wanted.local_addresses, family), _ends(wanted.remote_addresses, family)
            exceptions = excepted or ProxyExceptions()
            left_alone = _prefixes(exceptions.ip_address_exceptions, family)
            ports_left_alone = _merged(acl_ports(",".join(exceptions.port_exceptions)))
            if local is None or remote is None or _everything(left_alone) or ports_left_alone == _ALL_PORTS:
                continue
            yield ProxyRule(
                name=name,
                outbound=outbound,
                family=family,
                protocol=_TCP,
                port=int(port),
                local=local,
                remote=remote,
                local_ports=_taken(wanted.local_ports),
                remote_ports=_taken(wanted.remote_ports),
                except_remote=left_alone,
                except_ports=ports_left_alone,
                user=user if outbound else None,
            )


def _elsewhere(name: str, policy: L4Proxy, own: Iterable[Prefix]) -> Iterator[ProxyRule]:
    """A proxy at an address. The endpoint that has it is left alone: the proxy would be sent to itself."""
    text, port = proxy_destination(policy)
    target = parse_address(text, "$.Policies.Destination")
    if any(prefix.address == target for prefix in own):
        return
    if target.family not in {prefix.family for prefix in own}:
        return
    remote, left_alone = _ends(policy.ip, target.family), _prefixes(policy.exceptions, target.family)
    if remote is None or _everything(left_alone):
        return
    yield ProxyRule(
        name=name,
        outbound=True,
        family=target.family,
        protocol=policy.protocol,
        port=port,
        target=target,
        remote=remote,
        remote_ports=_taken(policy.port),
        except_remote=left_alone,
    )


def _ends(text: str, family: int) -> tuple[Prefix, ...] | None:
    """The addresses that a list takes in one family; () = any, None = none."""
    found = _prefixes(text_items(text), family)
    if _everything(found):
        return ()
    return found if found or not text_items(text) else None


def _everything(prefixes: tuple[Prefix, ...]) -> bool:
    return any(not prefix.bits for prefix in prefixes)


def _prefixes(texts: Iterable[str], family: int) -> tuple[Prefix, ...]:
    """The prefixes of a family, none within another."""
    mine = [prefix for text in texts if (prefix := parse_prefix(text, "$.Policies")).family == family]
    network: Any = IPv4Network if family == IPV4 else IPv6Network
    merged = collapse_addresses([network(str(prefix)) for prefix in mine])
    return tuple(parse_prefix(str(item)) for item in merged)


def _taken(text: str) -> Ports:
    """The ports that a list takes; () = any."""
    found = _merged(acl_ports(text))
    return () if found == _ALL_PORTS else found


def _merged(ports: Ports) -> Ports:
    """Ranges without overlap, in order."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(ports):
        if found and low <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(high, found[-1][1])
        else:
            found.append((low, high))
    return tuple(found)
