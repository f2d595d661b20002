"""What the doctor is told of the load balancers, while they come and go."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from samewire.hcn.client import AsyncHnsClient
from samewire.hcn.http import HttpServer, make_app
from samewire.hcn.loadbalancers import LoadBalancer, LoadBalancerPortMapping
from samewire.hcn.service import HnsService
from samewire.hcn.store import Store
from samewire.kube.model import ServicePort
from samewire.kube.source import Change
from samewire.node.config import make_config
from samewire.node.node import Node
from samewire.node.services import Services
from samewire.node.serviceview import NOT_YET, describe_balancers, service_routes, why_none
from samewire.proxy.figures import Figures
from samewire.proxy.table import ServiceTable
from tests.support.hcn import FakeSwitch
from tests.support.kube_services import service

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


@pytest.mark.parametrize(("ports", "error"), [((), None), ((ServicePort(port=80),), NOT_YET)])
async def test_a_service_without_ports_is_not_waited_for(
    tmp_path: Path, ports: tuple[ServicePort, ...], error: str | None
) -> None:
    table = ServiceTable()
    table.change_services([Change(("shop", "web"), None, service(ports=ports))])
    proxy = SimpleNamespace(table=table, figures=Figures(), load_balancer_ids=lambda key: ())
    routes = service_routes(cast(Node, None), cast(Services, SimpleNamespace(proxy=proxy)))
    store = Store(tmp_path / "hns.db")
    server = HttpServer(make_app(HnsService(store, FakeSwitch()), routes), tmp_path / "s.sock")
    await server.start()
    (found,) = await AsyncHnsClient(tmp_path / "s.sock").get_json("/v2/services")
    await server.close()
    store.close()
    assert found.get("error") == error
