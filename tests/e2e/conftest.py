"""What most of these tests run on: a node's network, and the daemon in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cgroups import own_cgroup
from tests.support.churn import Churn, churning
from tests.support.node import PREFIX, DaemonProcess, NodeNet, daemon, node_net


@pytest.fixture
def net() -> Iterator[NodeNet]:
    """A node's network namespace with a router next to it."""
    with node_net() as made:
        yield made


@pytest.fixture
def group() -> Iterator[Path]:
    """A cgroup in which the sockets of the node's processes are translated."""
    with own_cgroup(f"{PREFIX}-node") as made:
        yield made


@pytest.fixture
def unstarted(net: NodeNet, tmp_path: Path) -> Iterator[DaemonProcess]:
    """The node's daemon, to be started by the test."""
    with daemon(net, tmp_path) as process:
        yield process


@pytest.fixture
def node(unstarted: DaemonProcess) -> DaemonProcess:
    """The node's daemon, up."""
    return unstarted.start()


@pytest.fixture(scope="module")
def churning_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Churn]:
    """A node under churn, for all tests of a module."""
    with churning(tmp_path_factory.mktemp("churn")) as made:
        yield made


@pytest.fixture
def churn(churning_node: Churn) -> Iterator[Churn]:
    """The same, emptied after each test."""
    yield churning_node
    churning_node.world.clear()
    assert churning_node.world.node.differences() == []
