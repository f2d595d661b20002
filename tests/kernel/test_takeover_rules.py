"""Removal of what kube-proxy, flannel and the old plugins wrote, from among the rules of others.

The file is what iptables-save printed on a node with a real kube-proxy 1.20 (ClusterIP, NodePort, affinity,
LoadBalancer with source ranges, a service without endpoints), flanneld's rules, the plugins ``bridge`` and
``portmap`` for a pod of network cbr0 and one of another network, and rules of an administrator, Docker, kubelet
and kube-router.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from samewire.takeover import plan
from samewire.takeover.iptables import old_rules, old_tables, pod_rules, removal, shared_tables
from samewire.takeover.model import Command, Found, Journal, Node, Places, Subnet
from tests.support.flannel import FlannelNode, nftables_mode
from tests.support.node import NodeNet, node_net, path_of, poll

pytestmark = pytest.mark.root

RULES = Path(__file__).parents[1] / "data" / "kube-proxy-1.20.rules"
THEIRS = (
    *("KUBE-SVC-", "KUBE-SEP-", "KUBE-FW-", "KUBE-XLB-", "KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES"),
    *("KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-FORWARD", "KUBE-MARK-MASQ", "KUBE-PROXY-CANARY"),
    *("FLANNEL-", "CNI-DN-776372b7d65203416c353"),
)


@pytest.fixture
def net() -> Iterator[NodeNet]:
    with node_net() as made:
        yield made


def command(net: NodeNet, tool: str, *arguments: str) -> list[str]:
    return ["nsenter", f"--net={path_of(net.node)}", tool, *arguments]


def saved(net: NodeNet, tool: str) -> str:
    return subprocess.run(command(net, f"{tool}-save"), capture_output=True, text=True, check=True).stdout


def restore(net: NodeNet, tool: str, text: str) -> None:
    done = subprocess.run(
        command(net, f"{tool}-restore", "--noflush", "-w"),
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def lines(text: str) -> list[str]:
    """Chains and rules in their order, without counters."""
    return [line.partition(" [")[0] for line in text.splitlines() if line[:1] in ":-*"]


def as_ipv6(text: str) -> str:
    """The same rules for ip6tables: kube-proxy and flanneld write them alike for either family."""
    text = re.sub(r"(\d+)\.(\d+)\.(\d+)\.(\d+)/(\d+)", _prefix, text)
    text = re.sub(r"(\d+)\.(\d+)\.(\d+)\.(\d+):(\d+)", r"[fd00::\1:\2:\3:\4]:\5", text)
    text = text.replace("--mask 255.255.255.255", "--mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
    return text.replace("icmp-port-unreachable", "icmp6-port-unreachable")


def _prefix(match: re.Match[str]) -> str:
    *words, length = match.groups()
    return f"fd00::{':'.join(words)}/{int(length) + 96}"


@pytest.mark.parametrize("tool", ["iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"])
def test_exactly_theirs_goes(net: NodeNet, tool: str) -> None:
    restore(net, tool, as_ipv6(RULES.read_text()) if tool.startswith("ip6") else RULES.read_text())
    before = lines(saved(net, tool))
    assert len(before) > 150
    found = old_rules(tool, saved(net, tool), "cbr0")
    assert {one.table for one in found} == {"mangle", "filter", "nat"}
    assert not [one.blockers for one in found if one.blockers]
    for one in found:
        restore(net, tool, removal(one))
    after = lines(saved(net, tool))
    assert after == [line for line in before if not any(name in line for name in THEIRS)]
    assert old_rules(tool, saved(net, tool), "cbr0") == []


def test_of_nftables_exactly_their_tables_go(net: NodeNet, tmp_path: Path) -> None:
    """kube-proxy's and flanneld's nftables modes, beside rules of iptables-nft and an administrator's tables."""

    def nft(*arguments: str, text: str | None = None) -> str:
        done = subprocess.run(
            command(net, "nft", *arguments), input=text, capture_output=True, text=True, check=True
        )
        return done.stdout

    restore(net, "iptables-nft", "*filter\n-A INPUT -s 192.0.2.0/24 -j DROP\nCOMMIT\n")
    mine = "table inet kube-proxy {\n chain mine {\n }\n}\ntable ip6 flannel-ipv4 {\n}\n"
    nft("-f", "-", text=mine)
    before = nft("list", "ruleset")
    node = FlannelNode("", ("192.168.77.2", "fd77::2"), 1, tmp_path)
    nft("-f", "-", text=nftables_mode(node, ("10.244.1.2", "10.244.2.2")))
    found = old_tables(nft("-j", "list", "tables"))
    assert [(one.family, one.name) for one in found] == [
        *(("ip", "flannel-ipv4"), ("ip", "kube-proxy"), ("ip6", "flannel-ipv6"), ("ip6", "kube-proxy"))
    ]
    for table in found:
        nft("delete", "table", table.family, table.name)
    assert nft("list", "ruleset") == before


