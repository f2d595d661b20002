"""What the doctor is told of the load balancers, while they come and go."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from samewire.hcn.loadbalancers import LoadBalancer, LoadBalancerPortMapping
from samewire.node.config import make_config
from samewire.node.node import Node
from samewire.node.serviceview import describe_balancers, why_none

ONE, OTHER = (
    LoadBalancer(
        id=f"{'A' * 35}{digit}",
        name=digit,
        frontend_vips=(f"10.96.0.{digit}",),
        port_mappings=(LoadBalancerPortMapping(protocol=6, internal_port=80, external_port=80),),
    )
    for digit in "12"
)


async def test_what_is_deleted_meanwhile_is_no_ailment() -> None:
    stored = {value.id: value for value in (ONE, OTHER)}
    state = SimpleNamespace(load_balancers=stored.values, load_balancer=stored.get)
    balancers: dict[str, Any] = {}  # the switch has neither of them
    node = SimpleNamespace(store=SimpleNamespace(state=state), switch=SimpleNamespace(balancers=balancers))
    described = asyncio.create_task(describe_balancers(cast(Node, node)))
    await asyncio.sleep(0)
    del stored[OTHER.id]
    assert [(found.label, found.present) for found in await described] == [("1", False)]


def test_why_there_is_no_list_of_services() -> None:
    """Not a missing source where there is one that this node only does not balance."""
    assert "names no source" in why_none(make_config({"name": "a"}))
    assert "proxy_mode is off" in why_none(make_config({"name": "a", "manifests": "/m", "proxy_mode": "off"}))
