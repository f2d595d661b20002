"""Which chains and rules of iptables are kube-proxy's, flannel's and the old CNI plugins'. Pure.

The names are those of kube-proxy (iptables and ipvs mode), flanneld and the CNI plugins ``portmap`` and ``bridge``.
kubelet's own (KUBE-FIREWALL, KUBE-KUBELET-CANARY, KUBE-MARK-DROP, KUBE-IPTABLES-HINT) are not among them.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Iterator, Set
from contextlib import suppress
from typing import Any, Final, TypeAlias

from msgspec import Struct

from samewire.takeover.model import OldRules, OldTable, PodRules, Subnet

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_ENTRIES: Final = re.compile(
    r"KUBE-(SERVICES|EXTERNAL-SERVICES|NODEPORTS|POSTROUTING|FORWARD|PROXY-FIREWALL|LOAD-BALANCER|NODE-PORT"
    r"|SOURCE-RANGES-FIREWALL|IPVS-FILTER|IPVS-OUT-FILTER)|FLANNEL-(POSTRTG|FWD)"
)
"""The chains that the kernel's own jump to."""
_INNER: Final = re.compile(r"KUBE-(MARK-MASQ|PROXY-CANARY|(SVC|SVL|SEP|EXT|FW|XLB)-[A-Z2-7]{16})")
_IPVS_ONLY: Final = ("nat", "KUBE-FIREWALL")
"""kubelet's chain of that name is in the filter table."""
_OF_A_POD: Final = re.compile(r"CNI-(DN-)?[0-9a-f]+")
_BUILT_IN: Final = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})
_FLANNELD: Final = ("flanneld masq", "flanneld forward")
"""flanneld before 0.22 had no chains of its own, but these comments."""
_TABLES: Final = frozenset(
    {("ip", "kube-proxy"), ("ip6", "kube-proxy"), ("ip", "flannel-ipv4"), ("ip6", "flannel-ipv6")}
)
_OWN: Final = "samewire-takeover"
_SHARED: Final = frozenset(
    {("ip", "cni_hostport"), ("ip6", "cni_hostport"), ("inet", "cni_plugins_masquerade")}
)
"""Of the CNI plugins ``portmap`` and ``bridge`` since 1.6, where they find no iptables."""

_SETS: Final = re.compile(
    r"KUBE-(6-)?(LOOP-BACK|CLUSTER-IP|EXTERNAL-IP|EXTERNAL-IP-LOCAL"
    r"|LOAD-BALANCER(-LOCAL|-FW|-SOURCE-IP|-SOURCE-CIDR)?"
    r"|NODE-PORT-(LOCAL-)?(TCP|UDP|SCTP(-HASH)?)|HEALTH-CHECK-NODE-PORT|IPVS-IPS)"
)
"""The ipsets of kube-proxy's ipvs mode; those of IPv6 have a 6 in their names."""


_WORDS: Final = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')
"""What iptables-save prints: only quotes that begin a word are quotes."""
_ESCAPED: Final = re.compile(r"\\(.)")
_INCOMPATIBLE: Final = re.compile(r"^# Table [`'](\w+)' is incompatible", re.MULTILINE)


class _Rule(Struct, frozen=True):
    chain: str
    target: str
    comment: str
    text: str


def old_rules(tool: str, saved: str, network: str) -> list[OldRules]:
    """Return what is theirs in the output of ``<tool>-save``; ``network`` is the old CNI network's name."""
    found = []
    for table, chains, rules in _tables(saved):
        theirs = [
            name
            for name in chains
            if _ENTRIES.fullmatch(name) or _INNER.fullmatch(name) or (table, name) == _IPVS_ONLY
        ]
        of_pods = {rule.target for rule in rules if _is_of_pod(rule, network)} & set(chains)
        owned = {*theirs, *of_pods}
        outside = [rule for rule in rules if rule.chain not in owned]
        jumps = [rule for rule in outside if _is_theirs(rule, of_pods)]
        others = [rule for rule in outside if rule.target in owned and rule not in jumps]
        if owned or jumps:
            found.append(
                OldRules(
                    tool=tool,
                    table=table,
                    chains=(*theirs, *sorted(of_pods)),
                    rules=tuple(rule.text for rule in jumps),
                    blockers=tuple(rule.text for rule in others),
                )
            )
    return found


def removal(rules: OldRules) -> str:
    """Return the text for ``<tool>-restore --noflush`` that removes exactly these, all at once."""
    return "\n".join(
        [
            f"*{rules.table}",
            *(f":{chain} - [0:0]" for chain in rules.chains),  # makes it empty
            *(f"-D{rule.removeprefix('-A')}" for rule in rules.rules),
            *(f"-X {chain}" for chain in rules.chains),
            "COMMIT\n",
        ]
    )


def old_tables(listed: str) -> list[OldTable]:
    """Return their tables in the output of ``nft -j list tables``."""
    return _named_tables(listed, _TABLES)