OF_PLUGINS = """
table ip cni_hostport {
    comment "CNI portmap plugin"
    chain hostports {
        tcp dport 18080 dnat to 10.244.1.2:8080 comment "c1"
        tcp dport 18081 dnat to 10.88.0.2:8080 comment "c2"
    }
    chain hostip_hostports {
        ip daddr 192.0.2.1 udp dport 53 dnat to 10.244.1.2:53 comment "c1"
    }
    chain prerouting {
        type nat hook prerouting priority dstnat;
        jump hostip_hostports
        ip daddr != 10.244.1.9 jump hostports
    }
    chain masquerading {
        type nat hook postrouting priority srcnat;
        ip saddr 10.244.1.2 ip daddr 10.244.1.2 masquerade comment "c1"
        ip saddr 127.0.0.1 ip daddr 10.244.1.2 masquerade comment "c1"
        ip saddr 10.88.0.2 ip daddr 10.88.0.2 masquerade comment "c2"
    }
}
table ip6 cni_hostport {
    chain hostports {
        tcp dport 18080 dnat to [fd00:244:0:1::2]:8080 comment "c1"
    }
}
table inet cni_plugins_masquerade {
    chain masq_checks {
        ip saddr 10.244.1.2 ip daddr != 10.244.1.0/24 masquerade comment "1234-5678, net: cbr0, if: eth0, id: c1"
        ip saddr 10.88.0.2 ip daddr != 10.88.0.0/16 masquerade comment "4321-8765, net: lan, if: eth0, id: c2"
    }
}
table ip mine {
    chain mine {
        ip saddr 10.244.1.2 drop comment "mine"
    }
}
"""
"""As the plugins portmap and bridge write them since 1.6."""


def test_of_the_plugins_tables_exactly_the_old_pods_rules_go(net: NodeNet) -> None:
    def nft(*arguments: str, text: str | None = None) -> str:
        done = subprocess.run(
            command(net, "nft", *arguments), input=text, capture_output=True, text=True, check=True
        )
        return done.stdout

    nft("-f", "-", text=OF_PLUGINS)
    before = nft("list", "ruleset")
    subnets = (Subnet("10.244.1.0/24", "10.244.0.0/16"), Subnet("fd00:244:0:1::/64", "fd00:244::/48"))
    found = tuple(
        pod_rules(table, nft("-j", "list", "table", table.family, table.name), subnets)
        for table in shared_tables(nft("-j", "list", "tables"))
    )
    assert [(one.family, one.table, len(one.rules)) for one in found] == [
        *(("inet", "cni_plugins_masquerade", 1), ("ip", "cni_hostport", 4), ("ip6", "cni_hostport", 1))
    ]
    node = Node(vxlan_port=8472, balances=True, reads=True, network="cbr0", config="")
    for step in plan.remove(Found(pod_rules=found), Journal(found=Found(), removed=True), node, Places()):
        assert isinstance(step, Command)
        nft(*step.argv[1:], text=step.stdin)
    kept = [line for line in before.splitlines() if not re.search(r'comment ".*\bc1"', line)]
    assert nft("list", "ruleset").splitlines() == kept


def test_a_removal_waits_for_the_lock(net: NodeNet, tmp_path: Path) -> None:
    tool = "iptables-legacy"
    restore(net, tool, RULES.read_text())
    [nat] = [one for one in old_rules(tool, saved(net, tool), "cbr0") if one.table == "nat"]
    lock = tmp_path / "lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = subprocess.Popen(
            command(net, f"{tool}-restore", "--noflush", "-w"),
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XTABLES_LOCKFILE": str(lock)},
        )
        with waiting:
            assert waiting.stdin is not None
            waiting.stdin.write(removal(nat))
            waiting.stdin.close()
            poll("it waits for the lock", lambda: f" {waiting.pid} " in Path("/proc/locks").read_text())
            assert waiting.poll() is None
            assert "KUBE-SERVICES" in saved(net, tool)
            fcntl.flock(held, fcntl.LOCK_UN)
            assert waiting.wait(20) == 0
    assert "KUBE-MARK-MASQ" not in saved(net, tool)
