"""Removal of what kube-proxy, flannel and the old plugins wrote, from among the rules of others.

The file is what iptables-save printed on a node with a real kube-proxy 1.20 (ClusterIP, NodePort, affinity,
LoadBalancer with source ranges, a service without endpoints), flanneld's rules, the plugins ``bridge`` and
``portmap`` for a pod of network cbr0 and one of another network, and rules of an administrator, Docker, kubelet
and kube-router.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from samewire.takeover.iptables import old_rules, removal
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


@pytest.mark.parametrize("tool", ["iptables-nft", "iptables-legacy"])
def test_exactly_theirs_goes(net: NodeNet, tool: str) -> None:
    restore(net, tool, RULES.read_text())
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
