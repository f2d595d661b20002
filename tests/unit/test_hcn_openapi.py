"""The published description of the API is that of the code, and what the API answers fits it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from samewire.hcn.http import make_app
from samewire.hcn.loadbalancers import LoadBalancer, LoadBalancerPortMapping
from samewire.hcn.openapi import TITLES, document, main
from samewire.hcn.policies import KNOWN_POLICIES
from samewire.hcn.query import render
from samewire.hcn.schema import Endpoint, Kind, Namespace, Network, Route, SdnRoute
from samewire.hcn.service import HnsService
from samewire.hcn.store import Store
from samewire.node.tools import node_routes
from samewire.trace import doctor_service, view_service
from samewire.trace import service as trace_service
from tests.support.hcn import FakeSwitch, overlay

DOCS = Path(__file__).parents[2] / "docs"


def test_the_published_file_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    published = (DOCS / "api" / "openapi.json").read_text(encoding="utf-8")
    assert published == capsys.readouterr().out, "run: python -m samewire.hcn.openapi > docs/api/openapi.json"


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(references(item) for item in value.values()))
    return set().union(*(references(item) for item in value)) if isinstance(value, list) else set()


def test_every_reference_leads_somewhere() -> None:
    body = document()
    names = {f"#/components/schemas/{name}" for name in body["components"]["schemas"]}
    assert references(body) <= names
    for schema in body["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


async def test_answers_fit_the_description(tmp_path: Path) -> None:
    store = Store(tmp_path / "hns.db")
    service = HnsService(store, FakeSwitch())
    network = await service.create_network(overlay())
    endpoint = await service.create_endpoint(Endpoint(network_id=network.id))
    await service.create_namespace(Namespace(netns_path="/run/netns/a"))
    await service.create_route(
        Route(endpoint_ids=(endpoint.id,), routes=(SdnRoute(destination_prefix="::/0"),))
    )
    body = document()
    await service.create_load_balancer(
        LoadBalancer(
            endpoint_ids=(endpoint.id,),
            frontend_vips=("10.96.0.10",),
            port_mappings=(LoadBalancerPortMapping(protocol=6, internal_port=8080, external_port=80),),
        )
    )
    for kind, name in zip(Kind, ("Network", "Endpoint", "Namespace", "Route", "LoadBalancer"), strict=True):
        schema = {**body, "$ref": f"#/components/schemas/HostCompute{name}"}
        for value in service.view.all(kind):
            shown = render(service.view, value)
            jsonschema.validate(shown, schema)
            declared = body["components"]["schemas"][f"HostCompute{name}"]["properties"]
            assert set(shown) <= set(declared)
    store.close()


def test_the_guide_names_every_policy_and_field() -> None:
    guide = (DOCS / "api.md").read_text(encoding="utf-8")
    schemas = document()["components"]["schemas"]
    for policy in KNOWN_POLICIES.values():
        name = policy.__name__
        assert f"`{name}`" in guide, name
        for field in schemas[name]["properties"]["Settings"]["properties"]:
            assert f"`{field}`" in guide, (name, field)
    for title in TITLES.values():
        for field in schemas[title]["properties"]:
            assert f"`{field}`" in guide, (title, field)


def test_a_network_is_described_without_pythons_affairs() -> None:
    text = json.dumps(document())
    assert '"$$"' not in text
    assert "``" not in text
    assert Network.__name__ not in document()["components"]["schemas"]


def test_every_path_is_described(tmp_path: Path) -> None:
    nobody: Any = None
    store = Store(tmp_path / "hns.db")
    tools = [
        *node_routes(nobody, nobody, nobody),
        *trace_service.routes(nobody),
        *view_service.routes(nobody),
        *doctor_service.routes(nobody),
    ]
    app = make_app(HnsService(store, FakeSwitch()), tools)
    store.close()
    described = document()["paths"]
    for route in app.router.routes():
        path = re.sub(r":[^}]*}", "}", route.resource.canonical if route.resource else "")
        assert path in described, path
        modifies_a_route = (route.method, path) == ("POST", "/v2/routes/{id}")  # always refused
        if route.method not in ("HEAD", "*") and not modifies_a_route:
            assert route.method.lower() in described[path], (route.method, path)
