"""A switchboard that is opened in a thread while others go on: who holds it when the start goes wrong."""

from __future__ import annotations

import os

import pytest

from samewire.errors import Conflict, KernelError
from samewire.kernel import faults
from samewire.kernel.rtnetlink import Netlink, veth_add
from samewire.node.config import NodeConfig
from samewire.node.hooks import Hooks
from samewire.node.node import Node
from samewire.node.opening import Opening
from samewire.vfp.compile.link import host_name
from samewire.vfp.model import LINK_GROUP
from tests.support.node import NodeNet

pytestmark = pytest.mark.root


def descriptors() -> set[str]:
    """What this process has open of the switch, and its sockets."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            continue
        if "bpf" in name or name.startswith("socket:"):
            found.add(f"{number} {name}")
    return found


def test_what_nobody_takes_is_closed(net: NodeNet, config: NodeConfig) -> None:
    before = descriptors()
    opening = Opening(config)
    opening.close()
    opening.close()
    assert descriptors() == before


async def test_a_start_that_fails_beside_it_leaves_nothing_open(net: NodeNet, config: NodeConfig) -> None:
    """The database is gone, and there are pods."""
    with Netlink() as netlink:
        netlink.request(veth_add(host_name("A" * 32), "other", group=LINK_GROUP))
    before = descriptors()
    with pytest.raises(Conflict):
        await Node.start(config, lambda _: None)
    assert descriptors() == before


async def test_a_load_that_fails_is_the_starts_error(
    net: NodeNet, config: NodeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def inject(operation: str) -> None:
        if operation.startswith("load "):
            raise KernelError(operation, 12, "injected")

    before = descriptors()
    monkeypatch.setattr(faults, "inject", inject)
    with pytest.raises(KernelError, match="injected"):
        await Node.start(config, lambda _: None)
    assert descriptors() == before


async def test_a_start_that_fails_behind_it_leaves_nothing_open(
    net: NodeNet, config: NodeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(hooks: Hooks, ifindex: int) -> None:
        raise KernelError("attach", 12, "injected")

    before = descriptors()
    monkeypatch.setattr(Hooks, "attach_uplink", fails)
    with pytest.raises(KernelError, match="injected"):
        await Node.start(config, lambda _: None)
    assert descriptors() == before