def _named_tables(listed: str, names: Set[tuple[str, str]]) -> list[OldTable]:
    items = json.loads(listed or '{"nftables": []}')["nftables"]
    tables = [item["table"] for item in items if "table" in item]
    return sorted(
        OldTable(one["family"], one["name"]) for one in tables if (one["family"], one["name"]) in names
    )


def own_tables(listed: str) -> list[OldTable]:
    """Return the tables that `masquerading` makes in the output of ``nft -j list tables``."""
    return _named_tables(listed, frozenset({("ip", _OWN), ("ip6", _OWN)}))


def masquerading(subnet: Subnet, pods: Iterable[str]) -> str:
    """Return the text for nft(8) by which these pods leave the cluster by the node's addresses, as by flanneld's rules;
    whichever there is first decides. flanneld takes its own along when it ends.
    """
    family, multicast = ("ip6", "ff00::/8") if subnet.family == 6 else ("ip", "224.0.0.0/4")
    rule = (
        f"{family} saddr {{ {', '.join(pods)} }} {family} daddr != {{ {subnet.cluster}, {multicast} }} "
        "masquerade fully-random"
    )
    return (
        f"table {family} {_OWN}\ndelete table {family} {_OWN}\ntable {family} {_OWN} {{\n"
        f" chain postrouting {{\n  type nat hook postrouting priority srcnat + 1\n  {rule}\n }}\n}}\n"
    )


def shared_tables(listed: str) -> list[OldTable]:
    """Return the tables of the plugins ``portmap`` and ``bridge`` in the output of ``nft -j list tables``."""
    return _named_tables(listed, _SHARED)


def pod_rules(table: OldTable, listed: str, subnets: Iterable[Subnet]) -> PodRules:
    """Return the rules with an address of these pods in the output of ``nft -j list table``, told from the plugins'
    jumps by their comments.
    """
    networks = [ipaddress.ip_network(subnet.prefix) for subnet in subnets]
    rules = [item["rule"] for item in json.loads(listed)["nftables"] if "rule" in item]
    theirs = [
        rule
        for rule in rules
        if "comment" in rule
        and any(address in network for address in _addresses(rule["expr"]) for network in networks)
    ]
    return PodRules(
        table.family, table.name, tuple(f"{rule['chain']} handle {rule['handle']}" for rule in theirs)
    )


def _addresses(expressions: Iterable[dict[str, Any]]) -> Iterator[Address]:
    for expression in expressions:
        values = (expression.get("match", {}).get("right"), (expression.get("dnat") or {}).get("addr"))
        for value in values:
            with suppress(ValueError):
                if isinstance(value, str):
                    yield ipaddress.ip_address(value)


def old_chains(listed: str) -> dict[str, list[str]]:
    """Return their chains by table, as iptables-nft makes them, in the output of ``nft -j list chains``."""
    found: dict[str, list[str]] = {}
    for item in json.loads(listed or '{"nftables": []}')["nftables"]:
        chain = item.get("chain")
        if chain and (_ENTRIES.fullmatch(chain["name"]) or _INNER.fullmatch(chain["name"])):
            found.setdefault(chain["table"], []).append(chain["name"])
    return found


def incompatible(saved: str) -> list[str]:
    """Return the tables that iptables-nft-save did not print, for the rules in them that nft wrote."""
    return _INCOMPATIBLE.findall(saved)


def old_sets(listed: str) -> list[str]:
    """Return kube-proxy's in the output of ``ipset list -name``."""
    return [name for name in listed.split() if _SETS.fullmatch(name)]


def _tables(saved: str) -> Iterator[tuple[str, list[str], list[_Rule]]]:
    table, chains, rules = "", list[str](), list[_Rule]()
    for line in saved.split("\n"):  # splitlines() would split comments, too
        if line.startswith("*"):
            table, chains, rules = line[1:].strip(), [], []
        elif line.startswith(":"):
            chains.append(line[1:].split()[0])
        elif line.startswith("-A "):
            rules.append(_rule(line))
        elif line.startswith("COMMIT"):
            yield table, chains, rules


def _rule(text: str) -> _Rule:
    words = [_ESCAPED.sub(r"\1", quoted) or plain for quoted, plain in _WORDS.findall(text)]
    return _Rule(words[1], _after(words, ("-j", "-g")), _after(words, ("--comment",)), text)


def _after(words: list[str], names: Iterable[str]) -> str:
    return next((words[i + 1] for i, word in enumerate(words[:-1]) if word in names), "")


def _is_of_pod(rule: _Rule, network: str) -> bool:
    """Whether a CNI plugin wrote it for one pod of the network."""
    named = f'name: "{network}" id: "' in rule.comment
    return named and bool(_OF_A_POD.fullmatch(rule.target))


def _is_theirs(rule: _Rule, of_pods: set[str]) -> bool:
    if rule.target in of_pods:
        return True
    if rule.chain not in _BUILT_IN:
        return False
    return bool(_ENTRIES.fullmatch(rule.target)) or rule.comment in _FLANNELD
