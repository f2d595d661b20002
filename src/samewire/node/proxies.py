"""The proxy rules of one pod: a table of nf_tables in the pod's own network namespace, called like the host end.

Only the first packet of a connection is asked: what was there before a change goes on as it was. The table stays while
the pod is there, for the kernel translates the connections it has redirected only as long as there are its chains,
and a rule that needs the tracking of connections.
"""

from __future__ import annotations

import hashlib
from typing import Final

from samewire.kernel import nftables
from samewire.kernel.netns import GONE, NetNamespace
from samewire.kernel.rtnetlink import Netlink, link_set
from samewire.vfp.model import PortLink, ProxyRule

_CHAINS: Final = {True: "outbound", False: "inbound"}
_HOOKS: Final = {"outbound": "output", "inbound": "prerouting"}
_FAMILIES: Final = {4: ("ipv4", "ip"), 6: ("ipv6", "ip6")}
_PROTOCOLS: Final = {6: "tcp", 17: "udp"}
_KEEPER: Final = ("outbound", "keeps connections tracked")
# A connection that is older than the table is known to the kernel by whatever packet it sees first.
_FIRST_PACKET: Final = "tcp flags & (fin|syn|rst|ack) == syn"


def write(link: PortLink, netns: NetNamespace) -> None:
    """Make the pod's table what its link wants. Raises KernelError, Unsupported."""
    table = link.host_name
    if not link.proxies and not nftables.has_table(netns, table):
        return
    lines = [f'add table inet {table} {{ comment "samewire"; }}']
    lines += [
        f"add chain inet {table} {chain} {{ type nat hook {hook} priority -100; }}"
        for chain, hook in _HOOKS.items()
    ]
    lines.append(f"flush table inet {table}")
    lines.append(f'add rule inet {table} {_KEEPER[0]} ct state established accept comment "{_KEEPER[1]}"')
    for rule in link.proxies:
        text = rule_text(rule, link.interface_name)
        lines.append(f'add rule inet {table} {_CHAINS[rule.outbound]} {text} comment "{_mark(rule, text)}"')
    nftables.change(netns, "\n".join(lines), f"hand connections of {table} to a proxy")
    with Netlink(netns.fd) as inside:
        inside.request(link_set("lo", up=True))  # the way to the proxy


def remove(table: str, netns_path: str) -> bool:
    """Remove a pod's table; whether there was one. The pod may be gone. Raises KernelError."""
    try:
        netns = NetNamespace(netns_path)
    except GONE:
        return False
    with netns:
        if not nftables.has_table(netns, table):
            return False
        nftables.change(netns, f"delete table inet {table}", f"remove the proxy rules of {table}")
        return True


def differences(link: PortLink, netns: NetNamespace) -> list[str]:
    """What is not as the link wants it, in words. Raises KernelError."""
    wanted = [_KEEPER] + [
        (_CHAINS[rule.outbound], _mark(rule, rule_text(rule, link.interface_name))) for rule in link.proxies
    ]
    found = nftables.rules(netns, link.host_name)
    if not link.proxies and found is None:
        return []
    if found is not None and _by_chain(found) == _by_chain(wanted):
        return []
    return [f"its proxy rules are {'gone' if not found else 'others'}"]


def rule_text(rule: ProxyRule, interface_name: str) -> str:
    """The rule as nft reads it."""
    kind, header = _FAMILIES[rule.family]
    protocol = _PROTOCOLS[rule.protocol]
    local, remote = ("saddr", "daddr") if rule.outbound else ("daddr", "saddr")
    local_port, remote_port = ("sport", "dport") if rule.outbound else ("dport", "sport")
    words = [f'{"oifname" if rule.outbound else "iifname"} "{interface_name}"', f"meta nfproto {kind}"]
    words.append(_FIRST_PACKET if rule.protocol == 6 else f"meta l4proto {protocol}")
    if rule.user is not None:
        words.append(f"meta skuid != {rule.user}")
    for where, taken, operator in (
        (f"{header} {local}", _set(rule.local), ""),
        (f"{header} {remote}", _set(rule.remote), ""),
        (f"{header} {remote}", _set(rule.except_remote), "!= "),
        (f"{protocol} {local_port}", _ranges(rule.local_ports), ""),
        (f"{protocol} {remote_port}", _ranges(rule.remote_ports), ""),
        (f"{protocol} dport", _ranges(rule.except_ports), "!= "),
    ):
        if taken:
            words.append(f"{where} {operator}{{ {taken} }}")
    if rule.target is None:
        words.append(f"redirect to :{rule.port}")
    else:
        address = f"[{rule.target}]" if rule.family == 6 else str(rule.target)
        words.append(f"dnat {header} to {address}:{rule.port}")
    return " ".join(words)


def _mark(rule: ProxyRule, text: str) -> str:
    """Says which rule it is when it is read back, whatever words the library then has for it."""
    return f"{rule.name} {hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def _by_chain(rules: list[tuple[str, str]]) -> dict[str, list[str]]:
    return {chain: [mark for where, mark in rules if where == chain] for chain in _HOOKS}


def _set(prefixes: tuple[object, ...]) -> str:
    return ", ".join(map(str, prefixes))


def _ranges(ports: tuple[tuple[int, int], ...]) -> str:
    return ", ".join(f"{low}-{high}" if low != high else str(low) for low, high in ports)
