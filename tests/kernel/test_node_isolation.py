"""Endpoints with DisableInterComputeCommunication, with real packets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest
import pytest_asyncio

from samewire.node.node import Node
from tests.support.node import SHORT_S, NodeNet, can_ping
from tests.support.node_pods import A, B, World

pytestmark = [pytest.mark.root, pytest.mark.asyncio]

DISABLE_ICC = 2
ALONE = {4: "10.50.0.20", 6: "fd50::20"}
GATEWAY = {4: "10.50.0.1", 6: "fd50::1"}
ALLOW_PING = [
    {"Type": "ACL", "Settings": {"Action": "Allow", "Direction": way, "Protocols": "1,58", "Priority": 100}}
    for way in ("In", "Out")
]


@pytest_asyncio.fixture
async def world(net: NodeNet, node: Node) -> AsyncIterator[World]:
    with ExitStack() as stack:
        made = World(node, net, stack)
        await made.start()
        yield made


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("ruled", [False, True], ids=["without rules", "with rules"])
async def test_it_talks_with_the_node_and_with_no_other_endpoint(
    world: World, family: int, ruled: bool
) -> None:
    """An ACL of its own that allows all pings does not open the way to the others."""
    alone = world.net.pod()
    await world.pod(alone, ALONE, *(ALLOW_PING if ruled else []), flags=DISABLE_ICC)
    assert can_ping(world.a, B[family])
    assert not can_ping(alone, A[family], wait_s=SHORT_S)
    assert not can_ping(world.a, ALONE[family], wait_s=SHORT_S)
    assert can_ping(alone, GATEWAY[family])
    assert can_ping(world.net.node, ALONE[family])
